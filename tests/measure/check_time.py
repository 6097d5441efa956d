"""Time the check of a data folder of 2,000 images of a megapixel: cold, and when nothing changed.

python tests/measure/check_time.py [--images 2000] [--workers 2]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from segmentation.checks import check_files
from segmentation.layouts import open_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for kind in ("images", "labels"):
            (root / kind / "train").mkdir(parents=True)
        (root / "classes.txt").write_text("".join(f"class {label}\n" for label in range(20)), encoding="utf-8")
        coarse = rng.integers(0, 256, (args.images, 32, 32, 3), np.uint8)
        for number, colors in enumerate(coarse):  # as a photo, smooth and with some noise
            image = np.asarray(Image.fromarray(colors).resize((1000, 1000), Image.Resampling.BICUBIC)).astype(int)
            image = (image + rng.integers(-8, 9, (1000, 1000, 1))).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / f"images/train/{number}.jpg", quality=90)
            labels = (colors[..., 0] // 13).repeat(32, 0).repeat(32, 1)[:1000, :1000]
            Image.fromarray(labels).save(root / f"labels/train/{number}.png")
        split = open_split("folder", root, "train")
        for what in ("cold", "cached"):
            start = time.perf_counter()
            check_files(split, root, args.workers)
            print(f"{what}: {time.perf_counter() - start:.2f} s for {len(split)} images, {args.workers} threads")


if __name__ == "__main__":
    main()
