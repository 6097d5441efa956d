"""Parts of images that have a class, as annotation tools write them, and their pixels: polygons, run lengths, masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


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
