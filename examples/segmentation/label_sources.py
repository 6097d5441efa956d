"""What annotation tools write, as pixels: polygons, run lengths, COCO JSON and LabelMe JSON files.

`prepare_labels.py` makes label files of it.
"""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .recipe import UserError


@dataclass
class Region:
    """Part of an image that has a class; the holes of one polygon lie where its outlines overlap.

    Attributes:
        name: The class.
        polygons: Outlines, each (N, 2), x and y in pixels from the upper left corner of the image.
        counts: Run lengths of COCO, down the columns, pixels outside first; None if there are polygons.
        size: Height and width of the image that the run lengths are of.
        mask: A mask (h, w), and the column and row of its upper left pixel.
    """

    name: str
    polygons: list[np.ndarray] = field(default_factory=list)
    counts: Sequence[int] | str | None = None
    size: tuple[int, int] | None = None
    mask: tuple[np.ndarray, int, int] | None = None

    def paint(self, labels: np.ndarray, label: int) -> None:
        """Give the pixels of labels (H, W) that lie in the region a label, in place.

        Raises:
            ValueError: If the run lengths are of an image of another size.
        """
        for polygon in self.polygons:
            fill_polygon(labels, polygon, label)
        if self.counts is not None:
            if tuple(self.size) != labels.shape:
                raise ValueError(f"the run lengths are of {self.size[1]}×{self.size[0]} pixels (width×height)")
            labels[decode_run_lengths(self.counts, labels.shape)] = label
        if self.mask is not None:
            mask, left, top = self.mask
            part = labels[max(top, 0) : top + mask.shape[0], max(left, 0) : left + mask.shape[1]]
            inside = mask[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]]
            part[inside] = label


@dataclass
class Annotated:
    """An image with what is known of it.

    Attributes:
        name: Name of the image, for messages and for the files made of it.
        image: The image file.
        size: Height and width of the annotated image, if known.
        regions: What is in it; later ones lie on top.
        embedded: A LabelMe file that holds the image, if the image file does not exist.
    """

    name: str
    image: Path
    size: tuple[int, int] | None = None
    regions: list[Region] = field(default_factory=list)
    embedded: Path | None = None


def fill_polygon(labels: np.ndarray, polygon: np.ndarray, label: int) -> None:
    """Give the pixels whose centers lie inside a polygon a label, in place.

    Pillow's polygons take in their outline, half a pixel more on every side, which doubles small objects.

    Args:
        labels: Labels of shape (H, W).
        polygon: Corners of shape (N, 2), x and y; the last one is joined to the first.
        label: The label.
    """
    height, width = labels.shape
    start, end = polygon, np.roll(polygon, -1, axis=0)
    upper, lower = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(upper - 0.5), 0, height).astype(int)
    counts = np.clip(np.ceil(lower - 0.5), 0, height).astype(int) - first
    edges = np.repeat(np.arange(len(polygon)), counts)
    if not len(edges):
        return
    # rows whose middle each edge crosses, and where
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    run = (end[:, 0] - start[:, 0])[edges] / (end[:, 1] - start[:, 1])[edges]
    x = start[edges, 0] + run * (rows + 0.5 - start[edges, 1])
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
    top, left = rows.min(), columns.min()
    crossings = np.zeros((rows.max() + 1 - top, columns.max() + 1 - left), np.int32)
    np.add.at(crossings, (rows - top, columns - left), 1)
    inside = (np.cumsum(crossings, axis=1) % 2).astype(bool)[:, : width - left]
    labels[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = label


def decode_run_lengths(counts: Sequence[int] | str, size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths to a mask (H, W).

    Args:
        counts: Lengths of the runs down the columns, by turns outside and inside; or their compressed form, in which
            each character holds 5 bits of the difference to the length two runs before.
        size: Height and width.

    Raises:
        ValueError: If the runs do not add up to the image.
    """
    if isinstance(counts, str):
        lengths, value, shift = [], 0, 0
        for character in counts.encode():
            bits = character - 48
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                if bits & 16:
                    value -= 1 << shift
                lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
                value, shift = 0, 0
        counts = lengths
    lengths = np.asarray(counts, int)
    if lengths.sum() != size[0] * size[1] or (lengths < 0).any():
        raise ValueError(f"the run lengths add up to {lengths.sum()} pixels, not {size[0] * size[1]}")
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return inside.reshape(size[::-1]).T


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: If it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from None


def read_coco(path: Path, images: Path) -> tuple[list[Annotated], list[str], list[str]]:
    """Read a COCO JSON file of instances, with polygons or run lengths.

    Args:
        path: The file.
        images: Folder of the images.

    Returns:
        The images, with smaller objects on top of larger ones; the names of the categories, by their ids; and a line
        for each kind of annotation that has no pixels.

    Raises:
        UserError: If it is another kind of file, or a name is repeated.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        raise UserError(f"{path} is not a COCO file: it has no images, annotations and categories.")
    if any("segments_info" in annotation for annotation in content["annotations"][:1]):
        raise UserError(f"{path} is a panoptic COCO file: give the one of instances, with segmentation polygons.")
    try:
        names = {c["id"]: str(c["name"]).strip() for c in sorted(content["categories"], key=lambda c: c["id"])}
        found = {
            i["id"]: Annotated(i["file_name"], images / i["file_name"], (i["height"], i["width"]))
            for i in content["images"]
        }
        objects, left_out = defaultdict(list), defaultdict(int)
        for annotation in content["annotations"]:
            region = _coco_region(annotation, names)
            if region is None:
                left_out[names.get(annotation["category_id"], f"category {annotation['category_id']}")] += 1
            elif annotation["image_id"] in found:
                objects[annotation["image_id"]].append((annotation.get("area", 0), region))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a COCO file of instances: {type(error).__name__} {error}.") from None
    if len(set(names.values())) < len(names):
        raise UserError(f"{path} gives two categories the same name: make them different.")
    for key, regions in objects.items():
        found[key].regions = [region for _, region in sorted(regions, key=lambda pair: -pair[0])]
    notes = [f"{count} objects of {name} have no polygons or run lengths" for name, count in left_out.items()]
    return list(found.values()), list(names.values()), notes


def _coco_region(annotation: dict[str, Any], names: dict[int, str]) -> Region | None:
    name, shape = names.get(annotation["category_id"]), annotation.get("segmentation")
    if name is None or not shape:
        return None
    if isinstance(shape, dict):
        return Region(name, counts=shape["counts"], size=tuple(shape["size"]))
    return Region(name, [np.asarray(outline, float).reshape(-1, 2) for outline in shape if len(outline) >= 6])


def read_labelme(path: Path) -> tuple[Annotated, dict[str, int]]:
    """Read a LabelMe JSON file.

    Returns:
        The image with its regions, later ones on top, and the number of shapes without an area by their type.

    Raises:
        UserError: If it is another kind of file.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "shapes" not in content:
        raise UserError(f"{path} is not a LabelMe file: it has no shapes.")
    try:
        image = path.parent / str(content.get("imagePath") or path.stem).replace("\\", "/")
        size = (content["imageHeight"], content["imageWidth"]) if content.get("imageHeight") else None
        embedded = path if content.get("imageData") and not image.is_file() else None
        found, left_out = Annotated(path.name, image, size, embedded=embedded), defaultdict(int)
        for shape in content["shapes"]:
            region = _labelme_region(shape)
            if region:
                found.regions.append(region)
            else:
                left_out[shape.get("shape_type", "polygon")] += 1
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} is not a LabelMe file: {type(error).__name__} {error}.") from None
    return found, dict(left_out)


def _labelme_region(shape: dict[str, Any]) -> Region | None:
    name, kind = str(shape["label"]).strip(), shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], float).reshape(-1, 2)
    if kind == "polygon" and len(points) >= 3:
        return Region(name, [points])
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        return Region(name, [np.array([(left, top), (right, top), (right, bottom), (left, bottom)])])
    if kind == "circle" and len(points) == 2:
        angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
        radius = np.hypot(*(points[1] - points[0]))
        return Region(name, [points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)])
    if kind == "mask" and shape.get("mask"):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))).convert("L")) > 0
        left, top = points[0].round().astype(int).tolist()
        return Region(name, mask=(mask, left, top))
    return None


def embedded_image(path: Path) -> bytes:
    """The image file that a LabelMe file holds."""
    return base64.b64decode(read_json(path)["imageData"])
