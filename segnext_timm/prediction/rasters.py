"""Read rasters of any number of bands and type, window by window: GeoTIFF and what else rasterio opens.

rasterio is an optional package, imported when a raster is opened.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError

SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img")
LARGE = 178_956_970  # pixels, of the largest images that Pillow opens
_PICTURES = ("GTiff", "JP2OpenJPEG")  # GDAL's names of what Pillow reads, too
_PLACING_TAGS = {33550, 33922, 34264}  # of GeoTIFF: scale, tie points, transformation
ALL = slice(None)  # rows or columns


def import_rasterio(file: str | os.PathLike[str]) -> Any:
    """Import rasterio, which a file needs; raise an ImageError that names the package if it is missing."""
    try:
        import rasterio
    except ImportError:
        raise ImageError(f"{file} is read by rasterio, which is not installed: pip install rasterio") from None
    return rasterio


class Raster:
    """An open raster, from :func:`open_raster`: what rasterio's dataset states, and regions of it.

    A palette, and gray that is inverted or of fewer than 8 bits, are read as three bands of colors.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name
        self.shape: tuple[int, int, int] = (dataset.count, dataset.height, dataset.width)
        self.dtype = np.result_type(*dataset.dtypes)  # of all bands
        self.crs, self.transform, self.nodata = dataset.crs, dataset.transform, dataset.nodata
        if self.crs is None and not self.transform.is_identity:  # a file of its own, as comes with a world file
            rasterio = import_rasterio(name)
            with suppress(OSError, rasterio.errors.CRSError):
                text = Path(name).with_suffix(".prj").read_text(encoding="utf-8", errors="replace")
                self.crs = rasterio.CRS.from_wkt(text, morph_from_esri_dialect=True)
        self.kinds = [kind.name for kind in dataset.colorinterp]  # "red", "gray", "alpha", "undefined", ...
        self._colors = self._read_colors() if len(self.kinds) == 1 and self.dtype == np.uint8 else None  # (256, 3)
        if self._colors is not None:
            self.kinds = ["red", "green", "blue"]
            self.shape = (3, *self.shape[1:])
        self.bands = [*range(1, len(self.kinds) + 1)]  # those that are read, until others are assigned
        self.placed = bool(not self.transform.is_identity or self.crs or dataset.gcps[0] or dataset.rpcs)

    def _read_colors(self) -> np.ndarray | None:
        """Read which color each value of a file's only band stands for; None if it is the gray."""
        if self.kinds == ["palette"]:
            palette = self.dataset.colormap(1)
            return np.array([palette.get(value, (0, 0, 0))[:3] for value in range(256)], np.uint8)
        key = "IMAGE_STRUCTURE"
        bits = int(self.dataset.tags(1, ns=key).get("NBITS", 8))
        is_inverted = "MINISWHITE" in self.dataset.tags(ns=key)
        if not (1 < bits < 8 or is_inverted):
            return None
        gray = (np.arange(256) * 255 // (2**bits - 1)).clip(0, 255).astype(np.uint8)
        return np.stack([255 - gray if is_inverted else gray] * 3, -1)

    def window(self, rows: slice, columns: slice) -> tuple[tuple[int, int], tuple[int, int]]:
        """Compute rasterio's window of a region."""
        (top, bottom, _), (left, right, _) = (part.indices(side) for part, side in zip((rows, columns), self.shape[1:]))
        return (top, bottom), (left, right)

    def read(self, rows: slice = ALL, columns: slice = ALL, size: tuple[int, int] | None = None) -> np.ndarray:
        """Read values (bands, rows, columns) of a region in the file's own type; their means for a smaller `size`."""
        from rasterio.enums import Resampling

        place: dict[str, Any] = {"window": self.window(rows, columns), "out_shape": size}
        with named(self.name):
            if self._colors is not None:
                colors = self._colors[self.dataset.read(1, **place)]
                return colors.transpose(2, 0, 1)[np.array(self.bands) - 1]
            place["resampling"] = Resampling.average
            if len({*self.dataset.dtypes}) == 1:
                return self.dataset.read(self.bands, **place)
            return np.stack([self.dataset.read(band, **place) for band in self.bands]).astype(self.dtype)

    def valid(self, rows: slice = ALL, columns: slice = ALL, size: tuple[int, int] | None = None) -> np.ndarray:
        """Read which pixels (rows, columns) of a region hold data, bool: by nodata values, NaN, alpha, or masks.

        An alpha band among those read is data, such as near infrared: GDAL marks the fourth of four bands of uint8 so.
        """
        if any(self.kinds[band - 1] == "alpha" for band in self.bands):
            found = (self.read(rows, columns, size) != self.nodata).any(0)  # all, without a nodata value
        else:
            with named(self.name):
                found = self.dataset.dataset_mask(window=self.window(rows, columns), out_shape=size) > 0
        if self.dtype.kind == "f":
            found &= ~np.isnan(self.read(rows, columns, size)).any(0)
        return found

    def project(self, crs: str, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """Convert coordinates to another CRS: (2, points).

        Raises:
            ImageError: If the file does not state where on Earth it lies, as with local coordinates.
        """
        from rasterio.warp import transform

        reason: Any = "it states no transform and CRS"
        if self.crs is not None and not self.transform.is_identity:
            try:
                found = np.array(transform(self.crs, crs, xs, ys))
                if np.isfinite(found).all():
                    return found
                reason = "coordinates are out of bounds"
            except Exception as error:  # GDAL's, for which rasterio has no public class
                reason = error
        raise ImageError(f"{self.name} does not state where on Earth it lies: {str(reason).split(' from ')[0]}")


@contextmanager
def named(file: Any, kind: type[Exception] = Exception) -> Iterator[None]:
    """Let ImageErrors begin with the file; errors of decoders, which raise many types, become ImageErrors."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except kind as error:
        if isinstance(error, ImageError):
            raise error if str(error).startswith(f"{file}") else ImageError(f"{file}: {error}") from None
        told = error.__cause__ if "previous exception" in str(error) else error  # GDAL's below rasterio's
        reason = " ".join(str(told).split()).removeprefix(f"{file}: ")
        if isinstance(error, IsADirectoryError):
            reason = "it is a folder. Pass its files, or use `segnext-timm predict`."
        elif isinstance(error, Image.DecompressionBombError):
            reason += " Raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        raise ImageError(f"{file} cannot be read as an image: {reason}") from None


def open_dataset(file: str | os.PathLike[str], *mode: str, **profile: Any) -> Any:
    """Open or create a raster file by rasterio, without its warning of files that state no place."""
    rasterio = import_rasterio(file)
    with named(file), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(file, *mode, **profile)


@contextmanager
def open_raster(file: str | os.PathLike[str]) -> Iterator[Raster]:
    """Open a raster file for the block.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageError: If rasterio is missing, or cannot read the file, or its values are complex numbers.
    """
    if not Path(file).exists():
        raise FileNotFoundError(f"{file}: no such file.")
    with open_dataset(file) as dataset:
        if not dataset.count or any(dtype.startswith("complex") for dtype in dataset.dtypes):
            raise ImageError(f"{file} cannot be read as an image: it has {dataset.count} bands of {dataset.dtypes}.")
        yield Raster(dataset, os.fspath(file))


def is_raster(file: Path) -> bool:
    """Whether an image file is georeferenced, or more than Pillow opens: whether it is read by regions."""
    if file.suffix.lower() not in SUFFIXES:
        return False
    if find_spec("rasterio"):
        with suppress(ImageError), open_raster(file) as raster:
            is_large = raster.shape[1] * raster.shape[2] > LARGE
            return raster.placed or is_large or raster.dataset.driver not in _PICTURES
        return False  # damaged, as Pillow will say
    with suppress(OSError, Image.DecompressionBombError), Image.open(file) as image:
        return not _PLACING_TAGS.isdisjoint(getattr(image, "tag_v2", ()))
    return True  # open_raster names the missing package


def copy_place(image: Path, labels: Path) -> None:
    """Copy what lies beside an image and says where it lies, for labels (PNG) of its size.

    That is its world file, such as `a.jgw`, and its projection, `a.prj`.
    """
    kind = image.suffix[1:]
    for target, endings in ((".pgw", (f"{kind[:1]}{kind[-1:]}w", f"{kind}w", "wld")), (".prj", ("prj",))):
        names = [name for ending in endings for name in (ending, ending.lower(), ending.upper())]
        if found := next((file for name in names if (file := image.with_suffix(f".{name}")).is_file()), None):
            shutil.copyfile(found, labels.with_suffix(target))
