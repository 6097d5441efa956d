"""Write the labels of a georeferenced image as polygons: GeoJSON in longitude and latitude (WGS 84)."""

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .._atomic import replace_when_complete
from ..errors import ImageError, OptionError
from ..models.model_info import ModelInfo
from .drawing import NAME
from .raster_labels import SOFTWARE
from .rasters import Raster, import_rasterio, open_raster

_EQUAL_AREA = "EPSG:6933"  # a projection of the whole Earth in which areas are true, in meters
_BATCH = 1000  # polygons that are projected at once
_LONGEST_EDGE = 256  # pixels; longer edges get points in between, since straight lines of a projection are curves
_DEGREES = "EPSG:4326"  # longitude and latitude, WGS 84
_DIGITS = 8  # of degrees: a millimeter


def check_polygons(file: Path, simplify: float = 0) -> None:
    """Check before the work begins whether polygons of an image's labels can be written.

    Raises:
        OptionError: If the tolerance is invalid.
        ImageError: If a package is missing, or the image does not state where on Earth it lies.
    """
    if not 0 <= simplify < math.inf:
        raise OptionError(f"simplify must be a number of pixels from 0 on, got {simplify}")
    rasterio = import_rasterio(file)
    try:
        import shapely  # noqa: F401
    except ImportError:
        raise ImageError(f"{file}: polygons need shapely, which is not installed: pip install shapely") from None
    with open_raster(file) as raster:
        if raster.dataset.gcps[0]:
            raise ImageError(f"{file} is placed by control points, but GeoJSON needs a transform: rectify it first.")
        _, height, width = raster.shape
        share = np.linspace(0.001, 0.999, 99)  # the edges, clockwise
        start, end = np.zeros_like(share), np.ones_like(share)
        across, down = [share, end, share[::-1], start], [start, share, end, share[::-1]]
        rows, columns = np.concatenate(down) * height, np.concatenate(across) * width
        xs, ys = rasterio.transform.xy(raster.transform, rows, columns, offset="ul")
        raster.project(_EQUAL_AREA, xs, ys)
        longitudes, _ = raster.project(_DEGREES, xs, ys)
        if abs(np.diff(longitudes)).max() > 180 or abs(longitudes).max() > 180.001:
            raise ImageError(
                f"{file} crosses longitude 180 or lies around a pole, which GeoJSON cannot say: cut it first."
            )


def write_polygons(labels: Path, file: Path, info: ModelInfo, simplify: float = 0) -> None:
    """Write a GeoTIFF of labels as GeoJSON: a feature for each connected area of a class, with holes.

    Properties are `label`, `name` and `square_meters`. The background of a binary model is left out. GDAL holds all
    polygons in memory, not the labels. `simplify` is a tolerance in pixels: every polygon stays valid, but neighbors
    may overlap, or leave gaps between them.
    """
    with open_raster(labels) as raster, replace_when_complete(file) as new, new.open("w", encoding="utf-8") as written:
        written.write(f'{{"type": "FeatureCollection", "{SOFTWARE}": "{NAME}: polygons", "features": [')
        separator = "\n"
        for feature in _features(raster, info, simplify):
            written.write(separator + json.dumps(feature, ensure_ascii=False))
            separator = ",\n"
        written.write("\n]}\n")


def _features(raster: Raster, info: ModelInfo, simplify: float) -> Iterator[dict[str, Any]]:
    import rasterio
    import shapely
    from rasterio.features import shapes

    names, first = info.label_names, int(info.num_classes == 1)
    pixel = abs(raster.transform.determinant) ** 0.5
    found = shapes(rasterio.band(raster.dataset, 1), connectivity=4)  # in the raster's coordinates
    kept = ((outline, int(label)) for outline, label in found if first <= label != raster.nodata)

    def project(polygons: np.ndarray, crs: str) -> np.ndarray:
        return shapely.transform(polygons, lambda points: raster.project(crs, *points.T).T)

    while batch := list(islice(kept, _BATCH)):
        polygons = np.array([shapely.geometry.shape(outline) for outline, _ in batch])
        polygons = shapely.simplify(polygons, simplify * pixel) if simplify else polygons
        polygons = shapely.segmentize(polygons, _LONGEST_EDGE * pixel)
        areas = shapely.area(project(polygons, _EQUAL_AREA))
        degrees = shapely.transform(project(polygons, _DEGREES), lambda points: points.round(_DIGITS))
        for (_, label), polygon, area in zip(batch, degrees, areas):
            name = names[label] if label < len(names) else f"class {label}"
            yield {
                "type": "Feature",
                "properties": {"label": label, "name": name, "square_meters": round(float(area), 3)},
                "geometry": shapely.geometry.mapping(shapely.geometry.polygon.orient(polygon)),
            }
