"""Train SegNeXt on a small data set and look at the result: minutes on any CPU.

    python examples/quickstart.py                                   # on street scenes it draws itself
    python examples/quickstart.py --data DIR                        # on your own images
    python examples/quickstart.py --data camvid --ignore-index 11   # where one label means "unlabelled"

A data folder holds `images/train`, `images/val`, `labels/train`, `labels/val` and `classes.txt`, which names a class a
line. The labels of an image are a PNG of the same name whose pixels are line numbers, from 0; one more value,
`--ignore-index` (255 by default), may mark pixels to leave out.

The results go to `runs/quickstart`: `model.safetensors`, `config.json` and the model card `README.md`, which
`smp.from_pretrained` loads; `predictions.png` and `training.png`. Ctrl-C ends the training early and keeps what was
learnt so far.
"""

import argparse
import colorsys
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import scenes
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from matplotlib.patches import Patch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

import segnext_timm  # noqa: F401  (registers MSCAN with timm and SegNeXt with smp)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the segmentation models' input, RGB


class DataError(Exception):
    """A data set that cannot be trained on; the message says which file, why, and what to do."""


class Scenes(Dataset):
    """Street scenes that are drawn from a seed, each once, and kept in memory."""

    classes = scenes.CLASSES
    palette = scenes.PALETTE

    def __init__(self, seed: int, count: int, transform: Callable, size: int = 128) -> None:
        self.scenes = [scenes.draw(seed, index, size) for index in tqdm(range(count), desc="draw scenes", leave=False)]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = self.scenes[index]
        return to_tensors(image, labels, self.transform)


class Folder(Dataset):
    """Images and labels of one split of a data folder, checked when it is opened."""

    def __init__(self, root: Path, split: str, ignore_index: int, transform: Callable) -> None:
        self.classes = read_classes(root)
        self.palette = distinct_colours(len(self.classes))
        self.transform = transform
        images, labels = (self._files(root / kind / split) for kind in ("images", "labels"))
        if missing := sorted(set(images) - set(labels)):
            raise DataError(
                f"{len(missing)} of {len(images)} images in {root / 'images' / split} have no labels: add "
                f"{root / 'labels' / split / missing[0]}.png" + (" and so on." if len(missing) > 1 else ".")
            )
        self.pairs = [(images[stem], labels[stem]) for stem in sorted(images)]
        for image, label in tqdm(self.pairs, desc=f"check {split}", leave=False):
            self._check(image, label, ignore_index)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.pairs[index]
        return to_tensors(np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(label)), self.transform)

    @staticmethod
    def _files(folder: Path) -> dict[str, Path]:
        """Image files of a folder by stem."""
        if not folder.is_dir():
            raise DataError(
                f"{folder} does not exist: a data folder holds images/train, images/val, labels/train, "
                "labels/val and classes.txt."
            )
        files = {f.stem: f for f in folder.iterdir() if f.suffix.lower() in Image.registered_extensions()}
        if not files:
            raise DataError(f"{folder} holds no images.")
        return files

    def _check(self, image: Path, label: Path, ignore_index: int) -> None:
        try:
            width, height = Image.open(image).size
        except OSError as error:
            raise DataError(f"{image} cannot be read as an image: {error}") from None
        try:
            labels = np.asarray(Image.open(label))
        except OSError as error:
            raise DataError(f"{label} cannot be read as an image: {error}") from None
        if labels.ndim != 2:
            raise DataError(f"{label} is a colour image: labels are PNGs of one channel that holds class numbers.")
        if labels.shape != (height, width):
            raise DataError(
                f"{label} has {labels.shape[1]}×{labels.shape[0]} pixels (width×height), its image {image.name} "
                f"{width}×{height}: make them equal."
            )
        if min(width, height) < 32:
            raise DataError(f"{image} has {width}×{height} pixels (width×height): at least 32×32 are needed.")
        values = np.unique(labels)
        unknown = values[(values >= len(self.classes)) & (values != ignore_index)]
        if len(unknown):
            raise DataError(
                f"{label} holds the labels {', '.join(map(str, unknown[:10]))}, but classes.txt names "
                f"{len(self.classes)} classes (0 to {len(self.classes) - 1}). Name more there, or, if a label marks "
                f"pixels to leave out, say --ignore-index {unknown[0]}."
            )


def read_classes(root: Path) -> tuple[str, ...]:
    """Names in a data folder's classes.txt."""
    path = root / "classes.txt"
    if not path.is_file():
        raise DataError(f"{path} does not exist: it names the classes, one a line, in the order of their labels.")
    classes = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(classes) < 2:
        raise DataError(f"{path} names {len(classes)} classes: at least two are needed.")
    return classes


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours as far apart as hue and brightness allow."""
    hues = [(i * 0.618034) % 1 for i in range(count)]
    rgb = [colorsys.hsv_to_rgb(h, 0.65 if i % 2 else 0.9, 0.95 if i % 3 else 0.6) for i, h in enumerate(hues)]
    return tuple(tuple(round(255 * c) for c in colour) for colour in rgb)


def to_tensors(image: np.ndarray, labels: np.ndarray, transform: Callable) -> tuple[torch.Tensor, torch.Tensor]:
    """Transformed image (3, H, W), float and normalised, and labels (H, W), int64."""
    image = tv_tensors.Image(torch.from_numpy(image.copy()).permute(2, 0, 1))
    image, labels = transform(image, tv_tensors.Mask(torch.from_numpy(labels.astype(np.int32))))
    return image.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor).long()


def make_transforms(crop_size: int, ignore_index: int) -> tuple[v2.Transform, v2.Transform]:
    """Transforms of images and labels for training and for evaluation."""
    to_input = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize(MEAN, STD)]
    augment = [
        v2.ScaleJitter((crop_size, crop_size), scale_range=(0.9, 1.5)),
        v2.RandomCrop(crop_size, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: ignore_index}),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]
    return v2.Compose(augment + to_input), v2.Compose(to_input)


@torch.inference_mode()
def evaluate(model: torch.nn.Module, loader: DataLoader, classes: int, ignore_index: int) -> torch.Tensor:
    """Confusion matrix (classes, classes), counted in pixels: rows are the truth, columns the prediction."""
    device = next(model.parameters()).device
    model.eval()
    confusion = MulticlassConfusionMatrix(classes, ignore_index=ignore_index).to(device)
    for images, labels in loader:
        confusion.update(model(images.to(device)).argmax(1), labels.to(device))
    return confusion.compute().cpu().double()


def iou_per_class(confusion: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each class, NaN for a class in neither truth nor prediction."""
    intersection = confusion.diag()
    return intersection / (confusion.sum(0) + confusion.sum(1) - intersection)


def commonest_class_miou(confusion: torch.Tensor) -> float:
    """mIoU of predicting the commonest class everywhere."""
    guess = torch.zeros_like(confusion)
    truth = confusion.sum(1)
    guess[:, truth.argmax()] = truth
    return iou_per_class(guess).nanmean().item()


def train(model: torch.nn.Module, train_loader: DataLoader, val_loader: DataLoader, classes: int, args) -> dict:
    """Train with AdamW and a one-cycle schedule; Ctrl-C ends it early.

    Returns:
        The loss of each step, and (step, mIoU) of each evaluation, by the names "loss" and "miou".
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=args.ignore_index)
    history = {"loss": [], "miou": []}
    evaluate_every = max(args.steps // 5, 1)
    progress = tqdm(train_loader, desc="train", unit="step")
    model.train()
    try:
        for step, (images, labels) in enumerate(progress, start=1):
            images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(images).float()
            loss = F.cross_entropy(logits, labels, ignore_index=args.ignore_index) + dice(logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            history["loss"].append(loss.item())
            if not math.isfinite(history["loss"][-1]):
                sys.exit(f"quickstart: the loss is {history['loss'][-1]} at step {step}: try a smaller --lr.")
            if step % evaluate_every == 0 and step < args.steps:
                miou = iou_per_class(evaluate(model, val_loader, classes, args.ignore_index)).nanmean().item()
                history["miou"].append((step, miou))
                model.train()
            shown = {"loss": f"{np.mean(history['loss'][-20:]):.3f}"}
            progress.set_postfix(shown | ({"mIoU": f"{history['miou'][-1][1]:.3f}"} if history["miou"] else {}))
    except KeyboardInterrupt:
        progress.close()
        print(f"Stopped after {len(history['loss'])} of {args.steps} steps; keeping what was learnt so far.")
    return history


def draw_predictions(model: torch.nn.Module, dataset: Dataset, ignore_index: int, path: Path, count: int = 6) -> None:
    """Draw image, truth and prediction side by side, with a legend of the classes."""
    device = next(model.parameters()).device
    palette = np.full((256, 3), 0, np.uint8)
    palette[: len(dataset.palette)] = dataset.palette
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    figure, axes = plt.subplots(len(indices), 3, figsize=(9, 2.9 * len(indices)), squeeze=False, layout="constrained")
    for row, index in zip(axes, indices):
        image, labels = dataset[int(index)]
        with torch.inference_mode():
            prediction = model(image[None].to(device)).argmax(1)[0].cpu()
        pixels = (image.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)).clip(0, 1)
        truth = np.where((labels == ignore_index)[..., None], 0, palette[labels.clip(0, 255)])
        for axis, picture, title in zip(row, (pixels, truth, palette[prediction]), ("image", "truth", "prediction")):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            if index == indices[0]:
                axis.set_title(title)
    handles = [Patch(color=np.array(c) / 255, label=name) for c, name in zip(dataset.palette, dataset.classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7), frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_training(history: dict, miou: float, path: Path) -> None:
    """Draw the loss of each step and the mIoU of each evaluation."""
    losses = np.array(history["loss"])
    window = max(len(losses) // 40, 1)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axis.plot(np.arange(1, len(losses) + 1), losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axis.plot(np.arange(window, len(losses) + 1), smooth, color="tab:blue", label=f"loss, mean of {window} steps")
    axis.set(xlabel="step", ylabel="loss (cross-entropy + Dice)", ylim=(0, None))
    twin = axis.twinx()
    steps, values = zip(*history["miou"], (len(losses), miou))
    twin.plot(steps, values, "o-", color="tab:orange", label="mIoU on held-out images")
    twin.set(ylabel="mIoU", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def save(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill an empty folder, then move its files to `folder`, so that none is ever half-written there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write(Path(temporary))
        for file in Path(temporary).iterdir():
            file.replace(folder / file.name)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="data folder; none: street scenes are drawn")
    parser.add_argument("--ignore-index", type=int, default=255, help="label of the pixels to leave out")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the results")
    parser.add_argument("--encoder", default="tu-mscan_t", help="any encoder of smp")
    parser.add_argument("--encoder-weights", help="'imagenet' to start from pretrained weights")
    parser.add_argument("--steps", type=int, default=320, help="number of training steps")
    parser.add_argument("--batch-size", type=int, default=8, help="images a step")
    parser.add_argument("--crop-size", type=int, default=128, help="side of the training images, in pixels")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the weights and the order of training")
    parser.add_argument("--device", help="default: the accelerator if there is one, else the CPU")
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.crop_size < 32:
        parser.error(f"--crop-size must be at least 32, got {args.crop_size}")
    if args.device is None:
        args.device = str(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    start = time.monotonic()

    # 1. Data
    augment, plain = make_transforms(args.crop_size, args.ignore_index)
    if args.data is None:
        train_set, val_set = Scenes(args.seed, 400, augment), Scenes(args.seed + 1, 40, plain)
    else:
        train_set = Folder(args.data, "train", args.ignore_index, augment)
        val_set = Folder(args.data, "val", args.ignore_index, plain)
    sampler = RandomSampler(train_set, num_samples=args.steps * args.batch_size)
    train_loader = DataLoader(train_set, args.batch_size, sampler=sampler)
    val_loader = DataLoader(val_set, batch_size=args.batch_size if args.data is None else 1)

    # 2. Model
    model = smp.create_model(
        "segnext", args.encoder, encoder_weights=args.encoder_weights, classes=len(train_set.classes)
    ).to(args.device, memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"SegNeXt on {args.encoder}: {parameters / 1e6:.2f}M parameters, {len(train_set.classes)} classes, on "
        f"{args.device}; {len(train_set)} training images, {len(val_set)} held out"
    )

    # 3. Training
    history = train(model, train_loader, val_loader, len(train_set.classes), args)
    if not history["loss"]:
        sys.exit("quickstart: stopped before the first step; nothing to keep.")

    # 4. Evaluation
    confusion = evaluate(model, val_loader, len(train_set.classes), args.ignore_index)
    iou = iou_per_class(confusion)
    miou, commonest = iou.nanmean().item(), commonest_class_miou(confusion)
    print("IoU on the held-out images")
    for name, value in zip(train_set.classes, iou.tolist()):
        print(f"  {name:20s} {value:.3f}" if math.isfinite(value) else f"  {name:20s} absent")
    print(f"  {'mean':20s} {miou:.3f}   (predicting the commonest class: {commonest:.3f})")

    # 5. Results: written, then loaded back
    def write(folder: Path) -> None:
        metrics = {"mIoU": round(miou, 4), "IoU": {n: round(v, 4) for n, v in zip(train_set.classes, iou.tolist())}}
        model.save_pretrained(folder, dataset=args.data.name if args.data else "street scenes", metrics=metrics)
        draw_predictions(model, val_set, args.ignore_index, folder / "predictions.png")
        draw_training(history, miou, folder / "training.png")

    save(args.out, write)
    loaded = smp.from_pretrained(args.out).to(args.device, memory_format=torch.channels_last).eval()
    image = val_set[0][0][None].to(args.device)
    with torch.inference_mode():
        if not torch.equal(model(image), loaded(image)):
            sys.exit(f"quickstart: the model loaded from {args.out} predicts otherwise than the one saved there.")
    print(f"Saved to {args.out} and loaded back: the predictions are equal.")
    print(f"  {args.out / 'predictions.png'}: image, truth, prediction")
    print(f"  {args.out / 'training.png'}: loss and mIoU")
    print(f"Done in {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    try:
        main()
    except (DataError, ValueError) as error:
        sys.exit(f"quickstart: {error}")
    except KeyboardInterrupt:
        sys.exit("quickstart: interrupted")
