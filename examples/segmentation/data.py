"""Images and labels of a data set: one mapping from values or colors to classes, and augmented samples."""

import os
import signal
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import get_int_from_env
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from segnext_timm import SegNeXtError, read_image
from segnext_timm.prediction.images import loses_values

from .balancing import RareClassSampler
from .bands import ImageForm
from .check_messages import other_size, unknown_values
from .checks import check_files, check_labels
from .label_files import NO_DATA, read_colors, read_labels
from .recipe import DataError, DataSettings, TrainSettings
from .transforms import (
    MEAN,
    STD,
    Normalization,
    PhotometricDistortion,
    Picture,
    RandomResizedCrop,
    TrainTransform,
    Transform,
    seeded,
    size_of,
)

__all__ = ["Split", "TrainSamples", "check_files", "check_labels", "read_colors", "read_labels", "training_samples"]

# Four read 196 images/s of 512² beside an H200, and the fastest training step there is to use about 360
MAX_WORKERS = 8

_TRIED = 20  # samples that are augmented before anything is trained: a transform may do something in a few only

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
        form: How the images are read.
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
    form: ImageForm = field(default_factory=ImageForm)

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """A digest of the files' names, the classes and their values, which does not change when the folder moves."""
        names = [*self.classes, *(path.name for path in [*self.images, *self.labels]), str(self.ignore_index)]
        values = b"" if self.mapping is None else self.mapping.tobytes()
        return f"{zlib.crc32(values, zlib.crc32(chr(0).join(names).encode())):08x}"

    def open(self, index: int) -> tuple[Picture, np.ndarray]:
        """An image and its labels (H, W): classes, or `ignore_index`.

        The image is Pillow's, in color, if it has three channels of 8 bits; else an array (H, W, C), uint8 or float32
        from 0 to 1.

        Whatever is trained on, evaluated or drawn comes from here, so values are mapped to classes in one place.

        Raises:
            DataError: If a file cannot be read, the two differ in size, or a value is not a class.
        """
        path, label_path = self.images[index], self.labels[index]
        try:
            image = self._open_image(path)
        except SegNeXtError as error:
            raise DataError(str(error)) from None
        except Exception as error:  # Pillow's decoders raise anything on damaged files
            raise DataError(f"{path} cannot be read as an image: {error}") from None
        labels = self.open_labels(index)
        if labels.shape != (size := size_of(image))[::-1]:
            raise DataError(other_size(path, size, _orientation(path), label_path, labels.shape[::-1]))
        return image, labels

    def _open_image(self, path: Path) -> Picture:
        form = self.form
        if form.is_photo and (image := _open_color(path, form.channels)) is not None:
            return image
        pixels = read_image(path, form.channels, form.value_range, form.bands)  # as predict reads it
        array = pixels.permute(1, 2, 0).numpy()
        return Image.fromarray(array) if array.dtype == np.uint8 and array.shape[2] == 3 else array

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
                self._refuse(values[values >= len(self.mapping)], path)
            labels = self.mapping.take(values, mode="clip")
        if values.dtype.kind == "i" and values.min(initial=0) == NO_DATA:
            labels = np.where(values == NO_DATA, self.ignore_index, labels)
        if labels.max(initial=0) >= len(self.classes):
            unknown = (labels >= len(self.classes)) & (labels != self.ignore_index)
            if unknown.any():
                self._refuse(values[unknown], path)
        return labels

    def _refuse(self, values: np.ndarray, path: Path) -> None:
        found, counts = (part.tolist() for part in np.unique(values, return_counts=True))
        raise DataError(unknown_values(self, path, found, dict(zip(found, counts))))


def _open_color(path: Path, channels: int | None) -> Image.Image | None:
    """Open a picture in color of 8 bits, which needs no conversion; None for other files."""
    try:
        with Image.open(path) as image:
            if image.mode != "RGB" or loses_values(image, channels):
                return None
            image.load()
            return image if image.getexif().get(0x0112, 1) == 1 else None
    except UnidentifiedImageError:
        return None


def _orientation(path: Path) -> int:
    """EXIF's number for the rotation of a picture, 1 for none."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(0x0112, 1)
    except OSError:
        return 1


# What is fed


@dataclass
class TrainSamples(Dataset):
    """Augmented samples of a split, without end: sample k is the same in every run of the same seed.

    Epochs are permutations of the split, each drawn from the seed and its number; the augmentation of a sample is
    drawn from the seed and the sample's number. A run that begins at sample k therefore sees what one that was not
    interrupted would have seen.

    With a sampler there are no epochs: each sample's image is drawn from the seed and the sample's number too.
    """

    split: Split
    transform: Transform
    seed: int = 0
    sampler: RareClassSampler | None = None
    _epoch: tuple[int, list[int]] = field(default=(-1, []), repr=False)

    def locate(self, k: int) -> int:
        """Which image sample k is."""
        return self._draw(k)[0]

    def _draw(self, k: int) -> tuple[int, int | None]:
        """Which image sample k is, and the class that its crop is to hold, None for any."""
        if self.sampler:
            return self.sampler.draw(~self._seed(k))  # other numbers than those of the augmentation
        epoch, place = divmod(k, len(self.split))
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = (epoch, torch.randperm(len(self.split), generator=generator).tolist())
        return self._epoch[1][place], None

    def _seed(self, k: int) -> int:
        # torch's generators on the CPU take 32 bits; the golden ratio of them keeps seeds apart: 0 to 99 share
        # no sample within their first 21 million
        return (self.seed * 2_654_435_769 + k) % 2**32

    def __getitem__(self, k: int) -> tuple[torch.Tensor, ...]:
        index, label = self._draw(k)
        image, labels = self.split.open(index)
        with seeded(self._seed(k)):
            return self.transform(image, labels, label)


def training_samples(
    split: Split,
    settings: TrainSettings,
    normalization: Normalization = (MEAN, STD),
    sampler: RareClassSampler | None = None,
    on_device: bool = False,
) -> TrainSamples:
    """A split with the augmentation of the settings, normalized by mean and standard deviation.

    `settings.base_scale` is the one that :func:`segmentation.scale.find_scale` returned, not "auto".

    Args:
        split: The data.
        settings: Crop and augmentation.
        normalization: Mean and standard deviation of each channel.
        sampler: Draws images by their classes.
        on_device: Leave colors and normalization to :func:`segmentation.transforms.normalize_batch`, except for images
            of more than 8 bits: batches are a fifth as large.

    Raises:
        SettingsError: If `--augment` names no transform that fits the first samples.
    """
    crop = RandomResizedCrop(
        settings.crop_size,
        settings.base_scale,
        settings.resize_factors,
        settings.max_class_share,
        split.ignore_index,
        settings.rotate,
        normalization[0],
    )
    distort = PhotometricDistortion() if settings.color_distortion else None
    label_type = None
    if on_device and split.form.value_range is None:
        low, high = min(split.ignore_index, 0), max(split.ignore_index, len(split.classes) - 1)
        types = (torch.uint8, torch.int16, torch.int32)
        label_type = next(t for t in types if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max)
    transform = TrainTransform(
        crop, distort, normalization, settings.vertical_flip, settings.rotate90, settings.augment, label_type
    )
    samples = TrainSamples(split, transform, settings.seed, sampler)
    if settings.augment:
        for k in range(_TRIED):
            samples[k]
    return samples


def worker_count(settings: DataSettings) -> int:
    """Number of a DataLoader's processes: as many as asked for or `MAX_WORKERS`, but no more than there are cores.

    The processes that torchrun or accelerate started on this machine share the cores, unless a number is given.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if settings.workers is not None:
        return min(settings.workers, cores)
    return min(MAX_WORKERS, max(cores // get_int_from_env(["LOCAL_WORLD_SIZE"], 1), 1))


def ignore_interrupts(worker: int) -> None:
    """For the processes of a DataLoader: leave Ctrl-C to the one that they work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
