"""Sections of `prove.py` that measure: training steps, predictions and the training data, beside plain torch."""

import time
from unittest import mock

import torch
import torch.nn.functional as F
from visit import IGNORED, Call, Row, Visit, autocast, batch_of, captured, create, median_ms, resized

import segnext_timm
from segmentation import scenes
from segmentation.data import Split, training_samples
from segmentation.recipe import TrainSettings
from segmentation.stepping import GroupedCasts, compile_model
from segnext_timm import kernels


def training_step(visit: Visit, variant: str, batch: int, size: int, way: str) -> tuple[torch.nn.Module, Call]:
    """A model and its step: forward, loss, backward, AdamW.

    Args:
        visit: Device and precision.
        variant: Size of the model.
        batch: Images per batch.
        size: Side of the images in pixels.
        way: "plain" is NCHW without kernels, and the cross-entropy of resized logits. The others are channels_last:
            "train.py", "without grouped casts", "compiled blocks", "CUDA graph" (of forward and backward pass).
    """
    model = create(variant).train()
    model.upsampling = 1
    layout = torch.contiguous_format if way == "plain" else torch.channels_last
    model = model.to(visit.device, memory_format=layout)
    if way in ("train.py", "CUDA graph"):
        model = GroupedCasts(model)
    elif way == "compiled blocks":
        compile_model(model, "blocks")
    images, labels = (x.to(visit.device) for x in batch_of(batch, size, size))
    images = images.contiguous(memory_format=layout)
    loss_fn = segnext_timm.UpsampledCrossEntropyLoss(ignore_index=IGNORED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=visit.cuda)

    def gradients() -> None:
        with autocast(visit.device, visit.half):
            logits = model(images)
            if way == "plain":
                F.cross_entropy(resized(logits.float(), labels.shape[1:]), labels, ignore_index=IGNORED).backward()
            else:
                loss_fn(logits, labels).backward()

    if way == "CUDA graph":  # which writes the same gradients at every replay
        replay = captured(lambda: (model.zero_grad(), gradients()))
        return model, lambda: (replay(), optimizer.step())
    return model, lambda: (gradients(), optimizer.step(), optimizer.zero_grad())


def measured(visit: Visit, call: Call, batch: int, plain: dict[str, float], what: str, way: str) -> Row:
    """Time and peak memory of a call, and its speed relative to the plain way, whose times `plain` keeps by case."""
    if visit.cuda:
        torch.cuda.reset_peak_memory_stats()
    ms = median_ms(call, visit.device, 0.0 if visit.small else 1.0)
    row: Row = {"ms": ms, "images/s": 1e3 * batch / ms}
    if way == "plain":
        plain[what] = ms
    if what in plain:
        row["speed over plain"] = plain[what] / ms
    return {**row, "MB": torch.cuda.max_memory_allocated() / 2**20} if visit.cuda else row


def steps(visit: Visit) -> None:
    """Training steps beside plain torch, and the kernels that take the most time."""
    plain: dict[str, float] = {}
    size = 64 if visit.small else 512
    cases = [(variant, batch) for batch in ((2,) if visit.small else (16, 1)) for variant in visit.variants]
    ways = ["plain", "train.py", "without grouped casts"]
    ways += ["CUDA graph"] * visit.cuda + ["compiled blocks"] * (not visit.small)

    def measure(variant: str, batch: int, way: str) -> Row:
        with mock.patch.object(kernels, "ENABLED", way != "plain"):
            model, step = training_step(visit, variant, batch, size, way)
            row = measured(visit, step, batch, plain, f"{variant} {batch}", way)
        return {**row, "holds": all(bool(p.isfinite().all()) for p in model.parameters())}

    torch.backends.cudnn.benchmark = True  # as train.py
    for way in ways:
        for variant, batch in cases:
            visit.measure(f"{variant}, {batch}×{size}², {way}", measure, variant, batch, way)
    for variant, batch in cases[: len(visit.variants)]:
        visit.measure(f"{variant}, profile", profile, visit, variant, batch, size)
    torch.backends.cudnn.benchmark = False


def profile(visit: Visit, variant: str, batch: int, size: int) -> Row:
    """Write the twenty kernels, or operators on a CPU, of a training step that take the most time; sum all."""
    _, step = training_step(visit, variant, batch, size, "train.py")
    activities = [torch.profiler.ProfilerActivity.CUDA if visit.cuda else torch.profiler.ProfilerActivity.CPU]
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    key = "self_device_time_total" if visit.cuda else "self_cpu_time_total"
    averages = profiler.key_averages()
    path = visit.out / f"profile_{variant}.txt"
    path.write_text(averages.table(sort_by=key, row_limit=20), encoding="utf-8")
    return {"ms": sum(getattr(event, key) for event in averages) / 1e3, "note": path.name}


def inference(visit: Visit) -> None:
    """Logits and labels: plain (NCHW, without kernels), fused in channels_last, compiled, as a CUDA graph."""
    plain: dict[str, float] = {}
    size = 64 if visit.small else 512
    ways = ["plain", "fused"] + ["CUDA graph"] * visit.cuda + ["compiled"] * (not visit.small)

    @torch.no_grad()
    def measure(variant: str, batch: int, task: str, way: str) -> Row:
        model, layout = create(variant).eval(), torch.contiguous_format
        if way != "plain":
            model, layout = segnext_timm.fuse(model), torch.channels_last
        model = model.to(visit.device, memory_format=layout)
        images = batch_of(batch, size, size)[0].to(visit.device).contiguous(memory_format=layout)
        call = model if task == "logits" else model.predict_labels
        if task == "labels" and way == "plain":
            call = lambda x: model(x).argmax(1)  # noqa: E731
        if way == "compiled":
            call = torch.compile(call, mode="reduce-overhead")

        def once() -> torch.Tensor:
            with autocast(visit.device, visit.half):
                return call(images)

        with mock.patch.object(kernels, "ENABLED", way != "plain"):
            ready = captured(once) if way == "CUDA graph" else once
            return measured(visit, ready, batch, plain, f"{task} {variant} {batch}", way)

    for way in ways:
        for variant in visit.variants:
            for batch in (1,) if visit.small else (1, 8):
                for task in ("logits", "labels"):
                    name = f"{task}, {variant}, {batch}×{size}², {way}"
                    visit.measure(name, measure, variant, batch, task, way)


def loader(visit: Visit) -> None:
    """Images per second that the training data give, by number of workers."""
    size, count = (64, 24) if visit.small else (512, 640)
    (visit.out / "data").mkdir(exist_ok=True)
    files = [[visit.out / "data" / f"{i}{suffix}" for i in range(8)] for suffix in (".jpg", ".png")]
    for index, paths in enumerate(zip(*files)):
        for array, path in zip(scenes.draw(0, index, size), paths):
            scenes.Image.fromarray(array).save(path)
    settings = TrainSettings(base_scale=(2048, 512), crop_size=size)
    samples = training_samples(Split("scenes", *files, scenes.CLASSES, scenes.PALETTE), settings)

    def measure(workers: int) -> Row:
        batches = [list(range(i, i + 8)) for i in range(0, count, 8)]
        loading = iter(torch.utils.data.DataLoader(samples, batch_sampler=batches, num_workers=workers))
        next(loading)  # the workers have started
        start = time.monotonic()
        rest = sum(len(batch[0]) for batch in loading)
        return {"images/s": rest / max(time.monotonic() - start, 1e-9)}

    for workers in (0,) if visit.small else (4, 8, 16):
        visit.measure(f"{workers} workers", measure, workers)
