"""Peak memory and time of `segnext-timm predict` on a photo of 108 megapixels.

    python tests/measure/predict_memory.py [CLASSES]

SegNeXt-T with random weights, 19 classes by default, windows of 512; labels and overlay are written.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from segnext_timm import create_segmenter

SIZE = (12_000, 9_000)


def measure(folder: Path, classes: int) -> tuple[float, float]:
    """Peak memory in GB, and seconds."""
    create_segmenter("segnext_t", classes=classes).save_pretrained(folder / "model")
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(folder / "photo.jpg")
    command = [sys.executable, "-m", "segnext_timm", "predict", folder / "model", folder / "photo.jpg"]
    start = time.monotonic()
    subprocess.run([*command, "-o", folder / "out"], check=True)
    assert (folder / "out" / "photo.png").is_file()
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9, time.monotonic() - start


if __name__ == "__main__":
    classes = int(sys.argv[1]) if len(sys.argv) > 1 else 19
    with tempfile.TemporaryDirectory() as folder:
        memory, seconds = measure(Path(folder), classes)
    print(f"{SIZE[0]}×{SIZE[1]} pixels, {classes} classes: {memory:.1f} GB, {seconds:.0f} s")
