"""Predict labels of images: preprocessing, whole images or sliding windows, multiple scales and flips.

A model's `pretrained_cfg` states how its images are normalized (`mean` and `std` of values from 0 to 1), as in timm.
Without it, images are normalized as smp's preprocessing for the model's encoder does.

Images of any size take bounded memory: logits of windows are kept at the decoder's size, and resized, averaged and
compared one tile of the image at a time. How an image is processed depends on its size, the model and the options
alone, so that its labels do too.
"""

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from ..models.losses import resized_argmax
from ..models.model_info import ModelInfo, Segmenter, evaluation_mode
from .images import read_image
from .windows import PRECISIONS, Mode, Precision, PredictionPlan, WindowedMaps

ImageLike = str | Path | Image.Image | np.ndarray | torch.Tensor

_WHOLE_BYTES = 2 << 30  # memory that mode "auto" allows a whole image, and a batch of windows on a GPU
_PIXEL_BYTES = 600  # memory per pixel of an image, without full-size maps of all classes
_MAX_BATCH = 16  # of windows by default
_CPU_TILE_BYTES = 1 << 24  # of one tile's scores: measured on a CPU with 32 MB of third-level cache
_TILE_BYTES = 1 << 27  # of one tile's scores elsewhere


def _label_type(classes: int) -> type[np.integer]:
    return np.uint8 if classes <= 256 else np.int32


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Read an option of one or two whole numbers of pixels from 1 on."""
    sides: Any = (value, value) if isinstance(value, Integral) else value
    try:
        first, second = (int(side) for side in sides if isinstance(side, Integral) and int(side) > 0)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number of pixels from 1 on, or two of them, got {value!r}") from None
    return first, second


def _size_of(image: torch.Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _move(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    return image.to(device, non_blocking=device.type == "cuda")  # a copy to the CPU would be read too early


def fit(size: tuple[int, int], long: float, short: float, divisor: int = 1) -> tuple[int, int]:
    """Compute the size of an image resized to fit maximum side lengths, keeping its aspect ratio.

    Args:
        size: Height and width of the image.
        long: Maximum length of the longer side.
        short: Maximum length of the shorter side.
        divisor: Round both sides up to multiples of it.
    """
    scale = min(long / max(size), short / min(size))
    height, width = (max(round(side * scale), 1) for side in size)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _tiles_of_scores(
    segmenter: Segmenter, image: torch.Tensor, plan: PredictionPlan, tile: int | None
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield rows, columns and scores (rows, columns, classes) of each tile of an image, from the top down.

    Scores are the model's maps for a single pass, else mean probabilities.
    """
    size = _size_of(image)
    passes = [WindowedMaps(segmenter, image, resized, mirrored, plan) for resized, mirrored in plan.passes]
    steps = size if tile is None else (tile, tile)
    for top in range(0, size[0], steps[0]):
        for left in range(0, size[1], steps[1]):
            rows, columns = slice(top, min(top + steps[0], size[0])), slice(left, min(left + steps[1], size[1]))
            scores = passes[0].read(rows, columns)
            if len(passes) > 1:
                scores = segmenter.probabilities(scores, -1) / len(passes)
                for other in passes[1:]:
                    scores += segmenter.probabilities(other.read(rows, columns), -1).div_(len(passes))
            yield rows, columns, scores


def _resolve_windows(
    info: ModelInfo, window: int | tuple[int, int] | None, stride: int | tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Resolve the defaults of window and stride.

    Raises:
        ValueError: If the stride is not from 1 to the window's side.
    """
    height, width = info.input_size if window is None else _pair("window", window)
    steps = (max(height * 3 // 4, 1), max(width * 3 // 4, 1)) if stride is None else _pair("stride", stride)
    if steps[0] > height or steps[1] > width:
        raise ValueError(f"stride must be from 1 to the window's side, got {steps} of {(height, width)}")
    return (height, width), steps


def _make_plan(
    segmenter: Segmenter,
    size: tuple[int, int],
    mode: Mode = "auto",
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit_in: int | tuple[int, int] | None = None,
    divisor: int = 1,
    precision: Precision = "fp32",
    batch: int | None = None,
) -> PredictionPlan:
    """Validate predict's options and resolve their defaults for one image size.

    Raises:
        ValueError: If an option is invalid.
    """
    if mode not in ("auto", "whole", "slide"):
        raise ValueError(f"mode must be 'auto', 'whole' or 'slide', got {mode!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not isinstance(scales, Sequence) or not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales must be positive numbers, such as (0.5, 1.0), got {scales!r}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    info = segmenter.info
    sides, steps = _resolve_windows(info, window, stride)
    known = len(info.normalization[0])
    if known != info.in_channels:
        raise ValueError(
            f"The model takes {info.in_channels} channels, and its mean and std have {known}: put those of your "
            f'images, of values from 0 to 1, into model.pretrained_cfg["mean"] and ["std"].'
        )
    long, short = (max(size), min(size)) if fit_in is None else _pair("fit_in", fit_in)
    sizes = [fit(size, long * scale, short * scale, divisor) for scale in scales]
    bytes_per_pixel = _PIXEL_BYTES + (0 if segmenter.gives_small_maps else 12 * info.num_classes)
    if mode == "auto":
        needed = bytes_per_pixel * max(height * width for height, width in sizes)
        mode = "whole" if needed <= _WHOLE_BYTES else "slide"
    if mode == "whole":
        sides = steps = (max(height for height, _ in sizes), max(width for _, width in sizes))
    if batch is None:
        fitting = _WHOLE_BYTES // (bytes_per_pixel * sides[0] * sides[1])
        batch = min(max(fitting, 1), _MAX_BATCH) if _device_of(segmenter.model).type == "cuda" else 1
    return PredictionPlan(mode, sides, steps, sizes, flip, precision, batch)


@torch.inference_mode()
def segment(model: nn.Module, image: torch.Tensor, **options: Any) -> torch.Tensor:
    """Compute scores of one image at its own size; the label is the class of the largest score.

    Args:
        model: Maps normalized images (1, C, H, W) to logits of the same size; in evaluation mode.
        image: Shape (C, H, W): uint8 from 0 to 255, or float32 from 0 to 1.
        options: `mode` to `batch` of :func:`predict`, and `divisor`: sides of resized images are rounded up to its
            multiples.

    Returns:
        Scores of shape (classes, H, W), on the model's device: the model's maps for a single pass, logits if it has no
        other activation than smp's, else the mean of the probabilities.
    """
    segmenter = Segmenter(model)
    plan = _make_plan(segmenter, _size_of(image), **options)
    ((_, _, scores),) = _tiles_of_scores(segmenter, _move(image, _device_of(model)), plan, tile=None)
    return scores.permute(2, 0, 1)


@torch.inference_mode()
def _predict(
    segmenter: Segmenter,
    image: torch.Tensor,
    plan: PredictionPlan,
    tile: int | None,
    probabilities: bool | Callable[[int], np.ndarray],
    progress: Callable[[float], None] | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Compute labels (H, W), and probabilities (classes, H, W) if requested: see :func:`predict`."""
    size = _size_of(image)
    image = _move(image, _device_of(segmenter.model))
    known = segmenter.info.num_classes
    if plan.mode == "whole" and plan.passes == [(size, False)] and not probabilities and segmenter.gives_small_maps:
        windows = WindowedMaps(segmenter, image, size, False, plan)
        logits = windows.run([(0, 0)])
        if logits.shape[1] > 1:  # no map of all classes at all
            found = resized_argmax(logits, windows.padded_window)[0, : size[0], : size[1]]
            if progress is not None:
                progress(1.0)
            return found.cpu().numpy().astype(_label_type(known)), None
    if tile is None:
        tile_bytes = _CPU_TILE_BYTES if image.device.type == "cpu" else _TILE_BYTES
        tile = min(max(int((tile_bytes / 4 / known) ** 0.5), 64), 4096)
    averaged = len(plan.passes) > 1
    labels = np.empty(size, _label_type(known))
    stored: np.ndarray | None = None
    done = 0
    for rows, columns, scores in _tiles_of_scores(segmenter, image, plan, tile):
        classes = scores.shape[-1]
        if done == 0:
            labels = labels.astype(_label_type(classes), copy=False)
            if callable(probabilities):
                stored = probabilities(classes)
            elif probabilities:
                stored = np.empty((classes, *size), np.float32)
        labels[rows, columns] = segmenter.labels(scores, -1, probabilities=averaged).cpu().numpy()
        if stored is not None:
            shares = scores if averaged else segmenter.probabilities(scores, -1)
            stored[:, rows, columns] = shares.permute(2, 0, 1).cpu().numpy()
        done += scores.shape[0] * scores.shape[1]
        if progress is not None:
            progress(done / labels.size)
    return labels, stored


def predict(
    model: nn.Module,
    image: ImageLike | Sequence[ImageLike],
    mode: Mode = "auto",
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit_in: int | tuple[int, int] | None = None,
    probabilities: bool | Callable[[int], np.ndarray] = False,
    precision: Precision = "fp32",
    batch: int | None = None,
    tile: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Any:
    """Label every pixel of an image of any size.

    Labels depend on the image, the model and the options alone. The model is called, so that its hooks fire and a
    compiled model runs compiled.

    Args:
        model: A segmentation model. It runs in evaluation mode on its own device. Its `pretrained_cfg` states how its
            images are normalized. May be compiled, or wrapped by DataParallel.
        image: A file, a Pillow image, an array (H, W, C) or (H, W), or a tensor (C, H, W): uint8 from 0 to 255,
            uint16, or floating point from 0 to 1, not normalized. A list of these, an array (B, H, W, C) or a tensor
            (B, C, H, W) are several images.
        mode: Process the image "whole", or in sliding windows ("slide"), which needs less memory but gives the model
            less context. "auto": whole if that takes less than about 2 GB, whatever memory is free.
        window: Side, or height and width, of the windows in pixels, if the image is processed in windows. Default: the
            size of the images that the model was trained on, or 512.
        stride: Distance of the windows in pixels. Default: three quarters of their side.
        scales: Factors of the image's size, one pass each; the probabilities are averaged.
        flip: Add a pass on the mirrored image for each scale.
        fit_in: Maximum side lengths, a pair (long, short) or one number for both: the image is first resized, up or
            down, until it reaches one of them, keeping its aspect ratio.
        probabilities: Also return probabilities, 4 bytes per class and pixel. Or a function that returns, for a number
            of classes, the array (classes, H, W) to write them to, which may be a memory-mapped file.
        precision: "bf16" and "fp16" run the model under autocast; "fp32" leaves it as it is.
        batch: Number of windows per batch. Default: what takes less than about 2 GB, up to 16, on a GPU; 1 elsewhere.
        tile: Side in pixels of the tiles whose scores are computed at once. Affects memory, not the labels. Default:
            chosen by the number of classes.
        progress: Called with the completed fraction of the image, from 0 to 1.

    Returns:
        Labels of shape (H, W), at the image's own size: uint8, or int32 for more than 256 classes. With
        `probabilities`, a tuple of these and a float32 array (classes, H, W). For several images, a list.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If an option is invalid, an image cannot be read or does not fit the model, or the model does not
            return maps.
        TypeError: If the model is not a module.
        MemoryError, RuntimeError: If there is too little memory, with a hint.
    """
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"predict takes a model, got a {type(model).__name__}: load one by segnext_timm.load_segmenter."
        )
    segmenter = Segmenter(model)
    options: dict[str, Any] = {
        "mode": mode,
        "window": window,
        "stride": stride,
        "scales": scales,
        "flip": flip,
        "fit_in": fit_in,
        "precision": precision,
        "batch": batch,
    }

    def predict_one(image: ImageLike) -> Any:
        pixels = read_image(image, segmenter.info.in_channels)
        plan = _make_plan(segmenter, _size_of(pixels), **options)
        try:
            labels, stored = _predict(segmenter, pixels, plan, tile, probabilities, progress)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = _size_of(pixels)
            kinds = (MemoryError, torch.OutOfMemoryError, RuntimeError)
            raise next(kind for kind in kinds if isinstance(error, kind))(
                f"Out of memory for an image of {height}×{width} pixels (height×width), processed in mode "
                f"{plan.mode!r}. Use mode='slide', a smaller window or tile, or batch=1. ({error})"
            ) from error
        return (labels, stored) if probabilities else labels

    with evaluation_mode(model):
        if isinstance(image, list | tuple) or (isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 4):
            return [predict_one(one) for one in image]
        return predict_one(image)  # type: ignore[arg-type]  # a sequence that is not a list is refused there


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that there is too little memory on a device or on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def slow_precision(device: torch.device, precision: str) -> str | None:
    """Warning for users if a device computes slower in `precision` than in float32.

    Args:
        device: Device that the model runs on.
        precision: "bf16" or "fp16"; anything else is float32.

    Returns:
        One line; None if the device supports the precision, or if that is unknown.
    """
    if device.type == "cuda" and precision == "bf16" and torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if has_bf16 else "This GPU has no bf16 arithmetic, which it emulates slowly: use fp16."
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
