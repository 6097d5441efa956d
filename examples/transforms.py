"""Joint augmentation of images and labels, in the order of SegNeXt's published training code.

Resize by a random factor, crop, flip, distort the colours, normalise, pad. The crop is chosen before anything is
resized, so that only what ends up in it is: of a 2048×1024 image enlarged to twice its size, a crop of 1024² needs an
eighth.

Random numbers come from torch's generator alone: who seeds it for a sample gets the same sample.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of values from 0 to 1, RGB

Transform = Callable[[Image.Image, np.ndarray], tuple[torch.Tensor, torch.Tensor]]


def uniform(low: float, high: float) -> float:
    """A random number in [low, high)."""
    return low + (high - low) * torch.rand(()).item()


class RandomResizedCrop:
    """A random crop of a randomly resized image and of its labels.

    Args:
        size: Side of the crop in pixels; images that are smaller after resizing are not enlarged to it.
        base_scale: Longest sides, (long, short), that an image is fitted in, keeping its aspect.
        factors: Range of the factor by which it is resized further.
        max_share: A crop is drawn again, up to ten times, while one class fills more than this share of it.
        ignore_index: Label that does not count.
        mapping: Label of each value in the label files, None if they are the same.
    """

    def __init__(
        self,
        size: int,
        base_scale: tuple[int, int],
        factors: tuple[float, float] = (0.5, 2.0),
        max_share: float = 0.75,
        ignore_index: int = 255,
        mapping: np.ndarray | None = None,
    ) -> None:
        self.size = size
        self.base_scale = base_scale
        self.factors = factors
        self.max_share = max_share
        self.ignore_index = ignore_index
        self.mapping = mapping

    def __call__(self, image: Image.Image, labels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
        """An image and labels (H, W), as they are in their files, to a crop of both."""
        factor = uniform(*self.factors)
        long, short = (side * factor for side in self.base_scale)
        scale = min(long / max(image.size), short / min(image.size))
        resized = [max(round(side * scale), 1) for side in image.size]
        crop = [min(side, self.size) for side in resized]
        for _ in range(10):
            corner = [math.floor(uniform(0, full - side + 1)) for full, side in zip(resized, crop)]
            # nearest neighbours, at the centres of the pixels of the crop
            columns, rows = (
                ((start + np.arange(side) + 0.5) * own / full).astype(np.intp)
                for start, side, own, full in zip(corner, crop, image.size, resized)
            )
            cropped = labels[rows[:, None], columns]
            cropped = cropped if self.mapping is None else self.mapping[cropped]
            if not self._one_class_fills(cropped):
                break
        own, full = image.size, resized
        box = [(c + side * k) * o / f for k in (0, 1) for c, side, o, f in zip(corner, crop, own, full)]
        return image.resize(crop, Image.Resampling.BILINEAR, box), cropped

    def _one_class_fills(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels.ravel())
        counts[self.ignore_index : self.ignore_index + 1] = 0
        return np.count_nonzero(counts) < 2 or counts.max() >= self.max_share * counts.sum()


def photometric_distortion() -> v2.Transform:
    """Brightness ±32/255, contrast and saturation 0.5 to 1.5, hue ±18°, each with probability one half."""

    def maybe(**jitter: float) -> v2.Transform:
        return v2.RandomApply([v2.ColorJitter(**jitter)], p=0.5)

    contrast, colour = maybe(contrast=0.5), [maybe(saturation=0.5), maybe(hue=18 / 360)]
    orders = [v2.Compose([contrast, *colour]), v2.Compose([*colour, contrast])]
    return v2.Compose([maybe(brightness=32 / 255), v2.RandomChoice(orders)])


class TrainTransform:
    """Augmentation of training images, to tensors of one size.

    Args:
        crop: Resizes and crops.
        distort: Changes colours, None for none. It runs on Pillow's images, whose colour operations are the fastest.
    """

    def __init__(self, crop: RandomResizedCrop, distort: v2.Transform | None) -> None:
        self.crop = crop
        self.distort = distort
        self.flip = v2.RandomHorizontalFlip()

    def __call__(self, image: Image.Image, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """An image and its labels to a normalised one (3, size, size) and int64 labels (size, size)."""
        image, labels = self.crop(image, labels)
        mask = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(labels)))
        image, mask = self.flip(image, mask)
        image = self.distort(image) if self.distort else image
        padding = [0, 0, self.crop.size - mask.shape[1], self.crop.size - mask.shape[0]]
        x = v2.functional.pad(normalise(image), padding)
        mask = v2.functional.pad(mask, padding, fill=self.crop.ignore_index)
        return x.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor).long()


def normalise(image: Image.Image) -> torch.Tensor:
    """An image to the model's input (3, H, W)."""
    x = v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)
    return v2.functional.normalize(x, MEAN, STD, inplace=True)
