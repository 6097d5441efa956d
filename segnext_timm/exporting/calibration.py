"""Read calibration images for quantization, normalized as the model needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as TF

from ..models.model_info import ModelInfo
from ..prediction.images import read_image

Image = str | Path | PIL.Image.Image | np.ndarray | torch.Tensor

_MAX_IMAGES = 256  # more take longer and change little
_HELD_OUT_EVERY = 4
_IGNORED = 255  # value of label files that stands for no class


@dataclass
class Calibration:
    """Images to quantize with, and others to compare labels on.

    Attributes:
        images: Normalized images (B, C, H, W) that calibrate the activations.
        held_out: Normalized images (B, C, H, W) that labels are compared on.
        labels: True labels (H, W) of each held-out image; None if unknown.
        num_classes: Number of labels.
        threshold: Output above which a binary model predicts its class.
    """

    images: list[np.ndarray]
    held_out: list[np.ndarray]
    labels: list[np.ndarray] | None
    num_classes: int
    threshold: float


def _find_files(folder: Path) -> tuple[list[Path], list[Path] | None]:
    """Find images, and their labels if the folder holds `images` and `labels`.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of calibration images.")
    root = folder / "images" if (folder / "images").is_dir() else folder
    known = {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in known and f.is_file() and f.name[0] != ".")
    if not files:
        raise FileNotFoundError(f"{folder} holds no calibration images.")
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(len(files), _MAX_IMAGES)).round().astype(int)]
    labels = [(folder / "labels" / file.relative_to(root)).with_suffix(".png") for file in files]
    known_labels = root != folder and all(path.is_file() for path in labels) and _values_are_labels(folder)
    return files, labels if known_labels else None


def _values_are_labels(folder: Path) -> bool:
    """Whether the values in label files are labels: `classes.txt` may give each class another value, or a color."""
    path = folder / "classes.txt"
    lines = path.read_text(encoding="utf-8-sig").split("\n") if path.is_file() else []
    firsts = [line.split()[0] for line in lines if line.strip()]
    if all(first.isdecimal() for first in firsts):
        return firsts == [str(label) for label in range(len(firsts))]
    return not any(first.startswith("#") for first in firsts)


def _cover(image: torch.Tensor, size: tuple[int, int], nearest: bool = False) -> torch.Tensor:
    """Resize an image (C, H, W) to cover `size`, keeping its aspect ratio, and crop its center."""
    scale = max(size[0] / image.shape[1], size[1] / image.shape[2])
    resized = [max(round(side * scale), target) for side, target in zip(image.shape[1:], size)]
    mode = TF.InterpolationMode.NEAREST if nearest else TF.InterpolationMode.BILINEAR
    return TF.center_crop(TF.resize(image, resized, interpolation=mode, antialias=not nearest), list(size))


def read_calibration(
    source: str | Path | Sequence[Image], info: ModelInfo, input_size: tuple[int, int, int, int]
) -> Calibration:
    """Read calibration images, and hold out every fourth for the comparison of labels.

    Args:
        source: A folder, or images as :func:`predict` takes them. A folder may hold `images` and `labels`.
        info: What the model states about itself.
        input_size: Shape (B, C, H, W) of the graph's input. Images are resized to cover H×W and cropped.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no images.
        ImageError: If an image cannot be read, or does not fit the model.
        ValueError: If there are fewer than two images, or the model does not state its normalization.
    """
    label_files: list[Path] | None = None
    if isinstance(source, str | Path):
        files, label_files = _find_files(Path(source))
        images: Sequence[Image] = files
    else:
        images = list(source)
    if len(images) < 2:
        raise ValueError(f"int8 needs at least two calibration images, got {len(images)}: some are held out.")
    mean, std = info.normalization
    batch, channels, *size = input_size
    height, width = size
    result = Calibration([], [], [] if label_files else None, max(info.num_classes, 2), info.threshold)
    for index, image in enumerate(images):
        pixels = TF.to_dtype(_cover(read_image(image, channels), (height, width)), torch.float32, scale=True)
        normalized = TF.normalize(pixels, list(mean), list(std))[None].expand(batch, -1, -1, -1).contiguous().numpy()
        if index % _HELD_OUT_EVERY != 1:
            result.images.append(normalized)
            continue
        result.held_out.append(normalized)
        if label_files and result.labels is not None:
            values = np.array(PIL.Image.open(label_files[index]))
            if values.ndim == 2 and np.all((values < result.num_classes) | (values == _IGNORED)):
                labels = torch.from_numpy(values.astype(np.int64))[None]
                result.labels.append(_cover(labels, (height, width), nearest=True)[0].numpy())
            else:
                result.labels = None  # colors, or values that mean other classes
    return result
