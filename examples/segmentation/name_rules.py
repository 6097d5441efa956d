"""How the names of images become those of their labels: rules that the names of a folder suggest.

A rule is one affix that the whole folder shares. Nothing is decided for a file by itself: where the names allow two
rules, an error names the files.
"""

import difflib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .recipe import DataError

# What names call labels and images, in any case. They tell which is which where both lie in one folder
MASK_WORDS = {"mask", "masks", "matte", "label", "labels", "labelids", "labeltrainids", "annotation", "annotations"}
MASK_WORDS |= {"target", "targets", "contour", "contours", "trimap", "map", "lc"}
MASK_WORDS |= {"anno", "ann", "gt", "gtfine", "groundtruth", "truth", "seg", "segm", "segmentation", "manual", "l", "y"}
IMAGE_WORDS = {"image", "images", "img", "im", "sat", "rgb", "photo", "leftimg8bit", "orig", "original", "raw"}
IMAGE_WORDS |= {"input", "x"}
# What names call pictures that were drawn from labels
PREVIEW_WORDS = {"color", "colour", "rgb", "vis", "viz", "overlay", "preview", "blend", "thumb", "small"}


# Names of folders in a folder of your own, in any case; the first ones go before the others
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "img_dir", "images_png", "rgb", "sat")
IMAGE_FOLDERS += ("original", "originals", "input", "inputs", "x")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "annotation", "SegmentationClass", "segmentations")
LABEL_FOLDERS += ("segmentation", "gt", "ground_truth", "groundtruth", "ann_dir", "annot", "masks_png", "manual")
LABEL_FOLDERS += ("1st_manual", "2nd_manual", "target", "targets", "semantic", "map", "masks_machine", "y")
LABEL_FOLDERS += ("SegmentationClassPNG", "SegmentationClassRaw", "SegmentationClassAug")

# What to do where names do not tell what is meant
ANY_FOLDERS = "`prepare_labels.py masks IMAGES MASKS NEW_FOLDER` takes two folders of any names."
SEVERAL_MASKS = (
    "Leave those of one kind in the folder. Or `prepare_labels.py masks` chooses one kind by --mask_names, such as "
    "'*_labelIds.png', and `prepare_labels.py binary` merges masks of one class or object each."
)


@dataclass(frozen=True)
class Rule:
    """How the name of an image becomes that of its labels: by another beginning, another end, or both.

    Attributes:
        removed: Beginning and end of an image's name.
        added: Beginning and end of a label file's name.
        inserted: Text in a label file's name, and how many words, numbers and marks of the image's name follow.
    """

    removed: tuple[str, str] = ("", "")
    added: tuple[str, str] = ("", "")
    inserted: tuple[str, int] = ("", 0)

    def label_name(self, name: str) -> str | None:
        """The name of an image's labels; None if the image's name is of another form."""
        folder, slash, stem = name.rpartition("/")
        start, end = self.removed
        if len(stem) <= len(start) + len(end) or not (stem.startswith(start) and stem.endswith(end)):
            return None
        core, (text, after) = stem[len(start) : len(stem) - len(end)], self.inserted
        if text:
            parts = tokens(core)
            core = "".join([*parts[:-after], text, *parts[-after:]])
        return f"{folder}{slash}{self.added[0]}{core}{self.added[1]}"

    def pairs(self, images: Iterable[str], labels: Collection[str]) -> dict[str, str]:
        """The name of the labels of each image that has some."""
        return {name: label for name in images if (label := self.label_name(name)) in labels}

    def inverse(self) -> "Rule":
        """The rule from labels to images."""
        return Rule(self.added, self.removed)

    def words(self) -> tuple[set[str], set[str]]:
        """Words, in small letters, and numbers of what is removed and of what is added."""
        return tuple({t.lower() for part in parts for t in tokens(part)} for parts in (self.removed, self.added))

    def is_named(self) -> bool:
        """Whether it adds to the image's name, or uses a word for images or labels."""
        removed, added = self.words()
        return not any(self.removed) or bool(added & MASK_WORDS or removed & (MASK_WORDS | IMAGE_WORDS))

    def says_what_is_what(self) -> bool:
        """Whether it adds or removes only, changes the case of letters, or uses a word for images or labels."""
        removed, added = ("".join(parts) for parts in (self.removed, self.added))
        return not removed or not added or removed.lower() == added.lower() or self.is_named()

    def __str__(self) -> str:
        said = []
        for old, new, form in zip(self.removed, self.added, ("{!r} + name", "name + {!r}")):
            if old and new:
                said.append(f"{old!r} becomes {new!r}")
            elif new:
                said.append(form.format(new))
            elif old:
                said.append(f"name without {old!r}")
        said += [f"{self.inserted[0]!r} in the name"] if self.inserted[0] else []
        return ", ".join(said) or "the same names"


SAME = Rule()


def rule_of_two_folders(images: Collection[str], labels: Collection[str]) -> Rule:
    """The rule of the whole folder.

    Raises:
        DataError: If there is none, or more than one.
    """
    found = SAME.pairs(images, labels)
    if len(found) == len(images):
        return SAME
    candidates = {SAME: found} if found else {}
    least = min(len(images), len(labels)) / 2  # fewer pairs are a coincidence
    for rule in (*suggested_rules(list(images), list(labels)), *_inserting_rules(images, labels)):
        found = rule.pairs(images, labels)
        if not rule.says_what_is_what():  # train_001 and val_001 are other pictures
            continue
        # a single pair of names of no meaning proves nothing
        if max(least, 1) < len(found) or len(found) == least > 1 or (len(found) == 1 > least and rule.is_named()):
            candidates[rule] = found
    best = only_rule(candidates)
    if best is None:
        image, label = next(iter(images)), next(iter(labels))
        raise DataError(
            f"no image and label file belong together by their names, such as {image!r} and {label!r}: give them equal "
            f"names, or names that differ by one affix in the whole folder, such as '_mask'. Masks of one class or "
            f"object each are read by `prepare_labels.py binary`."
        )
    return best


def only_rule(candidates: dict[Rule, dict[str, str]]) -> Rule | None:
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
    same = [rule for rule in kept if set(candidates[rule].values()) <= set(candidates[kept[0]].values())]
    if len(same) > 1:  # other pictures of what is labeled: kept is what only adds to the image's name
        adding = [rule for rule in same if not any(rule.removed)]
        kept = [rule for rule in kept if rule not in same or rule in adding[:1]] if adding else kept
    if len(kept) > 1:
        image = next((name for name in candidates[kept[0]] if name in candidates[kept[1]]), None)
        if image is not None:
            names = " and ".join(repr(candidates[rule][image]) for rule in kept if image in candidates[rule])
            raise DataError(f"{image!r} has more than one label file: {names}. {SEVERAL_MASKS}")
        first, second = (next(iter(candidates[rule].items())) for rule in kept[:2])
        raise DataError(
            f"label files have two kinds of names, such as {first[1]!r} of {first[0]!r} and {second[1]!r} of "
            f"{second[0]!r}: give all the same. {SEVERAL_MASKS}"
        )
    return kept[0] if kept else None


def suggested_rules(images: Sequence[str], labels: Sequence[str], sample: int = 1000, most: int = 32) -> list[Rule]:
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
        if rule := _rule_of_tokens(image, label):
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


def plain(folder: str) -> str:
    """The name of a folder in small letters without what divides words: "Ground Truth" becomes "groundtruth"."""
    return re.sub(r"[ _-]", "", folder.lower())


def tokens(name: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+|[\W_]", name)


def _rule_of_tokens(image: str, label: str) -> Rule | None:
    """The rule of two names that share words or numbers in their middle."""
    folders, names = zip(*((name.rpartition("/")[0], tokens(name.rpartition("/")[2])) for name in (image, label)))
    a, b, size = difflib.SequenceMatcher(None, *names, autojunk=False).find_longest_match()
    if folders[0] != folders[1] or not any(token.isalnum() for token in names[0][a : a + size]):
        return None
    removed, added = (("".join(tokens[:at]), "".join(tokens[at + size :])) for tokens, at in zip(names, (a, b)))
    return Rule(removed, added) if any(c.isalpha() for part in (*removed, *added) for c in part) else None


def _inserting_rules(images: Iterable[str], labels: Iterable[str]) -> set[Rule]:
    """Rules that insert one text into names, as from `uu_000001` to `uu_road_000001`, by the first and last image."""
    names, found = sorted(images), set()
    for name in (names[0], names[-1]):
        parts = tokens(name)
        for label in labels:
            longer = tokens(label)
            before = next((k for k, (a, b) in enumerate(zip(parts, longer)) if a != b), len(parts))
            after, text = len(parts) - before, longer[before : before + len(longer) - len(parts)]
            if 0 < before < len(parts) < len(longer) and longer[-after:] == parts[before:] and "/" not in text:
                found.add(Rule(inserted=("".join(text), after)))
    return {rule for rule in found if any(character.isalpha() for character in rule.inserted[0])}


def core_of(image: str, rule: Rule) -> str:
    """The part of an image's name that its labels share."""
    folder, slash, stem = image.rpartition("/")
    start, end = rule.removed
    inside = len(stem) > len(start) + len(end) and stem.startswith(start) and stem.endswith(end)
    return f"{folder}{slash}{stem[len(start) : len(stem) - len(end)]}" if inside else image


def extended(name: str, cores: Collection[str]) -> str | None:
    """The longest of some names that another begins or ends with, as a whole word or number."""
    folder, slash, stem = name.rpartition("/")
    for length in range(len(stem) - 1, 0, -1):
        for part, edge in ((stem[:length], length), (stem[-length:], len(stem) - length)):
            divides = _kind(stem[edge - 1]) == _kind(stem[edge]) != ""
            if not divides and f"{folder}{slash}{part}" in cores:
                return f"{folder}{slash}{part}"
    return None
