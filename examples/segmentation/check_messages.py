"""What is wrong with files of a data set, in a line each: the file, the cause, and what to do."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .class_list import color_codes, color_name
from .label_files import NO_DATA, open_label_file

if TYPE_CHECKING:
    from .class_list import ClassList
    from .data import Split

Palette = tuple[int, dict[int, int]]  # digest of the whole palette, and the color code of each number that is used
BACKGROUND = ("background", "_background_", "bg", "unlabeled")  # names of it, in small letters
_NEAR = 16  # distance up to which JPEG and smoothing move most values


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 file", "2 files"."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def named(names: Sequence[object], most: int = 5) -> str:
    """Names as a list: "a, b and c", or "a, b and 7 more"."""
    shown = [*map(str, names[:most])]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def label_of(value: int, split: "Split | ClassList") -> int:
    """Label of a value or color code: `len(classes)` if it is left out, one more if it means nothing."""
    count, mapping = len(split.classes), split.mapping
    if value == NO_DATA:
        return count
    label = value if mapping is None else int(mapping[value]) if value < len(mapping) else count + 1
    return label if label < count else count if label == split.ignore_index else count + 1


def written(value: int, split: "Split | ClassList") -> str:
    """A value or color code as in `classes.txt`."""
    return color_name(value) if split.by_color else str(value)


def values_of(split: "Split | ClassList") -> dict[int, list[int]]:
    """The values or color codes of each label, and those left out under `len(classes)`."""
    count = len(split.classes)
    if split.mapping is None:
        return {**{label: [label] for label in range(count)}, count: [split.ignore_index] * (split.ignore_index >= 0)}
    found = np.flatnonzero((split.mapping < count) | (split.mapping == split.ignore_index)).tolist()
    values: dict[int, list[int]] = {label: [] for label in range(count + 1)}
    for value in found:
        values[label_of(value, split)].append(value)
    return values


def _prepare_masks(split: "Split", option: str) -> str:
    folders = " ".join(shlex.quote(str(files[0].parent)) for files in (split.images, split.labels))
    return f"`prepare_labels.py masks {folders} NEW_FOLDER --classes classes.txt {option}`"


def _clean(split: "Split") -> str:
    """The command that makes exact labels of masks that are not."""
    if len(split.classes) == 2 and not split.by_color:
        return _prepare_masks(split, "--threshold 128")
    keys = np.array(sorted(value for values in values_of(split).values() for value in values))
    distance = 40 if split.by_color else int(np.diff(keys).min(initial=256)) // 2
    if not distance:  # numbers of classes, of which masks with other values have none
        return f"{_prepare_masks(split, '--nearest 40')}, with a list of the values ('255 {split.classes[-1]}'),"
    return _prepare_masks(split, f"--nearest {distance}")


# Files


def lossy_labels(split: "Split", path: Path, form: str) -> str:
    """Labels are saved in a format that changes their values."""
    return (
        f"{path} is saved as {form}, which changes the values of labels: save labels as PNG. If there are no others, "
        f"{_clean(split)} makes exact ones."
    )


def other_size(
    image: Path, image_size: tuple[int, int], orientation: int, labels: Path, labels_size: tuple[int, int]
) -> str:
    """Labels have another size than their image, because of the rotation that EXIF asks for, or not."""
    sizes = f"{labels} has {'×'.join(map(str, labels_size))} pixels (width×height), its image {image.name} "
    sizes += "×".join(map(str, image_size))
    if labels_size != image_size[::-1]:
        return f"{sizes}: make them equal{', and the array (height, width, bands)' if image.suffix == '.npy' else ''}."
    if orientation < 5:
        return f"{sizes}: one of the two is rotated. Rotate it back."
    return (
        f"{sizes}, since a note in it (EXIF orientation {orientation}) rotates it, and the labels are not rotated: "
        f"remove the note (`exiftool -Orientation= {image.name}`), or let `prepare_labels.py masks` do so."
    )


def lies_elsewhere(image: Sequence[float], labels: Sequence[float]) -> str | None:
    """Georeferenced labels lie elsewhere than their image, by `Facts.place` of both."""
    if not image or not labels:
        return None
    (a, e, x, y), (label_a, label_e, label_x, label_y) = image, labels
    if e * label_e < 0:
        return "is georeferenced upside down beside its image: flip one of them, such as by gdalwarp."
    if abs(a - label_a) > 0.01 * abs(a) or abs(x - label_x) > abs(a) / 2 or abs(y - label_y) > abs(e) / 2:
        return (
            f"is georeferenced elsewhere than its image: its corner lies at {label_x:.10g}, {label_y:.10g}, that of "
            f"the image at {x:.10g}, {y:.10g}. Cut it to the image's place."
        )
    return None


# Values


def unknown_values(split: "Split", path: Path, found: Iterable[int], everywhere: Mapping[int, int]) -> str:
    """A label file holds values or colors that no class has.

    Args:
        split: The split.
        path: The label file.
        found: Its values or color codes that no class has.
        everywhere: Number of pixels of each value, in all files that were read.
    """
    unknown = sorted(value for value in everywhere if label_of(value, split) > len(split.classes))
    first = [written(value, split) for value in found]
    known = sorted(value for values in values_of(split).values() for value in values)
    if _blurred_colors(unknown, known) if split.by_color else _blurred_values(unknown, known, everywhere):
        what = "colors" if split.by_color else "values"
        return (
            f"{path} holds {counted(len(first), what[:-1])} between those of the classes ({named(first)}), as masks do "
            f"that were saved as JPEG, resampled, or drawn with smooth edges. Save them without, or let "
            f"{_clean(split)} make exact labels. If they are classes, name them in classes.txt ('{first[0]} NAME')."
        )
    if split.by_color:
        return (
            f"{path} holds the color{'s' if len(first) > 1 else ''} {', '.join(first[:10])}, which no class has. Give "
            f"each color a class in classes.txt ('{first[0]} NAME'), or leave its pixels out ('{first[0]} -')."
        )
    count = len(split.classes)
    range_ = f"(0 to {count - 1})" if split.mapping is None else "(by the values they have in the files)"
    return (
        f"{path} holds the labels {', '.join(first[:10])}, but there are {count} classes {range_}, and "
        f"{split.ignore_index} marks pixels to leave out. Name more classes, give each class its value in classes.txt "
        f"('{first[0]} NAME', or '{first[0]} -' to leave its pixels out), or leave one value out with --ignore_index "
        f"{first[0]}."
    )


def _blurred_values(unknown: list[int], known: list[int], everywhere: Mapping[int, int]) -> bool:
    """Whether unknown values look like noise around others, or mixtures of them, and not like more classes."""
    many = len(unknown) >= 8
    # steps of a smooth edge: few pixels, of values between the two that most pixels have
    most = sorted(everywhere, key=lambda value: -everywhere[value])[:2]
    rare = sum(everywhere[value] for value in unknown) < 0.1 * sum(everywhere.values())
    if len(unknown) >= 2 and rare and np.ptp(most) > 4 * _NEAR and all(min(most) < v < max(most) for v in unknown):
        return True
    if known[: len(known) - 1] == [*range(known[0], known[0] + len(known) - 1)]:  # class numbers, and one left out
        return many and unknown[-1] >= 200
    near = len(unknown) >= 2 and all(min(abs(value - key) for key in known) <= _NEAR for value in unknown)
    return many or (near and max(np.diff(known)) > 4 * _NEAR)


def _blurred_colors(unknown: list[int], known: list[int]) -> bool:
    """As `_blurred_values`: near listed colors, on lines between two of them, or very many."""
    if len(unknown) < 2 or len(unknown) > 64:
        return len(unknown) > 64
    points, keys = (np.stack([np.array(c) >> shift & 255 for shift in (0, 8, 16)], -1) for c in (unknown, known))
    near = np.linalg.norm(points[:, None] - keys, axis=2).min(1) <= _NEAR
    if near.all() or len(unknown) < 8:
        return bool(near.all())
    first, second = (keys[i].astype(float) for i in np.triu_indices(len(keys), 1))
    along = second - first
    place = ((points[:, None] - first) * along).sum(2) / (along**2).sum(1)
    nearest = first + place.clip(0, 1)[..., None] * along
    mixed = np.linalg.norm(points[:, None] - nearest, axis=2).min(1) <= _NEAR / 2
    return bool((near | mixed).mean() > 0.9)


def other_palettes(split: "Split | ClassList", labels: Iterable[tuple[Path, Palette]]) -> str | None:
    """Palettes show something else than the numbers of label files say: grays that descend, or colors that change.

    Args:
        split: The classes.
        labels: Label files with their palettes.
    """
    colors_of = [int(code) for code in color_codes(np.array(split.palette))]
    values = values_of(split)
    known = {value: code for label, code in enumerate(colors_of) for value in values[label]}
    remedy = "If its numbers are meant, save it without a palette; if what it shows is, give each class its color"
    by_color: dict[int, tuple[int, int, Path]] = {}  # number, whole palette and file of each color
    by_number: dict[int, tuple[int, int, Path]] = {}  # and the color of each number
    for path, (whole, used) in labels:
        palette = {value: code for value, code in used.items() if label_of(value, split) != len(split.classes)}
        if palette.items() <= known.items():  # as prepare_labels.py writes them
            continue
        example = f"{remedy} in classes.txt, such as '{color_name(palette[min(palette)])} NAME'."
        grays = [code & 255 for _, code in sorted(palette.items()) if code == (code & 255) * 0x10101]
        if len(grays) == len(palette) and any(a > b for a, b in pairwise(grays)):
            return (
                f"{path} has a palette of grays that descend: its number {min(palette)} is shown as {grays[0]}, and "
                f"{max(palette)} as {grays[-1]}. {example}"
            )
        for value, code in palette.items():
            other, its_whole, there = by_color.setdefault(code, (value, whole, path))
            if other != value and its_whole != whole:
                found = f"{color_name(code)} is {value} in one and {other} in the other"
                return f"{path} and {there.name} have different palettes: {found}. {example}"
            other, its_whole, there = by_number.setdefault(value, (code, whole, path))
            if other != code and its_whole != whole:
                found = f"{value} is {color_name(code)} in one and {color_name(other)} in the other"
                return f"{path} and {there.name} have different palettes: {found}. {example}"
    return None


def black_class(split: "Split | ClassList", labels: Iterable[tuple[Path, Palette]]) -> str | None:
    """A palette shows another class than the background in black, since an editor sorted it anew."""
    background = next((label for label, name in enumerate(split.classes) if name.lower() in BACKGROUND), None)
    for path, (_, used) in labels:
        shown = {label_of(value, split): code for value, code in used.items()}
        black = next((label for label, code in shown.items() if not code and label < len(split.classes)), None)
        code = shown.get(background, 0)
        if code and black is not None and code != color_codes(np.array(split.palette[background])):
            first, second = (repr(split.classes[label]) for label in (background, black))
            return (
                f"{path} shows {first} as {color_name(code)} and {second} as black: if its colors count, not its "
                f"numbers, give each class its color in classes.txt, such as '#000000 {split.classes[background]}'."
            )
    return None


def other_numbers(split: "Split", everywhere: Mapping[int, int]) -> str | None:
    """As many values occur as there are classes, but others than theirs: what `classes.txt` has to say."""
    count = len(split.classes)
    values = sorted(value for value in everywhere if label_of(value, split) != count)
    unknown = [value for value in values if label_of(value, split) > count]
    numbers = sorted(everywhere.keys() - {NO_DATA})
    if len(values) < count == len(numbers) and split.mapping is None:  # the one that is left out by default, too
        values = numbers
    if split.by_color or not unknown or len(values) != len(split.classes):
        return None
    if split.mapping is None and (left_out := sorted(everywhere.keys() - {*values})):  # by default: it may be a class
        said = named([f"'{value} NAME'" for value in sorted(everywhere)], 20)
        return (
            f"The {counted(len(split), 'label file')} in {split.labels[0].parent} hold the values "
            f"{named(sorted(everywhere))}, but there are {count} classes, and {named(left_out)} is left out unless a "
            f"class has it: say what each value is in classes.txt, by {said}, and '-' as a name leaves pixels out."
        )
    absent = {*range(len(split.classes))} - {label_of(value, split) for value in values}
    return _listed(split, values, unknown, absent, "not a class", [*zip(values, split.classes)])


def half_used(split: "Split", everywhere: Mapping[int, int]) -> str | None:
    """Only one class occurs, while pixels of other values are left out: what `classes.txt` has to say."""
    count = len(split.classes)
    everywhere = {value: number for value, number in everywhere.items() if value != NO_DATA}
    left_out = sorted((v for v in everywhere if label_of(v, split) == count), key=lambda value: -everywhere[value])
    present = {label_of(value, split): value for value in everywhere if label_of(value, split) < count}
    if len(present) != 1 or not left_out:
        return None
    absent = [label for label in range(count) if label not in present]
    values = {label: found[0] for label, found in values_of(split).items() if found}
    values |= present | {absent[0]: left_out[0]}
    lines = [(values[label], name) for label, name in enumerate(split.classes)]
    return _listed(split, sorted(everywhere), left_out, absent, "left out", lines)


def only_class(split: "Split", everywhere: Mapping[int, int]) -> str | None:
    """All pixels have one class, so that there is nothing to learn."""
    present = {label_of(value, split) for value in everywhere}
    if len(present) != 1:
        return None
    alpha = open_label_file(split.labels[0]).alpha()
    why = " Their transparency is not read: save what it shows as values." if alpha else ""
    return (
        f"All pixels of the {counted(len(split), 'label file')} in {split.labels[0].parent} are of the class "
        f"{split.classes[present.pop()]!r}: there is nothing to learn. Look at them with show_data.py.{why}"
    )


def _listed(
    split: "Split", values: list[int], others: list[int], absent: Iterable[int], why: str, lines: list[tuple[int, str]]
) -> str:
    missing = [split.classes[label] for label in absent]
    other, some = (named([written(value, split) for value in part]) for part in (others, values))
    what = "color" if split.by_color else "value"
    one = len(others) == len(missing) == 1 and (others[0], missing[0]) in lines
    question = f"{other} is {missing[0]!r}" if one else f"these are the classes' {what}s"
    listed = named([f"'{written(value, split)} {name}'" for value, name in lines], 20)
    return (
        f"The {counted(len(split), 'label file')} in {split.labels[0].parent} hold the {what}s {some} only, and "
        f"{other} {'is' if len(others) == 1 else 'are'} {why}: {named([*map(repr, missing)])} never "
        f"occur{'s' if len(missing) == 1 else ''}. If {question}, say so in classes.txt: {listed}, one per line."
    )
