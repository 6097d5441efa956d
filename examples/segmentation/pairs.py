"""Which label file belongs to which image, by their names alone.

Names are paths below the folder, without the ending. The name of an image is that of its labels (`a.jpg`, `a.png`), or
becomes it by one affix that the whole folder shares: `a.jpg` and `a_mask.png`, `a_sat` and `a_mask`, `img_1` and
`mask_1`. Images and labels lie in two folders or in one. Nothing is decided for a file by itself: where the names allow
two rules, or two files have one name, an error names the files.
"""

import difflib
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .recipe import DataError

# What names call labels and images, in any case. They tell which is which where both lie in one folder
MASK_WORDS = {"mask", "masks", "matte", "label", "labels", "labelids", "labeltrainids", "annotation", "annotations"}
MASK_WORDS |= {"anno", "ann", "gt", "gtfine", "groundtruth", "truth", "seg", "segm", "segmentation", "manual", "l"}
IMAGE_WORDS = {"image", "images", "img", "im", "sat", "rgb", "photo", "leftimg8bit", "orig", "original", "raw", "input"}
JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".pbm", ".pnm")
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # compressions of TIFF by Pillow's names
COMPRESSION = 259  # the tag of TIFF


@dataclass(frozen=True)
class Rule:
    """How the name of an image becomes that of its labels: by another beginning, another end, or both.

    Attributes:
        removed: Beginning and end of an image's name.
        added: Beginning and end of a label file's name.
    """

    removed: tuple[str, str] = ("", "")
    added: tuple[str, str] = ("", "")

    def label_name(self, name: str) -> str | None:
        """The name of an image's labels; None if the image's name is of another form."""
        folder, slash, stem = name.rpartition("/")
        start, end = self.removed
        if len(stem) <= len(start) + len(end) or not (stem.startswith(start) and stem.endswith(end)):
            return None
        return f"{folder}{slash}{self.added[0]}{stem[len(start) : len(stem) - len(end)]}{self.added[1]}"

    def pairs(self, images: Iterable[str], labels: Collection[str]) -> dict[str, str]:
        """The name of the labels of each image that has some."""
        return {name: label for name in images if (label := self.label_name(name)) in labels}

    def inverse(self) -> "Rule":
        """The rule from labels to images."""
        return Rule(self.added, self.removed)

    def words(self) -> tuple[set[str], set[str]]:
        """Words, in small letters, and numbers of what is removed and of what is added."""
        return tuple({t.lower() for part in parts for t in _tokens(part)} for parts in (self.removed, self.added))

    def is_named(self) -> bool:
        """Whether it adds to the image's name, or uses a word for images or labels."""
        removed, added = self.words()
        return not any(self.removed) or bool(added & MASK_WORDS or removed & (MASK_WORDS | IMAGE_WORDS))

    def __str__(self) -> str:
        said = []
        for old, new, form in zip(self.removed, self.added, ("{!r} + name", "name + {!r}")):
            if old and new:
                said.append(f"{old!r} becomes {new!r}")
            elif new:
                said.append(form.format(new))
            elif old:
                said.append(f"name without {old!r}")
        return ", ".join(said) or "the same names"


SAME = Rule()


@dataclass(frozen=True)
class Pairs:
    """Images with their label files.

    Attributes:
        images: Image files, sorted.
        labels: Label file of each.
        unlabeled: Images without labels.
        unused: Label files without an image.
        rule: How names of images become those of labels.
        folders: Folder of the images, and of the labels.
    """

    images: list[Path]
    labels: list[Path]
    unlabeled: list[Path]
    unused: list[Path]
    rule: Rule
    folders: tuple[Path, Path]

    def __str__(self) -> str:
        """What was found, in a line."""
        where, there = self.folders
        said = [f"{len(self.images)} images in {where}", f"their labels in {there} ({self.rule})"]
        for files, what in ((self.unlabeled, "images without labels"), (self.unused, "masks without image")):
            if files:
                said.append(f"{len(files)} {what}, the first: {files[0].name}")
        return ", ".join(said)

    def expected(self, image: Path) -> Path:
        """Where the labels of an image without any would be looked for."""
        name = self.rule.label_name(_name(image, self.folders[0])) or image.stem
        suffixes = Counter(path.suffix for path in self.labels) or {".png": 1}
        return self.folders[1] / f"{name}{max(suffixes, key=lambda s: (suffixes[s], s))}"


def pictures(folder: Path, without: Iterable[Path] = ()) -> list[Path]:
    """The image files in a folder and below, sorted, without hidden ones and those in some folders."""
    suffixes, without = Image.registered_extensions(), [path.resolve() for path in without]
    found: list[Path] = []
    arrays: list[Path] = []  # taken if there are no others: they may be something else beside images
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        kept = [name for name in folders if name[0] != "." and name != "__MACOSX"]
        folders[:] = [name for name in kept if (here / name).resolve() not in without]
        found += [here / name for name in files if name[0] != "." and Path(name).suffix.lower() in suffixes]
        arrays += [here / name for name in files if name[0] != "." and Path(name).suffix.lower() == ".npy"]
    return sorted(found or arrays)


def pair(images: Path, labels: Path, without: Iterable[Path] = ()) -> Pairs:
    """Find the labels of the images in a folder; `labels` may be the same folder.

    Args:
        images: Folder of the images.
        labels: Folder of the label files.
        without: Folders to leave out.

    Raises:
        DataError: If there are none, two files have one name, or the names do not tell what belongs together.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist: give a folder.")
    if images.resolve() == labels.resolve():
        return _pair_one_folder(images, pictures(images, without))
    # one may lie in the other
    image_files, label_files = pictures(images, [labels, *without]), pictures(labels, [images, *without])
    for folder, files in ((images, image_files), (labels, label_files)):
        if not files:
            raise DataError(f"{folder} holds no images.{endings(folder)}")
    by_name, labels_by_name = _by_name(images, image_files), _by_name(labels, label_files)
    for name, files in labels_by_name.items():  # a preview beside the labels
        exact = [path for path in files if path.suffix.lower() in LOSSLESS]
        labels_by_name[name] = exact if len(exact) == 1 else files
    try:
        rule = _rule_of_two_folders(by_name, labels_by_name)
    except DataError as error:
        raise DataError(f"{images} and {labels}: {error}") from None
    found = rule.pairs(by_name, labels_by_name)
    used = set(found.values())
    _refuse_doubles(by_name.values(), "images")
    _refuse_doubles([labels_by_name[name] for name in found.values()], "label files")
    return Pairs(
        [by_name[name][0] for name in found],
        [labels_by_name[label][0] for label in found.values()],
        [files[0] for name, files in by_name.items() if name not in found],
        [files[0] for name, files in labels_by_name.items() if name not in used],
        rule,
        (images, labels),
    )


def lossy(path: Path) -> str | None:
    """Why a file cannot hold labels exactly, from its ending and, if that allows for both, its head; else None."""
    suffix = path.suffix.lower()
    if suffix in JPEG:
        return "is a JPEG"
    if suffix not in LOSSLESS:
        return f"is a {suffix} file"
    if suffix == ".webp":
        content = path.read_bytes()
        return None if b"VP8L" in content[:64] or b"VP8 " not in content else "is a lossy WebP"
    if suffix in (".tif", ".tiff"):
        try:
            with Image.open(path) as image:
                return "is a TIFF with JPEG compression" if image.info.get("compression") in LOSSY_TIFF else None
        except Exception:  # whoever reads it will say why
            return None
    return None


# Names


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _by_name(folder: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by their names."""
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(_name(path, folder), []).append(path)
    return found


def _refuse_doubles(groups: Iterable[Sequence[Path]], what: str) -> None:
    for files in groups:
        if len(files) > 1:
            names = " and ".join(path.name for path in files[:3])
            raise DataError(f"{names} in {files[0].parent} are {what} of one name: rename or remove all but one.")


def endings(folder: Path) -> str:
    """What lies in a folder without images, as a sentence."""
    endings = Counter(path.suffix or path.name for path in sorted(folder.rglob("*")) if path.is_file())
    listed = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(3))
    return f" There are: {listed}." if listed else ""


# Two folders


def _rule_of_two_folders(images: Collection[str], labels: Collection[str]) -> Rule:
    """The rule of the whole folder.

    Raises:
        DataError: If there is none, or more than one.
    """
    found = SAME.pairs(images, labels)
    if len(found) == len(images):
        return SAME
    candidates = {SAME: found} if found else {}
    least = min(len(images), len(labels)) / 2  # fewer pairs are a coincidence
    for rule in _suggested(list(images), list(labels)):
        found = rule.pairs(images, labels)
        # a single pair of names of no meaning proves nothing
        if max(least, 1) < len(found) or len(found) == least > 1 or (len(found) == 1 > least and rule.is_named()):
            candidates[rule] = found
    best = _only_rule(candidates)
    if best is None:
        image, label = next(iter(images)), next(iter(labels))
        raise DataError(
            f"no image and label file belong together by their names, such as {image!r} and {label!r}: give them equal "
            f"names, or names that differ by one affix in the whole folder, such as '_mask'."
        )
    return best


def _only_rule(candidates: dict[Rule, dict[str, str]]) -> Rule | None:
    """The rule that makes most pairs.

    Raises:
        DataError: If another one makes more than half as many other pairs.
    """
    most = max(map(len, candidates.values()), default=0)
    ranked = sorted(candidates, key=lambda rule: (-len(candidates[rule]), str(rule)))
    kept: list[Rule] = []
    for rule in ranked:
        contained = any(candidates[rule].items() <= candidates[other].items() for other in kept)
        if 2 * len(candidates[rule]) > most and not contained:
            kept.append(rule)
    if len(kept) > 1:
        image = next((name for name in candidates[kept[0]] if name in candidates[kept[1]]), None)
        if image is not None:
            names = " and ".join(repr(candidates[rule][image]) for rule in kept if image in candidates[rule])
            raise DataError(f"{image!r} has more than one label file: {names}. Leave those of one kind in the folder.")
        first, second = (next(iter(candidates[rule].items())) for rule in kept[:2])
        raise DataError(
            f"label files have two kinds of names, such as {first[1]!r} of {first[0]!r} and {second[1]!r} of "
            f"{second[0]!r}: give all the same."
        )
    return kept[0] if kept else None


def _suggested(images: Sequence[str], labels: Sequence[str], sample: int = 1000, most: int = 32) -> list[Rule]:
    """Rules that single pairs of similar names suggest, most common first.

    The most similar label file of an image, by the length of the common beginning (or end), is beside it in the sorted
    list of the names (of the names from behind).
    """
    votes: Counter[Rule] = Counter()
    chosen = [images[k] for k in np.unique(np.linspace(0, len(images) - 1, min(sample, len(images))).astype(int))]
    for backward in (False, True):
        ordered = sorted(_turned(name, backward) for name in labels)
        for name in chosen:
            turned = _turned(name, backward)
            for other in _nearest(ordered, turned):
                if tails := _tails(turned, other):
                    parts = [tail[::-1] if backward else tail for tail in tails]
                    removed, added = ((part, "") if backward else ("", part) for part in parts)
                    votes[Rule(removed, added)] += 1
    for share in (0, 0.5, 1):  # for names whose beginnings and ends differ: those at one place of the sorted lists
        image, label = (sorted(names)[round(share * (len(names) - 1))] for names in (images, labels))
        if rule := _of_tokens(image, label):
            votes[rule] += 1
    return [rule for rule, _ in sorted(votes.items(), key=lambda item: (-item[1], str(item[0])))[:most]]


def _turned(name: str, backward: bool) -> str:
    folder, slash, stem = name.rpartition("/")
    return f"{folder}{slash}{stem[::-1] if backward else stem}"


def _nearest(ordered: Sequence[str], name: str, most: int = 16) -> list[str]:
    """Names of a sorted list that have the longest beginning in common with `name`, without `name` itself."""
    place = bisect_left(ordered, name)
    beside = [ordered[max(place - most, 0) : place][::-1], [n for n in ordered[place : place + most] if n != name]]
    common = [[_common(name, other) for other in side] for side in beside]
    longest = max((lengths[0] for lengths in common if lengths), default=0)
    return [other for side, lengths in zip(beside, common) for other, n in zip(side, lengths) if n == longest]


def _tails(first: str, second: str) -> tuple[str, str] | None:
    """What differs at the end of two names, as whole words and numbers; None if that is all of a name, or no word."""
    length = _common(first, second)
    start = max(first.rfind("/"), second.rfind("/")) + 1

    def divides(text: str) -> bool:
        """Whether a word or a number goes on at `length`."""
        return 0 < length < len(text) and _kind(text[length - 1]) == _kind(text[length]) != ""

    while length > start and (divides(first) or divides(second)):
        length -= 1
    both = len(first) > length < len(second)
    while length > start and both and _kind(first[length - 1]) == "":
        length -= 1
    if not any(character.isalnum() for character in first[start:length]):
        return None
    tails = first[length:], second[length:]
    named = any(character.isalpha() for tail in tails for character in tail)
    return tails if named or not both else None


def _common(first: str, second: str) -> int:
    """Length of the common beginning."""
    return next((k for k, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def _kind(character: str) -> str:
    """Whether a character is part of a number, a word or neither."""
    return "0" if character.isdigit() else "a" if character.islower() else "A" if character.isalpha() else ""


def _tokens(name: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+|[\W_]", name)


def _of_tokens(image: str, label: str) -> Rule | None:
    """The rule of two names that share words or numbers in their middle."""
    folders, names = zip(*((name.rpartition("/")[0], _tokens(name.rpartition("/")[2])) for name in (image, label)))
    a, b, size = difflib.SequenceMatcher(None, *names, autojunk=False).find_longest_match()
    if folders[0] != folders[1] or not any(token.isalnum() for token in names[0][a : a + size]):
        return None
    removed, added = (("".join(tokens[:at]), "".join(tokens[at + size :])) for tokens, at in zip(names, (a, b)))
    return Rule(removed, added) if any(c.isalpha() for part in (*removed, *added) for c in part) else None


# One folder


def _pair_one_folder(folder: Path, files: list[Path]) -> Pairs:
    """Images and masks of a folder that holds both.

    Raises:
        DataError: If there are no masks, or the names do not tell which are the images.
    """
    by_name = _by_name(folder, files)
    candidates: dict[Rule, dict[str, str]] = {}
    names = list(by_name)
    if doubles := {name: name for name, there in by_name.items() if len(there) > 1}:
        candidates[SAME] = doubles
    for rule in _suggested(names, names):
        found = rule.pairs(names, by_name)
        if found and not set(found) & set(found.values()) and _leads_to_masks(rule, found, by_name):
            candidates[rule] = found
    try:
        rule = _only_rule(candidates)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    if rule is None:
        raise DataError(
            f"{folder} holds {len(files)} images, but their names do not tell which are masks: give masks names "
            f"such as 'a_mask.png' for 'a.jpg', or a folder of their own."
        )
    found = candidates[rule]
    if rule == SAME:
        return _pair_by_ending(folder, by_name)
    _refuse_doubles([by_name[name] for pair in found.items() for name in pair], "files")
    masks = set(found.values())
    others = [name for name in names if name not in found and name not in masks]
    unused = [name for name in others if rule.inverse().label_name(name) or _beginnings(name, masks)]
    aside = set(unused)
    left = [name for name in others if name not in aside]
    _refuse_doubles([by_name[name] for name in left], "images")
    return Pairs(
        [by_name[name][0] for name in found],
        [by_name[mask][0] for mask in found.values()],
        [by_name[name][0] for name in left],
        [by_name[name][0] for name in unused],
        rule,
        (folder, folder),
    )


def _beginnings(name: str, masks: set[str]) -> set[str]:
    """The masks that a name begins with, as that of a second mask of an image does."""
    return {name[:end] for end in range(1, len(name))} & masks


def _leads_to_masks(rule: Rule, found: dict[str, str], by_name: dict[str, list[Path]]) -> bool:
    """Whether a rule leads from images to masks, and not the other way: by words, by what is added, or by endings."""
    removed, added = rule.words()
    for words, of_masks, of_others in ((MASK_WORDS, added, removed), (IMAGE_WORDS, removed, added)):
        if bool(words & of_masks) != bool(words & of_others):
            return bool(words & of_masks)
    if (not any(rule.removed) or not any(rule.added)) and any(c.isalpha() for word in removed | added for c in word):
        return not any(rule.removed)
    sides = [{by_name[name][0].suffix.lower() in JPEG for name in names} for names in (found, found.values())]
    return sides == [{True}, {False}]


def _pair_by_ending(folder: Path, by_name: dict[str, list[Path]]) -> Pairs:
    """Pairs of one name in one folder: a JPEG is the image, another file the mask."""
    images, labels, unlabeled, unused = [], [], [], []
    for files in by_name.values():
        photos = [path for path in files if path.suffix.lower() in JPEG]
        others = [path for path in files if path not in photos]
        if len(files) == 1:
            (unlabeled if photos else unused).extend(files)
        elif len(photos) == len(others) == 1:
            images += photos
            labels += others
        else:
            _refuse_doubles([files], "files")
    return Pairs(images, labels, unlabeled, unused, SAME, (folder, folder))
