"""Data sets in miniature, in the layout of their distribution: what each pixel's class is can be told from its place.

Images are colored noise. Labels are vertical stripes of the values in a list.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((48, 64), (64, 48), (33, 97))  # height, width


def stripes(values: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Values (H, W) in vertical stripes of equal width, of as many of `values` as there are columns."""
    return np.broadcast_to(np.asarray(values)[np.arange(size[1]) * len(values) // size[1]], size).astype(np.uint8)


def picture(path: Path, size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> None:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def labels(path: Path, values: np.ndarray, palette: bool = False) -> None:
    """Write a label file, with a palette if asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tolist())
    image.save(path)


def make(dataset: str, root: Path, values: Sequence[int], sizes: Sequence[tuple[int, int]] = SIZES) -> None:
    """Write a data set whose label files hold `values` in stripes, an image of each size for each split."""
    for split in ("train", "val"):
        names = [f"{split}_{i}" for i in range(len(sizes))]
        for i, (name, size) in enumerate(zip(names, sizes)):
            image, label, palette = PATHS[dataset](split, name)
            picture(root / image, size, i, "L" if i == 1 and dataset != "cityscapes" else "RGB")
            labels(root / label, stripes(values, size), palette)
        if dataset in ("voc2012", "pascal_context"):
            folder = {
                "voc2012": "VOC2012/ImageSets/Segmentation",
                "pascal_context": "VOC2010/ImageSets/SegmentationContext",
            }
            path = root / folder[dataset] / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(names) + "\n", encoding="utf-8")
    if dataset == "folder":
        (root / "classes.txt").write_text(
            "".join(f"class {v}\n" for v in sorted(set(values) - {255})), encoding="utf-8"
        )


def _ade20k(split: str, name: str) -> tuple[str, str, bool]:
    folder = {"train": "training", "val": "validation"}[split]
    return (
        f"ADEChallengeData2016/images/{folder}/{name}.jpg",
        f"ADEChallengeData2016/annotations/{folder}/{name}.png",
        False,
    )


def _cityscapes(split: str, name: str) -> tuple[str, str, bool]:
    city = f"{split}/bonn/bonn_{name}"
    return f"leftImg8bit/{city}_leftImg8bit.png", f"gtFine/{city}_gtFine_labelIds.png", False


PATHS = {
    # image, labels, and whether these have a palette
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "coco_stuff164k": lambda s, n: (f"images/{s}2017/{n}.jpg", f"annotations/{s}2017/{n}.png", False),
    "voc2012": lambda s, n: (f"VOC2012/JPEGImages/{n}.jpg", f"VOC2012/SegmentationClass/{n}.png", True),
    "pascal_context": lambda s, n: (f"VOC2010/JPEGImages/{n}.jpg", f"VOC2010/SegmentationClassContext/{n}.png", True),
    "isaid": lambda s, n: (f"img_dir/{s}/{n}.png", f"ann_dir/{s}/{n}_instance_color_RGB.png", False),
    "folder": lambda s, n: (f"images/{s}/{n}.png", f"labels/{s}/{n}.png", False),
}
