"""Images and labels of a data set: one mapping from values or colors to classes, checks, and augmented samples."""

import os
import signal
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from segnext_timm import read_image

from .class_list import color_codes, color_name
from .recipe import DataError, DataSettings, TrainSettings
from .transforms import MEAN, STD, Normalization, PhotometricDistortion, RandomResizedCrop, TrainTransform, Transform

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
        notes: Lines on what was found where.
    """

    name: str
    images: list[Path]
    labels: list[Path]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mapping: np.ndarray | None = None
    ignore_index: int = 255
    by_color: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """A digest of the files' names, the classes and their values, which does not change when the folder moves."""
        names = [*self.classes, *(path.name for path in [*self.images, *self.labels]), str(self.ignore_index)]
        values = b"" if self.mapping is None else self.mapping.tobytes()
        return f"{zlib.crc32(values, zlib.crc32(chr(0).join(names).encode())):08x}"

    def open(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An image (RGB) and its labels (H, W): classes, or `ignore_index`.

        Whatever is trained on, evaluated or drawn comes from here, so values are mapped to classes in one place.

        Raises:
            DataError: If a file cannot be read, the two differ in size, or a value is not a class.
        """
        path, label_path = self.images[index], self.labels[index]
        try:
            image = Image.open(path)
            image.load()
            if image.mode != "RGB" or image.getexif().get(0x0112, 1) != 1:  # as predict reads it
                image = Image.fromarray(read_image(image).permute(1, 2, 0).numpy())
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
            f"classes.txt ('{found[0]} NAME', or '{found[0]} -' to leave its pixels out), or leave one value out with "
            f"--ignore_index {found[0]}."
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


def check_files(split: Split) -> None:
    """Raise a DataError if a file of a split cannot be used; reads them all."""
    for index in tqdm(range(len(split)), desc="check files", unit="image", leave=False):
        split.open(index)


def check_values(split: Split) -> None:
    """Raise a DataError if a label file of a split cannot be used; reads them all, but not the images."""
    for index in tqdm(range(len(split)), desc="check labels", unit="file", leave=False):
        split.open_labels(index)


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
            torch.default_generator.manual_seed(self.seed * 7_919 + k)  # torch.manual_seed would reseed the GPU too
            return self.transform(image, labels)


def training_samples(split: Split, settings: TrainSettings, normalization: Normalization = (MEAN, STD)) -> TrainSamples:
    """A split with the augmentation of the settings, normalized by mean and standard deviation."""
    crop = RandomResizedCrop(
        settings.crop_size, settings.base_scale, settings.resize_factors, settings.max_class_share, split.ignore_index
    )
    distort = PhotometricDistortion() if settings.color_distortion else None
    transform = TrainTransform(crop, distort, normalization)
    return TrainSamples(split, transform, settings.seed)


def worker_count(settings: DataSettings) -> int:
    """Number of a DataLoader's processes: more than there are cores would slow each other down."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return min(settings.workers, len(affinity(0)) if affinity else os.cpu_count() or 1)


def ignore_interrupts(worker: int) -> None:
    """For the processes of a DataLoader: leave Ctrl-C to the one that they work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
