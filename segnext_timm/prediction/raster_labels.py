"""Predict rasters that do not fit memory: regions are read as they are needed, and a GeoTIFF of labels is written.

Labels lie where the image lies. Pixels without data get none: they have the file's nodata value, and are black for the
model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from ..errors import ImageError
from ..models.model_info import ModelInfo
from ..models.segmenter import Segmenter, evaluation_mode
from .drawing import add_legend, list_areas, overlay, save_overlay
from .images import Values, bands_to_read, read_image, read_region, to_input
from .pipeline import check_model, fit, predict_pixels
from .rasters import LARGE, Raster, import_rasterio, named, open_dataset, open_raster
from .windows import Pixels

ORIGIN, SOFTWARE = "Predicted with", "Software"  # keys of metadata: model and options; this package and what it wrote
_CACHE_BYTES = 1 << 29  # of GDAL's blocks: rows of files that consist of rows are read once for windows side by side
_PICTURE_SIDE = 2048  # the longest of overlays
_BLOCK = 512  # side of the blocks of labels' files


class RasterPixels(Pixels):
    """The bands of a raster that a model takes, read region by region."""

    def __init__(self, raster: Raster, info: ModelInfo, device: torch.device) -> None:
        self._raster, self._info, self.device = raster, info, device
        with named(raster.name, ImageError):
            raster.bands = bands_to_read(raster.kinds, info.bands, info.in_channels)
        self.shape = (info.in_channels, *raster.shape[1:])
        self.crop(slice(1), slice(1))  # refuses other numbers of bands

    def holds_data(self, rows: slice, columns: slice) -> bool:
        """Whether a region has a pixel with data."""
        return bool(self._raster.valid(rows, columns).any())

    def crop(self, rows: slice, columns: slice) -> torch.Tensor:
        """Read a region (C, rows, columns), black where it holds no data."""
        height, width = (len(range(*part.indices(side))) for part, side in zip((rows, columns), self.shape[1:]))
        with named(self._raster.name, ImageError):
            if height * width > LARGE:
                raise ImageError(
                    f"{height}×{width} pixels are too many to be read at once, which mode whole, scales and fit_in "
                    f"need: resize the file first, as by gdal_translate -of VRT -outsize 50% 50%."
                )
            pixels = to_input(read_region(self._raster, rows, columns), self._info.in_channels, self._info.value_range)
        return pixels.to(self.device)


class LabelRaster:
    """A GeoTIFF of labels that lies where an image lies, written part by part as an array (H, W)."""

    def __init__(self, file: Path, raster: Raster, info: ModelInfo, classes: int, tags: dict[str, str]) -> None:
        self._raster, self._nodata, (points, crs) = raster, 255 if classes <= 255 else 65535, raster.dataset.gcps
        shape = {"count": 1, "height": raster.shape[1], "width": raster.shape[2], "nodata": self._nodata}
        blocks = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate"}
        place = {"crs": crs, "gcps": points} if points else {"crs": raster.crs}
        place |= {"rpcs": raster.dataset.rpcs, "transform": None if raster.transform.is_identity else raster.transform}
        dtype = "uint8" if self._nodata == 255 else "uint16"
        profile = {"driver": "GTiff", "dtype": dtype, "bigtiff": "if_safer", **shape, **blocks, **place}
        self.dataset = open_dataset(file, "w", **profile)
        self.dataset.write_colormap(1, dict(enumerate(info.palette[: self._nodata])))
        self.dataset.update_tags(**tags)
        self.dataset.update_tags(1, **{f"LABEL_{label}": name for label, name in enumerate(info.label_names)})

    def __setitem__(self, region: tuple[slice, slice], labels: np.ndarray) -> None:
        values = np.where(self._raster.valid(*region), labels, self._nodata).astype(self.dataset.dtypes[0])
        self.dataset.write(values, 1, window=self._raster.window(*region))


def predict_raster(
    model: nn.Module, file: Path, labels: Path, picture: Path | None, create: Any, tags: dict[str, str], **options: Any
) -> dict[str, Any]:
    """Predict a raster, and write a GeoTIFF of labels, and an overlay of at most 2048 pixels a side: `picture`.

    Returns what :func:`raster_areas` does. `create`, if wanted, makes the array of probabilities from its shape.
    """
    options["fit_in"] = None if (sides := options.get("fit_in")) == "auto" else sides  # pixels have sizes on the ground
    segmenter, environment = Segmenter(model), import_rasterio(file).Env
    info = segmenter.info
    with open_raster(file) as raster, environment(GDAL_CACHEMAX=_CACHE_BYTES):
        pixels, shape = RasterPixels(raster, info, check_model(model)), raster.shape[1:]
        size = fit(shape, _PICTURE_SIDE, _PICTURE_SIDE) if max(shape) > _PICTURE_SIDE else shape
        if picture is not None:
            reduced = torch.from_numpy(np.where(raster.valid(size=size), raster.read(size=size), 0))
            read_image(Values(reduced), None, info.value_range)  # warns, before the work, of a nearly black image
        with ExitStack() as stack, evaluation_mode(model):

            def create_labels(classes: int) -> LabelRaster:
                made = LabelRaster(labels, raster, info, classes, tags)
                stack.enter_context(made.dataset)  # its end writes what is left, and nodata where no labels were given
                return made

            written, _ = predict_pixels(segmenter, pixels, create_labels, create, **options)
            if written is None:  # no tile holds data
                create_labels(info.num_classes)
    areas = raster_areas(labels, info.label_names)
    if picture is not None:
        with open_raster(labels) as found:
            drawn = overlay(reduced, found.dataset.read(1, out_shape=size), palette=info.palette, legend=False)
        save_overlay(add_legend(drawn, areas["classes"], info.palette), picture)
    return areas


def raster_areas(labels: Path, names: Sequence[str]) -> dict[str, Any]:
    """Measure a file of labels: `height`, `width` and `classes`, see :func:`class_areas`."""
    with open_raster(labels) as raster:
        _, height, width = raster.shape
        counts = np.zeros(int(raster.nodata) + 1, np.int64)
        for _, window in raster.dataset.block_windows(1):
            counts += np.bincount(raster.dataset.read(1, window=window).ravel(), minlength=len(counts))
    return {"height": height, "width": width, "classes": list_areas(counts[:-1], names)}
