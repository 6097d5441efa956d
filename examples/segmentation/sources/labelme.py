"""LabelMe JSON files."""

import base64
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..recipe import UserError
from .reading import read_json
from .regions import Annotated, Region


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
