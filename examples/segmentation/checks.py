"""Check the files of a data set before anything is trained on them, and say what they hold.

Whatever would fail in the middle of a run, or teach a model something else than what was meant, is refused here with
the names of the files, or pointed out in a line that begins with "Warning: ".
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from .bands import ImageForm
from .check_messages import (
    BACKGROUND,
    black_class,
    counted,
    half_used,
    label_of,
    lies_elsewhere,
    lossy_labels,
    named,
    only_class,
    other_numbers,
    other_palettes,
    other_size,
    unknown_values,
    written,
)
from .file_facts import Facts, gather
from .label_files import ColorError
from .recipe import DataError

if TYPE_CHECKING:
    from .data import Split

T = TypeVar("T")
_VALUES = "with values that no class has"
PATIENT = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # for processes that wait for the one that checks
_LEAST_SHARE = 0.05  # of the range, which values have to reach
_DARK = 0.25  # largest share of 16 bits that is worth a warning


@dataclass
class Report:
    """What a split holds, image by image; made by :func:`check_files`.

    Attributes:
        split: The split.
        images: Facts of each image.
        labels: Facts of the label file of each image.
        warnings: Lines on what may be wrong.
        notes: Lines on how files were read.
    """

    split: "Split"
    images: list[Facts]
    labels: list[Facts]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def by_class(self) -> np.ndarray:
        """Pixels of each class in each image, and of those left out in the last column: (images, classes + 1)."""
        count, split = len(self.split.classes), self.split
        pixels = np.zeros((len(self.labels), count + 2), np.int64)  # values that no class has at the end
        for row, facts in zip(pixels, self.labels):
            for value, number in facts.values.items():
                row[label_of(value, split)] += number
        return pixels[:, :-1]

    @cached_property
    def values(self) -> Counter[int]:
        """Number of pixels of each value or color code in the label files."""
        found: Counter[int] = Counter()
        for facts in self.labels:
            found.update(facts.values)
        return found

    @property
    def pixels(self) -> np.ndarray:
        """Number of pixels of each class."""
        return self.by_class[:, :-1].sum(0)

    @property
    def shares(self) -> np.ndarray:
        """Share of each class among the pixels that count."""
        return self.pixels / max(self.pixels.sum(), 1)

    @property
    def present(self) -> np.ndarray:
        """Number of images that hold each class."""
        return (self.by_class[:, :-1] > 0).sum(0)

    @property
    def left_out(self) -> float:
        """Share of the pixels that are left out."""
        return self.by_class[:, -1].sum() / max(self.by_class.sum(), 1)

    @property
    def empty(self) -> int:
        """Number of label files that hold nothing but background and pixels left out."""
        objects = [label for label, name in enumerate(self.split.classes) if name.lower() not in BACKGROUND]
        return int((self.by_class[:, objects].sum(1) == 0).sum())

    def sizes(self) -> str:
        """Size of the images, or the smallest and the largest."""
        sizes = sorted({facts.size for facts in self.images}, key=lambda size: (size[0] * size[1], size))
        ends = sizes if len(sizes) == 1 else (sizes[0], sizes[-1])
        return " to ".join(f"{width}×{height}" for width, height in ends) + " pixels"

    def _objects(self) -> str:
        return f"; {counted(self.empty, 'image')} without any object" if self.empty else ""

    def summary(self, name: str) -> list[str]:
        """Describe the split called `name` in two lines, and how files were read in one more."""
        order = [label for label in np.argsort(-self.pixels, kind="stable").tolist() if self.pixels[label]]
        some = [f"{self.split.classes[i]} {100 * self.shares[i]:.3g}% ({self.present[i]})" for i in order]
        if len(some) > 8:
            some = [*some[:4], f"... the rarest: {some[-3]}", *some[-2:]]
        absent = len(self.split.classes) - len(order)
        some += [f"{absent} of {len(self.split.classes)} classes absent"] if absent else []
        some += [f"{100 * self.left_out:.3g}% of all pixels left out"] if self.left_out else []
        return [
            f"{name}: {counted(len(self.images), 'image')} of {self.split.name}, {self.sizes()}{self._objects()}",
            f"  classes by pixels (images): {', '.join(some)}",
            *([f"  {'; '.join(self.notes)}"] if self.notes else []),
        ]

    def table(self, name: str) -> list[str]:
        """Describe the split called `name`, with a line for each class."""
        left_out = f"{100 * self.left_out:.1f}% of the pixels left out"
        lines = [f"{name}: {counted(len(self.images), 'image')} of {self.split.name}, {left_out}"]
        lines += [f"  {self.sizes()}{self._objects()}", *(f"  {note}" for note in self.notes)]
        for label, (share, images) in enumerate(zip(self.shares, self.present)):
            share = f"{100 * share:6.2f}%" if share >= 5e-5 or not share else f"{100 * share:6.1g}%"
            lines.append(f"  {label:3d} {self.split.classes[label]:24s} {share}  in {counted(images, 'image')}")
        present = self.pixels > 0
        rarest = self.split.classes[int(np.where(present, self.pixels, self.pixels.max() + 1).argmin())]
        return [
            *lines,
            f"  the rarest class: {rarest}" + (f"; absent: {(~present).sum()}" if not present.all() else ""),
        ]


# The check of a split


def check_files(split: "Split", root: Path | str | None = None, workers: int = 1) -> Report:
    """Read every file of a split, or take what is remembered of it, and count the classes.

    Args:
        split: The split.
        root: The data folder, which remembers what was read.
        workers: Number of threads.

    Returns:
        What the split holds, with warnings.

    Raises:
        DataError: If files cannot be used, or no pixel is of any class. It names the first ones of each kind.
    """
    kind = "colors" if split.by_color else "values"
    files = [(path, "image") for path in split.images], [(path, kind) for path in split.labels]
    found = gather([*files[0], *files[1]], root, workers, f"check {split.images[0].parent.name}")
    images, labels = ([found[file] for file in part] for part in files)
    _raise_problems(split, images, labels)
    if message := _outside(split, images):
        raise DataError(message)
    used = [(path, facts.palette) for path, facts in zip(split.labels, labels) if isinstance(facts, Facts)]
    if message := other_palettes(split, used):
        raise DataError(message)
    report = Report(split, images, labels)
    if not report.pixels.any():
        left_out = named([written(value, split) for value in sorted(report.values)])
        raise DataError(
            f"The {counted(len(split), 'label file')} in {split.labels[0].parent} hold no pixel of any class, but only "
            f"{left_out}, which is left out: give it a class in classes.txt, or change --ignore_index."
        )
    warnings = filter(
        None,
        (
            *(_absent(report), _depths(split, labels), black_class(split, used), _binary(report)),
            *(_rotated(report), _dark(report), _pages(report)),
        ),
    )
    report.warnings += [f"Warning: {warning}" for warning in warnings]
    if gray := sum(facts.depth == "colors" for facts in labels) if not split.by_color else 0:
        report.notes.append(f"{counted(gray, 'label file')} with colors, all of them gray: read as gray values")
    return report


def check_labels(split: "Split") -> str | None:
    """Check a split that is to be trained on, as :func:`check_files` does.

    Returns:
        Its warnings, a line each, if there are any.

    Raises:
        DataError: As `check_files`, and if only one class would be trained.
    """
    report = check_files(split)
    refuse_one_class(report)
    return "\n".join(report.warnings) or None


def check_splits(
    train: "Split", val: "Split", root: Path | str | None = None, workers: int = 1
) -> tuple[Report, Report]:
    """Check what is to be trained on and what is to be evaluated, and compare the two.

    Raises:
        DataError: As `check_labels` for `train`, as `check_files` for `val`.
    """
    first = check_files(train, root, workers)
    refuse_one_class(first)
    first.warnings += [f"Warning: {warning}" for warning in [_twice(first)] if warning]
    second = check_files(val, root, workers)
    second.warnings += [f"Warning: {warning}" for warning in [_overlap(first, second)] if warning]
    forms = [Counter(map(_written_form, report.images)).most_common(1)[0][0] for report in (first, second)]
    if forms[0] != forms[1]:
        raise DataError(
            f"Training images hold {forms[0]}, but those in {val.images[0].parent} {forms[1]}: save all alike."
        )
    names = {path.stem: facts.digest for path, facts in zip(train.images, first.images)}
    same = sum(names.get(path.stem, f.digest) != f.digest for path, f in zip(val.images, second.images))
    if same:
        second.notes.append(f"{counted(same, 'name')} of images also in train, with other content")
    return first, second


def check_lines(train: "Split", val: "Split", root: Path | str | None = None, workers: int = 1) -> list[str]:
    """Check as `check_splits` does, and return a summary of each split and the warnings, a line each."""
    reports = check_splits(train, val, root, workers)
    return [line for name, r in zip(("train", "val"), reports) for line in (*r.summary(name), *r.warnings)]


def in_first_process(accelerator: Accelerator, check: Callable[[], T]) -> T:
    """Run a check in the first process, and give all processes its result, or raise its error in all of them."""
    found: list = [None, None]
    if accelerator.is_main_process:
        try:
            found[1] = check()
        except Exception as error:  # a bug too: the others would wait for the result
            found[0] = error
    broadcast_object_list(found)
    if found[0]:
        raise found[0]
    return found[1]


# What is refused


def _raise_problems(split: "Split", images: list[Facts | DataError], labels: list[Facts | DataError]) -> None:
    """Raise a DataError if files cannot be used: the first one in full, the others counted by kind."""
    found: dict[str, dict[Path, str]] = {}  # messages by kind and file
    everywhere: Counter[int] = Counter()
    for facts in labels:
        everywhere.update(facts.values if isinstance(facts, Facts) else {})
    kinds = Counter(_written_form(image) for image in images if isinstance(image, Facts))
    usual = kinds.most_common(1)[0][0] if kinds else ""
    for image_path, path, image, facts in zip(split.images, split.labels, images, labels):
        if isinstance(image, DataError):
            found.setdefault("that cannot be read", {})[image_path] = str(image)
        elif problem := _unlike(image, usual, split.form):
            found.setdefault(problem[0], {})[image_path] = f"{image_path} {problem[1]}"
        if isinstance(facts, DataError):
            kind = "with colors" if isinstance(facts, ColorError) else "that cannot be read"
            found.setdefault(kind, {})[path] = str(facts)
            continue
        if isinstance(image, Facts) and image.digest == facts.digest:
            message = f"{path} is a copy of its image {image_path.name}: put its labels there."
            found.setdefault("that are copies of their images", {})[path] = message
        elif facts.lossy:
            found.setdefault(f"saved as {facts.lossy}", {})[path] = lossy_labels(split, path, facts.lossy)
        elif isinstance(image, Facts) and image.size != facts.size:
            message = other_size(image_path, image.size, image.orientation, path, facts.size)
            rotated = image.size == facts.size[::-1]
            kind = "not rotated as their images" if rotated else "of another size than their images"
            found.setdefault(kind, {})[path] = message
        elif isinstance(image, Facts) and (problem := lies_elsewhere(image.place, facts.place)):
            found.setdefault("that lie elsewhere than their images", {})[path] = f"{path} {problem}"
        elif unknown := [v for v in facts.values if label_of(v, split) > len(split.classes)]:
            message = "" if _VALUES in found else unknown_values(split, path, unknown, everywhere)
            found.setdefault(_VALUES, {})[path] = message
    if not found:
        return
    if [*found] == [_VALUES] and (message := other_numbers(split, everywhere)):
        raise DataError(message)
    messages = [message for kind in found.values() for message in kind.values()]
    parts = [f"{len(kind)} {words} ({named([path.name for path in kind], 3)})" for words, kind in found.items()]
    all_bad = f"Bad files in all: {named(parts)}." if len(messages) > 1 else None
    depths = _VALUES in found and _depths(split, labels)
    raise DataError(" ".join(filter(None, (messages[0], all_bad, depths))))


def _written_form(image: Facts) -> str:
    """Type of an image's values and number of its bands, in words, alike for all photos."""
    if not image.kind:
        return "8 bits in gray or color"
    return f"{counted(image.bands, 'band')} of {image.kind}"


def _outside(split: "Split", images: Sequence[Facts | DataError]) -> str | None:
    """Images whose values lie outside the range, or fill a small part of it, so that nearly all are black or white."""
    numbers = [image for image in images if isinstance(image, Facts) and image.kind]
    if split.form.value_range is None or not numbers:
        return None
    pairs = np.reshape(split.form.value_range, (-1, 2))
    low, high = pairs[:, 0].min(), pairs[:, 1].max()
    first, last = min(image.low for image in numbers), max(image.peak for image in numbers)
    if last > low + _LEAST_SHARE * (high - low) and first < high - _LEAST_SHARE * (high - low):
        return None
    return (
        f"The images in {split.images[0].parent} hold values from {first:g} to {last:g}, but the range is {low:g} to "
        f"{high:g}: give images in its units, or the range of these."
    )


def _unlike(image: Facts, usual: str, form: ImageForm) -> tuple[str, str] | None:
    """Why an image is not read as the others, or as the model or the settings want it: kind, and in a sentence."""
    own = _written_form(image)
    if own != usual:
        return "of another type than the others", f"holds {own}, but most images hold {usual}: save all alike."
    if form.bands:
        if max(form.bands) > image.bands:
            wanted = ", ".join(map(str, form.bands))
            return "without the bands", f"has {counted(image.bands, 'band')}, but the bands {wanted} are to be taken."
    elif form.channels is not None:
        convertible = (1, 3) if not image.kind or image.bands in (1, 2, 3, 4) else ()
        if form.channels not in (*convertible, image.bands, image.bands - 1):
            sentence = f"has {counted(image.bands, 'band')}, but the model takes {form.channels} channels"
            return "with other bands", f"{sentence}: name the bands to take, by --bands in training, or train on all."
    pairs = np.reshape(form.value_range or (0, 1), (-1, 2))
    if image.kind in ("", "uint8") and pairs.min() >= 0 and pairs[:, 1].min() > 255:
        return "with 8 bits only", f"holds 8 bits, but the range is {form.value_range}: give files in its units."
    largest = 1 if image.kind.startswith("float") else 65535
    if image.kind not in ("", "uint8") and form.value_range is None and not 0 <= image.low <= image.peak <= largest:
        some = (
            f"holds values from {image.low:g} to {image.peak:g}"
            if np.isfinite(image.low)
            else "holds pixels without a number"
        )
        return "of unknown range", f"{some}: say which are black and white, as the model's range or by --range."
    return None


def refuse_one_class(report: Report) -> None:
    """Raise a DataError if only one class would be trained."""
    if message := half_used(report.split, report.values) or only_class(report.split, report.values):
        raise DataError(message)


# What is pointed out


def _absent(report: Report) -> str | None:
    split = report.split
    absent = [name for name, images in zip(split.classes, report.present) if not images]
    if not absent:
        return None
    left_out = [written(value, split) for value in report.values if label_of(value, split) == len(split.classes)]
    some = f" {named(left_out)}, {100 * report.left_out:.3g}% of the pixels, is left out." if left_out else ""
    return (
        f"no pixel of the {counted(len(split), 'label file')} in {split.labels[0].parent} is of the class "
        f"{', '.join(absent[:8])}{f' and {len(absent) - 8} more' if len(absent) > 8 else ''}. If there should be some, "
        f"check the values in classes.txt.{some}"
    )


def _depths(split: "Split", labels: Sequence[Facts | DataError]) -> str | None:
    found: dict[str, list[Path]] = {}
    for path, facts in zip(split.labels, labels):
        if isinstance(facts, Facts) and "bit" in facts.depth:
            found.setdefault(facts.depth, []).append(path)
    if split.by_color or len(found) < 2:
        return None
    some = named([f"{len(paths)} of {depth} ({paths[0].name})" for depth, paths in found.items()])
    return f"Label files differ in depth, {some}: if a value means different things in them, save all alike."


def _binary(report: Report) -> str | None:
    """Masks of two classes in which 255 seems to mean the second class, beside others in which 1 does."""
    if len(report.split.classes) != 2 or report.split.mapping is not None:
        return None
    kinds = [facts.values.keys() for facts in report.labels]
    if any(kind >= {1, 255} for kind in kinds) or not any(1 in kind for kind in kinds):
        return None
    found = [path.name for path, kind in zip(report.split.labels, kinds) if 255 in kind]
    return found and (
        f"{counted(len(found), 'label file')} ({named(found, 1)}) hold 0 and 255 only, others 0 and 1: if 255 is "
        f"{report.split.classes[1]!r} there, `prepare_labels.py masks` with --threshold 1 makes all alike."
    )


def _rotated(report: Report) -> str | None:
    """Images that EXIF rotates, while their labels may be rotated or not: their size fits both."""
    found = [
        path.name
        for path, facts in zip(report.split.images, report.images)
        if facts.orientation > 1 and (facts.orientation < 5 or facts.size[0] == facts.size[1])
    ]
    return found and (
        f"{counted(len(found), 'image')} ({named(found, 1)}) will be rotated or mirrored as a note in the file "
        f"asks (EXIF orientation); the size of the labels does not tell whether they are. Look at it with show_data.py."
    )


def _dark(report: Report) -> str | None:
    peak = max(facts.peak for facts in report.images)
    of_integers = all("int" in facts.kind and facts.kind != "uint8" for facts in report.images)
    if report.split.form.value_range is not None or not of_integers or not 0 < peak < _DARK * 65535:
        return None
    return (
        f"the largest value of the 16-bit images in {report.split.images[0].parent} is {peak:g} of 65535: they are "
        f"nearly black, since no range is stated. train.py measures one, and keeps it in the model."
    )


def _pages(report: Report) -> str | None:
    found = [path.name for path, facts in zip(report.split.images, report.images) if facts.pages > 1]
    return found and f"{counted(len(found), 'image')} ({named(found, 1)}) hold several pages: the first one is taken."


def _twice(report: Report) -> str | None:
    first: dict[str, Path] = {}
    copies = [
        (path, first[facts.digest])
        for path, facts in zip(report.split.images, report.images)
        if first.setdefault(facts.digest, path) != path
    ]
    if not copies:
        return None
    some = f"{copies[0][0].name} is {copies[0][1].name}"
    return f"{len(copies)} of {len(report.images)} training images are copies of others (the first: {some})."


def _overlap(train: Report, val: Report) -> str | None:
    labels = {image.digest: facts.digest for image, facts in zip(train.images, train.labels)}
    both = [place for place, facts in enumerate(val.images) if facts.digest in labels]
    if not both:
        return None
    equal = sum(labels[val.images[place].digest] == val.labels[place].digest for place in both)
    return (
        f"{len(both)} of {counted(len(val.images), 'validation image')} are also in train (the first: "
        f"{val.split.images[both[0]].name}), {equal or 'none'} of them with equal labels: the scores will be too good. "
        f"Remove them from one of the two."
    )
