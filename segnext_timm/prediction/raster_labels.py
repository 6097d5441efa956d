"""Predict rasters that do not fit memory: regions are read as they are needed, and a GeoTIFF of labels is written.

Labels lie where the image lies. Pixels without data get none: they have the file's nodata value, and are black for the
model.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

from ..errors import ImageError
from ..models.model_info import ModelInfo
from ..models.segmenter import Segmenter, evaluation_mode
from .drawing import list_areas, overlay
from .images import bands_to_read, read_image, scale_values
from .pipeline import predict_pixels
from .rasters import Raster, import_rasterio, open_raster, without_place_warnings

SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img")
ORIGIN = "Predicted with"  # what labels' files say of the model and the options begins with it
_PICTURES = ("GTiff", "JP2OpenJPEG")  # GDAL's names of what Pillow reads, too
_LARGE = 178_956_970  # pixels, of the largest images that Pillow opens
_PLACING_TAGS = {33550, 33922, 34264}  # of GeoTIFF: scale, tie points, transformation
_CACHE_BYTES, _CACHE_ROWS = 1 << 28, 2048  # of GDAL's blocks: bytes, or rows of an image whose blocks are whole rows
_PICTURE_SIDE = 2048  # the longest of overlays
_BLOCK = 512  # side of the blocks of labels' files
_ORIGIN = "TIFFTAG_IMAGEDESCRIPTION"  # key of the metadata


def is_raster(file: Path) -> bool:
    """Whether an image file is georeferenced, or more than Pillow opens: whether :func:`predict_raster` takes it."""
    if file.suffix.lower() not in SUFFIXES:
        return False
    try:
        with open_raster(file) as raster:
            is_large = raster.shape[1] * raster.shape[2] > _LARGE
            return raster.placed or is_large or raster.dataset.driver not in _PICTURES
    except ImageError:
        if find_spec("rasterio"):
            return False  # damaged, as Pillow will say
    try:
        with Image.open(file) as image:
            return not _PLACING_TAGS.isdisjoint(getattr(image, "tag_v2", ()))
    except (OSError, Image.DecompressionBombError):
        return True  # predict_raster names the missing package


def _cache_bytes(raster: Raster) -> int:
    """Memory for blocks: windows read the rows of a file that consists of rows once for each window beside another."""
    count, _, width = raster.shape
    in_rows = raster.dataset.block_shapes[0][1] == width
    return max(_CACHE_BYTES, _CACHE_ROWS * width * count * raster.dtype.itemsize if in_rows else 0)


class RasterPixels:
    """The bands of a raster that a model takes, read region by region: see :class:`.windows.Pixels`."""

    def __init__(self, raster: Raster, info: ModelInfo, device: torch.device) -> None:
        self._raster, self._info, self.device = raster, info, device
        self.bands = bands_to_read(raster, info.in_channels, info.bands)
        if len(self.bands) != info.in_channels and {len(self.bands), info.in_channels} != {1, 3}:
            raise ImageError(
                f"{raster.name}: the model takes {info.in_channels} channels, the image has {len(self.bands)} bands: "
                f'state which it takes, from 1, in pretrained_cfg["bands"].'
            )
        self.shape = (info.in_channels, *raster.shape[1:])

    def holds_data(self, rows: slice, columns: slice) -> bool:
        """Whether a region has a pixel with data."""
        return bool(self.valid(rows, columns).any())

    def valid(self, rows: slice, columns: slice) -> np.ndarray:
        """Read which pixels (rows, columns) hold data."""
        return self._raster.valid(rows, columns, self.bands)

    def crop(self, rows: slice, columns: slice) -> torch.Tensor:
        """Read a region (C, rows, columns), black where it holds no data; colors below alpha stay, as in photos."""
        height, width = (len(range(*part.indices(side))) for part, side in zip((rows, columns), self.shape[1:]))
        if height * width > _LARGE:
            raise ImageError(
                f"{self._raster.name}: {height}×{width} pixels are too many to be read at once, which mode whole, "
                f"scales and fit_in need: resize the file first, as by gdal_translate -of VRT -outsize 50% 50%."
            )
        values, valid = self.colored(self._raster.read(self.bands, rows, columns)), None
        if self._raster.nodata is not None or self._raster.dtype != np.uint8:
            valid = torch.from_numpy(self.valid(rows, columns))
        scaled = scale_values(torch.from_numpy(values), self._info.value_range, valid)
        return read_image(scaled, self._info.in_channels).to(self.device)

    def colored(self, values: np.ndarray) -> np.ndarray:
        """Convert values (1, H, W) of a palette to colors (3, H, W); others (C, H, W) stay."""
        colors = self._raster.colors
        is_index = self._raster.kinds == ["palette"] and self._info.bands
        return values if colors is None or is_index else colors[values[0]].transpose(2, 0, 1).copy()


class LabelRaster:
    """A GeoTIFF of labels that lies where an image lies, written part by part as an array (H, W)."""

    def __init__(self, file: Path, raster: Raster, pixels: RasterPixels, info: ModelInfo, classes: int, origin: str):
        rasterio, source = import_rasterio(file), raster.dataset
        self._pixels, self._nodata = pixels, 255 if classes <= 255 else 65535
        points, points_crs = source.gcps
        place = {"gcps": points, "crs": points_crs} if points else {"crs": raster.crs}
        place |= {} if raster.transform.is_identity else {"transform": raster.transform}
        place |= {"rpcs": source.rpcs} if source.rpcs else {}
        profile = {
            "driver": "GTiff",
            "count": 1,
            "height": raster.shape[1],
            "width": raster.shape[2],
            "dtype": "uint8" if self._nodata == 255 else "uint16",
            "nodata": self._nodata,
            "tiled": True,
            "blockxsize": _BLOCK,
            "blockysize": _BLOCK,
            "compress": "deflate",
            "bigtiff": "if_safer",
        }
        with without_place_warnings():
            self._dataset = rasterio.open(file, "w", **profile, **place)
        self._dataset.write_colormap(1, dict(enumerate(info.palette[: self._nodata])))
        self._dataset.update_tags(**{_ORIGIN: f"{ORIGIN} {origin}"} if origin else {})
        self._dataset.update_tags(1, **{f"LABEL_{label}": name for label, name in enumerate(info.label_names)})

    def __setitem__(self, region: tuple[slice, slice], labels: np.ndarray) -> None:
        (top, bottom, _), (left, right, _) = (part.indices(side) for part, side in zip(region, self._pixels.shape[1:]))
        valid = self._pixels.valid(slice(top, bottom), slice(left, right))
        values = np.where(valid, labels, self._nodata).astype(self._dataset.dtypes[0])
        self._dataset.write(values, 1, window=((top, bottom), (left, right)))

    def close(self) -> None:
        """Write what is left; pixels that no labels were given for get the nodata value."""
        self._dataset.close()


def predict_raster(
    model: nn.Module,
    file: Path,
    labels: Path,
    overlay_file: Path | None = None,
    probabilities: Callable[[tuple[int, int, int]], np.ndarray] | None = None,
    origin: str = "",
    **options: Any,
) -> None:
    """Predict a raster, and write a GeoTIFF of labels, and an overlay of at most 2048 pixels a side.

    Args:
        model: See :func:`predict`, which states what is raised, too.
        file: The image.
        labels: The file to write labels to.
        overlay_file: The file to write the overlay to; None for none.
        probabilities: Returns, for a shape (classes, H, W), the array to write probabilities to.
        origin: Model and options in words, for the metadata of the labels' file.
        options: Others of :func:`predict`.
    """
    segmenter, rasterio = Segmenter(model), import_rasterio(file)
    info = segmenter.info
    with open_raster(file) as raster, rasterio.Env(GDAL_CACHEMAX=_cache_bytes(raster)):
        pixels = RasterPixels(raster, info, next(model.parameters()).device)
        share = min(_PICTURE_SIDE / max(raster.shape[1:]), 1)
        size = max(round(raster.shape[1] * share), 1), max(round(raster.shape[2] * share), 1)
        picture = None
        if overlay_file is not None:
            values, valid = raster.read_reduced(pixels.bands, size)
            picture = torch.from_numpy(np.where(valid, pixels.colored(values), 0))
            read_image(picture, None, info.value_range)  # warns, before the work, of an image that is nearly black
        with ExitStack() as stack, evaluation_mode(model):

            def create(classes: int) -> LabelRaster:
                return stack.enter_context(closing(LabelRaster(labels, raster, pixels, info, classes, origin)))

            shares = (lambda classes: probabilities((classes, *raster.shape[1:]))) if probabilities else None
            predict_pixels(segmenter, pixels, create, shares, **options)
            if not labels.exists():  # no tile holds data
                create(info.num_classes)
        if overlay_file is not None and picture is not None:
            with open_raster(labels) as found:
                drawn, nodata = found.dataset.read(1, out_shape=size), int(found.nodata)
            overlay(picture, drawn, info.label_names, info.palette, nodata=nodata).save(overlay_file, quality=90)


def read_origin(labels: Path) -> str | None:
    """Read from a file of labels what it says of the model and the options; None if nothing."""
    with open_raster(labels) as raster:
        said = raster.dataset.tags().get(_ORIGIN)
        return said.removeprefix(f"{ORIGIN} ") if said and said.startswith(ORIGIN) else None


def raster_areas(labels: Path, names: Sequence[str]) -> dict[str, Any]:
    """Measure a file of labels: `height`, `width` and `classes`, see :func:`class_areas`."""
    with open_raster(labels) as raster:
        _, height, width = raster.shape
        counts = np.zeros(int(raster.nodata) + 1, np.int64)
        for top in range(0, height, _BLOCK):
            counts += np.bincount(raster.read([1], slice(top, top + _BLOCK)).ravel(), minlength=len(counts))
    return {"height": height, "width": width, "classes": list_areas(counts[:-1], names)}
