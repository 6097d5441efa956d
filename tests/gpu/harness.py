"""What the sections of `prove.py` share: their results, the time they have, precisions, models and clocks."""

import copy
import dataclasses
import functools
import gc
import importlib.util
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NEEDS_CUDA = "needs CUDA"
CLASSES = 150
IGNORED = 255  # label of pixels that do not count
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
MISSPELLED = {"yaml": "pyyaml", "segmentation_models_pytorch": "segmentation-models-pytorch"}  # modules and packages


class NotRunError(Exception):
    """A section or a part of it cannot run here. The message gives the reason."""


class OutOfTimeError(BaseException):
    """A section exceeded its time. Not an Exception, so that libraries do not catch it."""


@dataclass
class Section:
    """Results of one section.

    Attributes:
        name: Name of the section.
        is_check: Whether a failure makes the exit status 1.
        status: "running", "passed", "measured", "failed", "not run" or "stopped".
        seconds: Time taken.
        checks: What was checked: name, whether it holds, and details.
        rows: Measurements, one dictionary each.
        facts: Other findings by name.
        not_run: Parts that cannot run here, with the reason.
        cut: Parts for which there was no time.
        error: Last lines of the traceback of an error.
    """

    name: str
    is_check: bool = False
    status: str = "running"
    seconds: float = 0.0
    checks: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    error: list[str] = field(default_factory=list)

    def check(self, name: str, holds: bool, detail: str = "") -> None:
        """Record whether something holds."""
        self.checks.append({"name": name, "holds": bool(holds), "detail": detail})
        say(f"{'holds' if holds else 'FAILS'}: {name}{f' ({detail})' if detail else ''}", indent=True)

    def skip(self, what: str, reason: str) -> None:
        """Record that a part cannot run here."""
        self.not_run.append(f"{what}: {reason}")

    def add(self, **row: Any) -> None:
        """Record a measurement."""
        self.rows.append(row)
        say(", ".join(f"{k} {shown(v)}" for k, v in row.items() if v is not None), indent=True)

    def finish(self, stopped: bool = False) -> None:
        """Set the status from what was recorded."""
        holds = [check["holds"] for check in self.checks]
        if self.error or not all(holds):
            self.status = "failed"
        elif stopped:
            self.status = "stopped"
        else:
            self.status = "passed" if holds else "measured" if self.rows else "not run"


@dataclass
class Run:
    """Settings of a run, its time, and the sections so far."""

    device: torch.device
    small: bool
    out: Path
    end: float  # on the clock of time.monotonic
    section_end: float = 0.0
    sections: dict[str, Section] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def variants(self) -> tuple[str, ...]:
        return ("narrow",) if self.small else ("t", "b")

    def left(self) -> float:
        """Seconds left for the section."""
        return min(self.section_end, self.end) - time.monotonic()

    def rows(self, section: str) -> list[dict[str, Any]]:
        """Measurements of an earlier section."""
        return self.sections[section].rows if section in self.sections else []


_started = time.monotonic()


def say(text: str, indent: bool = False) -> None:
    """Print a line of progress."""
    print(f"[{time.monotonic() - _started:4.0f} s] {'  ' * indent}{text}", flush=True)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def last_lines(error: BaseException, count: int = 8) -> list[str]:
    """Last lines of an error's traceback."""
    text = "".join(traceback.format_exception(error))
    return text.strip().splitlines()[-count:]


def summary(error: BaseException) -> str:
    """One line on an error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def require(*modules: str) -> None:
    """Raise a NotRunError that names the packages that are not installed."""
    absent = [MISSPELLED.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise NotRunError(f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed")


def make_importable() -> None:
    """Put the repository and its examples on the path, also for packages that are not installed."""
    sys.path[:0] = [path for path in (str(ROOT), str(EXAMPLES)) if path not in sys.path]


# Precisions


def precisions(device: torch.device, wanted: Sequence[str] = ("bf16", "tf32", "fp32", "fp16")) -> dict[str, str | None]:
    """Precisions, and the reason why one cannot be used on the device, or None."""
    reasons: dict[str, str | None] = dict.fromkeys(wanted)
    if device.type == "cpu":
        return reasons | ({"tf32": NEEDS_CUDA} if "tf32" in wanted else {})
    if "tf32" in wanted and torch.cuda.get_device_capability() < (8, 0):
        reasons["tf32"] = "the GPU has no TF32"
    if "bf16" in wanted and not torch.cuda.is_bf16_supported(including_emulation=False):
        reasons["bf16"] = "the GPU has no bfloat16"
    return reasons


def usable_precisions(run: Run, section: Section, wanted: Sequence[str]) -> list[str]:
    """Precisions to measure; records the others as not run."""
    found = precisions(run.device, wanted)
    for name, reason in found.items():
        if reason:
            section.skip(name, reason)
    return [name for name, reason in found.items() if reason is None]


def in_usable_precisions(cases: Sequence[Any], usable: Sequence[str]) -> list[Any]:
    """Cases to measure, each once; those in a precision that cannot be used become float32."""
    changed = [case if case.precision in usable else dataclasses.replace(case, precision="fp32") for case in cases]
    return list(dict.fromkeys(changed))


@contextmanager
def precision(name: str, benchmark: bool = False) -> Iterator[None]:
    """Set TF32: off for fp32, on for tf32, torch's defaults for the others, which convolve in TF32 only.

    With `benchmark`, cuDNN tries its algorithms and takes the fastest, as in train.py and in mmsegmentation's recipes.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = name == "tf32", name != "fp32", benchmark
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def autocast(name: str, device: torch.device) -> Any:
    """Autocast for a precision."""
    dtype = DTYPES[name]
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


# Models and data


@functools.cache
def _segnext(variant: str) -> torch.nn.Module:
    from segnext_timm import SegNeXt
    from segnext_timm.variants import VARIANTS

    torch.manual_seed(0)
    if variant == "narrow":
        sizes: dict[str, Any] = {"encoder_name": "tu-test_mscan", "decoder_channels": 32, "decoder_rank": 8}
    else:
        sizes = {"encoder_name": f"tu-mscan_{variant}", "decoder_channels": VARIANTS[variant].decoder_channels}
        sizes["decoder_rank"] = VARIANTS[variant].decoder_rank
    return SegNeXt(encoder_weights=None, classes=CLASSES, drop_path_rate=0.1, upsampling=1, **sizes)


def segnext(variant: str) -> torch.nn.Module:
    """A SegNeXt of the paper's size "t", "s", "b" or "l", or a "narrow" one, with the same random weights every time.

    It has 150 classes, drop path rate 0.1, and the output of training, an eighth of the images' size.
    """
    return copy.deepcopy(_segnext(variant))


def batch_of(device: torch.device, batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images (B, 3, size, size) and labels (B, size, size), some of them ignored."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator)
    labels = torch.randint(0, CLASSES, (batch, size, size), generator=generator)
    labels[:, : size // 8] = IGNORED
    return images.to(device), labels.to(device)


# Clocks


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def free_memory(device: torch.device) -> None:
    """Free what failures and earlier measurements left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def milliseconds(call: Callable[[], Any], device: torch.device, calls: int = 1) -> float:
    """Time per call of some calls in a row, without the wait before and with the wait after them."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) * 1e3 / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def median_ms(
    call: Callable[[], Any], device: torch.device, warmup: int = 3, calls: int = 1, budget: float = 1.0, most: int = 20
) -> float:
    """Median time per call, of 3 to `most` measurements in about `budget` seconds, after a warm-up.

    Args:
        call: What to time.
        device: Device that it runs on.
        warmup: Calls before the measurements.
        calls: Calls of one measurement; several for calls that are shorter than their launch.
        budget: Seconds, without the warm-up.
        most: Most measurements.
    """
    for _ in range(warmup):
        call()
    synchronize(device)
    times: list[float] = []
    end = time.monotonic() + budget
    while len(times) < 3 or (len(times) < most and time.monotonic() < end):
        times.append(milliseconds(call, device, calls))
    return statistics.median(times)


def peak_mb(device: torch.device) -> float | None:
    """Peak of the tensors' memory since the last :func:`free_memory`, in MB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
