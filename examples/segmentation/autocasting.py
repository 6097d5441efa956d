"""Less work under autocast in training.

Autocast casts each weight and bias of a convolution by itself, and each gradient back: 700 small kernels in SegNeXt-T's
step, which takes longer to launch than to run with small batches. Layer scales keep the residual features in float32;
batch norms would read and write them in float32 as well, and layer scale, drop path and addition would pass over them
three times.
"""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn as nn
from timm.layers import DropPath
from torch.utils._pytree import tree_leaves

from segnext_timm.models.mscan import MSCANBlock


class _CastAll(torch.autograd.Function):
    """Cast tensors, and their gradients back, by one operator each."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        ctx.set_materialize_grads(False)  # parameters that were not used get no gradient
        return _cast_all(tensors, [dtype] * len(tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        present = [(gradient, dtype) for gradient, dtype in zip(gradients, ctx.dtypes) if gradient is not None]
        casts = iter(_cast_all(*zip(*present)) if present else ())
        return None, *(None if gradient is None else next(casts) for gradient in gradients)


def _cast_all(tensors: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]) -> tuple[torch.Tensor, ...]:
    casts = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes)]
    torch._foreach_copy_(casts, list(tensors))
    return tuple(casts)


def _casts(module: nn.Module, x: torch.Tensor) -> bool:
    return module.training and torch.is_autocast_enabled(x.device.type)


def _convolutions(group: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    layers = (layer for layer in group.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return [(layer, name, p) for layer in layers for name, p in layer._parameters.items() if p is not None]


def _cast_parameters(group: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Forward pre-hook: hide the parameters of a group's convolutions behind casts of them."""
    first = next((x for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)), None)
    if first is None or not _casts(group, first):
        return
    places = _convolutions(group)
    casts = _CastAll.apply(torch.get_autocast_dtype(first.device.type), *(p for _, _, p in places))
    for (layer, name, _), cast in zip(places, casts):
        layer.__dict__[name] = cast  # found before the parameter, which stays where it is


def _uncover_parameters(group: nn.Module, inputs: Any, output: Any) -> None:
    """Forward hook: remove the casts."""
    for layer, name, _ in _convolutions(group):
        layer.__dict__.pop(name, None)


def _cast_input(norm: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    """Forward pre-hook of a batch norm: cast its input to bfloat16, whose range is that of float32."""
    (x,) = inputs
    if not _casts(norm, x) or torch.get_autocast_dtype(x.device.type) != torch.bfloat16:
        return None
    return (x.to(torch.bfloat16),)


class _ScaledAdd(torch.autograd.Function):
    """x + scale * y in one pass, for x and scale in float32 and y in half precision."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(y, scale)
        with torch.autocast(x.device.type, enabled=False):  # which would cast y first
            return torch.addcmul(x, y, scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y, scale = ctx.saved_tensors
        of_scale = (gradient * y).sum_to_size(scale.shape)
        return gradient, torch.mul(gradient, scale, out=torch.empty_like(y)), of_scale


def _add_branch(x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor, drop_path: nn.Module) -> torch.Tensor:
    """`x + drop_path(scale * branch)`, for `scale` of shape (C,)."""
    scale = scale.view(1, -1, 1, 1)
    if isinstance(drop_path, DropPath) and drop_path.drop_prob:
        keep = 1 - drop_path.drop_prob
        kept = scale.new_empty((len(x), 1, 1, 1)).bernoulli_(keep)
        scale = scale * (kept.div_(keep) if drop_path.scale_by_keep else kept)
    return _ScaledAdd.apply(x, branch, scale)


def _forward_block(block: MSCANBlock, x: torch.Tensor) -> torch.Tensor:
    """Forward pass of a block, with one pass over the residual features for each branch under autocast."""
    if not _casts(block, x):
        return MSCANBlock.forward(block, x)
    x = _add_branch(x.float(), block.attn(block.norm1(x)), block.ls1.gamma, block.drop_path1)
    return _add_branch(x, block.mlp(block.norm2(x)), block.ls2.gamma, block.drop_path2)


def slow_precision(device: torch.device, precision: str) -> str | None:
    """Warn, in one line, if a device may compute slower in `precision`, "bf16" or "fp16", than in float32."""
    if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "This GPU has no bf16 arithmetic, which it emulates slowly: use fp16."
    if device.type == "cpu" and precision != "fp32":
        return f"On most CPUs, {precision} is about ten times slower than fp32."
    return None


def reduce_casts(model: nn.Module) -> None:
    """Let a segmentation model, in training under autocast, cast its parameters group by group.

    A group is a child of the encoder, the decoder or a head: DistributedDataParallel can still send gradients of one
    group while those of another are computed. Under bfloat16, batch norms get their input in bfloat16; their
    statistics and parameters stay in float32, as do the residual features. The gradients are the same up to rounding.

    Args:
        model: Model of smp, its batch norms already synchronized if they are to be. Its modules get hooks, which do
            nothing in evaluation or without autocast.
    """
    encoder: Any = model.encoder
    groups = [*getattr(encoder, "model", encoder).children(), *(m for m in model.children() if m is not encoder)]
    for group in groups:
        if _convolutions(group):
            group.register_forward_pre_hook(_cast_parameters)
            group.register_forward_hook(_uncover_parameters, always_call=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            module.register_forward_pre_hook(_cast_input)
        if isinstance(module, MSCANBlock):
            module.forward = MethodType(_forward_block, module)
