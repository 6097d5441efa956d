"""Masks that people have, as labels: color and index masks of every bit depth, exact or not.

Masks saved as JPEG, resampled or smoothed have values between those of the classes; `--threshold` and `--nearest` of
`prepare_labels.py` say what these mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from .check_messages import black_class, other_palettes
from .class_list import ClassList, color_name
from .file_facts import Facts, gather
from .label_files import NO_DATA, open_label_file, read_colors, read_labels
from .pairs import lossy
from .recipe import DataError, UserError

IGNORED = 255  # label of pixels that are left out
_UNKNOWN = 254  # and of values that mean nothing
_GRAY = np.array([0.299, 0.587, 0.114])  # as Pillow converts colors to gray


class UnusableError(Exception):
    """An image cannot be used: `kind` says why for all images of which that is true, the message why this one."""

    def __init__(self, kind: str, reason: str | None = None) -> None:
        self.kind = kind
        super().__init__(reason or kind)

    def __reduce__(self) -> tuple:  # it comes from another process
        return type(self), (self.kind, str(self))


@dataclass(frozen=True)
class MaskRule:
    """Labels of the values or colors of masks.

    Attributes:
        classes: The class list.
        keys: Values (K, 1) or colors (K, 3) that the list gives.
        labels: Label of each key (K,), `IGNORED` for those left out.
        table: Label of each value or color code; the last one is that of all larger ones.
        threshold: Gray value from which on pixels are of the class `above`; None to look values up.
        above: Label of such pixels, of two classes.
        nearest: Largest distance of a pixel to the key that it is taken for, 0 for equality.
    """

    classes: ClassList
    keys: np.ndarray
    labels: np.ndarray
    table: np.ndarray
    threshold: int | None
    above: int
    nearest: float

    def read(self, path: Path) -> tuple[np.ndarray, int]:
        """Labels (H, W) of a mask, and the number of its pixels that are too far from every class and left out.

        Raises:
            UnusableError: If it cannot be read, or has values or colors that no class has.
        """
        try:
            if self.threshold is not None:
                grays = open_label_file(path).grays()
                return np.where(grays >= self.threshold, self.above, 1 - self.above).astype(np.uint8), 0
            values = read_colors(path) if self.classes.by_color else read_labels(path)
        except DataError as error:
            raise UnusableError("masks cannot be read as the class list says", str(error)) from None
        labels = self.table.take(np.where(values >= len(self.table), len(self.table) - 1, values), mode="clip")
        labels[values == NO_DATA] = IGNORED
        unknown = labels == _UNKNOWN
        if not unknown.any():
            return labels, 0
        found, places = np.unique(values[unknown], return_inverse=True)
        if not self.nearest:
            self._refuse(path, values, unknown, found)
        nearest, distances = self._nearest_keys(found)
        far = distances > self.nearest
        labels[unknown] = np.where(far, IGNORED, nearest)[places.ravel()]
        return labels, int(far[places.ravel()].sum())

    def _nearest_keys(self, found: np.ndarray, chunk: int = 4096) -> tuple[np.ndarray, np.ndarray]:
        """Label and distance of the key nearest to each value or color code."""
        points = _colors(found) if self.classes.by_color else found[:, None].astype(float)
        parts = []
        for start in range(0, len(points), chunk):
            distances = np.linalg.norm(points[start : start + chunk, None] - self.keys, axis=2)
            place = distances.argmin(1)
            parts.append((self.labels[place], distances[np.arange(len(place)), place]))
        labels, distances = zip(*parts)
        return np.concatenate(labels), np.concatenate(distances)

    def _refuse(self, path: Path, values: np.ndarray, unknown: np.ndarray, found: np.ndarray) -> None:
        row, column = np.argwhere(unknown)[0]
        what = "color" if self.classes.by_color else "value"
        value = color_name(int(values[row, column])) if self.classes.by_color else int(values[row, column])
        reason = (
            f"its mask has the {what} {value} at row {row}, column {column}, which no class has, as "
            f"{100 * unknown.mean():.2g}% of its pixels"
        )
        cause = lossy(path) or ("is a JPEG" if open_label_file(path).lossy == "JPEG" else None)
        if cause:
            raise UnusableError(
                f"masks are {cause.split(' ', 2)[2]}, with {what}s between the {what}s of the classes", reason
            )
        if len(found) > max(8, len(self.keys)):
            kind = f"masks are smooth or resampled, with {what}s between the {what}s of the classes"
            raise UnusableError(kind, reason)
        raise UnusableError(f"masks have {what}s that no class has: name them in the file that --classes gives", reason)

    def advice(self) -> str:
        """What to do about masks whose values lie between those of the classes."""
        gaps = np.linalg.norm(self.keys[:, None] - self.keys, axis=2)[np.triu_indices(len(self.keys), 1)]
        between = int(gaps.min() / 2) if len(gaps) else 0
        said = []
        if len(self.classes.classes) == 2:
            middle = _class_grays(self).mean() if self.classes.mapping is not None else 128
            said.append(f"--threshold {int(np.ceil(middle))} (from that value on, the class {_high_class(self)})")
        if between > 1:
            said.append(
                f"--nearest {between} (the class of the nearest {'color' if self.classes.by_color else 'value'})"
            )
        return f"add {' or '.join(said)}" if said else "save the masks without loss, at their first size"


def mask_rule(classes: ClassList, threshold: int | None, nearest: float) -> MaskRule:
    """The labels that a class list gives to masks.

    Raises:
        UserError: If the options do not fit the classes.
    """
    if threshold is not None and nearest:
        raise UserError("--threshold and --nearest exclude each other: give one.")
    if nearest < 0:
        raise UserError(f"nearest must be at least 0, got {nearest}.")
    count = len(classes.classes)
    if count > _UNKNOWN:
        raise UserError(f"There are {count} classes: 2 to {_UNKNOWN} are possible.")
    if classes.mapping is None:
        keys = np.array([*range(count), *([classes.ignore_index] if classes.ignore_index >= count else [])])
        labels = np.array([*range(count), *[IGNORED] * (len(keys) - count)])
    else:
        listed = (classes.mapping < count) | (classes.mapping == classes.ignore_index)
        keys = np.flatnonzero(listed)
        labels = np.where(classes.mapping[keys] < count, classes.mapping[keys], IGNORED)
    points = _colors(keys) if classes.by_color else keys[:, None].astype(float)
    table = np.full((1 << 24 if classes.by_color else int(keys.max())) + 2, _UNKNOWN, np.uint8)
    table[keys] = labels
    rule = MaskRule(classes, points, labels, table, threshold, 1, nearest)
    gap = int(np.diff(np.sort(keys)).min(initial=1 << 24))
    if nearest > gap and not classes.by_color:
        raise UserError(
            f"--nearest {nearest:g} is more than the {gap} between two values of the class list: give each class the "
            f"value that it has in the masks, such as '255 {classes.classes[-1]}'."
        )
    if threshold is None:
        return rule
    if count != 2:
        raise UserError(f"--threshold needs two classes, but there are {count}: use --nearest.")
    if classes.mapping is None:
        return rule
    above = _class_grays(rule) >= threshold
    if above.all() or not above.any():
        values = " and ".join(f"{value:.0f}" for value in _class_grays(rule))
        raise UserError(
            f"--threshold {threshold} does not lie between the two classes, whose gray values are {values}."
        )
    return replace(rule, above=int(above[1]))


def check_palettes(masks: Iterable[Path], classes: ClassList, workers: int) -> None:
    """Raise a UserError if palettes of index masks contradict their numbers, or warn if they seem to."""
    indexed = [path for path in masks if _has_palette(path)] if not classes.by_color else []
    found = gather([(path, "values") for path in indexed], None, workers, "check palettes")
    used = [(path, facts.palette) for (path, _), facts in found.items() if isinstance(facts, Facts)]
    if message := other_palettes(classes, used):
        raise UserError(message)
    if message := black_class(classes, used):
        print(f"Warning: {message}")


def _has_palette(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode == "P"
    except Exception:  # whoever reads it will say why
        return False


def _class_grays(rule: MaskRule) -> np.ndarray:
    """The gray values of two classes, by their labels."""
    grays = rule.keys @ _GRAY if rule.classes.by_color else rule.keys[:, 0]
    return np.array([grays[rule.labels == label][0] for label in (0, 1)])


def _high_class(rule: MaskRule) -> str:
    label = 1 if rule.classes.mapping is None else int(_class_grays(rule).argmax())
    return rule.classes.classes[label]


def _colors(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes & 255, codes >> 8 & 255, codes >> 16], axis=-1).astype(float)


def show_values(masks: list[Path], count: int = 16) -> None:
    """Print the values or colors of some masks, most common first, as lines of a class list."""
    chosen = [masks[k] for k in np.unique(np.linspace(0, len(masks) - 1, min(count, len(masks))).round().astype(int))]
    pixels: dict[str, dict[int, int]] = {"values": {}, "colors": {}}
    for path in chosen:
        try:
            file = open_label_file(path)
            try:
                kind, found = "values", file.values()
            except DataError:
                kind, found = "colors", file.colors()
        except DataError:  # a damaged file; the run with classes will name it
            continue
        for value, number in zip(*(part.tolist() for part in np.unique(found[found != NO_DATA], return_counts=True))):
            pixels[kind][value] = pixels[kind].get(value, 0) + number
    for kind, numbers in pixels.items():
        if not numbers:
            continue
        total = sum(numbers.values())
        print(f"{kind.capitalize()} of {len(chosen)} of {len(masks)} masks:")
        ordered = sorted(numbers.items(), key=lambda item: -item[1])
        for value, number in ordered[:40]:
            print(f"{color_name(value) if kind == 'colors' else value} NAME      ({100 * number / total:.2f}%)")
        if len(ordered) > 40:
            print(
                f"... and {len(ordered) - 40} more: masks saved as JPEG, resampled or with smooth edges need "
                f"--threshold or --nearest."
            )
