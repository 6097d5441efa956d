"""Fuse models for inference: fold batch norms and layer scales into adjacent convolutions."""

import copy
from typing import Any

import torch
import torch.nn as nn
from timm.utils import reparameterize_model


def affine_of(norm: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift of each channel that a norm applies in evaluation.

    Returns:
        Two tensors of shape (C,), in float32 or float64; None for a norm that depends on the input's statistics, such
        as LayerNorm, or that contains an activation.
    """
    if getattr(norm, "running_mean", None) is None or hasattr(norm, "act"):
        return None
    mean, var = _widen(norm.running_mean), _widen(norm.running_var)
    scale = (var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale
    return scale.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def fold_before(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> nn.Conv2d:
    """Create the convolution that maps x to conv(scale·x + shift). 1×1 only, because padding is not shifted."""
    assert conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    weight = _widen(conv.weight)
    return _replaced(conv, weight * scale[:, None, None], (weight[:, :, 0, 0] @ shift) + _bias(conv))


def fold_after(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor | float = 0.0) -> nn.Conv2d:
    """Create the convolution that maps x to scale·conv(x) + shift."""
    return _replaced(conv, _widen(conv.weight) * scale[:, None, None, None], _bias(conv) * scale + shift)


def is_fused(model: nn.Module) -> bool:
    """Whether a part of the model is fused, so that no other model can load its weights.

    Detects models fused by :func:`segnext_timm.fuse`, and by timm's `reparameterize_model` if they are MSCAN or have
    blocks with a `reparam_conv` (RepVGG, MobileOne, FastViT and others).
    """
    return any(
        getattr(module, "fused_for_inference", False) is True or getattr(module, "reparam_conv", None) is not None
        for module in model.modules()
    )


def check_not_fused(model: nn.Module) -> None:
    """Raise a ValueError if the model was fused, before it is saved or pushed."""
    if is_fused(model):
        raise ValueError(
            "A fused model cannot be saved or pushed, because no other model can load its weights. Save the model "
            "before fusing, and fuse it after loading; or export it."
        )


def _widen(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _bias(conv: nn.Conv2d) -> torch.Tensor | float:
    return 0.0 if conv.bias is None else _widen(conv.bias)


def _replaced(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """Copy a convolution, with other weights."""
    new, requires_grad = copy.deepcopy(conv), conv.weight.requires_grad
    new.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=requires_grad)
    new.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=requires_grad)
    return new


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Fuse a model for inference: the same outputs, up to rounding, in less time and memory.

    Folds batch norms and layer scales of MSCAN, alone or as an encoder, into adjacent convolutions, and reparameterizes
    other timm encoders that support it. LayerNorm and GroupNorm stay, because they depend on the input. Same as
    `timm.utils.reparameterize_model`.

    Args:
        model: Any model in evaluation mode, such as MSCAN, its `features_only` form, or SegNeXt.
        inplace: Change the model itself instead of a copy.

    Returns:
        The fused model. It can be cast, scripted, compiled and exported, but not saved for others to load. An already
        fused model is not changed.

    Raises:
        ValueError: If the model is in training mode, where norms depend on the batch.
    """
    if model.training:
        raise ValueError("A model in training mode cannot be fused: its norms depend on the batch. Call model.eval().")
    if is_fused(model):
        return model if inplace else copy.deepcopy(model)
    names = model.state_dict().keys()
    fused: Any = reparameterize_model(model, inplace=inplace)
    fused.fused_for_inference = fused.state_dict().keys() != names  # the only trace in some encoders
    return fused
