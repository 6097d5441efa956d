"""What `prepare_labels.py` does with one image: its labels from a mask or from regions, and the files of both."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segnext_timm.prediction.images import read_values

from .class_list import distinct_colors
from .files import replace_when_complete
from .mask_labels import IGNORED, MaskRule, UnusableError
from .prepared import Made, Record, digest, source_name, stamp
from .sources.labelme import embedded_image
from .sources.regions import IGNORE, Annotated

Image.MAX_IMAGE_PIXELS = None  # aerial images are large


@dataclass
class Job:
    """An image to work on: a mask file to read, or regions to paint.

    Attributes:
        item: The image and its regions.
        split: "train" or "val".
        stem: Name of the files to make, without an ending.
        mask: Mask file, of masks.
        made: What the record says of these files.
    """

    item: Annotated
    split: str
    stem: str
    mask: Path | None = None
    made: Made | None = None

    @property
    def key(self) -> str:
        """Name of the files in the record."""
        return f"{self.split}/{self.stem}"

    @property
    def source(self) -> Path:
        """The file that holds the image."""
        return self.item.embedded or self.item.image


@dataclass
class Plan:
    """What is to be made of which classes.

    Attributes:
        target: The data folder.
        classes: Name of each class.
        background: Label of pixels that no region covers.
        masks: How masks are read.
        link: Link to the images.
    """

    target: Path
    classes: tuple[str, ...]
    background: int = IGNORED
    masks: MaskRule | None = None
    link: bool = False

    def settings(self) -> str:
        """A digest of all that labels depend on, beside image, mask and regions."""
        masks = self.masks
        how = (masks.table.tobytes(), masks.threshold, masks.above, masks.nearest) if masks else ()
        return digest(self.classes, self.background, *how, self.palette())

    def palette(self) -> list[tuple[int, int, int]]:
        """Colors that pictures of the labels have in other programs; white where they are left out."""
        colors = self.masks.classes.palette if self.masks else distinct_colors(len(self.classes))
        return [*colors, *[(255, 255, 255)] * (256 - len(colors))]


@dataclass
class Result:
    """What was made of an image.

    Attributes:
        made: For the record.
        there: Whether it was there already.
        pixels: Number of pixels of each label (256,).
        far: Pixels that are left out since no class is near.
        lost: Objects that hold no pixel, or are given in shares.
    """

    made: Made
    there: bool
    pixels: np.ndarray
    far: int = 0
    lost: int = 0


def make(job: Job, plan: Plan, settings: str) -> Result:
    """Write an image and its labels, unless they are there and made of the same.

    Raises:
        UnusableError: If the image cannot be used.
    """
    record = Record(plan.target)
    label_path = record.label(job.key)
    image_path = plan.target / "images" / job.split / f"{job.stem}{job.item.image.suffix.lower() or '.png'}"
    known = job.made
    try:
        now = Made(
            image_path.name,
            source_name(job.source),
            stamp(job.source, known and known.stamp),
            stamp(job.mask, known and known.mask) if job.mask else None,
            digest(settings, _fingerprint(job.item)) if not job.mask else settings,
        )
    except OSError as error:
        kind = "images or masks do not exist" if isinstance(error, FileNotFoundError) else "files cannot be read"
        raise UnusableError(kind, f"{error.filename} {'does not exist' if 'not exist' in kind else error}") from None
    old_image = image_path.with_name(known.image) if known else image_path
    if known and _is_up_to_date(known, now, image_path, plan.link) and (labels := _there(label_path)) is not None:
        return Result(now, True, _count(labels), lost=_lost(job.item, labels))
    _refuse_other_image(job, known, now, old_image)
    labels, far = _write(job, plan, image_path, label_path)
    if old_image != image_path:
        old_image.unlink(missing_ok=True)
    return Result(now, False, _count(labels), far, _lost(job.item, labels))


def _fingerprint(item: Annotated) -> str:
    """A digest of what is painted."""
    parts: list[object] = [item.size]
    for region in item.regions:
        parts += [region.name, *(polygon.tobytes() for polygon in region.polygons), region.counts, region.size]
        parts += [region.mask[0].tobytes(), region.mask[0].shape, region.mask[1:]] if region.mask else []
        parts += [region.file.read_bytes()] if region.file else []
    return digest(*parts)


def _is_up_to_date(known: Made, now: Made, image_path: Path, link: bool) -> bool:
    same = known.stamp[4] == now.stamp[4] and known.settings == now.settings and known.image == now.image
    same &= (known.mask and known.mask[4]) == (now.mask and now.mask[4])
    # a link that leads nowhere is no file
    return same and image_path.is_file() and (image_path.is_symlink() <= link)


def _there(label_path: Path) -> np.ndarray | None:
    """Labels that were made before; None if they cannot be read."""
    try:
        return np.asarray(Image.open(label_path))
    except Exception:  # Pillow's decoders raise anything on damaged files
        return None


def _refuse_other_image(job: Job, known: Made | None, now: Made, image_path: Path) -> None:
    """Raise an UnusableError if the files of another image would be replaced."""
    if not image_path.is_file():
        return
    if known:
        same = known.source == now.source or known.stamp[4] == now.stamp[4]
        other = known.source
    else:  # made before there was a record, or by hand
        same = image_path.samefile(job.source) or job.item.embedded is not None or _content(job) == _bytes(image_path)
        turned = _turned_size(job.source)
        same = same or (turned is not None and turned == Image.open(image_path).size)
        other = "another file"
    if not same:
        raise UnusableError(
            "images have the name of another image in the data folder: rename them, or use another folder",
            f"{image_path} was made from {other}, which has the same name",
        )


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _content(job: Job) -> bytes:
    return embedded_image(job.item.embedded) if job.item.embedded else _bytes(job.item.image)


def _turned_size(path: Path) -> tuple[int, int] | None:
    """Width and height as stored of an image that a note in the file turns, which is written without that note."""
    try:
        with Image.open(path) as image:
            return image.size if image.getexif().get(0x0112, 1) != 1 else None
    except Exception:  # Pillow's decoders raise anything on damaged files
        return None


def _write(job: Job, plan: Plan, image_path: Path, label_path: Path) -> tuple[np.ndarray, int]:
    """Write image and labels; returns the labels, and the number of pixels that no class is near."""
    try:
        source = io.BytesIO(_content(job))
        try:
            image = Image.open(source)
        except UnidentifiedImageError:  # arrays, and TIFFs that Pillow does not know
            upright = stored = tuple(read_values(job.source).values.shape[-2:])
        else:
            image.load()
            stored = image.size[::-1]
            turned = image.getexif().get(0x0112, 1) != 1
            upright = ImageOps.exif_transpose(image).size[::-1] if turned else stored
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise UnusableError("images cannot be read", f"the image cannot be read: {error}") from None
    labels, far = plan.masks.read(job.mask) if job.mask else (_painted(job.item, plan, upright, stored), 0)
    if labels.shape not in (upright, stored):
        raise UnusableError(
            "labels have another size than the image",
            f"its labels have {labels.shape[1]}×{labels.shape[0]} pixels, it has {upright[1]}×{upright[0]}",
        )
    if labels.shape != upright:
        # labeled as the pixels are stored: without the note in the file that turns it
        with replace_when_complete(image_path) as new:
            image.save(new, format=image.format, **({"quality": 95} if image.format == "JPEG" else {}), exif=b"")
    elif image_path.is_file() and not image_path.is_symlink() and image_path.samefile(job.source):
        pass  # labeled where it lies
    elif plan.link and not job.item.embedded:
        image_path.unlink(missing_ok=True)
        image_path.symlink_to(job.item.image.resolve())
    else:
        with replace_when_complete(image_path) as new:
            new.write_bytes(source.getvalue())
    picture = Image.fromarray(labels)
    picture.putpalette([channel for color in plan.palette() for channel in color])
    with replace_when_complete(label_path) as new:
        picture.save(new)
    return labels, far


def _count(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=256)


def _lost(item: Annotated, labels: np.ndarray) -> int:
    return sum(region.name != IGNORE and region.is_lost(labels.shape) for region in item.regions)


def _painted(item: Annotated, plan: Plan, upright: tuple[int, int], stored: tuple[int, int]) -> np.ndarray:
    size = item.size or upright
    if size not in (upright, stored):
        raise UnusableError(
            "images are annotated at another size",
            f"it is annotated at {size[1]}×{size[0]} pixels, but has {upright[1]}×{upright[0]}",
        )
    labels = np.full(size, plan.background, np.uint8)
    numbers = {name: label for label, name in enumerate(plan.classes)} | {IGNORE: IGNORED}
    for region in item.regions:
        try:
            region.paint(labels, numbers.get(region.name, plan.background))
        except ValueError as error:
            reason = f"an object of {region.name} cannot be painted: {error}"
            raise UnusableError("objects cannot be painted", reason) from None
    return labels
