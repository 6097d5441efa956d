"""What the files of a data set hold. Each file is read once, by several threads, and remembered in the data folder.

Threads are as fast as processes here, since Pillow decodes without Python's lock.
"""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from segnext_timm import SegNeXtError
from segnext_timm.prediction.images import count_pages, loses_values, read_values
from segnext_timm.prediction.rasters import open_dataset

from .files import replace_when_complete
from .label_files import open_label_file, why_unreadable
from .progress import progress_bar
from .recipe import DataError

CACHE = ".checked.json"  # in the data folder
_FORM = f"6, Pillow {PIL.__version__}"  # of the cache, and which Pillow read the files
_PIXEL_SCALE, _TIE_POINT, _TRANSFORMATION = 33550, 33922, 34264  # tags of GeoTIFF
_MOST_VALUES = 1024  # that are kept of a file: only noise has more

File = tuple[Path, str]  # a file, and as what it is read: "image", "values" or "colors"


@dataclass(frozen=True)
class Facts:
    """What a file holds.

    Attributes:
        digest: Of its bytes.
        size: Width and height in pixels, upright.
        orientation: EXIF's number, 1 if nothing rotates the image; 5 and more swap width and height.
        kind: Type of an image's values; empty for photos, of 8 bits in gray or color.
        bands: Number of an image's bands.
        low: Smallest value of an image that is no photo; minus infinity if some are no numbers.
        peak: Largest value of an image that is no photo, else 0.
        depth: How a label file holds values, by `LabelFile.depth`.
        lossy: A label file's format, if that changes values.
        values: Number of pixels of each value, or color code, of a label file.
        palette: `LabelFile.palette` of a label file.
        pages: Number of pictures in an image file.
        place: Size of a pixel in x and y, and x and y of the upper left corner, of a georeferenced TIFF.
    """

    digest: str
    size: tuple[int, int]
    orientation: int = 1
    kind: str = ""
    bands: int = 3
    low: float = 0
    peak: float = 0
    depth: str = ""
    lossy: str = ""
    values: dict[int, int] = field(default_factory=dict)
    palette: tuple[int, dict[int, int]] = (0, {})
    pages: int = 1
    place: tuple[float, ...] = ()


def read_facts(path: Path, kind: str) -> Facts:
    """Read a file as an "image", or as labels that are "values" or "colors".

    Raises:
        DataError: If it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    if kind == "image":
        return _image_facts(path, content, digest)
    file = open_label_file(path, content)
    labels = file.colors() if kind == "colors" else file.values()
    palette = file.palette() if kind == "values" else (0, {})
    return Facts(
        digest,
        file.image.size,
        depth=file.depth,
        lossy=file.lossy,
        values=_count(labels),
        palette=palette,
        place=_place(file.image),
    )


def _image_facts(path: Path, content: bytes, digest: str) -> Facts:
    number, place = 1, ()
    try:
        image = Image.open(io.BytesIO(content))
        size, number, place = image.size, count_pages(io.BytesIO(content)), _place(image)
        if image.mode[0] in "IF" or loses_values(image, None):
            return replace(_array_facts(path, digest), pages=number, place=place)
        if image.format == "JPEG":  # an eighth of the size is decoded much faster, and still takes all of the file
            image.draft(image.mode, (size[0] // 8, size[1] // 8))
        image.load()
        if image.format != "JPEG":
            size = image.size  # Pillow rotates TIFFs when it loads them
        orientation = image.getexif().get(0x0112, 1)
    except UnidentifiedImageError as error:
        if path.suffix.lower() in (".npy", ".tif", ".tiff"):
            return _array_facts(path, digest)
        raise DataError(f"{path} cannot be read as an image: {why_unreadable(error, content)}") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise DataError(f"{path} cannot be read as an image: {why_unreadable(error, content)}") from None
    size = size[::-1] if orientation >= 5 else size
    return Facts(
        digest, size, orientation, pages=number, place=place, bands=len(image.getbands()) if image.mode != "P" else 3
    )


def _place(image: Image.Image) -> tuple[float, ...]:
    """Where a GeoTIFF lies: see `Facts.place`."""
    tags = getattr(image, "tag_v2", {})
    if (matrix := tags.get(_TRANSFORMATION)) and len(matrix) == 16:
        return tuple(float(matrix[i]) for i in (0, 5, 3, 7))
    scale, point = tags.get(_PIXEL_SCALE, ()), tags.get(_TIE_POINT, ())
    if len(scale) < 2 or len(point) < 6:
        return ()
    return float(scale[0]), -float(scale[1]), point[3] - point[0] * scale[0], point[4] + point[1] * scale[1]


def _array_facts(path: Path, digest: str) -> Facts:
    """Facts of an image that is no photo: of more bits, or of other bands."""
    try:
        values, valid = read_values(path)
        bands, known = len(values), values.numpy()
        if path.suffix.lower() in (".tif", ".tiff"):
            with suppress(SegNeXtError):  # one more band, of opacity, may be left out
                read_values(path, None, [bands + 1])
                bands += 1
    except (SegNeXtError, OSError) as error:
        raise DataError(str(error)) from None
    known = known if valid is None else known[:, valid.numpy()]
    numbers = known[np.isfinite(known)]
    low, peak = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 0.0)
    low = low if len(numbers) == known.size else -np.inf
    return Facts(digest, (values.shape[2], values.shape[1]), kind=str(known.dtype), bands=bands, low=low, peak=peak)


def _count(labels: np.ndarray) -> dict[int, int]:
    """Number of pixels of each value, of the most frequent ones if there are very many."""
    if labels.dtype == np.uint8:  # Pillow counts bytes several times as fast
        counts = np.array(Image.fromarray(labels).histogram())
        values = counts.nonzero()[0]
        counts = counts[values]
    else:
        values, counts = np.unique(labels, return_counts=True)
    if len(values) > _MOST_VALUES:
        most = np.sort(np.argpartition(counts, -_MOST_VALUES)[-_MOST_VALUES:])
        values, counts = values[most], counts[most]
    return dict(zip(values.tolist(), counts.tolist()))


def image_sides(paths: Iterable[Path], root: Path | str) -> list[tuple[int, int]]:
    """Long and short side in pixels of each image, as :func:`gather` remembers it in `root`, or by its header.

    Images that cannot be read are left out: whoever checks them names them.
    """
    cache = Path(root).absolute() / CACHE
    known = _load(cache)
    sizes = []
    for path in paths:
        entry = known.get(_key(path, "image", cache))
        with suppress(SegNeXtError, OSError):
            sizes.append(entry[1].size if entry and entry[0] == _stamp(path) else _header_size(path))
    return [(max(size), min(size)) for size in sizes]


def _header_size(path: Path) -> tuple[int, int]:
    """Width and height, or the other way around if EXIF rotates the image."""
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError:  # an array, or a TIFF that Pillow does not read
        height, width = read_values(path).values.shape[1:]
        return width, height


def has_place(path: Path) -> bool:
    """Whether an image states where it lies on the ground: in its tags, or in a world file beside it."""
    kind = path.suffix[1:]
    if any(path.with_suffix(f".{world}").is_file() for world in (f"{kind[:1]}{kind[-1:]}w", f"{kind}w", "wld")):
        return True
    with suppress(SegNeXtError, OSError):
        try:
            with Image.open(path) as image:
                return bool(_place(image))
        except UnidentifiedImageError:  # a TIFF that Pillow does not read
            with open_dataset(path) as raster:
                return bool(raster.crs or not raster.transform.is_identity)
    return False


def gather(files: Iterable[File], root: Path | str | None, workers: int, title: str) -> dict[File, Facts | DataError]:
    """Facts of files, or the error of those that cannot be read.

    Args:
        files: The files, and as what each is read.
        root: Data folder, whose `CACHE` remembers facts by path, size and time of the last change; nothing is
            remembered without it, or if it cannot be written.
        workers: Number of threads.
        title: Of the progress bar.
    """
    cache = Path(root).absolute() / CACHE if root else None
    known = _load(cache)
    found: dict[File, Facts | DataError] = {}
    unread: dict[File, tuple[str, list[int] | None]] = {}
    for path, kind in dict.fromkeys(files):
        key, stamp = _key(path, kind, cache), _stamp(path)
        entry = known.get(key)
        if entry and entry[0] == stamp:
            found[path, kind] = entry[1]
        else:
            unread[path, kind] = key, stamp
    if not unread:
        return found

    def read(file: File) -> Facts | DataError:
        try:
            return read_facts(*file)
        except DataError as error:
            return error

    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of notes in files that it cannot read
            results = zip(unread.items(), pool.map(read, unread))
            for (file, (key, stamp)), facts in progress_bar(results, title, len(unread), leave=False, unit="file"):
                found[file] = facts
                if isinstance(facts, Facts):  # a file that cannot be read may be, later
                    known[key] = stamp, facts
    finally:
        pool.shutdown(cancel_futures=True)
        _save(known, cache)
    return found


def _key(path: Path, kind: str, cache: Path | None) -> str:
    return f"{kind} {os.path.relpath(path.absolute(), cache.parent) if cache else path}"


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _load(cache: Path | None) -> dict[str, tuple[list[int], Facts]]:
    """What is remembered of files; nothing if the cache is damaged, or of another form."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
        if content.get("form") != _FORM:
            return {}
        return {key: (stamp, _from_json(*facts)) for key, (stamp, facts) in content["files"].items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _from_json(digest: str, size: list[int], *others: Any) -> Facts:
    *others, values, palette, pages, place = others
    palette = (palette[0], _by_number(palette[1]))
    return Facts(digest, tuple(size), *others, _by_number(values), palette, pages, tuple(place))


def _by_number(found: dict[str, int]) -> dict[int, int]:
    return {int(value): number for value, number in found.items()}


def _save(known: dict[str, tuple[list[int], Facts]], cache: Path | None) -> None:
    content = {"form": _FORM, "files": {key: (stamp, astuple(facts)) for key, (stamp, facts) in known.items()}}
    if cache:
        with suppress(OSError), replace_when_complete(cache) as new:  # a folder may be for reading only
            new.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
