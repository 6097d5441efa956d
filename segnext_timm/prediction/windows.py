"""Logits of an image in overlapping windows, in bounded memory."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

from ..models.model_info import ModelInfo, raw_logits
from ..models.upsampled import resize_region

Mode = Literal["auto", "whole", "slide"]
Precision = Literal["fp32", "bf16", "fp16"]

PRECISIONS: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MIN_SIDE = 32  # of the images that a model gets, in pixels
_CACHE_BYTES = 1 << 30  # of the windows' logits that other tiles will need


def pad_images(images: torch.Tensor, divisor: int) -> torch.Tensor:
    """Pad images (B, C, H, W) with zeros at the bottom and right: at least 32 pixels, and multiples of `divisor`."""
    height, width = (-(-max(side, _MIN_SIDE) // divisor) * divisor for side in images.shape[-2:])
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


def _shift(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


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


class WindowedLogits:
    """Window-averaged logits of an image at one scale and flip, computed on demand.

    Logits of windows are cached at the decoder's size. Regions should be read from the top down: :meth:`read` evicts
    windows that end above its region, and the oldest windows when the cache is full. An evicted window is computed
    again if a later region needs it.

    Args:
        model: The model, in evaluation mode.
        info: What the model states about itself.
        image: The image (C, H, W), uint8 or float32, on the model's device.
        size: Height and width that the image is resized to.
        mirrored: Mirror the image, and its logits back.
        plan: Windows, precision and batch.
    """

    def __init__(
        self,
        model: nn.Module,
        info: ModelInfo,
        image: torch.Tensor,
        size: tuple[int, int],
        mirrored: bool,
        plan: PredictionPlan,
    ) -> None:
        self.model: Any = model
        self.info = info
        self.image = TF.resize(image, list(size), antialias=True) if size != tuple(image.shape[-2:]) else image
        self.size = size
        self.mirrored = mirrored
        self.window = (min(plan.window[0], size[0]), min(plan.window[1], size[1]))
        self.batch = plan.batch
        self.precision = plan.precision
        self.dtype = next(model.parameters()).dtype
        self.mean, self.std = (_constants(values, image.device) for values in info.normalization)
        self.origins = [window_origins(*sides) for sides in zip(size, self.window, plan.stride)]
        self.padded_window = self.window
        self._cache: dict[tuple[int, int], torch.Tensor] = {}  # logits (h, w, classes) by origin

    def crop(self, top: int, left: int) -> torch.Tensor:
        """Compute the normalized pixels (1, C, h, w) of the window at an origin."""
        left = self.size[1] - left - self.window[1] if self.mirrored else left
        x = self.image[:, top : top + self.window[0], left : left + self.window[1]]
        x = TF.to_dtype(x, torch.float32, scale=True).sub(self.mean).div_(self.std)[None]
        return (x.flip(-1) if self.mirrored else x).to(self.dtype)

    def _run(self, origins: Sequence[tuple[int, int]]) -> None:
        """Run the model on windows, and cache their logits."""
        images = pad_images(torch.cat([self.crop(*origin) for origin in origins]), self.info.size_divisor)
        self.padded_window = (images.shape[-2], images.shape[-1])
        with autocast(images.device, self.precision), raw_logits(self.model):
            logits = self.model.forward_logits(images) if hasattr(self.model, "forward_logits") else self.model(images)
        logits = logits[0] if isinstance(logits, tuple) else logits  # without those of a classification head
        for origin, maps in zip(origins, logits.float()):
            self._cache[origin] = maps.permute(1, 2, 0).contiguous()

    def _evict(self, above: int) -> None:
        """Drop the windows that end above a row, then the oldest ones, until the rest fits the cache."""
        for origin in [origin for origin in self._cache if origin[0] + self.window[0] <= above]:
            del self._cache[origin]
        while sum(maps.nbytes for maps in self._cache.values()) > _CACHE_BYTES and len(self._cache) > self.batch:
            del self._cache[next(iter(self._cache))]

    def _window_region(self, origin: tuple[int, int], rows: slice, columns: slice) -> torch.Tensor:
        """Compute logits (rows, columns, classes) of a region of the image that lies in a cached window."""
        maps = self._cache[origin]

        def read(rows: slice, columns: slice) -> torch.Tensor:
            return maps[rows, columns]

        source_size = (maps.shape[0], maps.shape[1])
        return resize_region(
            read, source_size, self.padded_window, _shift(rows, -origin[0]), _shift(columns, -origin[1])
        )

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        """Compute logits (rows, columns, classes) of a region of the resized image."""
        if self.mirrored:
            columns = slice(self.size[1] - columns.stop, self.size[1] - columns.start)
        tops, lefts = (
            [origin for origin in origins if origin < part.stop and origin + side > part.start]
            for origins, side, part in zip(self.origins, self.window, (rows, columns))
        )
        needed = [(top, left) for top in tops for left in lefts]
        total: torch.Tensor | None = None
        for i in range(0, len(needed), self.batch):
            group = needed[i : i + self.batch]
            if missing := [origin for origin in group if origin not in self._cache]:
                self._run(missing)
            for origin in group:
                if len(needed) == 1:
                    total = self._window_region(origin, rows, columns)
                    break
                inside = [
                    slice(max(part.start, first), min(part.stop, first + side))
                    for part, first, side in zip((rows, columns), origin, self.window)
                ]
                maps = self._window_region(origin, *inside)
                if total is None:
                    size = (rows.stop - rows.start, columns.stop - columns.start)
                    total = maps.new_zeros((*size, maps.shape[2]))
                total[_shift(inside[0], -rows.start), _shift(inside[1], -columns.start)] += maps
            self._evict(rows.start)
        assert total is not None  # windows cover the image
        if len(needed) > 1:
            for axis, (origins, side, part) in enumerate(zip((tops, lefts), self.window, (rows, columns))):
                pixels = torch.arange(part.start, part.stop, device=total.device)
                count = torch.stack([(pixels >= start) & (pixels < start + side) for start in origins]).sum(0)
                total /= count[:, None] if axis else count[:, None, None]
        return total.flip(1) if self.mirrored else total

    def resized(self, size: tuple[int, int], rows: slice, columns: slice) -> torch.Tensor:
        """Compute a region (rows, columns, classes) of the logits resized to `size`."""
        return resize_region(self.read, self.size, size, rows, columns)
