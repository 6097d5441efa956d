"""Read rasters of any number of bands and type, window by window: GeoTIFF and what else rasterio opens.

rasterio is an optional package, imported when a raster is opened.
"""

import os
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
        shape: Numbers of bands, rows and columns.
        dtype: Type of the values; the common one of all bands.
        crs: Coordinate reference system, rasterio's; None if the file states none.
        transform: Affine map of pixels (column, row) to coordinates, rasterio's; the identity if the file states none.
        nodata: Value of pixels without data; None if the file states none.
        alpha: Number of the band that states opacity; None if there is none.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self._name = dataset, name
        self.shape: tuple[int, int, int] = (dataset.count, dataset.height, dataset.width)
        self.dtype = np.result_type(*dataset.dtypes)
        self.crs, self.transform, self.nodata = dataset.crs, dataset.transform, dataset.nodata
        kinds = [kind.name for kind in dataset.colorinterp]
        self.alpha: int | None = kinds.index("alpha") + 1 if "alpha" in kinds else None

    def _window(self, rows: slice, columns: slice) -> tuple[tuple[int, int], tuple[int, int]]:
        _, height, width = self.shape
        (top, bottom, _), (left, right, _) = rows.indices(height), columns.indices(width)
        return (top, bottom), (left, right)

    def read(
        self, bands: Sequence[int] | None = None, rows: slice = slice(None), columns: slice = slice(None)
    ) -> np.ndarray:
        """Read values (bands, rows, columns) of a region in the file's own type.

        Args:
            bands: Numbers of the bands, from 1. Default: all.
            rows: Rows of the region. Default: all.
            columns: Columns of the region. Default: all.

        Raises:
            ImageError: If the file is damaged there.
            OptionError: If there is no such band.
        """
        count = self.shape[0]
        if bands is not None and not all(1 <= band <= count for band in bands):
            raise OptionError(f"{self._name} has bands 1 to {count}, not all of {', '.join(map(str, bands))}.")
        with _told_as_image_error(self._name):
            return self.dataset.read(None if bands is None else list(bands), window=self._window(rows, columns))

    def valid(
        self, rows: slice = slice(None), columns: slice = slice(None), bands: Sequence[int] | None = None
    ) -> np.ndarray:
        """Read which pixels (rows, columns) of a region hold data, bool: by nodata values, an alpha band, or masks.

        `bands` are those that a model reads: an alpha band among them is data, such as near infrared, which GDAL marks
        as alpha in files of four bands of uint8 by default.
        """
        window = self._window(rows, columns)
        with _told_as_image_error(self._name):
            if bands is not None and {self.alpha} & set(bands):
                return np.ones([stop - start for start, stop in window], bool)
            return self.dataset.dataset_mask(window=window) > 0


@contextmanager
def _told_as_image_error(name: str) -> Iterator[None]:
    from rasterio.errors import RasterioError

    try:
        yield
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split()).removeprefix(f"{name}: ")
        raise ImageError(f"{name} cannot be read as an image: {reason}") from None


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with _told_as_image_error(name):
            dataset = rasterio.open(name)
    with dataset:
        if not dataset.count or any(dtype.startswith("complex") for dtype in dataset.dtypes):
            raise ImageError(f"{name} cannot be read as an image: it has {dataset.count} bands of {dataset.dtypes}.")
        yield Raster(dataset, name)
