"""Which label file belongs to which image, by their names alone.

Names are paths below the folder, without the ending. The name of an image is that of its labels (`a.jpg`, `a.png`), or
becomes it by one affix that the whole folder shares: `a.jpg` and `a_mask.png`, `a_sat` and `a_mask`, `img_1` and
`mask_1`. Images and labels lie in two folders or in one. Nothing is decided for a file by itself: where the names allow
two rules, or two files have one name, an error names the files.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .name_rules import (
    IMAGE_WORDS,
    MASK_WORDS,
    PREVIEW_WORDS,
    SAME,
    Rule,
    core_of,
    extended,
    only_rule,
    rule_of_two_folders,
    suggested_rules,
    tokens,
)
from .recipe import DataError

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".pbm", ".pnm")
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
        rule = rule_of_two_folders(by_name, labels_by_name)
    except DataError as error:
        below = [Path(os.path.commonpath([path.parent for path in files])) for files in (image_files, label_files)]
        if below != [images, labels] and below[0] != below[1]:  # all of one kind lie in one folder below
            with suppress(DataError):
                return pair(*below)
        raise DataError(f"{images} and {labels}: {error}") from None
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
    )


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
                f"{folder}: {image!r} has more than one label file: {found[image]!r} and {name!r}. Merge them into "
                f"one, or leave those of one kind in the folder."
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
    by_name = _by_name(folder, files)
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
        raise DataError(
            f"{folder} holds {len(files)} images, but their names do not tell which are masks, if any: give masks "
            f"names such as 'a_mask.png' for 'a.jpg', or a folder of their own."
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
