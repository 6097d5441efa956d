"""What one contender does: a model, the way it runs, and the call that runs it once."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segmentation.stepping import compile_model
from segnext_timm import SegNeXt, fuse

from .peers import build, labels_of, logits_of, loss_of

WAYS = ("eager", "channels_last", "fused", "bf16", "fp16", "compile", "graph", "memory")


@dataclass(frozen=True)
class Case:
    """One contender at one task, image size and batch size."""

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
    def options(self) -> tuple[str, ...]:
        """What follows the way: compile's mode, or options of an exported model."""
        return tuple(self.contender.split("@")[1].split(":")[1:])

    @property
    def file(self) -> Path:
        """Path of the exported model, without its options and suffix."""
        return Path(self.folder) / f"{self.model.replace(':', '-')}-{self.task}-{self.batch}x{self.height}x{self.width}"

    def images(self) -> torch.Tensor:
        shape = (self.batch, 3, self.height, self.width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)


class NotApplicableError(Exception):
    """A contender cannot do a task. The message gives the reason."""


def layout(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    return model.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)


def prepare_torch(case: Case) -> Callable[[], Any]:
    """Build the function that runs a case once in torch."""
    model, images = build(case.model, case.classes).to(case.device), case.images()
    if case.task == "train":
        return prepare_training(case, model, images)
    if case.way == "memory":
        raise NotApplicableError("'memory' applies to training only")
    if case.way == "graph" and "cuda" not in case.device:
        raise NotApplicableError("CUDA graphs need CUDA")
    if case.way != "eager":
        model, images = layout(model if case.way == "channels_last" else fuse(model), images)
    call = (labels_of if case.task == "labels" else logits_of)(model)
    if case.way == "compile":
        call = torch.compile(call, mode=next(iter(case.options), None))
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
    try:
        with torch.cuda.graph(graph):
            once()
    except RuntimeError as error:
        raise NotApplicableError(f"it cannot be captured: {str(error).splitlines()[0]}") from None
    return graph.replay


def prepare_training(case: Case, model: torch.nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    """Build a training step: of SegNeXt as train.py does it, of other models as their users do."""
    if case.way not in ("eager", "channels_last", "memory", "bf16", "compile"):
        raise NotApplicableError(f"{case.way!r} does not apply to training")
    ours = isinstance(model.train(), SegNeXt)
    if ours or case.way != "eager":
        model, images = layout(model, images)
    if case.way == "compile" and not ours:
        raise NotApplicableError("'compile' trains SegNeXt only")
    if case.way == "memory":
        if not ours:
            raise NotApplicableError("only SegNeXt has these training options")
        model.set_grad_checkpointing()
        model.decoder.hamburger.nmf.one_step_gradient = True
    shape = (case.batch, case.height, case.width)
    labels = torch.randint(0, case.classes, shape, generator=torch.Generator().manual_seed(0)).to(case.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True if "cuda" in case.device else None)
    loss_function = loss_of(model)
    if case.way == "compile":
        compile_model(model, next(iter(case.options), "blocks"))

    def once() -> None:
        with torch.autocast(case.device.split(":")[0], torch.bfloat16, enabled=case.way == "bf16"):
            loss = loss_function(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return once
