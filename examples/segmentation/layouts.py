"""Open published data sets and folders of your own.

A folder of your own holds `images/train`, `images/val`, `labels/train`, `labels/val` and `classes.txt`, which names one
class per line. The labels of an image are a PNG of the same name. Its pixels are line numbers from 0, or the values
(`255 person`) or colors (`#ff0000 road`) that `classes.txt` gives; `class_list.py` has the rules.
"""

from pathlib import Path

from segnext_timm.data_sets import find_split, image_files, pair
from segnext_timm.errors import DataSetError
from segnext_timm.label_sets import LABEL_SETS

from .class_list import read_classes
from .data import Split
from .recipe import DataError


def open_folder(root: Path, split: str, ignore_index: int = 255) -> Split:
    """One split of a folder of your own.

    Raises:
        DataError: If it is not as the head of this file says.
    """
    found = read_classes(root / "classes.txt", ignore_index)
    try:
        files = pair(image_files(root / "images" / split), lambda image: root / "labels" / split / f"{image.stem}.png")
    except DataSetError as error:
        images = root / "images"
        lacks = (images / "train").is_dir() and not (images / split).is_dir()
        hint = " Move some images and labels there; prepare_labels.py does, with --val_share 0.1." if lacks else ""
        raise DataError(f"{error}{hint}") from None
    return Split(
        root.resolve().name,
        files.images,
        files.labels,
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
    try:
        files = find_split(dataset, root, split)
    except DataSetError as error:
        raise DataError(str(error)) from None
    labels = LABEL_SETS[dataset]
    return Split(labels.name, files.images, files.labels, labels.classes, labels.palette, files.mapping)
