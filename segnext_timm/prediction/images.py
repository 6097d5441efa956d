"""Read images from files and arrays as tensors."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import ImageError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by channels


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Convert a Pillow image of any mode to 8 bits per channel."""
    if channels not in _MODES:
        raise ImageError(f"Files hold 1, 3 or 4 channels, the model takes {channels}: pass an array or a tensor.")
    if channels == 4 and image.mode != "RGBA":
        raise ImageError(f"The model takes 4 channels, the image has those of {image.mode!r}.")
    if image.mode.startswith("I"):  # 16 bits: Pillow would cut the values off at 255
        values = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN too
            raise ImageError(f"Files of floating point hold values from 0 to 1, got {values.min()} to {values.max()}.")
        image = Image.fromarray(np.rint(255 * values).astype(np.uint8))
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def _open(image: str | Path | Image.Image, channels: int) -> np.ndarray:
    """Read a file or a Pillow image as an upright array (H, W) or (H, W, channels) of uint8."""
    if isinstance(image, Image.Image):
        return np.array(to_mode(ImageOps.exif_transpose(image), channels))
    with warnings.catch_warnings():
        # of sizes: Pillow warns from 89 megapixels on, and refuses from 179 on
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(image) as opened:
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            return np.array(to_mode(opened, channels))


def read_image(image: str | Path | Image.Image | np.ndarray | torch.Tensor, channels: int = 3) -> torch.Tensor:
    """Read an image as a tensor of shape (channels, H, W).

    Args:
        image: A file that Pillow reads, or a Pillow image: rotated by its EXIF data, without alpha, 16 bits reduced to
            8. Or an array (H, W, C) or (H, W), or a tensor (C, H, W): uint8 from 0 to 255, uint16 from 0 to
            65535, or floating point from 0 to 1.
        channels: Number of channels to return. Gray is converted to color and color to gray; other numbers must match.

    Returns:
        uint8 from 0 to 255, or float32 from 0 to 1 for arrays and tensors of other types.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageError: If a file cannot be read as an image, or its shape, type or values are invalid.
    """
    if isinstance(image, str | Path | Image.Image):
        try:
            array = _open(image, channels)
        except FileNotFoundError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(f"{image}: {error} Raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file.") from None
        except Exception as error:  # Pillow's decoders raise many types of errors on damaged files
            reason = "not an image file" if type(error).__name__ == "UnidentifiedImageError" else str(error)
            raise ImageError(f"{image} cannot be read as an image: {reason}") from None
        tensor = torch.from_numpy(array)
    else:
        tensor = torch.as_tensor(np.array(image) if isinstance(image, np.ndarray) else image)
    is_array = not isinstance(image, torch.Tensor)
    if is_array and tensor.ndim == 2:
        tensor = tensor[..., None]
    tensor = tensor.permute(2, 0, 1) if is_array and tensor.ndim == 3 else tensor
    found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(image.shape) if hasattr(image, 'shape') else ''}"
    if tensor.ndim != 3 or tensor.numel() == 0:
        raise ImageError(f"An image is an array (H, W, C) or (H, W), or a tensor (C, H, W), got {found}.")
    if tensor.dtype == torch.uint16:
        tensor = tensor.float() / 65535
    if tensor.shape[0] == 1 and channels == 3:
        tensor = tensor.expand(3, -1, -1)
    elif tensor.shape[0] == 3 and channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114], device=tensor.device)[:, None, None]  # Pillow's, of "L"
        gray = (tensor * weights).sum(0, keepdim=True)
        tensor = gray.round().to(tensor.dtype) if tensor.dtype == torch.uint8 else gray
    if tensor.shape[0] != channels:
        raise ImageError(f"The model takes images of {channels} channels, got {found}.")
    if tensor.dtype == torch.uint8:
        return tensor.contiguous()
    if not tensor.is_floating_point():
        raise ImageError(f"An image is uint8, uint16, or floating point from 0 to 1, got {found}.")
    tensor = tensor.float()
    if not (tensor.amin() >= 0 and tensor.amax() <= 1):  # NaN too
        raise ImageError(
            f"Images of floating point have values from 0 to 1, not normalized ones; got {tensor.amin():.3g} to "
            f"{tensor.amax():.3g}."
        )
    return tensor.contiguous()
