"""Estimate the memory of a training step before the first one, on any device, without computing it."""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch
import torch.nn as nn
from timm.layers import BatchNormAct2d
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .losses import build_loss
from .models import first_layer
from .recipe import TrainSettings

LossFunction = Callable[[Any, torch.Tensor], torch.Tensor]  # the model's output and labels (B, H, W) to a scalar

# Peak on an H200 (torch 2.11, 16 images of 512², bf16) over what was counted of the step of that time: 4892 MiB of 4555
# for SegNeXt-T, 11930 of 11096 for B
MARGIN = 1.075

SIZED_BY_DATA = ("focal", "lovasz")  # losses whose tensors have sizes that depend on the labels

LESS_MEMORY = (
    "try a higher --accumulate, --grad_checkpointing, --one_step_gradient, --precision bf16, or a smaller --crop_size"
)


class _Tally(TorchDispatchMode):
    """Counts the bytes of the tensors that exist, each storage once: now, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.counted: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.counted:
            self.counted.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.now -= size


def estimate_step(model: nn.Module, loss_fn: LossFunction, settings: TrainSettings, processes: int = 1) -> int:
    """Estimate the bytes that a process needs for a training step.

    Forward and backward pass run on tensors without data, whose sizes are counted: weights, gradients, what is kept for
    the backward pass, and temporary tensors. The optimizer's moments and the moving average are added, and `MARGIN` for
    memory within operators.

    Args:
        model: The model to train; it stays as it is, and so do the random numbers.
        loss_fn: Its loss.
        settings: Batch, crop, precision and the moving average.
        processes: Number of processes that share the batch.
    """
    size = settings.batch_size // (processes * settings.accumulate)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    dtype = torch.float16 if settings.precision == "fp16" else torch.bfloat16
    channels = model.get_parameter(first_layer(model)).shape[1]
    with FakeTensorMode(allow_non_fake_inputs=True), _Tally() as tally:
        model, loss_fn = _copy_without_data(model, loss_fn)
        weights = tally.now
        model.train()
        if settings.freeze_encoder:
            model.encoder.eval()
        images = torch.empty(size, channels, settings.crop_size, settings.crop_size).to(memory_format=layout)
        labels = torch.zeros(size, settings.crop_size, settings.crop_size, dtype=torch.long)
        with torch.autocast("cpu", dtype, enabled=settings.precision != "fp32"):
            loss = loss_fn(model(images), labels)
        loss.backward()
        trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    kept_gradients = trained * (settings.accumulate > 1 or processes > 1)
    counted = tally.peak + 2 * trained + kept_gradients + weights * (settings.ema_decay is not None)
    return round(MARGIN * counted)


def _copy_without_data(*parts: Any) -> Any:
    """Copy modules with tensors on the CPU that have no data; call it in a FakeTensorMode."""
    copies: dict[int, Any] = {}
    for module in (part for part in parts if isinstance(part, nn.Module)):
        for tensor in (*module.parameters(), *module.buffers()):
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    copied = copy.deepcopy(parts, copies)
    for module in (m for part in copied if isinstance(part, nn.Module) for m in part.modules()):
        if isinstance(module, nn.SyncBatchNorm):  # it would ask the other processes for their statistics
            module.__class__ = BatchNormAct2d if hasattr(module, "act") else nn.BatchNorm2d
    return copied


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a training on a device may use; None if that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available if device.type == "cpu" else None


def memory_lines(
    model: nn.Module, loss_fn: LossFunction, settings: TrainSettings, device: torch.device, processes: int = 1
) -> list[str]:
    """State the estimate of :func:`estimate_step` and the free memory of the device, with a warning if it is less.

    For losses whose sizes depend on the labels, it is that of `ce+dice`, which needs about as much. On CPUs, the
    processes share the memory.
    """
    if settings.loss in SIZED_BY_DATA:
        loss_fn = build_loss(replace(settings, loss="ce+dice"), ignore_index=255)
    try:
        needed = estimate_step(model, loss_fn, settings, processes)
    except Exception as error:  # a model or a loss whose sizes depend on data; the training itself may work
        return [f"Memory: not estimated, since model or loss do not run without data ({type(error).__name__})."]
    free, each = free_bytes(device), " for each process" if processes > 1 else ""
    if free is not None and device.type == "cpu":
        free //= processes
    known = "" if free is None else f" of {free / 1e9:.1f} GB free"
    lines = [f"Memory: about {max(needed / 1e9, 0.1):.1f} GB (estimated){known}{each}."]
    if free is not None and needed > free:
        lines.append(f"Warning: the memory may not suffice: {LESS_MEMORY}.")
    return lines
