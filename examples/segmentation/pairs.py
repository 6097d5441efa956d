"""Which label file belongs to which image, by their names alone.

Names are paths below the folder, without the ending. The name of an image is that of its labels (`a.jpg`, `a.png`), or
becomes it by one affix that the whole folder shares: `a.jpg` and `a_mask.png`, `a_sat` and `a_mask`, `img_1` and
`mask_1`. Images and labels lie in two folders, in one, or in several that hold a folder of each (`Tile 1/images`,
`Tile 1/masks`); the names of these two are left out. Nothing is decided for a file by itself: where the names allow two
rules, or two files have one name, an error names the files.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from PIL import Image

from .name_rules import (
    ANY_FOLDERS,
    IMAGE_FOLDERS,
    IMAGE_WORDS,
    LABEL_FOLDERS,
    MASK_WORDS,
    PREVIEW_WORDS,
    SAME,
    SEVERAL_MASKS,
    Rule,
    core_of,
    extended,
    only_rule,
    plain,
    rule_of_two_folders,
    suggested_rules,
    tokens,
)
from .recipe import DataError

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".pbm", ".pnm")
_FOLDERS = [{*map(plain, names)} for names in (IMAGE_FOLDERS, LABEL_FOLDERS)]
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # compressions of TIFF by Pillow's names


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
        aside: Pictures in folders that are neither of images nor of labels.
    """

    images: list[Path]
    labels: list[Path]
    unlabeled: list[Path]
    unused: list[Path]
    rule: Rule
    folders: tuple[Path, Path]
    aside: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        """What was found, in a line."""
        where, there = self.folders
        said = [f"{len(self.images)} images in {where}", f"their labels in {there} ({self.rule})"]
        kinds = (self.unlabeled, "images without labels"), (self.unused, "masks without image")
        for files, what in (*kinds, (self.aside, "pictures in other folders")):
            if files:
                said.append(f"{len(files)} {what}, the first: {files[0].name}")
        return ", ".join(said)

    def expected(self, image: Path) -> Path:
        """Where the labels of an image without any would be looked for."""
        suffixes = Counter(path.suffix for path in self.labels) or {".png": 1}
        name = self.rule.label_name(_name(image, self.folders[0])) or image.stem
        beside = {path.parent: label.parent for path, label in zip(self.images, self.labels)}
        if self.folders[0] == self.folders[1] and (parts := [*beside.items()]) and parts[0][0] != parts[0][1]:
            beside.setdefault(image.parent, image.parent.with_name(parts[0][1].name))  # Tile 9/masks beside its images
        file = f"{name}{max(suffixes, key=lambda s: (suffixes[s], s))}"
        return beside[image.parent] / Path(file).name if image.parent in beside else self.folders[1] / file


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


def pair(images: Path, labels: Path, without: Iterable[Path] = (), label_names: str = "*") -> Pairs:
    """Find the labels of the images in a folder; `labels` may be the same folder.

    Args:
        images: Folder of the images.
        labels: Folder of the label files.
        without: Folders to leave out.
        label_names: Pattern of the names of label files.

    Raises:
        DataError: If there are none, two files have one name, or the names do not tell what belongs together.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist: give a folder.")
    one = images.resolve() == labels.resolve()
    by_name, labels_by_name, aside = two_kinds(images, labels, without, label_names)
    if one and not labels_by_name:
        return _pair_one_folder(images, pictures(images, without))
    for name, files in labels_by_name.items():  # a preview beside the labels
        exact = [path for path in files if path.suffix.lower() in LOSSLESS]
        labels_by_name[name] = exact if len(exact) == 1 else files
    try:
        rule = rule_of_two_folders(by_name, labels_by_name)
    except DataError as error:
        if not one:
            groups = by_name, labels_by_name
            below = [Path(os.path.commonpath([p.parent for files in g.values() for p in files])) for g in groups]
            if below != [images, labels] and below[0] != below[1]:  # all of one kind lie in one folder below
                with suppress(DataError):
                    return pair(*below, without, label_names)
        raise DataError(f"{images}{f' and {labels}' * (not one)}: {error}") from None
    found = rule.pairs(by_name, labels_by_name)
    used = set(found.values())
    _refuse_doubles(by_name.values(), "images")
    _refuse_doubles([labels_by_name[name] for name in found.values()], "label files")
    _refuse_more_masks(images, rule, found, by_name, [name for name in labels_by_name if name not in used])
    return Pairs(
        [by_name[name][0] for name in found],
        [labels_by_name[label][0] for label in found.values()],
        [files[0] for name, files in by_name.items() if name not in found],
        [files[0] for name, files in labels_by_name.items() if name not in used],
        rule,
        (images, labels),
        aside,
    )


def two_kinds(
    images: Path, labels: Path, without: Iterable[Path] = (), label_names: str = "*"
) -> tuple[dict[str, list[Path]], dict[str, list[Path]], list[Path]]:
    """Image files and label files by their names, and pictures that are neither.

    In one folder, folders below tell what is what, or the pattern of the names of label files; without, all is neither.

    Raises:
        DataError: If one of two folders holds no files.
    """
    if images.resolve() == labels.resolve():
        files = pictures(images, without)
        found = [(path, *_kind_and_name(path, images)) for path in files]
        if not {0, 1} <= {kind for _, kind, _ in found}:
            if label_names == "*":
                return {}, {}, files
            found = [(path, int(fnmatch(path.name, label_names)), _name(path, images)) for path in files]
    else:  # one may lie in the other
        found = []
        for kind, (folder, other) in enumerate(((images, labels), (labels, images))):
            files = pictures(folder, [other, *without])
            if not files:
                raise DataError(f"{folder} holds no images.{endings(folder)}")
            found += [(path, kind, _name(path, folder)) for path in files]
    groups: tuple[dict[str, list[Path]], dict[str, list[Path]]] = ({}, {})
    for path, kind, name in found:
        if kind == 0 or (kind == 1 and fnmatch(path.name, label_names)):
            groups[kind].setdefault(name, []).append(path)
    if not groups[1]:
        raise DataError(f"{labels} holds no masks named {label_names!r}.")
    return *groups, [path for path, kind, _ in found if kind is None]


def lossy(path: Path) -> str | None:
    """Why a file cannot hold labels exactly, from its ending and, if that allows for both, its head; else None."""
    suffix = path.suffix.lower()
    if suffix in JPEG:
        return "is a JPEG"
    if suffix not in (*LOSSLESS, ".npy"):
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
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())  # macOS writes NFD


def _kind_and_name(path: Path, folder: Path) -> tuple[int | None, str]:
    """What the innermost folder of a known name holds, 0 images and 1 labels, and a file's name without that folder."""
    parts = _name(path, folder).split("/")
    kinds = [next((k for k, names in enumerate(_FOLDERS) if plain(part) in names), None) for part in parts[:-1]]
    place = max((k for k, kind in enumerate(kinds) if kind is not None), default=None)
    if place is None:
        return None, "/".join(parts)
    return kinds[place], "/".join(parts[:place] + parts[place + 1 :])


def _refuse_doubles(groups: Iterable[Sequence[Path]], what: str) -> None:
    for files in groups:
        if len(files) > 1:
            apart = len({path.parent for path in files}) > 1
            names = " and ".join(str(path) if apart else path.name for path in files[:3])
            where = "" if apart else f" in {files[0].parent}"
            raise DataError(f"{names}{where} are {what} of one name: rename or remove all but one.")


def _refuse_more_masks(
    folder: Path, rule: Rule, found: dict[str, str], images: Iterable[str], unused: Sequence[str]
) -> None:
    """Raise a DataError if the name of an unused mask is that of an image and more, as of a second mask of it."""
    cores = {core_of(image, rule): image for image in images}
    # names of images that are longer names of other images say that masks without image may be so too
    if not unused or any(extended(core, cores) for core in cores):
        return
    cores = {core: image for core, image in cores.items() if image in found}
    for name in unused:
        if PREVIEW_WORDS & {token.lower() for token in tokens(name)}:
            continue
        if (core := extended(name, cores)) and (rule == SAME or rule.inverse().label_name(name) is None):
            image = cores[core]
            raise DataError(
                f"{folder}: {image!r} has more than one label file: {found[image]!r} and {name!r}. {SEVERAL_MASKS}"
            )


def endings(folder: Path) -> str:
    """What lies in a folder without images, as a sentence."""
    endings = Counter(path.suffix or path.name for path in sorted(folder.rglob("*")) if path.is_file())
    listed = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(3))
    return f" There are: {listed}." if listed else ""


# One folder


def _pair_one_folder(folder: Path, files: list[Path]) -> Pairs:
    """Images and masks of a folder that holds both.

    Raises:
        DataError: If there are no masks, or the names do not tell which are the images.
    """
    by_name: dict[str, list[Path]] = {}
    for path in files:
        by_name.setdefault(_name(path, folder), []).append(path)
    candidates: dict[Rule, dict[str, str]] = {}
    names = list(by_name)
    if doubles := {name: name for name, there in by_name.items() if len(there) > 1}:
        candidates[SAME] = doubles
    for rule in suggested_rules(names, names):
        found = rule.pairs(names, by_name)
        if not found or not rule.says_what_is_what() or set(found) & set(found.values()):
            continue
        if _leads_to_masks(rule, found, by_name):
            candidates[rule] = found
    try:
        rule = only_rule(candidates)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    if rule is None:
        below = sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder})
        where = f" in {', '.join(below[:6])}{', ...' * (len(below) > 6)}" if below else ""
        raise DataError(
            f"{folder} holds {len(files)} images{where}, but their names do not tell which are masks, if any: give "
            f"masks names such as 'a_mask.png' for 'a.jpg', or a folder of their own. {ANY_FOLDERS}"
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
    masks_only = {by_name[name][0].suffix for name in masks} - {by_name[name][0].suffix for name in found}
    more = [name for name in others if name in aside or by_name[name][0].suffix in masks_only]
    _refuse_more_masks(folder, rule, found, [*found, *(set(left) - set(more))], more)
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
    if added & PREVIEW_WORDS and not added & MASK_WORDS:
        return False
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
