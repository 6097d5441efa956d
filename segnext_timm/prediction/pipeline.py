"""Image in, labels out: preprocessing, whole images or sliding windows, multiple scales and flips.

A model's `pretrained_cfg` says how its images are normalized (`mean` and `std`, of values from 0 to 1), as timm's does;
without it, they are normalized as smp's preprocessing of its encoder does it.

An image of any size is labelled in bounded memory: windows are kept at the size of the decoder's logits, and resized,
averaged and compared a tile of the image at a time.
"""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from segmentation_models_pytorch.base.modules import Clamp

from ..models.model_info import (
    evaluation_mode,
    in_channels,
    normalization,
    num_classes,
    output_activation,
    positive_above,
)
from .images import read_image
from .windows import _PRECISIONS, Mode, Precision, _autocast, _pad, _Plan, _View

ImageLike = str | Path | Image.Image | np.ndarray | torch.Tensor
_WHOLE_BYTES = 2 << 30  # what an image may take to be seen whole without being told to
_PIXEL_BYTES = 600  # what a pixel of it takes, but for maps of all classes at its size
_TILE_BYTES = 1 << 27  # of a tile's scores


def _label_type(classes: int) -> type:
    return np.uint8 if classes <= 256 else np.int32


def fit(size: tuple[int, int], long: float, short: float, divisor: int = 1) -> tuple[int, int]:
    """The size (height, width) to which an image is resized to fit, keeping its aspect.

    Args:
        size: Height and width of the image.
        long: Largest length of the longer side.
        short: Largest length of the shorter side.
        divisor: Round both sides up to multiples of it.
    """
    scale = min(long / max(size), short / min(size))
    height, width = (max(round(side * scale), 1) for side in size)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _scores(
    model: nn.Module, image: torch.Tensor, plan: _Plan, tile: int | None
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Rows, columns and scores (rows, columns, classes) of each tile of an image, from the top down.

    Scores are logits if there is one view, else the mean of the probabilities.
    """
    own = tuple(image.shape[-2:])
    views = [
        _View(model, image, size, mirrored, plan)
        for size in plan.sizes
        for mirrored in ((False, True) if plan.flip else (False,))
    ]
    steps = own if tile is None else (tile, tile)
    for top in range(0, own[0], steps[0]):
        for left in range(0, own[1], steps[1]):
            rows, columns = slice(top, min(top + steps[0], own[0])), slice(left, min(left + steps[1], own[1]))
            scores = None
            for view in views:
                logits = view.resized_logits(own, rows, columns)
                if len(views) == 1:
                    scores = logits
                    break
                probabilities = _probabilities(logits, output_activation(model)).div_(len(views))
                scores = probabilities if scores is None else scores.add_(probabilities)
            yield rows, columns, scores


def _probabilities(logits: torch.Tensor, activation: nn.Module | None) -> torch.Tensor:
    """Probabilities (..., classes) as the model's own activation makes them; by softmax or sigmoid if it makes none."""
    if isinstance(activation, Clamp):
        return activation(logits)
    binary = logits.shape[-1] == 1 or isinstance(activation, nn.Sigmoid)
    return logits.sigmoid() if binary else logits.softmax(-1)


def _free_memory(device: torch.device) -> float:
    """Bytes that a device has left, as far as it tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return float("inf")


def _make_plan(
    model: nn.Module,
    own: tuple[int, int],
    mode: Mode = "auto",
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit_in: tuple[int, int] | None = None,
    divisor: int = 1,
    precision: Precision = "fp32",
    batch: int = 1,
) -> _Plan:
    """What was asked for, checked and made definite for an image of a size.

    Raises:
        ValueError: If something that was asked for does not exist.
    """
    if mode not in ("auto", "whole", "slide"):
        raise ValueError(f"mode must be 'auto', 'whole' or 'slide', got {mode!r}")
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive, got {scales!r}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    cfg = getattr(model, "pretrained_cfg", None) or {}
    window = window or tuple((cfg.get("input_size") or (0, 512, 512))[1:])
    window = (window, window) if isinstance(window, int) else tuple(window)
    stride = tuple(max(side * 3 // 4, 1) for side in window) if stride is None else stride
    stride = (stride, stride) if isinstance(stride, int) else tuple(stride)
    if min(window) < 1 or min(stride) < 1 or any(step > side for step, side in zip(stride, window)):
        raise ValueError(f"stride must be from 1 to the window's side, got {stride} of {window}")
    channels, known = in_channels(model), len(normalization(model)[0])
    if known != channels:
        raise ValueError(
            f"The model takes {channels} channels, and its mean and std have {known}: put those of your images, of "
            f'values from 0 to 1, into model.pretrained_cfg["mean"] and ["std"].'
        )
    longest = fit_in or (max(own), min(own))
    sizes = [fit(own, *(side * scale for side in longest), divisor) for scale in scales]
    if mode == "auto":
        device = next(model.parameters()).device
        each = _PIXEL_BYTES + (0 if hasattr(model, "forward_logits") else 12 * num_classes(model))
        needed = each * max(height * width for height, width in sizes)
        mode = "whole" if needed <= min(_WHOLE_BYTES, _free_memory(device) / 2) else "slide"
    if mode == "whole":
        window = stride = tuple(max(side) for side in zip(*sizes))
    return _Plan(mode, window, stride, sizes, flip, precision, batch)


@torch.inference_mode()
def segment(model: nn.Module, image: torch.Tensor, **options: Any) -> torch.Tensor:
    """Scores of one image at its own size: their greatest is the label.

    Args:
        model: Maps normalised images (1, C, H, W) to logits of the same size; in evaluation mode.
        image: Shape (C, H, W): uint8 from 0 to 255, or float32 from 0 to 1.
        options: As of :func:`predict`, `mode` to `batch`; and `divisor`, whose multiples the sides are rounded up to
            when the image is resized.

    Returns:
        Scores of shape (classes, H, W), on the model's device: logits if the image is seen once, else the mean of the
        probabilities.
    """
    plan = _make_plan(model, tuple(image.shape[-2:]), **options)
    ((_, _, scores),) = _scores(model, image.to(next(model.parameters()).device), plan, tile=None)
    return scores.permute(2, 0, 1)


@torch.inference_mode()
def _predict(
    model: nn.Module,
    image: torch.Tensor,
    plan: _Plan,
    tile: int | None,
    probabilities: bool | Callable[[int], np.ndarray],
    progress: Callable[[float], None] | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels (H, W), and probabilities (classes, H, W) if asked for: see :func:`predict`."""
    own = tuple(image.shape[-2:])
    image = image.to(next(model.parameters()).device)
    once = plan.views == 1 and plan.mode == "whole" and plan.sizes == [own]
    if once and not probabilities and hasattr(model, "predict_labels"):  # no map of all classes at all
        view = _View(model, image, own, False, plan)
        with _autocast(image.device, plan.precision):
            found = model.predict_labels(_pad(model, view.crop(0, 0)))[0, : own[0], : own[1]]
        if progress is not None:
            progress(1.0)
        return found.cpu().numpy().astype(_label_type(num_classes(model))), None
    if tile is None:
        tile = min(max(int((_TILE_BYTES / 4 / num_classes(model)) ** 0.5), 64), 4096)
    activation = output_activation(model)
    labels, given, done = None, None, 0
    for rows, columns, scores in _scores(model, image, plan, tile):
        classes = scores.shape[-1]
        if labels is None:
            labels = np.empty(own, _label_type(classes))
            if probabilities:
                given = np.empty((classes, *own), np.float32) if probabilities is True else probabilities(classes)
        # one channel: a binary model, whose logit, or mean probability, is above a threshold where its class is
        threshold = positive_above(activation) if plan.views == 1 else 0.5
        found = scores.max(-1).indices if classes > 1 else scores[..., 0] > threshold
        labels[rows, columns] = found.cpu().numpy()
        if given is not None:
            shares = scores if plan.views > 1 else _probabilities(scores, activation)
            given[:, rows, columns] = shares.permute(2, 0, 1).cpu().numpy()
        done += found.numel()
        if progress is not None:
            progress(done / labels.size)
    return labels, given


def predict(
    model: nn.Module,
    image: ImageLike | Sequence[ImageLike],
    mode: Mode = "auto",
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit_in: tuple[int, int] | None = None,
    probabilities: bool | Callable[[int], np.ndarray] = False,
    precision: Precision = "fp32",
    batch: int = 1,
    tile: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Any:
    """Label every pixel of an image, of any size.

    Args:
        model: A segmentation model; it is used in evaluation mode, on the device where it is. Its `pretrained_cfg` says
            how images are normalised.
        image: A file, an image of Pillow, an array (H, W, C) or (H, W), or a tensor (C, H, W): of uint8 from 0 to 255,
            uint16, or floating point from 0 to 1, not normalised. A list of them, an array (B, H, W, C) or a tensor
            (B, C, H, W) are images one after another.
        mode: See the image "whole", or in sliding windows ("slide"), which takes less memory and sees less around a
            pixel. "auto": whole if that takes less than 2 GB and half of what is free.
        window: Side, or height and width, of the windows in pixels; those of the images that the model was trained on
            by default, or 512.
        stride: Distance of the windows; three quarters of their side by default.
        scales: Sizes at which the image is seen, over that of `fit_in`, or over its own.
        flip: See each mirrored too.
        fit_in: Longest sides, (long, short), that the image is resized to fit, keeping its aspect; its own size
            otherwise.
        probabilities: Give them too, 4 bytes a class and pixel; or a function that makes of the number of classes the
            array (classes, H, W) to write them to, which may lie in a file.
        precision: "bf16" and "fp16" run the model under autocast; "fp32" leaves it as it is.
        batch: Windows that the model sees at once.
        tile: Side of the pieces of the image whose scores are held at once. It changes the memory that is needed, not
            the labels. Chosen by the number of classes by default.
        progress: Called with the share of an image that is done, from 0 to 1.

    Returns:
        Labels of shape (H, W), at the image's own size: uint8, or int32 for more than 256 classes. With
        `probabilities`, a tuple of these and an array (classes, H, W) of float32. For several images a list.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the image cannot be read or does not fit the model, or an option is none.
    """
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")

    def label(image: ImageLike) -> Any:
        pixels = read_image(image, in_channels(model))
        plan = _make_plan(
            model,
            tuple(pixels.shape[-2:]),
            mode,
            window,
            stride,
            scales,
            flip,
            fit_in,
            precision=precision,
            batch=batch,
        )
        labels, given = _predict(model, pixels, plan, tile, probabilities, progress)
        return (labels, given) if probabilities else labels

    with evaluation_mode(model):
        several = isinstance(image, list | tuple) or getattr(image, "ndim", 0) == 4
        return [label(one) for one in image] if several else label(image)


def slow_precision(device: torch.device, precision: str) -> str | None:
    """A line to tell users before they start, if a device computes slower in `precision` than in float32.

    Args:
        device: Where the model runs.
        precision: "bf16" or "fp16"; anything else is float32.

    Returns:
        The line; None if the device has the arithmetic, or if that is not known.
    """
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    try:
        if precision == "bf16" and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            return "This CPU has no bf16 arithmetic: bf16 is about eight times slower than fp32 here."
        if precision == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
            return "This CPU has no fp16 arithmetic: fp16 is more than ten times slower than fp32 here."
    except (AttributeError, RuntimeError):  # a version of torch without these checks
        pass
    return None
