"""Write labels as polygons: GeoJSON in longitude and latitude (WGS 84), or COCO, LabelMe or YOLO in pixels.

Corners lie on the edges of pixels. The pixel forms have no holes: a bridge of no width joins a hole to the outline on
its left. It is horizontal, on edges of pixels too, so that the filled outline is the area without the hole.
"""

import json
import math
import os
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._atomic import replace_when_complete
from ..errors import ImageError, OptionError
from ..models.model_info import ModelInfo
from .drawing import NAME
from .raster_labels import SOFTWARE
from .rasters import Raster, import_rasterio, open_raster

Form = Literal["geojson", "coco", "labelme", "yolo"]

ENDINGS = {"geojson": ".geojson", "labelme": ".json", "yolo": ".txt"}
COMMON = {"coco": "annotations.json", "labelme": "classes.txt", "yolo": "data.yaml"}  # files of all images
_EQUAL_AREA = "EPSG:6933"  # a projection of the whole Earth in which areas are true, in meters
_BATCH = 1000  # polygons that are projected at once
_LONGEST_EDGE = 256  # pixels; longer edges get points in between, since straight lines of a projection are curves
_DEGREES = "EPSG:4326"  # longitude and latitude, WGS 84
_DIGITS = 8  # of degrees: a millimeter


def check_options(simplify: float = 0) -> None:
    """Raise an OptionError if the tolerance is invalid, or a package that polygons need is missing."""
    if not 0 <= simplify < math.inf:
        raise OptionError(f"simplify must be a number of pixels from 0 on, got {simplify}")
    if not (find_spec("rasterio") and find_spec("shapely")):
        raise OptionError("Polygons need rasterio and shapely: pip install rasterio shapely")


def check_place(file: Path) -> None:
    """Raise an ImageError if an image does not state where on Earth it lies, as GeoJSON needs."""
    rasterio = import_rasterio(file)
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


def write_polygons(labels: Path, file: Path, info: ModelInfo, simplify: float = 0, image: Path | None = None) -> None:
    """Write a file of labels as polygons, one for each connected area of a class, in the form that `file` ends with.

    `.geojson` takes a GeoTIFF; features have the properties `label`, `name` and `square_meters`. `.json` is LabelMe's
    file of `image`, `.txt` YOLO's. The background of a binary model is left out. GDAL holds all polygons in memory.
    `simplify` is a tolerance in pixels: polygons stay valid, but neighbors may overlap, or leave gaps between them.
    """
    with open_raster(labels) as raster, replace_when_complete(file) as new, new.open("w", encoding="utf-8") as written:
        traced, (height, width) = trace(raster.dataset.read(1), info, simplify, raster.nodata), raster.shape[1:]
        if file.suffix == ENDINGS["yolo"]:
            for label, polygon in traced:
                shares = (bridge_holes(polygon) / (width, height)).ravel()
                print(label, *(f"{share:.6f}" for share in shares), file=written)
            return
        head: dict[str, Any] = {"type": "FeatureCollection", SOFTWARE: f"{NAME}: polygons", "features": []}
        entries = _features(raster, info, simplify)
        if file.suffix == ENDINGS["labelme"]:
            source, here, names = (image or labels).absolute(), file.parent.absolute(), info.label_names
            place = Path(os.path.relpath(source, here) if source.drive == here.drive else source).as_posix()
            head = {SOFTWARE: f"{NAME}: labelme", "version": "6.0.0", "flags": {}, "imagePath": place}
            head |= {"imageData": None, "imageHeight": height, "imageWidth": width, "shapes": []}
            shapes = ((names[label], bridge_holes(polygon).tolist()) for label, polygon in traced)
            entries = ({"label": name, "points": points, "shape_type": "polygon"} for name, points in shapes)
        written.write(json.dumps(head, ensure_ascii=False)[:-2])  # one line, which tells whose the file is
        for number, entry in enumerate(entries):
            written.write((",\n" if number else "\n") + json.dumps(entry, ensure_ascii=False))
        written.write("\n]}\n")


def write_names(out: Path, save_as: Form, info: ModelInfo) -> dict[str, Any]:
    """Write the names of the classes for LabelMe or YOLO; return the content of a COCO file without images.

    An OptionError is raised if the file is there, of other classes or by another program.
    """
    names, file = info.label_names, out / COMMON[save_as]
    coco = {"info": {"description": NAME}, "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)]}
    texts = {"coco": json.dumps(coco)[:-1], "labelme": "\n".join([*names, ""])}
    text = texts.get(save_as) or f"names: {json.dumps(names, ensure_ascii=False)}\n"
    if file.exists() and not file.read_text(encoding="utf-8").startswith(text):
        raise OptionError(f"{file} is not of these classes, {', '.join(names[:5])}: choose another folder.")
    if not (file.exists() or save_as == "coco"):
        with replace_when_complete(file) as new:
            new.write_text(text, encoding="utf-8")
    return coco


def add_to_coco(content: dict[str, Any], labels: Path, name: str, info: ModelInfo, simplify: float = 0) -> None:
    """Add the labels of an image to the content of a COCO file, see :func:`write_names`."""
    images, annotations = content.setdefault("images", []), content.setdefault("annotations", [])
    image: dict[str, Any] = {"id": len(images) + 1, "file_name": name}
    with open_raster(labels) as raster:
        image |= {"height": raster.shape[1], "width": raster.shape[2]}
        added = []
        traced = trace(raster.dataset.read(1), info, simplify, raster.nodata)
        for number, (label, polygon) in enumerate(traced, len(annotations) + 1):
            (left, top, right, bottom), outline = polygon.bounds, bridge_holes(polygon).ravel().tolist()
            shape = {"segmentation": [outline], "bbox": [left, top, right - left, bottom - top], "area": polygon.area}
            added.append({"id": number, "image_id": image["id"], "category_id": label + 1, "iscrowd": 0} | shape)
    images.append(image)
    annotations += added


def bridge_holes(polygon: Any) -> np.ndarray:
    """Join the outline and the holes of a shapely polygon to one outline (N, 2), by horizontal bridges of no width."""
    outline, *holes = (np.array(ring.coords)[:-1] for ring in (polygon.exterior, *polygon.interiors))
    for hole in sorted(holes, key=lambda points: points[:, 0].min()):  # what lies to the left of one is joined already
        hole = np.roll(hole, -hole[:, 0].argmin(), axis=0)
        (x, y), ends = hole[0], np.roll(outline, -1, axis=0)
        start, end = outline[:, 1] - y, ends[:, 1] - y
        edges = np.flatnonzero((start * end <= 0) & (start != end))
        (x1, y1), (x2, y2) = outline[edges].T, ends[edges].T
        met = x1 + (y - y1) * (x2 - x1) / (y2 - y1)
        met[met > x] = -np.inf
        cut, foot = edges[met.argmax()] + 1, [(met.max(), y)]
        outline = np.concatenate([outline[:cut], foot, hole, hole[:1], foot, outline[cut:]])
    return outline


def trace(labels: Any, info: ModelInfo, simplify: float = 0, nodata: float | None = None) -> Iterator[tuple[int, Any]]:
    """Trace labels (H, W), or a band in its coordinates: label and shapely polygon of each area but `nodata`."""
    import rasterio.features
    import shapely

    for outline, label in rasterio.features.shapes(labels, connectivity=4):
        if (info.num_classes == 1) <= label != nodata:
            polygon = shapely.geometry.polygon.orient(shapely.geometry.shape(outline))  # holes run the other way
            yield int(label), shapely.simplify(polygon, simplify) if simplify else polygon


def _features(raster: Raster, info: ModelInfo, simplify: float) -> Iterator[dict[str, Any]]:
    import rasterio
    import shapely

    names, pixel = info.label_names, abs(raster.transform.determinant) ** 0.5
    traced = trace(rasterio.band(raster.dataset, 1), info, simplify * pixel, raster.nodata)

    def project(polygons: np.ndarray, crs: str) -> np.ndarray:
        return shapely.transform(polygons, lambda points: raster.project(crs, *points.T).T)

    while batch := list(islice(traced, _BATCH)):
        polygons = shapely.segmentize(np.array([polygon for _, polygon in batch]), _LONGEST_EDGE * pixel)
        areas = shapely.area(project(polygons, _EQUAL_AREA))
        degrees = shapely.transform(project(polygons, _DEGREES), lambda points: points.round(_DIGITS))
        for (label, _), polygon, area in zip(batch, degrees, areas):
            name = names[label] if label < len(names) else f"class {label}"
            yield {
                "type": "Feature",
                "properties": {"label": label, "name": name, "square_meters": round(float(area), 3)},
                "geometry": shapely.geometry.mapping(polygon),
            }
