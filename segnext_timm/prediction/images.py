"""Read images from files and arrays as tensors: of any number of bands, and of any type of values."""

import logging
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError
from .rasters import SUFFIXES, Raster, named, open_raster

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor
ValueRange = Sequence[float] | Sequence[Sequence[float]]  # low and high, or a pair for each band

_ARRAYS = "an array (H, W, C) or (H, W), or a tensor (C, H, W)"
_COLORS = ["red", "green", "blue"]
_KINDS = {"L": ["gray"], "LA": ["gray", "alpha"], "RGB": _COLORS, "RGBA": [*_COLORS, "alpha"]}  # by Pillow's modes
_GRAY = torch.tensor([19595, 38470, 7471])[:, None, None]  # 65536ths of red, green and blue: Pillow's, of "L"
_RANGE_HINT = 'pretrained_cfg["range"] = [low, high]'
DARK = 0.25  # largest share of 16 bits that is worth a warning
_DARK_WARNING = (
    "An image of 16 bits uses a small part of them, and becomes nearly black: state which values are black and white, "
    f"in the units of the file: {_RANGE_HINT}."
)
_SUBFILE_TYPE, _SMALLER_OR_MASK = 254, 1 | 4  # a tag of TIFF, and bits of its value
_BITS, _SAMPLES, _PLANAR, _SAMPLE_FORMAT, _NODATA = 258, 277, 284, 339, 42113  # tags of TIFF, the last one GDAL's
logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())  # else it prints, of many bands


class Values(NamedTuple):
    """Values (C, H, W) of an image, in its own type and units, and which pixels (H, W) hold data; None: all."""

    values: torch.Tensor
    valid: torch.Tensor | None = None


def scale_values(
    values: torch.Tensor, value_range: ValueRange | None = None, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Scale the values (C, H, W) of an image, of any type of numbers, to what models are trained on.

    The pairs of `value_range`, one for all bands or one for each, become 0 and 1. Values beyond are clipped; NaN, and
    pixels that are not `valid` (H, W), become 0. Without a range, uint8 stays as it is, other integers are divided by
    65535, and floating point has to be from 0 to 1.

    Returns:
        uint8 from 0 to 255 where uint8 was given without a range; else float32 from 0 to 1.

    Raises:
        ImageError: If the range, or its number of pairs, is invalid; without one, if values are out of these bounds.
    """
    if value_range is None and values.dtype == torch.uint8:
        return values if valid is None else values * valid
    largest = 1 if values.is_floating_point() else 65535
    scaled = values.float()
    if value_range is not None:
        pairs = torch.tensor(value_range, dtype=torch.float32)
        if pairs.numel() % 2 or not pairs.isfinite().all() or not (pairs.view(-1, 2).diff() > 0).all():
            raise ImageError(f"A range is [low, high], or such a pair for each band, got {value_range}.")
        pairs = pairs.view(-1, 2)
        if len(pairs) not in (1, len(values)):
            raise ImageError(f"The range has {len(pairs)} pairs of low and high, and the image {len(values)} bands.")
        low, high = pairs.to(values.device)[:, :, None, None].unbind(1)
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


def list_files(folder: Path) -> list[Path]:
    """List the files in a folder and folders in it, sorted, without hidden ones."""
    return [f for f in sorted(folder.rglob("*")) if "/." not in f"/{f.relative_to(folder).as_posix()}" and f.is_file()]


def list_images(files: Sequence[Path]) -> list[Path]:
    """List the images among files, or else the arrays (.npy)."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN} | {*SUFFIXES}
    return [f for f in files if f.suffix.lower() in known] or [f for f in files if f.suffix == ".npy"]


def check_address(image: Any) -> None:
    """Raise an ImageError for an address, such as https://..., since images are files."""
    if re.match(r"\w+://", str(image)):
        raise ImageError(f"{image} is an address, not a file: download it first.")


def count_pages(file: str | os.PathLike[str] | IO[bytes]) -> int:
    """Count the pictures in a file, without the smaller copies and masks that TIFFs hold; 1 if Pillow cannot tell."""
    number = 0
    with suppress(Exception), warnings.catch_warnings():  # of masks, which Pillow cannot open
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file) as image:
            if image.format != "TIFF":
                return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            for page in range(image.n_frames):
                image.seek(page)
                number += not image.tag_v2.get(_SUBFILE_TYPE, 0) & _SMALLER_OR_MASK
    return max(number, 1)


def loses_values(image: Any, channels: int | None = 3) -> bool:
    """Whether Pillow drops or confuses bits or bands of a file when it decodes it; `image` is Pillow's, not loaded yet.

    The bands of an RGB TIFF beyond three are dropped on purpose, unless more `channels`, or all (None), are wanted.
    """
    tags, is_wide = getattr(image, "tag_v2", None), image.mode[0] in "IF"  # of more than 8 bits in memory
    if image.format == "JPEG2000":  # depths other than 8 and 16 bits are not stated, and scaled
        return True
    if tags is None:
        return image.format == "PNG" and not is_wide and any(";16" in str(tile[3]) for tile in image.tile)
    bands = len(image.getbands())
    samples, bits, kinds = tags.get(_SAMPLES, bands), tags.get(_BITS, (8,)), tags.get(_SAMPLE_FORMAT, (1,))
    if is_wide:  # Pillow takes unsigned integers of 32 bits for signed ones
        return samples > 1 or tags.get(_PLANAR) == 2 or (bits, kinds) == ((32,), (1,))
    if max(bits) > 8 or {2, 3} & {*kinds}:  # signed, or floating point
        return True
    # of more bands than it knows, Pillow takes the first for gray, and those after alpha before it
    return samples > bands and (channels is None or bands == 1 or channels > bands - (image.mode == "RGBA"))


def read_values(
    image: ImageLike | Values, channels: int | None = None, bands: Sequence[int] | None = None, any_type: bool = True
) -> Values:
    """Read an image of :func:`read_image`, upright, in the type and the units of its values.

    8 bits are converted to `channels`, by default to color. `bands`, from 1, are read instead; without them, all of a
    file with other bands than gray, colors and alpha. Arrays have integers of `any_type`, or uint8 and uint16 only.
    """
    if isinstance(image, Values):
        return image
    if not isinstance(image, str | os.PathLike | Image.Image):
        return Values(_select(_take(image, any_type), bands))
    check_address(image)
    with named(image):
        if isinstance(image, Image.Image):
            return _decode(ImageOps.exif_transpose(image), channels, bands)
        path = Path(image)
        if path.suffix.lower() == ".npy":
            array = np.lib.format.open_memmap(path, mode="r")
            return Values(_select(_take(array, any_type=True), bands))
        try:
            with warnings.catch_warnings():  # Pillow warns from 89 megapixels on, and refuses from 179 on
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = Image.open(path)
        except UnidentifiedImageError:
            if path.suffix.lower() not in SUFFIXES:
                raise OSError("not an image file") from None
        else:
            with opened:
                states_nodata = _NODATA in getattr(opened, "tag_v2", ())
                if not states_nodata and not loses_values(opened, max(bands) if bands else channels):
                    opened.load()
                    ImageOps.exif_transpose(opened, in_place=True)  # without a copy
                    return _decode(opened, channels, bands)
        with open_raster(image) as raster:
            raster.bands = bands_to_read(raster.kinds, bands, channels)
            return read_region(raster)


def _decode(image: Image.Image, channels: int | None, bands: Sequence[int] | None) -> Values:
    """Take the values of an upright image of Pillow."""
    is_photo = image.mode[0] not in "IF"  # else numbers of 16 bits and more
    if is_photo and image.mode not in _KINDS:
        has_alpha = image.mode == "PA" or (image.mode == "P" and "transparency" in image.info)
        image = image.convert("RGBA" if has_alpha else "RGB")
    array = np.atleast_3d(np.array(image))
    is_signed = image.mode == "I" and getattr(image, "tag_v2", {}).get(_BITS) == (16,)
    array = array.astype(np.int16 if is_signed else array.dtype.newbyteorder("="), copy=False)
    taken = bands_to_read(_KINDS.get(image.mode, ["gray"]), bands, channels)
    values = _select(torch.from_numpy(array).permute(2, 0, 1), taken)
    return Values((_to_channels(values, channels or 3) if is_photo and not bands else values).contiguous())


def bands_to_read(kinds: Sequence[str], bands: Sequence[int] | None, channels: int | None = None) -> list[int]:
    """List the bands to take, from 1, of those of some `kinds`, such as "red" and "alpha".

    They are those stated, which have to be there; else all, without opacity if that leaves what `channels` need; else
    the colors, if they do.
    """
    count = len(kinds)
    if bands:
        if not all(band in range(1, count + 1) for band in bands):
            some = f"{'band' if len(bands) == 1 else 'bands'} {', '.join(map(str, bands))}"
            raise ImageError(f'The image has {count} bands, and pretrained_cfg["bands"] names the {some}.')
        return list(bands)
    others = [number for number, kind in enumerate(kinds, 1) if kind != "alpha"]
    if channels in (None, len(others)) or {channels, len(others)} == {1, 3}:
        return others
    if channels in (1, 3) and {*_COLORS} <= {*kinds}:
        return [kinds.index(color) + 1 for color in _COLORS]
    return [*range(1, count + 1)]


def _select(values: torch.Tensor, bands: Sequence[int] | None) -> torch.Tensor:
    """Select bands, from 1, of an image (C, H, W)."""
    taken = bands_to_read(["undefined"] * len(values), bands)
    return torch.stack([values[band - 1] for band in taken]) if bands else values


def _to_channels(values: torch.Tensor, channels: int | None) -> torch.Tensor:
    """Convert gray to color (also for None) and color to gray; other values (C, H, W) stay."""
    if len(values) == 1 and channels in (None, 3):
        return values.expand(3, -1, -1)
    if len(values) != 3 or channels != 1:
        return values
    weights = _GRAY.to(values.device)
    if values.is_floating_point():
        return (values * (weights / 65536)).sum(0, keepdim=True)
    return ((values.long() * weights).sum(0, keepdim=True) + 32768 >> 16).to(values.dtype)


def read_region(raster: Raster, rows: slice = slice(None), columns: slice = slice(None)) -> Values:
    """Read a region of a raster's bands; colors below alpha are valid, as in photos."""
    values, valid = torch.from_numpy(raster.read(rows, columns)), None
    if raster.nodata is not None or raster.dtype != np.uint8:
        valid = torch.from_numpy(raster.valid(rows, columns))
    return Values(values, None if valid is None or valid.all() else valid)


# Arrays


def _take(image: Any, any_type: bool) -> torch.Tensor:
    """Take the values (C, H, W) of an array or a tensor; without `any_type`, integers have to be uint8 or uint16."""
    given_as_tensor = isinstance(image, torch.Tensor)
    if not hasattr(image, "__array__"):
        raise ImageError(f"An image is a path, a Pillow image, {_ARRAYS}, got {type(image).__name__}.")
    values: Any = image.detach() if given_as_tensor else np.asarray(image)
    found = f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
    if not (values.ndim == 3 or (values.ndim == 2 and not given_as_tensor)) or 0 in values.shape:
        raise ImageError(f"An image is {_ARRAYS}, got {found}.")
    if not given_as_tensor and values.dtype.kind in "iuf":
        with np.errstate(over="ignore"):  # infinite values are refused later
            # a copy, in the machine's order of bytes
            kind = np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("=")
            values = torch.from_numpy(np.atleast_3d(values).astype(kind)).permute(2, 0, 1)
    is_number = isinstance(values, torch.Tensor) and not values.is_complex() and values.dtype != torch.bool
    is_usual = is_number and (values.is_floating_point() or values.dtype in (torch.uint8, torch.uint16))
    if not (is_usual or (is_number and any_type)):
        hint = f" Of other numbers, state which are black and white: {_RANGE_HINT}." if is_number else ""
        raise ImageError(f"An image is uint8, uint16, or floating point from 0 to 1, got {found}.{hint}")
    return values


def read_image(
    image: ImageLike | Values,
    channels: int | None = 3,
    value_range: ValueRange | None = None,
    bands: Sequence[int] | None = None,
) -> torch.Tensor:
    """Read an image as a tensor of shape (channels, H, W).

    Args:
        image: A file that Pillow or rasterio reads, or a Pillow image: rotated by its EXIF data, without alpha. Or an
            array (H, W, C) or (H, W), also a file `.npy` and another library's that NumPy converts, or a tensor (C, H,
            W): without a range, uint8 from 0 to 255, uint16 from 0 to 65535, or floating point from 0 to 1.
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
    read = read_values(image, channels, bands, value_range is not None)
    is_file = isinstance(image, str | os.PathLike | Image.Image)
    hint = "" if is_file and not f"{image}".endswith(".npy") else "; an array is (H, W, C), a tensor (C, H, W)"
    with named(image, ImageError) if is_file else nullcontext():
        scaled = to_input(read, channels, value_range, hint)
    is_wide = not (read.values.dtype == torch.uint8 or read.values.is_floating_point())
    if value_range is None and is_wide and 0 < scaled.amax() < DARK:
        warnings.warn(_DARK_WARNING, stacklevel=2)
    return scaled


def to_input(read: Values, channels: int | None, value_range: ValueRange | None = None, hint: str = "") -> torch.Tensor:
    """Convert values to a number of channels, and scale them: see :func:`read_image`."""
    values = _to_channels(read.values, channels)
    if channels not in (None, len(values)):
        bands = ': state which bands it takes, from 1, in pretrained_cfg["bands"]' if len(values) > channels else ""
        raise ImageError(f"The model takes images of {channels} channels, got {len(values)}{bands}{hint}.")
    return scale_values(values, value_range, read.valid).contiguous()
