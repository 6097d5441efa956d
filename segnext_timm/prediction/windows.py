"""Logits of an image in overlapping windows, in bounded memory."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

from ..models.model_info import normalization, raw_logits, size_divisor
from ..models.upsampled import resized_piece

Mode = Literal["auto", "whole", "slide"]
Precision = Literal["fp32", "bf16", "fp16"]

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_KEPT_BYTES = 1 << 30  # of the windows' logits that other tiles will need


def _pad(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images with sides below 32, or that the model cannot divide, padded with zeros below and on the right."""
    step = size_divisor(model)
    height, width = (-(-max(side, 32) // step) * step for side in images.shape[-2:])
    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def _autocast(device: torch.device, precision: Precision) -> torch.autocast | nullcontext:
    dtype = _PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


@dataclass(frozen=True)
class _Plan:
    """How an image is seen.

    Attributes:
        mode: "whole" or "slide".
        window: Height and width of the windows; at least those of the image if it is seen whole.
        stride: Their distances.
        sizes: Heights and widths at which it is seen.
        flip: See each mirrored too.
        precision: Of the model.
        batch: Windows at once.
    """

    mode: Mode
    window: tuple[int, int]
    stride: tuple[int, int]
    sizes: list[tuple[int, int]]
    flip: bool
    precision: Precision
    batch: int

    @property
    def views(self) -> int:
        """How often the image is seen."""
        return len(self.sizes) * (2 if self.flip else 1)


class _View:
    """What a model sees of an image at one size, perhaps mirrored: the mean of its logits over all windows at a pixel.

    Windows lie `stride` apart; the last of a row or column is moved back to end with the image.
    """

    def __init__(
        self, model: nn.Module, image: torch.Tensor, size: tuple[int, int], mirrored: bool, plan: _Plan
    ) -> None:
        self.model = model
        self.image = TF.resize(image, list(size), antialias=True) if size != tuple(image.shape[-2:]) else image
        self.size = size
        self.mirrored = mirrored
        self.window = tuple(min(side, full) for side, full in zip(plan.window, size))
        self.batch = plan.batch
        self.precision = plan.precision
        self.statistics = normalization(model)
        # upper and left borders of the windows
        self.borders = [
            [min(i * step, full - side) for i in range(-(-(full - side) // step) + 1)]
            for full, side, step in zip(size, self.window, plan.stride)
        ]
        self.padded = self.window
        self.seen: dict[tuple[int, int], torch.Tensor] = {}  # logits (h, w, classes) by border

    def crop(self, top: int, left: int) -> torch.Tensor:
        """The normalised pixels (1, C, h, w) of a window."""
        left = self.size[1] - left - self.window[1] if self.mirrored else left
        x = self.image[:, top : top + self.window[0], left : left + self.window[1]]
        x = TF.normalize(TF.to_dtype(x, torch.float32, scale=True), *map(list, self.statistics))[None]
        return x.flip(-1) if self.mirrored else x

    def _look(self, borders: Sequence[tuple[int, int]]) -> None:
        """Run the model on windows."""
        model = self.model
        images = _pad(model, torch.cat([self.crop(*border) for border in borders]))
        self.padded = tuple(images.shape[-2:])
        with _autocast(images.device, self.precision), raw_logits(model):
            logits = model.forward_logits(images) if hasattr(model, "forward_logits") else model(images)
        logits = logits[0] if isinstance(logits, tuple) else logits  # beside those of a classification head
        for border, maps in zip(borders, logits.float()):
            self.seen[border] = maps.permute(1, 2, 0).contiguous()

    def _forget(self, above: int) -> None:
        """Let go of the windows that end above a row, then of the oldest, until the rest fits."""
        for border in [border for border in self.seen if border[0] + self.window[0] <= above]:
            del self.seen[border]
        while sum(maps.nbytes for maps in self.seen.values()) > _KEPT_BYTES and len(self.seen) > self.batch:
            del self.seen[next(iter(self.seen))]

    def logits(self, rows: slice, columns: slice) -> torch.Tensor:
        """Logits (rows, columns, classes) of a piece, which is not above those asked for before."""
        if self.mirrored:
            columns = slice(self.size[1] - columns.stop, self.size[1] - columns.start)
        tops, lefts = (
            [border for border in borders if border < part.stop and border + side > part.start]
            for borders, side, part in zip(self.borders, self.window, (rows, columns))
        )
        needed = [(top, left) for top in tops for left in lefts]
        total = None
        for i in range(0, len(needed), self.batch):
            group = needed[i : i + self.batch]
            missing = [border for border in group if border not in self.seen]
            if missing:
                self._look(missing)
            for top, left in group:
                parts = [
                    slice(max(whole.start, border), min(whole.stop, border + side))
                    for whole, border, side in zip((rows, columns), (top, left), self.window)
                ]
                seen = self.seen[top, left]
                maps = resized_piece(
                    lambda r, c, seen=seen: seen[r, c],
                    tuple(seen.shape[:2]),
                    self.padded,
                    *(_shifted(part, -border) for part, border in zip(parts, (top, left))),
                )
                if len(needed) == 1:
                    total = maps
                    break
                if total is None:
                    size = (rows.stop - rows.start, columns.stop - columns.start)
                    total = maps.new_zeros((*size, maps.shape[2]))
                total[_shifted(parts[0], -rows.start), _shifted(parts[1], -columns.start)] += maps
            self._forget(rows.start)
        if len(needed) > 1:
            for axis, (borders, side, part) in enumerate(zip((tops, lefts), self.window, (rows, columns))):
                pixels = torch.arange(part.start, part.stop, device=total.device)[:, None]
                starts = torch.tensor(borders, device=total.device)
                count = ((pixels >= starts) & (pixels < starts + side)).sum(1)
                total /= count[:, None] if axis else count[:, None, None]
        return total.flip(1) if self.mirrored else total

    def resized_logits(self, size: tuple[int, int], rows: slice, columns: slice) -> torch.Tensor:
        """A piece (rows, columns, classes) of the logits resized to `size`."""
        return resized_piece(self.logits, self.size, size, rows, columns)
