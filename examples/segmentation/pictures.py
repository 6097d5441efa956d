"""Pictures of predictions, scores and training: 8 inches wide, for pages of light or dark color."""

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from segnext_timm.label_sets import Color

from .metrics import Scores

WIDTH = 8.0  # inches, of every picture but one: the confusion of very many classes
INK, GRAY, LIGHT, BLUE = "#1f2328", "#656d76", "#b7bec6", "#0b5cad"
LINES = (BLUE, "#c2410c", "#15803d", "#7c3aed", "#a16207", "#be185d", "#0e7490", GRAY)


def new_figure(
    height: float, rows: int = 1, columns: int = 1, width: float = WIDTH, **kwargs
) -> tuple[Figure, np.ndarray]:
    """Create a white figure of a size in inches, with a margin, and its axes (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(LIGHT)
        axis.tick_params(which="both", colors=INK, labelsize=9, length=0)
    return figure, axes


def set_title(figure: Figure, title: str, note: str = "") -> None:
    """Write the message of a figure above it, and where its numbers come from below it."""
    figure.suptitle(textwrap.fill(title, 72), x=0.012, ha="left", fontsize=12, weight="bold", color=INK)
    if note:
        figure.supxlabel(textwrap.fill(note, 115), x=0.012, ha="left", fontsize=9, color=GRAY)


def save(figure: Figure, path: Path, smooth: bool = False, exact: Iterable[Color] = ()) -> None:
    """Write a figure as a PNG of 256 colors, 200 pixels an inch, twice what a page shows.

    Args:
        figure: The figure.
        path: The picture.
        smooth: Mix colors that are not among the 256 from dots: for photos and maps, in larger files.
        exact: Colors that have to be among the 256, such as a legend's.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=200, pil_kwargs={"compress_level": 0})  # read again at once
    with Image.open(drawn) as picture:
        full = picture.convert("RGB")
    # of some pixels, since it is slow; unlike other methods, this one keeps the colors of few, such as a legend's
    some = full.resize((full.width // 4, full.height // 4), Image.Resampling.NEAREST)
    reduced = some.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2)
    colors = np.array(reduced.getpalette()).reshape(-1, 3)
    colors[colors.min(1) >= 244] = 255  # the paper's; Pillow takes near colors for equal
    for color in exact:
        colors[np.abs(colors - color).sum(1).argmin()] = color
    reduced.putpalette(colors.ravel().tolist())
    dither = Image.Dither.FLOYDSTEINBERG if smooth else Image.Dither.NONE
    full.quantize(palette=reduced, dither=dither).save(path, format="PNG")


def add_legend(figure: Figure, present: Iterable[int], classes: Sequence[str], palette: Sequence[Color]) -> None:
    """Write the names and colors of the labels that are present below a figure; labels beyond the classes are black."""
    present = list(present)
    handles = [Patch(color=np.array(palette[i]) / 255, label=classes[i]) for i in present if i < len(classes)]
    if len(handles) < len(present):
        handles.append(Patch(color="black", label="ignored"))
    for columns in range(max(min(len(handles), 8), 1), 0, -1):
        legend = figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=10,
            labelcolor=INK,
            handlelength=1.2,
            handleheight=1.2,
            columnspacing=1.6,
        )
        if columns == 1 or legend.get_window_extent().width <= 0.98 * figure.bbox.width:
            return
        legend.remove()


def _colored(labels: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Map labels (H, W) to colors (H, W, 3); black for labels beyond the palette."""
    return np.array([*palette, (0, 0, 0)], np.uint8)[np.minimum(labels, len(palette))]


def draw_samples(
    samples: Sequence[tuple[np.ndarray, np.ndarray]],
    classes: Sequence[str],
    palette: Sequence[Color],
    ignore_index: int,
    path: Path,
    shares: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Draw images with their labels over them, four a row, with a legend of the classes that occur.

    Below them, bars show the shares of the classes, up to 20: the most frequent and the rarest.

    Args:
        samples: Image (H, W, 3), from 0 to 1, and labels (H, W) of each.
        classes: Name of each class.
        palette: Color of each class.
        ignore_index: Label over which nothing is drawn.
        path: The picture.
        shares: Share of each class among the pixels of each split, by the split's name.
    """
    rows = -(-len(samples) // 4)
    bars = 0.7 + 0.22 * min(len(classes), 20) if shares else 0
    figure, axes = new_figure(
        2.1 * rows + 0.4 + bars, rows + bool(shares), 4, height_ratios=[2] * rows + [bars] * bool(shares)
    )
    for axis in axes.flat:
        axis.set_axis_off()
    if shares:
        _draw_shares(figure.add_subplot(axes[-1, 0].get_gridspec()[-1, :]), shares, classes, palette)
    for axis, (image, labels) in zip(axes.flat, samples):
        over = np.where((labels == ignore_index)[..., None], image, _colored(labels, palette) / 255)
        axis.imshow(0.5 * image + 0.5 * over, interpolation="nearest")
    present = np.unique(np.concatenate([np.unique(labels) for _, labels in samples]))
    add_legend(figure, present[present < len(classes)], classes, palette)
    save(figure, path)


def _draw_shares(
    axis: Axes, shares: Mapping[str, np.ndarray], classes: Sequence[str], palette: Sequence[Color], most: int = 20
) -> None:
    """Draw bars of the classes' shares, the first split's largest first, with the numbers of all splits."""
    order = np.argsort(-next(iter(shares.values())), kind="stable")
    if len(order) > most:
        order = np.concatenate([order[: most // 2], order[-(most // 2) :]])
    height = 0.8 / len(shares)
    for place, values in enumerate(shares.values()):
        rows = np.arange(len(order)) + (place - (len(shares) - 1) / 2) * height
        colors = np.array(palette)[order] / 255
        drawn = axis.barh(rows, 100 * values[order], 0.9 * height, color=colors, alpha=1 if not place else 0.55)
        axis.bar_label(drawn, [f"{100 * value:.3g}" for value in values[order]], padding=3, fontsize=7, color=INK)
    axis.set(yticks=range(len(order)), ylim=(len(order) - 0.4, -0.6), xticks=[])
    axis.set_yticklabels([textwrap.shorten(classes[label], 40, placeholder="...") for label in order])
    title = f"Percent of the pixels of each class: {' above '.join(shares)}"
    axis.set_title(
        title + (f"; {most} of {len(classes)} classes" if len(classes) > most else ""), loc="left", fontsize=9
    )
    axis.spines[:].set_visible(False)
    axis.tick_params(colors=INK, labelsize=8, length=0)


def draw_predictions(
    samples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    palette: Sequence[Color],
    path: Path,
) -> None:
    """Draw image, truth and prediction side by side, with a legend of the classes that occur.

    Args:
        samples: Image (H, W, 3), true labels and predicted labels (H, W) of each. Pixels whose true label is no class
            are black in the truth, and do not count in the title.
        classes: Name of each class.
        palette: Color of each class.
        path: The picture.
    """
    aspect = max(image.shape[0] / image.shape[1] for image, _, _ in samples)
    across = 2 if aspect > 0.7 and len(samples) > 1 else 1  # samples in a row
    rows = -(-len(samples) // across)
    widths = [1, 1, 1, 0.05, 1, 1, 1][: 4 * across - 1]
    height = rows * (0.96 * WIDTH / sum(widths) * aspect + 0.02) + 1
    figure, axes = new_figure(height, rows, len(widths), width_ratios=widths)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.05, wspace=0, hspace=0, rect=(0.01, 0.01, 0.98, 0.98))
    titles = ("image", "truth", "prediction", "", "image", "truth", "prediction")
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        # with y, no place for it is sought above ticks that are not drawn: a quarter of the time
        axis.set_title(titles[place] if place < len(widths) else "", y=1, fontsize=10, color=INK)
    correct = counted = 0
    for place, (image, truth, prediction) in enumerate(samples):
        valid = truth < len(classes)
        correct, counted = correct + (truth == prediction)[valid].sum(), counted + valid.sum()
        first = 4 * (place % across)
        pictures = (image, _colored(truth, palette), _colored(prediction, palette))
        for axis, picture in zip(axes[place // across, first : first + 3], pictures):
            axis.imshow(picture, interpolation="nearest")
    set_title(figure, f"{correct / max(counted, 1):.0%} of these pixels are labeled correctly")
    present = np.unique(np.concatenate([np.unique(labels) for sample in samples for labels in sample[1:]]))
    add_legend(figure, present, classes, palette)
    save(figure, path)


def draw_training(losses: Sequence[float], mious: Sequence[tuple[int, float]], path: Path, loss: str) -> None:
    """Draw the loss of each step and the mIoU of each evaluation.

    Args:
        losses: Of the steps, from the first.
        mious: Step and mIoU of each evaluation.
        path: The picture.
        loss: What the loss is.
    """
    losses = np.array(losses)
    window = max(len(losses) // 40, 1)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    figure, axes = new_figure(4.6, 2, sharex=True)
    upper, lower = axes[:, 0]
    for axis in (upper, lower):
        axis.grid(alpha=0.4, color=LIGHT)
    upper.set(ylim=(0, 1))
    upper.set_title("mIoU on held-out images", loc="left", fontsize=10, color=BLUE)
    if mious:
        upper.plot(*zip(*mious), "o-", color=BLUE)
        upper.annotate(f"{mious[-1][1]:.3f}", mious[-1], (0, -16), textcoords="offset points", ha="center", color=BLUE)
    lower.plot(np.arange(1, len(losses) + 1), losses, color=LINES[1], alpha=0.25, linewidth=0.8)
    lower.plot(np.arange(window, len(losses) + 1), smooth, color=LINES[1])
    mean = f", mean of {window} steps" if window > 1 else ""
    lower.set_title(f"Loss: {loss}{mean}", loc="left", fontsize=10, color=LINES[1])
    lower.set(ylim=(0, None))
    lower.set_xlabel("step", fontsize=9, color=INK)
    title = f"Loss {smooth[-1]:.3f} after {len(losses)} steps"
    if mious:
        step, best = max(mious, key=lambda pair: pair[1])
        title = f"mIoU {best:.3f} after {step} steps"
        title += f", {mious[-1][1]:.3f} after {mious[-1][0]}" if step < mious[-1][0] else ""
    set_title(figure, title)
    save(figure, path)


def _extreme(scores: Scores, value: torch.Tensor) -> str:
    """An IoU in percent, and the class that has it, or how many have it."""
    equal = [name for name, iou in zip(scores.classes, 100 * scores.iou) if abs(iou - value) < 0.05]
    return f"{value:.1f} for {equal[0] if len(equal) == 1 else f'{len(equal)} classes'}"


def draw_iou(scores: Scores, path: Path) -> None:
    """Draw the IoU of each class, the best one first."""
    values = 100 * scores.iou
    order = values.nan_to_num(-1).argsort(descending=True).tolist()
    figure, axes = new_figure(0.9 + 0.24 * len(order))
    axis = axes[0, 0]
    bars = axis.barh(range(len(order)), values.nan_to_num(0)[order].numpy(), height=0.7, color=BLUE)
    texts = ["absent" if values[i].isnan() else f"{values[i]:.1f}" for i in order]
    axis.bar_label(bars, texts, padding=4, fontsize=9, color=INK)
    axis.set(yticks=range(len(order)), xlim=(0, 105), ylim=(len(order) - 0.5, -0.5), xticks=range(0, 101, 20))
    axis.set_yticklabels([scores.classes[i] for i in order])
    axis.set_xlabel("IoU in percent", fontsize=9, color=INK)
    found = [i for i in order if not values[i].isnan()]
    title = f"mIoU {100 * scores.miou:.1f}" if found else "There is no pixel of any class"
    if len(found) > 1:
        title += f": from {_extreme(scores, values[found[-1]])} to {_extreme(scores, values[found[0]])}"
    set_title(figure, title)
    save(figure, path)


def draw_confusion(scores: Scores, path: Path) -> None:
    """Draw which classes the pixels of each class are given, with numbers if the classes are at most 20."""
    count = len(scores.classes)
    shares = (scores.confusion.double() / scores.confusion.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = max(3.0, 0.42 * count) if count <= 20 else 0.2 * count
    names = 0.08 * max(map(len, scores.classes))
    figure, axes = new_figure(side + names + 1.2, width=max(WIDTH, side + names + 2))
    axis = axes[0, 0]
    # the square root of a share decides the color, so that a few percent are seen
    drawn = axis.imshow(100 * shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    if count <= 20:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.0005:
                color = "white" if share > 0.25 else INK
                axis.text(column, row, f"{100 * share:.1f}", ha="center", va="center", fontsize=9, color=color)
    else:
        bar = figure.colorbar(drawn, shrink=0.3, aspect=30, ticks=(0, 1, 5, 10, 25, 50, 100))
        bar.outline.set_visible(False)
    axis.set(xticks=range(count), yticks=range(count))
    axis.set_xticklabels(scores.classes, rotation=90)
    axis.set_yticklabels(scores.classes)
    axis.set_xlabel("predicted class", fontsize=9, color=INK)
    axis.set_ylabel("true class", fontsize=9, color=INK)
    wrong = shares * (1 - np.eye(count))
    truth, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    title = "No pixel is taken for one of another class"
    if wrong.any():
        share = f"{wrong[truth, predicted]:.1%} of {scores.classes[truth]}"
        title = f"Most frequent confusion: {share} is taken for {scores.classes[predicted]}"
    set_title(figure, title, "Percent of each true class's pixels that were given each class; blank below 0.05.")
    save(figure, path)
