"""LabelMe JSON files, and those of tools that write the same form."""

import base64
import io
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
from .reading import FAULTS, ImageFolder, Painted, Reading, Target, near, read_json
from .regions import IGNORE, POINT_RADIUS, Annotated, Region, box, ellipse, has_area, outline, square_around, stroke

_OUTLINES = ("polygon", "rectangle", "oriented_rectangle", "rotation", "quadrilateral")
_OF_ALL_IMAGES = ("areas.json", "annotations.json")  # which `segnext-timm predict` writes beside LabelMe's files
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass
class LabelMe(Painted):
    """LabelMe JSON files: polygons, rectangles, circles and masks.

    Later shapes lie on top of earlier ones. Lines and points are left out of training, as wide as LabelMe draws them.
    """

    source: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="SOURCE")]]
    """Folder of the JSON files, with the images beside them or inside."""
    target: Target
    """Data folder to make."""
    images: Path | None = None
    """Folder of the images, if they are not where the files say."""

    def read(self) -> Reading:
        if not self.source.is_dir():
            raise UserError(f"{self.source} is not a folder: name the one of LabelMe's JSON files.")
        hidden, files = self.target.absolute(), sorted(self.source.rglob("*.json"))
        files = [path for path in files if path.name[0] != "." and not path.absolute().is_relative_to(hidden)]
        files = [path for path in files if path.name not in _OF_ALL_IMAGES]
        if not files:
            raise UserError(f"{self.source} holds no JSON files of LabelMe.")
        folder, reading = ImageFolder(self.images or self.source, self.target), Reading()
        for path in progress_bar(files, desc="read annotations", unit="file", leave=False):
            name = path.relative_to(self.source).as_posix()
            try:
                _read_file(path, name, folder, reading)
            except UserError as error:
                reason = str(error).removeprefix(f"{path} ")
                reading.skipped[name] = UnusableError("JSON files cannot be read as LabelMe's", reason)
        for item in reading.items:
            if not (item.embedded or item.image.is_file()):
                reason = f"{item.image.name} is not there: give the folder of the images by --images"
                reading.skipped[item.name] = UnusableError("images do not exist", reason)
        return reading.finish(self.source, folder)


def embedded_image(path: Path) -> bytes:
    """The image file that a LabelMe file holds."""
    return base64.b64decode(read_json(path)["imageData"].split(",")[-1])


def _read_file(path: Path, name: str, folder: ImageFolder, reading: Reading) -> None:
    """Add the image of a file, with its regions.

    Raises:
        UserError: If it is another kind of file.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{path} is not a LabelMe file: it has no shapes.")
    try:
        image, embedded = _image(path, content, folder)
        height, width = (int(float(content.get(side) or 0)) for side in ("imageHeight", "imageWidth"))
    except FAULTS as error:
        raise UserError(f"{path} does not say which image it is of: {error}.") from None
    item = Annotated(name, image, (height, width) if height > 0 and width > 0 else None, embedded=embedded)
    reading.items.append(item)
    for number, shape in enumerate(content["shapes"], 1):
        try:
            _add(shape, item, reading)
        except FAULTS as error:
            points = shape.get("points") if isinstance(shape, dict) else None
            label = f" ({shape.get('label')})" if isinstance(shape, dict) else ""
            reading.fault(item, f"shape {number}{label}", error, square_around(points))


def _image(path: Path, content: dict[str, Any], folder: ImageFolder) -> tuple[Path, Path | None]:
    """The image file of a LabelMe file, and that file itself if it holds the image.

    Raises:
        ValueError: If several images have the name.
    """
    name = content.get("imagePath") or f"{path.stem}.png"
    if found := near(name, path.parent):
        return found, None
    if content.get("imageData"):
        return path.parent / Path(name.replace("\\", "/")).name, path
    found = near(name, path.parent.parent, least=2) or folder.find(name)
    if not found.is_file():  # renamed together
        same = [other for other in path.parent.glob("*") if other.stem == path.stem]
        found = next((other for other in same if other.suffix.lower() in _IMAGES), found)
    return found, None


def _add(shape: dict[str, Any], item: Annotated, reading: Reading) -> None:
    """Add the region of a shape.

    Raises:
        ValueError: If it is not of a known form, or some other of `FAULTS`.
    """
    label, kind = shape.get("label"), shape.get("shape_type") or "polygon"
    name = "" if label is None else str(label).strip()
    points = outline(shape["points"])
    if not name:
        reading.left_out["shapes have no label"] += 1
        name = IGNORE
    if kind == "mask" and shape.get("mask"):
        content = base64.b64decode(shape["mask"].split(",")[-1])
        mask = np.asarray(Image.open(io.BytesIO(content)).convert("L")) > 0
        left, top = points[0].astype(int).tolist()
        item.regions.append(Region(name, mask=(mask, left, top)))
    elif kind == "circle" and len(points) == 2:
        radius = float(np.hypot(*(points[1] - points[0])))
        item.regions.append(Region(name, [ellipse(*points[0], radius, radius)]))
    elif kind == "rectangle" and len(points) == 2:
        item.regions.append(Region(name, [box(*points.min(0), *points.max(0))]))
    elif kind in _OUTLINES and has_area(points):
        item.regions.append(Region(name, [points]))
    elif not len(points):
        raise ValueError("it has no points")
    elif kind in (*_OUTLINES, "circle", "line", "linestrip"):
        reading.leave_out(item, f"shapes of the type {kind} have no area", stroke(points))
    elif kind in ("point", "points"):
        dots = [part for point in points for part in stroke(point[None], 2 * POINT_RADIUS)]
        reading.leave_out(item, f"shapes of the type {kind} have no area", dots)
    else:
        around = [box(*points.min(0), *points.max(0))]
        reading.leave_out(item, f"shapes are of the type {kind}, which is not known", around)
