"""Find images and labels of the benchmark data sets, in the layouts in which they are distributed; mIoU."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import DataSetError


@dataclass
class SplitFiles:
    """Files of one split of a data set.

    Attributes:
        images: Image files.
        labels: Label file of each image.
        mapping: Label of each value in the label files; None if the values are the labels. 255 marks ignored pixels.
    """

    images: list[Path]
    labels: list[Path]
    mapping: np.ndarray | None = None


def image_files(folder: Path, suffixes: Iterable[str] | None = None) -> list[Path]:
    """List the image files of a folder, sorted by name.

    Raises:
        DataSetError: If the folder does not exist or holds no images.
    """
    if not folder.is_dir():
        raise DataSetError(f"{folder} does not exist: point to the folder of the data set.")
    suffixes = set(suffixes or Image.registered_extensions())
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.name[0] != ".")
    if not files:
        raise DataSetError(f"{folder} holds no images.")
    return files


def pair(images: list[Path], label_of: Callable[[Path], Path], mapping: np.ndarray | None = None) -> SplitFiles:
    """Pair images with their label files.

    Args:
        images: Image files.
        label_of: Returns the label file of an image.
        mapping: See :class:`SplitFiles`.

    Raises:
        DataSetError: If an image has no labels.
    """
    labels = [label_of(image) for image in images]
    missing = [path for path in labels if not path.is_file()]
    if missing:
        more = " and so on" if len(missing) > 1 else ""
        raise DataSetError(f"{len(missing)} of {len(images)} images have no labels: add {missing[0]}{more}.")
    return SplitFiles(images, labels, mapping)


def _pair_listed(
    root: Path, list_file: Path, image_folder: str, label_folder: str, mapping: np.ndarray | None = None
) -> SplitFiles:
    """Pair images and labels by the names in a list file, as in Pascal VOC."""
    if not list_file.is_file():
        raise DataSetError(f"{list_file} does not exist: point to the folder of the data set.")
    names = list_file.read_text(encoding="utf-8").split()
    if not names:
        raise DataSetError(f"{list_file} names no images.")
    images = [root / image_folder / f"{name}.jpg" for name in names]
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise DataSetError(f"{len(missing)} of the {len(names)} images in {list_file} are missing: {missing[0]}.")
    return pair(images, lambda image: root / label_folder / f"{image.stem}.png", mapping)


def _inside(root: Path, *names: str) -> Path:
    """Return the first folder of that name in `root`, or `root` itself if there is none."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def _shifted() -> np.ndarray:
    """Map values from 1 to labels from 0; 0 is ignored."""
    mapping = np.arange(-1, 255).astype(np.uint8)
    mapping[0] = 255
    return mapping


# The 19 classes of Cityscapes among its label ids (github.com/mcordts/cityscapesScripts, helpers/labels.py)
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Ids from 0 to 181 that do not occur in COCO-Stuff, which leaves 171
_COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


def _only(ids: Iterable[int]) -> np.ndarray:
    """Map the given values to labels in their order; other values are ignored."""
    mapping = np.full(256, 255, np.uint8)
    for label, value in enumerate(ids):
        mapping[value] = label
    return mapping


def _ade20k(root: Path, split: str) -> SplitFiles:
    root = _inside(root, "ADEChallengeData2016")
    name = {"train": "training", "val": "validation"}[split]
    images = image_files(root / "images" / name)
    return pair(images, lambda image: root / "annotations" / name / f"{image.stem}.png", _shifted())


def _cityscapes(root: Path, split: str) -> SplitFiles:
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        raise DataSetError(f"{folder} does not exist: point to the folder of leftImg8bit and gtFine.")
    images = sorted(folder.glob("*/*_leftImg8bit.png"))
    if not images:
        raise DataSetError(f"{folder} holds no CITY/*_leftImg8bit.png.")

    def label_of(image: Path) -> Path:
        name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        return root / "gtFine" / split / image.parent.name / name

    return pair(images, label_of, _only(_CITYSCAPES_IDS))


def _coco_stuff164k(root: Path, split: str) -> SplitFiles:
    folder = _inside(root, "annotations", "stuffthingmaps") / f"{split}2017"
    images = image_files(root / "images" / f"{split}2017")
    mapping = _only(i for i in range(182) if i not in _COCO_GAPS)
    return pair(images, lambda image: folder / f"{image.stem}.png", mapping)


def _voc2012(root: Path, split: str) -> SplitFiles:
    root = _inside(root, "VOCdevkit/VOC2012", "VOC2012")
    lists = root / "ImageSets" / "Segmentation"
    augmented = split == "train" and (lists / "trainaug.txt").is_file()
    list_file = lists / ("trainaug.txt" if augmented else f"{split}.txt")
    labels = "SegmentationClassAug" if augmented else "SegmentationClass"
    return _pair_listed(root, list_file, "JPEGImages", labels)


def _pascal_context(root: Path, split: str) -> SplitFiles:
    root = _inside(root, "VOCdevkit/VOC2010", "VOC2010")
    list_file = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    return _pair_listed(root, list_file, "JPEGImages", "SegmentationClassContext", _shifted())


def _isaid(root: Path, split: str) -> SplitFiles:
    images = image_files(root / "img_dir" / split)
    suffix = "_instance_color_RGB.png"
    return pair(images, lambda image: root / "ann_dir" / split / f"{image.stem}{suffix}")


_LAYOUTS = {
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "coco_stuff164k": _coco_stuff164k,
    "voc2012": _voc2012,
    "pascal_context": _pascal_context,
    "isaid": _isaid,
}


def find_split(dataset: str, root: str | Path, split: str) -> SplitFiles:
    """Find images and labels of one split.

    Args:
        dataset: Key of the data set in `LABEL_SETS`.
        root: Its folder.
        split: "train" or "val".

    Raises:
        DataSetError: If files are missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataSetError(f"{root} does not exist: point to the folder of the data set.")
    if split not in ("train", "val"):
        raise DataSetError(f"there is no split {split!r}: it is train or val.")
    return _LAYOUTS[dataset](root, split)


def open_labels(path: Path, mapping: np.ndarray | None) -> np.ndarray:
    """Read a label file as labels (H, W), uint8; 255 marks ignored pixels.

    Args:
        path: The file: an indexed or a gray picture.
        mapping: See :class:`SplitFiles`.

    Raises:
        DataSetError: If it cannot be read, or is a color picture.
    """
    try:
        values = np.asarray(Image.open(path))
    except Exception as error:  # Pillow's decoders raise many types of errors on damaged files
        raise DataSetError(f"{path} cannot be read as an image: {error}") from None
    if values.ndim != 2 or values.dtype != np.uint8:
        raise DataSetError(f"{path} is not a label file of 8 bits, but {values.dtype} of shape {values.shape}.")
    return values if mapping is None else mapping[values]


def count_confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels of each true class (rows) and predicted class (columns).

    Args:
        labels: True labels; those from `classes` on are ignored.
        predicted: Predicted labels of the same shape, below `classes`.
        classes: Number of classes.

    Returns:
        Shape (classes, classes), int64.
    """
    counted = labels < classes
    pairs = labels[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def mean_iou(confusion: np.ndarray) -> float:
    """Compute mIoU in percent from pixel counts (classes, classes), over the classes that occur."""
    intersection = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        return 100 * float(np.nanmean(intersection / (confusion.sum(0) + confusion.sum(1) - intersection)))
