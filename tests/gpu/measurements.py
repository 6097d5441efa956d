"""What `visit.py` checks and measures: what its parts share, then a function for each, after those that it calls."""

import copy
import ctypes
import gc
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd import DeviceType
from torchvision.ops import Permute
from visit_page import NO_TIME, Row

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "tests" / "helpers")]
import draw_scenes
import segnext_timm
import train
from lively_models import lively
from segmentation import stepping
from segnext_timm import kernels
from segnext_timm.kernels import strips, upsampling
from segnext_timm.models.mscan import MultiScaleConvAttention
from small_models import narrow

Call = Callable[..., Any]
CLASSES, IGNORED = 150, 255
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PROCESSES: Any = multiprocessing.get_context("fork")  # the new process has torch, which takes seconds to import


def read(log: Path) -> dict[tuple[str, str], Row]:
    """Results of a visit by part and name; of several with one name, the last."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return {(row["part"], row["what"]): row for row in map(json.loads, lines)}


@dataclass
class Visit:
    """Settings of a visit, and what a part's process knows."""

    device: torch.device
    small: bool  # narrow models, small images and few steps
    log: Path  # of the results
    half: str = "bf16"  # the device's faster precision
    end: float = math.inf  # of the running parts, on the clock of time.monotonic
    running: dict[str, Any] = field(default_factory=dict)  # what each part measures now, shared with the first process
    part: str = ""
    known: dict[tuple[str, str], Row] = field(default_factory=dict)  # results when the part began
    longest: float = 0.0  # seconds that a measurement of the part took

    def __post_init__(self) -> None:
        self.cuda = self.device.type == "cuda"
        self.batch, self.size = (2, 64) if self.small else (16, 512)

    @property
    def left(self) -> float:
        return max(self.end - time.monotonic() - 1, 0)  # in seconds; one is for the last result

    def write(self, what: str, **values: Any) -> None:
        line = json.dumps({"part": self.part, "what": what, **values}, default=str, ensure_ascii=False)
        print(line, flush=True)
        with self.log.open("ab", buffering=0) as file:  # one write, so that no line is half written
            file.write(f"{line}\n".encode())

    def needs(self, what: str) -> bool:
        return self.known.get((self.part, what), {"note": NO_TIME}).get("note") == NO_TIME

    def measure(self, what: str, call: Call, *arguments: Any) -> None:
        """Record what a call returns, or its error, unless that is known, or it may not end in time."""
        if not self.needs(what):
            return
        if self.longest > self.left:
            self.write(what, note=NO_TIME)
            return
        self.running[self.part].value, begin = what[:200], time.monotonic()
        try:
            values = call(self, *arguments)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            values = {"error": f"{type(error).__name__}: {lines[0]}"[:300]}
        self.longest = max(self.longest, time.monotonic() - begin)
        self.write(what, **values)
        if self.cuda and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # raises after a fault on the device, which ends this process: the next goes on
            gc.collect()
            torch.cuda.empty_cache()


def look() -> tuple[str, str]:
    """The GPU's name and faster precision; a process that has looked can start none that uses CUDA."""
    return torch.cuda.get_device_name(), "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def start(call: Call, *arguments: Any, log: Path | None = None) -> multiprocessing.Process:
    """Start a call in a process of its own, which is killed when this one ends; its output may go to a file."""
    process = PROCESSES.Process(target=_run, args=(log, call, *arguments))
    process.start()
    return process


def _run(log: Path | None, call: Call, *arguments: Any) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if log:
        with log.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    sys.exit(call(*arguments))


def finish(visit: Visit, process: multiprocessing.Process, log: Path, check: bool = True) -> list[str]:
    """Wait for a process until the part's time is over, and return the lines of its output."""
    process.join(visit.left)
    process.kill()
    process.join()
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    if check and process.exitcode:
        raise RuntimeError(f"status {process.exitcode}: {lines[-1:]}")
    return lines


def create(visit: Visit, variant: str) -> nn.Module:
    """SegNeXt of 150 classes with random weights, the same every time."""
    torch.manual_seed(0)
    model = narrow if visit.small else partial(segnext_timm.create_segmenter, f"segnext_{variant}")
    return model(classes=CLASSES)


class Loss(nn.Module):
    """Loss of logits (B, classes, h, w) for random labels (B, 8·h, 8·w), or plainly the same."""

    def __init__(self, batch: int, classes: int, height: int, width: int) -> None:
        super().__init__()
        labels = torch.randint(0, classes, (batch, 8 * height, 8 * width))
        labels[:, :3] = IGNORED
        self.register_buffer("labels", labels)
        self.loss_fn = segnext_timm.UpsampledCrossEntropyLoss(ignore_index=IGNORED)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.loss_fn(logits, self.labels)

    def plain(self, logits: torch.Tensor) -> torch.Tensor:
        logits = F.interpolate(logits.float(), self.labels.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, self.labels, ignore_index=IGNORED)


@contextmanager
def only(*on: str) -> Iterator[None]:
    """Turn all faster forms off but those given: "strips", "loss", and "Triton", which the loss needs."""
    switches = {"strips": (strips, "applies"), "loss": (upsampling, "applies"), "Triton": (kernels, "triton_runs")}
    with ExitStack() as stack:
        for module, switch in (places for name, places in switches.items() if name not in on):
            stack.enter_context(mock.patch.object(module, switch, lambda *args: False))
        yield


def captured(visit: Visit, call: Call) -> Call:
    """Capture a call in a CUDA graph; on a CPU, the call itself."""
    if not visit.cuda:
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measured(visit: Visit, call: Call, images: int = 1) -> Row:
    """Median time of a call, after three calls to warm up, and its peak memory."""
    from torch.utils.benchmark import Timer  # which looks for CUDA when it is imported

    for _ in range(3):
        call()
    if visit.cuda:
        torch.cuda.reset_peak_memory_stats()
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    seconds = timer.blocked_autorange(min_run_time=1e-3 if visit.small else 0.5).median
    row = {"ms": 1e3 * seconds, "images/s": images / seconds}
    return {**row, "MB": torch.cuda.max_memory_allocated() / 2**20} if visit.cuda else row


def machine(visit: Visit) -> None:
    visit.measure("card", card)


def card(visit: Visit) -> Row:
    """Versions, clocks, and the rate of copies."""
    source = torch.zeros(2**22 if visit.small else 2**28, device=visit.device)
    target = torch.empty_like(source)
    row = {"copy, GB/s": 2 * source.nbytes / measured(visit, lambda: target.copy_(source))["ms"] / 1e6}
    row |= {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    row |= {name: sys.modules[name].__version__ for name in ("torch", "timm", "accelerate")}
    if visit.cuda:
        names = "compute_cap,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
        command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
        row[names] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return row


def tests(visit: Visit) -> None:
    """Tests of kernels, and others that are marked `cuda` and do not train."""
    marks = {"kernels": "not slow", "models": "cuda", "examples/test_stepping.py": "cuda"}
    for where, mark in list(marks.items())[-1 if visit.small else 0 :]:
        visit.measure(f"pytest -m '{mark}' tests/{where}", run_tests, where, mark)


def run_tests(visit: Visit, where: str, mark: str) -> Row:
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", mark, str(ROOT / "tests" / where)]
    with tempfile.TemporaryDirectory() as folder:
        process = start(pytest.main, options, log=Path(folder) / "log")
        lines = finish(visit, process, Path(folder) / "log", check=False)
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"holds": process.exitcode == 0, "note": "; ".join([*failed, *lines[-1:]])[:2000]}


def start_training(visit: Visit, folder: Path, name: str, *options: object) -> multiprocessing.Process:
    """Start a run of train.py on drawn scenes."""
    data = folder / "data"
    if not data.exists():
        draw_scenes.main([str(data), "--train", "8", "--val", "2", "--size", str(visit.size + 32)])
    model = ("--encoder", "tu-test_mscan", "--workers", 0) if visit.small else ("--workers", os.cpu_count())
    arguments = [ROOT / "examples/recipes/folder.yaml", "--data_root", data, "--out", folder / name, *model]
    arguments += ["--init_from", "none", "--tracker", "none", "--batch_size", visit.batch, "--crop_size", visit.size]
    arguments += ["--warmup", 2, "--lr", 1e-3, "--log_every", 1, *options]
    return start(train.main, list(map(str, arguments)), log=folder / f"{name}.log")


def checkpoint(folder: Path) -> Row:
    return torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)


def trainings(visit: Visit) -> None:
    """Three short runs of train.py at once."""
    train_in(visit, ("bf16",) if visit.small else ("bf16", "fp16", "fp32"), 12 if visit.small else 40)


def throughput(visit: Visit) -> None:
    """A run of train.py by itself, for its images per second."""
    train_in(visit, (visit.half,), 10 if visit.small else 150)


def train_in(visit: Visit, precisions: tuple[str, ...], iterations: int) -> None:
    often = ("--iterations", iterations, "--eval_every", iterations, "--save_every", iterations)
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), {}
        for precision in filter(lambda precision: visit.needs(f"t in {precision}"), precisions):
            runs[precision] = start_training(visit, folder, precision, "--precision", precision, *often)
        for precision, process in runs.items():
            visit.measure(f"t in {precision}", check_losses, process, folder / precision)


def check_losses(visit: Visit, process: multiprocessing.Process, out: Path) -> Row:
    """Whether all losses and weights of a run are finite, and its losses fall; its speed at the end."""
    lines = finish(visit, process, out.with_suffix(".log"))
    speed, wait = re.findall(r"images_per_s ([\d.]+), wait (\d+%)", "".join(lines))[-1]
    losses, weights = torch.tensor(checkpoint(out)["losses"]), checkpoint(out)["model"].values()
    first, last = float(losses[:3].mean()), float(losses[-3:].mean())
    finite = all(bool(tensor.isfinite().all()) for tensor in (losses, *weights))
    row = {"first losses": first, "last losses": last, "holds": finite and last < first}
    return {**row, "images/s": float(speed), "wait for data": wait}


def resuming(visit: Visit) -> None:
    visit.measure("killed and resumed", check_resumed)


def check_resumed(visit: Visit) -> Row:
    """Whether a run that is killed and resumed ends as a whole one beside it."""
    iterations, interval = (6, 2) if visit.small else (30, 10)
    options = ("--deterministic", "--iterations", iterations, "--save_every", interval, "--eval_every", iterations)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = {name: start_training(visit, folder, name, *options) for name in ("whole", "killed")}
        while not (folder / "killed" / "checkpoint.pt").is_file():
            if not runs["killed"].is_alive():
                finish(visit, runs["killed"], folder / "killed.log")
            time.sleep(0.02)
        runs["killed"].kill()
        runs["killed"].join()
        killed_at = checkpoint(folder / "killed")["iteration"]
        runs["killed"] = start_training(visit, folder, "killed", *options)
        for name, process in runs.items():
            finish(visit, process, folder / f"{name}.log")
        one, two = (checkpoint(folder / name) for name in runs)
    same = [torch.equal(value, two["model"][key]) for key, value in one["model"].items()]
    holds = all(same) and one["losses"] == two["losses"] and killed_at < iterations == two["iteration"]
    return {"holds": holds, "killed at": killed_at, "equal tensors": f"{sum(same)} of {len(same)}"}


def agreement(visit: Visit) -> None:
    """Loss and strips against float64."""
    cases = [(19, 32, 32, 3), (CLASSES, 17, 23, 10), (CLASSES, 1, 30, 1000), (171, 64, 40, 10)]
    for precision, bound in (("fp32", 1e-4), (visit.half, 1e-2)):
        for classes, height, width, deviation in cases:
            loss, logits = Loss(2, classes, height, width), deviation * torch.randn(2, classes, height, width)
            what = f"loss, {classes} classes, {height}×{width}, deviation {deviation}, {precision}"
            visit.measure(what, check, loss, logits, precision, bound)
        for dim in (20, 64, 160, 320)[: 1 if visit.small else None]:
            for height, width in ((13, 22), (64, 40)):
                what, x = f"strips, {dim}×{height}×{width}, {precision}", torch.randn(2, dim, height, width)
                visit.measure(what, check, MultiScaleConvAttention(dim), x, precision, bound)


def precisions(visit: Visit) -> None:
    """T in each precision against float64."""
    for precision, bound in {"fp32": 1e-3, "bf16": 0.1, "tf32": 2e-2, "fp16": 2e-2}.items():
        if visit.cuda or precision in ("fp32", "bf16"):
            model, x = lively(create(visit, "t")), torch.randn(2, 3, 120, 88)
            visit.measure(f"t in {precision}", check, model, x, precision, bound)


def check(visit: Visit, module: nn.Module, x: torch.Tensor, precision: str, bound: float) -> Row:
    """Output and gradients of a module in channels_last, against the CPU in float64 without kernels.

    The output's relative error may be up to `bound`, that of the gradients four times as much.
    """
    x = x.to(DTYPES.get(precision, torch.float32))
    exact, exact_x = copy.deepcopy(module).double(), x.double().requires_grad_()
    module = module.to(visit.device, memory_format=torch.channels_last)
    x = x.to(visit.device).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    with torch.autocast(visit.device.type, DTYPES[precision]) if precision in DTYPES else nullcontext():
        output = module(x)
    direction = torch.randn(output.shape).to(output.dtype)
    output.backward(direction.to(visit.device))
    with mock.patch.object(kernels, "ENABLED", False):
        expected = exact(exact_x)
        expected.backward(direction.double())
    gradients = torch.cat([tensor.grad.flatten().double().cpu() for tensor in (x, *module.parameters())])
    exact_gradients = torch.cat([tensor.grad.flatten() for tensor in (exact_x, *exact.parameters())])
    error = float(((output.double().cpu() - expected).norm() / expected.norm()).detach())
    gradient_error = float((gradients - exact_gradients).norm() / exact_gradients.norm())
    holds = error <= bound and gradient_error <= 4 * bound
    return {"output error": error, "gradient error": gradient_error, "holds": holds}


def profile(visit: Visit) -> None:
    """T's step of one image, which shows what launching takes, and the kernels of T's and B's steps."""
    visit.measure("t, 1", step_ms, "t", "all", 1)
    for variant in ("t", "b"):
        visit.measure(f"{variant}, all", slowest, variant)


def slowest(visit: Visit, variant: str) -> Row:
    """The operators and kernels of a step that take the most time; time and number of all kernels."""
    step, kinds = training_step(visit, variant, visit.batch, "all"), torch.profiler.ProfilerActivity
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if visit.cuda else [kinds.CPU]) as profiler:
        step()
    key, row = "self_device_time_total" if visit.cuda else "self_cpu_time_total", {}
    for name, device in {"operators": DeviceType.CPU, "kernels": DeviceType.CUDA}.items():
        events = [e for e in profiler.key_averages() if e.device_type == device and not e.is_user_annotation]
        found = [(event.key[:100], getattr(event, key) / 1e3, event.count) for event in events]
        if found:
            row["ms"], row["launches"] = sum(ms for _, ms, _ in found), sum(count for _, _, count in found)
            row[name] = sorted(found, key=lambda event: -event[1])[:30]
    return row


def pieces(visit: Visit) -> None:
    """Parts of a step, forward and backward, without the time of launching them."""
    random = partial(torch.randn, visit.batch, device=visit.device)
    sizes, ratios = [visit.size // stride for stride in (4, 8, 16, 32)], (8, 8, 4, 4)
    for model, dims in {"t": (32, 64, 160, 256), "b": (64, 128, 320, 512)}.items():
        for stage, (dim, size, ratio) in enumerate(zip(dims, sizes, ratios), 1):
            where, hidden, attention = f"of {model}, stage {stage}", dim * ratio, MultiScaleConvAttention(dim)
            attention.dwconv = attention.proj = nn.Identity()
            for way, on in {"cuDNN": (), "NCHW": ("strips",), "Triton": ("strips", "Triton")}.items():
                visit.measure(f"strips {where}, {way}", piece_ms, attention, random(dim, size, size), on)
            linear = nn.Sequential(Permute([0, 2, 3, 1]), nn.Linear(dim, hidden), Permute([0, 3, 1, 2]))
            for way, layer in {"convolution": nn.Conv2d(dim, hidden, 1), "linear": linear}.items():
                visit.measure(f"1×1 {where}, {way}", piece_ms, layer, random(dim, size, size))
            depthwise = nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.GELU())
            for way, layout in {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}.items():
                visit.measure(
                    f"3×3 and GELU {where}, {way}", piece_ms, depthwise, random(hidden, size, size), (), layout
                )
    shape = (CLASSES, visit.size // 8, visit.size // 8)
    for way, on in {"plain": (), "kernel": ("loss", "Triton")}.items():
        visit.measure(f"loss, {way}", piece_ms, Loss(visit.batch, *shape), random(*shape), on)


def piece_ms(visit: Visit, module: nn.Module, x: torch.Tensor, on: Any = (), layout: Any = torch.channels_last) -> Row:
    """Time of a module's output and gradients under autocast, for an input `x` and with the faster forms in `on`."""
    torch.backends.cudnn.benchmark = True
    module = module.to(visit.device, memory_format=layout)
    x = x.to(DTYPES[visit.half]).contiguous(memory_format=layout).requires_grad_()

    def once() -> None:
        with torch.autocast(visit.device.type, DTYPES[visit.half]):
            output = module(x)
        torch.autograd.grad(output, [x, *module.parameters()], torch.ones_like(output))

    with only(*on):
        return {"ms": measured(visit, captured(visit, lambda: [once() for _ in range(10)]))["ms"] / 10}


STEPS = {  # ways of a step that do without some of the faster forms
    "plain": (), "none": (), "loss kernel alone": ("loss", "Triton"),
    "NCHW strips alone": ("strips",), "Triton strips alone": ("strips", "Triton"),
}  # fmt: skip


def steps(visit: Visit) -> None:
    """Training steps: plain, as train.py makes them, with each faster form alone, and as a CUDA graph."""
    for way in ("plain", "all", *list(STEPS)[1:], "without grouped casts", "without TF32", "CUDA graph"):
        for variant in ("t", "b"):
            visit.measure(f"{variant}, {way}", step_ms, variant, way)


def compiled(visit: Visit) -> None:
    for variant in ("t", "b"):
        for way in ("all", "compiled blocks"):
            visit.measure(f"{variant}, {way}", step_ms, variant, way)


def step_ms(visit: Visit, variant: str, way: str, batch: int | None = None) -> Row:
    batch = batch or visit.batch
    torch.backends.cuda.matmul.allow_tf32 = way not in (*STEPS, "without TF32")  # as train.py
    with only(*STEPS[way]) if way in STEPS else nullcontext():
        step = training_step(visit, variant, batch, way)
        return measured(visit, captured(visit, step) if way == "CUDA graph" else step, batch)


def training_step(visit: Visit, variant: str, batch: int, way: str) -> Call:
    """A model's step: forward, loss, backward, AdamW; the way "plain" is in NCHW, with the plain loss."""
    torch.backends.cudnn.benchmark = True  # as train.py
    layout = torch.contiguous_format if way == "plain" else torch.channels_last
    model = create(visit, variant).train().to(visit.device, memory_format=layout)
    if way == "compiled blocks":
        stepping.compile_model(model, "blocks", **({"backend": "eager"} if visit.small else {}))
    model.upsampling = 1
    grouped = way not in ("plain", "compiled blocks", "without grouped casts")
    call = stepping.GroupedCasts(model) if grouped else model
    images = torch.randn(batch, 3, visit.size, visit.size, device=visit.device).contiguous(memory_format=layout)
    loss_fn = Loss(batch, CLASSES, visit.size // 8, visit.size // 8).to(visit.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=visit.cuda, capturable=visit.cuda)

    def step() -> None:
        with torch.autocast(visit.device.type, DTYPES[visit.half]):
            logits = call(images)
            loss = loss_fn.plain(logits) if way == "plain" else loss_fn(logits)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


CASES = [("t", 1), ("t", 8), ("b", 1), ("s", 1), ("b", 8), ("s", 8)]


def inference(visit: Visit) -> None:
    """Labels of fused models in fp32: eager, as a CUDA graph, and compiled, and whether they are equal."""
    for way in ("eager", "CUDA graph", "compiled"):
        for variant, batch in CASES[: 1 if visit.small else None]:
            visit.measure(f"labels, {variant}, {batch}, {way}", labels_ms, variant, batch, way)


def compiling(visit: Visit) -> None:
    """Compile beside other parts what is measured later: compilers keep what they made on the disk."""
    for variant, batch in CASES[: 1 if visit.small else None]:
        visit.measure(f"labels, {variant}, {batch}", labels_ms, variant, batch, "compiled")
        if batch == 1 and variant in ("t", "b"):
            visit.measure(f"blocks of {variant}", step_ms, variant, "compiled blocks")


@torch.no_grad()
def labels_ms(visit: Visit, variant: str, batch: int, way: str) -> Row:
    torch.backends.cudnn.benchmark = True
    model = segnext_timm.fuse(create(visit, variant).eval()).to(visit.device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, visit.size, visit.size, device=visit.device).to(memory_format=torch.channels_last)
    expected = model.predict_labels(images)
    if way == "compiled":
        torch._dynamo.reset()
        model.compile(**({"backend": "eager"} if visit.small else {"mode": "reduce-overhead"}), dynamic=False)
    call, begin = partial(model.predict_labels, images), time.monotonic()
    equal = float((call() == expected).float().mean())
    first = time.monotonic() - begin
    row = measured(visit, captured(visit, call) if way == "CUDA graph" else call, batch)
    return {**row, "first call, s": first, "equal labels": equal, "holds": equal > 0.99}  # but for ties
