"""Read rasters of any number of bands and type, window by window: GeoTIFF and what else rasterio opens.

rasterio is an optional package, imported when a raster is opened.
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageError, OptionError


def import_rasterio(file: str | os.PathLike[str]) -> Any:
    """Import rasterio, which a file needs; raise an ImageError that names the package if it is missing."""
    try:
        import rasterio
    except ImportError:
        raise ImageError(f"{file} is read by rasterio, which is not installed: pip install rasterio") from None
    return rasterio


class Raster:
    """An open raster, from :func:`open_raster`. Nothing is read before it is asked for.

    Attributes:
        name: The file's path.
        shape: Numbers of bands, rows and columns.
        dtype: Type of the values; the common one of all bands.
        crs: Coordinate reference system, rasterio's; None if the file states none.
        transform: Affine map of pixels (column, row) to coordinates, rasterio's; the identity if the file states none.
        nodata: Value of pixels without data; None if the file states none.
        alpha: Number of the band that states opacity; None if there is none.
        kinds: What each band is: "red", "gray", "undefined" and others of GDAL.
        colors: Red, green and blue (256, 3), uint8, of each value of a file of one band with a palette, or of gray that
            is inverted or of fewer than 8 bits; else None.
        placed: Whether the file states where it lies: by a transform, a CRS, control points or RPCs.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name
        self.shape: tuple[int, int, int] = (dataset.count, dataset.height, dataset.width)
        self.dtype = np.result_type(*dataset.dtypes)
        self.crs, self.transform, self.nodata = dataset.crs, dataset.transform, dataset.nodata
        if self.crs is None and not self.transform.is_identity:
            self.crs = _read_projection(Path(name).with_suffix(".prj"))
        self.kinds = kinds = [kind.name for kind in dataset.colorinterp]
        self.alpha: int | None = kinds.index("alpha") + 1 if "alpha" in kinds else None
        self.colors: np.ndarray | None = None
        if kinds == ["palette"] and self.dtype == np.uint8:
            palette = dataset.colormap(1)
            self.colors = np.array([palette.get(value, (0, 0, 0))[:3] for value in range(256)], np.uint8)
        elif len(kinds) == 1 and self.dtype == np.uint8:
            key = "IMAGE_STRUCTURE"
            bits, inverted = int(dataset.tags(1, ns=key).get("NBITS", 8)), "MINISWHITE" in dataset.tags(ns=key)
            if 1 < bits < 8 or inverted:
                gray = (np.arange(256) * 255 // (2**bits - 1)).clip(0, 255).astype(np.uint8)
                self.colors = np.stack([255 - gray if inverted else gray] * 3, -1)
        self.placed = bool(not self.transform.is_identity or self.crs or dataset.gcps[0] or dataset.rpcs)
        flags = (flag.name for band in dataset.mask_flag_enums for flag in band)
        self._masked = self.dtype.kind == "f" or any(flag != "all_valid" for flag in flags)

    def _window(self, rows: slice, columns: slice) -> tuple[tuple[int, int], tuple[int, int]]:
        _, height, width = self.shape
        (top, bottom, _), (left, right, _) = rows.indices(height), columns.indices(width)
        return (top, bottom), (left, right)

    def read(
        self, bands: Sequence[int] | None = None, rows: slice = slice(None), columns: slice = slice(None)
    ) -> np.ndarray:
        """Read values (bands, rows, columns) of a region in the file's own type; bands are numbered from 1.

        Raises:
            ImageError: If the file is damaged there.
            OptionError: If there is no such band.
        """
        count = self.shape[0]
        if bands is not None and not all(1 <= band <= count for band in bands):
            raise OptionError(f"{self.name} has bands 1 to {count}, not all of {', '.join(map(str, bands))}.")
        with _told_as_image_error(self.name):
            numbers = list(bands or range(1, count + 1))
            return self._read(numbers, window=self._window(rows, columns))

    def _read(self, bands: list[int], **options: Any) -> np.ndarray:
        if len({*self.dataset.dtypes}) == 1:
            return self.dataset.read(bands, **options)
        return np.stack([self.dataset.read(band, **options) for band in bands]).astype(self.dtype)

    def valid(
        self, rows: slice = slice(None), columns: slice = slice(None), bands: Sequence[int] | None = None
    ) -> np.ndarray:
        """Read which pixels (rows, columns) of a region hold data, bool: by nodata values, NaN, alpha, or masks.

        `bands` are those that a model reads: an alpha band among them is data, such as near infrared, which GDAL marks
        as alpha in files of four bands of uint8 by default.
        """
        window = self._window(rows, columns)
        if not self._masked:
            return np.ones([stop - start for start, stop in window], bool)
        if bands is not None and self.alpha in bands:
            values = self.read(bands, rows, columns)
            return np.asarray(~self._lacks_data(values).all(0))
        with _told_as_image_error(self.name):
            found = self.dataset.dataset_mask(window=window) > 0
        if self.dtype.kind == "f":
            found &= ~np.isnan(self.read(bands, rows, columns)).any(0)
        return found

    def _lacks_data(self, values: np.ndarray) -> np.ndarray:
        absent = np.nan if self.nodata is None else self.nodata
        return np.isnan(values) if np.isnan(absent) else np.equal(values, absent)

    def read_reduced(self, bands: Sequence[int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Read mean values (bands, H, W) of the whole image at a reduced size, and which pixels hold data."""
        from rasterio.enums import Resampling

        with _told_as_image_error(self.name):
            way = Resampling.average if self.colors is None else Resampling.nearest
            values = self._read(list(bands), out_shape=size, resampling=way)
            valid = self.dataset.dataset_mask(out_shape=size) > 0
        if self.alpha in bands:
            valid = ~self._lacks_data(values).all(0)
        return values, valid & ~np.isnan(values).any(0)

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


def _read_projection(file: Path) -> Any:
    """Read the CRS of a file of its own, as comes with a world file; None if there is none."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return CRS.from_wkt(file.read_text(encoding="utf-8", errors="replace"), morph_from_esri_dialect=True)
    except (OSError, CRSError):
        return None


@contextmanager
def _told_as_image_error(name: str) -> Iterator[None]:
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split()).removeprefix(f"{name}: ")
        raise ImageError(f"{name} cannot be read as an image: {reason}") from None


@contextmanager
def without_place_warnings() -> Iterator[None]:
    """Silence rasterio's warning of files that state no place."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def open_raster(file: str | os.PathLike[str]) -> Iterator[Raster]:
    """Open a raster file for the block.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageError: If rasterio is missing, or cannot read the file, or its values are complex numbers.
    """
    rasterio = import_rasterio(file)
    name = os.fspath(file)
    if not Path(name).exists():
        raise FileNotFoundError(f"{name}: no such file.")
    with without_place_warnings(), _told_as_image_error(name):
        dataset = rasterio.open(name)
    with dataset:
        if not dataset.count or any(dtype.startswith("complex") for dtype in dataset.dtypes):
            raise ImageError(f"{name} cannot be read as an image: it has {dataset.count} bands of {dataset.dtypes}.")
        yield Raster(dataset, name)


def copy_place(image: Path, labels: Path) -> None:
    """Copy what lies beside an image and says where it lies, for labels (PNG) of its size.

    That is its world file, such as `a.jgw`, and its projection, `a.prj`.
    """
    kind = image.suffix[1:]
    worlds = [f".{ending}" for ending in (f"{kind[:1]}{kind[-1:]}w", f"{kind}w", "wld")]
    for endings, target in ((worlds, ".pgw"), ([".prj"], ".prj")):
        names = (image.with_suffix(case) for end in endings for case in (end, end.lower(), end.upper()))
        if found := next((name for name in names if name.is_file()), None):
            shutil.copyfile(found, labels.with_suffix(target))
