"""Train SegNeXt with the paper's recipes or on your own images.

    python examples/train.py examples/recipes/folder.yaml --data_root DIR                          # one GPU, or a CPU
    accelerate launch --num_processes 4 examples/train.py examples/recipes/ade20k.yaml --variant b --precision bf16
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
        examples/train.py examples/recipes/cityscapes.yaml --variant l                             # two nodes

A recipe holds the settings that differ from the paper's ADE20K settings. The command line can override any setting.
The output folder (`--out`) holds `best` and `last`, which `smp.from_pretrained` loads, the log, and pictures of
predictions.

After Ctrl-C or a crash, the same command resumes the run from `checkpoint.pt` in the output folder, and ends with the
same weights as an uninterrupted run. If the loss is not finite, the update is skipped and the images are listed; after
ten skipped updates in a row, the run stops. Both are noticed at the next log entry: a step does not wait for the GPU.
On a GPU, a resumed run ends with exactly the same weights only with `--deterministic`.
"""

import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from huggingface_hub import get_token
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from segmentation.balancing import balance_classes
from segmentation.bands import find_form
from segmentation.checks import PATIENT, check_lines, in_first_process
from segmentation.data import ignore_interrupts, training_samples, worker_count
from segmentation.evaluation import end, evaluate, some_predictions
from segmentation.files import check_space, check_writable, fill_when_complete, replace_when_complete
from segmentation.layouts import open_split
from segmentation.losses import build_loss, check_loss
from segmentation.memory import LESS_MEMORY, memory_lines
from segmentation.models import (
    build_model,
    normalization,
    note_results,
    paper_parameter_groups,
    training_facts,
    with_synced_norms,
)
from segmentation.pictures import draw_predictions, draw_training
from segmentation.progress import progress_bar, report
from segmentation.recipe import SettingsError, TrainSettings, UserError, mixed_precision, parse, run, slow_precision
from segmentation.resuming import changed_rate, changed_settings, load_optimizer, read_checkpoint
from segmentation.scale import find_scale
from segmentation.stepping import (
    BatchCopier,
    GroupedCasts,
    RunningStatistics,
    Stopping,
    check_schedule,
    compile_model,
    gradient_norm,
    lr_at,
    prefers_fused,
    step_if,
    stops_early,
)
from segmentation.tracking import Tracking
from segmentation.transforms import normalize_batch, own_transform
from segnext_timm import SegNeXt, SegNeXtError, push_to_hub

MAX_SKIPPED = 10  # updates in a row


def sample_numbers(settings: TrainSettings, start: int, process: int, processes: int) -> Iterator[list[int]]:
    """Yield the sample numbers of one process, batch by batch. Together, the processes use each sample once."""
    size = settings.batch_size // (processes * settings.accumulate)
    for iteration in range(start, settings.iterations):
        for part in range(settings.accumulate):
            first = iteration * settings.batch_size + (part * processes + process) * size
            yield list(range(first, first + size))


class Trainer:
    """A training run: the constructor sets it up, `run` trains. The methods are in the order in which they run.

    Args:
        settings: Data, model and schedule.

    Raises:
        SettingsError: If the batch cannot be divided among processes, or `out` holds another run.
        DataError: If the data cannot be trained on.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.out = Path(settings.out)
        self.checkpoint = self.out / "checkpoint.pt"
        self.tracking = Tracking(settings)
        precision = mixed_precision(settings.precision)
        # products of the decomposition, which autocast leaves in float32, keep as many digits as the rest
        torch.backends.cuda.matmul.allow_tf32 = precision != "no"
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True)
        # statistics of batch norms are broadcast when they are used, and not in every step
        # torch 2.14 has a new name for it, which neither older releases nor accelerate know
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        ddp = DistributedDataParallelKwargs(
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            static_graph=settings.accumulate == 1,  # allows for parameters without a gradient, as the next does
            find_unused_parameters=settings.accumulate > 1,
        )
        self.accelerator = Accelerator(
            mixed_precision=precision, log_with=self.tracking.name, project_dir=self.out, kwargs_handlers=[ddp, PATIENT]
        )
        self.device, self.processes = self.accelerator.device, self.accelerator.num_processes
        self.copy_batch = BatchCopier(self.device)
        if settings.batch_size % (shares := self.processes * settings.accumulate):
            raise SettingsError(
                f"--batch_size {settings.batch_size} cannot be divided among {self.processes} processes and "
                f"{settings.accumulate} accumulated batches: make it a multiple of {shares}."
            )
        if settings.push_to_hub and not get_token():
            raise SettingsError("there is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.")
        check_schedule(settings)
        if settings.augment:
            own_transform(settings.augment)  # refuses a wrong name before the data are read
        in_first_process(self.accelerator, lambda: check_writable("out", self.out))
        self.iteration, self.best_miou = 0, -1.0  # the next one, the highest so far
        self.losses: list[float] = []
        self.unread: list[torch.Tensor] = []  # loss and gradient's norm of iterations since they were last read
        self.mious: list[tuple[int, float]] = []
        self.skipped = 0  # updates in a row
        self.restart_clock()
        self.set_up_data()
        self.set_up_model()
        self.resume()
        self.loss_fn = build_loss(settings, self.train_split.ignore_index, self.balance.weights, self.device)

    def set_up_data(self) -> None:
        """Open the splits; the first process checks their files, for all."""
        settings = self.settings
        root, workers = settings.data_root, worker_count(settings)
        train, val = self.train_split, self.val_split = [
            open_split(settings.dataset, root, name, settings.ignore_index) for name in ("train", "val")
        ]
        check_loss(settings, train.classes)
        self.data = f"{len(train)} training images of {len(train.classes)} classes ({train.fingerprint()})"
        labels = (*train.labels, *val.labels)
        self.label_bytes = in_first_process(self.accelerator, lambda: sum(path.stat().st_size for path in labels))
        form, note = in_first_process(self.accelerator, lambda: find_form(train, settings, self.checkpoint))
        train.form = val.form = form
        lines = [*dict.fromkeys([*train.notes, *val.notes]), note]
        if settings.warmup >= settings.iterations:
            lines.append(f"Warning: --warmup {settings.warmup} is no less than --iterations: the rate only rises.")
        if settings.check_data:
            lines += in_first_process(self.accelerator, lambda: check_lines(train, val, root, workers))
        self.balance = in_first_process(self.accelerator, lambda: balance_classes(train, settings, workers))
        # the check remembers the sizes of the images
        base_scale, fit_in, said = in_first_process(self.accelerator, lambda: find_scale(train, settings))
        self.settings = replace(settings, base_scale=base_scale, fit_in=fit_in)
        lines += [*self.balance.notes, *said]
        lines = lines if not self.checkpoint.is_file() else []  # said when the run began
        for line in filter(None, (*lines, slow_precision(self.device, settings.precision))):
            self.accelerator.print(line)

    def set_up_model(self) -> None:
        """Create model, samples, moving average and optimizer.

        Sample k depends only on the seed, so a resumed run continues with the same samples.
        """
        settings = self.settings
        torch.manual_seed(settings.seed)
        memory_format = torch.channels_last if settings.channels_last else torch.preserve_format
        report = (lambda text: None) if self.checkpoint.is_file() else self.accelerator.print  # it replaces the weights
        model = build_model(settings, self.train_split, report)
        self.normalization = normalization(model)
        on_device = self.device.type == "cuda"  # else Pillow computes colors, in the loader's processes
        self.samples = training_samples(self.train_split, settings, self.normalization, self.balance.sampler, on_device)
        model = model.to(self.device, memory_format=memory_format)
        model = with_synced_norms(model, settings.sync_batchnorm, self.processes, self.device, self.accelerator.print)
        compile_model(model, settings.compile)
        self.raw_model = model  # not wrapped by GroupedCasts and DistributedDataParallel
        self.ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        self.eval_model = self.ema.module if self.ema else model  # evaluated and saved
        self.statistics = [RunningStatistics(m) for m in (model, self.ema.module if self.ema else None) if m]
        groups, fused = paper_parameter_groups(model, settings), prefers_fused(self.device)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=fused)
        # fewer operators, but DistributedDataParallel then sends all gradients after the backward pass
        casts = settings.compile == "off" and settings.precision != "fp32"
        self.model, self.optimizer = self.accelerator.prepare(GroupedCasts(model) if casts else model, optimizer)
        in_first_process(self.accelerator, lambda: check_space(self.out, self.raw_model, self.ema is not None))

    def resume(self) -> None:
        """Load the checkpoint of an interrupted run, if there is one. The first process reads it for all."""
        file = self.checkpoint  # other nodes may not have it
        state = in_first_process(
            self.accelerator, lambda: read_checkpoint(file, self.settings, self.data) if file.is_file() else None
        )
        if state is None:
            if (self.out / "last").is_dir():
                self.accelerator.print(f"Warning: {self.out} holds a model but no checkpoint: the run starts anew.")
            return
        self.raw_model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(state["average"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.iteration, self.best_miou = state["iteration"], state["best"]
        self.losses, self.mious = state["losses"], state["mious"]
        self.balance.weights = state.get("class_weights")  # even if labels have changed
        self.tracking.state = state.get("tracking", self.tracking.state)  # of a run that an older version began
        total, changed = self.settings.iterations, changed_settings(state["settings"], self.settings)
        label_bytes = state.get("label_bytes", self.label_bytes)
        if self.finished:
            more = "early_stopping" if self.iteration < total else "iterations"
            models = f"its models are {self.out / 'best'} and {self.out / 'last'}"
            self.accelerator.print(
                f"The run is already finished: {models}. A larger --{more} continues it, another --out starts anew."
            )
        else:
            self.accelerator.print(f"Resuming at iteration {self.iteration} of {total}, with the saved weights.")
            if label_bytes != self.label_bytes:
                changed.append(f"label files of {label_bytes:,} bytes, now {self.label_bytes:,}")
        if changed:
            title = "These settings were not used" if self.finished else "Changed since the checkpoint"
            self.accelerator.print(f"{title}: {'; '.join(changed)}.")
        line = changed_rate(state, self.settings)
        if line and not self.finished:
            self.accelerator.print(line)

    @property
    def finished(self) -> bool:
        """Whether all iterations are done, or the run stops early."""
        early = stops_early(self.mious, self.settings.early_stopping)
        return early or self.iteration >= self.settings.iterations

    def run(self) -> None:
        """Train from `iteration` until the run is finished, or a signal."""
        settings, best = self.settings, self.out / "best"
        if self.finished:
            return
        if self.accelerator.is_main_process:
            on_cpu = build_loss(settings, self.train_split.ignore_index, self.balance.weights)
            print(*memory_lines(self.raw_model, on_cpu, settings, self.device, self.processes), sep="\n")
        self.tracking.start(self.accelerator, self.iteration)
        batches, stop = iter(self.loader()), Stopping(self.accelerator)
        self.progress = progress_bar(
            range(self.iteration, settings.iterations),
            desc="train",
            unit="it",
            initial=self.iteration,
            total=settings.iterations,
            hidden=not self.accelerator.is_main_process,
        )
        self.restart_clock()
        torch.backends.cudnn.benchmark = not settings.deterministic  # all images have one size
        for iteration in self.progress:
            self.prepare_iteration(iteration)
            self.update(self.accumulate_gradient(batches))
            self.iteration = iteration + 1
            stopping = stop.is_agreed()
            last = stopping or self.iteration == settings.iterations
            evaluating = self.iteration % settings.eval_every == 0 or self.iteration == settings.iterations
            saving = self.iteration % settings.save_every == 0 or evaluating or last
            if self.iteration % settings.log_every == 0 or evaluating or saving:
                self.read_losses()
            self.log()
            if evaluating:
                self.validate()
            if saving:
                self.save_checkpoint()
            if stopping:
                self.progress.close()
                self.accelerator.print(f"Stopped after iteration {self.iteration}: the same command resumes the run.")
                end(self.accelerator)
                if self.processes == 1:  # of several, the launcher gives the status
                    sys.exit(128 + stop.signals[0])
                return
            if self.finished and not last:
                self.progress.close()
                self.accelerator.print(f"Stopped early: no better mIoU in {settings.early_stopping} evaluations.")
                break
        self.accelerator.print(f"Best mIoU {self.best_miou:.4f}: {best}. Last: {self.out / 'last'}.")
        end(self.accelerator)
        if settings.push_to_hub and self.accelerator.is_main_process:
            try:
                print(push_to_hub(best, settings.push_to_hub).commit_url)
            except (SegNeXtError, OSError) as error:
                again = f"segnext-timm push {best} {settings.push_to_hub}"
                raise UserError(f"{error} The run is finished, and its models are there; to push: {again}") from None

    def loader(self) -> DataLoader:
        """Create the loader of this process's samples, from `iteration` on."""
        workers = worker_count(self.settings)
        return DataLoader(
            self.samples,
            batch_sampler=sample_numbers(self.settings, self.iteration, self.accelerator.process_index, self.processes),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        )

    def prepare_iteration(self, iteration: int) -> None:
        """1. Set the learning rates and the seed: drop path, dropout and bases depend only on the iteration."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(iteration, self.settings) * group["lr_factor"]
        seed = self.settings.seed * 1_000_003 + iteration
        torch.manual_seed(seed * self.processes + self.accelerator.process_index)
        self.model.train()
        if self.settings.freeze_encoder:
            self.raw_model.encoder.eval()
        self.statistics[0].save()

    def accumulate_gradient(self, batches: Iterator[list[torch.Tensor]]) -> torch.Tensor:
        """2. Accumulate the gradients of one iteration's batches.

        Args:
            batches: Yields what :class:`TrainTransform` returns, in batches.

        Returns:
            The mean loss of all processes, a scalar on the device.
        """
        settings, total = self.settings, torch.zeros((), device=self.device)
        for part in range(settings.accumulate):
            images, labels = self.next_batch(batches)
            last = part == settings.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    loss = self.loss_fn(self.model(images), labels) / settings.accumulate
                self.accelerator.backward(loss)
            total += loss.detach()
        return self.accelerator.reduce(total, "mean") if self.processes > 1 else total

    def next_batch(self, batches: Iterator[list[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Get images (B, C, H, W) and labels (B, H, W) on the device, and note the time waited for them."""
        start = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - start
        images, labels, *colors = self.copy_batch(batch)
        if colors:
            images = normalize_batch(images, *colors, self.normalization)
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels.long()

    def update(self, loss: torch.Tensor) -> None:
        """3. Update the weights, unless loss or gradient is not finite. In float16, the scaler checks the gradient.

        A fused optimizer decides on the device. The moving average then counts a skipped update as a step.
        """
        self.accelerator.unscale_gradients()
        norm = gradient_norm(self.model.parameters(), self.settings.clip_grad)
        finite = loss.isfinite()
        if self.accelerator.scaler is None:
            finite = finite & norm.isfinite()
            updated = step_if(finite, self.optimizer)
        else:
            self.optimizer.step()
            updated = True
        self.statistics[0].restore_unless(finite)
        if self.ema and updated:
            self.ema.update(self.raw_model, step=self.iteration + 1)
        self.optimizer.zero_grad()
        self.unread.append(torch.stack([loss, norm]))

    def read_losses(self) -> None:
        """Read the losses of the iterations since the last call, which waits for the device.

        Raises:
            SettingsError: If `MAX_SKIPPED` updates in a row were skipped.
        """
        for k, (loss, norm) in enumerate(torch.stack(self.unread).tolist(), self.iteration - len(self.unread)):
            self.losses.append(loss)
            finite = math.isfinite(loss) and (self.accelerator.scaler is not None or math.isfinite(norm))
            self.skipped = 0 if finite else self.skipped + 1
            if finite:
                continue
            numbers = range(k * self.settings.batch_size, (k + 1) * self.settings.batch_size)
            files = ", ".join(self.train_split.images[self.samples.locate(number)].name for number in numbers)
            self.accelerator.print(f"\niteration {k}: loss {loss}, gradient {norm}; no update. Images: {files}")
            if self.skipped == MAX_SKIPPED:
                raise SettingsError(f"the loss was not finite {MAX_SKIPPED} times in a row: try a smaller --lr.")
        self.unread.clear()

    @property
    def mean_loss(self) -> float:
        """Mean of the last 50 losses, without those that are not finite; NaN if none is."""
        return float(np.mean([loss for loss in self.losses[-50:] if math.isfinite(loss)] or [math.nan]))

    def restart_clock(self) -> None:
        """Measure speed from here on: not over an evaluation."""
        self.clock, self.waited = time.monotonic(), 0.0  # in seconds; the time waited for data
        self.timed_from = self.iteration

    def log(self) -> None:
        """4. Log loss, rate, speed, and the share of time that was spent waiting for data."""
        settings = self.settings
        if self.iteration % settings.log_every:
            return
        taken, iterations = time.monotonic() - self.clock, self.iteration - self.timed_from
        speed, waiting = iterations * settings.batch_size / taken, self.waited / taken
        self.restart_clock()
        lr, mean = lr_at(self.iteration - 1, settings), self.mean_loss
        shown = {"loss": f"{mean:.3f}", "lr": f"{lr:.1e}", "images_per_s": f"{speed:.1f}", "wait": f"{waiting:.0%}"}
        report(self.progress, "iteration", self.iteration, settings.log_every, shown, self.accelerator.print)
        values = {"loss": self.losses[-1], "lr": lr, "images_per_second": speed, "waiting_for_data": waiting}
        self.accelerator.log(values, step=self.iteration)

    def validate(self) -> None:
        """5. Evaluate, save the model, also as the best if it is, and draw some predictions."""
        model, split = self.eval_model, self.val_split
        self.share_statistics()
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False  # images have many sizes
        with torch.compiler.set_stance("force_eager"):  # for the same reason
            scores = evaluate(model, split, self.settings, self.accelerator, by_position=True)
        self.mious.append((self.iteration, scores.miou))
        best_before, self.best_miou = self.best_miou, max(self.best_miou, scores.miou)
        if self.accelerator.is_main_process:
            before = "first" if best_before < 0 else f"best before {best_before:.4f}"
            self.progress.write(f"iteration {self.iteration}: mIoU {scores.miou:.4f}, {before}")
            lr = lr_at(self.iteration - 1, self.settings)
            self.tracking.log_evaluation(self.iteration, self.mean_loss, lr, scores)
            if isinstance(model, SegNeXt):
                note_results(model, split, scores)
                model.pretrained_cfg["training"] = training_facts(self.settings, self.iteration)
            for name in ("best", "last") if scores.miou > best_before else ("last",):
                with fill_when_complete(self.out / name) as folder:
                    model.save_pretrained(folder)
            pictures = self.out / "predictions"
            pictures.mkdir(exist_ok=True)
            shown = some_predictions(model, split, 4, self.settings)
            picture = pictures / f"{self.iteration:06d}.png"
            draw_predictions(shown, split.classes, split.palette, picture)
            self.tracking.log_picture(self.iteration, picture)
            draw_training(self.losses, self.mious, self.out / "training.png", self.settings.loss)
        torch.backends.cudnn.benchmark = benchmark
        self.restart_clock()

    def share_statistics(self) -> None:
        """Give all processes the batch norms' statistics of the first one."""
        if self.processes > 1:
            for statistics in self.statistics:
                statistics.broadcast()

    def save_checkpoint(self) -> None:
        """6. Write all that resuming needs; the file is replaced at once, so that there always is a whole one."""
        self.share_statistics()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "iteration": self.iteration,
                "model": self.raw_model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.ema.module.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler else None,
                "best": self.best_miou,
                "losses": self.losses,
                "mious": self.mious,
                "class_weights": self.balance.weights,
                "tracking": self.tracking.state,
                "settings": asdict(self.settings),
                "data": self.data,
                "label_bytes": self.label_bytes,
                "images": asdict(self.train_split.form),
            }
            with replace_when_complete(self.checkpoint) as new, new.open("wb") as file:
                torch.save(state, file)


def main(argv: list[str]) -> None:
    """Train as a recipe, `argv[0]`, and the settings after it say."""
    settings = parse(TrainSettings, argv, __doc__.split("\n")[0])
    try:
        Trainer(settings).run()
    except torch.OutOfMemoryError as error:
        raise UserError(f"the GPU's memory is full: {LESS_MEMORY}. {str(error).splitlines()[0]}") from None


if __name__ == "__main__":
    run(main)
