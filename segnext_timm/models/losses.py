"""Argmax and cross-entropy of upsampled logits, without full-resolution logits.

A segmenter computes logits at a fraction of the image's size and resizes them. For 150 classes at 1024×2048 pixels, the
resized logits take 1.3 GB in float32, and as much time as a small network. This module has the plain forms of argmax
and cross-entropy; :mod:`segnext_timm.kernels.upsampling` has faster ones, which hold only a few rows of the resized
logits at a time.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import OptionError
from ..kernels import upsampling
from .resizing import check_sizes, resize, widen


def resized_argmax(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Labels (B, *size), int64, of logits (B, classes, h, w): `interpolate(logits, size, mode="bilinear").argmax(1)`.

    Ties, up to rounding, are broken arbitrarily.
    """
    if upsampling.applies(logits):
        return upsampling.argmax(logits, size)
    # one image at a time, to save memory; max is faster than argmax
    return torch.cat([resize(widen(image), list(size)).max(1).indices for image in logits.split(1)])


class UpsampledCrossEntropyLoss(nn.Module):
    """Cross-entropy of logits resized to the labels' size, without holding the resized logits.

    Equals `CrossEntropyLoss(...)(interpolate(logits, labels.shape[1:], mode="bilinear"), labels)` and its gradient, in
    a fraction of the time and memory. Use it with `SegNeXt(upsampling=1)`, whose output has an eighth of the image's
    size; logits of the labels' own size work too. The loss is computed in float32, even under autocast or after
    `half()`: by bands of rows on a CPU, by a Triton kernel on CUDA, else by torch on resized logits. The first two are
    one operator, `segnext_timm::upsampled_cross_entropy`, and can be differentiated once.

    Args:
        weight: Weight of each class, shape (classes,); None for equal weights.
        ignore_index: Label of pixels to ignore.
        reduction: "mean" over the pixels not ignored, by weight; "sum"; or "none", which holds the resized logits.
        label_smoothing: Fraction of the target that is distributed evenly over all classes, from 0 to 1.

    Raises:
        OptionError: If `reduction` or `label_smoothing` is out of its range.
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
            raise OptionError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if not 0.0 <= label_smoothing <= 1.0:
            raise OptionError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss, a scalar, or of shape (B, H, W) with `reduction="none"`.

        Args:
            logits: Shape (B, classes, h, w), at an integer fraction of the labels' size, rounded up or down.
            target: Labels of shape (B, H, W), of any integer type.

        Raises:
            OptionError: If the shapes do not fit, or the labels are not integers.
        """
        if target.dtype.is_floating_point or target.dtype.is_complex:
            raise OptionError(
                f"Labels must be integers, one class a pixel, got {target.dtype}. Convert class numbers by "
                "`target.long()`, and maps of one probability a class by `target.argmax(1)`."
            )
        if target.ndim != 3 or logits.ndim != 4 or target.shape[0] != logits.shape[0]:
            raise OptionError(
                f"Logits (B, classes, h, w) need labels (B, H, W), got logits {tuple(logits.shape)} and labels "
                f"{tuple(target.shape)}. Use `target.squeeze(1)` for labels with a channel."
            )
        if self.weight is not None and self.weight.numel() != logits.shape[1]:
            raise OptionError(f"There are {self.weight.numel()} class weights for logits of {logits.shape[1]} classes.")
        target = target.long()
        # wide also in a criterion cast to half precision, where the sum of the pixels' weights would overflow
        wide = torch.promote_types(logits.dtype, torch.float32)
        weight = None if self.weight is None else self.weight.to(logits.device, wide)
        # the check reads sizes in Python: torch.compile would recompile for each size
        if not torch.compiler.is_compiling():
            check_sizes(logits, target)
        if self.reduction == "none":
            return self._compute_plainly(logits, target, weight)
        if upsampling.applies(logits):
            needs_gradient = logits.requires_grad and torch.is_grad_enabled()
            loss, _ = upsampling.cross_entropy(
                logits, target, weight, self.ignore_index, self.label_smoothing, needs_gradient
            )
        else:  # the backward pass computes the maps again
            loss = checkpoint(self._compute_plainly, logits, target, weight, use_reentrant=False)
        if self.reduction == "sum":
            return loss
        counts = target != self.ignore_index  # sums, since a boolean index would wait for a GPU
        total = counts.sum() if weight is None else (weight[target.where(counts, 0)] * counts).sum()
        # NaN if every pixel is ignored, as in F.cross_entropy; the gradient is then 0
        return torch.where(total > 0, loss, torch.nan) / total.where(total > 0, 1)

    def _compute_plainly(self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return F.cross_entropy(
            resize(widen(logits), [target.shape[1], target.shape[2]]),
            target,
            weight,
            ignore_index=self.ignore_index,
            reduction="none" if self.reduction == "none" else "sum",
            label_smoothing=self.label_smoothing,
        )
