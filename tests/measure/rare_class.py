"""Train on scenes with a rare class, with several losses: `python tests/measure/rare_class.py [--seeds 0 1 2]`.

Draws street scenes of 128² pixels, every other one with one or two signs: discs with a red rim, 0.5% of all pixels.
Trains a narrow model from random weights with each of OPTIONS and each seed, and prints the IoU of the signs and the
mIoU on scenes that were held out.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from segmentation import scenes
from segmentation.evaluation import evaluate
from segmentation.recipe import TrainSettings
from train import Trainer

SIZE, SIGN = 128, len(scenes.CLASSES)
OPTIONS = {
    "ce": {},
    "ce+dice": {"loss": "ce+dice"},
    "ce, class weights auto": {"class_weights": "auto"},
    "ce, rare-class sampling 0.01": {"rare_class_sampling": 0.01},
    "ce+dice with both": {"loss": "ce+dice", "class_weights": "auto", "rare_class_sampling": 0.01},
}
MODEL = {"encoder": "tu-test_mscan", "decoder_channels": 32, "decoder_rank": 4, "init_from": "none"}
SCHEDULE = {"batch_size": 8, "warmup": 50, "lr": 3e-3, "decoder_lr_factor": 2.0}
IMAGES = {"base_scale": (SIZE, SIZE), "crop_size": SIZE // 2, "resize_factors": (0.9, 1.5)}
QUIET = {"workers": 0, "tracker": "none", "check_data": False, "eval_every": 10**6, "save_every": 10**6}


def draw(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene (H, W, 3) with labels (H, W), and signs in every other one."""
    image, labels = scenes.draw(seed, index, SIZE)
    rng = np.random.default_rng((seed, index, 1))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for _ in range(rng.integers(1, 3) if index % 2 else 0):
        radius, center = rng.uniform(4, 7), rng.uniform(10, SIZE - 10, 2)
        distance = np.hypot(rows - center[0], columns - center[1])
        image[distance <= radius] = rng.uniform((150, 10, 10), (255, 60, 60))
        image[distance <= 0.65 * radius] = rng.uniform(180, 255, 3)
        labels[distance <= radius] = SIGN
    return image, labels


def write(root: Path, train: int, val: int) -> float:
    """Write a data folder; returns the signs' share of the training pixels."""
    shares = []
    for seed, (split, count) in enumerate((("train", train), ("val", val))):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            image, labels = draw(seed, index)
            Image.fromarray(image).save(root / "images" / split / f"{index:03d}.png")
            Image.fromarray(labels).save(root / "labels" / split / f"{index:03d}.png")
            shares += [(labels == SIGN).mean()] if split == "train" else []
    (root / "classes.txt").write_text("\n".join([*scenes.CLASSES, "sign"]) + "\n", encoding="utf-8")
    return float(np.mean(shares))


def train(settings: TrainSettings) -> tuple[float, float]:
    """IoU of the signs and mIoU, in percent, after a training."""
    AcceleratorState._reset_state(True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer = Trainer(settings)
        trainer.run()
        scores = evaluate(trainer.eval_model, trainer.val_split, settings, trainer.accelerator, by_position=True)
    return 100 * scores.iou[SIGN].item(), 100 * scores.miou


def main() -> None:
    """Train and print a row for each of OPTIONS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=700)
    parser.add_argument("--options", nargs="+", default=[*OPTIONS], choices=OPTIONS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        share = write(root / "data", 200, 80)
        print(f"signs: {share:.2%} of the pixels; {args.iterations} iterations; seeds {args.seeds}")
        print("| | IoU of signs | mIoU |")
        print("|---|---|---|")
        for name in args.options:
            found = []
            for seed in args.seeds:
                out = {"data_root": str(root / "data"), "out": str(root / f"{name} {seed}"), "seed": seed}
                length = {"iterations": args.iterations}
                settings = TrainSettings(**MODEL, **SCHEDULE, **IMAGES, **QUIET, **OPTIONS[name], **out, **length)
                found.append(train(settings))
            sign, miou = (", ".join(f"{value:.1f}" for value in values) for values in zip(*found))
            print(f"| {name} | {sign} | {miou} |", flush=True)


if __name__ == "__main__":
    main()
