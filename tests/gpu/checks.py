"""Sections that check what the device computes: the CUDA tests, agreement with the CPU, and training."""

import copy
import math
import os
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch
from harness import (
    DTYPES,
    EXAMPLES,
    LAYOUTS,
    NEEDS_CUDA,
    ROOT,
    NotRunError,
    Run,
    Section,
    autocast,
    batch_of,
    free_memory,
    precision,
    require,
    segnext,
    usable_precisions,
)

# Tests


def environment(**more: str) -> dict[str, str]:
    """Environment of a process that imports this repository."""
    paths = [str(ROOT), str(EXAMPLES), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def marked_files() -> list[Path]:
    """Test files with the marker `cuda`."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in files if re.search(r"\bmark\.cuda\b", path.read_text(encoding="utf-8"))]


def cuda_tests(run: Run, section: Section) -> None:
    """Run the tests with the marker `cuda`."""
    if not run.cuda:
        raise NotRunError(NEEDS_CUDA)
    require("pytest")
    files = marked_files()
    if not files:
        raise NotRunError("no test has the marker cuda")
    report = run.out / "cuda_tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["--continue-on-collection-errors", f"--junitxml={report}", *map(str, files)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=max(run.left(), 5),
            check=False,
        )
    except subprocess.TimeoutExpired:
        section.cut.append("the tests, which did not finish in time")
        return
    if not report.is_file():
        section.check("pytest runs", False, " ".join((done.stdout + done.stderr).strip().splitlines()[-2:]))
        return
    read_report(report, section)


def read_report(path: Path, section: Section) -> None:
    """Count passed, failed and skipped tests; a test file that lacks a package is not run."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for case in ET.parse(path).iter("testcase"):
        found = {child.tag: f"{child.get('message', '')} {child.text or ''}" for child in case}
        problem = found.get("failure", found.get("error"))
        absent = re.search(r"No module named '(\w+)", problem or "")
        if absent:
            section.skip(f"test file {case.get('name')}", f"{absent[1]} is not installed")
        elif problem is not None:
            counts["failed"] += 1
            reason = next(iter(problem.strip().splitlines()), "")[:160]
            section.check(f"{case.get('classname')}.{case.get('name')}", False, reason)
        else:
            counts["skipped" if "skipped" in found else "passed"] += 1
    section.facts.update(counts)
    if counts["passed"] or counts["failed"]:
        detail = ", ".join(f"{count} {name}" for name, count in counts.items())
        section.check("no CUDA test fails", not counts["failed"], detail)
    else:
        section.skip("CUDA tests", f"{counts['skipped']} were skipped" if counts["skipped"] else "none was collected")


# Agreement

# Largest relative error (of the whole tensor, in the Euclidean norm) of logits and loss, and of gradients. An operation
# in TF32 or float16 rounds with a relative error of 2**-11 at most, in bfloat16 of 2**-8; about 60 in a row add up to
# eight times that if their errors are independent: 0.004 and 0.03. Gradients take twice the path, and the divisions of
# the matrix decomposition and of the batch norms enlarge errors. In float32, the order of sums differs. Each tolerance
# is at least twice what a CPU shows, and float32's are too small for TF32.
TOLERANCES = {"fp32": (1e-3, 1e-2), "tf32": (2e-2, 0.15), "fp16": (2e-2, 0.15), "bf16": (0.1, 0.4)}
LOSS_SCALE = 2.0**10  # keeps float16's gradients from becoming 0


def scramble(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Draw norms, biases, layer scales and the classifier so that every parameter matters.

    The batch norms' running statistics become those of the images, as after training.
    """
    generator = torch.Generator().manual_seed(1)

    def uniform(value: torch.Tensor, low: float, high: float) -> None:
        value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("gamma"):
                uniform(value, 0.1, 0.3)
            elif name.endswith("weight") and value.ndim == 1:
                uniform(value, 0.5, 1.5)
            elif name.endswith("bias"):
                uniform(value, -0.2, 0.2)
        model.segmentation_head[0].weight.mul_(30)
        for module in only_norms_training(model):
            module.momentum = 1.0
        model(images)


def only_norms_training(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Put a model in evaluation mode, except its batch norms. Returns these."""
    norms = [module for module in model.eval().modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    return norms


def outputs(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, name: str, layout: str
) -> dict[str, torch.Tensor]:
    """Logits, labels, loss and gradients of a model, on the CPU in float32.

    Drop path, dropout and new bases would differ between devices, so these are off: batch norms of the encoder use the
    batch for loss and gradients, everything else is in evaluation mode.
    """
    from segnext_timm import UpsampledCrossEntropyLoss

    device = images.device
    model = model.to(device, memory_format=LAYOUTS[layout]).eval()
    images = images.contiguous(memory_format=LAYOUTS[layout])
    with precision(name):
        with torch.no_grad(), autocast(name, device):
            found = {"logits": model(images), "labels": model.predict_labels(images)}
        only_norms_training(model)
        loss_fn = UpsampledCrossEntropyLoss(ignore_index=255, reduction="sum")
        with autocast(name, device):
            found["loss"] = loss_fn(model(images), labels) / labels.numel()
        scale = LOSS_SCALE if name == "fp16" else 1.0
        (found["loss"] * scale).backward()
    gradients = [p.grad.flatten().float() / scale for p in model.parameters()]
    found["gradients"] = torch.cat(gradients)
    return {key: value.detach().cpu().float() for key, value in found.items()}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def full_size(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def label_shortfall(labels: torch.Tensor, expected: dict[str, torch.Tensor]) -> float:
    """How far the expected logit of a label is below the largest one, at most, over the spread of the logits."""
    logits = full_size(expected["logits"], labels.shape[1:])
    chosen = logits.gather(1, labels.long()[:, None])[:, 0]
    return float((logits.amax(1) - chosen).max() / logits.std())


def agreement(run: Run, section: Section) -> None:
    """Compare logits, labels, loss and gradients with those of the CPU in float32, in both layouts."""
    names = usable_precisions(run, section, tuple(DTYPES))
    section.facts["tolerances"] = TOLERANCES
    for variant in ("narrow",) if run.small else ("narrow", "t"):
        model = segnext(variant)
        images, labels = batch_of(torch.device("cpu"), 2, 64 if run.small else 128)
        images = images[..., :-8] if run.small else images[..., :-20]  # sides that strides do not divide
        labels = labels[..., : images.shape[-1]].contiguous()
        scramble(model, images)
        state = copy.deepcopy(model.state_dict())  # batch norms change it
        expected = outputs(model, images, labels, "fp32", "NCHW")
        for name in names:
            for layout in LAYOUTS:
                if run.left() < 0:
                    section.cut.append(f"{variant}, {name}, {layout}")
                    continue
                clone = segnext(variant)
                clone.load_state_dict(state)
                found = outputs(clone, images.to(run.device), labels.to(run.device), name, layout)
                compare(section, f"{variant}, {name}, {layout}", found, expected, TOLERANCES[name])
    free_memory(run.device)


def compare(
    section: Section,
    title: str,
    found: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    tolerances: tuple[float, float],
) -> None:
    """Check one configuration's outputs.

    A label may differ where classes nearly tie: its expected logit must be as close to the largest one as logits agree,
    with a margin of ten standard deviations, since it is the largest error of all pixels that counts.
    """
    forward, backward = tolerances
    errors = {key: relative_error(found[key], expected[key]) for key in ("logits", "loss", "gradients")}
    shortfall = label_shortfall(found["labels"], expected)
    finite = all(bool(value.isfinite().all()) for value in found.values())
    holds = finite and max(errors["logits"], errors["loss"]) <= forward and errors["gradients"] <= backward
    parts = [f"{key} {value:.1e}" for key, value in errors.items()]
    parts += [f"labels short by {shortfall:.1e}", "all finite" if finite else "NaN or infinity"]
    same = float((found["labels"] == expected["labels"]).float().mean())
    section.rows.append({"case": title, **errors, "label_shortfall": shortfall, "equal_labels": same, "finite": finite})
    section.check(title, holds and shortfall <= 10 * forward, ", ".join(parts))


# Training


def scene_batches(run: Run, count: int, batch: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of generated street scenes, images (B, 3, size, size) and labels (B, size, size), on the device."""
    from segmentation import scenes

    batches = []
    for first in range(0, count * batch, batch):
        drawn = [scenes.draw(0, index, size) for index in range(first, first + batch)]
        images = torch.stack([torch.from_numpy(image) for image, _ in drawn]).permute(0, 3, 1, 2) / 127.5 - 1
        labels = torch.stack([torch.from_numpy(labels) for _, labels in drawn]).long()
        batches.append((images.contiguous(memory_format=torch.channels_last).to(run.device), labels.to(run.device)))
    return batches


def train_on_scenes(
    run: Run, name: str, batches: list[tuple[torch.Tensor, torch.Tensor]], steps: int
) -> tuple[list[float], int]:
    """Train from the same seed in a precision.

    Returns:
        The loss of each step, and the number of updates that the float16 scaler skipped.
    """
    from segnext_timm import UpsampledCrossEntropyLoss

    model = segnext("narrow" if run.small else "t").to(run.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, fused=run.cuda)
    scaler = torch.amp.GradScaler(run.device.type, enabled=name == "fp16")
    loss_fn = UpsampledCrossEntropyLoss(ignore_index=255, reduction="sum")
    losses, skipped, warmup = [], 0, max(steps // 6, 1)
    torch.manual_seed(0)
    with precision(name):
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 2e-3 * min((step + 1) / warmup, 1)
            images, labels = batches[step % len(batches)]
            with autocast(name, run.device):
                loss = loss_fn(model(images), labels) / labels.numel()
            scaler.scale(loss).backward()
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < scale
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses, skipped


def training(run: Run, section: Section) -> None:
    """Train on generated scenes in each precision, from the same seed."""
    names = usable_precisions(run, section, tuple(DTYPES))
    steps = 12 if run.small else 80
    batches = scene_batches(run, 4 if run.small else 16, 2 if run.small else 8, 64 if run.small else 128)
    part = max(steps // 8, 1)
    curves: dict[str, list[float]] = {}
    for name in names:
        if run.left() < 0:
            section.cut.append(name)
            continue
        losses, skipped = train_on_scenes(run, name, batches, steps)
        curves[name] = losses
        means = [statistics.fmean(losses[i : i + part]) for i in range(0, steps, part)]
        row: dict[str, Any] = {"precision": name, "first": losses[0], "last": means[-1], "skipped updates": skipped}
        section.add(**row)
        finite = all(map(math.isfinite, losses))
        detail = " ".join(f"{mean:.3f}" for mean in means)
        section.check(f"{name}: losses are finite and fall", finite and means[-1] < losses[0], detail)
    section.facts["losses"] = curves
    free_memory(run.device)
