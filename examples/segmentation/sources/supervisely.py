"""Projects of Supervisely in its own format."""

import base64
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated as Named
from typing import Any

import numpy as np
import tyro
from PIL import Image

from ..mask_labels import UnusableError
from ..progress import progress_bar
from ..recipe import UserError
from .reading import FAULTS, Painted, Reading, Target, read_json
from .regions import POINT_RADIUS, Annotated, Region, box, fill_polygon, has_area, outline, square_around, stroke


@dataclass
class Supervisely(Painted):
    """A project of Supervisely: polygons with holes, bitmaps and rectangles.

    Later objects lie on top. Lines, points, cuboids and graphs are left out of training.
    """

    source: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="SOURCE")]]
    """Folder of the project, with meta.json and folders img and ann in each data set."""
    target: Target
    """Data folder to make."""

    def read(self) -> Reading:
        files = sorted(self.source.rglob("ann/*.json"))
        if not (self.source / "meta.json").is_file() or not files:
            raise UserError(f"{self.source} is not a project of Supervisely: it has no meta.json, or no ann/*.json.")
        try:
            names = [str(one["title"]).strip() for one in read_json(self.source / "meta.json")["classes"]]
        except FAULTS as error:
            raise UserError(f"{self.source / 'meta.json'} has no classes: {error!r}") from None
        reading = Reading(names=names)
        for path in progress_bar(files, desc="read annotations", unit="file", leave=False):
            image = path.parent.parent / "img" / path.stem  # a.jpg.json
            item = Annotated((path.parent.parent / path.stem).relative_to(self.source).as_posix(), image)
            reading.items.append(item)
            try:
                content = read_json(path)
                item.size = (int(content["size"]["height"]), int(content["size"]["width"]))
                objects = list(content["objects"])
            except (UserError, *FAULTS) as error:
                reading.skipped[item.name] = UnusableError("annotation files cannot be read", f"{path.name}: {error!r}")
                continue
            for one in objects:
                try:
                    _add(one, names, item, reading)
                except (*FAULTS, zlib.error) as error:
                    points = one.get("points") if isinstance(one, dict) else None
                    number = one.get("id") if isinstance(one, dict) else one
                    reading.fault(item, f"object {number}", error, square_around(_lists(points)))
        return reading.finish(self.source)


def _lists(points: Any) -> list[Any]:
    return list(points.values()) if isinstance(points, dict) else []


def _add(one: dict[str, Any], names: list[str], item: Annotated, reading: Reading) -> None:
    """Add the region of an object.

    Raises:
        ValueError: If it is not of a known form, or some other of `FAULTS`.
    """
    name, kind = str(one["classTitle"]).strip(), one["geometryType"]
    if name not in names:
        raise ValueError(f"its class {name!r} is not in meta.json")
    if kind in ("bitmap", "alpha_mask"):
        content = base64.b64decode(one["bitmap"]["data"])
        picture = Image.open(io.BytesIO(zlib.decompress(content)))
        inside = np.asarray(picture.convert("RGBA"))[..., 3] if picture.has_transparency_data else picture.convert("L")
        left, top = (int(side) for side in one["bitmap"]["origin"])
        item.regions.append(Region(name, mask=(np.asarray(inside) > 0, left, top)))
        return
    if kind not in ("polygon", "rectangle", "line", "point"):
        known = [np.reshape(corner, (-1, 2)) for corner in _lists(one.get("points")) if np.size(corner)]
        if not known:
            raise ValueError(f"the place of a {kind} is not known")
        corners = outline(np.concatenate(known))
        reading.leave_out(item, f"objects of {name} are drawn as {kind}", [box(*corners.min(0), *corners.max(0))])
        return
    points = outline(one["points"]["exterior"])
    holes = [outline(hole) for hole in one["points"].get("interior") or []]
    if kind == "rectangle":
        points = box(*points.min(0), *points.max(0) + 1)  # Supervisely counts the last row and column
    else:
        points, holes = points + 0.5, [hole + 0.5 for hole in holes]  # its points are centers of pixels
    if kind in ("line", "point") or not has_area(points):
        width = 2 * POINT_RADIUS if kind == "point" else one.get("lineWidth") or 2 * POINT_RADIUS
        reading.leave_out(item, f"objects of {name} are drawn as {kind}, without an area", stroke(points, width))
    elif holes:
        item.regions.append(_with_holes(name, points, holes))
    else:
        item.regions.append(Region(name, [points]))


def _with_holes(name: str, points: np.ndarray, holes: list[np.ndarray]) -> Region:
    """The mask of a polygon without its holes."""
    left, top = np.floor(points.min(0)).astype(int)
    width, height = np.ceil(points.max(0)).astype(int) - (left, top)
    mask = np.zeros((height, width), np.uint8)
    fill_polygon(mask, points - (left, top), 1)
    for hole in holes:
        fill_polygon(mask, hole - (left, top), 0)
    return Region(name, mask=(mask > 0, int(left), int(top)))
