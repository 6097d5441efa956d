"""Image in, labels out: preprocessing, whole images or sliding windows, multiple scales and flips.

A model's `pretrained_cfg` tells how its images are normalised (`mean` and `std`, of values from 0 to 1), as timm's
does; without it, ImageNet's statistics are taken, with which SegNeXt was trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.v2 import functional as TF

Mode = Literal["whole", "slide"]


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel that a model's images are normalised with, on values from 0 to 1."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return tuple(cfg.get("mean") or IMAGENET_DEFAULT_MEAN), tuple(cfg.get("std") or IMAGENET_DEFAULT_STD)


def fit(size: tuple[int, int], long: int, short: int, divisor: int = 1) -> tuple[int, int]:
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


def size_divisor(model: nn.Module) -> int:
    """What the sides of a model's images must be multiples of, in pixels."""
    return model.encoder.output_stride if getattr(model, "requires_divisible_input_shape", False) else 1


@torch.inference_mode()
def whole_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (B, classes, H, W) of images (B, C, H, W), each seen whole.

    Sides below 32 pixels, and sides that a model of smp cannot divide, are padded for the model with zeros.
    """
    height, width = images.shape[-2:]
    step = size_divisor(model)
    padded = [-(-max(side, 32) // step) * step for side in (height, width)]
    if padded != [height, width]:
        images = F.pad(images, (0, padded[1] - width, 0, padded[0] - height))
    return model(images)[..., :height, :width]


@torch.inference_mode()
def slide_logits(
    model: nn.Module, images: torch.Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> torch.Tensor:
    """Logits (B, classes, H, W) of images (B, C, H, W), the mean over the windows that see a pixel.

    Windows lie `stride` apart; the last of a row or column is moved back to end with the image.

    Args:
        model: Maps images to logits of the same size.
        images: Normalised images.
        window: Height and width of the windows; larger than the image means the image.
        stride: Distance of their upper left corners.
    """
    size = images.shape[-2:]
    corners = [
        [max(min(i * step + side, full) - side, 0) for i in range(max(full - side + step - 1, 0) // step + 1)]
        for full, side, step in zip(size, window, stride)
    ]
    total = None
    count = images.new_zeros((1, 1, *size))
    for top in corners[0]:
        for left in corners[1]:
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            logits = whole_logits(model, images[..., rows, columns])
            if total is None:
                total = logits.new_zeros((*logits.shape[:2], *size))
            total[..., rows, columns] += logits
            count[..., rows, columns] += 1
    return total / count


@torch.inference_mode()
def segment(
    model: nn.Module,
    image: torch.Tensor,
    mode: Mode = "whole",
    window: int | tuple[int, int] = 512,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit_in: tuple[int, int] | None = None,
    divisor: int = 1,
) -> torch.Tensor:
    """Scores of one image at its own size: their greatest is the label.

    Args:
        model: Maps normalised images (1, C, H, W) to logits of the same size.
        image: Values from 0 to 255, uint8, of shape (C, H, W).
        mode: See the image whole, or in sliding windows.
        window: Side, or height and width, of the windows.
        stride: Distance of the windows; three quarters of their side by default.
        scales: Sizes at which the image is seen, over that of `fit_in`, or over its own.
        flip: See each mirrored too.
        fit_in: Longest sides, (long, short), that the image is resized to fit, keeping its aspect; its own size
            otherwise.
        divisor: Round the resized sides up to multiples of it.

    Returns:
        Scores of shape (classes, H, W): logits if the image is seen once, else the mean of the probabilities.
    """
    window = (window, window) if isinstance(window, int) else window
    stride = tuple(max(side * 3 // 4, 1) for side in window) if stride is None else stride
    stride = (stride, stride) if isinstance(stride, int) else stride
    mean, std = normalisation(model)
    device = next(model.parameters()).device
    image = image.to(device)
    own = tuple(image.shape[-2:])
    views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
    scores = None
    for scale, mirrored in views:
        long, short = (side * scale for side in (fit_in or (max(own), min(own))))
        size = fit(own, long, short, divisor)
        x = TF.resize(image, list(size), antialias=True) if size != own else image
        x = TF.normalize(TF.to_dtype(x, torch.float32, scale=True), mean, std)[None]
        x = x.flip(-1) if mirrored else x
        logits = whole_logits(model, x) if mode == "whole" else slide_logits(model, x, window, stride)
        logits = logits.flip(-1) if mirrored else logits
        logits = F.interpolate(logits.float(), own, mode="bilinear", align_corners=False)[0]
        if len(views) == 1:
            return logits
        probabilities = (logits.softmax(0) if logits.shape[0] > 1 else logits.sigmoid()) / len(views)
        scores = probabilities if scores is None else scores.add_(probabilities)
    return scores


def read_image(image: str | Path | Image.Image | np.ndarray) -> torch.Tensor:
    """An image as uint8 of shape (3, H, W).

    Args:
        image: A file that Pillow reads, turned as its EXIF says; an image of Pillow; or an array of shape (H, W, 3) or
            (H, W) with values from 0 to 255.

    Raises:
        ValueError: If a file cannot be read as an image, or an array is none.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise ValueError(f"An image array is uint8 of shape (H, W, 3) or (H, W), got {image.dtype} {image.shape}.")
        image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    else:
        try:
            opened = Image.open(image) if isinstance(image, str | Path) else image
            image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{image} cannot be read as an image: {error}") from None
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def predict(
    model: nn.Module,
    image: str | Path | Image.Image | np.ndarray,
    mode: Mode = "whole",
    window: int | tuple[int, int] = 512,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit_in: tuple[int, int] | None = None,
) -> np.ndarray:
    """Label every pixel of an image.

    Args:
        model: A segmentation model; it is used in evaluation mode, on the device where it is.
        image: A file, an image of Pillow, or an array (H, W, 3) of uint8.
        mode: See the image whole, or in sliding windows, which need less memory for large images.
        window: See :func:`segment`.
        stride: See :func:`segment`.
        scales: See :func:`segment`.
        flip: See :func:`segment`.
        fit_in: See :func:`segment`.

    Returns:
        Labels of shape (H, W), at the image's own size: uint8, or int32 for more than 256 classes.

    Raises:
        ValueError: If the image cannot be read, or `mode` is unknown.
    """
    if mode not in ("whole", "slide"):
        raise ValueError(f"mode must be 'whole' or 'slide', got {mode!r}")
    training = model.training
    model.eval()
    try:
        scores = segment(model, read_image(image), mode, window, stride, scales, flip, fit_in)
    finally:
        model.train(training)
    # one channel: a binary model, whose logit is positive, or probability above one half, where its class is
    views = len(scales) * (2 if flip else 1)
    labels = scores.argmax(0) if scores.shape[0] > 1 else (scores[0] > (0 if views == 1 else 0.5)).long()
    return labels.cpu().numpy().astype(np.uint8 if scores.shape[0] <= 256 else np.int32)
