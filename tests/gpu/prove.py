"""Check and measure SegNeXt on this machine's GPU, in fifteen minutes at most: `python tests/gpu/prove.py`.

    python tests/gpu/prove.py                                  # the GPU
    python tests/gpu/prove.py --only checks steps              # some sections
    python tests/gpu/prove.py --device cpu --small             # a dry run, in a minute

Checks: the kernels against plain torch in float64, a model against the CPU, the tests that need CUDA, killed and
resumed trainings. Measures: training steps and predictions beside plain torch, the slowest kernels, the training data.

Each result is one line of `prove.jsonl` in the output folder, written as soon as it is known; `prove.md` is one page
on all of them. A failure is a result, too. The exit status is 1 if a check fails. Needs no network.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from speeds import inference, loader, steps
from visit import CLASSES, IGNORED, ROOT, Row, Visit, autocast, batch_of, create, median_ms, page, resized

import segnext_timm
from segnext_timm import kernels


class OutOfTimeError(BaseException):
    """A section exceeded its time. Not an Exception, so that no library catches it."""


def machine(visit: Visit) -> None:
    """Names, versions, and the peak rates of copies and matrix products."""
    versions = {name: sys.modules[name].__version__ for name in ("torch", "timm", "segnext_timm")}
    visit.add("versions", python=platform.python_version(), cores=os.cpu_count(), **versions)
    if visit.cuda:
        properties = torch.cuda.get_device_properties(0)
        names = {"gpu": properties.name, "GiB": properties.total_memory / 2**30, "cuda": torch.version.cuda}
        visit.add("device", **names, capability=str(torch.cuda.get_device_capability()))
    visit.measure("copy", copy_rate, visit)
    for dtype in (torch.float32, visit.half):
        visit.measure(f"product, {dtype}", product_rate, visit, dtype)


def copy_rate(visit: Visit) -> Row:
    source = torch.zeros(2**24 if visit.small else 2**28, device=visit.device)
    target = torch.empty_like(source)
    return {"GB/s": 2 * source.nbytes / median_ms(lambda: target.copy_(source), visit.device) / 1e6}


def product_rate(visit: Visit, dtype: torch.dtype) -> Row:
    side = 512 if visit.small else 8192
    x = torch.randn(side, side, device=visit.device, dtype=dtype)
    return {"TFLOP/s": 2 * side**3 / median_ms(lambda: x @ x, visit.device) / 1e9}


def checks(visit: Visit) -> None:
    """Kernels and models against plain forms, while pytest runs beside them."""
    running = {}
    tests = {"tests that need CUDA": ["-m", "cuda"], "runs that are killed and resumed": ["-k", "killed_ten_times"]}
    for name, arguments in tests.items() if visit.cuda else ():
        log = (visit.out / f"{name.replace(' ', '_')}.log").open("w", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", *arguments, "tests"]
        running[name] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT), Path(log.name)
    try:
        for classes, size in ((19, (32, 32)), (CLASSES, (17, 23)), (171, (64, 40)))[: 1 if visit.small else None]:
            for dtype in (torch.float32, visit.half):
                visit.measure(f"loss, {classes} classes, {dtype}", check_loss, visit, classes, size, dtype)
        for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.1), (torch.float16, 2e-2)):
            visit.measure(f"model in {dtype}", check_model, visit, dtype, tolerance)
        for name, (process, log) in running.items():
            try:
                status = process.wait(max(visit.end - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                visit.add(name, note="no time was left")
                continue
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            visit.add(name, holds=status == 0, note="".join(last))
    finally:
        for process, _ in running.values():
            process.kill()  # without effect on those that ended


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Euclidean norm of the difference over that of the expected values."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def check_loss(visit: Visit, classes: int, size: tuple[int, int], dtype: torch.dtype) -> Row:
    """Loss, gradient and labels of logits at an eighth of the size, against float64 on the CPU."""
    generator = torch.Generator().manual_seed(classes)
    logits = (10 * torch.randn(2, classes, *size, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (2, 8 * size[0] - 3, 8 * size[1] - 5), generator=generator)
    labels[:, :9] = IGNORED
    exact = logits.double().requires_grad_()
    full = resized(exact, labels.shape[1:])
    expected = F.cross_entropy(full, labels, ignore_index=IGNORED)
    expected.backward()
    leaf = logits.to(visit.device).contiguous(memory_format=torch.channels_last).requires_grad_()
    loss = segnext_timm.UpsampledCrossEntropyLoss(ignore_index=IGNORED)(leaf, labels.to(visit.device))
    loss.backward()
    errors = {"loss error": relative_error(loss, expected), "gradient error": relative_error(leaf.grad, exact.grad)}
    return {**errors, "holds": max(errors.values()) < (1e-4 if dtype == torch.float32 else 1e-2)}


def check_model(visit: Visit, dtype: torch.dtype, tolerance: float) -> Row:
    """Logits, labels and gradients of a model in channels_last, against the CPU in float32 without kernels.

    Batch norms, drop path and bases are those of evaluation, so that nothing random differs. Gradients may differ four
    times as much as logits. A label counts as equal if its expected logit is as close to the largest as logits agree.
    """
    model = create("narrow" if visit.small else "t").eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # with their first values, the layer scales would hide what the blocks compute
            parameter.data.fill_(0.2)
    images, labels = batch_of(2, 120, 88)  # not multiples of the stride
    scale = 1024.0  # keeps gradients in float16 from becoming 0

    def run(model: torch.nn.Module, images: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        with autocast(images.device, dtype):
            logits = model(images)
            predicted = model.predict_labels(images)
        loss = F.cross_entropy(logits.float(), labels.to(images.device), ignore_index=IGNORED)
        (scale * loss).backward()
        return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), predicted

    with mock.patch.object(kernels, "ENABLED", False):
        logits, gradients, _ = run(model, images, torch.float32)
    model.zero_grad()
    model = model.to(visit.device, memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = run(model, images.to(visit.device).contiguous(memory_format=torch.channels_last), dtype)
    errors = {"logits error": relative_error(found[0], logits), "gradient error": relative_error(found[1], gradients)}
    chosen = logits.gather(1, found[2].cpu()[:, None])[:, 0]
    errors["labels short by"] = float((logits.amax(1) - chosen).max() / logits.std())
    bounds = (tolerance, 4 * tolerance, 10 * tolerance)
    return {**errors, "holds": all(error <= bound for error, bound in zip(errors.values(), bounds))}


SECTIONS = {machine: 15, checks: 180, steps: 300, inference: 180, loader: 45}  # seconds at most


# The run


@contextmanager
def interrupted_after(seconds: float) -> Any:
    """Raise an OutOfTimeError after some seconds, where the system has such a clock."""

    def interrupt(number: int, frame: Any) -> None:
        raise OutOfTimeError

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(argv: list[str] | None = None) -> int:
    """Run the sections. Returns 1 if a check failed, else 0."""
    names = [function.__name__ for function in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a narrow model, small images and few steps")
    parser.add_argument("--out", type=Path, default=Path("runs/prove"), help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help=", ".join(names))
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here. For a dry run: --device cpu --small")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "prove.jsonl").unlink(missing_ok=True)
    visit = Visit(torch.device(args.device), args.small, args.out.resolve())
    for function, seconds in SECTIONS.items():
        visit.section = function.__name__
        if visit.section in args.only:
            visit.end = time.monotonic() + seconds
            try:
                with interrupted_after(seconds + 15):
                    function(visit)
            except OutOfTimeError:
                visit.add("the rest", note="no time was left")
            (visit.out / "prove.md").write_text(page(visit.rows), encoding="utf-8")
    print(visit.out / "prove.md")
    return int(any(row.get("holds") is False or "error" in row for row in visit.rows))


if __name__ == "__main__":
    sys.exit(main())
