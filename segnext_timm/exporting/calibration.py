"""Read calibration images for quantization, normalized as the model needs them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as TF

from ..errors import OptionError
from ..models.model_info import ModelInfo
from ..prediction.images import list_files, list_images, read_image

Image = str | Path | PIL.Image.Image | np.ndarray | torch.Tensor

_MAX_IMAGES = 256  # more take longer and change little


def read_calibration(
    source: str | Path | Sequence[Image], info: ModelInfo, input_size: tuple[int, int, int, int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read images of a folder, or as :func:`predict` takes them, resized to cover the graph's input and cropped.

    Returns:
        Normalized images (B, C, H, W) to calibrate with, and every fourth, held out to compare labels.
    """
    images = _find_images(Path(source)) if isinstance(source, str | Path) else list(source)
    if len(images) < 2:
        raise OptionError(f"int8 needs at least two calibration images, got {len(images)}: some are held out.")
    mean, std = info.normalization
    batch, channels, height, width = input_size
    normalized = []
    for image in images:
        pixels = read_image(image, channels, info.value_range, info.bands)
        scale = max(height / pixels.shape[1], width / pixels.shape[2])
        covering = [max(round(side * scale), least) for side, least in zip(pixels.shape[1:], (height, width))]
        pixels = TF.center_crop(TF.resize(pixels, covering, antialias=True), [height, width])
        pixels = TF.normalize(TF.to_dtype(pixels, torch.float32, scale=True), list(mean), list(std))
        normalized.append(pixels.expand(batch, -1, -1, -1).contiguous().numpy())
    held_out = normalized[1::4]
    del normalized[1::4]
    return normalized, held_out


def _find_images(folder: Path) -> list[Image]:
    """Find images in a folder, or in its `images` if it is a data folder; at most 256, spread over the names."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of calibration images.")
    root = folder / "images" if (folder / "images").is_dir() else folder
    if not (files := list_images(list_files(root))):
        raise FileNotFoundError(f"{folder} holds no calibration images.")
    return [files[i] for i in np.linspace(0, len(files) - 1, min(len(files), _MAX_IMAGES)).round().astype(int)]
