"""Label files: the number, or the color, that each pixel holds, whatever the file's format and depth."""

import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segnext_timm import SegNeXtError
from segnext_timm.prediction.images import count_pages
from segnext_timm.prediction.rasters import open_raster

from .class_list import color_codes, color_name
from .recipe import DataError

# Pillow spreads grays of 2 and 4 bits over 0 to 255 (its raw modes "L;2" and "L;4", with letters for the order of bits)
_SPREAD = {"L;2": 85, "L;4": 17}
SAMPLES, GDAL_NODATA = 277, 42113  # tags of TIFF
NO_DATA = -1  # number of pixels that a file says hold none, whatever its own number for them
_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "AVIF": "AVIF", "HEIF": "HEIF"}


class ColorError(DataError):
    """A label file holds colors, but the classes have values."""


@dataclass
class LabelFile:
    """A label file that was opened.

    Attributes:
        path: The file.
        image: Its pixels, upright.
        spread: Factor by which Pillow enlarged its values.
        lossy: Name of its format, if that changes values; else empty.
        no_data: Value of pixels without data that a TIFF states, as GIS programs do; 0 if it states none.
    """

    path: Path
    image: Image.Image
    spread: float
    lossy: str
    no_data: float = 0

    @property
    def depth(self) -> str:
        """How the file holds values: "8 bits", "palette" or "colors"."""
        mode = self.image.mode
        if mode in ("P", "PA"):
            return "palette"
        if mode in ("L", "LA", "La"):
            return {17: "4 bits", 85: "2 bits"}.get(self.spread, "8 bits")
        return "1 bit" if mode == "1" else "16 bits" if mode[:4] == "I;16" else "32 bits" if mode in "IF" else "colors"

    def values(self) -> np.ndarray:
        """Numbers (H, W): grays, or the indices of a palette, or `NO_DATA`; alpha is left out.

        A GIF has no grays but a palette, which Pillow and others sort anew: one of grays means its grays.

        Raises:
            ColorError: If it holds colors other than grays.
            DataError: If numbers are negative or not whole.
        """
        image, mode = self.image, self.image.mode
        values = np.asarray(image)
        if mode == "1":
            return values.astype(np.uint8)
        if mode in ("L", "LA", "La", "P", "PA"):
            values = values if values.ndim == 2 else values[..., 0]
            return self._of_palette(values) if mode == "P" else self._narrowed(values)
        if mode[0] in "IF":
            return self._whole(self._narrowed(values))
        colors = values[..., :3] if mode in ("RGB", "RGBA", "RGBX") else np.asarray(image.convert("RGB"))
        if not (np.array_equal(colors[..., 0], colors[..., 1]) and np.array_equal(colors[..., 0], colors[..., 2])):
            raise self._color_error(colors)
        return colors[..., 0]

    def colors(self) -> np.ndarray:
        """Colors (H, W) as integers, by :func:`class_list.color_codes`.

        Raises:
            DataError: If the file holds numbers of more than 8 bits.
        """
        if self.image.mode[0] in "IF":
            raise DataError(
                f"{self.path} holds numbers of 16 bits or more, but classes.txt gives colors: give values instead."
            )
        # the bytes red, green, blue, alpha as one integer: faster than a sum of three channels
        return np.asarray(self.image.convert("RGBA")).view("<u4")[..., 0] & 0xFFFFFF

    def alpha(self) -> bool:
        """Whether some pixels are more transparent than others."""
        bands = self.image.getbands()
        return bands[-1] in "Aa" and len({*self.image.getchannel(bands[-1]).getextrema()}) > 1

    def grays(self) -> np.ndarray:
        """Gray values (H, W) as a picture shows them: from 0 to 255, unless the file has more bits.

        Raises:
            DataError: If numbers are not finite.
        """
        if self.image.mode[0] not in "IF":
            return np.asarray(self.image.convert("RGB").convert("L"))
        values = np.asarray(self.image)
        if not np.isfinite(values).all():
            raise DataError(f"{self.path} holds numbers that are not finite: labels are whole numbers.")
        return values

    def palette(self) -> tuple[int, dict[int, int]]:
        """A digest of the whole palette, and the color code of each number that is used; nothing for other files."""
        if self.image.mode != "P" or self.image.format == "GIF":
            return 0, {}
        colors = self._palette()
        codes = color_codes(colors)
        used = [value for value, count in enumerate(self.image.histogram()[: len(codes)]) if count]
        return zlib.crc32(colors.tobytes()), {value: int(codes[value]) for value in used}

    def _narrowed(self, values: np.ndarray) -> np.ndarray:
        return values if self.spread == 1 else np.rint(values / self.spread).astype(values.dtype)

    def _of_palette(self, values: np.ndarray) -> np.ndarray:
        if self.image.format == "GIF":  # whose numbers programs sort anew
            colors, used = self._palette(), np.unique(values)
            if (colors[used] != colors[used, :1]).any():
                raise self._color_error(colors[used])
            return colors[:, 0].take(values)
        return values

    def _color_error(self, colors: np.ndarray) -> ColorError:
        names = ", ".join(color_name(int(code)) for code in np.unique(color_codes(colors))[:5])
        return ColorError(
            f"{self.path} is a color image ({names}): labels are PNGs of one channel that holds class numbers, "
            f"unless classes.txt gives each class its color, and no value, such as '#ff0000 road'."
        )

    def _palette(self) -> np.ndarray:
        return np.array(self.image.getpalette("RGB"), np.uint8).reshape(-1, 3)

    def _whole(self, values: np.ndarray) -> np.ndarray:
        if not self.no_data >= 0:  # NaN too; others may be classes
            missing = np.isnan(values) if np.isnan(self.no_data) else values == self.no_data
            known = replace(self, no_data=0)._whole(np.where(missing, 0, values))
            return np.where(missing, np.int32(NO_DATA), known)
        if values.dtype.kind == "f":
            wrong = values[~((values == np.rint(values)) & (np.abs(values) < 2**31))]  # NaN too
            if wrong.size:
                raise DataError(
                    f"{self.path} holds numbers that are not whole ({wrong[0]:g}): save class numbers as "
                    f"integers, and 255 where there are none."
                )
            values = values.astype(np.int32)
        if values.min(initial=0) < 0:
            raise DataError(f"{self.path} holds negative numbers ({values.min()}): write 255 there to leave them out.")
        return values


def open_label_file(path: Path, content: bytes | None = None) -> LabelFile:
    """Open a label file, or its content if that was read already.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        content = path.read_bytes() if content is None else content
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            if path.suffix.lower() not in (".npy", ".tif", ".tiff"):
                raise
            return _from_values(path)
        arguments = image.tile[0][3] if image.tile else ""
        raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        lossy = _LOSSY.get(image.format, "WebP" if image.format == "WEBP" and _is_lossy_webp(content) else "")
        if (number := count_pages(io.BytesIO(content))) > 1:
            raise DataError(f"holds {number} pages: labels are one picture; save the one that is meant.")
        if (bands := getattr(image, "tag_v2", {}).get(SAMPLES, 1)) > len(image.getbands()):
            raise DataError(f"holds {bands} bands: labels have one; save the one that is meant.")
        image.load()
        kind = image.format
        if image.getexif().get(0x0112, 1) != 1:
            image = ImageOps.exif_transpose(image)
            image.format = kind
    except SegNeXtError as error:
        raise DataError(str(error)) from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise DataError(f"{path} cannot be read as an image: {why_unreadable(error, content)}") from None
    spread = _SPREAD.get(str(raw_mode)[:3], 1)
    if kind == "PPM" and isinstance(arguments, tuple) and image.mode in ("L", "I"):
        spread = (255 if image.mode == "L" else 65535) / arguments[1]  # Pillow spreads numbers below the largest, too
    return LabelFile(path, image, spread, lossy, _nodata(image))


def _from_values(path: Path) -> LabelFile:
    """Open an array, or a TIFF of 64 bits, which Pillow does not read."""
    if path.suffix.lower() == ".npy":
        values, no_data = np.atleast_3d(np.load(path)).transpose(2, 0, 1), 0
    else:
        with open_raster(path) as raster:
            values, no_data = raster.read(), raster.nodata or 0
    if len(values) != 1:
        raise DataError(f"holds {len(values)} bands: labels have one; save the one that is meant.")
    low, high = -(1 << 31), (1 << 31) - 1
    numbers = values[0].astype(np.float64).clip(low, high)
    image = Image.fromarray(numbers.astype(np.int32 if values.dtype.kind in "biu" else np.float32))
    return LabelFile(path, image, 1, "", min(max(no_data, low), high))


def _nodata(image: Image.Image) -> float:
    """The value of pixels without data that a TIFF states, as GDAL does; 0 if it states none."""
    try:
        return float(str(image.tag_v2[GDAL_NODATA]).strip(" \0"))
    except (AttributeError, KeyError, ValueError):
        return 0


def why_unreadable(error: Exception, content: bytes | None) -> str:
    """Why a file is no image: what it holds instead, or what its decoder says."""
    if not isinstance(error, UnidentifiedImageError) or content is None:
        return str(error)
    if content.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: run `git lfs pull`."
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "it is a TIFF, though its name says otherwise: let it end with .tif."
    if not content.strip():
        return "it is empty."
    return "it holds text." if content[:512].isascii() and b"\0" not in content[:512] else "it is of no known format."


def _is_lossy_webp(content: bytes) -> bool:
    """Whether a WebP file, or an animated or transparent one's first picture, is of the lossy kind."""
    place, lossless = content.find(b"VP8 "), content.find(b"VP8L")
    return place >= 0 and not 0 <= lossless < place


def read_labels(path: Path) -> np.ndarray:
    """Values of a label file, of shape (H, W); the indices of one with a palette, 0 and 1 of one with a bit per pixel.

    Raises:
        DataError: If it cannot be read, or is a color image.
    """
    return open_label_file(path).values()


def read_colors(path: Path) -> np.ndarray:
    """Colors of a label file as integers, of shape (H, W), by :func:`class_list.color_codes`.

    Raises:
        DataError: If it cannot be read, or holds numbers of more than 8 bits.
    """
    return open_label_file(path).colors()
