"""What the sources of annotations share: their options, finding images by the names that files give, what was found."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated as Named
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import numpy as np
import tyro
from PIL import Image

from ..class_list import LEFT_OUT
from ..mask_labels import IGNORED, UnusableError
from ..recipe import UserError
from .regions import IGNORE, Annotated, Region

# what a faulty annotation raises while it is read
FAULTS = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, OSError)
BACKGROUND = "_background_"  # LabelMe's name of pixels that no shape covers
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's prefix of uploaded files

Images = tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="IMAGES")]]
Annotations = tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="ANNOTATIONS")]]
Target = tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="TARGET")]]


@dataclass(kw_only=True)
class Output:
    """What all kinds of labels have in common."""

    split: Literal["train", "val"] = "train"
    """Split that the images belong to."""
    val_share: float = 0.0
    """Share of the images, about, that go to val instead, chosen by their names, unless lists divide them."""
    link: bool = False
    """Link to the images instead of copying them."""
    workers: int = 4
    """Images that are worked on at the same time."""
    dry_run: bool = False
    """Say what was found and what would be made, and stop."""


@dataclass(kw_only=True)
class Painted(Output):
    """What all annotations have in common whose regions are painted."""

    classes: Path | None = None
    """File with the name of a class on each line, in the order of their labels; else as the annotations list them, or
    those found, by the alphabet."""
    background: str = "background"
    """Class of the pixels that no object covers, the first one unless a class has its name; '-' leaves them out."""

    def read(self) -> "Reading":
        """Read the annotations.

        Raises:
            UserError: If they are of another kind.
        """
        raise NotImplementedError


@dataclass
class Reading:
    """What annotations hold.

    Attributes:
        items: The images with their regions.
        names: Classes in their order, if the annotations list them.
        notes: Lines to print.
        skipped: Why images cannot be used, by their names.
        left_out: Number of objects whose pixels are left out of training, by what they are.
        first: The first image that has an object of a kind in `left_out`.
        faults: Annotations that cannot be read, one line each.
    """

    items: list[Annotated] = field(default_factory=list)
    names: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, UnusableError] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def leave_out(self, item: Annotated, kind: str, outlines: list[np.ndarray]) -> None:
        """Leave the pixels of an object without a class or an area out of training, and count it."""
        self.left_out[kind] += 1
        self.first.setdefault(kind, item.name)
        item.regions.append(Region(IGNORE, outlines))

    def fault(self, item: Annotated, what: str, error: Exception, around: list[np.ndarray]) -> None:
        """Name an annotation that cannot be read, and leave out what lies around it, or the image if that is unknown.

        Args:
            item: The image.
            what: What to call the annotation.
            error: What is wrong with it.
            around: Outlines that hold the object.
        """
        said = str(error) if isinstance(error, ValueError) else f"it is not of the known form ({error!r})"
        if around:
            item.regions.append(Region(IGNORE, around))
        else:
            reason = f"{what} cannot be read: {said}"
            self.skipped[item.name] = UnusableError("images have an object of which the place is not known", reason)
        self.faults.append(f"{item.name}: {what}: {said}; {'its box' if around else 'the image'} is left out")

    def finish(self, source: Path, folder: "ImageFolder | None" = None) -> "Reading":
        """Leave out the images that cannot be used, and write the notes.

        Args:
            source: The annotations.
            folder: The folder of the images.

        Raises:
            UserError: If there are objects, but none has an outline.
        """
        regions = [region.name for item in self.items for region in item.regions]
        if regions and set(regions) == {IGNORE} and self.left_out:
            kinds = "; ".join(f"{count} {kind}" for kind, count in self.left_out.items())
            raise UserError(f"{source} has no outlines, which segmentation needs: {kinds}.")
        for item in self.items:
            names = folder.asked.get(item.image, ()) if folder else ()
            if len(names) > 1:
                reason = f"it is the only one that may be {' and '.join(sorted(names)[:2])}"
                self.skipped[item.name] = UnusableError("images have several names", reason)
        self._merge()
        self.items = [item for item in self.items if item.name not in self.skipped]
        for kind, count in self.left_out.items():
            place = f" (the first: {self.first[kind]})" if kind in self.first else ""
            self.notes.append(f"{count} {kind}{place}: their pixels are left out.")
        if self.faults:
            self.notes.append(f"{len(self.faults)} annotations cannot be read:")
            self.notes += [f"  {line}" for line in self.faults[:10]]
            self.notes += [f"  and {len(self.faults) - 10} more"] if len(self.faults) > 10 else []
        empty = sum(not item.regions for item in self.items)
        if empty:
            self.notes.append(f"{empty} images have no objects.")
        return self

    def _merge(self) -> None:
        """Put the objects of each image together; several files of one image may contradict each other."""
        by_image: dict[Path, list[Annotated]] = {}
        for item in self.items:
            path = item.embedded or item.image
            by_image.setdefault(path.parent.resolve() / path.name, []).append(item)
        self.items = [items[0] for items in by_image.values()]
        merged = 0
        for first, *others in by_image.values():
            names = list(dict.fromkeys(item.name for item in (first, *others)))
            sizes = {item.size for item in (first, *others) if item.size}
            if len(names) > 1:
                reason = f"{' and '.join(names[:3])} are of one image, {first.image.name}"
                error = UnusableError("images are annotated in several files: keep one of them", reason)
                self.skipped |= dict.fromkeys(names, error)
            elif len(sizes) > 1:
                self.skipped[first.name] = UnusableError("images are annotated at several sizes")
            elif others:
                first.size = next(iter(sizes), None)
                first.regions += [region for item in others for region in item.regions]
                merged += first.name not in self.skipped
        if merged:
            self.notes.append(f"{merged} images are annotated in several places: their objects are put together.")


class ImageFolder:
    """Finds images by the names that annotations give them, which may hold folders of another computer.

    Args:
        folder: The folder of the images.
        without: A folder to leave out.

    Raises:
        UserError: If the folder does not exist.
    """

    def __init__(self, folder: Path, without: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist: give the folder of the images.")
        self.folder = folder
        self.without = without.absolute()
        self.asked: dict[Path, set[str]] = {}
        self._index: dict[tuple[str, bool], list[Path]] | None = None

    def find(self, name: str) -> Path:
        """The file of a name; a path that does not exist if there is none.

        Args:
            name: The name: a path of any system, or an address.

        Raises:
            ValueError: If there is no name, or several files have it.
        """
        parts = name_parts(name)
        exact = self.folder / name.strip().replace("\\", "/")
        path = exact if exact.is_file() else self._anywhere(parts)
        if path is None:
            return self.folder / "/".join(parts)
        self.asked.setdefault(path, set()).add("/".join(parts))
        return path

    def short_name(self, path: Path) -> str:
        """The path below the folder, if it lies there, else the whole one."""
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path).as_posix()

    def _anywhere(self, parts: list[str]) -> Path | None:
        """The file of that name in any folder below; of several, the one that shares most folders with the name."""
        if self._index is None:
            self._index = self._all_files()
        wanted = _plain(parts[-1])
        original = _UPLOAD.sub("", wanted)
        found = self._index.get((wanted, False)) or self._index.get((original, False)) or []
        if not found and original == wanted:
            found = self._index.get((wanted, True), [])
        found = [path for path in found if path.name == parts[-1]] or found
        shared = [_shared(path, parts) for path in found]
        found = [path for path, count in zip(found, shared) if count == max(shared)]
        if len(found) > 1:
            some = " and ".join(self.short_name(path) for path in found[:2])
            raise ValueError(f"{some} have its name: give the folder that it is in")
        return found[0] if found else None

    def _all_files(self) -> dict[tuple[str, bool], list[Path]]:
        """The files by their names without folders, and whether the prefix of an upload is missing there.

        Images also have their names without the ending.
        """
        index: dict[tuple[str, bool], list[Path]] = {}
        images = Image.registered_extensions()
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.absolute().is_relative_to(self.without):
                key = _plain(path.name)
                original = _UPLOAD.sub("", key)
                index.setdefault((key, False), []).append(path)
                if original != key:
                    index.setdefault((original, True), []).append(path)
                stem = Path(key).stem
                if Path(key).suffix in images and Path(stem).suffix not in images:  # CVAT names frames of a video so
                    index.setdefault((stem, False), []).append(path)
        return index


def name_parts(name: str) -> list[str]:
    """Folders and name of a file by a path of any system, or an address.

    Raises:
        ValueError: If there is no name.
    """
    if not isinstance(name, str):
        raise ValueError("the image has no file name")
    name = unquote(urlsplit(name).path) if "://" in name else name.strip().replace("\\", "/")
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..") and not part.endswith(":")]
    if not parts:
        raise ValueError("the image has no file name")
    return parts


def near(name: str, folder: Path, least: int = 1) -> Path | None:
    """The file of a name in a folder: there, or below with fewer of the name's folders.

    Args:
        name: The name.
        folder: The folder.
        least: Number of parts of the name, from the end, that have to be there.

    Raises:
        ValueError: If there is no name.
    """
    parts = name_parts(name)
    if len(parts) < least:
        return None
    tails = ["/".join(parts[start:]) for start in range(len(parts) - least + 1)]
    for tail in [name.strip().replace("\\", "/"), *tails]:
        if (folder / tail).is_file():
            return folder / tail
    return None


def _plain(name: str) -> str:
    """A name without the spellings that addresses, uploads and macOS (which writes NFD) change."""
    return unicodedata.normalize("NFC", unquote(name)).replace(" ", "_").casefold()


def _shared(path: Path, parts: list[str]) -> int:
    """How many folders, from the end, a path has in common with the parts of a name."""
    count = 0
    for mine, theirs in zip(reversed(path.absolute().parts[:-1]), reversed(parts[:-1])):
        if mine.casefold() != theirs.casefold():
            break
        count += 1
    return count


def is_background(name: str) -> bool:
    """Whether a class is called background, as tools spell it: `Background`, `_background_`, `__background__`."""
    return name.strip("_ ").lower() == "background"


def class_order(names: Iterable[str], background: str) -> tuple[list[str], int]:
    """The classes in their order, and the label of the pixels that no object covers.

    Args:
        names: Names of classes; other spellings of the background become it.
        background: Name of the background, or `LEFT_OUT`.
    """
    names = [name for name in dict.fromkeys(names) if name != IGNORE]
    if is_background(background):
        spelled = [name for name in names if is_background(name)]
        first = background if background in spelled else spelled[0] if spelled else background
        background = first.strip("_ ")
        names = [background if name == first else name for name in names if name == first or name not in spelled]
    names = [name for name in names if name != BACKGROUND]
    if background == LEFT_OUT:
        return names, IGNORED
    if background not in names:
        names.insert(0, background)
    return names, names.index(background)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: If it cannot be read, or is not JSON.
    """
    if path.is_dir():
        names = ", ".join(file.name for file in sorted(path.glob("*.json"))[:3])
        raise UserError(
            f"{path} is a folder: give the JSON file{f' in it, {names}' if names else ', which is elsewhere'}."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as JSON: {reason}. It has to be unpacked text in UTF-8.") from None
