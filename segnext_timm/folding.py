"""Folding of what is affine in evaluation into the convolution before or after it, exactly."""

import torch
import torch.nn as nn


def affine_of(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift of each channel that a normalisation comes to in evaluation.

    Returns:
        Two tensors of shape (C,), in float32 at least; None where there are none: for a norm of the input's own
        statistics, such as LayerNorm, or one with an activation inside.
    """
    if getattr(norm, "running_mean", None) is None or hasattr(norm, "act"):
        return None
    mean, var = _widen(norm.running_mean), _widen(norm.running_var)
    scale = (var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale
    return scale.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def fold_before(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """Let a convolution, in place, take x for scale·x + shift; it must be 1×1, since padding is not shifted."""
    assert conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    weight = _widen(conv.weight)
    _set(conv, weight * scale[:, None, None], (weight[:, :, 0, 0] @ shift) + _bias(conv))


def fold_after(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor | float = 0.0) -> None:
    """Let a convolution, in place, give scale·y + shift for y."""
    _set(conv, _widen(conv.weight) * scale[:, None, None, None], _bias(conv) * scale + shift)


def is_fused(model: nn.Module) -> bool:
    """Whether a part of the model has been fused, so that its weights fit no other model."""
    return any(getattr(module, "fused", False) for module in model.modules())


def _widen(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _bias(conv: nn.Conv2d) -> torch.Tensor | float:
    return 0.0 if conv.bias is None else _widen(conv.bias)


def _set(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    requires_grad = conv.weight.requires_grad
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=requires_grad)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=requires_grad)
