"""Times, and what bounds them: operations, traffic, and the machine's peak rates."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from segnext_timm import fuse

from .cases import Case, layout, prepare_training
from .peers import build, labels_of, logits_of

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm")
CEILING_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices multiplied; sixteen such are copied


class TrafficMode(TorchDispatchMode):
    """Count the bytes of the tensors that operations read and write, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, output))
            self.bytes += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
        return output


def count(case: Case) -> tuple[float, float]:
    """Count a case's GFLOPs, and the gigabytes that eager torch's operations read and write.

    A training step counts as three forward passes: recomputation is not counted.
    """
    case = Case(**{**asdict(case), "device": "cpu"})
    model, images = build(case.model, case.classes), case.images()
    if case.task != "train" and case.way != "eager":
        model, images = layout(model if case.way == "channels_last" else fuse(model), images)
    call = torch.no_grad()((labels_of if case.task == "labels" else logits_of)(model))
    with TrafficMode() as traffic, FlopCounterMode(display=False) as flops:
        call(images)
    if case.task != "train":
        return flops.get_total_flops() / 1e9, traffic.bytes / 1e9
    once = prepare_training(case, model, images)
    with TrafficMode() as traffic:
        once()
    return 3 * flops.get_total_flops() / 1e9, traffic.bytes / 1e9


def ceilings(device: str) -> tuple[float, float]:
    """Measure GFLOP/s of a large float32 matrix product, and GB/s read and written by a large copy."""
    side = CEILING_SIDE[device.split(":")[0]]
    a = torch.randn(side, side, device=device)
    copied = torch.empty(16 * side**2, device=device)
    source = torch.zeros_like(copied)
    products = [clock(lambda: a @ a, device) for _ in range(8)]
    copies = [clock(lambda: copied.copy_(source), device) for _ in range(8)]
    return 2 * side**3 / min(products) / 1e6, 2 * copied.nbytes / min(copies) / 1e6


def clock(call: Callable[[], Any], device: str) -> float:
    """Time one call, in milliseconds."""
    if "cuda" not in device:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def machine(device: str, ceiling: tuple[float, float]) -> dict[str, Any]:
    """Describe the machine: device, threads, torch, measured peak rates."""
    features: list[str] = []
    if "cuda" in device:
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
        flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
        features = [feature for feature in CPU_FEATURES if feature in flags]
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "features": " ".join(features) or "unknown",
        "torch": torch.__version__,
        "matmul_gflops": round(ceiling[0], 1),
        "copy_gigabytes_per_s": round(ceiling[1], 1),
    }
