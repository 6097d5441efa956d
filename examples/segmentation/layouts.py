"""Find the images and labels of a data set: of benchmarks as they are distributed, and of a folder of your own.

A folder of your own holds images and labels in one of these arrangements, and `classes.txt`:

    images/train, labels/train      images/val, labels/val
    train/images, train/labels      val/images, val/labels
    train, train_labels             val, val_labels
    train                           val                         both side by side, as `a.jpg` and `a_mask.png`
    train/PART/images, .../labels   val/PART/images, ...        any number of parts
    images, labels                  and lists of both splits, such as `ImageSets/Segmentation/train.txt` of Pascal VOC

`SPLITS`, `IMAGE_FOLDERS` and `LABEL_FOLDERS` of `name_rules.py` give other names that the folders may have; `pairs.py`
finds the labels of each image, `class_list.py` has the rules of `classes.txt`. Pixels of label files hold line numbers
of `classes.txt` from 0, or the values (`255 person`) or colors (`#ff0000 road`) that it gives.

To add a benchmark, write its names and colors in `segnext_timm/label_sets.py`, and its layout here.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from segnext_timm.label_sets import LABEL_SETS

from .class_list import find_class_list, read_classes
from .data import Split
from .name_rules import ANY_FOLDERS, IMAGE_FOLDERS, LABEL_FOLDERS, SPLITS, plain, tokens
from .pairs import Pairs, endings, lossy, pair, pictures
from .recipe import DataError
from .split_lists import find_lists, keep

# Images, the label file of each, and the label of each value in the label files (None: the values are the labels)
Files = tuple[list[Path], list[Path], np.ndarray | None]

_OF_NO_MEANING = {"set", "data", "dataset", " ", "_", "-"}  # at the end of folders' names
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


def find_folders(root: Path, split: str) -> tuple[Path, Path]:
    """The folders of the images and of the labels of a split, which may be one.

    Raises:
        DataError: If there are none, or more than one could be meant.
    """
    names = SPLITS.get(split, (split,))
    standard = root / "images" / split, root / "labels" / split
    if all(folder.is_dir() and pictures(folder) for folder in standard):
        return standard
    splits = _folders(root, names)
    kinds = [_folders(root, kind) for kind in (IMAGE_FOLDERS, LABEL_FOLDERS)]
    images, labels = ([folder for parent in parents for folder in _folders(parent, names)] for parents in kinds)
    found = [(i, k) for i in images for k in labels]
    for folder in splits:
        found += [(i, k) for i in _folders(folder, IMAGE_FOLDERS) for k in _folders(folder, LABEL_FOLDERS)]
    beside = [_combined(root, names, kind) for kind in (IMAGE_FOLDERS, LABEL_FOLDERS)]  # as train_images, train_masks
    found += [(i, k) for i in (*beside[0], *splits) for k in beside[1]]
    found = [pair for pair in found if all(map(pictures, pair))]
    found = found or [(f, f) for f in splits or _split_folders(root, names) if pictures(f)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = " or ".join(f"{i} with {k}" if i != k else str(i) for i, k in found[:3])
        raise DataError(f"the {split} images and labels could be {listed}: leave one of them in {root}.")
    there = ", ".join(sorted(f.name + "/" * f.is_dir() for f in root.iterdir() if f.name[0] != ".")[:12]) or "nothing"
    missing = next((folder for folder in (*(images or standard[:1]), *standard) if not folder.is_dir()), standard[1])
    empty = [f"{folder} holds no images.{endings(folder)}" for folder in (*images, *labels) if not pictures(folder)]
    problem = " ".join(empty) or f"{missing} does not exist."
    if undivided := _undivided(root):
        command = _dividing(root, undivided.folders)
        raise DataError(f"{root} holds images that are not divided into train and val: {command} does so.")
    if split == "val" and _has_folders(root, "train"):
        command = _dividing(root, find_folders(root, "train"))
        raise DataError(f"{problem} Move some images and labels there, as {command} does with those of train.")
    raise DataError(
        f"{problem} Looked for images/{split} with labels/{split} (or {', '.join(LABEL_FOLDERS[2:6])}, ...), for "
        f"{split}/images with {split}/labels, and for {split} with both side by side. {root} holds: {there}. "
        f"{ANY_FOLDERS}"
    )


def _undivided(root: Path) -> Pairs | None:
    """The images and labels of a folder without folders of splits; None if there are none.

    Raises:
        DataError: If there are folders of both, but their names do not tell what belongs together.
    """
    kinds = [[f for f in _folders(root, names) if pictures(f)] for names in (IMAGE_FOLDERS, LABEL_FOLDERS)]
    known = all(kinds)
    folders = (kinds[0][0], kinds[1][0]) if known else (root, root)
    every = [name for names in SPLITS.values() for name in names]
    if any(_folders(f, every) for f in (root, *folders)) or _split_folders(root, every):
        return None
    with suppress(() if known else DataError):
        return pair(*folders)
    return None


def _dividing(root: Path, folders: tuple[Path, Path]) -> str:
    """The command that divides images and labels."""
    there = " ".join(shlex.quote(str(path)) for path in folders)
    classes = shlex.quote(str(find_class_list(root) or root / "classes.txt"))
    return f"`prepare_labels.py masks {there} NEW_FOLDER --classes {classes} --val_share 0.1`"


def _split_folders(root: Path, names: Sequence[str]) -> list[Path]:
    """The folders in a folder whose names end with that of one split, such as `uavid_train` and `Training Set`."""
    every = {name for names in SPLITS.values() for name in names}
    found = []
    for path in sorted(path for path in root.iterdir() if path.is_dir()):
        words = [word for word in tokens(path.name.lower()) if word not in _OF_NO_MEANING]
        if words and words[-1] in names and len(every & {*words}) == 1:
            found.append(path)
    return found


def _combined(root: Path, splits: Sequence[str], kinds: Sequence[str]) -> list[Path]:
    """The folders in a folder that have the name of a split and of a kind, such as `train_labels` and `masks-train`."""
    first, second = ("|".join(map(re.escape, names)) for names in (splits, kinds))
    form = re.compile(rf"(?:{first})[ _-]?(?:{second})|(?:{second})[ _-]?(?:{first})", re.IGNORECASE)
    return sorted(path for path in root.iterdir() if form.fullmatch(path.name) and path.is_dir())


def _unused(images: Path, labels: Path, split: str) -> list[Path]:
    """Folders of images beside those of the labels, which may be other labels, such as those of a second expert."""
    names = [name.lower() for name in SPLITS.get(split, (split,))]
    if images == labels:
        return []
    if labels.name.lower() in names:  # labels/train
        others = [f for path in labels.parent.parent.iterdir() if path.is_dir() for f in _folders(path, names)]
    elif labels.parent.name.lower() in names:  # train/labels
        others = [path for path in labels.parent.iterdir() if path.is_dir()]
    else:
        return []
    return sorted(path for path in others if path not in (images, labels) and pictures(path))


def _has_folders(root: Path, split: str) -> bool:
    try:
        return bool(find_folders(root, split))
    except DataError:
        return False


def _folders(parent: Path, names: Sequence[str]) -> list[Path]:
    """The folders in a folder that have one of these names, in any case, by the order of the names."""
    wanted = [*map(plain, names)]
    found = [folder for folder in parent.iterdir() if plain(folder.name) in wanted and folder.is_dir()]
    return sorted(found, key=lambda folder: (wanted.index(plain(folder.name)), folder.name))


def find_classes(root: Path, folder: Path, split: str) -> Path:
    """The class list of a data folder: in it, or, as some tools export it, beside the images of each split.

    Raises:
        DataError: If the lists of two splits differ.
    """
    if (path := find_class_list(root)) is not None or (path := find_class_list(folder)) is None:
        return path or root / "classes.txt"
    if split != "train" and _has_folders(root, "train"):
        first = find_class_list(find_folders(root, "train")[0])
        if first is not None and first.read_bytes() != path.read_bytes():
            raise DataError(f"{path} and {first} differ: put one class list for both into {root}.")
    return path


def _inner(root: Path) -> Path:
    """The only folder in a folder without images, as archives unpack to, unless its name says what it holds."""
    folders = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "." and path.name != "__MACOSX"]
    known = {plain(name) for names in (*SPLITS.values(), IMAGE_FOLDERS, LABEL_FOLDERS) for name in names}
    pictured = any(path.suffix.lower() in Image.registered_extensions() for path in root.iterdir())
    return root if len(folders) != 1 or pictured or plain(folders[0].name) in known else _inner(folders[0])


def _listed(root: Path, split: str, outer: Path) -> tuple[Pairs | None, list[str]]:
    """The images of a split by lists in a folder, or in an outer one, and lines on these; None without."""
    found = _undivided(root)
    lists = found and find_lists([root, outer], found)
    if not lists or not lists[0].get(split):
        return None, []
    others = [f for names in (IMAGE_FOLDERS, LABEL_FOLDERS) for f in _folders(root, names) if f not in found.folders]
    return keep(found, lists[0][split]), [lists[1], *(_not_used(f) for f in others if pictures(f))]


def _not_used(folder: Path) -> str:
    return f"Warning: {folder} holds images too, and is not used."


def open_folder(root: Path, split: str, ignore_index: int = IGNORED) -> Split:
    """One split of a folder of your own.

    Raises:
        DataError: If it is not as the head of this file says.
    """
    listed = find_class_list(root)
    outer, root = root, _inner(root)
    listed = listed or find_class_list(root)
    if listed is None and not _folders(root, (*IMAGE_FOLDERS, *SPLITS.get(split, (split,)))):
        listed = root / "classes.txt"  # not a data folder at all
    known = read_classes(listed, ignore_index) if listed else None
    found, lists = None, []
    try:
        image_folder, label_folder = find_folders(root, split)
    except DataError:
        found, lists = _listed(root, split, outer)
        if found is None:
            raise
        image_folder, label_folder = found.folders
    known = known or read_classes(find_classes(root, image_folder, split), ignore_index)
    try:
        found = found or pair(image_folder, label_folder)
    except DataError as error:
        if split != "val" or image_folder != label_folder or not _has_folders(root, "train"):
            raise
        command = _dividing(root, find_folders(root, "train"))
        raise DataError(f"{error} If {image_folder.name} has no labels, {command} takes some of train.") from None
    # images in folders below are left out if none of these has labels, as long as there are others
    used = {image.parent for image in found.images}
    missing = [path for path in found.unlabeled if path.parent in {*used, image_folder} or image_folder not in used]
    if missing:
        total = len(found.images) + len(missing)
        more = " and so on" if len(missing) > 1 else ""
        raise DataError(
            f"{len(missing)} of {total} images have no labels: add {found.expected(missing[0])}{more}, or remove "
            f"{missing[0].name}{more}. `prepare_labels.py masks` leaves them out with --labeled_only."
        )
    for path in found.labels:
        if path.suffix != ".png" and (reason := lossy(path)):
            raise DataError(
                f"{path} {reason}, which changes the values of labels: save labels as PNG. From masks that are no "
                f"longer exact, prepare_labels.py masks makes such files, with --threshold or --nearest."
            )
    unused = map(_not_used, _unused(*found.folders, split))
    return Split(
        outer.resolve().name,
        found.images,
        found.labels,
        known.classes,
        known.palette,
        known.mapping,
        known.ignore_index,
        known.by_color,
        notes=(f"{split}: {found}", *lists, *unused),
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
