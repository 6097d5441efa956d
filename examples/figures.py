"""Pictures that explain SegNeXt: what it costs and gains, how far it sees, what its attention and its bases pick out.

    python examples/figures.py cost -o examples                        # accuracy.png: published mIoU over GMACs
    python examples/figures.py model runs/quickstart -o examples       # attention.png, receptive_field.png, bases.png
    python examples/figures.py model MODEL --image street.jpg -o DIR   # on an image of yours
    python examples/figures.py count                                   # counts the GMACs of `PUBLISHED` again

MODEL is a published segmenter's name, a folder, or a repository on the Hugging Face Hub: a SegNeXt on MSCAN. `count`
needs mmsegmentation 1.2.2, with mmcv-lite.
"""

import argparse
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from segmentation import scenes
from segnext_timm import SegNeXt, overlay, predict
from segnext_timm.checkpoints.segmenters import load_segmenter
from segnext_timm.models.model_info import ModelInfo
from segnext_timm.prediction.images import read_image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# GMACs at 512², and mIoU on ADE20K val in percent, single scale. The mIoU is that of mmsegmentation 1.2.2's tables
# (configs/*/metafile.yaml), which trained all of them for 160,000 iterations on crops of 512², from ImageNet-1k. The
# GMACs are what `count` gives: mmsegmentation's models, and this package's SegNeXt.
PUBLISHED = {
    "SegNeXt": {
        "segnext_mscan-t": (6.01, 41.50), "segnext_mscan-s": (14.87, 44.16), "segnext_mscan-b": (31.14, 48.03),
        "segnext_mscan-l": (62.88, 50.99),
    },
    "SegFormer": {
        "segformer_mit-b0": (8.39, 37.41), "segformer_mit-b1": (15.88, 40.97), "segformer_mit-b2": (25.68, 45.58),
        "segformer_mit-b3": (42.30, 47.82), "segformer_mit-b4": (58.91, 48.46), "segformer_mit-b5": (74.85, 49.13),
    },
    "UPerNet on Swin": {"swin-tiny": (236.86, 44.41), "swin-small": (260.58, 47.72), "swin-base": (298.98, 47.99)},
    "DeepLabV3+ on ResNet": {"deeplabv3plus_r50": (177.26, 43.95), "deeplabv3plus_r101": (254.84, 45.47)},
}  # fmt: skip
CONFIGS = {
    "segnext": "segnext/{}_1xb16-adamw-160k_ade20k-512x512.py",
    "segformer": "segformer/{}_8xb2-160k_ade20k-512x512.py",
    "swin": "swin/{}-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "deeplabv3plus": "deeplabv3plus/{}-d8_4xb4-160k_ade20k-512x512.py",
}


def count(names: Iterable[str] = tuple(name for family in PUBLISHED.values() for name in family)) -> dict[str, float]:
    """GMACs of a 512² image of models of `PUBLISHED`, 150 classes."""
    from benchmarking.peers import build, logits_of
    from segnext_timm.checkpoints.reference import import_mmseg

    warnings.simplefilter("ignore")
    root = Path(import_mmseg().__file__).parents[1] / ".mim" / "configs"
    from mmengine import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    found = {}
    for name in names:
        family = name.split("_")[0].split("-")[0]
        if family == "segnext":
            model = build(f"segnext_{name[-1]}", classes=150)
        else:
            config = Config.fromfile(root / CONFIGS[family].format(name)).model
            config.pretrained = config.backbone.init_cfg = config.data_preprocessor = None  # random weights
            model = MODELS.build(config).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits_of(model)(torch.zeros(1, 3, 512, 512))
        found[name] = round(counter.get_total_flops() / 2e9, 2)
        print(f"    {name!r}: {found[name]},", flush=True)
    return found


def draw_cost(path: Path) -> None:
    """Published accuracy over cost."""
    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for (family, models), marker in zip(PUBLISHED.items(), "os^D"):
        ours = family == "SegNeXt"
        axis.plot(
            *zip(*models.values()), marker=marker, label=family, linewidth=2.5 if ours else 1.5, zorder=3 if ours else 2
        )
        for name, point in models.items():
            short = name.replace("_", "-").split("-")[-1]
            short = {"tiny": "T", "small": "S", "base": "B"}.get(short, short.upper())
            axis.annotate(short, point, (5, -11), textcoords="offset points", fontsize=9)
    axis.set(xscale="log", xlabel="GMACs of a 512×512 image", ylabel="mIoU on ADE20K val, single scale, %")
    axis.set_xticks([5, 10, 20, 50, 100, 200], labels=["5", "10", "20", "50", "100", "200"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _prepare(model: torch.nn.Module, image: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in ModelInfo(model).normalization)
    return ((read_image(image) / 255 - mean) / std)[None]


def _panels(count: int, titles: list[str]) -> tuple[plt.Figure, np.ndarray]:
    figure, axes = plt.subplots(1, count, figsize=(2.4 * count, 2.75), layout="constrained")
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    return figure, axes


def _enlarged(maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(maps[None, None], size, mode="bilinear")[0, 0].numpy()


def draw_attention(model: SegNeXt, image: np.ndarray, path: Path) -> None:
    """How strongly the attention of each stage's last block weights its input at each place.

    The attention is the factor of equation 2 of the paper; drawn is its mean magnitude over the channels.
    """
    stages = [module for name, module in model.encoder.model.named_children() if name.startswith("stages")]
    gates = []
    hooks = [
        stage.blocks[-1].attn.msca.proj.register_forward_hook(lambda module, x, gate: gates.append(gate))
        for stage in stages
    ]
    with torch.no_grad():
        model(_prepare(model, image))
    for hook in hooks:
        hook.remove()
    figure, axes = _panels(1 + len(gates), ["image", *(f"stage {i + 1}, stride {4 << i}" for i in range(len(gates)))])
    axes[0].imshow(image)
    for axis, gate in zip(axes[1:], gates):
        axis.imshow(_enlarged(gate[0].abs().mean(0), image.shape[:2]), cmap="magma")
    figure.savefig(path, dpi=70)
    plt.close(figure)


def draw_receptive_field(model: SegNeXt, images: list[np.ndarray], path: Path) -> None:
    """The effective receptive field of each stage: the gradient of its central feature, over the pixels.

    Magnitudes are summed over the channels and averaged over the images
    (https://arxiv.org/abs/1701.04128); the square holds nine tenths of them.
    """
    fields = None
    for image in images:
        x = _prepare(model, image).requires_grad_()
        features = model.encoder(x)[-4:]
        found = []
        for feature in features:
            center = feature[0, :, feature.shape[2] // 2, feature.shape[3] // 2].sum()
            (gradient,) = torch.autograd.grad(center, x, retain_graph=True)
            found.append(gradient[0].abs().sum(0))
        fields = found if fields is None else [a + b for a, b in zip(fields, found)]
    figure, axes = _panels(len(fields), [f"stage {i + 1}" for i in range(len(fields))])
    for axis, field in zip(axes, fields):
        height, width = field.shape
        total, side = field.sum(), 1
        rows, columns = (torch.arange(n) - n // 2 for n in (height, width))
        reach = torch.maximum(rows.abs()[:, None], columns.abs()[None])
        while side < max(height, width) // 2 and field[reach <= side].sum() < 0.9 * total:
            side += 1
        axis.imshow((field / field.max()).sqrt(), cmap="magma")
        corner = (width // 2 - side, height // 2 - side)
        axis.add_patch(plt.Rectangle(corner, 2 * side, 2 * side, fill=False, color="white", linewidth=0.8))
        axis.set_title(f"{axis.get_title()}: {2 * side + 1} pixels", fontsize=10)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def draw_bases(model: SegNeXt, image: np.ndarray, path: Path, shown: int = 6) -> None:
    """Where the bases of the matrix decomposition are used: the maps of those that explain most of the features."""
    taken = []
    hook = model.decoder.hamburger.nmf.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    labels = predict(model, image, mode="whole")
    hook.remove()
    bases, maps = (factor[0] for factor in model.decoder.hamburger.nmf.decompose(taken[0].float()))
    strength = bases.norm(dim=0) * maps.flatten(1).norm(dim=1)
    order = strength.argsort(descending=True)[:shown]
    figure, axes = _panels(2 + len(order), ["image", "prediction", *(f"basis {i + 1}" for i in range(len(order)))])
    axes[0].imshow(image)
    info = ModelInfo(model)
    axes[1].imshow(overlay(image, labels, info.label_names, info.palette, alpha=0.7, legend=False))
    for axis, index in zip(axes[2:], order):
        axis.imshow(_enlarged(maps[index], image.shape[:2]), cmap="viridis")
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("count", help="count the GMACs of the models in the plot of the cost")
    cost = commands.add_parser("cost", help="draw accuracy over cost")
    drawn = commands.add_parser("model", help="draw what a model does with an image")
    drawn.add_argument("model", help="published name, folder, or repository on the Hub")
    drawn.add_argument("--image", type=Path, help="image file; a street scene drawn here by default")
    for command in (cost, drawn):
        command.add_argument("-o", "--out", type=Path, default=Path(), help="folder of the pictures")
    args = parser.parse_args(argv)
    if args.command == "count":
        count()
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.command == "cost":
        draw_cost(args.out / "accuracy.png")
        return
    model = load_segmenter(args.model)
    if not isinstance(model, SegNeXt) or "mscan" not in model.config["encoder_name"]:
        raise ValueError(f"{args.model}: these pictures are of a SegNeXt on MSCAN.")
    image = read_image(args.image).permute(1, 2, 0).numpy() if args.image else scenes.draw(1, 0, 128)[0]
    draw_attention(model, image, args.out / "attention.png")
    several = [image] if args.image else [scenes.draw(1, index, 256)[0] for index in range(8)]
    draw_receptive_field(model, several, args.out / "receptive_field.png")
    draw_bases(model, image, args.out / "bases.png")
    print(f"Wrote attention.png, receptive_field.png and bases.png to {args.out}.")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"figures: {error}")
