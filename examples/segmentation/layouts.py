"""Where published data sets, read as they are distributed, and folders of your own hold their images and labels.

A folder of your own holds `images/train`, `images/val`, `labels/train`, `labels/val` and `classes.txt`, which names one
class per line. The labels of an image are a PNG of the same name. Its pixels are line numbers from 0, or the values
(`255 person`) or colors (`#ff0000 road`) that `classes.txt` gives; `class_list.py` has the rules.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from segnext_timm.label_sets import LABEL_SETS

from .class_list import read_classes
from .data import Split
from .recipe import DataError


def _files(folder: Path, suffixes: Iterable[str] | None = None) -> list[Path]:
    """Image files of a folder, sorted.

    Raises:
        DataError: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: point --data_root to the data set's folder.")
    suffixes = set(suffixes or Image.registered_extensions())
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.name[0] != ".")
    if not files:
        raise DataError(f"{folder} holds no images.")
    return files


def _paired(images: list[Path], label_of: Callable[[Path], Path]) -> tuple[list[Path], list[Path]]:
    """Images with their labels.

    Raises:
        DataError: If an image has none.
    """
    labels = [label_of(image) for image in images]
    missing = [path for path in labels if not path.is_file()]
    if missing:
        more = " and so on" if len(missing) > 1 else ""
        raise DataError(f"{len(missing)} of {len(images)} images have no labels: add {missing[0]}{more}.")
    return images, labels


def _listed(root: Path, list_file: Path, image_folder: str, label_folder: str) -> tuple[list[Path], list[Path]]:
    """Images and labels by the names in a list, as of Pascal VOC."""
    if not list_file.is_file():
        raise DataError(f"{list_file} does not exist: point --data_root to the data set's folder.")
    names = list_file.read_text(encoding="utf-8").split()
    if not names:
        raise DataError(f"{list_file} names no images.")
    images = [root / image_folder / f"{name}.jpg" for name in names]
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of the {len(names)} images in {list_file} are missing: {missing[0]}.")
    return _paired(images, lambda image: root / label_folder / f"{image.stem}.png")


def _inside(root: Path, *names: str) -> Path:
    """The folder of that name in the root, or the root itself, if that is it."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def _shifted() -> np.ndarray:
    """Values from 1 to labels from 0; 0 is left out."""
    mapping = np.arange(-1, 255).astype(np.uint8)
    mapping[0] = 255
    return mapping


# The 19 classes of Cityscapes among its label ids (github.com/mcordts/cityscapesScripts, helpers/labels.py)
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Ids of COCO that no pixel of COCO-Stuff has: of its 182 things and stuff, 171 are left
_COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


def _only(ids: Iterable[int]) -> np.ndarray:
    """The given values to labels in their order; others are left out."""
    mapping = np.full(256, 255, np.uint8)
    for label, value in enumerate(ids):
        mapping[value] = label
    return mapping


def _ade20k(root: Path, split: str) -> dict:
    root = _inside(root, "ADEChallengeData2016")
    name = {"train": "training", "val": "validation"}[split]
    images = _files(root / "images" / name)
    return {
        "pairs": _paired(images, lambda image: root / "annotations" / name / f"{image.stem}.png"),
        "mapping": _shifted(),
    }


def _cityscapes(root: Path, split: str) -> dict:
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: point --data_root to the folder of leftImg8bit and gtFine.")
    images = sorted(folder.glob("*/*_leftImg8bit.png"))
    if not images:
        raise DataError(f"{folder} holds no CITY/*_leftImg8bit.png.")

    def label_of(image: Path) -> Path:
        name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        return root / "gtFine" / split / image.parent.name / name

    return {"pairs": _paired(images, label_of), "mapping": _only(_CITYSCAPES_IDS)}


def _coco_stuff164k(root: Path, split: str) -> dict:
    folder = _inside(root, "annotations", "stuffthingmaps") / f"{split}2017"
    images = _files(root / "images" / f"{split}2017")
    return {
        "pairs": _paired(images, lambda image: folder / f"{image.stem}.png"),
        "mapping": _only(i for i in range(182) if i not in _COCO_GAPS),
    }


def _voc2012(root: Path, split: str) -> dict:
    root = _inside(root, "VOCdevkit/VOC2012", "VOC2012")
    lists = root / "ImageSets" / "Segmentation"
    augmented = split == "train" and (lists / "trainaug.txt").is_file()
    list_file = lists / ("trainaug.txt" if augmented else f"{split}.txt")
    labels = "SegmentationClassAug" if augmented else "SegmentationClass"
    return {"pairs": _listed(root, list_file, "JPEGImages", labels)}


def _pascal_context(root: Path, split: str) -> dict:
    root = _inside(root, "VOCdevkit/VOC2010", "VOC2010")
    list_file = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    return {"pairs": _listed(root, list_file, "JPEGImages", "SegmentationClassContext"), "mapping": _shifted()}


def _isaid(root: Path, split: str) -> dict:
    images = _files(root / "img_dir" / split)
    suffix = "_instance_color_RGB.png"
    return {"pairs": _paired(images, lambda image: root / "ann_dir" / split / f"{image.stem}{suffix}")}


LAYOUTS = {
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "coco_stuff164k": _coco_stuff164k,
    "voc2012": _voc2012,
    "pascal_context": _pascal_context,
    "isaid": _isaid,
}


def open_folder(root: Path, split: str, ignore_index: int = 255) -> Split:
    """One split of a folder of your own.

    Raises:
        DataError: If it is not as the head of this file says.
    """
    found = read_classes(root / "classes.txt", ignore_index)
    images = _files(root / "images" / split)
    images, labels = _paired(images, lambda image: root / "labels" / split / f"{image.stem}.png")
    return Split(
        root.resolve().name,
        images,
        labels,
        found.classes,
        found.palette,
        found.mapping,
        found.ignore_index,
        found.by_color,
    )


def open_split(dataset: str, root: str | Path, split: str, ignore_index: int = 255) -> Split:
    """One split of a data set.

    Args:
        dataset: "ade20k", "cityscapes", "coco_stuff164k", "voc2012", "pascal_context", "isaid" or "folder".
        root: Its folder.
        split: "train" or "val".
        ignore_index: In a data folder, the value of pixels to leave out.

    Raises:
        DataError: If files are missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} does not exist: point --data_root to the data set's folder.")
    if dataset == "folder":
        return open_folder(root, split, ignore_index)
    found = LAYOUTS[dataset](root, split)
    labels = LABEL_SETS[dataset]
    return Split(labels.name, *found.pop("pairs"), labels.classes, labels.palette, **found)
