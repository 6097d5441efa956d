"""COCO JSON files of instances."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ..recipe import UserError
from .reading import read_json
from .regions import Annotated, Region


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
