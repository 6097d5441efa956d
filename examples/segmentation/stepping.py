"""Parts of a training step: its rate, its casts, its update, which never waits for the GPU, and when to stop."""

import math
import signal
import time
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from segnext_timm.models.mscan import MSCANBlock

from .hooks import load_function
from .recipe import Compile, SettingsError, TrainSettings

PAUSE = 3.0  # seconds after which several processes ask each other again


def lr_at(iteration: int, settings: TrainSettings) -> float:
    """Compute the encoder's learning rate at an iteration: linear warm-up from factor 1e-6, then the schedule."""
    if iteration < settings.warmup:
        share = iteration / max(settings.warmup - 1, 1)
        return settings.lr * (1e-6 + (1 - 1e-6) * share)
    left = max(1 - (iteration - settings.warmup) / max(settings.iterations - settings.warmup - 1, 1), 0.0)
    if settings.schedule == "poly":
        return settings.lr * left**settings.poly_power
    if settings.schedule == "cosine":
        return settings.lr * (1 - math.cos(math.pi * left)) / 2
    return settings.lr * load_function("schedule", settings.schedule)(iteration, settings.iterations)


def check_schedule(settings: TrainSettings) -> None:
    """Compute all factors of a user's own schedule before the run begins.

    Raises:
        SettingsError: If there is no such schedule, or its function returns no number, or one below 0.
    """
    name = settings.schedule
    if name in ("poly", "cosine"):
        return
    if ":" not in name:
        raise SettingsError(f"--schedule {name}: choose from poly, cosine, or name your own as module:function.")
    own = load_function("schedule", name)
    for iteration in range(settings.warmup, settings.iterations):
        factor = own(iteration, settings.iterations)
        if not (isinstance(factor, Real) and 0 <= factor < math.inf):
            got = f"--schedule {name} returned {factor} at iteration {iteration}"
            raise SettingsError(f"{got}: return a number, 0 or more.")


class _CastAll(torch.autograd.Function):
    """Cast tensors in float32, and their gradients back, by one operator each way."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)  # parameters that were not used get no gradient
        return _cast_all(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        casts = iter(_cast_all([gradient for gradient in gradients if gradient is not None], torch.float32))
        return None, *(None if gradient is None else next(casts) for gradient in gradients)


def _cast_all(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    casts = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    if casts:
        torch._foreach_copy_(casts, tensors)
    return casts


class GroupedCasts(nn.Module):
    """A model to be trained under autocast, with the parameters of its convolutions and linear layers cast at once.

    Autocast casts them one by one, and their gradients back, to the same numbers: by 700 more operators in a step of
    SegNeXt-T. The price is that DistributedDataParallel gets all of these gradients at the end of the backward pass,
    and cannot send some while others are computed.

    Args:
        model: The model, whose parameters this shares.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
        self.trained = {
            f"{name}.{own}": parameter
            for name, layer in layers.items()
            for own, parameter in layer.named_parameters(recurse=False)
            if parameter.requires_grad
        }

    def forward(self, images: torch.Tensor) -> Any:
        """Compute what the model computes."""
        casts = _CastAll.apply(torch.get_autocast_dtype(images.device.type), *self.trained.values())
        return functional_call(self.model, dict(zip(self.trained, casts)), images, tie_weights=False)


class BatchCopier:
    """Copies batches to a device: to a GPU beside the computation, by a stream of its own.

    The host does not wait for the GPU, and asks for a batch while the step before is still computed.

    Args:
        device: Where batches are copied to; to a GPU, from pinned memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        if self.stream is None:
            return [tensor.to(self.device) for tensor in batch]
        with torch.cuda.stream(self.stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in batch]
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for tensor in copies:
            tensor.record_stream(computing)  # the next copies do not get its memory before the step is done with it
        return copies


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


def stops_early(mious: Sequence[tuple[int, float]], patience: int | None) -> bool:
    """Whether none of the last `patience` evaluations has a better mIoU than all before them.

    Args:
        mious: Iteration and mIoU of each evaluation.
        patience: Number of evaluations; None never stops.
    """
    scores = [miou for _, miou in mious]
    return patience is not None and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


class Stopping:
    """Notes Ctrl-C and SIGTERM from now on; a second Ctrl-C interrupts at once.

    Args:
        accelerator: The processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.signals: list[int] = []
        self.pause = self.left = 1  # iterations between two exchanges, and until the next one
        self.clock = time.monotonic()  # of the last exchange
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def is_agreed(self) -> bool:
        """Whether to stop after this iteration; call it once in each.

        An exchange in every iteration would wait for the GPU. Several processes ask each other about every `PAUSE`
        seconds, and since that has to be in the same iteration, the first one's clock says after how many.
        """
        if self.accelerator.num_processes == 1:
            return bool(self.signals)
        self.left -= 1
        if self.left:
            return False
        now = time.monotonic()
        fitting = max(int(self.pause * PAUSE / max(now - self.clock, 1e-3)), 1)
        own = [float(bool(self.signals)), fitting if self.accelerator.is_main_process else 0.0]
        total = self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device), "sum")
        signaled, pause = total.tolist()
        self.pause = self.left = int(pause)
        self.clock = now
        return signaled > 0
