"""Predict labels of images: preprocessing, whole images or sliding windows, multiple scales and flips.

A model's `pretrained_cfg` states how its images are normalized (`mean` and `std` of values from 0 to 1), as in timm.
Without it, images are normalized as smp's preprocessing for the model's encoder does.

Images of any size take bounded memory: logits of windows are kept at the decoder's size, and resized, averaged and
compared one tile of the image at a time. How an image is processed depends on its size, the model and the options
alone, so that its labels do too.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn as nn

from ..errors import OptionError
from ..models.losses import resized_argmax
from ..models.segmenter import Segmenter, evaluation_mode
from .images import ImageLike, read_image
from .rasters import is_raster
from .windows import PRECISIONS, Pixels, Precision, WindowedMaps

Mode = Literal["auto", "whole", "slide"]
FitIn = int | tuple[int, int] | Literal["auto"] | None

_WHOLE_BYTES = 2 << 30  # memory that mode "auto" allows a whole image, and a batch of windows on a GPU
_PIXEL_BYTES = 600  # memory per pixel of an image, without full-size maps of all classes
_MAX_BATCH = 16  # of windows by default
_CPU_TILE_BYTES = 1 << 24  # of one tile's scores: measured on a CPU with 32 MB of third-level cache
_TILE_BYTES = 1 << 27  # of one tile's scores elsewhere


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Read an option of one or two whole numbers of pixels from 1 on."""
    sides: Any = (value, value) if isinstance(value, Integral) else value
    try:
        first, second = (int(side) for side in sides if isinstance(side, Integral) and int(side) > 0)
    except (TypeError, ValueError):
        raise OptionError(f"{name} must be a number of pixels from 1 on, or two of them, got {value!r}") from None
    return first, second


def fit(size: tuple[int, int], long: float, short: float, divisor: int = 1) -> tuple[int, int]:
    """Compute the size of an image resized to maximum sides, keeping its aspect ratio, then up to whole `divisor`s."""
    scale = min(long / max(size), short / min(size))
    height, width = (max(round(side * scale), 1) for side in size)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _plan(
    segmenter: Segmenter,
    pixels: Pixels,
    mode: Mode = "auto",
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit_in: int | tuple[int, int] | None = None,
    precision: Precision = "fp32",
    batch: int | None = None,
    divisor: int = 1,
) -> tuple[Mode, list[WindowedMaps]]:
    """Validate options, and resolve their defaults for an image.

    Returns:
        "whole" or "slide", and the maps of each pass over the image, which are computed when they are read.
    """
    if mode not in ("auto", "whole", "slide"):
        raise OptionError(f"mode must be 'auto', 'whole' or 'slide', got {mode!r}")
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not isinstance(scales, Sequence) or not scales or not all(0 < scale < math.inf for scale in scales):
        raise OptionError(f"scales must be positive numbers, such as (0.5, 1.0), got {scales!r}")
    if batch is not None and batch < 1:
        raise OptionError(f"batch must be at least 1, got {batch}")
    info = segmenter.info
    height, width = info.input_size if window is None else _pair("window", window)
    steps = (max(height * 3 // 4, 1), max(width * 3 // 4, 1)) if stride is None else _pair("stride", stride)
    if steps[0] > height or steps[1] > width:
        raise OptionError(f"stride must be from 1 to the window's side, got {steps} of {(height, width)}")
    known = len(info.normalization[0])
    if known != info.in_channels:
        raise OptionError(
            f"The model takes {info.in_channels} channels, and its mean and std have {known}: put those of your "
            f'images, of values from 0 to 1, into model.pretrained_cfg["mean"] and ["std"].'
        )
    size = pixels.shape[1:]
    short, long = sorted(size if fit_in is None else _pair("fit_in", fit_in))
    sizes = [fit(size, long * scale, short * scale, divisor) for scale in scales]
    if (1, 1) in sizes and size != (1, 1):
        raise OptionError(f"scales or fit_in are too small: an image of {size} pixels would become a single one.")
    bytes_per_pixel = _PIXEL_BYTES + (0 if segmenter.gives_small_maps else 12 * info.num_classes)
    if mode == "auto":
        needed = bytes_per_pixel * max(height * width for height, width in sizes)
        mode = "whole" if needed <= _WHOLE_BYTES else "slide"
    if mode == "whole":
        height, width = steps = (max(height for height, _ in sizes), max(width for _, width in sizes))
    if batch is None:
        fitting = _WHOLE_BYTES // (bytes_per_pixel * height * width)
        batch = min(max(fitting, 1), _MAX_BATCH) if pixels.device.type == "cuda" else 1
    passes = [(size, mirrored) for size in sizes for mirrored in ((False, True) if flip else (False,))]
    return mode, [WindowedMaps(segmenter, pixels, *one, (height, width), steps, precision, batch) for one in passes]


def _tiles_of_scores(
    segmenter: Segmenter, passes: Sequence[WindowedMaps], tile: tuple[int, int]
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield rows, columns and scores (rows, columns, classes) of each tile that holds data, from the top down.

    Scores are the model's maps for a single pass, else mean probabilities.
    """
    pixels = passes[0].pixels
    _, height, width = pixels.shape
    for top in range(0, height, tile[0]):
        for left in range(0, width, tile[1]):
            rows, columns = slice(top, min(top + tile[0], height)), slice(left, min(left + tile[1], width))
            if not pixels.holds_data(rows, columns):
                continue
            scores = passes[0].read(rows, columns)
            if len(passes) > 1:
                scores = segmenter.probabilities(scores, -1) / len(passes)
                for other in passes[1:]:
                    scores += segmenter.probabilities(other.read(rows, columns), -1).div_(len(passes))
            yield rows, columns, scores


@torch.inference_mode()
def predict_pixels(
    segmenter: Segmenter,
    pixels: Pixels,
    labels: Callable[[int], Any],
    probabilities: Callable[[tuple[int, ...]], np.ndarray] | None = None,
    progress: Callable[[float], None] | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Predict an image tile by tile, and write to arrays as each is done. Returns these; None if no tile holds data.

    `labels` is called with the number of classes, and returns an array (H, W), or another object, whose
    `[rows, columns]` labels are assigned to. The segmenter is in evaluation mode. For the others, see :func:`predict`.
    """
    mode, passes = _plan(segmenter, pixels, **options)
    progress = progress or (lambda share: None)
    first, averaged, (_, height, width) = passes[0], len(passes) > 1, pixels.shape
    stored: Any = None
    shares: Any = None
    with _memory_hint(f"{height}×{width} pixels (height×width), processed in mode {mode!r}"):
        small = first.size == (height, width) and not probabilities and segmenter.gives_small_maps
        if mode == "whole" and small and not averaged:
            logits = first.run([(0, 0)])
            if logits.shape[1] > 1:  # no map of all classes at all
                stored = labels(logits.shape[1])
                stored[:, :] = resized_argmax(logits, first.padded_window)[0, :height, :width].cpu().numpy()
                progress(1.0)
                return stored, None
        tile_bytes = _CPU_TILE_BYTES if pixels.device.type == "cpu" else _TILE_BYTES
        tile = min(max(int((tile_bytes / 4 / segmenter.info.num_classes) ** 0.5), 1), 4096)
        for rows, columns, scores in _tiles_of_scores(segmenter, passes, (tile, tile)):
            if stored is None:
                stored = labels(scores.shape[-1])
                shares = probabilities((scores.shape[-1], height, width)) if probabilities else None
            stored[rows, columns] = segmenter.labels(scores, -1, probabilities=averaged).cpu().numpy()
            if shares is not None:
                scores = scores if averaged else segmenter.probabilities(scores, -1)
                shares[:, rows, columns] = scores.permute(2, 0, 1).cpu().numpy()
            progress((rows.start * width + (rows.stop - rows.start) * columns.stop) / (height * width))
    return stored, shares


@contextmanager
def _memory_hint(image: str) -> Iterator[None]:
    """Let errors of too little memory, which keep their type, say what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        kinds = (MemoryError, torch.OutOfMemoryError, RuntimeError)
        raise next(kind for kind in kinds if isinstance(error, kind))(
            f"Out of memory for an image of {image}. Use mode='slide', a smaller window, or batch=1. ({error})"
        ) from error


def predict(
    model: nn.Module,
    image: ImageLike | Sequence[ImageLike],
    mode: Mode = "auto",
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit_in: FitIn = "auto",
    probabilities: bool | Callable[[tuple[int, ...]], np.ndarray] = False,
    precision: Precision = "fp32",
    batch: int | None = None,
    progress: Callable[[float], None] | None = None,
    divisor: int = 1,
    scaled: bool = False,
) -> Any:
    """Label every pixel of an image of any size.

    Labels depend on the image, the model and the options alone. The model is called, so that its hooks fire and a
    compiled model runs compiled.

    Args:
        model: A segmentation model. It runs in evaluation mode on its own device. Its `pretrained_cfg` states how its
            images are normalized, and may state their `range` and `bands`, see :func:`read_image`. May be compiled, or
            wrapped by DataParallel.
        image: A file, a Pillow image, an array (H, W, C) or (H, W), or a tensor (C, H, W), not normalized: in the units
            of the model's range, else uint8 from 0 to 255, uint16, or floating point from 0 to 1. A list of these, an
            array (B, H, W, C) or a tensor (B, C, H, W) are several images.
        mode: Process the image "whole", or in sliding windows ("slide"), which needs less memory but gives the model
            less context. "auto": whole if that takes less than about 2 GB, whatever memory is free.
        window: Side, or height and width, of the windows in pixels, if the image is processed in windows. Default: the
            size of the images that the model was trained on, or 512.
        stride: Distance of the windows in pixels. Default: three quarters of their side.
        scales: Factors of the image's size, one pass each; the probabilities are averaged.
        flip: Add a pass on the mirrored image for each scale.
        fit_in: Maximum side lengths, a pair in any order or one number for both: the image is first resized, up or
            down, until it reaches one of them, keeping its aspect ratio. None: its own size. "auto": as the model's
            `pretrained_cfg["fit_in"]` states, if it does; a georeferenced file, whose pixels have a size on the ground,
            keeps its own.
        probabilities: Also return probabilities, 4 bytes per class and pixel. Or a function that returns, for a shape
            (classes, H, W), the array to write them to, which may be a memory-mapped file.
        precision: "bf16" and "fp16" run the model under autocast; "fp32" leaves it as it is.
        batch: Number of windows per batch. Default: what takes less than about 2 GB, up to 16, on a GPU; 1 elsewhere.
        progress: Called with the completed fraction of the image, from 0 to 1.
        divisor: Sides of resized images are rounded up to multiples of it, as mmsegmentation's recipe for ADE20K does.
        scaled: Whether `image` is what :func:`read_image` returns for the model's range and bands.

    Returns:
        Labels of shape (H, W), at the image's own size: uint8, or int32 for more than 256 classes. With
        `probabilities`, a tuple of these and a float32 array (classes, H, W). For several images, a list.

    Raises:
        FileNotFoundError: If a file does not exist.
        ImageError: If an image cannot be read or does not fit the model.
        OptionError: If an option or the model is invalid.
        MemoryError, RuntimeError: If there is too little memory, with a hint.
    """
    device = check_model(model)
    segmenter = Segmenter(model)
    info = segmenter.info
    stated = (None, None) if scaled else (info.value_range, info.bands)
    options: dict[str, Any] = {"mode": mode, "window": window, "stride": stride, "scales": scales, "flip": flip}
    options |= {"precision": precision, "batch": batch, "divisor": divisor}
    shares: Any = functools.partial(np.empty, dtype=np.float32) if probabilities is True else probabilities or None

    def predict_one(image: ImageLike) -> Any:
        pixels = Pixels(read_image(image, info.in_channels, *stated), device)

        def create(classes: int) -> np.ndarray:
            return np.empty(pixels.shape[1:], np.uint8 if classes <= 256 else np.int32)

        sides = info.fit_in if fit_in == "auto" else fit_in
        if sides and fit_in == "auto" and isinstance(image, str | os.PathLike) and is_raster(Path(image)):
            sides = None
        found = predict_pixels(segmenter, pixels, create, shares, progress, fit_in=sides, **options)
        return found if shares else found[0]

    with evaluation_mode(model):
        if isinstance(image, list | tuple) or (isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 4):
            return [predict_one(one) for one in image]
        return predict_one(image)  # type: ignore[arg-type]  # a sequence that is not a list is refused there


def check_model(model: Any, task: str = "predict") -> torch.device:
    """Return the device of a model's weights; raise an OptionError if it is none, or has none."""
    if isinstance(model, nn.Module) and (weights := next(model.parameters(), None)) is not None:
        return weights.device
    kind = f"{type(model).__name__}{' without weights' if isinstance(model, nn.Module) else ''}"
    raise OptionError(f"{task} takes a model, got a {kind}: load one by segnext_timm.load_segmenter.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that there is too little memory on a device or on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
