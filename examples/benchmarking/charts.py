"""Charts of measured speed, for `benchmark.py`: bars of some contenders, and lines over the size of the images."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from segmentation.pictures import BLUE, GRAY, INK, LIGHT, LINES, new_figure, save, set_title

TASKS = {
    "logits": "Logits: a score per class and pixel",
    "labels": "Labels: the best class of each pixel",
    "train": "A step of training",
}
_ARCHITECTURES = {
    "segnext": "SegNeXt",
    "segformer": "SegFormer",
    "upernet": "UPerNet",
    "unet": "U-Net",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3+",
}
_WAYS = {
    "eager": "",
    "bf16": "bfloat16 autocast",
    "fp16": "float16 autocast",
    "compile": "torch.compile",
    "graph": "CUDA graph",
    "memory": "memory options",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
    "aotinductor": "AOTInductor",
}


def model_name(model: str) -> str:
    """Name a model of the benchmark for people: `segnext_t` is SegNeXt-T, `segformer:mit_b0` SegFormer MiT-B0."""
    if match := re.fullmatch(r"(segnext|mscan|mmseg)_([tsbl])", model):
        kind = {"segnext": "SegNeXt", "mscan": "MSCAN", "mmseg": "mmsegmentation SegNeXt"}[match[1]]
        return f"{kind}-{match[2].upper()}"
    if ":" in model:
        architecture, encoder = model.split(":", 1)
        return f"{_ARCHITECTURES.get(architecture, architecture)} {model_name(encoder.removeprefix('tu-'))}"
    if match := re.fullmatch(r"mit_(b\d)", model):
        return f"MiT-{match[1].upper()}"
    if match := re.fullmatch(r"(resnet|convnext)_?(\w+)", model):
        return f"{ {'resnet': 'ResNet', 'convnext': 'ConvNeXt'}[match[1]] }-{match[2].capitalize()}"
    return model


def contender_name(contender: str) -> str:
    """Name a contender of the benchmark for people: `segnext_t@onnx:int8` is SegNeXt-T, ONNX Runtime, INT8."""
    model, _, run = contender.partition("@")
    way, *options = run.split(":")
    options = [{"int8": "INT8", "fp16": "FP16"}.get(option, option) for option in options]
    return ", ".join(filter(None, (model_name(model), _WAYS.get(way, way), *options)))


def _comparison(speeds: Mapping[str, float], reference: str, several: bool) -> str:
    best = max(speeds, key=lambda name: speeds[name])
    if best == reference or speeds[best] < 1.05:
        return f"{contender_name(reference)} is about as fast as the fastest"
    up_to = "up to " if several else ""
    return f"{contender_name(best)}: {up_to}{speeds[best]:.1f}× as fast as {contender_name(reference)}"


def draw_bars(speeds: Mapping[str, Mapping[str, float]], path: Path, machine: str, note: str) -> None:
    """Draw how many times as fast as the first contender each is, the fastest first, a panel a task.

    Args:
        speeds: Task to contender to speed.
        path: The picture.
        machine: Where this was measured, for the title.
        note: What was measured.
    """
    rows = [len(bars) + 0.6 for bars in speeds.values()]
    figure, axes = new_figure(0.27 * sum(rows) + 0.35 * len(rows) + 0.9, len(speeds), sharex=True, height_ratios=rows)
    highest: dict[str, float] = {}
    for axis, (task, bars) in zip(axes[:, 0], speeds.items()):
        reference = next(iter(bars))
        names = sorted(bars, key=lambda name: bars[name])
        for name in names:
            highest[name] = max(highest.get(name, 0), bars[name])
        ours = [name.startswith(("segnext", "mscan")) for name in names]
        colors = [GRAY if name == reference else BLUE if own else LIGHT for name, own in zip(names, ours)]
        drawn = axis.barh([contender_name(name) for name in names], [bars[name] for name in names], 0.72, color=colors)
        labels = axis.bar_label(drawn, fmt="%.1f×", padding=4, fontsize=9.5, color=INK)
        for label in labels:
            label.set_bbox({"color": "white", "pad": 0.5})
        labels[-1].set_weight("bold")
        axis.axvline(1, color=GRAY, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
        axis.set_title(TASKS.get(task, task), loc="left", fontsize=10, color=INK)
        axis.spines["bottom"].set_visible(False)
        axis.set_xticks([])
        axis.margins(x=0.1, y=0.02)
    title = f"{_comparison(highest, reference, len(speeds) > 1)}, {_plain(machine)}"
    set_title(figure, title, f"× the speed of the gray bar. {note}")
    save(figure, path)


def _plain(machine: str) -> str:
    return re.sub(r"\((R|TM)\)", "", machine)


def _spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move positions apart, in their order, until neighbors are `gap` apart; their mean stays."""
    moved = list(positions)
    order = sorted(range(len(moved)), key=lambda i: moved[i])
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    shift = (sum(positions) - sum(moved)) / len(moved)
    return [position + shift for position in moved]


def _draw_lines(axis: Axes, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    values = [ms for points in lines.values() for _, ms in points]
    last = {name: max(points) for name, points in lines.items()}
    gap = 0.09 * max(np.log10(max(values) / min(values)), 0.1)
    heights = _spread([float(np.log10(ms)) for _, ms in last.values()], gap)
    right = max(megapixels for megapixels, _ in last.values())
    for (name, points), height, color in zip(lines.items(), heights, LINES * len(lines)):
        axis.plot(*zip(*sorted(points)), "o-", color=color, markersize=4)
        axis.annotate(
            f"{contender_name(name)}, {last[name][1]:.0f} ms",
            (right, 10**height),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=color,
            annotation_clip=False,
        )
    axis.set(xscale="log", yscale="log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xticks(sorted({megapixels for points in lines.values() for megapixels, _ in points}))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.4, color=LIGHT)


def draw_growth(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path, machine: str, note: str
) -> None:
    """Draw time over megapixels, a panel a task, each line with its name at its end.

    Args:
        curves: Task to contender to its points, megapixels of a batch and milliseconds.
        path: The picture.
        machine: Where this was measured, for the title.
        note: What was measured.
    """
    figure, axes = new_figure(3.4 * len(curves) + 0.6, len(curves), sharex=True)
    for axis, (task, lines) in zip(axes[:, 0], curves.items()):
        _draw_lines(axis, lines)
        axis.set_title(f"{TASKS.get(task, task)}, ms", loc="left", fontsize=10, color=INK)
    axes[-1, 0].set_xlabel("megapixels of a batch", fontsize=9, color=INK)
    first = next(iter(curves.values()))
    reference = next(iter(first))
    size, slowest = max(first[reference])
    speeds = {name: slowest / dict(points)[size] for name, points in first.items() if size in dict(points)}
    title = f"{_comparison(speeds, reference, False)}, at {size:.3g}\u00a0megapixels, {_plain(machine)}"
    set_title(figure, title, note)
    save(figure, path)
