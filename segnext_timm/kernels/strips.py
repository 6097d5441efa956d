"""The three pairs of strip convolutions of MSCA, added up, for CUDA and features in channels_last.

On an H200 in bfloat16, cuDNN takes 0.50 and 0.73 ms (forward, backward) for a 1×21 of 32 channels and a batch of 16 at
128², torch's own depthwise kernel in NCHW 0.15 and 0.51 ms. The Triton kernels have not run on a GPU: their compiled
instructions, at half the rate of issue, which the loss kernel reaches, take 0.1 and 0.3 ms for three strips. So Triton
comes first, and NCHW is for CUDA without it.
"""

from typing import Any

import torch
import torch.nn as nn

from .. import kernels

_TYPES = {nn.ModuleList, nn.Sequential, nn.Conv2d}
_KERNEL_SIZES = [(1, 7), (7, 1), (1, 11), (11, 1), (1, 21), (21, 1)]
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def applies(base: torch.Tensor, branches: nn.ModuleList) -> bool:
    """Whether :func:`add_branches` takes features (B, C, H, W) and MSCA's branches, if these are as they were built."""
    # torch.fx passes no tensor, graphs that leave this process hold no operators of this package, and torch.func
    # differentiates the plain form
    if not kernels.ENABLED or not isinstance(base, torch.Tensor) or not base.is_cuda or base.dtype == torch.float64:
        return False
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
        return False
    parts = list(branches.modules())
    if not base.is_contiguous(memory_format=torch.channels_last) or not all(
        type(part) in _TYPES and "forward" not in vars(part) and not any(getattr(part, hooks) for hooks in _HOOKS)
        for part in parts
    ):
        return False
    convs = [part for part in parts if isinstance(part, nn.Conv2d)]
    return [conv.kernel_size for conv in convs] == _KERNEL_SIZES and all(conv.bias is not None for conv in convs)


def add_branches(base: torch.Tensor, branches: Any) -> torch.Tensor:
    """Compute `base + sum(branch(base) for branch in branches)` of features (B, C, H, W), in channels_last."""
    if not kernels.triton_runs(base.device, "strips_triton"):
        return add_branches_in_nchw(base, branches)
    from .strips_triton import add_strips

    rows, columns = zip(*branches)
    parameters = [getattr(conv, name) for convs in (rows, columns) for name in ("weight", "bias") for conv in convs]
    # cast as autocast would, which does not see them
    return add_strips(base, [parameter.to(base.dtype) for parameter in parameters], rows[0].dilation[1])[0]


def add_branches_in_nchw(base: torch.Tensor, branches: Any) -> torch.Tensor:
    """See :func:`add_branches`; torch takes its own depthwise kernels if features and weights have strides of NCHW."""
    x = base.contiguous()
    total = x
    for branch in branches:
        y = x
        for conv in branch:
            y = conv._conv_forward(y, conv.weight.flatten(1).view(conv.weight.shape), conv.bias)
        total = total + y
    if total.requires_grad:
        total.register_hook(torch.Tensor.contiguous)  # once for all branches
    return total.contiguous(memory_format=torch.channels_last)
