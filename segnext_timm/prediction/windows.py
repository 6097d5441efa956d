"""Maps of an image in overlapping windows, in bounded memory.

The windows' maps are resized to the windows' size, averaged where windows overlap, and resized to the image's size. All
of that is linear, and along each axis a sum of two or four taps: a pixel of the image is computed from a few pixels of
the maps at once, with no map of the size in between.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

from ..models.model_info import Segmenter
from ..variants import MIN_SIDE

Mode = Literal["auto", "whole", "slide"]
Precision = Literal["fp32", "bf16", "fp16"]

PRECISIONS: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_CACHE_BYTES = 1 << 30  # of the windows' logits that other tiles will need


def pad_images(images: torch.Tensor, divisor: int) -> torch.Tensor:
    """Pad images (B, C, H, W) with zeros at the bottom and right: at least 32 pixels, and multiples of `divisor`."""
    height, width = (-(-max(side, MIN_SIDE) // divisor) * divisor for side in images.shape[-2:])
    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def autocast(device: torch.device, precision: Precision) -> torch.autocast | nullcontext:
    """Create the autocast context of a precision; it does nothing for "fp32"."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def window_origins(full: int, side: int, stride: int) -> list[int]:
    """Compute first pixels of windows that cover `full` pixels; the last window ends with the image."""
    return [min(i * stride, full - side) for i in range(-(-(full - side) // stride) + 1)]


def _constants(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Create a tensor (C, 1, 1) on a device without a copy from the host, which would wait for a GPU."""
    return torch.cat([torch.full((1, 1, 1), value, dtype=torch.float32, device=device) for value in values])


@dataclass(frozen=True)
class Taps:
    """Pixels that each of `n` pixels of an axis is a weighted sum of.

    Arrays of numpy, since the host needs to know them before a GPU would.

    Attributes:
        indices: Their indices, shape (n, taps), int64.
        weights: Their weights, shape (n, taps), float32.
    """

    indices: np.ndarray
    weights: np.ndarray


def resizing_taps(size: int, resized: int, part: slice) -> Taps:
    """Taps of bilinear resizing with `align_corners=False`, as in `torch.nn.functional.interpolate`.

    Args:
        size: Number of pixels of the axis.
        resized: Their number after resizing.
        part: Resized pixels to compute.
    """
    pixels = np.arange(part.start, part.stop)
    if size == resized:
        return Taps(pixels[:, None], np.ones((len(pixels), 1), np.float32))
    # rounded to float32 where interpolate rounds: on large maps, a digit more matters
    ratio = np.float64(np.float32(size) / np.float32(resized))
    source = np.clip((ratio * (pixels + 0.5) - 0.5).astype(np.float32), 0, size - 1)
    first = source.astype(np.int64)
    share = source - first.astype(np.float32)
    return Taps(np.stack([first, np.minimum(first + 1, size - 1)], 1), np.stack([1 - share, share], 1))


def _combine(table: torch.Tensor, taps: Taps) -> torch.Tensor:
    """Compute the sums that taps describe of the rows of a table (rows, columns)."""
    arrays = (torch.from_numpy(array) for array in (taps.indices, taps.weights))
    indices, weights = (x.to(table.device, non_blocking=table.is_cuda) for x in arrays)
    if table.device.type in ("cpu", "cuda"):
        return F.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)
    return torch.stack([table[indices[:, i]] * weights[:, i, None] for i in range(weights.shape[1])]).sum(0)


def resample(maps: torch.Tensor, rows: Taps, columns: Taps) -> torch.Tensor:
    """Resample maps (h, w, channels) to (len(rows), len(columns), channels)."""
    needed = []
    for axis, taps in enumerate((rows, columns)):  # only the part that is needed
        first, last = int(taps.indices.min()), int(taps.indices.max())
        maps = maps.narrow(axis, first, last + 1 - first)
        needed.append(Taps(taps.indices - first, taps.weights))
    height, width, channels = maps.shape
    wide = _combine(maps.transpose(0, 1).reshape(width, -1), needed[1]).view(-1, height, channels)
    return _combine(wide.transpose(0, 1).reshape(height, -1), needed[0]).view(-1, wide.shape[0], channels)


@dataclass(frozen=True)
class PredictionPlan:
    """How one image is processed.

    Attributes:
        mode: "whole" or "slide".
        window: Height and width of the windows in pixels; at least those of the image in mode "whole".
        stride: Vertical and horizontal distance of the windows in pixels.
        sizes: Heights and widths that the image is resized to, one pass each.
        flip: Add a pass on the mirrored image for each size.
        precision: Precision that the model runs in.
        batch: Number of windows per batch.
    """

    mode: Mode
    window: tuple[int, int]
    stride: tuple[int, int]
    sizes: list[tuple[int, int]]
    flip: bool
    precision: Precision
    batch: int

    @property
    def passes(self) -> list[tuple[tuple[int, int], bool]]:
        """Size and flip of each pass over the image."""
        return [(size, flip) for size in self.sizes for flip in ((False, True) if self.flip else (False,))]


class WindowedMaps:
    """Window-averaged maps of an image at one scale and flip, computed on demand.

    The model's maps of windows are cached as they are. Regions should be read from the top down: :meth:`read` evicts
    windows that end above its region, and the oldest windows when the cache is full. An evicted window is computed
    again if a later region needs it.

    Args:
        segmenter: The model, in evaluation mode.
        image: The image (C, H, W), uint8 or float32, on the model's device.
        size: Height and width that the image is resized to.
        mirrored: Mirror the image, and its maps back.
        plan: Windows, precision and batch.
    """

    def __init__(
        self, segmenter: Segmenter, image: torch.Tensor, size: tuple[int, int], mirrored: bool, plan: PredictionPlan
    ) -> None:
        self.segmenter = segmenter
        self.image = TF.resize(image, list(size), antialias=True) if size != tuple(image.shape[-2:]) else image
        self.image_size = (image.shape[-2], image.shape[-1])
        self.size = size
        self.mirrored = mirrored
        self.window = (min(plan.window[0], size[0]), min(plan.window[1], size[1]))
        self.batch = plan.batch
        self.precision = plan.precision
        self.dtype = next(segmenter.model.parameters()).dtype
        self.mean, self.std = (_constants(values, image.device) for values in segmenter.info.normalization)
        self.origins = [window_origins(*sides) for sides in zip(size, self.window, plan.stride)]
        self.padded_window = self.window
        self._cache: dict[tuple[int, int], torch.Tensor] = {}  # maps (h, w, classes) by origin

    def crop(self, top: int, left: int) -> torch.Tensor:
        """Compute the normalized pixels (1, C, h, w) of the window at an origin."""
        left = self.size[1] - left - self.window[1] if self.mirrored else left
        x = self.image[:, top : top + self.window[0], left : left + self.window[1]]
        x = TF.to_dtype(x, torch.float32, scale=True).sub(self.mean).div_(self.std)[None]
        return (x.flip(-1) if self.mirrored else x).to(self.dtype)

    def run(self, origins: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Run the model on windows: maps (windows, classes, h, w) of the padded windows."""
        images = pad_images(torch.cat([self.crop(*origin) for origin in origins]), self.segmenter.info.size_divisor)
        self.padded_window = (images.shape[-2], images.shape[-1])
        with autocast(images.device, self.precision):
            return self.segmenter(images)

    def _evict(self, above: int) -> None:
        """Drop the windows that end above a row, then the oldest ones, until the rest fits the cache."""
        for origin in [origin for origin in self._cache if origin[0] + self.window[0] <= above]:
            del self._cache[origin]
        while sum(maps.nbytes for maps in self._cache.values()) > _CACHE_BYTES and len(self._cache) > self.batch:
            del self._cache[next(iter(self._cache))]

    def _window_taps(self, axis: int, origin: int, taps: Taps, source: int) -> tuple[slice, Taps]:
        """Taps into one window's maps of the pixels that the window contributes to.

        Args:
            axis: 0 for rows, 1 for columns.
            origin: First pixel of the window.
            taps: Taps of a region's pixels into the resized image.
            source: Number of pixels of the window's maps.

        Returns:
            The part of the region that the window contributes to, and the taps of that part, weighted by the window's
            share in the average.
        """
        side, pixels = self.window[axis], taps.indices
        inside = (pixels >= origin) & (pixels < origin + side)
        count = sum((pixels >= start) & (pixels < start + side) for start in map(np.int64, self.origins[axis]))
        touched = inside.any(1).nonzero()[0]
        part = slice(int(touched[0]), int(touched[-1]) + 1)
        share = (taps.weights * inside / count)[part, :, None].astype(np.float32)
        inner = resizing_taps(source, self.padded_window[axis], slice(0, side))
        local = np.clip(pixels[part] - origin, 0, side - 1)
        taps_of_window = (inner.indices[local], share * inner.weights[local])
        return part, Taps(*(array.reshape(len(local), -1) for array in taps_of_window))

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        """Compute maps (rows, columns, classes) of a region of the image, at the image's size."""
        taps = [resizing_taps(*sides) for sides in zip(self.size, self.image_size, (rows, columns))]
        if self.mirrored:
            taps[1] = Taps(self.size[1] - 1 - taps[1].indices, taps[1].weights)
        tops, lefts = (
            [o for o in origins if o <= int(needed.indices.max()) and o + side > int(needed.indices.min())]
            for origins, side, needed in zip(self.origins, self.window, taps)
        )
        needed = [(top, left) for top in tops for left in lefts]
        total: torch.Tensor | None = None
        for i in range(0, len(needed), self.batch):
            group = needed[i : i + self.batch]
            if missing := [origin for origin in group if origin not in self._cache]:
                for origin, maps in zip(missing, self.run(missing).float()):
                    self._cache[origin] = maps.permute(1, 2, 0).contiguous()
            for origin in group:
                maps = self._cache[origin]
                (down, row_taps), (across, column_taps) = (
                    self._window_taps(axis, origin[axis], taps[axis], maps.shape[axis]) for axis in (0, 1)
                )
                part = resample(maps, row_taps, column_taps)
                if len(needed) == 1:
                    total = part
                    break
                if total is None:
                    total = part.new_zeros(rows.stop - rows.start, columns.stop - columns.start, part.shape[2])
                total[down, across] += part
            self._evict(int(taps[0].indices.min()))
        assert total is not None  # windows cover the image
        return total
