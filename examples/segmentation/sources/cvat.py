"""XML files of CVAT, in its form "CVAT for images 1.1"."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from ..mask_labels import UnusableError
from ..recipe import UserError
from .reading import FAULTS, Annotations, ImageFolder, Images, Painted, Reading, Target
from .regions import POINT_RADIUS, Annotated, Region, box, ellipse, has_area, outline, square_around, stroke

Element = ElementTree.Element


@dataclass
class Cvat(Painted):
    """An XML file of CVAT ("CVAT for images 1.1"): polygons, boxes, ellipses and masks.

    Objects of a higher z_order lie on top. Polylines, points, cuboids and skeletons are left out of training.
    """

    images: Images
    """Folder of the images."""
    annotations: Annotations
    """The XML file, annotations.xml."""
    target: Target
    """Data folder to make."""

    def read(self) -> Reading:
        folder = ImageFolder(self.images, self.target)
        try:
            root = ElementTree.parse(self.annotations).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise UserError(f"{self.annotations} cannot be read as XML: {error}. It has to be unpacked.") from None
        if root.find("track") is not None:
            raise UserError(
                f"{self.annotations} holds tracks of a video: export the task as 'CVAT for images 1.1', which has the "
                "frames as images."
            )
        if root.tag != "annotations" or root.find("image") is None:
            raise UserError(f"{self.annotations} is not a file of the form 'CVAT for images 1.1': it has no images.")
        reading = Reading()
        for element in root.iter("image"):
            _read_image(element, folder, reading)
        listed = [
            label.findtext("name", "").strip() for label in root.findall("meta//labels/label") if _is_class(label)
        ]
        found = {region.name for item in reading.items for region in item.regions}
        reading.names = [*listed, *sorted(found - set(listed))]
        return reading.finish(self.annotations, folder)


def _is_class(label: Element) -> bool:
    """Whether objects of a label may have an area; the points of a skeleton are labels with a parent."""
    return label.find("parent") is None and label.findtext("type", "any") not in (
        "tag",
        "points",
        "polyline",
        "skeleton",
    )


def _read_image(element: Element, folder: ImageFolder, reading: Reading) -> None:
    """Add an image with its regions, those of a higher z_order last."""
    name = element.get("name", "")
    try:
        path = folder.find("/".join(filter(None, (element.get("subset"), name))))  # of a project: its subset's folder
    except ValueError as error:
        path = folder.folder / (name or f"image {element.get('id')}")
        reading.skipped[folder.short_name(path)] = UnusableError("images cannot be found by name", str(error))
    height, width = (int(float(element.get(side) or 0)) for side in ("height", "width"))
    item = Annotated(folder.short_name(path), path, (height, width) if height > 0 and width > 0 else None)
    layers = []
    for number, shape in enumerate((shape for shape in element if shape.tag != "tag"), 1):
        if shape.get("outside") == "1":
            continue
        before = len(item.regions)
        try:
            _add(shape, item, reading)
            height_of_layer = int(shape.get("z_order") or 0)
        except FAULTS as error:
            around = square_around([float(text) for text in re.findall(r"-?\d+\.?\d*", shape.get("points", ""))])
            reading.fault(item, f"object {number} ({shape.tag} of {shape.get('label')})", error, around)
            height_of_layer = 0
        layers.append((height_of_layer, item.regions[before:]))
    item.regions = [region for _, regions in sorted(layers, key=lambda layer: layer[0]) for region in regions]
    reading.items.append(item)


def _add(shape: Element, item: Annotated, reading: Reading) -> None:
    """Add the region of an object.

    Raises:
        ValueError: If it is not of a known form, or some other of `FAULTS`.
    """
    name, kind = shape.attrib["label"].strip(), shape.tag
    if kind in _READERS:
        region = _READERS[kind](name, shape)
        if region.polygons and not has_area(region.polygons[0]):
            reading.leave_out(item, f"objects of {name} have no area", stroke(region.polygons[0]))
        else:
            item.regions.append(region)
        return
    if kind == "polyline":
        outlines = stroke(_points(shape))
    elif kind == "points":
        outlines = [part for point in _points(shape) for part in stroke(point[None], 2 * POINT_RADIUS)]
    elif kind == "skeleton":
        points = np.concatenate([_points(part) for part in shape if "points" in part.attrib])
        outlines = [box(*points.min(0), *points.max(0))]
    else:  # the corners of a cuboid are attributes: xtl1, ytl1, ...
        corners = [(float(shape.attrib[x]), float(shape.attrib[f"y{x[1:]}"])) for x in shape.attrib if x[0] == "x"]
        points = outline(corners)
        outlines = [box(*points.min(0), *points.max(0))]
    reading.leave_out(item, f"objects of {name} are drawn as {kind}", outlines)


def _points(shape: Element) -> np.ndarray:
    return outline([[float(number) for number in point.split(",")] for point in shape.attrib["points"].split(";")])


def _polygon(name: str, shape: Element) -> Region:
    return Region(name, [_points(shape)])


def _box(name: str, shape: Element) -> Region:
    sides = (float(shape.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
    return Region(name, [box(*sides, float(shape.get("rotation") or 0))])


def _ellipse(name: str, shape: Element) -> Region:
    measures = (float(shape.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
    return Region(name, [ellipse(*measures, float(shape.get("rotation") or 0))])


def _mask(name: str, shape: Element) -> Region:
    """A mask of run lengths along the rows of its box, by turns outside and inside."""
    left, top, width, height = (int(float(shape.attrib[key])) for key in ("left", "top", "width", "height"))
    lengths = np.array([int(length) for length in shape.attrib["rle"].split(",")])
    if lengths.sum() != width * height:
        raise ValueError(f"its run lengths add up to {lengths.sum()} pixels, not {width * height}")
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return Region(name, mask=(inside.reshape(height, width), left, top))


_READERS: dict[str, Callable[[str, Element], Region]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}
