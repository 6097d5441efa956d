"""Pictures of predictions and of training."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from segnext_timm.label_sets import Color
from segnext_timm.prediction.drawing import colored


def _legend(figure: plt.Figure, present: Iterable[int], classes: Sequence[str], palette: Sequence[Color]) -> None:
    handles = [Patch(color=np.array(palette[i]) / 255, label=classes[i]) for i in present if i < len(classes)]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(min(len(handles), 7), 1), frameon=False)


def draw_samples(
    samples: Sequence[tuple[np.ndarray, np.ndarray]],
    classes: Sequence[str],
    palette: Sequence[Color],
    ignore_index: int,
    path: Path,
) -> None:
    """Draw images with their labels over them, four a row, with a legend of the classes that occur.

    Args:
        samples: Image (H, W, 3), from 0 to 1, and labels (H, W) of each.
        classes: Name of each class.
        palette: Color of each class.
        ignore_index: Label over which nothing is drawn.
        path: The picture.
    """
    rows = -(-len(samples) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(12, 3.1 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (image, labels) in zip(axes.flat, samples):
        over = np.where((labels == ignore_index)[..., None], image, colored(labels, palette) / 255)
        axis.imshow(0.5 * image + 0.5 * over, interpolation="nearest")
    present = np.unique(np.concatenate([np.unique(labels) for _, labels in samples]))
    _legend(figure, present, classes, palette)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_predictions(
    samples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    palette: Sequence[Color],
    path: Path,
) -> None:
    """Draw image, truth and prediction side by side, with a legend of the classes that occur.

    Args:
        samples: Image (H, W, 3), true labels and predicted labels (H, W) of each row.
        classes: Name of each class.
        palette: Color of each class.
        path: The picture.
    """
    aspect = max(image.shape[0] / image.shape[1] for image, _, _ in samples)
    size = (9, 3 * aspect * len(samples) + 1)
    figure, axes = plt.subplots(len(samples), 3, figsize=size, squeeze=False, layout="constrained")
    for axis, title in zip(axes[0], ("image", "truth", "prediction")):
        axis.set_title(title)
    for row, (image, truth, prediction) in zip(axes, samples):
        pictures = (image, colored(truth, palette), colored(prediction, palette))
        for axis, picture in zip(row, pictures):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    present = np.unique(np.concatenate([np.unique(labels) for sample in samples for labels in sample[1:]]))
    _legend(figure, present, classes, palette)
    figure.savefig(path, dpi=80)
    plt.close(figure)


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
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axis.plot(np.arange(1, len(losses) + 1), losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axis.plot(np.arange(window, len(losses) + 1), smooth, color="tab:blue", label=f"loss, mean of {window} steps")
    axis.set(xlabel="step", ylabel=f"loss ({loss})", ylim=(0, None))
    twin = axis.twinx()
    if mious:
        twin.plot(*zip(*mious), "o-", color="tab:orange", label="mIoU on held-out images")
    twin.set(ylabel="mIoU", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_bars(speeds: Mapping[str, Mapping[str, float]], path: Path, title: str) -> None:
    """Draw how many times as fast as the first contender each is, a panel a task.

    Args:
        speeds: Task to contender to speed.
        path: The picture.
        title: Where this was measured.
    """
    height = 0.34 * sum(len(bars) + 1.6 for bars in speeds.values()) + 0.5
    ratios = [len(bars) + 1 for bars in speeds.values()]
    figure, axes = plt.subplots(
        len(speeds), figsize=(8, height), squeeze=False, sharex=True, height_ratios=ratios, layout="constrained"
    )
    for axis, (task, bars) in zip(axes[:, 0], speeds.items()):
        names = list(bars)[::-1]
        colors = ["tab:gray" if name == names[-1] else "tab:blue" for name in names]
        drawn = axis.barh(names, [bars[name] for name in names], color=colors)
        axis.bar_label(drawn, fmt="%.2f×", padding=3, bbox={"color": "white", "pad": 0.5})
        axis.axvline(1, color="black", linewidth=0.8, zorder=0)
        axis.set_title(task, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.1)
    axes[-1, 0].set_xlabel(f"times the speed of {next(iter(bars))}\n{title}")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_growth(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path, title: str) -> None:
    """Draw time over megapixels, a panel a task.

    Args:
        curves: Task to contender to its points, megapixels of a batch and milliseconds.
        path: The picture.
        title: Where this was measured.
    """
    figure, axes = plt.subplots(1, len(curves), figsize=(5.5 * len(curves), 4.5), squeeze=False, layout="constrained")
    for axis, (task, lines) in zip(axes[0], curves.items()):
        for name, points in lines.items():
            axis.plot(*zip(*sorted(points)), "o-", label=name)
        axis.set(title=task, xlabel="megapixels of a batch", ylabel="ms", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=80)
    plt.close(figure)
