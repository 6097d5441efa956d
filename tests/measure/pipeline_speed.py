"""Speed of the input pipeline beside mmsegmentation's: `OMP_NUM_THREADS=1 python tests/measure/pipeline_speed.py`.

Both read, resize, crop, flip and distort the same files on one core, by turns; ours normalizes and pads besides, which
mmsegmentation leaves to the model. Prints images per second of both and their ratio, for images of 2048×1024 (PNG, as
of Cityscapes, crop 1024) and of 683×512 (JPEG, as of ADE20K, crop 512). Needs mmsegmentation: see
examples/publishing/reference.py.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / name) for name in ("examples", "tests/helpers")]
from publishing.reference import import_mmseg
from segmentation.data import Split, TrainSamples
from segmentation.transforms import PhotometricDistortion, RandomResizedCrop, TrainTransform

COUNT, ROUNDS = 12, 5


def make(folder: Path, width: int, height: int, suffix: str) -> Split:
    """Write images with as much detail as photographs have, and labels in patches."""
    images, labels = [], []
    for index in range(COUNT):
        rng = np.random.default_rng(index)
        pixels = np.zeros((height, width, 3))
        for cell in (4, 16, 64, 256):
            coarse = rng.normal(0, 6 * cell**0.5, (-(-height // cell), -(-width // cell), 3))
            pixels += np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width]
        image = Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{index}{suffix}", **({"quality": 90} if suffix == ".jpg" else {}))
        patches = np.kron(rng.integers(0, 19, (-(-height // 64), -(-width // 64))), np.ones((64, 64)))
        Image.fromarray(patches[:height, :width].astype(np.uint8)).save(folder / f"{index}_labels.png")
        images.append(folder / f"{index}{suffix}")
        labels.append(folder / f"{index}_labels.png")
    classes = tuple(map(str, range(19)))
    return Split("x", images, labels, classes, ((0, 0, 0),) * 19)


def theirs(split: Split, base_scale: tuple[int, int], crop: int):
    """mmsegmentation's pipeline, of its SegNeXt configurations."""
    import_mmseg()
    import mmseg.datasets.transforms  # noqa: F401
    from mmcv.transforms import Compose
    from mmseg.registry import TRANSFORMS

    steps = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": base_scale, "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (crop, crop), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])

    def load(k: int) -> None:
        index = k % len(split)
        pipeline(
            {
                "img_path": str(split.images[index]),
                "seg_map_path": str(split.labels[index]),
                "reduce_zero_label": False,
                "label_map": None,
                "seg_fields": [],
            }
        )

    return load


def main() -> dict[str, float]:
    """Measure and print; gives the ratios by size."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    ratios = {}
    for width, height, suffix, base_scale, crop in (
        (2048, 1024, ".png", (2048, 1024), 1024),
        (683, 512, ".jpg", (2048, 512), 512),
    ):
        with tempfile.TemporaryDirectory() as folder:
            split = make(Path(folder), width, height, suffix)
            transform = TrainTransform(RandomResizedCrop(crop, base_scale), PhotometricDistortion())
            ours = TrainSamples(split, transform)
            loaders = {"ours": ours.__getitem__, "mmsegmentation": theirs(split, base_scale, crop)}
            rates = {name: [] for name in loaders}
            for number in range(ROUNDS + 1):
                for name, load in loaders.items():
                    start = time.perf_counter()
                    for k in range(number * COUNT, (number + 1) * COUNT):
                        load(k)
                    if number:  # the first round warms up
                        rates[name].append(COUNT / (time.perf_counter() - start))
        own, other = (statistics.median(rates[name]) for name in ("ours", "mmsegmentation"))
        ratios[f"{width}×{height}"] = own / other
        print(f"{width}×{height}: {own:.1f} images/s, mmsegmentation {other:.1f}: {own / other:.2f} times as fast")
        print("  rounds:", {name: [round(r, 1) for r in values] for name, values in rates.items()})
    return ratios


if __name__ == "__main__":
    main()
