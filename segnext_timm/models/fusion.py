"""Fuse models for inference: fold batch norms and layer scales into adjacent convolutions."""

import copy
from typing import Any

import torch
import torch.nn as nn
from timm.models import register_notrace_module
from timm.utils import reparameterize_model

from ..errors import OptionError
from ..kernels import bands
from .resizing import widen


def affine_of(norm: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift (C,) that a norm applies in evaluation; None if it depends on the input or has an activation."""
    if getattr(norm, "running_mean", None) is None or hasattr(norm, "act"):
        return None
    mean, var = widen(norm.running_mean), widen(norm.running_var)
    scale = (var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale
    return scale.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def _fold_before(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> nn.Conv2d:
    """Create the 1×1 convolution that maps x to conv(scale·x + shift)."""
    weight = widen(conv.weight)
    return _replaced(conv, weight * scale[:, None, None], (weight[:, :, 0, 0] @ shift) + _bias(conv))


def _fold_after(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor | float = 0.0) -> nn.Conv2d:
    """Create the convolution that maps x to scale·conv(x) + shift."""
    return _replaced(conv, widen(conv.weight) * scale[:, None, None, None], _bias(conv) * scale + shift)


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """Fold `norm` into `conv`. Returns the new convolution and Identity, or both unchanged if that is impossible."""
    affine = affine_of(norm)
    return (conv, norm) if affine is None else (_fold_after(conv, *affine), nn.Identity())


def _bias(conv: nn.Conv2d) -> torch.Tensor | float:
    return 0.0 if conv.bias is None else widen(conv.bias)


def _replaced(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """Copy a convolution, with other weights."""
    new, requires_grad = copy.deepcopy(conv), conv.weight.requires_grad
    new.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=requires_grad)
    new.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=requires_grad)
    return new


@register_notrace_module
class FusedMSCANBlock(nn.Module):
    """An MSCANBlock in evaluation, its norms and layer scales folded into its 1×1 convolutions.

    The attention's shortcut starts after the norm, so it adds γ·(s·x + t): γ·t becomes part of a bias, and γ·s is the
    buffer `shortcut`. `affine1` and `affine2` are scale and shift (C,) of the block's norms; the block stays as it is.
    """

    fused_for_inference = True
    shortcut: torch.Tensor

    def __init__(
        self, block: Any, affine1: tuple[torch.Tensor, torch.Tensor], affine2: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        super().__init__()
        attn, mlp = block.attn, block.mlp
        gamma1, gamma2 = block.ls1.gamma.detach(), block.ls2.gamma.detach()

        scale, shift = affine1
        self.proj_in = _fold_before(attn.proj_in, scale, shift)
        self.act = copy.deepcopy(attn.act)
        self.msca = copy.deepcopy(attn.msca)
        self.proj_out = _fold_after(attn.proj_out, gamma1, gamma1 * shift)
        # γ·s alone, since bfloat16 would round 1 + γ·s to few digits
        self.register_buffer("shortcut", (gamma1 * scale).to(gamma1.dtype)[:, None, None])

        self.mlp = copy.deepcopy(mlp)
        self.mlp.fc1 = _fold_before(mlp.fc1, *affine2)
        self.mlp.fc2 = _fold_after(mlp.fc2, gamma2)
        self.train(block.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, dim, H, W) to features of the same shape."""
        attn = self.proj_out(self.msca(self.act(self.proj_in(x))))
        if attn.dtype == torch.float16:
            attn = attn.clamp(-65504.0, 65504.0)  # as in the block that is not fused
        x = x + (attn + x * self.shortcut)
        if not torch.jit.is_scripting():  # noqa: SIM102  # TorchScript would compile the second condition of an `and`
            if bands.applies_to_mlp(x, self.mlp):
                return bands.add_mlp(x, self.mlp)
        return x + self.mlp(x)


def is_fused(model: nn.Module) -> bool:
    """Whether a part of the model is fused, by :func:`fuse` or timm, so that no other model can load its weights."""
    # reparam_conv is the mark of RepVGG, MobileOne, FastViT and others
    return any(
        getattr(module, "fused_for_inference", False) is True or getattr(module, "reparam_conv", None) is not None
        for module in model.modules()
    )


def check_not_fused(model: nn.Module) -> None:
    """Raise an OptionError if the model was fused, before it is saved or pushed."""
    if is_fused(model):
        raise OptionError(
            "A fused model cannot be saved or pushed, because no other model can load its weights. Save the model "
            "before fusing, and fuse it after loading; or export it."
        )


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Fuse a model for inference: the same outputs, up to rounding, in less time and memory.

    Folds batch norms and layer scales of MSCAN, alone or as an encoder, into adjacent convolutions, and reparameterizes
    other timm encoders that support it, as `timm.utils.reparameterize_model` does.

    Args:
        model: Any model in evaluation mode, such as MSCAN, its `features_only` form, or SegNeXt.
        inplace: Change the model itself instead of a copy.

    Returns:
        The fused model. It can be cast, scripted, compiled and exported, but not saved for others to load. An already
        fused model is not changed.

    Raises:
        OptionError: If a norm is in training mode, where it depends on the batch.
    """
    if any(module.training for module in model.modules() if hasattr(module, "running_mean")):
        raise OptionError("A model in training mode cannot be fused: its norms depend on the batch. Call model.eval().")
    if is_fused(model):
        return model if inplace else copy.deepcopy(model)
    names = model.state_dict().keys()
    fused: Any = reparameterize_model(model, inplace=inplace)
    fused.fused_for_inference = fused.state_dict().keys() != names  # the only trace in some encoders
    return fused
