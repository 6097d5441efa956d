"""Argmax and cross-entropy of upsampled logits, without full-resolution logits.

A segmenter computes logits at a fraction of the image's size and resizes them. For 150 classes at 1024×2048 pixels, the
resized logits take 1.3 GB in float32, and as much time as a small network. The argmax and the cross-entropy need only a
few rows of them at a time. This module has the plain forms; :mod:`segnext_timm.kernels.resizing` has faster ones.

All resizing is bilinear with `align_corners=False`, as in `torch.nn.functional.interpolate`.
"""

from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ..kernels import resizing

_BAND_BYTES = 16 << 20  # of the maps held at once
_MAX_BANDS_IN_GRAPHS = 8


def _weights(size: int, resized: int, like: torch.Tensor) -> torch.Tensor:
    """Compute the matrix (resized, size) that resizes an axis."""
    pixels = torch.arange(size, dtype=like.dtype, device=like.device)
    centers = torch.arange(resized, dtype=like.dtype, device=like.device) + 0.5
    source = (centers * (size / resized) - 0.5).clamp(0, size - 1)
    return (1 - (source[:, None] - pixels).abs()).clamp(min=0)


def _is_static(logits: torch.Tensor, size: tuple[int, int]) -> bool:
    return all(isinstance(side, int) for side in (*logits.shape, *size))


def band_edges(logits: torch.Tensor, size: tuple[int, int]) -> list[int]:
    """Divide the rows of resized maps into bands; a graph of dynamic size has one."""
    if not _is_static(logits, size):
        return [0, size[0]]
    batch, classes = logits.shape[:2]
    bands = -(-4 * batch * classes * size[0] * size[1] // _BAND_BYTES)
    bands = min(bands, size[0], _MAX_BANDS_IN_GRAPHS if torch.compiler.is_compiling() else bands)
    return [size[0] * i // bands for i in range(bands + 1)]


def source_rows(height: int, resized: int, start: int, end: int) -> slice:
    """Find the rows, of `height`, that a band of the `resized` rows is interpolated from."""
    first = ((2 * start + 1) * height - resized) // (2 * resized)  # in integer arithmetic
    return slice(max(first, 0), ((2 * end - 1) * height - resized) // (2 * resized) + 2)


def resize_rows(logits: torch.Tensor, size: tuple[int, int], start: int, end: int) -> torch.Tensor:
    """Compute rows of resized maps by matrix products, which every runtime has.

    Returns:
        Shape (B, rows, classes, width): the argmax of a row reads memory that lies together.
    """
    classes, height, width = logits.shape[1:]
    columns, rows = _weights(width, size[1], logits), _weights(height, size[0], logits)
    if _is_static(logits, size):
        sources = source_rows(height, size[0], start, end)
        logits, rows = logits[:, :, sources], rows[start:end, sources]
    wide = torch.matmul(logits.transpose(1, 2), columns.T)  # (B, source rows, classes, width)
    return torch.matmul(rows, wide.flatten(2)).unflatten(2, (classes, size[1]))


@torch.compiler.disable  # a loop over bands of different shapes: torch.compile compiles the model up to here
def resized_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Largest channel of resized maps: `interpolate(logits, size, mode="bilinear").argmax(1)`, a band at a time.

    Args:
        logits: Shape (B, classes, h, w).
        size: Height and width of the labels.

    Returns:
        Labels of shape (B, *size), int64. Ties, up to rounding, are broken arbitrarily.
    """
    if resizing.applies(logits) and not torch.compiler.is_compiling():
        return resizing.argmax(logits, size)
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        bands = pairwise(band_edges(logits, size))
        return torch.cat([resize_rows(logits, size, *band).argmax(2) for band in bands], 1)


class UpsampledCrossEntropyLoss(nn.Module):
    """Cross-entropy of logits resized to the labels' size, without holding the resized logits.

    Equals `CrossEntropyLoss(...)(interpolate(logits, labels.shape[1:], mode="bilinear"), labels)` and its gradient, in
    a fraction of the time and memory. Use it with `SegNeXt(upsampling=1)`, whose output has an eighth of the image's
    size; logits of the labels' own size work too. The loss is computed one band of rows at a time, or on CUDA by a
    Triton kernel, in float32 even under autocast or after `half()`. It can be differentiated once. torch.compile and
    torch.export take it as one operator, `segnext_timm::upsampled_cross_entropy`.

    Args:
        weight: Weight of each class, shape (classes,); None for equal weights.
        ignore_index: Label of pixels to ignore.
        reduction: "mean" over the pixels not ignored, by weight; "sum"; or "none", which holds the resized logits.
        label_smoothing: Fraction of the target that is distributed evenly over all classes, from 0 to 1.

    Raises:
        ValueError: If `reduction` or `label_smoothing` is out of its range.
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            logits: Shape (B, classes, h, w), at an integer fraction of the labels' size, rounded up or down.
            target: Labels of shape (B, H, W), of any integer type.

        Returns:
            The loss: a scalar, or shape (B, H, W) with `reduction="none"`.

        Raises:
            ValueError: If the shapes do not fit, or the labels are not integers.
        """
        if target.dtype.is_floating_point or target.dtype.is_complex:
            raise ValueError(
                f"Labels must be integers, one class a pixel, got {target.dtype}. Convert class numbers by "
                "`target.long()`, and maps of one probability a class by `target.argmax(1)`."
            )
        if target.ndim != 3 or logits.ndim != 4 or target.shape[0] != logits.shape[0]:
            hint = " Use `target.squeeze(1)`." if target.ndim == 4 and target.shape[1] == 1 else ""
            raise ValueError(
                f"Logits (B, classes, h, w) need labels (B, H, W), got logits {tuple(logits.shape)} and labels "
                f"{tuple(target.shape)}.{hint}"
            )
        if self.weight is not None and self.weight.numel() != logits.shape[1]:
            raise ValueError(f"There are {self.weight.numel()} class weights for logits of {logits.shape[1]} classes.")
        target = target.long()
        # wide also in a criterion cast to half precision, where the sum of the pixels' weights would overflow
        wide = torch.promote_types(logits.dtype, torch.float32)
        weight = None if self.weight is None else self.weight.to(logits.device, wide)
        if self.reduction != "none" and resizing.applies(logits):
            needs_gradient = logits.requires_grad and torch.is_grad_enabled()
            loss, _ = resizing.cross_entropy(
                logits, target, weight, self.ignore_index, self.label_smoothing, needs_gradient
            )
        else:
            if not torch.compiler.is_compiling():  # which would compile anew for each size
                resizing.check_sizes(logits, target)
            with torch.autocast(logits.device.type, enabled=False):
                loss = self._compute_plainly(logits.to(wide), target, weight)
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss
        counts = target != self.ignore_index  # sums, since a boolean index would wait for a GPU
        if weight is None:
            return loss / counts.sum()
        return loss / (weight[target.where(counts, 0)] * counts).sum()

    def _compute_plainly(self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Compute the loss of all pixels, or its sum by bands, whose maps the backward pass computes again."""
        size = (target.shape[1], target.shape[2])

        def loss_of(logits: torch.Tensor, start: int, end: int) -> torch.Tensor:
            return F.cross_entropy(
                resize_rows(logits, size, start, end).transpose(1, 2),
                target[:, start:end],
                weight,
                ignore_index=self.ignore_index,
                reduction="none" if self.reduction == "none" else "sum",
                label_smoothing=self.label_smoothing,
            )

        if self.reduction == "none":
            return loss_of(logits, 0, size[0])
        bands = pairwise(band_edges(logits, size))
        losses = [checkpoint(loss_of, logits, *band, use_reentrant=False, preserve_rng_state=False) for band in bands]
        return torch.stack(losses).sum()

    def extra_repr(self) -> str:
        """Arguments that `repr` shows."""
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"
