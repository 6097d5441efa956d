"""Group normalization of channels_last features on CUDA, where torch's copies to NCHW and returns NCHW."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .. import kernels


def applies(x: torch.Tensor) -> bool:
    """Whether :func:`group_norm` is for features (B, C, H, W)."""
    return kernels.ENABLED and x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)


def group_norm(
    x: torch.Tensor, num_groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float, training: bool
) -> torch.Tensor:
    """Normalize groups of channels in few passes over the features, in float32 or wider.

    Args:
        x: Features of shape (B, C, H, W), in channels_last.
        num_groups: Number of groups.
        weight: Scale of each channel, shape (C,).
        bias: Shift of each channel, shape (C,).
        eps: Added to the variance.
        training: Use a gradient in few passes, which can be differentiated once, and not by `torch.func`.

    Returns:
        Features of the same shape, dtype and memory format.
    """
    rows = x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (num_groups, -1))  # (B, H·W, groups, channels)
    weight, bias = weight.view(num_groups, -1), bias.view(num_groups, -1)
    with torch.autocast(x.device.type, enabled=False):
        # graphs that are traced or exported, and evaluation, use plain operators
        if training and not (torch.jit.is_tracing() or torch.compiler.is_exporting()):
            rows = _NormalizeGroups.apply(rows, weight, bias, eps)
        else:
            rows = _normalize_groups(rows, weight, bias, eps)[0]
    return rows.flatten(2).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _addcmul_as(like: torch.Tensor, x: torch.Tensor, factor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Compute x + factor * other in the dtype of `like`, in one pass if nothing traces or differentiates it."""
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return torch.addcmul(x, factor, other).to(like.dtype)
    return torch.addcmul(x, factor, other, out=torch.empty_like(like))


def _normalize_groups(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalize rows (B, N, groups, channels) in float32 or wider, to the input's dtype; also mean, 1 / deviation."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, (1, 3), correction=0, keepdim=True)
    rstd = (var + eps).rsqrt()
    return _addcmul_as(x, bias - mean * rstd * weight, x, rstd * weight), mean, rstd


class _NormalizeGroups(torch.autograd.Function):
    """`_normalize_groups` with a gradient in few passes over the features."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        normalized, mean, rstd = _normalize_groups(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return normalized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        total = gradient.sum(1, keepdim=True, dtype=mean.dtype)  # (B, 1, groups, channels)
        product = (gradient.to(mean.dtype) * x).sum(1, keepdim=True)
        of_weight = (product - mean * total) * rstd  # of each image
        size = x.shape[1] * x.shape[3]
        # x̂ = (x - mean)·rstd; dx = rstd·(w·dy - mean(w·dy) - x̂·mean(w·dy·x̂)), with means over a group
        slope = (of_weight * weight).sum(3, keepdim=True) / size * rstd
        offset = (total * weight).sum(3, keepdim=True) / size - slope * mean
        of_x = torch.addcmul(-offset * rstd, gradient, rstd * weight)
        of_x = _addcmul_as(x, of_x, x, -slope * rstd)
        return of_x, of_weight.sum((0, 1)), total.sum((0, 1)), None
