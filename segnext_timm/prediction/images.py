"""Read images from files and arrays as tensors: of any number of bands, and of any type of values."""

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError
from .rasters import Raster, open_raster

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor
ValueRange = Sequence[float] | Sequence[Sequence[float]]  # low and high, or a pair for each band

_COLORS = ("red", "green", "blue")
_ARRAYS = "an array (H, W, C) or (H, W), or a tensor (C, H, W)"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by channels
_RANGE_HINT = 'pretrained_cfg["range"] = [low, high]'
DARK = 0.25  # largest share of 16 bits that is worth a warning
_DARK_WARNING = (
    "An image of 16 bits uses a small part of them, and becomes nearly black: state which values are black and white, "
    f"in the units of the file: {_RANGE_HINT}."
)
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _SAMPLES, _PLANAR, _SAMPLE_FORMAT, _NODATA = 258, 277, 284, 339, 42113  # tags of TIFF, the last one GDAL's
_JPEG_2000 = b"\xff\x4f\xff\x51"  # how its code begins
logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())  # else it prints, of many bands


class Values(NamedTuple):
    """What an image holds, in its own units.

    Attributes:
        values: Shape (C, H, W), of the image's own type.
        valid: Which pixels (H, W) hold data; None if all do.
        found: The type and the shape in words.
    """

    values: torch.Tensor
    valid: torch.Tensor | None = None
    found: str = ""


def scale_values(
    values: torch.Tensor, value_range: ValueRange | None = None, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Scale the values of an image, as its file holds them, to what models are trained on.

    Args:
        values: Shape (C, H, W), of any type of integers or floating point.
        value_range: The values that become 0 and 1: one pair for all bands, or one for each. Values beyond are clipped,
            and NaN becomes 0. Without it, uint8 stays as it is, other integers are divided by 65535, and floating point
            has to be from 0 to 1.
        valid: Which pixels (H, W) hold data; the others become 0.

    Returns:
        uint8 from 0 to 255 where uint8 was given without a range; else float32 from 0 to 1.

    Raises:
        ImageError: If the pairs are not as many as the bands, or without a range if values are out of these bounds.
    """
    if value_range is None and values.dtype == torch.uint8:
        return values if valid is None else values * valid
    largest = 1 if values.is_floating_point() else 65535
    scaled = values.float()
    if value_range is not None:
        pairs = torch.tensor(value_range, dtype=torch.float32, device=values.device).view(-1, 2)
        if len(pairs) not in (1, len(values)):
            raise ImageError(f"The range has {len(pairs)} pairs of low and high, and the image {len(values)} bands.")
        low, high = pairs[:, 0, None, None], pairs[:, 1, None, None]
        if values.dtype == torch.uint8 and low.min() >= 0 and high.min() > 255:
            raise ImageError(
                f"The image has 8 bits, but its range is {value_range}: give the images in the units of the range."
            )
        scaled = scaled.sub(low).div_(high - low).clamp_(0, 1).nan_to_num_(0)
        return scaled if valid is None else scaled * valid
    if valid is not None:
        scaled = torch.where(valid, scaled, 0)
    if not (scaled.amin() >= 0 and scaled.amax() <= largest):  # NaN too
        raise ImageError(
            f"Images of {'floating point have values from 0 to 1' if largest == 1 else 'integers from 0 to 65535'}, "
            f"not normalized ones; got {scaled.amin():.5g} to {scaled.amax():.5g}. State which values are black and "
            f"white: {_RANGE_HINT}."
        )
    return scaled / largest


# Files


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Convert a Pillow image of 8 bits and any mode to one of 1, 3 or 4 channels, or of gray with alpha."""
    if channels == 2 and image.mode == "LA":
        return image
    if channels not in _MODES or (channels == 4 and image.mode != "RGBA"):
        raise ImageError(f"The model takes {channels} channels, the image has those of {image.mode!r}.")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def loses_values(image: Any, channels: int | None = 3) -> bool:
    """Whether Pillow drops or confuses bits or bands of a file when it decodes it; `image` is Pillow's, not loaded yet.

    The bands of an RGB TIFF beyond three are dropped on purpose, unless more `channels`, or all (None), are wanted.
    """
    tags = getattr(image, "tag_v2", None)
    if image.format == "JPEG2000":
        bits = _jpeg_2000_bits(image)
        exact = bits <= 8 or (bits == 16 and image.mode[0] == "I")
        return not exact or (channels is None and image.mode not in ("L", "RGB", "I;16"))
    if tags is None:
        return image.format == "PNG" and any(";16" in str(tile[3]) for tile in image.tile) and image.mode[0] not in "IF"
    bands = len(image.getbands())
    samples = tags.get(_SAMPLES, bands)
    if image.mode[0] in "IF":
        return samples > 1 or tags.get(_PLANAR) == 2
    if max(tags.get(_BITS, (8,))) > 8 or {2, 3} & {*tags.get(_SAMPLE_FORMAT, ())}:  # signed, or floating point
        return True
    return samples > bands and (channels is None or channels > bands or (bands == 1 and samples > 2))


def _jpeg_2000_bits(image: Any) -> int:
    """Bits of the first component of a JPEG 2000."""
    place = image.fp.tell()
    image.fp.seek(0)
    _, _, code = image.fp.read(1 << 20).partition(_JPEG_2000)
    image.fp.seek(place)
    return (code[38] & 127) + 1 if len(code) > 38 else 8


def read_values(
    image: ImageLike, channels: int | None = None, bands: Sequence[int] | None = None, any_type: bool = True
) -> Values:
    """Read an image, upright, in the type and the units of its values.

    Args:
        image: See :func:`read_image`.
        channels: Channels that 8 bits are converted to: gray to color and color to gray. None: to color.
        bands: Bands to read instead, from 1. None: all of a file with other bands than gray, colors and alpha.
        any_type: Allow for arrays and tensors of all types of integers, not only uint8 and uint16.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageError: If it cannot be read, or has no such bands.
    """
    if not isinstance(image, str | os.PathLike | Image.Image):
        values, found = _take(image, any_type)
        return Values(_select(values, bands), None, found)
    values, valid, _ = _read_file(image, channels, bands)
    return Values(values, valid, f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}")


def _read_file(
    image: str | os.PathLike[str] | Image.Image, channels: int | None, bands: Sequence[int] | None
) -> Values:
    if isinstance(image, Image.Image):
        with _told(image):
            return _decode(ImageOps.exif_transpose(image), getattr(image, "tag_v2", {}), channels, bands)
    path = Path(image)
    if path.suffix.lower() == ".npy":
        with _told(image):
            array = np.load(path, allow_pickle=False, mmap_mode="r")
            return Values(_select(_take(_bands_last(array), any_type=True)[0], bands))
    try:
        with warnings.catch_warnings():  # Pillow warns from 89 megapixels on, and refuses from 179 on
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
    except UnidentifiedImageError:
        if not _is_tiff(path):
            raise ImageError(f"{image} cannot be read as an image: not an image file") from None
    except Exception as error:
        with _told(image):
            raise error from None
    else:
        with opened, _told(image):
            if not loses_values(opened, max(bands) if bands else channels):
                opened.load()
                ImageOps.exif_transpose(opened, in_place=True)  # without a copy
                return _decode(opened, getattr(opened, "tag_v2", {}), channels, bands)
    return _read_raster(image, channels, bands)


@contextmanager
def _told(image: Any) -> Any:
    """Turn the errors of reading a file into ImageErrors that name it: Pillow's decoders raise many types."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = str(error)
        if isinstance(error, IsADirectoryError):
            reason = "it is a folder. Pass its files, or use `segnext-timm predict`."
        elif isinstance(error, Image.DecompressionBombError):
            reason += " Raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        raise ImageError(f"{image} cannot be read as an image: {reason}") from None


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in _TIFF_HEADS


def _decode(image: Image.Image, tags: Any, channels: int | None, bands: Sequence[int] | None) -> Values:
    """Take the values of an upright image of Pillow, whose file has some `tags` if it is a TIFF."""
    unsigned = tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)
    if image.mode[0] in "IF":  # numbers of 16 bits and more, in the machine's order of bytes
        array = np.array(image)
        array = array.view(np.uint32) if unsigned else array.astype(array.dtype.newbyteorder("="))
        valid = _nodata(tags, array)
        return Values(_select(torch.from_numpy(array)[None], bands), valid)
    if not bands:
        array = np.array(to_mode(image, channels or 3))
    elif image.mode in ("L", "LA", "RGB", "RGBA"):
        array = np.array(image)
    else:
        array = np.array(to_mode(image, 3))
    valid = _nodata(tags, np.atleast_3d(array)[..., :3])
    return Values(_select(torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1), bands).contiguous(), valid)


def _nodata(tags: Any, array: np.ndarray) -> torch.Tensor | None:
    """Which pixels of an array (H, W) or (H, W, C) hold data, by the value that GDAL notes in a TIFF."""
    try:
        nodata = float(str(tags[_NODATA]).strip(" \0"))
    except (KeyError, ValueError):
        return None
    valid = ~np.isnan(array) if np.isnan(nodata) else array != nodata
    valid = valid if valid.ndim == 2 else valid.any(-1)
    return None if valid.all() else torch.from_numpy(valid)


def bands_to_read(raster: Raster, channels: int | None, bands: Sequence[int] | None) -> list[int]:
    """The bands to take from a file: those stated, else all, without opacity if that leaves as many as there should be.

    Raises:
        ImageError: If it has no such bands.
    """
    count = raster.shape[0]
    if bands is not None:
        if max(bands) > count:
            raise ImageError(f"{raster.name}: {_missing(count, bands)}")
        return list(bands)
    others = [band for band in range(1, count + 1) if band != raster.alpha]
    fits = channels in (None, len(others)) or {channels, len(others)} == {1, 3}
    if channels == 3 and not fits and {*_COLORS} <= {*raster.kinds}:
        return [raster.kinds.index(color) + 1 for color in _COLORS]
    return others if fits else [*range(1, count + 1)]


def _read_raster(path: str | os.PathLike[str], channels: int | None, bands: Sequence[int] | None) -> Values:
    with open_raster(path) as raster:
        bands = bands_to_read(raster, channels, bands)
        array, valid = raster.read(bands), raster.valid(bands=bands)
    return Values(torch.from_numpy(array), None if valid.all() else torch.from_numpy(valid))


def _missing(count: int, bands: Sequence[int]) -> str:
    """What is wrong with bands that an image does not have."""
    some = "band" if len(bands) == 1 else "bands"
    return f'The image has {count} bands, and pretrained_cfg["bands"] names the {some} {", ".join(map(str, bands))}.'


def _select(values: torch.Tensor, bands: Sequence[int] | None) -> torch.Tensor:
    """Select bands, from 1, of an image (C, H, W)."""
    if not bands:
        return values
    if max(bands) > len(values):
        raise ImageError(_missing(len(values), bands))
    return torch.stack([values[band - 1] for band in bands])


def _bands_last(array: np.ndarray) -> np.ndarray:
    """Move the bands of a file's array to the end if they come first, which few of them before long sides show."""
    first = array.ndim == 3 and array.shape[0] <= 20 and min(array.shape[1:]) >= 32
    return array.transpose(1, 2, 0) if first else array


# Arrays


def _as_array(image: Any) -> np.ndarray:
    """Convert an array of any library to NumPy's; raise an ImageError for other objects."""
    hint = ""
    if hasattr(image, "__array__"):
        try:
            return np.asarray(image)
        except Exception as error:  # of any library
            hint = f", which NumPy cannot convert: {error}"
    raise ImageError(f"An image is a path, a Pillow image, {_ARRAYS}, got {type(image).__name__}{hint}.")


def _take(image: Any, any_type: bool = False) -> tuple[torch.Tensor, str]:
    """Take the values (C, H, W) of an array or a tensor, and its type and shape in words.

    Integers are uint8 or uint16, unless `any_type` is allowed.
    """
    if not isinstance(image, torch.Tensor):
        array = _as_array(image)
        found, kind = f"{array.dtype} {array.shape}", array.dtype.kind
        valid_shape, is_number = array.ndim in (2, 3) and array.size > 0, kind in "iuf"
        valid_type = kind == "f" or array.dtype.newbyteorder("=") in (np.uint8, np.uint16)
    elif image.layout != torch.strided or image.is_nested or image.is_meta:
        raise ImageError(f"An image is {_ARRAYS}, got a sparse or nested tensor, or one on the meta device.")
    else:
        found = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
        valid_shape = image.ndim == 3 and image.numel() > 0
        is_number = not image.is_complex() and image.dtype != torch.bool
        valid_type = image.is_floating_point() or image.dtype in (torch.uint8, torch.uint16)
    if not valid_shape:
        raise ImageError(f"An image is {_ARRAYS}, got {found}.")
    if not (valid_type or (is_number and any_type)):
        hint = f" Of other numbers, state which are black and white: {_RANGE_HINT}." if is_number else ""
        raise ImageError(f"An image is uint8, uint16, or floating point from 0 to 1, got {found}.{hint}")
    if isinstance(image, torch.Tensor):
        return image.detach(), found
    with np.errstate(over="ignore"):  # infinite values are refused later
        # a copy, in the machine's order of bytes
        array = np.atleast_3d(array).astype(np.float32 if kind == "f" else array.dtype.newbyteorder("="))
    return torch.from_numpy(array).permute(2, 0, 1), found


def read_image(
    image: ImageLike,
    channels: int | None = 3,
    value_range: ValueRange | None = None,
    bands: Sequence[int] | None = None,
) -> torch.Tensor:
    """Read an image as a tensor of shape (channels, H, W).

    Args:
        image: A file that Pillow or rasterio reads, or a Pillow image: rotated by its EXIF data, without alpha. A file
            `.npy` of an array (H, W), (H, W, C), or (C, H, W) with few bands. Or an array (H, W, C) or (H, W), also
            another library's that NumPy converts, or a tensor (C, H, W): without a range, uint8 from 0 to 255, uint16
            from 0 to 65535, or floating point from 0 to 1.
        channels: Number of channels to return. Gray is converted to color and color to gray; other numbers must match.
            None: three of gray images and of those in color with 8 bits, and all bands of others.
        value_range: The values, in the units of `image`, that become 0 and 1: see :func:`scale_values`.
        bands: The bands of `image` to take, from 1. Default: all.

    Returns:
        uint8 from 0 to 255 of images of 8 bits without a range, else float32 from 0 to 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageError: If a file cannot be read as an image, or its shape, type or values are invalid.
    """
    values, valid, found = read_values(image, channels, bands, value_range is not None)
    name = f"{image}: " if isinstance(image, str | os.PathLike | Image.Image) else ""
    if len(values) == 1 and channels in (None, 3):
        values = values.expand(3, -1, -1)
    elif len(values) == 3 and channels == 1:
        weights = torch.tensor([19595, 38470, 7471], device=values.device).view(3, 1, 1) / 65536  # Pillow's, of "L"
        gray = (values.float() * weights).sum(0, keepdim=True)
        values = gray if values.is_floating_point() else (gray + 0.5).floor().to(values.dtype)
    try:
        if channels not in (None, len(values)):
            hint = "" if name else _axes_hint(values, channels, isinstance(image, torch.Tensor))
            if name and len(values) > channels:
                hint = ': state which bands it takes, from 1, in pretrained_cfg["bands"]'
            raise ImageError(f"The model takes images of {channels} channels, got {found}{hint}.")
        scaled = scale_values(values, value_range, valid).contiguous()
    except ImageError as error:
        raise ImageError(f"{name}{error}") from None
    is_wide = not (values.dtype == torch.uint8 or values.is_floating_point())
    if value_range is None and is_wide and 0 < scaled.amax() < DARK:
        warnings.warn(_DARK_WARNING, stacklevel=2)
    return scaled


def _axes_hint(tensor: torch.Tensor, channels: int, given_as_tensor: bool) -> str:
    """What to do if an image (C, H, W), given as an array or a tensor, has its channels on the other's axis."""
    possible, count = {1, 3, 4, channels}, tensor.shape[2 if given_as_tensor else 1]
    if tensor.shape[0] in possible or count not in possible or count > tensor.shape[0]:
        return ""
    if given_as_tensor:
        return ": a tensor is (C, H, W), pass image.permute(2, 0, 1)"
    return ": an array is (H, W, C), pass image.transpose(1, 2, 0)"
