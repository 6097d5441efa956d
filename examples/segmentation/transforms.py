"""Joint augmentation of images and labels, in the order of SegNeXt's published training code.

Resize by a random factor, crop, rotate, flip, distort the colors, apply the user's own transform, normalize, pad. The
crop is chosen before anything is resized, so that only what ends up in it is: of a 2048×1024 image enlarged to twice
its size, a crop of 1024² needs an eighth.

Random numbers come from torch's generator, those of the user's own transform also from Python's and NumPy's:
:func:`seeded` seeds all three for a sample. A step that is off draws none.
"""

import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from .hooks import load_function
from .recipe import SettingsError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of values from 0 to 1, RGB

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel
Picture = Image.Image | np.ndarray  # in color of 8 bits; or (H, W, C), uint8 or float32 from 0 to 1
Transform = Callable[[Picture, np.ndarray, int | None], tuple[torch.Tensor, ...]]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch on the CPU, NumPy and Python, and restore their states at the end."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU too
            random.seed(seed)
            np.random.seed(seed % 2**32)  # of 32 bits
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def uniform(low: float, high: float) -> float:
    """A random number in [low, high)."""
    return low + (high - low) * torch.rand(()).item()


def size_of(image: Picture) -> tuple[int, int]:
    """Width and height."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def resize(image: Picture, size: Sequence[int], box: Sequence[float]) -> Picture:
    """Resize a part of an image to a width and height; of an array, band by band."""
    if isinstance(image, Image.Image):
        return image.resize(size, Image.Resampling.BILINEAR, box)
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(image, -1, 0)]
    return np.stack([np.asarray(band.resize(size, Image.Resampling.BILINEAR, box)) for band in bands], -1)


def rotate(image: Picture, angle: float, center: Sequence[float], color: Sequence[float]) -> Picture:
    """Rotate an image counterclockwise, by degrees, about a point (x, y); of an array, band by band.

    Args:
        image: What to rotate.
        angle: Degrees.
        center: In pixels.
        color: Values (C,) from 0 to 1 of what the image does not cover.
    """
    in_bytes = isinstance(image, Image.Image) or image.dtype == np.uint8
    fill = [round(255 * value) if in_bytes else value for value in color]
    if isinstance(image, Image.Image):
        return image.rotate(angle, Image.Resampling.BILINEAR, center=center, fillcolor=tuple(fill))
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(image, -1, 0)]
    turned = [b.rotate(angle, Image.Resampling.BILINEAR, center=center, fillcolor=f) for b, f in zip(bands, fill)]
    return np.stack([np.asarray(band) for band in turned], -1)


class RandomResizedCrop:
    """A random crop of a randomly resized image and of its labels.

    Args:
        size: Side of the crop in pixels; images that are smaller after resizing are not enlarged to it.
        base_scale: Longest sides, (long, short), that an image is fitted in, keeping its aspect; None for its own size.
        factors: Range of the factor by which it is resized further.
        max_share: A crop is drawn again, up to ten times, while one class fills more than this share of it; that is
            before it is rotated.
        ignore_index: Label that does not count.
        degrees: Largest angle, either way, by which a crop is rotated about its center.
        color: Values from 0 to 1 of what a rotated crop shows beyond the image; its label is `ignore_index`.
    """

    def __init__(
        self,
        size: int,
        base_scale: tuple[int, int] | None,
        factors: tuple[float, float] = (0.5, 2.0),
        max_share: float = 0.75,
        ignore_index: int = 255,
        degrees: float = 0.0,
        color: Sequence[float] = MEAN,
    ) -> None:
        self.size = size
        self.base_scale = base_scale
        self.factors = factors
        self.max_share = max_share
        self.ignore_index = ignore_index
        self.degrees = degrees
        self.color = color

    def __call__(self, image: Picture, labels: np.ndarray, label: int | None = None) -> tuple[Picture, np.ndarray]:
        """An image and its labels (H, W) to a crop of both, around a random pixel of `label` if it is given.

        The pixel of a crop to rotate lies where no rotation loses it. At the image's edge there may be no such place: a
        crop that loses the label is then not rotated.
        """
        factor = uniform(*self.factors)
        size = size_of(image)
        long, short = (side * factor for side in self.base_scale or (max(size), min(size)))
        scale = min(long / max(size), short / min(size))
        resized = [max(round(side * scale), 1) for side in size]
        crop = [min(side, self.size) for side in resized]
        values = Image.fromarray(labels if labels.dtype == np.uint8 else labels.astype(np.int32))
        pixels = None if label is None else np.flatnonzero(labels == label)
        # from the sides of a crop to those of the square within its inscribed circle
        insets = [math.floor((side - min(crop) / math.sqrt(2)) / 2) if self.degrees else 0 for side in crop]
        for _ in range(10):
            corners = [(0, full - side) for full, side in zip(resized, crop)]  # the first and the last
            if pixels is not None:
                row, column = divmod(pixels[math.floor(uniform(0, len(pixels)))], size[0])
                place = [math.floor((p + 0.5) * full / own) for p, full, own in zip((column, row), resized, size)]
                ranges = [(p - side + 1 + inset, p - inset) for p, side, inset in zip(place, crop, insets)]
                corners = [tuple(min(max(c, 0), last) for c in ends) for ends, (_, last) in zip(ranges, corners)]
            corner = [math.floor(uniform(first, last + 1)) for first, last in corners]
            # the crop in the pixels of the image as it is
            own, full = size, resized
            box = [(c + side * k) * o / f for k in (0, 1) for c, side, o, f in zip(corner, crop, own, full)]
            cropped = np.asarray(values.resize(crop, Image.Resampling.NEAREST, box))
            if not self._one_class_fills(cropped):
                break
        if self.degrees:
            rotated = self._rotated(image, values, corner, crop, resized)
            if label is None or (rotated[1] == label).any():
                return rotated
        return resize(image, crop, box), cropped

    def _rotated(
        self, image: Picture, values: Image.Image, corner: list[int], crop: list[int], resized: list[int]
    ) -> tuple[Picture, np.ndarray]:
        """Rotate a crop about its center; what lies around it in the image fills its corners.

        Args:
            image: The image as it is.
            values: Its labels.
            corner: Left and top of the crop in the resized image.
            crop: Width and height of the crop.
            resized: Width and height of the resized image.
        """
        angle, full = uniform(-self.degrees, self.degrees), np.array(size_of(image))
        center, reach = np.add(corner, np.divide(crop, 2)), math.hypot(*crop) / 2  # from the center to a corner
        low = np.floor(center - reach).clip(0).astype(int)
        high = np.minimum(np.ceil(center + reach).astype(int), resized)
        around, box = tuple(high - low), (*low * full / resized, *high * full / resized)
        image = rotate(resize(image, around, box), angle, tuple(center - low), self.color)
        values = values.resize(around, Image.Resampling.NEAREST, box)
        values = values if 0 <= self.ignore_index <= 255 else values.convert("I")
        values = values.rotate(angle, center=tuple(center - low), fillcolor=self.ignore_index)  # to the nearest
        (left, top), (width, height) = corner - low, crop
        inner = np.s_[top : top + height, left : left + width]
        array = np.asarray(image)[inner]
        return Image.fromarray(array) if isinstance(image, Image.Image) else array, np.asarray(values)[inner]

    def _one_class_fills(self, labels: np.ndarray) -> bool:
        # Pillow counts bytes several times as fast
        counts = Image.fromarray(labels).histogram() if labels.dtype == np.uint8 else np.bincount(labels.ravel())
        counts = np.asarray(counts)
        counts[self.ignore_index : self.ignore_index + 1] = 0
        return np.count_nonzero(counts) < 2 or counts.max() >= self.max_share * counts.sum()


class PhotometricDistortion:
    """Random brightness, contrast, saturation and hue, each with probability one half.

    As in the published training code, brightness is added and contrast multiplied, before or after the other two.
    Saturation blends with the gray of equal luminance, and hue is turned around the axis of grays. All of these are
    linear in the colors: they are one matrix, which is applied once.

    The bands of an array have no colors: brightness and contrast change, of all bands alike.

    Args:
        brightness: Largest change of all channels, from 0 to 1.
        contrast: Range of the factor of all channels.
        saturation: Range of the factor of the distance from gray.
        hue: Largest turn in degrees.
    """

    def __init__(
        self,
        brightness: float = 32 / 255,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18,
    ) -> None:
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def matrix(self) -> np.ndarray:
        """A random matrix (3, 4) of colors from 0 to 255: factors, and what is added."""
        steps = []
        if uniform(0, 1) < 0.5:
            steps.append(self._affine(np.eye(3), 255 * uniform(-self.brightness, self.brightness)))
        if uniform(0, 1) < 0.5:
            factor = uniform(*self.saturation)
            gray = np.outer(np.ones(3), (0.299, 0.587, 0.114))
            steps.append(self._affine(factor * np.eye(3) + (1 - factor) * gray))
        if uniform(0, 1) < 0.5:
            angle = math.radians(uniform(-self.hue, self.hue))
            cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
            axis = np.full((3, 3), 1 / 3)
            steps.append(self._affine(math.cos(angle) * (np.eye(3) - axis) + axis + math.sin(angle) * cross))
        if uniform(0, 1) < 0.5:
            contrast = self._affine(uniform(*self.contrast) * np.eye(3))
            first = int(bool(steps)) if uniform(0, 1) < 0.5 else len(steps)
            steps.insert(first, contrast)
        total = np.eye(4)
        for step in steps:
            total = step @ total
        return total[:3]

    def _distort_bands(self, image: np.ndarray) -> np.ndarray:
        full = 255 if image.dtype == np.uint8 else 1
        offset = full * uniform(-self.brightness, self.brightness) if uniform(0, 1) < 0.5 else 0
        factor = uniform(*self.contrast) if uniform(0, 1) < 0.5 else 1
        return (np.float32(factor) * image + np.float32(offset)).clip(0, full).astype(image.dtype)

    @staticmethod
    def _affine(factors: np.ndarray, offset: float = 0.0) -> np.ndarray:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = factors, offset
        return matrix

    def __call__(self, image: Picture) -> Picture:
        if isinstance(image, np.ndarray):
            return self._distort_bands(image)
        matrix = self.matrix()
        return image if np.array_equal(matrix, np.eye(4)[:3]) else image.convert("RGB", tuple(matrix.ravel()))


@functools.cache
def own_transform(name: str) -> Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[torch.Tensor, torch.Tensor]]:
    """Make the transform of `--augment module:function`, once in each process and alike in all."""
    with seeded(0):  # what is drawn here changes no sample
        transform = load_function("augment", name)()
    if not callable(transform):
        raise SettingsError(f"--augment {name}: the function must return a transform, but returned {transform!r}.")
    return transform


class TrainTransform:
    """Augmentation of training images, to tensors of one size.

    Args:
        crop: Resizes, crops and rotates.
        distort: Changes colors, None for none.
        normalization: Mean and standard deviation of each channel, of values from 0 to 1.
        vertical_flip: Also flip upside down, with probability one half.
        rotate90: Rotate by 0, 90, 180 or 270 degrees.
        augment: The user's own transform, "module:function".
        label_type: Type of the labels, of images that are left to :func:`normalize_batch`; None for int64 and
            normalized images.
    """

    def __init__(
        self,
        crop: RandomResizedCrop,
        distort: Callable[[Picture], Picture] | None,
        normalization: Normalization = (MEAN, STD),
        vertical_flip: bool = False,
        rotate90: bool = False,
        augment: str | None = None,
        label_type: torch.dtype | None = None,
    ) -> None:
        self.crop = crop
        self.distort = distort
        self.normalization = normalization
        turns = v2.RandomChoice([v2.RandomRotation((angle, angle), expand=True) for angle in (0, 90, 180, 270)])
        steps = ((v2.RandomHorizontalFlip(), True), (v2.RandomVerticalFlip(), vertical_flip), (turns, rotate90))
        self.flip = v2.Compose([step for step, used in steps if used])
        self.augment = augment
        self.label_type = label_type

    def __call__(self, image: Picture, labels: np.ndarray, label: int | None = None) -> tuple[torch.Tensor, ...]:
        """Augment an image and its labels; the crop is around a pixel of `label` if it is given.

        Returns:
            A normalized image (C, size, size) and int64 labels (size, size). With `label_type`, an image in bytes,
            labels of that type, and for :func:`normalize_batch` the matrix of its colors (C, C + 1) and its size
            without padding (2,). The random numbers that are drawn are the same.

        Raises:
            SettingsError: If the user's own transform does not return an image and a mask like those it got, or a label
                that was not in the mask.
        """
        image, labels = self.crop(image, labels, label)
        # a label outside a byte, such as -1, fills the padding
        dtype = labels.dtype if 0 <= self.crop.ignore_index <= 255 else np.int32
        mask = tv_tensors.Mask(torch.from_numpy(labels.astype(dtype)))
        if isinstance(image, np.ndarray):
            tensor, mask = self.flip(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), mask)
            image = tensor.permute(1, 2, 0).numpy()
        else:
            image, mask = self.flip(image, mask)
        height, width = mask.shape[-2:]
        padding = [0, 0, self.crop.size - width, self.crop.size - height]
        matrix = None
        is_left = self.label_type and isinstance(image, Image.Image) and not self.augment
        if is_left and isinstance(self.distort, PhotometricDistortion):
            matrix = self.distort.matrix()
        elif self.distort:
            image = self.distort(image)
        if self.augment:
            image, mask = self._apply_own(image, mask)
        x = to_bytes(image) if self.label_type else normalize(image, self.normalization)
        if any(padding):
            x = v2.functional.pad(x, padding)
            mask = v2.functional.pad(mask, padding, fill=self.crop.ignore_index)
        labels = mask.as_subclass(torch.Tensor).to(self.label_type or torch.long)
        if self.label_type is None:
            return x, labels
        matrix = np.eye(len(x), len(x) + 1) if matrix is None else matrix
        return x, labels, torch.from_numpy(matrix).float(), torch.tensor([height, width])

    def _apply_own(self, image: Picture, mask: tv_tensors.Mask) -> tuple[np.ndarray, tv_tensors.Mask]:
        given = v2.functional.to_image(image), mask
        result = own_transform(self.augment)(*given)
        found = result if isinstance(result, tuple) else (result,)
        forms = [", ".join(f"{getattr(t, 'dtype', type(t))} {[*np.shape(t)]}" for t in part) for part in (given, found)]
        if forms[0] != forms[1]:
            raise SettingsError(
                f"--augment {self.augment}: the transform must return an image and a mask of the types and shapes that "
                f"it got, {forms[0]}, but returned {forms[1]}."
            )
        ignored = self.crop.ignore_index
        if added := {*np.unique(found[1]).tolist()} - {*np.unique(mask).tolist(), ignored}:
            raise SettingsError(
                f"--augment {self.augment}: the transform added the labels {', '.join(map(str, sorted(added)))} to a "
                f"mask without them: if it fills in pixels, give it fill={{tv_tensors.Image: 0, tv_tensors.Mask: "
                f"{ignored}}}, since {ignored} does not count here."
            )
        return found[0].permute(1, 2, 0).numpy(), tv_tensors.Mask(found[1])


@functools.cache
def _constants(normalization: Normalization, device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """Mean and standard deviation, each (C, 1, 1), of values from 0 to 255."""
    return [255 * torch.tensor(values, device=device)[:, None, None] for values in normalization]


def normalize(image: Picture, normalization: Normalization = (MEAN, STD)) -> torch.Tensor:
    """An image to the model's input (C, H, W)."""
    mean, std = _constants(normalization)
    array = np.asarray(image)
    x = torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32))
    x = x if array.dtype == np.uint8 else x.mul_(255)
    return x.sub_(mean).div_(std)


def to_bytes(image: Picture) -> torch.Tensor:
    """An image as bytes (C, H, W)."""
    array = np.asarray(image)
    array = array if array.dtype == np.uint8 else (255 * array).round()
    return torch.from_numpy(array.transpose(2, 0, 1).astype(np.uint8))


def normalize_batch(
    images: torch.Tensor, colors: torch.Tensor, sizes: torch.Tensor, normalization: Normalization = (MEAN, STD)
) -> torch.Tensor:
    """Distort colors and normalize, on the device, what a :class:`TrainTransform` with `label_type` returns.

    The result is that of Pillow and :func:`normalize`, up to one step of 255, where rounding falls on the other side.

    Args:
        images: Bytes (B, C, H, W).
        colors: Matrices (B, C, C + 1) of colors from 0 to 255: factors, and what is added.
        sizes: Height and width of each image without its padding, (B, 2).
        normalization: Mean and standard deviation of each channel, of values from 0 to 1.

    Returns:
        The model's input (B, C, H, W); padding is 0.
    """
    mean, std = _constants(normalization, images.device)
    x = colors[..., -1, None, None]
    for channel in range(images.shape[1]):  # a matrix product may be in TF32
        x = x + colors[..., channel, None, None] * images[:, channel, None]
    x = x.add_(0.5).clamp_(0, 255).floor_().sub_(mean).div_(std)  # rounded as Pillow does
    inside = [torch.arange(side, device=x.device) < sizes[:, k, None] for k, side in enumerate(x.shape[2:])]
    return x.mul_((inside[0][:, :, None] & inside[1][:, None])[:, None])
