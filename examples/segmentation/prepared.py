"""The record of what `prepare_labels.py` made of what, so that it is made anew when that changed, and only then."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from glob import escape
from pathlib import Path

from .files import replace_when_complete

NAME = ".prepared.json"
Stamp = list  # size, times of change of content and of file in ns, inode, and digest of the content


@dataclass
class Made:
    """An image and its labels in a data folder.

    Attributes:
        image: Name of the image file.
        source: Path of the image that it was made from, without the ending.
        stamp: Stamp of that image.
        mask: Stamp of the mask; None if regions were painted.
        settings: Digest of classes, options, and painted regions.
    """

    image: str
    source: str
    stamp: Stamp
    mask: Stamp | None
    settings: str


@dataclass
class Record:
    """What a data folder holds.

    Attributes:
        target: The folder.
        classes: Digest of the `classes.txt` that was written.
        made: Images and labels by "SPLIT/NAME".
    """

    target: Path
    classes: str = ""
    made: dict[str, Made] = field(default_factory=dict)

    @classmethod
    def read(cls, target: Path) -> "Record":
        """The record of a folder; an empty one if it has none that can be read."""
        try:
            content = json.loads((target / NAME).read_text(encoding="utf-8"))
            return cls(target, content["classes"], {key: Made(**made) for key, made in content["made"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(target)

    def write(self) -> None:
        """Replace the record on the disk."""
        content = {"classes": self.classes, "made": {key: asdict(made) for key, made in self.made.items()}}
        with replace_when_complete(self.target / NAME) as new:
            new.write_text(json.dumps(content), encoding="utf-8")

    def label(self, key: str) -> Path:
        """The label file of "SPLIT/NAME"."""
        return self.target / "labels" / f"{key}.png"

    def is_gone(self, key: str) -> bool:
        """Whether the image that "SPLIT/NAME" was made from exists no more."""
        source = Path(self.made[key].source)
        return not any(
            source_name(path) == source.as_posix() for path in source.parent.glob(f"{escape(source.name)}.*")
        )

    def images(self, split: str) -> dict[str, Path]:
        """The image files of a split by "SPLIT/NAME"."""
        folder = self.target / "images" / split
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return {f"{split}/{path.stem}": path for path in files if path.name[0] != "."}


def digest(*parts: object) -> str:
    """A digest of bytes, or of what prints as it is."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        state.update(len(content).to_bytes(8, "big") + content)
    return state.hexdigest()


def stamp(path: Path, known: Stamp | None = None) -> Stamp:
    """The stamp of a file, whose content is read only if anything but it differs from the known one."""
    status = path.stat()
    now = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return known if known and known[:4] == now else [*now, digest(path.read_bytes())]


def find_in_other_splits(record: Record, images: Iterable[tuple[str, Path]]) -> list[tuple[str, str, Path]]:
    """Find images that the folder holds in another split than they belong to.

    Args:
        record: The record of the folder.
        images: "SPLIT/NAME" that each image belongs to, and its file.

    Returns:
        Where each belongs, where else it lies, and the image file there: of the same source, or of equal content.
    """
    wanted = dict(images)
    sources = {path.absolute() for path in wanted.values()}  # annotated where they lie
    by_source: dict[str, list[tuple[str, Path]]] = {}
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for split in ("train", "val"):
        for key, path in record.images(split).items():
            if key in wanted or not path.exists() or (not path.is_symlink() and path.absolute() in sources):
                continue
            made = record.made.get(key)
            by_source.setdefault(made.source if made else source_name(path.resolve()), []).append((key, path))
            by_size.setdefault(made.stamp[0] if made else path.stat().st_size, []).append((key, path))
    found, taken = [], set()
    for key, source in wanted.items():
        same = list(by_source.get(source_name(source), ()))
        if by_size and source.is_file() and (alike := by_size.get(source.stat().st_size)):
            made = record.made.get(key)
            content = stamp(source, made and made.stamp)[4]
            same += [there for there in alike if there not in same and _content(record, *there) == content]
        for other, path in same:
            if other.split("/")[0] != key.split("/")[0] and other not in taken:
                taken.add(other)
                found.append((key, other, path))
    return found


def _content(record: Record, key: str, path: Path) -> str:
    made = record.made.get(key)
    return made.stamp[4] if made else digest(path.read_bytes())


def source_name(path: Path) -> str:
    """How a source is recorded: an image that gets another ending is the same source."""
    return path.absolute().with_suffix("").as_posix()


def move(record: Record, key: str, other: str, path: Path) -> None:
    """Move an image and its labels to "SPLIT/NAME", or remove them if it is there already."""
    name = key.split("/", 1)[1]
    image = record.target / "images" / key.split("/")[0] / f"{name}{path.suffix}"
    label = record.label(key)
    made = record.made.pop(other, None)
    if image.exists() or key in record.made:
        record.label(other).unlink(missing_ok=True)
        path.unlink()
        return
    for folder in (image.parent, label.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if record.label(other).is_file():
        record.label(other).replace(label)
    path.replace(image)
    if made:
        made.image = image.name
        record.made[key] = made
