"""Train SegNeXt on a small data set and look at the result: minutes on any CPU.

    python examples/quickstart.py                                   # on street scenes it draws itself
    python examples/quickstart.py --data DIR                        # on your own images
    python examples/quickstart.py --data camvid --ignore-index 11   # where one label means "unlabeled"

A data folder holds `images/train`, `images/val`, `labels/train`, `labels/val` and `classes.txt` with one class name per
line. The labels of an image are a PNG of the same name. Its pixels are line numbers from 0, or the values or colors in
`classes.txt` (`255 person`, `#ff0000 road`). One more value, `--ignore-index` (default: 255), marks pixels to ignore.

The results go to `runs/quickstart`: `model.safetensors`, `config.json` and the model card `README.md`, which
`smp.from_pretrained` loads; `predictions.png` and `training.png`; and held-out scenes in `scenes`, for the command that
is printed at the end. Ctrl-C ends the training early and keeps the model so far.

This script trains for a few hundred steps with a fast schedule. `train.py` follows the paper's recipes.
"""

import argparse
import math
import shutil
import sys
import time
from pathlib import Path

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from segmentation import scenes
from segmentation.checks import check_splits
from segmentation.data import Split, TrainSamples, worker_count
from segmentation.evaluation import evaluate, some_predictions
from segmentation.files import check_writable, fill_when_complete
from segmentation.layouts import open_folder
from segmentation.metrics import Scores
from segmentation.models import describe, note_results
from segmentation.pictures import draw_predictions, draw_training
from segmentation.progress import progress_bar, report
from segmentation.recipe import DataSettings, UserError
from segmentation.transforms import RandomResizedCrop, TrainTransform
from segnext_timm import SegNeXtError, load_segmenter, predict
from segnext_timm.variants import MIN_SIDE


class Scenes(Split):
    """Street scenes drawn from a seed, and kept in memory."""

    def __init__(self, seed: int, count: int, size: int = 128) -> None:
        names = [Path(f"scene {index}") for index in range(count)]
        super().__init__("street scenes", names, names, scenes.CLASSES, scenes.PALETTE)
        self.drawn = [
            scenes.draw(seed, index, size) for index in progress_bar(range(count), desc="draw scenes", leave=False)
        ]

    def open(self, index: int) -> tuple[Image.Image, np.ndarray]:
        image, labels = self.drawn[index]
        return Image.fromarray(image), labels


def train(model: torch.nn.Module, loader: DataLoader, val_split: Split, accelerator: Accelerator, args) -> dict:
    """Train with AdamW and a one-cycle schedule; Ctrl-C ends it early.

    Returns:
        The loss of each step, and (step, mIoU) of each evaluation, under the keys "loss" and "miou".
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=val_split.ignore_index)
    history = {"loss": [], "miou": []}
    evaluate_every = max(args.steps // 5, 1)
    progress = progress_bar(loader, desc="train", unit="step")
    model.train()
    try:
        for step, (images, labels) in enumerate(progress, start=1):
            images = images.to(accelerator.device, memory_format=torch.channels_last)
            labels = labels.to(accelerator.device)
            with accelerator.autocast():
                logits = model(images).float()
            loss = F.cross_entropy(logits, labels, ignore_index=val_split.ignore_index) + dice(logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            history["loss"].append(loss.item())
            if not math.isfinite(history["loss"][-1]):
                raise UserError(f"the loss is {history['loss'][-1]} at step {step}: try a smaller --lr.")
            if step % evaluate_every == 0 and step < args.steps:
                history["miou"].append((step, evaluate(model, val_split, DataSettings(workers=0), accelerator).miou))
            shown = {"loss": f"{np.mean(history['loss'][-20:]):.3f}"}
            shown |= {"mIoU": f"{history['miou'][-1][1]:.3f}"} if history["miou"] else {}
            report(progress, "step", step, 1, shown)
    except KeyboardInterrupt:
        progress.close()
        print(f"Stopped after {len(history['loss'])} of {args.steps} steps; keeping the model so far.")
    return history


def save(model: torch.nn.Module, split: Split, scores: Scores, history: dict, folder: Path) -> None:
    """Write the model, its card and pictures of its predictions and training."""
    model.save_pretrained(folder)
    shown = some_predictions(model, split, 6, DataSettings())
    draw_predictions(shown, split.classes, split.palette, folder / "predictions.png")
    mious = [*history["miou"], (len(history["loss"]), scores.miou)]
    draw_training(history["loss"], mious, folder / "training.png", "cross-entropy + Dice")


def write_scenes(split: Scenes, folder: Path, count: int = 8) -> None:
    """Write held-out scenes as PNG files, to predict them with the command."""
    folder.mkdir(exist_ok=True)
    for index, (image, _) in enumerate(split.drawn[:count]):
        Image.fromarray(image).save(folder / f"{index:03d}.png")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="data folder; without it, street scenes are drawn")
    parser.add_argument("--ignore-index", "--ignore_index", type=int, default=255, help="value of the pixels to ignore")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the results")
    parser.add_argument("--encoder", default="tu-mscan_t", help="any encoder of smp")
    parser.add_argument("--encoder-weights", "--encoder_weights", help="'imagenet' to start from pretrained weights")
    parser.add_argument("--steps", type=int, default=260, help="number of training steps")
    parser.add_argument("--batch-size", "--batch_size", type=int, default=8, help="images per step")
    parser.add_argument("--crop-size", "--crop_size", type=int, default=128, help="side of training images in pixels")
    parser.add_argument("--lr", type=float, default=2e-3, help="maximum learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data, the weights and the training order")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is an accelerator")
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.crop_size < MIN_SIDE:
        parser.error(f"--crop-size must be at least {MIN_SIDE}, got {args.crop_size}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable("out", args.out)
    if (args.out / "config.json").exists():
        print(f"The model in {args.out} will be replaced.")
    torch.manual_seed(args.seed)
    start = time.monotonic()
    on_gpu = torch.cuda.is_available() and not args.cpu
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    accelerator = Accelerator(cpu=args.cpu, mixed_precision="bf16" if has_bf16 else "no")

    # 1. Data
    if args.data is None:
        train_split, val_split = Scenes(args.seed, 400), Scenes(args.seed + 1, 40)
    else:
        train_split, val_split = (open_folder(args.data, name, args.ignore_index) for name in ("train", "val"))
        for report in check_splits(train_split, val_split, args.data, worker_count(DataSettings())):
            print(*report.warnings, sep="\n", end="\n" * bool(report.warnings))
    ignored = train_split.ignore_index
    crop = RandomResizedCrop(args.crop_size, (args.crop_size,) * 2, factors=(0.9, 1.5), ignore_index=ignored)
    colors = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
    samples = TrainSamples(train_split, TrainTransform(crop, colors), args.seed)
    batches = [range(step * args.batch_size, (step + 1) * args.batch_size) for step in range(args.steps)]
    loader = DataLoader(samples, batch_sampler=batches)

    # 2. Model
    classes = len(train_split.classes)
    model = smp.create_model("segnext", args.encoder, encoder_weights=args.encoder_weights, classes=classes)
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    describe(model, train_split, args.crop_size)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"SegNeXt on {args.encoder}: {parameters / 1e6:.2f}M parameters, {classes} classes, on {accelerator.device}; "
        f"{len(train_split)} training images, {len(val_split)} held out"
    )

    # 3. Training
    history = train(model, loader, val_split, accelerator, args)
    if not history["loss"]:
        raise UserError("stopped before the first step, so there is nothing to save.")

    # 4. Evaluation
    model.eval()
    scores = evaluate(model, val_split, DataSettings(workers=0), accelerator)
    print(scores.table())
    print(f"mIoU {scores.miou:.3f}; always predicting the most common class: {scores.most_common_class_miou:.3f}")
    note_results(model, val_split, scores)

    # 5. Results: written, then loaded back
    with fill_when_complete(args.out) as folder:
        save(model, val_split, scores, history, folder)
    loaded = load_segmenter(args.out).to(accelerator.device, memory_format=torch.channels_last)
    image = val_split.open(0)[0]
    if not np.array_equal(predict(model, image), predict(loaded, image)):
        raise UserError(f"the model loaded from {args.out} gives different predictions from the saved one.")
    print(f"Saved to {args.out} and loaded back: the predictions are equal.")
    print(f"  {args.out / 'predictions.png'}: image, truth, prediction")
    print(f"  {args.out / 'training.png'}: loss and mIoU")
    print(f"Done in {time.monotonic() - start:.0f} s. To predict images with the model:")
    images = args.data / "images" / "val" if args.data else args.out / "scenes"
    if args.data is None:
        write_scenes(val_split, images)
    command = Path(shutil.which("segnext-timm", path=str(Path(sys.executable).parent)) or "segnext-timm")
    command = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
    print(f"  {command} predict {args.out} {images} -o predictions")
    if len(history["loss"]) < args.steps:
        sys.exit(130)  # 128 + SIGINT: as after Ctrl-C in the other scripts


if __name__ == "__main__":
    try:
        main()
    except (UserError, SegNeXtError, OSError) as error:
        sys.exit(f"quickstart: {error}")
    except KeyboardInterrupt:
        print("quickstart: interrupted", file=sys.stderr)
        sys.exit(130)
