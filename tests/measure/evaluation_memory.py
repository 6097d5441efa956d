"""Measure the memory of an evaluation at 5472×3648 pixels and 150 classes, above that of the model alone.

python tests/measure/evaluation_memory.py

Each line is a process of its own: the model on the whole image, or on one window of 512 pixels, without a map at the
image's size; then the evaluation of one image, whole and in windows.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, CLASSES = (3648, 5472), 150


def measure(what: str, root: Path) -> None:
    import segmentation_models_pytorch as smp
    import torch
    from accelerate import Accelerator

    import segnext_timm  # noqa: F401
    from segmentation.evaluation import evaluate
    from segmentation.layouts import open_split
    from segmentation.recipe import EvalSettings

    model = smp.SegNeXt("tu-mscan_t", encoder_weights=None, classes=CLASSES).eval()
    model = model.to(memory_format=torch.channels_last)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what.startswith("model"):
        sides = SIZE if what == "model, whole" else (512, 512)
        with torch.inference_mode():
            model(torch.zeros(1, 3, *sides).contiguous(memory_format=torch.channels_last), upsampling=1)
    else:
        settings = EvalSettings(data_root=str(root), workers=0, eval_mode=what.split()[-1])
        evaluate(model, open_split("folder", root, "val"), settings, Accelerator())
    print(f"{what}: {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20:.2f} GiB", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for kind in ("images", "labels"):
            (root / kind / "val").mkdir(parents=True)
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(root / "images/val/a.png", compress_level=1)
        Image.fromarray(rng.integers(0, CLASSES, SIZE, np.uint8)).save(root / "labels/val/a.png", compress_level=1)
        (root / "classes.txt").write_text("".join(f"class {label}\n" for label in range(CLASSES)), encoding="utf-8")
        for what in ("model, whole", "evaluation, whole", "model, window", "evaluation, slide"):
            subprocess.run([sys.executable, __file__, what, name], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
