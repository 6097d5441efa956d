"""Sections on the machine itself: its peak rates, and its depthwise convolutions in both layouts."""

import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from harness import (
    DTYPES,
    LAYOUTS,
    Run,
    Section,
    free_memory,
    median_ms,
    precision,
    precisions,
    say,
    summary,
    usable_precisions,
)

# Machine


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("timm", "segmentation-models-pytorch", "accelerate", "transformers", "triton", "segnext-timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "from this folder" if name == "segnext-timm" else "not installed"
    return found


def driver() -> str:
    """Version of the GPU's driver."""
    if not shutil.which("nvidia-smi"):
        return "unknown: nvidia-smi is not installed"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return next(iter(done.stdout.strip().splitlines()), "unknown")


def gpu() -> dict[str, Any]:
    """Describe the GPU and what drives it."""
    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpus": torch.cuda.device_count(),
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{major}.{minor}",
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def cpu_name() -> str:
    from pathlib import Path

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def matmul_gflops(name: str, run: Run) -> float:
    """GFLOP/s of a large matrix product in a precision."""
    side = 8192 if run.cuda else 512 if run.small else 2048
    with precision(name):
        a = torch.randn(side, side, device=run.device).to(DTYPES[name])
        ms = median_ms(lambda: a @ a, run.device, warmup=2, budget=0.5, most=8)
    return 2 * side**3 / ms / 1e6


def copy_gb_per_s(run: Run) -> float:
    """GB/s read and written by a large copy."""
    size = 2**26 if not run.cuda else min(2**32, torch.cuda.mem_get_info()[0] // 8)  # bytes
    source = torch.zeros(size // 4, device=run.device)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), run.device, warmup=2, budget=0.5, most=8)
    return 2 * source.nbytes / ms / 1e6


def machine(run: Run, section: Section) -> None:
    """Describe the machine, and measure its peak rates."""
    section.facts.update(device=run.device.type, cpu=cpu_name(), cores=os.cpu_count(), threads=torch.get_num_threads())
    section.facts.update(gpu() if run.cuda else {})
    section.facts["versions"] = versions()
    rates = section.facts["matmul_gflops"] = {}
    for name in usable_precisions(run, section, tuple(DTYPES)):
        if not run.cuda and DTYPES[name] != torch.float32:
            section.skip(f"matrix products in {name}", "measured on GPUs only")
            continue
        rates[name] = matmul_gflops(name, run)
        section.add(rate="matmul", precision=name, gflops=rates[name])
        free_memory(run.device)
    section.facts["copy_gb_per_s"] = copy_gb_per_s(run)
    section.add(rate="copy", gb_per_s=section.facts["copy_gb_per_s"])
    free_memory(run.device)


# Depthwise convolutions


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution of MSCAN.

    Attributes:
        variant: Size of the model.
        stage: Number of the stage, from 1.
        kernel: Height and width.
        channels: Number of channels.
        side: Height and width of its input.
        count: How many of them the model has.
    """

    variant: str
    stage: int
    kernel: tuple[int, int]
    channels: int
    side: int
    count: int


KERNELS = ((5, 5), *((h, w) for k in (7, 11, 21) for h, w in ((1, k), (k, 1))))
NARROW = ((16, 24, 32, 48), (1, 1, 2, 1), (2, 2, 2, 2))  # channels, blocks, MLP ratios


def depthwise_of(variant: str, size: int) -> Iterator[Depthwise]:
    """Depthwise convolutions of a model for images of a size."""
    if variant == "narrow":
        dims, depths, ratios = NARROW
    else:
        from segnext_timm.variants import VARIANTS

        dims, depths, ratios = VARIANTS[variant].dims, VARIANTS[variant].depths, (8, 8, 4, 4)
    for stage, (dim, depth, ratio) in enumerate(zip(dims, depths, ratios), start=1):
        side = size // 2 ** (stage + 1)
        for kernel in KERNELS:
            yield Depthwise(variant, stage, kernel, dim, side, depth)
        yield Depthwise(variant, stage, (3, 3), dim * ratio, side, depth)


def forward_and_backward(
    case: Depthwise, batch: int, name: str, layout: str, device: torch.device
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Functions that run a convolution, and its gradients of input, weights and bias."""
    options: dict[str, Any] = {"device": device, "dtype": DTYPES[name]}
    x = torch.randn(batch, case.channels, case.side, case.side, **options).contiguous(memory_format=LAYOUTS[layout])
    weight = torch.randn(case.channels, 1, *case.kernel, **options).contiguous(memory_format=LAYOUTS[layout])
    bias, gradient = torch.randn(case.channels, **options), torch.randn_like(x)
    padding = [side // 2 for side in case.kernel]

    def forward() -> torch.Tensor:
        return torch.nn.functional.conv2d(x, weight, bias, 1, padding, 1, case.channels)

    def backward() -> tuple[torch.Tensor, ...]:
        shape = [1, 1], padding, [1, 1], False, [0, 0], case.channels, [True, True, True]
        return torch.ops.aten.convolution_backward(gradient, x, weight, [case.channels], *shape)

    return forward, backward


def depthwise(run: Run, section: Section) -> None:
    """Time each depthwise convolution forward and backward, in both layouts and each precision."""
    batch, size = (2, 64) if run.small else (16, 512)
    found = precisions(run.device)
    names = [name for name in usable_precisions(run, section, tuple(found)) if run.cuda or name == "fp32"]
    if not run.cuda:
        section.skip("bf16 and fp16", "measured on GPUs only")
    clock = {"budget": 0.02, "warmup": 1, "most": 3} if run.small else {"calls": 5, "budget": 0.02, "most": 5}
    for variant in run.variants:
        for name in names:
            for case in depthwise_of(variant, size):
                if run.left() < 1:
                    section.cut.append(f"{variant} in {name}, from stage {case.stage} on")
                    break
                section.rows.append(compared(case, batch, name, run, clock))
            free_memory(run.device)
            say(f"{variant} in {name} is done", indent=True)
    section.facts.update(batch=batch, image_size=size, totals=totals(section.rows, batch))


def compared(case: Depthwise, batch: int, name: str, run: Run, clock: dict[str, Any]) -> dict[str, Any]:
    """Measure one convolution in both layouts."""
    kernel = "×".join(map(str, case.kernel))
    row: dict[str, Any] = {"variant": case.variant, "stage": case.stage, "kernel": kernel, "channels": case.channels}
    row |= {"side": case.side, "count": case.count, "precision": name}
    try:
        with precision(name, benchmark=True), torch.no_grad():
            for layout in LAYOUTS:
                calls = forward_and_backward(case, batch, name, layout, run.device)
                for direction, call in zip(("forward", "backward"), calls):
                    row[f"{direction}_ms_{layout}"] = median_ms(call, run.device, **clock)
        both = {layout: sum(row[f"{d}_ms_{layout}"] for d in ("forward", "backward")) for layout in LAYOUTS}
        row["faster"] = min(both, key=both.get)
    except torch.OutOfMemoryError as error:
        row["error"] = summary(error)
    return row


def totals(rows: list[dict[str, Any]], batch: int) -> dict[str, dict[str, float]]:
    """Sum the times of all depthwise convolutions of a model, and count which layout is faster, by model and precision.

    The forward pass reads one map and writes one; the backward pass reads two and writes one. Models whose measurements
    are not complete are left out.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["variant"], row["precision"]), []).append(row)
    result = {}
    for (variant, name), group in groups.items():
        complete = len(group) == 4 * (len(KERNELS) + 1) and not any("error" in row for row in group)
        if complete:
            keys = [f"{d}_ms_{layout}" for d in ("forward", "backward") for layout in LAYOUTS]
            sums = {key: sum(row["count"] * row[key] for row in group) for key in keys}
            wins = Counter(row["faster"] for row in group)
            values = sum(row["count"] * batch * row["channels"] * row["side"] ** 2 for row in group)
            map_gb = values * DTYPES[name].itemsize / 1e9
            sums |= {"forward_gb": 2 * map_gb, "backward_gb": 3 * map_gb}
            result[f"{variant} {name}"] = {**sums, "channels_last_faster": wins["channels_last"], "of": len(group)}
    return result
