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
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader
from tqdm import tqdm

from segnext_timm import SegNeXt, create_segmenter, list_segmenters, push_to_hub
from segnext_timm.zoo import load_segmenter

from data import Split, ignore_interrupts, open_split, training_samples
from evaluate import evaluate, some_predictions
from pictures import draw_predictions, draw_training
from recipe import SettingsError, TrainSettings, parse, run
from transforms import MEAN, STD

# encoder, decoder channels, rank and drop path rate of the paper's models (its code, configs of ADE20K)
VARIANTS = {
    "t": ("tu-mscan_t", 256, 16, 0.1),
    "s": ("tu-mscan_s", 256, 16, 0.1),
    "b": ("tu-mscan_b", 512, 64, 0.1),
    "l": ("tu-mscan_l", 1024, 64, 0.3),
}
MAX_SKIPPED = 10  # updates in a row


def build_model(settings: TrainSettings, split: Split) -> smp.base.SegmentationModel:
    """The model to train, with the weights it begins with, and what is known of its classes and input."""
    encoder, channels, rank, drop_path = VARIANTS[settings.variant]
    encoder = settings.encoder or encoder
    drop_path = drop_path if settings.drop_path_rate is None else settings.drop_path_rate
    classes = len(split.classes)
    if settings.init_from in ("imagenet", "none"):
        model = SegNeXt(
            encoder,
            encoder_weights="imagenet" if settings.init_from == "imagenet" else None,
            decoder_channels=settings.decoder_channels or channels,
            decoder_rank=settings.decoder_rank or rank,
            classes=classes,
            decoder_one_step_gradient=settings.one_step_gradient,
            **({"drop_path_rate": drop_path} if "mscan" in encoder or settings.drop_path_rate is not None else {}),
        )
    elif any(settings.init_from in (name, name.split(".")[0]) for name in list_segmenters()):
        model = create_segmenter(
            settings.init_from,
            pretrained=True,
            classes=classes,
            drop_path_rate=drop_path,
            decoder_one_step_gradient=settings.one_step_gradient,
        )
    else:
        source = load_segmenter(settings.init_from)
        config = {**source.config, "classes": classes, "encoder_weights": None, "pretrained_cfg": None}
        model = type(source)(**{name: value for name, value in config.items() if not name.startswith("_")})
        own = model.state_dict()
        fitting = {n: v for n, v in source.state_dict().items() if n in own and v.shape == own[n].shape}
        print(f"{settings.init_from}: {len(fitting)} of {len(own)} tensors fit; the others stay as initialised.")
        model.load_state_dict(fitting, strict=False)
    describe(model, split, settings.crop_size)
    model.encoder.requires_grad_(not settings.freeze_encoder)
    if settings.grad_checkpointing:
        (model if isinstance(model, SegNeXt) else model.encoder.model).set_grad_checkpointing(True)
    if settings.compile:
        model.encoder.compile()
    return model


def describe(model: torch.nn.Module, split: Split, crop_size: int) -> None:
    """Tell a model what it is trained on: classes, palette and preprocessing are saved with it."""
    if isinstance(model, SegNeXt):
        known = {"dataset": split.name, "label_names": list(split.classes), "palette": list(map(list, split.palette))}
        origin = {key: url for key, url in model.pretrained_cfg.items() if key == "origin_url"}  # what it begins with
        model.pretrained_cfg.clear()
        model.pretrained_cfg.update(
            known, **origin, mean=list(MEAN), std=list(STD), input_size=[3, crop_size, crop_size]
        )


def training_facts(settings: TrainSettings, iteration: int) -> dict[str, Any]:
    """What a model card tells of the training, up to an iteration."""
    names = ("dataset", "crop_size", "batch_size", "lr", "weight_decay", "precision", "ema_decay", "seed")
    start = Path(settings.init_from)
    return {
        "script": "examples/train.py of segnext-timm",
        "iterations": f"{iteration} of {settings.iterations}",
        **{name: getattr(settings, name) for name in names},
        # the name of a folder here says nothing elsewhere, and may look like one on the Hub
        "init_from": f"{start.name} (a local model)" if start.is_dir() else settings.init_from,
    }


def parameter_groups(model: torch.nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay, as the paper's code has them.

    The encoder's norms do not decay, but for the stem's: the published code exempts parameters by the word "norm" in
    their names, and there the stem's batch norms are called `proj.1` and `proj.4`, the decoder's group norms `gn`.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_encoder = name.startswith("encoder.")
            decays = not (in_encoder and "norm" in name and ".stem." not in name)
            groups.setdefault((in_encoder, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_factor": 1.0 if in_encoder else settings.decoder_lr_factor,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (in_encoder, decays), parameters in groups.items()
    ]


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


class LossModel(torch.nn.Module):
    """A model whose output is its loss: of several processes, gradients are averaged for what is called as a whole.

    The loss is cross-entropy, averaged over all pixels as in the published code, those to ignore counting as 0.
    """

    def __init__(self, model: torch.nn.Module, ignore_index: int) -> None:
        super().__init__()
        self.model = model
        self.options = {"ignore_index": ignore_index, "reduction": "sum"}

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if isinstance(self.model, SegNeXt):
            return self.model.cross_entropy(images, labels, **self.options) / labels.numel()
        return F.cross_entropy(self.model(images).float(), labels, **self.options) / labels.numel()


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill an empty folder, then move its files to `folder`, so that none is ever half-written there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        write(Path(temporary))
        for file in Path(temporary).iterdir():
            file.chmod(0o644)
            file.replace(folder / file.name)


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
    accelerator = Accelerator(mixed_precision=settings.precision, log_with=log_with, project_dir=out)
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

    # Model
    torch.manual_seed(settings.seed)
    model = build_model(settings, train_split)
    model = model.to(device, memory_format=torch.channels_last if settings.channels_last else torch.preserve_format)
    if processes > 1 and device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif processes > 1:
        accelerator.print(f"Batch norms are not synchronised: torch does so on GPUs only, and this is {device.type}.")
    average = ModelEmaV3(model, decay=settings.ema_decay) if settings.ema_decay else None
    plain, trained = model, average.module if average else model  # without wrappers; what is evaluated and saved

    # Optimiser
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=settings.lr, fused=fused)
    model, optimizer = accelerator.prepare(LossModel(model, train_split.ignore_index), optimizer)

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
        accelerator.print(f"Going on from iteration {first} of {settings.iterations}.")
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
            out.mkdir(parents=True, exist_ok=True)
            torch.save(state, out / ".checkpoint.new")
            (out / ".checkpoint.new").replace(checkpoint)

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
        if scores.miou > best:
            best = scores.miou
            replace_files(out / "best", trained.save_pretrained)
        replace_files(out / "last", trained.save_pretrained)
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
                    loss = model(images, labels) / settings.accumulate
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
