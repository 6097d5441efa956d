"""Parts of images that have a class, as annotation tools write them, and their pixels: polygons, run lengths, masks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..label_files import read_labels
from ..recipe import DataError

IGNORE = "__ignore__"  # LabelMe's name of pixels that are left out of training
LINE_WIDTH, POINT_RADIUS = 10, 5  # pixels, as wide as LabelMe draws lines and points
_LARGEST = 1e7  # a coordinate beyond is an error


@dataclass
class Region:
    """Part of an image that has a class; the holes of one polygon lie where its outlines overlap.

    Attributes:
        name: The class; `IGNORE` for pixels to leave out.
        polygons: Outlines, each (N, 2), x and y in pixels from the upper left corner of the image.
        counts: Run lengths of COCO, down the columns, pixels outside first; None if there are polygons.
        size: Height and width of the image that the run lengths are of.
        mask: A mask (h, w), and the column and row of its upper left pixel.
        file: A mask in a file, 0 outside and one other value inside.
    """

    name: str
    polygons: list[np.ndarray] = field(default_factory=list)
    counts: Sequence[int] | str | None = None
    size: tuple[int, int] | None = None
    mask: tuple[np.ndarray, int, int] | None = None
    file: Path | None = None

    def paint(self, labels: np.ndarray, label: int) -> None:
        """Give the pixels of labels (H, W) that lie in the region a label, in place.

        Raises:
            ValueError: If the run lengths are of an image of another size, or a mask in a file is, or is not binary.
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
        if self.file is not None:
            labels[_read_binary(self.file, labels.shape)] = label

    def is_lost(self, size: tuple[int, int]) -> bool:
        """Whether its outlines hold no pixel of an image (H, W), or seem to be shares of it, from 0 to 1."""
        if not self.polygons:
            return False
        points = np.concatenate(self.polygons)
        low, high = points.min(0), points.max(0)
        if (high <= 0).any() or (low >= size[::-1]).any() or (high <= 1).all():
            return True
        if (high - low).max() >= 1:
            return False
        small = np.zeros((3, 3), np.uint8)
        for polygon in self.polygons:
            fill_polygon(small, polygon - np.floor(low), 1)
        return not small.any()


@dataclass
class Annotated:
    """An image with what is known of it.

    Attributes:
        name: Name of the image, for messages and for the files made of it.
        image: The image file.
        size: Height and width of the annotated image, if known.
        regions: What is in it; later ones lie on top.
        embedded: A LabelMe file that holds the image, if the image file does not exist.
        split: "train" or "val", if a list says so.
    """

    name: str
    image: Path
    size: tuple[int, int] | None = None
    regions: list[Region] = field(default_factory=list)
    embedded: Path | None = None
    split: str | None = None


def _read_binary(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Where a mask in a file is not 0 (H, W).

    Raises:
        ValueError: If it cannot be read, has another size, or holds more than two values.
    """
    try:
        values = read_labels(path)
    except DataError as error:
        raise ValueError(error) from None
    if values.shape != size:
        raise ValueError(f"{path} has {values.shape[1]}×{values.shape[0]} pixels (width×height)")
    if len(found := np.unique(values[values > 0])) > 1:
        raise ValueError(f"{path} holds {len(found)} values beside 0, as masks of several classes or in JPEG do")
    return values > 0


# Outlines


def outline(values: Any) -> np.ndarray:
    """Corners (N, 2) of a flat list of numbers x, y, x, y, ..., or of a list of pairs.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        numbers = np.asarray(values, float)
    except (TypeError, ValueError):
        raise ValueError("its outline is not a list of numbers") from None
    if numbers.ndim == 1 and len(numbers) % 2:
        raise ValueError(f"its outline has {len(numbers)} numbers, which are not pairs")
    if numbers.ndim not in (1, 2) or (numbers.ndim == 2 and numbers.shape[1] != 2):
        raise ValueError("its outline is not a list of points")
    if not (np.abs(numbers) < _LARGEST).all():  # NaN too
        raise ValueError("its outline has a coordinate that is no number, or too large")
    return numbers.reshape(-1, 2)


def polygon_area(points: np.ndarray) -> float:
    """Area in pixels of the polygon with the corners (N, 2)."""
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def has_area(points: np.ndarray) -> bool:
    """Whether the corners (N, 2) do not all lie on one line."""
    return len(points) >= 3 and (polygon_area(points) > 1e-6 or np.linalg.matrix_rank(points - points[0], 1e-6) == 2)


def box(left: float, top: float, right: float, bottom: float, degrees: float = 0) -> np.ndarray:
    """Corners (4, 2) of a box that is rotated about its center, clockwise.

    Raises:
        ValueError: If a coordinate is no number, or too large.
    """
    corners = outline([(left, top), (right, top), (right, bottom), (left, bottom)])
    return rotate(corners, corners.mean(0), degrees)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0) -> np.ndarray:
    """Corners (N, 2) of an ellipse that is rotated about its center, clockwise; its edge is met within 0.01 pixel.

    Raises:
        ValueError: If a number is none, or too large.
    """
    center, radii = outline([(x, y), (radius_x, radius_y)])
    count = max(32, math.ceil(math.pi / math.sqrt(0.02 / max(abs(radii).max(), 1))))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return rotate(center + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1), center, degrees)


def rotate(points: np.ndarray, center: np.ndarray, degrees: float) -> np.ndarray:
    """Points (N, 2), rotated about a center, clockwise as y points down."""
    angle = math.radians(float(degrees))
    if not angle:
        return points
    turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    return center + (points - center) @ turn


def stroke(points: np.ndarray, width: float = LINE_WIDTH) -> list[np.ndarray]:
    """Outlines of a line through points (N, 2), or of a dot."""
    dots = [ellipse(x, y, width / 2, width / 2) for x, y in points]
    for start, end in pairwise(points):
        if length := math.hypot(*(end - start)):
            side = np.array([start[1] - end[1], end[0] - start[0]]) * (width / 2 / length)
            dots.append(np.array([start - side, end - side, end + side, start + side]))
    return dots


def square_around(values: Any) -> list[np.ndarray]:
    """The square that holds every point whose coordinates are among the numbers in nested lists; none without any."""
    numbers: list[float] = []
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, (int, float)) and abs(value) < _LARGEST:
            numbers.append(value)
    low, high = (min(numbers), max(numbers)) if numbers else (0, 0)
    return [box(low, low, high, high)] if low < high else []


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


# Run lengths


def run_lengths(counts: Sequence[int] | str, size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths as numbers: down the columns, by turns outside and inside.

    Args:
        counts: The lengths; or their compressed form, in which each character holds 5 bits of the difference to the
            length two runs before.
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
    found = np.asarray(counts, int)
    if found.sum() != size[0] * size[1] or (found < 0).any():
        raise ValueError(f"the run lengths add up to {found.sum()} pixels, not {size[0] * size[1]}")
    return found


def decode_run_lengths(counts: Sequence[int] | str, size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths, in either form, to a mask (H, W).

    Raises:
        ValueError: If the runs do not add up to the image.
    """
    lengths = run_lengths(counts, size)
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return inside.reshape(size[::-1]).T


def encode_run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of a mask (H, W)."""
    flat = np.concatenate([[False], mask.T.ravel()])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *starts, mask.size]).tolist()
