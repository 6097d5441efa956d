"""The classes of a data folder, as its `classes.txt`, or the class list of another tool, names them.

All lines have the same form:

    road              the value of a class in the label files is its place in the list, from 0
    255 person        an integer in front of every name: the value of the class in the label files
    #ff0000 road      a color in front of every name: the label files hold colors

A `-` in place of a name leaves the pixels of that value or color out. A color after a name, as in `road #804080` and
`255 person #dc143c`, is for pictures only; other classes get colors that differ from each other. If one line begins
with an integer and a name, every line must: a class called `3 doors` needs values, such as `0 car` and `1 3 doors`.

Tables and lists of other tools are read too, such as `1: road`, `road,1`, `128 0 0 road`, Roboflow's `_classes.csv`,
`class_dict.csv` with `name,r,g,b`, and CVAT's `labelmap.txt`; `class_forms.py` has the rules. Lists that may mean two
things are refused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .class_forms import Color, Entry, Form, read_entries
from .recipe import DataError

LEFT_OUT = "-"
_LEFT_OUT_NAMES = {"ignore", "ignored", "ignore_index", "void", "unlabeled", "unlabelled", "dontcare", "don't care"}
IGNORED = 255  # the usual value of pixels that are left out
_LARGEST_VALUE = 65_535  # of a PNG with 16 bits
# Names of class lists, the first of which is taken: this project's, Roboflow's, Kaggle's, CVAT's, labelme's, and others
CLASS_LISTS = (
    *("classes.txt", "_classes.csv", "classes.csv", "class_dict.csv", "class_dict_seg.csv", "labelmap.txt"),
    *("label_colors.txt", "label_names.txt", "class_names.txt", "labels.txt", "label.txt", "obj.names"),
    *("label_class_dict.csv", "codes.txt"),
)


@dataclass(frozen=True)
class ClassList:
    """Classes and how label files hold them.

    Attributes:
        classes: Name of each class.
        palette: Color of each class.
        mapping: Label of each value, or of each color by :func:`color_codes`; None if the values are the labels. Values
            and colors that mean nothing have a label that is neither a class nor `ignore_index`.
        by_color: Whether label files hold colors.
        ignore_index: Label of pixels that are left out.
    """

    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    mapping: np.ndarray | None
    by_color: bool
    ignore_index: int


def find_class_list(folder: Path) -> Path | None:
    """Find the class list in a folder, the first of `CLASS_LISTS` in any case of letters; None if there is none."""
    files = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()} if folder.is_dir() else {}
    return next((files[name] for name in CLASS_LISTS if name in files), None)


def read_classes(path: Path, ignore_index: int = IGNORED) -> ClassList:
    """Read a `classes.txt`, or the class list of another tool.

    Args:
        path: The file.
        ignore_index: Value in the label files that is left out. A class may have the usual one, 255.

    Raises:
        DataError: If the file does not exist, mixes forms, repeats a value, a color or a name, names fewer than two
            classes, or gives one the value that is left out.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: it names the classes, one per line, in the order of their labels. "
            f"examples/prepare_labels.py makes such a folder of the files of a label tool, or of masks."
        )
    form, entries = read_entries(path)
    _check_unique(path, form, entries)
    kept = [entry for entry in entries if entry.name != LEFT_OUT]
    classes = tuple(entry.name for entry in kept)
    if len(classes) < 2:
        raise DataError(f"{path} names {len(classes)} classes: at least two are needed.")
    if form == "color":
        palette = tuple(entry.color for entry in kept)
        codes = [int(color_codes(np.array(entry.color))) for entry in entries]
        mapping, ignored = _mapping(dict(zip(codes, _labels(entries))), 1 << 24, len(classes))
        return ClassList(classes, palette, mapping, True, ignored)
    shown = {entry.name: entry.color for entry in kept if entry.color}  # colors for pictures
    if classes[0].lower() == "background":
        shown.setdefault(classes[0], BACKGROUND)
    others = iter(distinct_colors(len(classes), shown.values()))
    palette = tuple(shown.get(name) or next(others) for name in classes)
    values = [*range(len(entries))] if form == "name" else [entry.value for entry in entries]
    if ignore_index in values:
        entry = entries[values.index(ignore_index)]
        if ignore_index != IGNORED and entry.name != LEFT_OUT:
            raise DataError(
                f"{path}, line {entry.number}: {entry.text!r} has the value {ignore_index}, which --ignore_index "
                f"leaves out: write '-' for its name, or leave --ignore_index away."
            )
    elif form == "name" and len(kept) == len(entries):
        return ClassList(classes, palette, None, False, ignore_index)
    labels = ({ignore_index: None} if ignore_index >= 0 else {}) | dict(zip(values, _labels(entries)))
    mapping, ignored = _mapping(labels, max(256, *(value + 1 for value in labels)), len(classes))
    return ClassList(classes, palette, mapping, False, ignored)


def color_codes(colors: np.ndarray) -> np.ndarray:
    """One integer for each color: (..., 3) to (...)."""
    return colors[..., 0] + (colors[..., 1].astype(np.uint32) << 8) + (colors[..., 2].astype(np.uint32) << 16)


def color_name(code: int) -> str:
    """The spelling in `classes.txt` of a color, given by its code: "#ff0000"."""
    return f"#{code & 255:02x}{code >> 8 & 255:02x}{code >> 16:02x}"


BACKGROUND = (90, 90, 90)  # dark gray
_FIRST = (221, 51, 51)
_LIGHTNESS_WEIGHT = 0.7  # beside hue and chroma: overlays change the lightness
# linear sRGB to the cone responses, whose cube roots to lightness, green-red and blue-yellow: Ottosson, "A perceptual
# color space for image processing", 2020
_TO_CONES = np.array(
    [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696], [0.08830246, 0.28171884, 0.6299787]]
)
_TO_OKLAB = np.array(
    [[0.21045426, 0.79361779, -0.00407205], [1.9779985, -2.42859221, 0.45059371], [0.02590404, 0.78277177, -0.80867577]]
)


def _oklab(colors: np.ndarray) -> np.ndarray:
    """Colors (..., 3) from 0 to 255 in Oklab, where distances are as people see them."""
    share = np.asarray(colors) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T


def distinct_colors(count: int, taken: Iterable[Color] = ()) -> tuple[Color, ...]:
    """Colors, each as far as possible from those before it, from gray, and from those that are taken."""
    levels = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    good = (lab[:, 0] > 0.4) & (lab[:, 0] < 0.9) & (chroma > 0.09) & (chroma < 0.24)
    grid, lab = grid[good], lab[good] * (_LIGHTNESS_WEIGHT, 1, 1)

    def distances(color: Color) -> np.ndarray:
        return np.linalg.norm(lab - _oklab(np.array(color)) * (_LIGHTNESS_WEIGHT, 1, 1), axis=1)

    taken = [BACKGROUND, *taken]
    nearest = np.min([distances(color) for color in taken], axis=0)
    colors: list[Color] = []
    for place in range(count):
        if place >= len(grid):  # very many classes: all over again
            colors.append(colors[place % len(grid)])
            continue
        color = _FIRST if not place and len(taken) < 3 else tuple(grid[nearest.argmax()].tolist())
        colors.append(color)
        nearest = np.minimum(nearest, distances(color))
    return tuple(colors)


def _check_unique(path: Path, form: Form, entries: Sequence[Entry]) -> None:
    """Raise a DataError if a value is too large, or a value, a color or a name occurs twice."""
    seen: dict[int | Color | None, int] = {}
    named: dict[str, int] = {}
    for entry in entries:
        if form == "value" and entry.value == IGNORED and entry.name.strip("_").lower() in _LEFT_OUT_NAMES:
            raise DataError(
                f"{path}, line {entry.number}: {entry.text!r} would be a class: write '{IGNORED} -' to leave its "
                f"pixels out, or give it another name."
            )
        where, key = f"{path}, line {entry.number}: ", entry.color if form == "color" else entry.value
        if form == "value" and entry.value > _LARGEST_VALUE:
            raise DataError(f"{where}the value {entry.value} is larger than {_LARGEST_VALUE}, which PNGs hold.")
        if form != "name" and key in seen:
            raise DataError(f"{where}{entry.text!r} repeats the {form} of line {seen[key]}.")
        if entry.name in named and entry.name != LEFT_OUT:
            raise DataError(f"{where}{entry.text!r} repeats the name of line {named[entry.name]}.")
        seen[key] = named[entry.name] = entry.number


def _labels(entries: Sequence[Entry]) -> list[int | None]:
    """Label of each entry; None for those that are left out."""
    labels = iter(range(len(entries)))
    return [None if entry.name == LEFT_OUT else next(labels) for entry in entries]


def _mapping(labels: dict[int, int | None], size: int, classes: int) -> tuple[np.ndarray, int]:
    """A table from values below `size` to labels, and the label of pixels that are left out.

    Values that mean nothing have the label before that one.
    """
    dtype = np.uint8 if classes <= 254 else np.uint16
    ignored = int(np.iinfo(dtype).max)
    mapping = np.full(size, ignored - 1, dtype)
    for value, label in labels.items():
        mapping[value] = ignored if label is None else label
    return mapping, ignored
