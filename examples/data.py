"""Data sets for semantic segmentation, read as they are distributed, and any folder of images and labels.

    python examples/data.py examples/recipes/ade20k.yaml --data_root DIR     # shows what will be fed to the model

That prints the number of images and the share of each class, and draws `data.png`: augmented crops with their labels.

A folder of your own holds `images/train`, `images/val`, `labels/train`, `labels/val` and `classes.txt`, which names one
class per line. The labels of an image are a PNG of the same name. Its pixels are line numbers from 0, or the values
(`255 person`) or colors (`#ff0000 road`) that `classes.txt` gives; `class_list.py` has the rules.
"""

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from class_list import color_codes, color_name, read_classes
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from tqdm import tqdm

from segnext_timm.label_sets import LABEL_SETS

from pictures import draw_samples
from recipe import DataError, TrainSettings, parse, run
from transforms import MEAN, STD, PhotometricDistortion, RandomResizedCrop, TrainTransform, Transform

Image.MAX_IMAGE_PIXELS = None  # aerial images are large, and training data are one's own


@dataclass
class Split:
    """One split of a data set.

    Attributes:
        name: What the data set is called.
        images: Image files.
        labels: Label file of each image.
        classes: Name of each class.
        palette: Color of each class.
        mapping: Label of each value in the label files, or of each color by `color_codes`; None if the values are the
            labels.
        ignore_index: Label of pixels that do not count.
        by_color: Whether the label files hold colors.
    """

    name: str
    images: list[Path]
    labels: list[Path]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mapping: np.ndarray | None = None
    ignore_index: int = 255
    by_color: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An image (RGB) and its labels (H, W): classes, or `ignore_index`.

        Whatever is trained on, evaluated or drawn comes from here, so values are mapped to classes in one place.

        Raises:
            DataError: If a file cannot be read, the two differ in size, or a value is not a class.
        """
        path, label_path = self.images[index], self.labels[index]
        try:
            image = Image.open(path)
            image = (image if image.getexif().get(0x0112, 1) == 1 else ImageOps.exif_transpose(image)).convert("RGB")
        except Exception as error:  # Pillow's decoders raise anything on damaged files
            raise DataError(f"{path} cannot be read as an image: {error}") from None
        labels = self.open_labels(index)
        if labels.shape != (image.height, image.width):
            raise DataError(
                f"{label_path} has {labels.shape[1]}×{labels.shape[0]} pixels (width×height), its image {path.name} "
                f"{image.width}×{image.height}: make them equal."
            )
        return image, labels

    def open_labels(self, index: int) -> np.ndarray:
        """The labels of an image, of shape (H, W), without the image.

        Raises:
            DataError: If the file cannot be read, or a value is not a class.
        """
        path = self.labels[index]
        values = read_colors(path) if self.by_color else read_labels(path)
        if self.mapping is None:
            labels = values
        else:
            if values.max(initial=0) >= len(self.mapping):
                self._unknown(values[values >= len(self.mapping)], path)
            labels = self.mapping.take(values)
        if labels.max(initial=0) >= len(self.classes):
            unknown = (labels >= len(self.classes)) & (labels != self.ignore_index)
            if unknown.any():
                self._unknown(values[unknown], path)
        return labels

    def _unknown(self, values: np.ndarray, path: Path) -> None:
        found = np.unique(values)
        count = len(self.classes)
        if self.by_color:
            names = [color_name(int(code)) for code in found[:10]]
            raise DataError(
                f"{path} holds the color{'s' if len(found) > 1 else ''} {', '.join(names)}, which no class has. Give "
                f"each color a class in classes.txt ('{names[0]} NAME'), or leave its pixels out ('{names[0]} -')."
            )
        raise DataError(
            f"{path} holds the labels {', '.join(map(str, found[:10]))}, but there are {count} classes "
            f"{f'(0 to {count - 1})' if self.mapping is None else '(by the values they have in the files)'}, and "
            f"{self.ignore_index} marks pixels to leave out. Name more classes, give each class its value in "
            f"classes.txt ('{found[0]} NAME'), or leave the pixels out with --ignore_index {found[0]}."
        )


def _open_label_file(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise DataError(f"{path} cannot be read as an image: {error}") from None
    return image


def read_labels(path: Path) -> np.ndarray:
    """Values of a label file, of shape (H, W); the indices of one with a palette, 0 and 1 of one with a bit per pixel.

    Raises:
        DataError: If it cannot be read, or is a color image.
    """
    image = _open_label_file(path)
    labels = np.asarray(image.convert("L") if image.mode == "1" else image)
    if labels.ndim != 2:
        colors = color_codes(np.asarray(image.convert("RGB")))
        names = ", ".join(color_name(int(code)) for code in np.unique(colors)[:5])
        raise DataError(
            f"{path} is a color image ({names}): labels are PNGs of one channel that holds class numbers, unless "
            f"classes.txt gives each class its color, such as '#ff0000 road'."
        )
    return labels // 255 if image.mode == "1" else labels


def read_colors(path: Path) -> np.ndarray:
    """Colors of a label file as integers, of shape (H, W), by :func:`class_list.color_codes`.

    Raises:
        DataError: If it cannot be read, or holds numbers of more than 8 bits.
    """
    image = _open_label_file(path)
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path} holds numbers of 16 bits or more, but classes.txt gives colors: give values instead.")
    # the bytes red, green, blue, alpha as one integer: faster than a sum of three channels
    return np.asarray(image.convert("RGBA")).view("<u4")[..., 0] & 0xFFFFFF


# Layouts


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


def check_files(split: Split) -> None:
    """Raise a DataError if a file of a split cannot be used; reads them all."""
    for index in tqdm(range(len(split)), desc="check files", unit="image", leave=False):
        split.open(index)


def check_labels(split: Split, count: int = 32) -> str | None:
    """Look at some label files of a training split before anything is trained on them.

    Args:
        split: The training split.
        count: Number of files to look at, spread over the split.

    Returns:
        A line on classes that do not occur, if there are any and every file was looked at; else None.

    Raises:
        DataError: If a file holds a value that is not a class, or if the files are binary masks whose second value is
            left out, so that only one of the two classes would be trained. All files are read before that is said.
    """
    looked_at = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int).tolist()
    if split.mapping is None and len(split.classes) == 2:
        _refuse_half_of_binary_masks(split, looked_at)
    present = set().union(*(np.unique(split.open_labels(index)).tolist() for index in looked_at))
    absent = [name for label, name in enumerate(split.classes) if label not in present]
    if not absent or len(looked_at) < len(split):
        return None
    more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
    return (
        f"Warning: no pixel of the {len(split)} label files in {split.labels[0].parent} is of the class "
        f"{', '.join(absent[:8])}{more}. If there should be some, check the values in classes.txt."
    )


def _refuse_half_of_binary_masks(split: Split, looked_at: list[int]) -> None:
    """Raise a DataError if one of two classes never occurs, and 255, or `ignore_index`, does."""
    values = set().union(*(np.unique(read_labels(split.labels[index])).tolist() for index in looked_at))
    others = values - {0, 1}
    if len(values & {0, 1}) > 1 or len(others) != 1 or others - {255, split.ignore_index}:
        return
    # 255 may truly mark pixels to leave out, while the second class is rare: only all files can tell
    for index in tqdm(range(len(split)), desc="look for the second class", unit="file", leave=False):
        values |= set(np.unique(read_labels(split.labels[index])).tolist())
        if {0, 1} <= values:
            return
    (other,) = others
    present = next(iter(values & {0, 1}), None)
    if values != {present, other}:
        return
    missing = 1 - present
    lines = [f"'{other if label == missing else present} {name}'" for label, name in enumerate(split.classes)]
    raise DataError(
        f"The {len(split)} label files in {split.labels[0].parent} hold the values {present} and {other} only, and "
        f"{other} is {'left out' if other == split.ignore_index else 'not a class'}: {split.classes[missing]!r} never "
        f"occurs. If {other} is {split.classes[missing]!r}, say so in classes.txt: {' and '.join(lines)}, one per line."
    )


# What is fed


@dataclass
class TrainSamples(Dataset):
    """Augmented samples of a split, without end: sample k is the same in every run of the same seed.

    Epochs are permutations of the split, each drawn from the seed and its number; the augmentation of a sample is
    drawn from the seed and the sample's number. A run that begins at sample k therefore sees what one that was not
    interrupted would have seen.
    """

    split: Split
    transform: Transform
    seed: int = 0
    _epoch: tuple[int, list[int]] = field(default=(-1, []), repr=False)

    def locate(self, k: int) -> int:
        """Which image sample k is."""
        epoch, place = divmod(k, len(self.split))
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = (epoch, torch.randperm(len(self.split), generator=generator).tolist())
        return self._epoch[1][place]

    def __getitem__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = self.locate(k)
        image, labels = self.split.open(index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 7_919 + k)
            return self.transform(image, labels)


def training_samples(split: Split, settings: TrainSettings) -> TrainSamples:
    """A split with the augmentation of the settings."""
    crop = RandomResizedCrop(
        settings.crop_size, settings.base_scale, settings.resize_factors, settings.max_class_share, split.ignore_index
    )
    distort = PhotometricDistortion() if settings.color_distortion else None
    return TrainSamples(split, TrainTransform(crop, distort), settings.seed)


def ignore_interrupts(worker: int) -> None:
    """For the processes of a DataLoader: leave Ctrl-C to the one that they work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def class_pixels(split: Split) -> tuple[np.ndarray, int]:
    """Number of pixels of each class, and of those left out. Reads every image too, to find damaged ones."""
    pixels, left_out = np.zeros(len(split.classes), np.int64), 0
    for index in tqdm(range(len(split)), desc=f"read {split.images[0].parent.name}", unit="image", leave=False):
        labels = split.open(index)[1]
        kept = labels[labels != split.ignore_index]
        pixels += np.bincount(kept, minlength=len(split.classes))
        left_out += labels.size - kept.size
    return pixels, left_out


def main(argv: list[str]) -> None:
    """Show what will be fed to the model."""
    settings = parse(TrainSettings, argv, __doc__.split("\n")[0])
    for name in ("train", "val"):
        split = open_split(settings.dataset, settings.data_root, name, settings.ignore_index)
        warning = None
        if name == "train":
            samples = training_samples(split, settings)
            warning = check_labels(split)
        pixels, left_out = class_pixels(split)
        share = 100 * left_out / max(left_out + pixels.sum(), 1)
        print(f"{name}: {len(split)} images of {split.name}, {share:.1f}% of the pixels left out")
        for label, count in enumerate(pixels):
            print(f"  {label:3d} {split.classes[label]:24s} {100 * count / max(pixels.sum(), 1):6.2f}%")
        if warning:
            print(warning)
    shown = []
    for k in range(16):
        x, labels = samples[k]
        image = (x.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)).clamp(0, 1)
        shown.append((image.numpy(), labels.numpy()))
    draw_samples(shown, samples.split.classes, samples.split.palette, samples.split.ignore_index, Path("data.png"))
    print("data.png: 16 augmented crops with their labels")


if __name__ == "__main__":
    run(main)
