"""MSCAN in timm's training: its own script, or its parts on images that are drawn here.

    python examples/integrations/timm_training.py                                     # timm's parts, generated images
    python examples/integrations/timm_training.py pytorch-image-models/train.py DIR --model mscan_t --opt adamw ...

timm's script is in its repository, not in its package, and knows no plugins. The one line that runs it with MSCAN:

    python -c "import segnext_timm, runpy; runpy.run_path('train.py', run_name='__main__')" DIR --model mscan_t ...

which is what the second form does, for train.py, validate.py and timm's other scripts. The first form trains with what
these scripts are made of: timm's data set, loader, mixup, optimizer with layer decay, schedule, moving average and
checkpoints.
"""

import runpy
import sys
import tempfile
from pathlib import Path

import generated
import timm
import torch
from PIL import Image
from timm.data import Mixup, create_dataset, create_loader, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV3, accuracy

import segnext_timm  # noqa: F401  (the one line: registers MSCAN with timm)

CLASSES = {"sand": (220, 190, 130), "sea": (40, 110, 170), "wood": (60, 110, 50)}


def draw(folder: Path, split: str, count: int, size: int = 64) -> None:
    """Write pictures of each class, its color in waves and noise, in a folder of its name."""
    generator = torch.Generator().manual_seed(len(split))
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for name, color in CLASSES.items():
        (folder / split / name).mkdir(parents=True)
        for index in range(count):
            across, down, brightness = torch.rand(3, generator=generator)
            waves = 0.15 * torch.sin((across * rows + down * columns) / 2) + 0.7 + 0.4 * brightness
            noise = 1 + 0.3 * torch.randn(size, size, 1, generator=generator)
            pixels = (torch.tensor(color) * waves[..., None] * noise).clamp(0, 255)
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / split / name / f"{index}.png")


def validate(model: torch.nn.Module, loader) -> float:
    """Top-1 accuracy in percent."""
    top1 = AverageMeter()
    model.eval()
    with torch.no_grad():
        for images, labels in loader:
            top1.update(accuracy(model(images), labels)[0].item(), len(labels))
    return top1.avg


def train(folder: Path, epochs: int = 3, batch_size: int = 12) -> None:
    """Train `mscan_t` on an image folder, and load the best checkpoint back."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # pretrained=True begins with the ImageNet weights
    model = timm.create_model("mscan_t", num_classes=len(CLASSES), drop_path_rate=0.05).to(device)
    config = resolve_data_config({"input_size": (3, 64, 64), "crop_pct": 1.0}, model=model)
    loaders = {}
    for split in ("train", "validation"):
        data = create_dataset("", root=folder, split=split, is_training=split == "train", batch_size=batch_size)
        loaders[split] = create_loader(
            data, config["input_size"], batch_size, is_training=split == "train", use_prefetcher=False,
            mean=config["mean"], std=config["std"], crop_pct=config["crop_pct"], num_workers=0, device=device,
            interpolation="bicubic", scale=(0.6, 1.0), hflip=0.5, color_jitter=0.2,
        )  # fmt: skip
    mixup = Mixup(mixup_alpha=0.1, label_smoothing=0.05, num_classes=len(CLASSES))
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.95)
    steps = len(loaders["train"])
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-5,
        updates_per_epoch=steps, step_on_epochs=False,
    )  # fmt: skip
    ema = ModelEmaV3(model, decay=0.8)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder, max_history=1)
    criterion = SoftTargetCrossEntropy()
    for epoch in range(epochs):
        model.train()
        losses = AverageMeter()
        for step, (images, labels) in enumerate(loaders["train"]):
            images, labels = mixup(images.to(device), labels.to(device))
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(model)
            scheduler.step_update(epoch * steps + step + 1)
            losses.update(loss.item(), len(images))
        top1, smooth = validate(model, loaders["validation"]), validate(ema.module, loaders["validation"])
        saver.save_checkpoint(epoch, metric=top1)
        print(f"epoch {epoch}: loss {losses.avg:.3f}, top-1 {top1:.1f}, of the moving average {smooth:.1f}", flush=True)
    best = next(folder.glob("model_best.pth.tar"))
    again = timm.create_model("mscan_t", num_classes=len(CLASSES), checkpoint_path=best).to(device)
    top1 = validate(again, loaders["validation"])
    print(f"the best checkpoint, loaded by timm: top-1 {top1:.1f}; guessing gives {100 / len(CLASSES):.1f}")
    assert top1 > 60


def main() -> None:
    if len(sys.argv) > 1:  # a script of timm's
        script = sys.argv[1]
        if not Path(script).is_file():
            sys.exit(f"{script}: no such script. timm's are in https://github.com/huggingface/pytorch-image-models")
        sys.argv = sys.argv[1:]
        sys.path.insert(0, str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")
        return
    generated.show_versions("torchvision")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), "train", 24)
        draw(Path(folder), "validation", 8)
        train(Path(folder))


if __name__ == "__main__":
    main()
