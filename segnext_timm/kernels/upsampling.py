"""Argmax and cross-entropy of resized logits: by bands of rows on a CPU, by Triton on CUDA."""

from collections.abc import Sequence
from typing import Any

import torch

from .. import kernels
from ..models.resizing import check_sizes
from . import bands

_MAX_CLASSES = 1024  # limit of the Triton kernels, which hold all classes of some pixels in registers


def applies(logits: torch.Tensor) -> bool:
    """Whether :func:`argmax` and :func:`cross_entropy` take logits (B, classes, h, w)."""
    if not kernels.ENABLED or not logits.is_cuda:
        return kernels.ENABLED and logits.device.type == "cpu"
    fits = logits.dtype != torch.float64 and logits.shape[1] <= _MAX_CLASSES
    return fits and kernels.triton_runs(logits.device, "cells")


def _kernels(logits: torch.Tensor) -> Any:
    if not logits.is_cuda:
        return bands
    from . import cells

    return cells


# Custom operators, so that torch.compile sees their shapes, and does not trace bands and launches
@torch.library.custom_op("segnext_timm::upsampled_argmax", mutates_args=())
def argmax(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Compute labels (B, *size), int64: the largest channel of resized logits (B, classes, h, w)."""
    return _kernels(logits).argmax(logits, size)


@argmax.register_fake
def _new_labels(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return logits.new_empty((logits.shape[0], *size), dtype=torch.long)


@torch.library.custom_op("segnext_timm::upsampled_cross_entropy", mutates_args=())
def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    smoothing: float,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cross-entropy of resized logits, summed over the pixels; it can be differentiated once.

    Args:
        logits: Shape (B, classes, h, w), of an integer fraction of the labels' size.
        target: Labels of shape (B, H, W), int64.
        weight: Weight of each class, shape (classes,); None for equal weights.
        ignore_index: Label of pixels to ignore.
        smoothing: Label smoothing.
        needs_gradient: Compute the gradient too.

    Returns:
        The loss, a scalar, and its gradient (B, h, w, classes), or (0,) without one; both in float32 or wider.
    """
    check_sizes(logits, target)  # where torch.compile did not
    with torch.autocast(logits.device.type, enabled=False):
        loss, gradient = _kernels(logits).cross_entropy(logits, target, weight, ignore_index, smoothing, needs_gradient)
    return loss, loss.new_empty(0) if gradient is None else gradient


@cross_entropy.register_fake
def _new_loss_and_gradient(logits: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loss = logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, loss.new_empty(logits.permute(0, 2, 3, 1).shape if others[-1] else 0)


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _scale_gradient(
    ctx: Any, grad_loss: torch.Tensor, grad_gradient: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    if grad_gradient is not None:
        raise RuntimeError(
            "UpsampledCrossEntropyLoss can be differentiated once, and this differentiates its gradient. Use "
            "CrossEntropyLoss on resized logits."
        )
    (gradient,) = ctx.saved_tensors
    return (gradient.permute(0, 3, 1, 2) * grad_loss).to(ctx.dtype), None, None, None, None, None


cross_entropy.register_autograd(_scale_gradient, setup_context=_save_gradient)
