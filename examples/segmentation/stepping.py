"""Parts of a training step that never wait for the GPU."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn as nn
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast
from torch.nn.modules.batchnorm import _NormBase

from segnext_timm.models.mscan import MSCANBlock

from .recipe import Compile


class RunningStatistics:
    """Running statistics of a model's batch norms, saved and restored together by few operators."""

    def __init__(self, model: nn.Module) -> None:
        self.groups: dict[torch.dtype, list[torch.Tensor]] = {}
        for module in model.modules():
            for buffer in module.buffers(recurse=False) if isinstance(module, _NormBase) else ():
                self.groups.setdefault(buffer.dtype, []).append(buffer)
        self.saved: dict[torch.dtype, torch.Tensor] = {}

    def _joined(self) -> dict[torch.dtype, torch.Tensor]:
        return {dtype: torch.cat([b.flatten() for b in buffers]) for dtype, buffers in self.groups.items()}

    def _set(self, joined: dict[torch.dtype, torch.Tensor]) -> None:
        for dtype, buffers in self.groups.items():
            parts = joined[dtype].split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers)])

    def save(self) -> None:
        """Remember the statistics."""
        self.saved = self._joined()

    def restore_unless(self, finite: torch.Tensor) -> None:
        """Go back to the remembered statistics unless `finite`, a boolean scalar on their device, is true."""
        self._set({dtype: torch.where(finite, now, self.saved[dtype]) for dtype, now in self._joined().items()})

    def broadcast(self) -> None:
        """Give all processes the statistics of the first one."""
        self._set({dtype: broadcast(joined) for dtype, joined in self._joined().items()})


def prefers_fused(device: torch.device) -> bool:
    """Whether the optimizer's update is one kernel there, which can also skip the update without a wait."""
    return device.type == "cuda"


def step_if(finite: torch.Tensor, optimizer: AcceleratedOptimizer) -> bool:
    """Update the weights if `finite`, a boolean scalar on their device, is true.

    A fused optimizer reads `found_inf` on the device, the mechanism of torch's gradient scaler. For others, this waits.

    Returns:
        Whether the weights were updated; True if only the device knows.
    """
    if optimizer.defaults.get("fused"):
        optimizer.optimizer.found_inf = (~finite).float()
    elif not finite:
        return False
    optimizer.step()
    return True


def gradient_norm(parameters: Iterable[nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Compute the norm of the gradient, and clip the gradient if `max_norm` is given."""
    parameters = list(parameters)
    if max_norm:
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def compile_model(model: Any, how: Compile, **options: Any) -> None:
    """Compile a segmentation model in place.

    Args:
        model: Model of smp.
        how: "blocks" compiles attention and MLP of each block of MSCAN, whose few distinct graphs are shared by blocks
            of equal shape, or another encoder as a whole. "model" compiles the model; "graphs" also captures CUDA
            graphs, which removes the time to launch kernels.
        options: Other options of torch.compile.
    """
    if how == "model":
        model.compile(**options)
    elif how == "graphs":
        model.compile(mode="reduce-overhead", **options)
    elif how == "blocks":
        blocks = [module for module in model.encoder.modules() if isinstance(module, MSCANBlock)]
        for part in [part for block in blocks for part in (block.attn, block.mlp)] or [model.encoder]:
            part.compile(**options)
