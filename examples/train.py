"""Train SegNeXt by the paper's recipes, or on images of your own.

    python examples/train.py examples/recipes/folder.yaml --data_root DIR                          # one GPU, or a CPU
    accelerate launch --num_processes 4 examples/train.py examples/recipes/ade20k.yaml --variant b --precision bf16
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
        examples/train.py examples/recipes/cityscapes.yaml --variant l                             # two nodes

A recipe holds the settings that differ from the paper's for ADE20K; any can be given on the command line. The run's
folder (`--out`) holds `best` and `last`, which `smp.from_pretrained` loads, the log, and pictures of predictions.

A run that was stopped, by Ctrl-C or otherwise, goes on from `checkpoint.pt` in its folder when the same command is
given again, and ends with the weights it would have had. A loss that is not finite skips the update and says where;
after ten in a row, the run stops.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader
from tqdm import tqdm

from segmentation.data import check_labels, ignore_interrupts, training_samples
from segmentation.evaluation import evaluate, some_predictions
from segmentation.layouts import open_split
from segmentation.models import build_model, parameter_groups, training_facts, with_synced_norms
from segmentation.pictures import draw_predictions, draw_training
from segmentation.recipe import SettingsError, TrainSettings, mixed_precision, parse, run
from segnext_timm import SegNeXt, UpsampledCrossEntropyLoss, push_to_hub
from segnext_timm._atomic import fill_when_complete, replace_when_complete
from segnext_timm.prediction.pipeline import slow_precision

MAX_SKIPPED = 10  # updates in a row


def lr_at(iteration: int, settings: TrainSettings) -> float:
    """Learning rate of the encoder at an iteration, from 0: a linear rise from a millionth, then a linear fall to 0."""
    if iteration < settings.warmup:
        share = iteration / max(settings.warmup - 1, 1)
        return settings.lr * (1e-6 + (1 - 1e-6) * share)
    steps = settings.iterations - settings.warmup - 1
    return settings.lr * max(1 - (iteration - settings.warmup) / max(steps, 1), 0.0)


def sample_numbers(settings: TrainSettings, start: int, process: int, processes: int) -> Iterator[list[int]]:
    """Which samples a process takes, batch by batch, from an iteration on. Together the processes take each once."""
    size = settings.batch_size // (processes * settings.accumulate)
    for iteration in range(start, settings.iterations):
        for part in range(settings.accumulate):
            first = iteration * settings.batch_size + (part * processes + process) * size
            yield list(range(first, first + size))


def mean_over_pixels(
    loss_fn: UpsampledCrossEntropyLoss, output: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor
) -> torch.Tensor:
    """A summed loss averaged over all pixels, as in the published code: pixels to ignore count as 0.

    Args:
        loss_fn: With `reduction="sum"`.
        output: Of the model: logits (B, classes, h, w), or a tuple that begins with them.
        labels: Shape (B, H, W).
    """
    logits = output[0] if isinstance(output, tuple) else output
    return loss_fn(logits, labels) / labels.numel()


def stop_on_signals() -> list[int]:
    """A list that Ctrl-C, or SIGTERM, adds to; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received


def main(argv: list[str]) -> None:
    settings = parse(TrainSettings, argv, __doc__.split("\n")[0])
    log_with = None if settings.tracker == "none" else settings.tracker
    out = Path(settings.out)
    precision = mixed_precision(settings.precision)
    accelerator = Accelerator(mixed_precision=precision, log_with=log_with, project_dir=out)
    processes, device = accelerator.num_processes, accelerator.device
    if settings.batch_size % (processes * settings.accumulate):
        raise SettingsError(
            f"batch_size {settings.batch_size} cannot be shared among {processes} processes and {settings.accumulate} "
            f"accumulated batches: make it a multiple of {processes * settings.accumulate}."
        )

    # Data: sample k is the same in every run of a seed, so a run that goes on sees what it would have seen
    train_split, val_split = (
        open_split(settings.dataset, settings.data_root, name, settings.ignore_index) for name in ("train", "val")
    )
    samples = training_samples(train_split, settings)
    for warning in (check_labels(train_split), slow_precision(device, settings.precision)):
        if warning:
            accelerator.print(warning)

    # Model
    torch.manual_seed(settings.seed)
    model = build_model(settings, train_split, accelerator.print)
    model = model.to(device, memory_format=torch.channels_last if settings.channels_last else torch.preserve_format)
    model = with_synced_norms(model, settings.sync_batchnorm, processes, device, accelerator.print)
    average = ModelEmaV3(model, decay=settings.ema_decay) if settings.ema_decay else None
    plain, trained = model, average.module if average else model  # without wrappers; what is evaluated and saved

    # Optimizer
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=settings.lr, fused=fused)
    model, optimizer = accelerator.prepare(model, optimizer)
    loss_fn = UpsampledCrossEntropyLoss(ignore_index=train_split.ignore_index, reduction="sum")

    # Resume
    checkpoint, first, best, losses, mious = out / "checkpoint.pt", 0, -1.0, [], []
    if checkpoint.is_file():
        if not settings.resume:
            raise SettingsError(f"{checkpoint} is that of another run: choose another --out, or remove it.")
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        same = ("dataset", "variant", "batch_size", "iterations", "seed", "crop_size")
        changed = [name for name in same if state["settings"][name] != getattr(settings, name)]
        if changed:
            raise SettingsError(f"{checkpoint} was made with another {', '.join(changed)}: choose another --out.")
        plain.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average:
            average.module.load_state_dict(state["average"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
        first, best, losses, mious = (state[name] for name in ("iteration", "best", "losses", "mious"))
        accelerator.print(f"Going on from iteration {first} of {settings.iterations}, with the weights there.")
        if first >= settings.iterations:
            accelerator.print(f"The run is finished: its models are {out / 'best'} and {out / 'last'}.")
            return
    if log_with:
        accelerator.init_trackers("log", config={k: str(v) for k, v in asdict(settings).items()})

    def save_checkpoint(iteration: int) -> None:
        """Write all that going on needs; the file is replaced at once, so that there always is a whole one."""
        if accelerator.is_main_process:
            state = {
                "iteration": iteration,
                "model": plain.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.module.state_dict() if average else None,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
                "best": best,
                "losses": losses,
                "mious": mious,
                "settings": asdict(settings),
            }
            with replace_when_complete(checkpoint) as new:
                torch.save(state, new)

    def validate(iteration: int) -> None:
        """Evaluate, keep the best model, and draw some predictions."""
        nonlocal best
        scores = evaluate(trained, val_split, settings, accelerator)
        mious.append((iteration, scores.miou))
        if not accelerator.is_main_process:
            best = max(best, scores.miou)
            return
        tqdm.write(f"iteration {iteration}: mIoU {scores.miou:.4f}, best before {max(best, 0):.4f}")
        by_class = {f"iou/{name}": v for name, v in zip(scores.classes, scores.iou.tolist()) if not math.isnan(v)}
        accelerator.log({"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc, **by_class}, step=iteration)
        result = {"dataset": val_split.name, "split": "val", "metric": "mIoU", "value": round(100 * scores.miou, 2)}
        if isinstance(trained, SegNeXt):
            trained.pretrained_cfg["results"] = [{**result, "setting": "single scale"}]
            trained.pretrained_cfg["training"] = training_facts(settings, iteration)
        for name in ("best", "last") if scores.miou > best else ("last",):
            with fill_when_complete(out / name) as folder:
                trained.save_pretrained(folder)
        best = max(best, scores.miou)
        (out / "predictions").mkdir(exist_ok=True)
        shown = some_predictions(trained, val_split, 4, settings.eval_fit)
        draw_predictions(shown, val_split.classes, val_split.palette, out / "predictions" / f"{iteration:06d}.png")
        draw_training(losses, mious, out / "training.png", "cross-entropy")

    # Training
    loader = DataLoader(
        samples,
        batch_sampler=sample_numbers(settings, first, accelerator.process_index, processes),
        num_workers=settings.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_interrupts,
    )
    batches, skipped = iter(loader), 0
    stop = stop_on_signals()
    progress = tqdm(
        range(first, settings.iterations),
        desc="train",
        unit="it",
        initial=first,
        total=settings.iterations,
        disable=not accelerator.is_main_process,
    )
    clock = time.monotonic()
    for iteration in progress:
        # 1. Set the rates, and seed: drop path, dropout and the decomposition's bases depend on nothing before
        for group in optimizer.param_groups:
            group["lr"] = lr_at(iteration, settings) * group["lr_factor"]
        torch.manual_seed((settings.seed * 1_000_003 + iteration) * processes + accelerator.process_index)
        model.train()
        if settings.freeze_encoder:
            plain.encoder.eval()

        # 2. Accumulate the gradient
        statistics = [buffer.clone() for buffer in plain.buffers()]
        total = torch.zeros((), device=device)
        for part in range(settings.accumulate):
            images, labels = (t.to(device, non_blocking=True) for t in next(batches))
            if settings.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            last = part == settings.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(model):
                with accelerator.autocast():
                    loss = mean_over_pixels(loss_fn, model(images), labels) / settings.accumulate
                accelerator.backward(loss)
            total += loss.detach()
        signalled = torch.tensor(float(bool(stop)), device=device)  # all processes stop after the same iteration
        loss, stopping = accelerator.reduce(torch.stack([total, signalled]), "mean").tolist()

        # 3. Step, unless loss or gradient is not finite; float16's scaler looks after the gradient itself
        norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip_grad or math.inf).item()
        finite = math.isfinite(loss) and (accelerator.scaler is not None or math.isfinite(norm))
        skipped = 0 if finite else skipped + 1
        if not finite:
            for buffer, before in zip(plain.buffers(), statistics):
                buffer.copy_(before)  # of the batch norms, which have seen what it came from
            numbers = range(iteration * settings.batch_size, (iteration + 1) * settings.batch_size)
            files = [train_split.images[samples.locate(k)].name for k in numbers]
            accelerator.print(
                f"\niteration {iteration}: loss {loss}, gradient {norm}; no update. Images: {', '.join(files)}"
            )
            if skipped == MAX_SKIPPED:
                raise SettingsError(f"the loss was not finite {MAX_SKIPPED} times in a row: try a smaller --lr.")
        if finite or accelerator.scaler:
            optimizer.step()
            if average:
                average.update(plain)
        optimizer.zero_grad()
        losses.append(loss)

        # 4. Log, evaluate, save
        done = iteration + 1
        if done % settings.log_every == 0:
            rate = settings.log_every * settings.batch_size / (time.monotonic() - clock)
            clock = time.monotonic()
            lr = lr_at(iteration, settings)
            progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", lr=f"{lr:.1e}", images_per_s=f"{rate:.1f}")
            accelerator.log({"loss": loss, "lr": lr, "images_per_second": rate}, step=done)
        if done % settings.eval_every == 0 or done == settings.iterations:
            validate(done)
            clock = time.monotonic()
        if done % settings.save_every == 0 or done == settings.iterations or stopping:
            save_checkpoint(done)
        if stopping:
            progress.close()
            accelerator.print(f"Stopped after iteration {done}: the same command goes on from there.")
            return
    accelerator.print(f"Best mIoU {best:.4f}: {out / 'best'}. Last: {out / 'last'}.")
    if settings.push_to_hub and accelerator.is_main_process:
        print(push_to_hub(out / "best", settings.push_to_hub).commit_url)
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
