"""Maps of an image in overlapping windows, in bounded memory.

The windows' maps are resized to the windows' size, averaged where windows overlap, and resized to the image's size. All
of that is linear, and along each axis a sum of two or four taps: a pixel of the image is computed from a few pixels of
the maps at once, with no map of the size in between.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

from ..models.segmenter import Segmenter
from ..variants import MIN_SIDE

Precision = Literal["fp32", "bf16", "fp16"]

PRECISIONS: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_CACHE_BYTES = 1 << 30  # of the windows' logits that other tiles will need


class Pixels:
    """An image (C, H, W) in memory, on the model's device. Subclasses read regions of others when they are needed."""

    device: torch.device
    shape: tuple[int, int, int]  # channels, rows, columns

    def __init__(self, image: torch.Tensor, device: torch.device) -> None:
        # a copy to the CPU that does not block would be read too early
        self._image, self.device = image.to(device, non_blocking=device.type == "cuda"), device
        self.shape = (image.shape[0], image.shape[1], image.shape[2])

    def crop(self, rows: slice, columns: slice) -> torch.Tensor:
        """Take a region (C, rows, columns): uint8 from 0 to 255, or float32 from 0 to 1."""
        return self._image[:, rows, columns]

    def holds_data(self, rows: slice, columns: slice) -> bool:
        """Whether a region holds any data; one that holds none is not predicted."""
        return True


class Taps(NamedTuple):
    """Pixels that each of `n` pixels of an axis is a weighted sum of; arrays, since slices are computed from them."""

    indices: np.ndarray  # (n, taps), int64
    weights: np.ndarray  # (n, taps), float32


def resizing_taps(size: int, resized: int, part: slice) -> Taps:
    """Compute taps of a part of `size` pixels that are resized to `resized` ones, as by `F.interpolate`, bilinear."""
    pixels = np.arange(part.start, part.stop)
    if size == resized:
        return Taps(pixels[:, None], np.ones((len(pixels), 1), np.float32))
    # rounded to float32 where interpolate rounds: otherwise, 375 pixels of standard deviation 10 resized to 3001 differ
    # from interpolate's by 7e-4 instead of 2e-6
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


@dataclass
class WindowedMaps:
    """Window-averaged maps of an image at one scale and flip, computed on demand.

    The model's maps of windows are cached as they are. Regions should be read from the top down: :meth:`read` evicts
    windows that end above its region, and the oldest windows when the cache is full. An evicted window is computed
    again if a later region needs it.
    """

    segmenter: Segmenter  # in evaluation mode
    pixels: Pixels
    size: tuple[int, int]  # height and width that the image is resized to
    mirrored: bool  # mirror the image, and its maps back
    window: tuple[int, int]  # height and width in pixels; cut to `size`
    stride: tuple[int, int]  # vertical and horizontal, in pixels
    precision: Precision
    batch: int  # windows per batch

    def __post_init__(self) -> None:
        self.window = (min(self.window[0], self.size[0]), min(self.window[1], self.size[1]))
        self.origins = [  # first pixels of windows that cover each axis; the last window ends with the image
            [min(i * stride, full - side) for i in range(-(-(full - side) // stride) + 1)]
            for full, side, stride in zip(self.size, self.window, self.stride)
        ]
        divisor = self.segmenter.info.size_divisor
        height, width = (-(-max(side, MIN_SIDE) // divisor) * divisor for side in self.window)
        self.padded_window = (height, width)
        self._cache: dict[tuple[int, int], torch.Tensor] = {}  # maps (h, w, classes) by origin

    @cached_property
    def _resized(self) -> Pixels:
        if self.size == self.pixels.shape[1:]:
            return self.pixels
        whole = self.pixels.crop(slice(None), slice(None))
        return Pixels(TF.resize(whole, list(self.size), antialias=True), self.pixels.device)

    def _crop(self, top: int, left: int) -> torch.Tensor:
        """Compute the normalized pixels (1, C, h, w) of the window at an origin."""
        left = self.size[1] - left - self.window[1] if self.mirrored else left
        x = self._resized.crop(slice(top, top + self.window[0]), slice(left, left + self.window[1]))
        tensors = (torch.tensor(values)[:, None, None] for values in self.segmenter.info.normalization)
        mean, std = (values.to(x.device, non_blocking=x.is_cuda) for values in tensors)
        x = TF.to_dtype(x, torch.float32, scale=True).sub(mean).div_(std)[None]
        return x.flip(-1) if self.mirrored else x

    def run(self, origins: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Run the model on windows, padded by zeros at the bottom and right: maps (windows, classes, h, w)."""
        images = torch.cat([self._crop(*origin) for origin in origins])
        images = images.to(next(self.segmenter.model.parameters()).dtype)
        padding = (0, self.padded_window[1] - self.window[1], 0, self.padded_window[0] - self.window[0])
        dtype = PRECISIONS[self.precision]
        with nullcontext() if dtype is None else torch.autocast(images.device.type, dtype):
            return self.segmenter(F.pad(images, padding))

    def _evict(self, above: int) -> None:
        """Drop the windows that end above a row, then the oldest ones, until the rest fits the cache."""
        for origin in [origin for origin in self._cache if origin[0] + self.window[0] <= above]:
            del self._cache[origin]
        while sum(maps.nbytes for maps in self._cache.values()) > _CACHE_BYTES and len(self._cache) > self.batch:
            del self._cache[next(iter(self._cache))]

    def _window_taps(self, axis: int, origin: int, taps: Taps, source: int) -> tuple[slice, Taps]:
        """Compute the part of a region that a window contributes to, and its taps into the window's `source` pixels.

        `taps` are those of the region's pixels into the resized image. The returned ones are weighted by the window's
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
        taps = [resizing_taps(*sides) for sides in zip(self.size, self.pixels.shape[1:], (rows, columns))]
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
