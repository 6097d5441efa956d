"""Pictures that explain SegNeXt: what it costs and gains, how it is built, how far it sees, what its parts pick out.

    python examples/figures/draw.py hero runs/scenes/best -o DIR      # hero.png: three images and their predictions
    python examples/figures/draw.py architecture -o DIR               # architecture.svg: encoder, decoder, block
    python examples/figures/draw.py cost -o DIR                       # accuracy.png: published mIoU over GMACs
    python examples/figures/draw.py benchmark benchmark.json -o DIR   # benchmark.png: measured speed
    python examples/figures/draw.py model runs/scenes/best -o DIR     # attention.png, receptive_field.png, bases.png
    python examples/figures/draw.py model MODEL --image street.jpg    # on an image of yours
    python examples/figures/draw.py count                             # counts the GMACs of `PUBLISHED` again

MODEL is a published segmenter's name, a folder, or a repository on the Hugging Face Hub; for `model`, a SegNeXt on
MSCAN. Without `--image`, the images are street scenes drawn here; `--size` is their side, which is that of the training
images: 128 for `runs/quickstart`. `count` needs mmsegmentation 1.2.2, with mmcv-lite.

The pictures of README and guides show a model that was trained on a CPU with these settings:

    python examples/draw_scenes.py data/scenes --size 512 --train 160 --val 8
    python examples/train.py examples/recipes/folder.yaml --data_root data/scenes --out runs/scenes --init_from none
        --crop_size 256 --batch_size 4 --iterations 1000 --warmup 50 --lr 1e-3 --decoder_lr_factor 2
        --resize_factors 0.7 1.4 --eval_every 250
"""

import argparse
import itertools
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.utils.flop_counter import FlopCounterMode

from figures.diagrams import draw_architecture
from segmentation import scenes
from segmentation.pictures import BLUE, GRAY, INK, LIGHT, add_legend, new_figure, save, set_title
from segnext_timm import SegNeXt, SegNeXtError, load_segmenter, overlay, predict, read_image
from segnext_timm.errors import OptionError
from segnext_timm.models.model_info import ModelInfo

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
SCENES = (16, 0, 30)  # of the validation images that draw_scenes.py draws, and of those that the quickstart holds out
_CELL, _DARKEST = 8, 1e-3  # of the receptive fields: pixels of a side, and the share that is black
CONFIGS = {
    "segnext": "segnext/{}_1xb16-adamw-160k_ade20k-512x512.py",
    "segformer": "segformer/{}_8xb2-160k_ade20k-512x512.py",
    "swin": "swin/{}-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "deeplabv3plus": "deeplabv3plus/{}-d8_4xb4-160k_ade20k-512x512.py",
}


def count(names: Iterable[str] = tuple(name for family in PUBLISHED.values() for name in family)) -> dict[str, float]:
    """GMACs of a 512² image of models of `PUBLISHED`, 150 classes."""
    from benchmarking.peers import build, logits_of
    from publishing.reference import import_mmseg

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
    ours, other = PUBLISHED["SegNeXt"]["segnext_mscan-b"], PUBLISHED["UPerNet on Swin"]["swin-base"]
    figure, axes = new_figure(4.9)
    axis = axes[0, 0]
    for family, marker in zip(PUBLISHED, "os^D"):
        models, own = PUBLISHED[family], family == "SegNeXt"
        color = BLUE if own else GRAY
        axis.plot(*zip(*models.values()), marker=marker, color=color, linewidth=2.5 if own else 1.3, zorder=3)
        for name, point in models.items():
            short = name.replace("_", "-").split("-")[-1]
            short = {"tiny": "T", "small": "S", "base": "B"}.get(short, short.upper())
            text = f"{short}  {point[1]:.1f}" if own else short
            offset = (-8, 5) if own else (-10, 7) if short == "B4" else (7, -11)  # B4: beside the dashed line
            axis.annotate(text, point, offset, textcoords="offset points", fontsize=9.5,
                          color=color, ha="right" if own else "left", weight="bold" if own else "normal")  # fmt: skip
    for family, place in zip(PUBLISHED, ((22, 49.3), (55, 45.4), (270, 48.6), (215, 42.5))):
        own = family == "SegNeXt"
        axis.text(*place, family, fontsize=11, color=BLUE if own else GRAY, weight="bold" if own else "normal",
                  ha="center")  # fmt: skip
    axis.annotate("", other, ours, arrowprops={"arrowstyle": "<->", "color": BLUE, "linestyle": (0, (4, 3))})
    middle = ((ours[0] * other[0]) ** 0.5 * 1.25, ours[1] - 0.12)
    axis.annotate(f"{other[0] / ours[0]:.1f}× fewer GMACs", middle, ha="center", va="top", fontsize=9.5, color=BLUE)
    axis.set(xscale="log", xlim=(3.9, 420))
    axis.set_xticks([5, 10, 20, 50, 100, 200], labels=["5", "10", "20", "50", "100", "200"])
    axis.minorticks_off()
    axis.set_xlabel("GMACs of a 512×512 image, logarithmic", fontsize=9.5, color=INK)
    axis.set_title("mIoU on ADE20K val, single scale, %", loc="left", fontsize=9.5, color=INK)
    axis.grid(alpha=0.4, color=LIGHT)
    note = "mIoU as mmsegmentation 1.2.2 publishes it; GMACs as this repository counts them."
    set_title(figure, "SegNeXt-B is as accurate as UPerNet on Swin-B, with a tenth of the GMACs", note)
    save(figure, path)


def _crop(picture: np.ndarray, aspect: float) -> np.ndarray:
    """Cut the middle of a picture, of an aspect (height / width)."""
    height, width = picture.shape[:2]
    rows, columns = min(height, round(width * aspect)), min(width, round(height / aspect))
    top, left = (height - rows) // 2, (width - columns) // 2
    return picture[top : top + rows, left : left + columns]


def draw_hero(model: torch.nn.Module, images: Sequence[np.ndarray], path: Path) -> None:
    """Images above their predictions, with one legend of the classes that occur."""
    info = ModelInfo(model)
    figure, axes = new_figure(2 * 0.73 * (7.84 / len(images) - 0.08) + 1.1, 2, len(images))
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.06, wspace=0, hspace=0, rect=(0.01, 0.01, 0.98, 0.98))
    present = set()
    for column, image in zip(axes.T, images):
        labels = predict(model, image)
        over = np.asarray(overlay(image, labels, info.label_names, info.palette, alpha=0.65, legend=False))
        present |= set(np.unique(_crop(labels, 0.73)).tolist())
        for axis, picture in zip(column, (image, over)):
            axis.imshow(_crop(picture, 0.73), interpolation="bicubic")
            axis.set_axis_off()
    add_legend(figure, sorted(present), info.label_names, info.palette)
    set_title(figure, "SegNeXt predicts the class of every pixel")
    save(figure, path, smooth=True, exact=[info.palette[label] for label in present])


def draw_benchmark(file: Path, path: Path) -> None:
    """What `benchmark.py` measured: speeds, or times over the number of pixels."""
    import benchmark

    content = json.loads(file.read_text(encoding="utf-8"))
    results = [benchmark.Result(**result) for result in content["results"]]
    groups = [list(group) for _, group in itertools.groupby(results, lambda r: (r.task, r.height, r.width, r.batch))]
    benchmark.draw(groups, path, content["machine"], content["settings"]["classes"])


def _prepare(model: torch.nn.Module, image: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in ModelInfo(model).normalization)
    return ((read_image(image) / 255 - mean) / std)[None]


def _panels(titles: Sequence[str], rows: int = 1) -> tuple[Figure, list[Axes]]:
    columns = -(-len(titles) // rows)
    figure, axes = new_figure(rows * (7.84 / columns + 0.22) + 0.7, rows, columns)
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.06, wspace=0, hspace=0, rect=(0.01, 0, 0.98, 1))
    for axis, title in itertools.zip_longest(axes.flat, titles, fillvalue=""):
        axis.set_title(title, fontsize=9.5, color=INK)
        axis.set_axis_off()
    return figure, list(axes.flat)


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
    figure, axes = _panels(["image", *(f"stage {i + 1}, stride {4 << i}" for i in range(len(gates)))])
    axes[0].imshow(image)
    for axis, gate in zip(axes[1:], gates):
        strength = gate[0].abs().mean(0)
        low, high = strength.quantile(torch.tensor([0.02, 0.98])).tolist()
        axis.imshow(_enlarged(strength, image.shape[:2]), cmap="magma", vmin=low, vmax=high)
    note = "Mean magnitude over the channels in each stage's last block, from the stage's lowest 2% to its highest 2%."
    set_title(figure, "Where the attention of each stage is strong", note)
    save(figure, path, smooth=True)


def draw_receptive_field(model: SegNeXt, images: list[np.ndarray], path: Path) -> None:
    """The effective receptive field of each stage: the gradient of its central feature, over the pixels.

    Magnitudes are summed over the channels and averaged over the images
    (https://arxiv.org/abs/1701.04128); the square holds nine tenths of them. The scale of the colors is logarithmic.
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
    figure, axes = _panels([f"stage {i + 1}, stride {4 << i}" for i in range(len(fields))])
    sides = []
    for axis, field in zip(axes, fields):
        height, width = field.shape
        total, reach_90 = field.sum(), 1
        rows, columns = (torch.arange(n) - n // 2 for n in (height, width))
        reach = torch.maximum(rows.abs()[:, None], columns.abs()[None])
        while reach_90 < max(height, width) // 2 and field[reach <= reach_90].sum() < 0.9 * total:
            reach_90 += 1
        mean = F.avg_pool2d(field[None], _CELL, ceil_mode=True, count_include_pad=False)[0]
        shares = (mean / mean.max()).clamp(min=_DARKEST)
        shown = axis.imshow(shares, cmap="magma", norm=LogNorm(_DARKEST, 1), extent=(0, width, height, 0))
        corner = (width // 2 - reach_90, height // 2 - reach_90)
        axis.add_patch(Rectangle(corner, 2 * reach_90, 2 * reach_90, fill=False, color="white", linewidth=1.2))
        sides.append(min(2 * reach_90 + 1, max(height, width)))
        small = sides[-1] < 0.3 * height  # its label does not fit into the square
        bottom = height // 2 + reach_90 + (0.02 if small else -0.02) * height
        style = {"ha": "center", "va": "top" if small else "bottom", "color": "white", "fontsize": 10, "weight": "bold"}
        axis.text(width // 2, bottom, f"{sides[-1]} px", **style)
    bar = figure.colorbar(shown, ax=axes, aspect=18, pad=0.01, shrink=0.72)
    bar.set_ticks([_DARKEST, 0.01, 0.1, 1], labels=[f"{_DARKEST:g}", "0.01", "0.1", "1"])
    bar.ax.tick_params(labelsize=8, colors=INK, which="both", length=0)
    bar.outline.set_visible(False)
    note = (
        f"Gradient of a stage's central feature over the pixels of {width}×{height} images, as a share of the largest "
        f"mean of {_CELL}×{_CELL} pixels; squares hold nine tenths of it."
    )
    set_title(figure, f"How far a feature sees, stage by stage: {', '.join(map(str, sides))} pixels across", note)
    save(figure, path, smooth=True)


def draw_bases(model: SegNeXt, image: np.ndarray, path: Path, shown: int = 6) -> None:
    """Where the bases of the matrix decomposition are used: the maps of those that explain most of the features."""
    taken = []
    hook = model.decoder.hamburger.nmf.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    labels = predict(model, image, mode="whole")
    hook.remove()
    bases, coefficients = (factor[0] for factor in model.decoder.hamburger.nmf.decompose(taken[0].float().flatten(2)))
    maps = coefficients.T.unflatten(1, taken[0].shape[2:])
    strength = bases.norm(dim=0) * maps.flatten(1).norm(dim=1)
    order = strength.argsort(descending=True)[:shown]
    info = ModelInfo(model)
    titles = [f"basis {i + 1}: {_main_class(maps[index], labels, info)}" for i, index in enumerate(order)]
    figure, axes = _panels(["image", "prediction", *titles], rows=2)
    axes[0].imshow(image)
    axes[1].imshow(overlay(image, labels, info.label_names, info.palette, alpha=0.7, legend=False))
    for axis, index in zip(axes[2:], order):
        axis.imshow(_enlarged(maps[index], image.shape[:2]), cmap="viridis")
    note = "Bright: used much. Percent: how much of a basis's use lies on that class in the prediction."
    set_title(figure, f"Where the {len(order)} strongest of {len(maps)} bases are used", note)
    save(figure, path, smooth=True)


def _main_class(use: torch.Tensor, labels: np.ndarray, info: ModelInfo) -> str:
    """Name and share of the class on which most of a map (H, W) lies."""
    amounts = np.bincount(labels.ravel(), _enlarged(use, labels.shape).ravel())
    return f"{amounts.max() / max(amounts.sum(), 1e-9):.0%} {info.label_names[amounts.argmax()]}"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("count", help="count the GMACs of the models in the plot of the cost")
    cost = commands.add_parser("cost", help="draw accuracy over cost")
    architecture = commands.add_parser("architecture", help="draw the parts of SegNeXt-T")
    measured = commands.add_parser("benchmark", help="draw what benchmark.py measured")
    measured.add_argument("json", type=Path, help="benchmark.json")
    hero = commands.add_parser("hero", help="draw images and their predictions")
    drawn = commands.add_parser("model", help="draw what a model does with an image")
    for command in (hero, drawn):
        command.add_argument("model", help="published name, folder, or repository on the Hub")
        command.add_argument("--size", type=int, default=512, help="side of the street scenes, that of the training")
    hero.add_argument("--image", type=Path, nargs="+", help="image files, best three; street scenes by default")
    drawn.add_argument("--image", type=Path, help="image file; a street scene by default")
    for command in (cost, architecture, measured, hero, drawn):
        command.add_argument("-o", "--out", type=Path, default=Path(), help="folder of the pictures")
    return parser.parse_args(argv)


def _read(file: Path) -> np.ndarray:
    return read_image(file).permute(1, 2, 0).numpy()


def draw_model(args: argparse.Namespace) -> list[str]:
    """Draw what a model does with an image. Returns the names of the pictures."""
    model = load_segmenter(args.model)
    if args.command == "hero":
        images = [_read(file) for file in args.image or ()] or [scenes.draw(1, index, args.size)[0] for index in SCENES]
        draw_hero(model, images, args.out / "hero.png")
        return ["hero.png"]
    if not isinstance(model, SegNeXt) or "mscan" not in model.config["encoder_name"]:
        raise OptionError(f"{args.model}: these pictures are of a SegNeXt on MSCAN.")
    image = _read(args.image) if args.image else scenes.draw(1, SCENES[0], args.size)[0]
    draw_attention(model, image, args.out / "attention.png")
    several = [image] if args.image else [scenes.draw(1, index, args.size)[0] for index in range(8)]
    draw_receptive_field(model, several, args.out / "receptive_field.png")
    draw_bases(model, image, args.out / "bases.png")
    return ["attention.png", "receptive_field.png", "bases.png"]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.command == "count":
        count()
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.command == "cost":
        written = ["accuracy.png"]
        draw_cost(args.out / written[0])
    elif args.command == "architecture":
        written = ["architecture.svg"]
        draw_architecture(args.out / written[0])
    elif args.command == "benchmark":
        written = ["benchmark.png"]
        draw_benchmark(args.json, args.out / written[0])
    else:
        written = draw_model(args)
    print(f"Wrote {', '.join(written)} to {args.out}.")


if __name__ == "__main__":
    try:
        main()
    except (SegNeXtError, OSError) as error:
        sys.exit(f"draw: {error}")
