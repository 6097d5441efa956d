"""Find the images and labels of a data set: of benchmarks as they are distributed, and of a folder of your own.

A folder of your own holds `images/train`, `images/val`, `labels/train`, `labels/val` and `classes.txt`, which names one
class per line. The labels of an image are a PNG of the same name. Its pixels are line numbers from 0, or the values
(`255 person`) or colors (`#ff0000 road`) that `classes.txt` gives; `class_list.py` has the rules.

To add a benchmark, write its names and colors in `segnext_timm/label_sets.py`, and its layout here.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from segnext_timm.label_sets import LABEL_SETS

from .class_list import read_classes
from .data import Split
from .recipe import DataError

# Images, the label file of each, and the label of each value in the label files (None: the values are the labels)
Files = tuple[list[Path], list[Path], np.ndarray | None]

IGNORED = 255  # label of pixels that do not count

# The 19 classes of Cityscapes among its label ids (github.com/mcordts/cityscapesScripts, helpers/labels.py)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Ids from 0 to 181 without those that do not occur in COCO-Stuff, which leaves 171
COCO_STUFF_IDS = tuple(sorted({*range(182)} - {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}))


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name.

    Raises:
        DataError: If the folder does not exist or holds no images.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: point to the folder of the data set.")
    suffixes = Image.registered_extensions()
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.name[0] != ".")
    if not files:
        raise DataError(f"{folder} holds no images.")
    return files


def with_labels(images: list[Path], label_of: Callable[[Path], Path], mapping: np.ndarray | None = None) -> Files:
    """Images with the label file of each.

    Raises:
        DataError: If an image has no labels.
    """
    labels = [label_of(image) for image in images]
    missing = [path for path in labels if not path.is_file()]
    if missing:
        more = " and so on" if len(missing) > 1 else ""
        raise DataError(f"{len(missing)} of {len(images)} images have no labels: add {missing[0]}{more}.")
    return images, labels, mapping


def listed(root: Path, list_file: Path, label_folder: str, mapping: np.ndarray | None = None) -> Files:
    """Images and labels of the names in a list file, as in Pascal VOC.

    Raises:
        DataError: If a file is missing.
    """
    if not list_file.is_file():
        raise DataError(f"{list_file} does not exist: point to the folder of the data set.")
    names = list_file.read_text(encoding="utf-8").split()
    if not names:
        raise DataError(f"{list_file} names no images.")
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of the {len(names)} images in {list_file} are missing: {missing[0]}.")
    return with_labels(images, lambda image: root / label_folder / f"{image.stem}.png", mapping)


def first_folder(root: Path, *names: str) -> Path:
    """The first folder of these names in `root`, or `root` itself if there is none."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def only(values: Iterable[int]) -> np.ndarray:
    """Map these values to labels from 0, in their order, and all others to `IGNORED`."""
    mapping = np.full(256, IGNORED, np.uint8)
    for label, value in enumerate(values):
        mapping[value] = label
    return mapping


def ade20k(root: Path, split: str) -> Files:
    root = first_folder(root, "ADEChallengeData2016")
    name = {"train": "training", "val": "validation"}[split]
    images = image_files(root / "images" / name)
    return with_labels(images, lambda image: root / "annotations" / name / f"{image.stem}.png", only(range(1, 256)))


def cityscapes(root: Path, split: str) -> Files:
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: point to the folder of leftImg8bit and gtFine.")
    images = sorted(folder.glob("*/*_leftImg8bit.png"))
    if not images:
        raise DataError(f"{folder} holds no CITY/*_leftImg8bit.png.")

    def label_of(image: Path) -> Path:
        name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        return root / "gtFine" / split / image.parent.name / name

    return with_labels(images, label_of, only(CITYSCAPES_IDS))


def coco_stuff164k(root: Path, split: str) -> Files:
    folder = first_folder(root, "annotations", "stuffthingmaps") / f"{split}2017"
    images = image_files(root / "images" / f"{split}2017")
    return with_labels(images, lambda image: folder / f"{image.stem}.png", only(COCO_STUFF_IDS))


def voc2012(root: Path, split: str) -> Files:
    root = first_folder(root, "VOCdevkit/VOC2012", "VOC2012")
    lists = root / "ImageSets" / "Segmentation"
    if split == "train" and (lists / "trainaug.txt").is_file():
        return listed(root, lists / "trainaug.txt", "SegmentationClassAug")
    return listed(root, lists / f"{split}.txt", "SegmentationClass")


def pascal_context(root: Path, split: str) -> Files:
    root = first_folder(root, "VOCdevkit/VOC2010", "VOC2010")
    list_file = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    return listed(root, list_file, "SegmentationClassContext", only(range(1, 256)))


def isaid(root: Path, split: str) -> Files:
    images = image_files(root / "img_dir" / split)
    return with_labels(images, lambda image: root / "ann_dir" / split / f"{image.stem}_instance_color_RGB.png")


LAYOUTS = {layout.__name__: layout for layout in (ade20k, cityscapes, coco_stuff164k, voc2012, pascal_context, isaid)}


def open_folder(root: Path, split: str, ignore_index: int = IGNORED) -> Split:
    """One split of a folder of your own.

    Raises:
        DataError: If it is not as the head of this file says.
    """
    found = read_classes(root / "classes.txt", ignore_index)
    folder = root / "images" / split
    if folder.with_name("train").is_dir() and not folder.is_dir():
        hint = "Move some images and labels there; prepare_labels.py does, with --val_share 0.1."
        raise DataError(f"{folder} does not exist: point to the folder of the data set. {hint}")
    images, labels, _ = with_labels(image_files(folder), lambda image: root / "labels" / split / f"{image.stem}.png")
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


def open_split(dataset: str, root: str | Path, split: str, ignore_index: int = IGNORED) -> Split:
    """One split of a data set.

    Args:
        dataset: A key of `LAYOUTS`, or "folder" for a folder of your own.
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
    if split not in ("train", "val"):
        raise DataError(f"there is no split {split!r}: it is train or val.")
    images, labels, mapping = LAYOUTS[dataset](root, split)
    known = LABEL_SETS[dataset]
    return Split(known.name, images, labels, known.classes, known.palette, mapping)
