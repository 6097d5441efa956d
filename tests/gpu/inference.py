"""Section on inference: labels and logits, as the model is, fused, compiled, and as a CUDA graph."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from harness import (
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
    usable_precisions,
)
from steps import SECONDS, attempt, counted, in_children


@dataclass(frozen=True)
class Inference:
    """A prediction to measure.

    Attributes:
        task: "labels" or "logits", both at the images' size.
        variant: Size of the model.
        batch: Images per batch.
        size: Side of the images in pixels.
        precision: One of `harness.DTYPES`.
        mode: "eager" is NCHW, the others are channels_last: "fused", "compiled" (and fused), "graph" (and fused).
    """

    task: str
    variant: str
    batch: int
    size: int
    precision: str
    mode: str

    def __str__(self) -> str:
        return f"{self.task} {self.variant}, {self.batch}×{self.size}², {self.precision}, {self.mode}"


def plan(small: bool) -> list[Inference]:
    """Predictions to measure, the most important first."""
    if small:
        modes = ("eager", "fused", "graph")
        return [Inference(task, "narrow", 1, 64, "fp32", mode) for task in ("labels", "logits") for mode in modes]
    cases = []
    for variant in "tb":
        for batch, size in ((1, 512), (8, 512), (1, 1024)):
            cases += [
                Inference(task, variant, batch, size, name, mode)
                for name in ("bf16", "fp32")
                for mode in ("fused", "eager")
                for task in ("labels", "logits")
            ]
        if variant == "t":
            cases += [Inference(task, v, 1, 512, "bf16", "graph") for task in ("logits", "labels") for v in "tb"]
    cases += [Inference(task, "t", 1, 512, "bf16", "compiled") for task in ("labels", "logits")]
    cases += [Inference(task, v, 8, 1024, "bf16", "fused") for v in "tb" for task in ("labels", "logits")]
    return cases


def prepared(case: Inference, run: Run) -> Callable[[], torch.Tensor]:
    """A function that predicts once."""
    from segnext_timm import fuse

    model = segnext(case.variant).eval()
    model.upsampling = 8
    images, _ = batch_of(run.device, case.batch, case.size)
    if case.mode != "eager":
        model = fuse(model).to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    model = model.to(run.device)
    call = model.predict_labels if case.task == "labels" else model
    if case.mode == "compiled":
        call = torch.compile(call)

    @torch.no_grad()
    def once() -> torch.Tensor:
        with autocast(case.precision, run.device):
            return call(images)

    return once


def captured(once: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Capture a prediction in a CUDA graph, and check that a replay gives the same."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = once()
    graph.replay()
    different = float((output != expected).float().mean())
    if expected.dtype == torch.long and different > 0.001:  # ties may be broken differently
        raise RuntimeError(f"the graph gives other labels for {100 * different:.1f}% of the pixels")
    if expected.dtype != torch.long and not torch.allclose(output, expected, rtol=1e-2, atol=1e-2):
        raise RuntimeError(f"the graph's logits differ by {float((output - expected).abs().max()):.1e}")
    return graph.replay


def measure(case: Inference, run: Run) -> dict[str, Any]:
    """Time and memory of one prediction."""
    with precision(case.precision):
        start = time.monotonic()
        once = prepared(case, run)
        free_memory(run.device)
        once()
        first = time.monotonic() - start
        if case.mode == "graph":
            once = captured(once)
        ms = median_ms(once, run.device, budget=0.1 if run.small else 0.5)
        row = {"ms": ms, "images_per_s": 1e3 * case.batch / ms, "peak_mb": peak_mb(run.device)}
        if case.mode in ("eager", "fused"):
            row.update(counted(once))
        elif case.mode == "compiled":
            row["first_call_s"] = first
        return row


def inference(run: Run, section: Section) -> None:
    """Measure predictions as far as time allows; CUDA graphs must capture."""
    usable = usable_precisions(run, section, ("bf16", "fp32"))
    cases = in_usable_precisions(plan(run.small), usable)
    graphs = [case for case in cases if case.mode == "graph"]
    if not run.cuda:
        for case in graphs:
            section.skip(str(case), NEEDS_CUDA)
        graphs = []
    for case in cases:
        if case.mode == "graph":
            if graphs and case == graphs[0]:
                measure_graphs(graphs, run, section)
        elif run.left() < {"compiled": SECONDS["encoder"], "eager": 3, "fused": 3}[case.mode]:
            section.cut.append(str(case))
        else:
            section.add(**asdict(case), **attempt(lambda case=case: measure(case, run), run))
            if case.mode == "compiled":
                torch.compiler.reset()


def measure_graphs(cases: list[Inference], run: Run, section: Section) -> None:
    """Measure CUDA graphs; one that cannot be captured is a failure."""
    for case, row in in_children("inference", cases, run):
        if row is None:
            section.cut.append(str(case))
            continue
        section.add(**asdict(case), **row)
        section.check(
            f"a CUDA graph of {case.task} ({case.variant}) captures", "error" not in row, row.get("error", "")
        )
