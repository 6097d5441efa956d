"""COCO JSON files of instances: polygons and run lengths."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..mask_labels import UnusableError
from ..recipe import UserError
from .reading import FAULTS, Annotations, ImageFolder, Images, Painted, Reading, Target, read_json
from .regions import (
    IGNORE,
    Annotated,
    Region,
    box,
    decode_run_lengths,
    encode_run_lengths,
    has_area,
    outline,
    polygon_area,
    run_lengths,
    square_around,
    stroke,
)


@dataclass
class Coco(Painted):
    """A COCO JSON file of instances: polygons and run lengths.

    Smaller objects lie on top of larger ones. Crowds, and objects that have a box alone, are left out of training.
    """

    images: Images
    """Folder of the images."""
    annotations: Annotations
    """The JSON file."""
    target: Target
    """Data folder to make."""
    crowds: Literal["leave_out", "paint"] = "leave_out"
    """What to do with objects that are called crowds (iscrowd). CVAT and datumaro call all masks so: paint them."""

    def read(self) -> Reading:
        folder = ImageFolder(self.images, self.target)
        content = read_json(self.annotations)
        parts = ("images", "annotations", "categories")
        if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
            raise UserError(
                f"{self.annotations} is not a COCO file: it has no images, annotations and categories. Most label "
                "tools can export one."
            )
        annotations = [a if isinstance(a, dict) else {} for a in content["annotations"]]
        if any("segments_info" in annotation for annotation in annotations[:1]):
            raise UserError(
                f"{self.annotations} is a panoptic COCO file: give the one of instances, with segmentation polygons."
            )
        try:
            names = _class_names(content["categories"], {_id(a.get("category_id")) for a in annotations})
            reading = Reading(names=list(names.values()))
            for name, count in Counter(names.values()).items():
                if count > 1:
                    reading.notes.append(f"{count} categories are called {name}: they become one class.")
            items = _read_images(content["images"], folder, reading)
        except UserError as error:
            raise UserError(f"{self.annotations}: {error}") from None
        except FAULTS as error:
            raise UserError(
                f"{self.annotations} is not a COCO file of instances: {type(error).__name__} {error}."
            ) from None
        painted: dict[str, list[tuple[float, Region]]] = {item.name: [] for item in items.values()}
        lost = []
        for annotation in annotations:
            item = items.get(_id(annotation.get("image_id")))
            if item is None:
                lost.append(annotation.get("id"))
            else:
                self._add(annotation, names, item, painted[item.name], reading)
        if lost:
            reading.notes.append(
                f"{len(lost)} annotations are of images that the file does not list, the first has the id {lost[0]}."
            )
        reading.items = list({item.name: item for item in items.values()}.values())
        for item in reading.items:
            regions = [region for _, region in sorted(painted[item.name], key=lambda pair: -pair[0])]
            item.regions = [*regions, *item.regions]
        return reading.finish(self.annotations, folder)

    def _add(
        self,
        annotation: dict[str, Any],
        names: dict[str, str],
        item: Annotated,
        painted: list[tuple[float, Region]],
        reading: Reading,
    ) -> None:
        """Add an object to those of its image, with its area; crowds lie below the others."""
        name = names.get(_id(annotation.get("category_id")))
        shape = annotation.get("segmentation")
        bounds = _bounding_box(annotation.get("bbox"))
        area, region, lines = 0.0, Region(name or IGNORE), []
        try:
            if shape or not bounds:
                area, region, lines = _region(region.name, shape, item.size)
            has_outline = bool(region.polygons) or region.counts is not None
            if not (has_outline or bounds or any(map(len, lines))):
                raise ValueError("its outline has no points")
        except FAULTS as error:
            around = [*bounds, *square_around(shape)]
            reading.fault(item, f"annotation {annotation.get('id')}", error, around)
            return
        if bounds and not has_outline:
            reading.leave_out(item, f"objects of {name} have a box, but no outline", bounds)
            return
        for line in lines:
            reading.leave_out(item, f"outlines of {name} have no area", stroke(line))
        if not has_outline:
            return
        if self.crowds == "leave_out" and _is_set(annotation.get("iscrowd") or annotation.get("ignore")):
            reading.left_out[f"crowds of {name} (if CVAT or datumaro wrote them: --crowds paint)"] += 1
            region.name, area = IGNORE, math.inf
        elif name is None:
            reading.left_out["objects are of a category that the file does not list"] += 1
        painted.append((area, region))


def _id(value: Any) -> str:
    """An identifier, whether it is written as a number or as text."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _class_names(categories: list[dict[str, Any]], used: set[str]) -> dict[str, str]:
    """Names of the categories by their identifiers, in the order of these.

    Roboflow lists the project first, as the category of which all others are kinds: it is no class.
    """
    ordered = sorted(categories, key=lambda c: (not _id(c["id"]).lstrip("-").isdigit(), _order(_id(c["id"]))))
    names = {}
    for category in ordered:
        key = _id(category["id"])
        name = str(category["name"]).strip() or f"category {key}"
        is_root = str(category.get("supercategory") or "none").lower() in ("none", "root")
        others = {str(c.get("supercategory")).strip() for c in ordered if c is not category}
        if is_root and key not in used and others == {name}:
            continue
        if names.get(key, name) != name:
            raise UserError(f"two categories have the id {key}, {names[key]} and {name}: give them ids of their own.")
        names[key] = name
    return names


def _order(key: str) -> tuple[int, str]:
    return (int(key), "") if key.lstrip("-").isdigit() else (0, key)


def _read_images(entries: list[dict[str, Any]], folder: ImageFolder, reading: Reading) -> dict[str, Annotated]:
    """The images by their identifiers; those of one file are one."""
    items: dict[str, Annotated] = {}
    by_file: dict[Path, Annotated] = {}
    twice = set()
    for entry in entries:
        name = entry.get("file_name") or entry.get("path") or entry.get("coco_url")  # LVIS has the last alone
        key = _id(entry.get("id", f"of {name}"))
        try:
            path = folder.find(name)
        except ValueError as error:
            path = folder.folder / str(name or f"image {key}")
            reading.skipped[folder.short_name(path)] = UnusableError("images cannot be found by name", str(error))
        height, width = (int(float(entry.get(side) or 0)) for side in ("height", "width"))
        item = Annotated(folder.short_name(path), path, (height, width) if height > 0 and width > 0 else None)
        item = by_file.setdefault(path, item)
        if items.setdefault(key, item) is not item:
            twice |= {item.name, items[key].name}
    for name in twice:
        reading.skipped[name] = UnusableError("images have the same id in the file")
    return items


def _is_set(value: Any) -> bool:
    return str(value).lower() in ("1", "1.0", "true")


def _region(name: str, shape: Any, size: tuple[int, int] | None) -> tuple[float, Region, list[np.ndarray]]:
    """The area of an object, its region, and its outlines without an area.

    Raises:
        ValueError: If it is not of a known form, or does not fit the image.
    """
    if not shape:
        raise ValueError("it has neither an outline nor a box")
    if isinstance(shape, dict):
        height, width = (int(side) for side in shape["size"])
        if size and size != (height, width):
            raise ValueError(f"its run lengths are of {width}×{height} pixels, the image of {size[1]}×{size[0]}")
        lengths = run_lengths(shape["counts"], (height, width))
        return float(lengths[1::2].sum()), Region(name, counts=shape["counts"], size=(height, width)), []
    if isinstance(shape[0], dict):  # run lengths of parts
        parts = [_region(name, part, size)[1] for part in shape]
        mask = np.any([decode_run_lengths(part.counts, part.size) for part in parts], axis=0)
        return float(mask.sum()), Region(name, counts=encode_run_lengths(mask), size=mask.shape), []
    is_one = all(not isinstance(part, list) or (len(part) == 2 and not isinstance(part[0], list)) for part in shape)
    outlines = [outline(part) for part in ([shape] if is_one and len(shape) > 1 else shape)]
    lines = [points for points in outlines if not has_area(points)]
    whole = [points for points in outlines if has_area(points)] if lines else outlines
    return sum(map(polygon_area, whole)), Region(name, whole), lines


def _bounding_box(values: Any) -> list[np.ndarray]:
    """The outlines of a box x, y, width, height, if it is one; those of a line or a dot if it has no area."""
    try:
        left, top, width, height = (float(value) for value in values)
        corners = box(left, top, left + width, top + height)
        if width > 0 and height > 0:
            return [corners]
        return stroke(corners[[0, 2]]) if min(width, height) == 0 and any((left, top, width, height)) else []
    except FAULTS:
        return []
