"""Top-1 and top-5 accuracy of any timm model on an ImageNet folder, with the model's own preprocessing.

    python examples/validate_imagenet.py mscan_b DIR                 # DIR/n01440764/*.JPEG, ...: the validation images
    python examples/validate_imagenet.py local-dir:my-mscan DIR      # a folder that `segnext-timm convert` made
    accelerate launch --num_processes 4 examples/validate_imagenet.py mscan_l DIR --precision bf16

DIR holds a folder a class; sorted by name, they are the model's classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import timm
import torch
import tyro
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

import segnext_timm  # noqa: F401  (registers MSCAN with timm)
from segmentation.data import ignore_interrupts
from segmentation.evaluation import end
from segmentation.progress import progress_bar
from segmentation.recipe import Precision, UserError, mixed_precision, run


@dataclass
class ImageNetSettings:
    """What is evaluated."""

    model: tyro.conf.Positional[str]
    """Name of a timm model; pretrained weights are loaded."""
    folder: tyro.conf.Positional[Path]
    """Folder of the images: a folder a class."""
    batch_size: int = 64
    """Images at a time, in each process."""
    workers: int = 4
    """Processes that read images, for each process."""
    precision: Precision = "fp32"
    """fp32, or autocast to bf16 or fp16."""
    json: Path | None = None
    """File for the results."""


@torch.inference_mode()
def main(argv: list[str]) -> dict[str, float]:
    """Evaluate; gives top-1 and top-5 in percent, and the number of images."""
    settings = tyro.cli(ImageNetSettings, args=argv, description=__doc__.split("\n")[0], use_underscores=True)
    if not settings.folder.is_dir():
        raise UserError(f"{settings.folder} does not exist: give the folder of the validation images.")
    accelerator = Accelerator(mixed_precision=mixed_precision(settings.precision))
    model = timm.create_model(settings.model, pretrained=True).to(accelerator.device).eval()
    config = timm.data.resolve_model_data_config(model)
    try:
        images = ImageFolder(settings.folder, timm.data.create_transform(**config, is_training=False))
    except FileNotFoundError as error:
        raise UserError(f"{settings.folder} holds no folder a class with images: {error}") from None
    if len(images.classes) != model.num_classes:
        raise UserError(f"{settings.folder} holds {len(images.classes)} classes, the model has {model.num_classes}.")
    mine = Subset(images, range(accelerator.process_index, len(images), accelerator.num_processes))
    loader = DataLoader(
        mine, settings.batch_size, num_workers=settings.workers, worker_init_fn=ignore_interrupts, pin_memory=True
    )
    counts = torch.zeros(3, dtype=torch.int64, device=accelerator.device)  # right at first, among five, all
    for x, labels in progress_bar(loader, desc=settings.model, unit="batch", hidden=not accelerator.is_main_process):
        with accelerator.autocast():
            logits = model(x.to(accelerator.device))
        right = logits.topk(min(5, logits.shape[1])).indices == labels.to(accelerator.device)[:, None]
        counts += torch.stack([right[:, 0].sum(), right.sum(), torch.tensor(len(labels), device=right.device)])
    first, five, total = accelerator.reduce(counts, "sum").tolist()
    result = {"top1": 100 * first / total, "top5": 100 * five / total, "images": total}
    if accelerator.is_main_process:
        size, crop = config["input_size"][-1], config["crop_pct"]
        print(f"{settings.model} at {size} pixels, crop {crop}, {total} images:", end=" ")
        print(f"top-1 {result['top1']:.2f}, top-5 {result['top5']:.2f}")
        if settings.json:
            settings.json.write_text(json.dumps({"model": settings.model, **result}, indent=2), encoding="utf-8")
    end(accelerator)
    return result


if __name__ == "__main__":
    run(main)
