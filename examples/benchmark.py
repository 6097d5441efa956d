"""Measure latency, throughput, memory and training steps of SegNeXt beside other models.

    python examples/benchmark.py                                          # SegNeXt-T, and mmsegmentation's if installed
    python examples/benchmark.py --contenders segnext_b@fused segformer:mit_b2@eager upernet:tu-convnext_tiny@eager
    python examples/benchmark.py --tasks labels --sizes 512 1024x2048 --batches 1 4              # how it grows
    python examples/benchmark.py --tasks train --sizes 256 --batches 2 --contenders mmseg_t@eager segnext_t@eager
    python examples/benchmark.py --contenders segnext_b@eager segnext_b@bf16 segnext_b@graph
    python examples/benchmark.py --tasks labels --contenders segnext_t@onnx segnext_t@onnx:portable segnext_t@litert

A contender is MODEL@WAY. The first one that runs is the reference: a speed is the reference's time divided by the
contender's time, and a memory ratio is the contender's memory divided by the reference's.
MODEL is `segnext_t` (s, b, l), `mmseg_t` (mmsegmentation's SegNeXt), an architecture and encoder of smp such as
`segformer:mit_b0`, or a model of timm. WAY is

    eager          float32, as it is: NCHW; SegNeXt trains in channels_last, as train.py does
    channels_last  float32, images and weights in channels_last
    fused          channels_last and `segnext_timm.fuse`
    bf16, fp16     fused, under autocast
    compile        fused and `torch.compile`; `compile:max-autotune` and so on choose its mode; in training,
                   `compile:blocks` (the default), `compile:model` or `compile:graphs`
    graph          fused, as a CUDA graph
    onnx           exported, in ONNX Runtime; `onnx:portable`, `onnx:fp16` and `onnx:int8` choose the graph
    openvino       exported, in OpenVINO, with the same options
    litert         exported, in LiteRT
    ncnn           exported, in ncnn (logits only); `ncnn:fp16` stores the weights in float16
    aotinductor    exported, compiled with AOTInductor; labels need `aotinductor:portable`
    memory         for training: checkpointed blocks and one-step gradient

All contenders take turns, round after round, so that other load on the machine affects them equally. Memory is
measured in a separate process per contender: the peak of the process above its size after all imports, and the peak of
torch's tensors, including weights and optimizer, on the GPU if there is one.

The table also shows two lower bounds of each time: the arithmetic at the speed of a large matrix product, and the
memory traffic of eager torch's operations at the speed of a large copy.
"""

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import torch
import tyro

from benchmarking.cases import WAYS, Case, NotApplicableError
from benchmarking.ceilings import ceilings, clock, count, machine
from benchmarking.charts import draw_bars, draw_growth
from benchmarking.memory import child, measure_memory
from benchmarking.runtimes import RUNTIMES, missing, prepare
from segmentation.progress import progress_bar
from segmentation.recipe import UserError, run


@dataclass
class Settings:
    """What to measure, and how."""

    contenders: tuple[str, ...] = (
        "mmseg_t@eager",
        "segnext_t@eager",
        "segnext_t@fused",
        "segnext_t@compile",
        "segnext_t@onnx",
        "segnext_t@openvino",
    )
    """MODEL@WAY; the first is the reference."""
    tasks: tuple[Literal["logits", "labels", "train"], ...] = ("logits", "labels")
    """Logits at the images' size; labels at the images' size; a step of training with AdamW."""
    sizes: tuple[str, ...] = ("512",)
    """Sides of square images in pixels, or HEIGHTxWIDTH."""
    batches: tuple[int, ...] = (1,)
    """Images per batch."""
    classes: int = 150
    """Number of classes."""
    rounds: int = 10
    """Measured rounds."""
    warmup: int = 3
    """Rounds before the measured ones."""
    threads: int | None = None
    """Threads on a CPU. Default: torch's own number."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Torch device."""
    tf32: bool | None = None
    """Use TF32 for float32 products and convolutions on CUDA. Default: as torch does, for convolutions only."""
    memory: bool = True
    """Also measure memory."""
    out: str = "runs/benchmark"
    """Folder for benchmark.json, table.md and benchmark.png."""


@dataclass
class Result:
    """Measurements of one contender at one task, image size and batch size."""

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


def measure(cases: list[Case], settings: Settings) -> list[Result]:
    """Measure the contenders at one task, size and batch; prints why a contender is left out."""
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
        raise UserError("no contender can run.")
    times = {case: [] for case in calls}
    first = cases[0]
    title = f"{first.task} {first.batch}×{first.height}×{first.width}"
    for i in progress_bar(range(settings.warmup + settings.rounds), desc=title, unit="round", leave=False):
        for case, call in calls.items():
            taken = clock(call, "cpu" if case.way in RUNTIMES else settings.device)  # runtimes return when done
            if i >= settings.warmup:
                times[case].append(taken)
    calls.clear()
    results = []
    for case in progress_bar(times, desc=f"{title}: counts, memory", unit="contender", leave=False):
        result = Result(case.contender, case.task, case.height, case.width, case.batch, times[case])
        result.gflops, result.gigabytes = count(case)
        if settings.memory:
            result.process_mb, result.tensors_mb = measure_memory(case)
        results.append(result)
    return results


def table(results: list[Result], ceiling: tuple[float, float]) -> str:
    """Format the results of one task, size and batch as Markdown: speeds, times, lower bounds, memory."""
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


def draw(groups: list[list[Result]], path: Path, host: dict[str, str | int], classes: int) -> None:
    """Draw speeds as bars, or times over the number of pixels if there are several sizes or batches."""
    machine = f"on {host['device']}, {host['threads']} threads"
    first, note = groups[0][0], f"torch {str(host['torch']).split('+')[0]}, {classes} classes"
    if len({(r.height, r.width, r.batch) for group in groups for r in group}) == 1:
        note += f", batch {first.batch}, images of {first.height}×{first.width}"
        speeds = {g[0].task: {r.contender: g[0].median / r.median for r in g} for g in groups}
        draw_bars(speeds, path, machine, note)
        return
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for r in (result for group in groups for result in group):
        curve = curves.setdefault(r.task, {}).setdefault(r.contender, [])
        curve.append((r.batch * r.height * r.width / 1e6, r.median))
    draw_growth(curves, path, machine, note)


def check_contender(text: str) -> None:
    """Raise a UserError unless a text has the form MODEL@WAY, with a known way."""
    if text.count("@") != 1:
        raise UserError(f"{text!r} is not of the form MODEL@WAY, such as segnext_t@fused.")
    way = text.split("@")[1].split(":")[0]
    if way not in (*WAYS, *RUNTIMES):
        raise UserError(f"unknown way {way!r}: choose from {', '.join((*WAYS, *RUNTIMES))}.")


def parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdigit() for part in parts):
        raise UserError(f"size {text!r} is not a side such as 512, and not HEIGHTxWIDTH.")
    return int(parts[0]), int(parts[-1])


def main(argv: list[str]) -> None:
    if argv[:1] == ["--child"]:
        child(Case(**json.loads(argv[1])))
        return
    settings = tyro.cli(Settings, args=argv, description=__doc__, use_underscores=True)
    for contender in settings.contenders:
        check_contender(contender)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    ceiling = ceilings(settings.device)
    host = machine(settings.device, ceiling)
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
    draw(groups, out / "benchmark.png", host, settings.classes)
    print(f"{out / 'benchmark.json'}, {out / 'table.md'}, {out / 'benchmark.png'}")


if __name__ == "__main__":
    run(main)
