"""Predict labels of images: preprocessing, whole images or sliding windows, multiple scales and flips.

A model's `pretrained_cfg` states how its images are normalized (`mean` and `std` of values from 0 to 1), as in timm.
Without it, images are normalized as smp's preprocessing for the model's encoder does.

Images of any size take bounded memory: logits of windows are kept at the decoder's size, and resized, averaged and
compared one tile of the image at a time. How an image is processed depends on its size, the model and the options
alone, so that its labels do too.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from ..errors import OptionError
from ..models.losses import resized_argmax
from ..models.segmenter import Segmenter, evaluation_mode
from .images import read_image
from .windows import PRECISIONS, Precision, WindowedMaps

Mode = Literal["auto", "whole", "slide"]
ImageLike = str | Path | Image.Image | np.ndarray | torch.Tensor

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
    image: torch.Tensor,
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
    """Validate options, and resolve their defaults for an image (C, H, W) on the model's device.

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
    size = (image.shape[-2], image.shape[-1])
    short, long = sorted(size if fit_in is None else _pair("fit_in", fit_in))
    sizes = [fit(size, long * scale, short * scale, divisor) for scale in scales]
    bytes_per_pixel = _PIXEL_BYTES + (0 if segmenter.gives_small_maps else 12 * info.num_classes)
    if mode == "auto":
        needed = bytes_per_pixel * max(height * width for height, width in sizes)
        mode = "whole" if needed <= _WHOLE_BYTES else "slide"
    if mode == "whole":
        height, width = steps = (max(height for height, _ in sizes), max(width for _, width in sizes))
    if batch is None:
        fitting = _WHOLE_BYTES // (bytes_per_pixel * height * width)
        batch = min(max(fitting, 1), _MAX_BATCH) if image.device.type == "cuda" else 1
    passes = [(size, mirrored) for size in sizes for mirrored in ((False, True) if flip else (False,))]
    return mode, [WindowedMaps(segmenter, image, *one, (height, width), steps, precision, batch) for one in passes]


def _tiles_of_scores(
    segmenter: Segmenter, passes: Sequence[WindowedMaps], size: tuple[int, int], tile: tuple[int, int]
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield rows, columns and scores (rows, columns, classes) of each tile of an image, from the top down.

    Scores are the model's maps for a single pass, else mean probabilities.
    """
    for top in range(0, size[0], tile[0]):
        for left in range(0, size[1], tile[1]):
            rows, columns = slice(top, min(top + tile[0], size[0])), slice(left, min(left + tile[1], size[1]))
            scores = passes[0].read(rows, columns)
            if len(passes) > 1:
                scores = segmenter.probabilities(scores, -1) / len(passes)
                for other in passes[1:]:
                    scores += segmenter.probabilities(other.read(rows, columns), -1).div_(len(passes))
            yield rows, columns, scores


def _move(image: torch.Tensor, model: nn.Module) -> torch.Tensor:
    device = next(model.parameters()).device
    return image.to(device, non_blocking=device.type == "cuda")  # a copy to the CPU would be read too early


@torch.inference_mode()
def _predict(
    segmenter: Segmenter,
    passes: Sequence[WindowedMaps],
    whole: bool,
    tile: int | None,
    probabilities: bool | Callable[[int], np.ndarray],
    progress: Callable[[float], None],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Compute labels (H, W), and probabilities (classes, H, W) if requested: see :func:`predict`."""
    first, image = passes[0], passes[0].image
    size = (image.shape[-2], image.shape[-1])
    averaged = len(passes) > 1
    if whole and not averaged and first.size == size and not probabilities and segmenter.gives_small_maps:
        logits = first.run([(0, 0)])
        if logits.shape[1] > 1:  # no map of all classes at all
            found = resized_argmax(logits, first.padded_window)[0, : size[0], : size[1]]
            progress(1.0)
            return found.cpu().numpy().astype(_label_type(logits.shape[1])), None
    if tile is None:
        tile_bytes = _CPU_TILE_BYTES if image.device.type == "cpu" else _TILE_BYTES
        tile = min(max(int((tile_bytes / 4 / segmenter.info.num_classes) ** 0.5), 64), 4096)
    labels: np.ndarray | None = None
    stored: np.ndarray | None = None
    for rows, columns, scores in _tiles_of_scores(segmenter, passes, size, (tile, tile)):
        if labels is None:
            classes = scores.shape[-1]
            labels = np.empty(size, _label_type(classes))
            if probabilities:
                stored = probabilities(classes) if callable(probabilities) else np.empty((classes, *size), np.float32)
        labels[rows, columns] = segmenter.labels(scores, -1, probabilities=averaged).cpu().numpy()
        if stored is not None:
            shares = scores if averaged else segmenter.probabilities(scores, -1)
            stored[:, rows, columns] = shares.permute(2, 0, 1).cpu().numpy()
        done = rows.start * size[1] + (rows.stop - rows.start) * columns.stop
        progress(done / labels.size)
    assert labels is not None  # images have a pixel at least
    return labels, stored


def _label_type(classes: int) -> type[np.integer]:
    return np.uint8 if classes <= 256 else np.int32


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
    divisor: int = 1,
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
        fit_in: Maximum side lengths, a pair in any order or one number for both: the image is first resized, up or
            down, until it reaches one of them, keeping its aspect ratio.
        probabilities: Also return probabilities, 4 bytes per class and pixel. Or a function that returns, for a number
            of classes, the array (classes, H, W) to write them to, which may be a memory-mapped file.
        precision: "bf16" and "fp16" run the model under autocast; "fp32" leaves it as it is.
        batch: Number of windows per batch. Default: what takes less than about 2 GB, up to 16, on a GPU; 1 elsewhere.
        tile: Side in pixels of the tiles whose scores are computed at once. Affects memory, not the labels. Default:
            chosen by the number of classes.
        progress: Called with the completed fraction of the image, from 0 to 1.
        divisor: Sides of resized images are rounded up to multiples of it, as mmsegmentation's recipe for ADE20K does.

    Returns:
        Labels of shape (H, W), at the image's own size: uint8, or int32 for more than 256 classes. With
        `probabilities`, a tuple of these and a float32 array (classes, H, W). For several images, a list.

    Raises:
        FileNotFoundError: If a file does not exist.
        ImageError: If an image cannot be read or does not fit the model.
        OptionError: If an option or the model is invalid.
        MemoryError, RuntimeError: If there is too little memory, with a hint.
    """
    if tile is not None and tile < 1:
        raise OptionError(f"tile must be at least 1, got {tile}")
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"predict takes a model, got a {type(model).__name__}: load one by segnext_timm.load_segmenter."
        )
    segmenter = Segmenter(model)
    report = progress or (lambda share: None)

    def predict_one(image: ImageLike) -> Any:
        pixels = _move(read_image(image, segmenter.info.in_channels), model)
        resolved, passes = _plan(
            segmenter, pixels, mode, window, stride, scales, flip, fit_in, precision, batch, divisor
        )
        try:
            labels, stored = _predict(segmenter, passes, resolved == "whole", tile, probabilities, report)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = pixels.shape[-2:]
            kinds = (MemoryError, torch.OutOfMemoryError, RuntimeError)
            raise next(kind for kind in kinds if isinstance(error, kind))(
                f"Out of memory for an image of {height}×{width} pixels (height×width), processed in mode "
                f"{resolved!r}. Use mode='slide', a smaller window or tile, or batch=1. ({error})"
            ) from error
        return (labels, stored) if probabilities else labels

    with evaluation_mode(model):
        if isinstance(image, list | tuple) or (isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 4):
            return [predict_one(one) for one in image]
        return predict_one(image)  # type: ignore[arg-type]  # a sequence that is not a list is refused there


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that there is too little memory on a device or on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
