"""Section on the time and memory of a training step: SegNeXt, compiled or not, beside the plain reference."""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from checks import environment
from harness import (
    IGNORED,
    LAYOUTS,
    NEEDS_CUDA,
    Run,
    Section,
    autocast,
    batch_of,
    free_memory,
    in_usable_precisions,
    median_ms,
    peak_mb,
    precision,
    segnext,
    summary,
    usable_precisions,
)
from plain_segnext import plain_copy

SCRIPT = Path(__file__).with_name("prove.py")
SECONDS = {"eager": 5, "blocks": 60, "encoder": 60, "graph": 20}  # that a measurement may need, by mode


@dataclass(frozen=True)
class Step:
    """A training step to measure.

    Attributes:
        model: "segnext" or "plain", the reference.
        variant: Size of the model.
        batch: Images per batch.
        size: Side of the images in pixels.
        precision: One of `harness.DTYPES`.
        layout: One of `harness.LAYOUTS`.
        mode: "eager"; "blocks" compiles attention and MLP of each block, "encoder" the whole encoder; "graph" is a CUDA
            graph of the forward and backward pass.
    """

    model: str
    variant: str
    batch: int
    size: int
    precision: str
    layout: str
    mode: str = "eager"

    def __str__(self) -> str:
        return f"{self.model} {self.variant}, {self.batch}×{self.size}², {self.precision}, {self.layout}, {self.mode}"


def at(variant: str, batch: int, size: int, *what: tuple[str, str, str, str]) -> Iterator[Step]:
    for model, name, layout, mode in what:
        yield Step(model, variant, batch, size, name, layout, mode)


EAGER = ("segnext", "bf16", "channels_last", "eager"), ("plain", "bf16", "NCHW", "eager")
BLOCKS = ("segnext", "bf16", "channels_last", "blocks")
GRAPH = ("segnext", "bf16", "channels_last", "graph")
TF32 = ("segnext", "tf32", "channels_last", "eager"), ("plain", "tf32", "NCHW", "eager")
FP32 = ("segnext", "fp32", "channels_last", "eager"), ("plain", "fp32", "NCHW", "eager")
NCHW = tuple(("segnext", name, "NCHW", "eager") for name in ("bf16", "tf32", "fp32"))
REST = (
    ("segnext", "bf16", "channels_last", "encoder"),
    ("segnext", "tf32", "channels_last", "blocks"),
    ("plain", "bf16", "channels_last", "eager"),
)


def plan(small: bool) -> list[Step]:
    """Steps to measure, the most important first."""
    if small:
        return [*at("narrow", 2, 64, *EAGER, *FP32, NCHW[2], GRAPH)]
    steps = [*at("t", 16, 512, *EAGER, BLOCKS), *at("b", 16, 512, *EAGER, BLOCKS)]
    steps += [*at("t", 16, 512, *TF32, *FP32), *at("b", 16, 512, *TF32), *at("t", 16, 512, *NCHW)]
    steps += [*at("t", 1, 512, *EAGER, GRAPH), *at("b", 1, 512, *EAGER, GRAPH), *at("t", 4, 512, EAGER[0], GRAPH)]
    steps += [*at("t", 8, 512, *EAGER), *at("b", 8, 512, *EAGER), *at("t", 8, 1024, *EAGER), *at("b", 8, 1024, *EAGER)]
    steps += [*at("t", 16, 512, *REST), *at("b", 16, 512, *FP32, *NCHW, *REST)]
    for size, batch in ((1024, 16), (1024, 1)):
        steps += [*at("t", batch, size, *EAGER), *at("b", batch, size, *EAGER)]
    for size, batch in ((512, 1), (512, 8), (1024, 8)):
        steps += [step for variant in "tb" for step in at(variant, batch, size, *TF32, *FP32, *NCHW)]
    return steps


def prepared(step: Step, run: Run) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """The model of a step in training mode, and a function that computes its loss."""
    from segmentation.autocasting import reduce_casts
    from segmentation.stepping import compile_model
    from segnext_timm import UpsampledCrossEntropyLoss

    model = segnext(step.variant)
    model = (plain_copy(model) if step.model == "plain" else model).train()
    model = model.to(run.device, memory_format=LAYOUTS[step.layout])
    images, labels = batch_of(run.device, step.batch, step.size)
    images = images.contiguous(memory_format=LAYOUTS[step.layout])
    if step.mode == "blocks":
        compile_model(model, "blocks")
    elif step.model == "segnext" and step.mode in ("eager", "graph"):
        reduce_casts(model)  # as train.py does
    if step.mode == "encoder":
        model.encoder.compile()
    loss_fn = UpsampledCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")

    def loss() -> torch.Tensor:
        with autocast(step.precision, run.device):
            if step.model == "plain":
                return model.loss(images, labels)
            return loss_fn(model(images), labels) / labels.numel()

    return model, loss


def updating(model: torch.nn.Module, run: Run, forward_backward: Callable[[], Any], clear: bool) -> Callable[[], None]:
    """A whole step: gradients, then AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=run.cuda)

    def once() -> None:
        forward_backward()
        optimizer.step()
        if clear:
            optimizer.zero_grad()

    return once


def captured(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Capture forward and backward pass in a CUDA graph, which overwrites the gradients at every replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            loss().backward()
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss().backward()
    return graph.replay


def measure(step: Step, run: Run) -> dict[str, Any]:
    """Time, memory and, for eager steps, arithmetic and traffic of one step."""
    with precision(step.precision, benchmark=True):
        start = time.monotonic()
        model, loss = prepared(step, run)
        free_memory(run.device)
        if step.mode == "graph":
            once = updating(model, run, captured(model, loss), clear=False)
        else:
            once = updating(model, run, lambda: loss().backward(), clear=True)
        once()
        first = time.monotonic() - start
        quick = {"budget": 0.2, "most": 3} if run.small else {}
        ms = median_ms(once, run.device, **quick)
        row = {"ms": ms, "images_per_s": 1e3 * step.batch / ms, "peak_mb": peak_mb(run.device)}
        if step.mode == "eager":
            row.update(counted(once))
        else:
            row["first_step_s"] = first
        finite = all(bool(p.isfinite().all()) for p in model.parameters())
        return {**row, "finite": finite}


def backward_flops(gradient: torch.Size, x: torch.Size, weight: torch.Size, *args: Any, **kwargs: Any) -> int:
    """Operations of a convolution's gradients. Torch's formula counts those of weights once for each group."""
    needed = args[-1]  # gradients of input, weight and bias
    return 2 * gradient.numel() * weight[1:].numel() * sum(needed[:2])


def counted(once: Callable[[], Any]) -> dict[str, Any]:
    """GFLOPs of a call's products and convolutions, and gigabytes that its operations read and write.

    Returns:
        Nothing but the reason if the call cannot be counted, which must not cost its other measurements.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarking.ceilings import TrafficMode

    formulas = {torch.ops.aten.convolution_backward: backward_flops}
    try:
        with TrafficMode() as traffic, FlopCounterMode(display=False, custom_mapping=formulas) as flops:
            once()
    except Exception as error:
        return {"not_counted": summary(error)}
    return {"gflops": flops.get_total_flops() / 1e9, "gigabytes": traffic.bytes / 1e9}


def attempt(what: Callable[[], dict[str, Any]], run: Run) -> dict[str, Any]:
    """Measure, or say what failed; frees the memory in either case."""
    try:
        result = what()
    except Exception as error:
        result = {"error": summary(error)}
    with suppress(RuntimeError):  # after some errors, CUDA answers no call
        free_memory(run.device)
    return result


def training_steps(run: Run, section: Section) -> None:
    """Measure training steps as far as time allows."""
    usable = usable_precisions(run, section, ("bf16", "tf32", "fp32"))
    graphs: list[Step] = []
    for step in in_usable_precisions(plan(run.small), usable):
        if step.mode == "graph":
            if run.cuda:
                graphs.append(step)
            else:
                section.skip(str(step), NEEDS_CUDA)
            continue
        reserve = 0 if run.small else 30 * bool(graphs)
        if run.left() < SECONDS[step.mode] + reserve:
            section.cut.append(str(step))
            continue
        section.add(**asdict(step), **attempt(lambda step=step: measure(step, run), run))
        if step.mode in ("blocks", "encoder"):
            torch.compiler.reset()
    for step, row in in_children("step", graphs, run):
        if row is None:
            section.cut.append(str(step))
        else:
            section.add(**asdict(step), **row)
    if run.small:
        section.skip("compiled steps", "left out with --small")


def in_children(kind: str, cases: list[Any], run: Run) -> Iterator[tuple[Any, dict[str, Any] | None]]:
    """Measure cases in processes of their own: a capture that fails leaves CUDA's allocator in an unknown state.

    A process measures one case after another; after a failure, a new one continues with the next.

    Yields:
        Each case and its measurement, None if there was no time.
    """
    remaining = copy.copy(cases)
    while remaining:
        if run.left() < SECONDS["graph"]:
            break
        request = json.dumps({"kind": kind, "cases": [asdict(case) for case in remaining]})
        command = [sys.executable, str(SCRIPT), "--child", request]
        try:
            done = subprocess.run(
                command, env=environment(), capture_output=True, text=True, timeout=run.left(), check=False
            )
            output, problem = done.stdout, (done.stderr.strip().splitlines() or ["no message"])[-1]
        except subprocess.TimeoutExpired as error:
            output, problem = error.stdout or b"", "no time left"
            output = output.decode() if isinstance(output, bytes) else output
        rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        for row in rows or [{"error": problem[:200]}]:
            yield remaining.pop(0), row
    for case in remaining:
        yield case, None


def child(request: str, measures: dict[str, tuple[type, Callable[[Any, Run], dict[str, Any]]]]) -> None:
    """Measure the cases of a request, and print a line of JSON for each, until one fails."""
    wanted = json.loads(request)
    kind, call = measures[wanted["kind"]]
    device = torch.device("cuda")
    run = Run(device, small=False, out=Path(), end=float("inf"), section_end=float("inf"))
    for case in wanted["cases"]:
        row = attempt(lambda case=case: call(kind(**case), run), run)
        print(json.dumps(row), flush=True)
        if "error" in row:
            return
