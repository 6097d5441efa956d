"""Measure latency, throughput, memory and training steps of SegNeXt beside what else could be run.

    python examples/benchmark.py                                          # SegNeXt-T, and mmsegmentation's if installed
    python examples/benchmark.py --contenders segnext_b@fused segformer:mit_b2@eager upernet:tu-convnext_tiny@eager
    python examples/benchmark.py --tasks labels --sizes 512 1024x2048 --batches 1 4              # how it grows
    python examples/benchmark.py --tasks train --sizes 256 --batches 2 --contenders mmseg_t@eager segnext_t@eager
    python examples/benchmark.py --contenders segnext_b@eager segnext_b@bf16 segnext_b@graph

A contender is MODEL@WAY. The first that can be run is the reference: speeds are its time over the others', memory
ratios the others' over its.
MODEL is `segnext_t` (s, b, l), `mmseg_t` (mmsegmentation's SegNeXt), an architecture and encoder of smp such as
`segformer:mit_b0`, or a model of timm. WAY is

    eager          float32, as it is: NCHW; SegNeXt trains in channels_last, as train.py does
    channels_last  float32, images and weights in channels_last
    fused          channels_last and `segnext_timm.fuse`
    bf16, fp16     fused, under autocast
    compile        fused and `torch.compile`; `compile:max-autotune` and so on choose its mode
    graph          fused, as a CUDA graph
    onnx           exported, in ONNX Runtime
    openvino       exported, in OpenVINO
    memory         for training: checkpointed blocks and one-step gradient

All contenders run in turn, round after round, so that what else the machine does falls on all of them. Memory is
measured for each in a process of its own: the most that the process holds above what it held when all was imported, and
the most that tensors of torch take, weights and optimizer included, on the GPU if there is one.

Beside each time stands what the machine's ceilings, a large product of matrices and a large copy, would need for the
arithmetic, and for reading and writing every tensor that eager torch reads and writes.
"""

import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarking.peers import build, import_mmseg, labels_of, logits_of, loss_of
from segmentation.pictures import draw_bars, draw_growth
from segmentation.recipe import UserError, run
from segnext_timm import SegNeXt, export, fuse

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
WAYS = ("eager", "channels_last", "fused", "bf16", "fp16", "compile", "graph", "onnx", "openvino", "memory")
CEILING_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices multiplied; sixteen such are copied


@dataclass
class Settings:
    """What is measured, and how."""

    contenders: tuple[str, ...] = (
        "mmseg_t@eager",
        "segnext_t@eager",
        "segnext_t@fused",
        "segnext_t@compile",
        "segnext_t@onnx",
        "segnext_t@openvino",
    )
    """MODEL@WAY, the reference first."""
    tasks: tuple[Literal["logits", "labels", "train"], ...] = ("logits", "labels")
    """Logits at the images' size; labels at the images' size; a step of training with AdamW."""
    sizes: tuple[str, ...] = ("512",)
    """Sides of the images, or HEIGHTxWIDTH."""
    batches: tuple[int, ...] = (1,)
    """Images at once."""
    classes: int = 150
    """Number of classes."""
    rounds: int = 10
    """Rounds that count."""
    warmup: int = 3
    """Rounds before."""
    threads: int | None = None
    """Threads on a CPU; as many as torch takes by default."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device of torch."""
    tf32: bool = False
    """Let CUDA compute float32 products in TF32."""
    memory: bool = True
    """Measure memory too."""
    out: str = "runs/benchmark"
    """Folder for benchmark.json, table.md and benchmark.png."""


@dataclass
class Result:
    """Of a contender, at a task, a size and a batch."""

    contender: str
    task: str
    height: int
    width: int
    batch: int
    times_ms: list[float]
    gflops: float | None = None
    gigabytes: float | None = None
    process_mb: float | None = None
    tensors_mb: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.times_ms)


@dataclass(frozen=True)
class Case:
    """What one contender is to do."""

    contender: str
    task: str
    height: int
    width: int
    batch: int
    classes: int
    device: str
    threads: int
    folder: str

    @property
    def model(self) -> str:
        return self.contender.split("@")[0]

    @property
    def way(self) -> str:
        return self.contender.split("@")[1].split(":")[0]

    @property
    def file(self) -> Path:
        """Where the exported model lies."""
        name = f"{self.model.replace(':', '-')}-{self.task}-{self.batch}x{self.height}x{self.width}.onnx"
        return Path(self.folder) / name

    def images(self) -> torch.Tensor:
        shape = (self.batch, 3, self.height, self.width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)


class NotApplicableError(Exception):
    """A contender cannot do a task; the message says why."""


class TrafficMode(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read and write, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, output))
            self.bytes += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
        return output


def layout(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    return model.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)


def prepare(case: Case) -> Callable[[], Any]:
    """What runs a case once."""
    if case.way in RUNTIMES:
        return prepare_runtime(case)
    model, images = build(case.model, case.classes).to(case.device), case.images()
    if case.task == "train":
        return prepare_training(case, model, images)
    if case.way == "memory":
        raise NotApplicableError("memory is a way to train")
    if case.way == "graph" and "cuda" not in case.device:
        raise NotApplicableError("CUDA graphs need CUDA")
    if case.way != "eager":
        model, images = layout(model if case.way == "channels_last" else fuse(model), images)
    call = (labels_of if case.task == "labels" else logits_of)(model)
    if case.way == "compile":
        call = torch.compile(call, mode=case.contender.partition("@")[2].partition(":")[2] or None)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case.way)

    @torch.no_grad()
    def once() -> Any:
        with torch.autocast(case.device.split(":")[0], dtype) if dtype else nullcontext():
            return call(images)

    if case.way != "graph":
        return once
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    return graph.replay


def prepare_training(case: Case, model: torch.nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    """A step of training, as train.py makes it; of other models, as their users do."""
    if case.way not in ("eager", "channels_last", "memory", "bf16", "compile"):
        raise NotApplicableError(f"{case.way} is no way to train")
    ours = isinstance(model.train(), SegNeXt)
    if ours or case.way != "eager":
        model, images = layout(model, images)
    if case.way == "memory":
        if not ours:
            raise NotApplicableError("these options of training are SegNeXt's")
        model.set_grad_checkpointing()
        model.decoder.hamburger.nmf.one_step_gradient = True
    shape = (case.batch, case.height, case.width)
    labels = torch.randint(0, case.classes, shape, generator=torch.Generator().manual_seed(0)).to(case.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True if "cuda" in case.device else None)
    loss_function = loss_of(model)
    if case.way == "compile":
        model.encoder.compile()

    def once() -> None:
        with torch.autocast(case.device.split(":")[0], torch.bfloat16, enabled=case.way == "bf16"):
            loss = loss_function(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return once


def prepare_runtime(case: Case) -> Callable[[], Any]:
    """A case in a runtime of its own; its graph is exported if it is not yet there."""
    if case.task == "train":
        raise NotApplicableError(f"{case.way} is no way to train")
    images = case.images().cpu()
    if not case.file.is_file():
        export(build(case.model, case.classes), case.file, tuple(images.shape), argmax=case.task == "labels")
    if case.way == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        session = onnxruntime.InferenceSession(case.file, options, providers=onnxruntime.get_available_providers())
        return lambda: session.run(None, {"images": images.numpy()})
    import openvino

    settings = {"INFERENCE_NUM_THREADS": case.threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(case.file, "CPU", settings).create_infer_request()
    return lambda: request.infer({"images": images.numpy()})


def count(case: Case) -> tuple[float, float]:
    """Billions of floating-point operations, and gigabytes that the operations of eager torch read and write.

    A step of training counts three times the operations of its forward pass, as if it computed no gradient twice.
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
    """The machine's GFLOP/s in a large float32 product of matrices, and its GB/s read and written in a large copy."""
    side = CEILING_SIDE[device.split(":")[0]]
    a = torch.randn(side, side, device=device)
    copied = torch.empty(16 * side**2, device=device)
    source = torch.zeros_like(copied)
    products = [clock(lambda: a @ a, device) for _ in range(8)]
    copies = [clock(lambda: copied.copy_(source), device) for _ in range(8)]
    return 2 * side**3 / min(products) / 1e6, 2 * copied.nbytes / min(copies) / 1e6


def clock(call: Callable[[], Any], device: str) -> float:
    """Milliseconds that a call takes."""
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


def resident_mb(most: bool) -> float:
    """What this process holds, or the most it has held since `forget_most`."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    name = "VmHWM:" if most else "VmRSS:"
    return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1]) / 1024


def forget_most() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def measure_memory(case: Case) -> tuple[float, float | None]:
    """Megabytes a case needs in a process of its own: of that process, and of torch's tensors."""
    call = [sys.executable, __file__, "--child", json.dumps(asdict(case))]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{case.contender}: {done.stderr.strip().splitlines()[-1]}")
    return tuple(json.loads(done.stdout.strip().splitlines()[-1]))


def child(case: Case) -> None:
    torch.set_num_threads(case.threads)
    if case.model.startswith("mmseg"):
        import_mmseg()
    if case.way in RUNTIMES:
        __import__(RUNTIMES[case.way])
    before = resident_mb(most=False)
    forget_most()
    prepare_and_run(case)
    held = resident_mb(most=True) - before
    if case.way in RUNTIMES:
        tensors = None
    elif "cuda" in case.device:
        tensors = torch.cuda.max_memory_allocated() / 2**20
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            prepare_and_run(case)
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        tensors = max(e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]") / 2**20
    print(json.dumps([held, tensors]))


def prepare_and_run(case: Case) -> None:
    once = prepare(case)
    for _ in range(3):
        once()


def missing(case: Case) -> str | None:
    """What a case needs that is not installed."""
    needed = [RUNTIMES[case.way]] if case.way in RUNTIMES else []
    needed += ["mmseg"] if case.model.startswith("mmseg") else []
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def measure(cases: list[Case], settings: Settings) -> list[Result]:
    """Results of contenders at one task, size and batch; those that cannot do it are left out, and why is printed."""
    calls = {}
    for case in cases:
        reason = missing(case)
        if reason is None:
            try:
                calls[case] = prepare(case)
            except NotApplicableError as error:
                reason = str(error)
        if reason:
            print(f"{case.contender} is left out: {reason}.")
    if not calls:
        raise UserError("none of the contenders can be run.")
    times = {case: [] for case in calls}
    first = cases[0]
    title = f"{first.task} {first.batch}×{first.height}×{first.width}"
    for i in tqdm(range(settings.warmup + settings.rounds), desc=title, unit="round", leave=False):
        for case, call in calls.items():
            taken = clock(call, "cpu" if case.way in RUNTIMES else settings.device)  # runtimes return when done
            if i >= settings.warmup:
                times[case].append(taken)
    calls.clear()
    results = []
    for case in tqdm(times, desc=f"{title}: counts, memory", unit="contender", leave=False):
        result = Result(case.contender, case.task, case.height, case.width, case.batch, times[case])
        result.gflops, result.gigabytes = count(case)
        if settings.memory:
            result.process_mb, result.tensors_mb = measure_memory(case)
        results.append(result)
    return results


def table(results: list[Result], ceiling: tuple[float, float]) -> str:
    """Results of one task, size and batch in Markdown: ratios to the first, times, floors, memory."""
    first = results[0]
    columns = ("contender", "speed", "ms, median", "quartiles", "images/s", "arithmetic, ms", "traffic, ms")
    columns += ("process, MB", "", "tensors, MB", "")
    lines = [
        f"{first.task}, batch {first.batch}, {first.height}×{first.width}",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for result in results:
        quartiles = statistics.quantiles(result.times_ms, n=4) if len(result.times_ms) > 1 else [result.median] * 3
        cells = [
            f"`{result.contender}`",
            f"{first.median / result.median:.2f}×",
            f"{result.median:.1f}",
            f"{quartiles[0]:.1f} to {quartiles[2]:.1f}",
            f"{1e3 * result.batch / result.median:.2f}",
            f"{result.gflops / ceiling[0] * 1e3:.1f}",
            f"{result.gigabytes / ceiling[1] * 1e3:.1f}",
        ]
        for mb, reference in ((result.process_mb, first.process_mb), (result.tensors_mb, first.tensors_mb)):
            cells += ["", ""] if mb is None else [f"{mb:.0f}", f"{mb / reference:.2f}×" if reference else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine(settings: Settings, ceiling: tuple[float, float]) -> dict[str, Any]:
    if "cuda" in settings.device:
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "matmul_gflops": round(ceiling[0], 1),
        "copy_gigabytes_per_s": round(ceiling[1], 1),
    }


def parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdigit() for part in parts):
        raise UserError(f"size {text!r} is neither a side, such as 512, nor HEIGHTxWIDTH.")
    return int(parts[0]), int(parts[-1])


def main(argv: list[str]) -> None:
    if argv[:1] == ["--child"]:
        child(Case(**json.loads(argv[1])))
        return
    settings = tyro.cli(Settings, args=argv, description=__doc__, use_underscores=True)
    for contender in settings.contenders:
        if contender.count("@") != 1:
            raise UserError(f"{contender!r} is not of the form MODEL@WAY, such as segnext_t@fused.")
        way = contender.split("@")[1].split(":")[0]
        if way not in WAYS:
            raise UserError(f"{way!r} is no way to run a model: {', '.join(WAYS)} are.")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    ceiling = ceilings(settings.device)
    host = machine(settings, ceiling)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    print(", ".join(f"{name} {value}" for name, value in host.items()) + "\n")
    groups: list[list[Result]] = []
    with tempfile.TemporaryDirectory() as folder:
        for task in settings.tasks:
            for height, width in map(parse_size, settings.sizes):
                for batch in settings.batches:
                    cases = [
                        Case(
                            name,
                            task,
                            height,
                            width,
                            batch,
                            settings.classes,
                            settings.device,
                            torch.get_num_threads(),
                            folder,
                        )
                        for name in settings.contenders
                    ]
                    groups.append(measure(cases, settings))
                    print(table(groups[-1], ceiling))
                    content = {"machine": host, "settings": asdict(settings)}
                    content["results"] = [asdict(result) for group in groups for result in group]
                    (out / "benchmark.json").write_text(json.dumps(content, indent=1))
                    (out / "table.md").write_text("\n".join(table(group, ceiling) for group in groups))
    title = f"{host['device']}, {host['threads']} threads, torch {host['torch']}"
    if len(settings.sizes) * len(settings.batches) > 1:
        pixels = {task: {} for task in settings.tasks}
        for group in groups:
            for r in group:
                curve = pixels[r.task].setdefault(r.contender, [])
                curve.append((r.batch * r.height * r.width / 1e6, r.median))
        draw_growth(pixels, out / "benchmark.png", title)
    else:
        speeds = {g[0].task: {r.contender: g[0].median / r.median for r in g} for g in groups}
        draw_bars(speeds, out / "benchmark.png", title)
    print(f"{out / 'benchmark.json'}, {out / 'table.md'}, {out / 'benchmark.png'}")


if __name__ == "__main__":
    run(main)
