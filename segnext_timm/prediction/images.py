"""Read images from files and arrays as tensors."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError

ValueRange = Sequence[float] | Sequence[Sequence[float]]  # low and high, or a pair for each band

_ARRAYS = "an array (H, W, C) or (H, W), or a tensor (C, H, W)"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by channels


def scale_values(values: torch.Tensor, value_range: ValueRange | None = None) -> torch.Tensor:
    """Scale the values of an image, as its file holds them, to what models are trained on.

    Args:
        values: Shape (C, H, W), of any type of integers or floating point.
        value_range: The values that become 0 and 1: one pair for all bands, or one for each. Values beyond are clipped,
            and NaN becomes 0. Without it, uint8 stays as it is, other integers are divided by 65535, and floating point
            has to be from 0 to 1.

    Returns:
        uint8 from 0 to 255 where uint8 was given without a range; else float32 from 0 to 1.

    Raises:
        ImageError: If the pairs are not as many as the bands, or without a range if values are out of these bounds.
    """
    if value_range is not None:
        pairs = torch.tensor(value_range, dtype=torch.float32, device=values.device).view(-1, 2)
        if len(pairs) not in (1, len(values)):
            raise ImageError(f"The range has {len(pairs)} pairs of low and high, and the image {len(values)} bands.")
        low, high = pairs[:, 0, None, None], pairs[:, 1, None, None]
        return values.float().sub(low).div_(high - low).clamp_(0, 1).nan_to_num_(0)
    if values.dtype == torch.uint8:
        return values
    largest = 1 if values.is_floating_point() else 65535
    values = values.float()
    if not (values.amin() >= 0 and values.amax() <= largest):  # NaN too
        raise ImageError(
            f"Images of floating point have values from 0 to 1, and of integers from 0 to 65535, not normalized ones; "
            f'got {values.amin():.3g} to {values.amax():.3g}. State what black and white are: pretrained_cfg["range"].'
        )
    return values / largest


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


def _read_file(image: str | os.PathLike[str] | Image.Image, channels: int) -> torch.Tensor:
    """Read a file or a Pillow image as an upright tensor (channels, H, W) of uint8."""
    try:
        if isinstance(image, Image.Image):
            array = np.array(to_mode(ImageOps.exif_transpose(image), channels))
        else:
            with warnings.catch_warnings():  # Pillow warns from 89 megapixels on, and refuses from 179 on
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = Image.open(image)
            with opened:
                opened.load()
                ImageOps.exif_transpose(opened, in_place=True)
                array = np.array(to_mode(opened, channels))
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors on damaged files
        reason = str(error)
        if isinstance(error, IsADirectoryError):
            reason = "it is a folder. Pass its files, or use `segnext-timm predict`."
        elif isinstance(error, UnidentifiedImageError):
            reason = "not an image file"
        elif isinstance(error, Image.DecompressionBombError):
            reason += " Raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        raise ImageError(f"{image} cannot be read as an image: {reason}") from None
    return torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1).contiguous()


def _as_array(image: Any) -> np.ndarray:
    """Convert an array of any library to NumPy's; raise an ImageError for other objects."""
    hint = ""
    if hasattr(image, "__array__"):
        try:
            return np.asarray(image)
        except Exception as error:  # of any library
            hint = f", which NumPy cannot convert: {error}"
    raise ImageError(f"An image is a path, a Pillow image, {_ARRAYS}, got {type(image).__name__}{hint}.")


def _take(image: Any) -> tuple[torch.Tensor, str]:
    """Take the values of an array or a tensor.

    Returns:
        A tensor (C, H, W) of uint8, uint16 or floating point, and the type and shape of `image` in words.
    """
    if not isinstance(image, torch.Tensor):
        array = _as_array(image)
        found = f"{array.dtype} {array.shape}"
        valid_shape, is_float = array.ndim in (2, 3) and array.size > 0, array.dtype.kind == "f"
        valid_type = is_float or array.dtype.newbyteorder("=") in (np.uint8, np.uint16)
    elif image.layout != torch.strided or image.is_nested or image.is_meta:
        raise ImageError(f"An image is {_ARRAYS}, got a sparse or nested tensor, or one on the meta device.")
    else:
        found = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
        valid_shape = image.ndim == 3 and image.numel() > 0
        valid_type = image.is_floating_point() or image.dtype in (torch.uint8, torch.uint16)
    if not valid_shape:
        raise ImageError(f"An image is {_ARRAYS}, got {found}.")
    if not valid_type:
        raise ImageError(f"An image is uint8, uint16, or floating point from 0 to 1, got {found}.")
    if isinstance(image, torch.Tensor):
        return image.detach(), found
    with np.errstate(over="ignore"):  # infinite values are refused later
        # a copy, in the machine's order of bytes
        array = np.atleast_3d(array).astype(np.float32 if is_float else array.dtype.newbyteorder("="))
    return torch.from_numpy(array).permute(2, 0, 1), found


def read_image(
    image: str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor, channels: int = 3
) -> torch.Tensor:
    """Read an image as a tensor of shape (channels, H, W).

    Args:
        image: A file that Pillow reads, or a Pillow image: rotated by its EXIF data, without alpha, 16 bits reduced to
            8. Or an array (H, W, C) or (H, W), also another library's that NumPy converts, or a tensor (C, H, W): uint8
            from 0 to 255, uint16 from 0 to 65535, or floating point from 0 to 1.
        channels: Number of channels to return. Gray is converted to color and color to gray; other numbers must match.

    Returns:
        uint8 from 0 to 255, or float32 from 0 to 1 for arrays and tensors of other types.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageError: If a file cannot be read as an image, or its shape, type or values are invalid.
    """
    if isinstance(image, str | os.PathLike | Image.Image):
        return _read_file(image, channels)
    tensor, found = _take(image)
    if tensor.dtype == torch.uint16:
        tensor = tensor.float() / 65535
    if tensor.shape[0] == 1 and channels == 3:
        tensor = tensor.expand(3, -1, -1)
    elif tensor.shape[0] == 3 and channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114], device=tensor.device)[:, None, None]  # Pillow's, of "L"
        gray = (tensor * weights).sum(0, keepdim=True)
        tensor = gray.round().to(tensor.dtype) if tensor.dtype == torch.uint8 else gray
    if tensor.shape[0] != channels:
        hint = _axes_hint(tensor, channels, isinstance(image, torch.Tensor))
        raise ImageError(f"The model takes images of {channels} channels, got {found}{hint}.")
    if tensor.dtype != torch.uint8:
        tensor = tensor.float()
        if not (tensor.amin() >= 0 and tensor.amax() <= 1):  # NaN too
            raise ImageError(
                f"Images of floating point have values from 0 to 1, not normalized ones; got {tensor.amin():.3g} to "
                f"{tensor.amax():.3g}."
            )
    return tensor.contiguous()


def _axes_hint(tensor: torch.Tensor, channels: int, given_as_tensor: bool) -> str:
    """What to do if an image (C, H, W), given as an array or a tensor, has its channels on the other's axis."""
    possible, count = {1, 3, 4, channels}, tensor.shape[2 if given_as_tensor else 1]
    if tensor.shape[0] in possible or count not in possible or count > tensor.shape[0]:
        return ""
    if given_as_tensor:
        return ": a tensor is (C, H, W), pass image.permute(2, 0, 1)"
    return ": an array is (H, W, C), pass image.transpose(1, 2, 0)"
