"""Train segmenters from scratch on a data folder, for equal times: `python tests/measure/real_images.py DIR`.

SegNeXt-T beside smp's Segformer (MiT-B0), DeepLabV3+ (MobileNetV3) and Unet (ResNet-18): with the same samples,
optimizer, schedule over time and cross-entropy, 300 seconds each of processor time of one thread, on images fitted in
240×180, with three seeds; SegNeXt-T also with other losses and samples. Prints mIoU on the validation images, the mean
IoU of rare classes (below 2% of the training pixels), and the number of steps.

Finished runs are kept in a CSV file and not run again. Written for CamVid: label 11 is left out.
"""

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import segmentation_models_pytorch as smp
import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from segmentation.balancing import balance_classes, count_pixels
from segmentation.data import Split, training_samples
from segmentation.evaluation import evaluate
from segmentation.layouts import open_split
from segmentation.losses import build_loss
from segmentation.recipe import TrainSettings
from segnext_timm import SegNeXt, parameter_groups

RARE = 0.02  # share of the training pixels
LR, WARMUP, HEAD_LR_SCALE = 1e-3, 0.05, 2.0  # warm-up as a share of the time
SETTINGS = TrainSettings(
    base_scale=(240, 180), fit_in=(240, 180), crop_size=160, batch_size=8, ignore_index=11, eval_mode="whole", workers=0
)


def _segnext(classes: int) -> torch.nn.Module:
    model = SegNeXt("tu-mscan_t", encoder_weights=None, classes=classes, drop_path_rate=0.1)
    model.upsampling = 1  # the loss resizes the logits
    return model


MODELS: dict[str, Callable[[int], torch.nn.Module]] = {
    "SegNeXt-T": _segnext,
    "Segformer MiT-B0": lambda classes: smp.Segformer("mit_b0", encoder_weights=None, classes=classes),
    "DeepLabV3+ MobileNetV3-L": lambda classes: smp.DeepLabV3Plus(
        "tu-mobilenetv3_large_100", encoder_weights=None, classes=classes
    ),
    "Unet ResNet-18": lambda classes: smp.Unet("resnet18", encoder_weights=None, classes=classes),
}
VARIATIONS: dict[str, dict[str, object]] = {
    "ce": {},
    "ce+dice": {"loss": "ce+dice"},
    "class weights": {"class_weights": "auto"},
    "rare-class sampling": {"rare_class_sampling": 0.01},
}


@dataclass
class Run:
    """A training and what it reached, in percent."""

    model: str
    variation: str
    seed: int
    steps: int = 0
    miou: float = 0.0
    rare: float = 0.0


def train(run: Run, data: Path, splits: list[Split], seconds: float) -> Run:
    """Train for a time, evaluate, and return the run with its results."""
    settings = replace(SETTINGS, seed=run.seed, data_root=str(data), **VARIATIONS[run.variation])
    classes = len(splits[0].classes)
    torch.manual_seed(run.seed)
    model = MODELS[run.model](classes)
    model.pretrained_cfg = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    balance = balance_classes(splits[0], settings)
    samples = training_samples(splits[0], settings, sampler=balance.sampler)
    loss_fn = build_loss(settings, settings.ignore_index, balance.weights)
    groups = parameter_groups(model, LR, head_lr_scale=HEAD_LR_SCALE)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups)
    model = model.to(memory_format=torch.channels_last).train()
    start = time.process_time()
    while (share := (time.process_time() - start) / seconds) < 1:
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * min(share / WARMUP, (1 - share) / (1 - WARMUP))
        numbers = range(run.steps * settings.batch_size, (run.steps + 1) * settings.batch_size)
        images, labels = map(torch.stack, zip(*(samples[k] for k in numbers)))
        loss = loss_fn(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.steps += 1
    scores = evaluate(model.eval(), splits[1], settings, Accelerator(cpu=True), by_position=True)
    pixels = count_pixels(splits[0]).sum(0)
    rare = torch.from_numpy(pixels / pixels.sum() < RARE)
    return replace(run, miou=round(100 * scores.miou, 2), rare=round(100 * scores.iou[rare].nanmean().item(), 2))


def main() -> None:
    """Run what the file of results lacks, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data folder")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("runs/real_images.csv"))
    args = parser.parse_args()
    splits = [open_split("folder", args.data, name, SETTINGS.ignore_index) for name in ("train", "val")]
    names = [(model, "ce") for model in MODELS] + [("SegNeXt-T", name) for name in VARIATIONS if name != "ce"]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.touch()
    columns = [field.name for field in fields(Run)]
    with args.results.open(newline="", encoding="utf-8") as file:
        done = [Run(m, v, int(s), int(n), float(a), float(b)) for m, v, s, n, a, b in csv.reader(file)]
    for seed in range(args.seeds):
        for model, variation in names:
            if any((run.model, run.variation, run.seed) == (model, variation, seed) for run in done):
                continue
            done.append(train(Run(model, variation, seed), args.data, splits, args.seconds))
            with args.results.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns).writerow(asdict(done[-1]))
            print(done[-1], file=sys.stderr)
    print("| model | loss and samples | mIoU of each seed | mean | rare classes | steps |\n|---|---|---|---|---|---|")
    for model, variation in names:
        runs = [run for run in done if (run.model, run.variation) == (model, variation)]
        mean, rare, steps = (statistics.mean(getattr(run, name) for run in runs) for name in ("miou", "rare", "steps"))
        seeds = ", ".join(f"{run.miou:.1f}" for run in runs)
        print(f"| {model} | {variation} | {seeds} | {mean:.1f} | {rare:.1f} | {steps:.0f} |")


if __name__ == "__main__":
    main()
