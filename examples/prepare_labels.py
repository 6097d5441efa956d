"""Turn color masks, COCO JSON or LabelMe files into the label PNGs that `recipes/folder.yaml` trains on.

    python examples/prepare_labels.py colors IMAGES MASKS data/mine --classes colors.txt --val_share 0.1
    python examples/prepare_labels.py coco IMAGES instances_train.json data/mine --split train
    python examples/prepare_labels.py labelme FOLDER data/mine --val_share 0.1

The images go to `images/{train,val}`, their labels to `labels/{train,val}`, the names of the classes to `classes.txt`.
A stopped run resumes where it was when the same command is given again; what cannot be used is skipped and
listed at the end. Binary masks, and color masks at their place, need no conversion: `classes.txt` may give each class
its value or color.
"""

import hashlib
import io
import signal
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated as Named
from typing import Literal

import numpy as np
import tyro
from PIL import Image, ImageOps
from tqdm import tqdm

from segmentation.class_list import LEFT_OUT, ClassList, color_codes, color_name, distinct_colors, read_classes
from segmentation.files import replace_when_complete
from segmentation.label_sources import Annotated, embedded_image, read_coco, read_labelme
from segmentation.recipe import DataError, UserError, run

Image.MAX_IMAGE_PIXELS = None  # aerial images are large
IGNORED = 255
# LabelMe's own names for pixels that are left out, and for those that no shape covers
_IGNORE, _BACKGROUND = "__ignore__", "_background_"


@dataclass(kw_only=True)
class Output:
    """What all kinds of labels have in common."""

    split: Literal["train", "val"] = "train"
    """Split that the images belong to."""
    val_share: float = 0.0
    """Share of the images, about, that go to val instead, chosen by their names."""
    link: bool = False
    """Link to the images instead of copying them."""
    workers: int = 4
    """Images that are worked on at the same time."""


@dataclass
class Colors(Output):
    """Color masks: an image file for each image, of the same name, with a color for each class."""

    images: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="IMAGES")]]
    """Folder of the images."""
    masks: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="MASKS")]]
    """Folder of the masks."""
    target: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="TARGET")]]
    """Data folder to make."""
    classes: Path | None = None
    """File that names the class of each color: '#ff0000 road' on each line, '#000000 -' for pixels to leave out."""


@dataclass
class Coco(Output):
    """A COCO JSON file of instances: polygons and run lengths. Smaller objects lie on top of larger ones."""

    images: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="IMAGES")]]
    """Folder of the images."""
    annotations: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="ANNOTATIONS")]]
    """The JSON file."""
    target: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="TARGET")]]
    """Data folder to make."""
    background: str = "background"
    """Class of the pixels that no object covers, the first one unless a category has its name; '-' leaves them out."""


@dataclass
class LabelMe(Output):
    """LabelMe JSON files: polygons, rectangles, circles and masks. Later shapes lie on top of earlier ones."""

    source: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="SOURCE")]]
    """Folder of the JSON files, with the images beside them or inside."""
    target: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="TARGET")]]
    """Data folder to make."""
    classes: Path | None = None
    """File with the name of a class on each line, in the order of their labels; else those found, by the alphabet."""
    background: str = "background"
    """Class of the pixels that no shape covers, the first one unless a shape has its name; '-' leaves them out."""


@dataclass
class Job:
    """An image to work on: a mask file to read, or regions to paint.

    Attributes:
        item: The image and its regions.
        split: "train" or "val".
        stem: Name of the files to make, without an ending.
        mask: Mask file, of color masks.
    """

    item: Annotated
    split: str
    stem: str
    mask: Path | None = None


@dataclass
class Plan:
    """What is to be made of which classes.

    Attributes:
        target: The data folder.
        classes: Name of each class.
        background: Label of pixels that no region covers.
        colors: Colors of the masks.
        link: Link to the images.
    """

    target: Path
    classes: tuple[str, ...]
    background: int = IGNORED
    colors: ClassList | None = None
    link: bool = False


class UnusableError(Exception):
    """An image cannot be used; the message says why."""


# One image


def make(job: Job, plan: Plan) -> tuple[bool, np.ndarray]:
    """Write an image and its labels, unless they are there.

    Returns:
        Whether they were there already, and the number of pixels of each label (256,).

    Raises:
        UnusableError: If the image cannot be used.
    """
    label_path = plan.target / "labels" / job.split / f"{job.stem}.png"
    suffix = job.item.image.suffix.lower() or ".png"
    image_path = plan.target / "images" / job.split / f"{job.stem}{suffix}"
    if label_path.is_file() and image_path.is_file():
        return True, _count(np.asarray(Image.open(label_path)))
    try:
        source = io.BytesIO(embedded_image(job.item.embedded)) if job.item.embedded else job.item.image
        image = Image.open(source)
        image.load()
        stored = image.size[::-1]
        turned = image.getexif().get(0x0112, 1) != 1
        upright = ImageOps.exif_transpose(image).size[::-1] if turned else stored
    except FileNotFoundError:
        raise UnusableError(f"{job.item.image} does not exist") from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise UnusableError(f"the image cannot be read: {error}") from None
    labels = _mask_labels(job.mask, plan.colors) if job.mask else _painted(job.item, plan, upright, stored)
    if labels.shape not in (upright, stored):
        raise UnusableError(
            f"its labels have {labels.shape[1]}×{labels.shape[0]} pixels, it has {upright[1]}×{upright[0]}"
        )
    if labels.shape != upright:
        # labeled as the pixels are stored: without the note in the file that turns it
        with replace_when_complete(image_path) as new:
            image.save(new, format=image.format, **({"quality": 95} if image.format == "JPEG" else {}), exif=b"")
    elif plan.link and not job.item.embedded:
        image_path.unlink(missing_ok=True)
        image_path.symlink_to(job.item.image.resolve())
    else:
        with replace_when_complete(image_path) as new:
            new.write_bytes(source.getvalue() if job.item.embedded else source.read_bytes())
    picture = Image.fromarray(labels)
    picture.putpalette([channel for color in _palette(plan) for channel in color])
    with replace_when_complete(label_path) as new:
        picture.save(new)
    return False, _count(labels)


def _count(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=256)


def _palette(plan: Plan) -> list[tuple[int, int, int]]:
    """Colors that pictures of the labels have in other programs; white where they are left out."""
    colors = plan.colors.palette if plan.colors else distinct_colors(len(plan.classes))
    return [*colors, *[(255, 255, 255)] * (256 - len(colors))]


def _mask_labels(path: Path, colors: ClassList) -> np.ndarray:
    try:
        codes = color_codes(np.asarray(Image.open(path).convert("RGB")))
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise UnusableError(f"its mask cannot be read: {error}") from None
    labels = colors.mapping.take(codes)
    unknown = (labels >= len(colors.classes)) & (labels != colors.ignore_index)
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        share = 100 * unknown.mean()
        raise UnusableError(
            f"its mask has the color {color_name(int(codes[row, column]))} at row {row}, column {column}, which no "
            f"class has, as {share:.2g}% of its pixels"
        )
    return labels


def _painted(item: Annotated, plan: Plan, upright: tuple[int, int], stored: tuple[int, int]) -> np.ndarray:
    size = item.size or upright
    if size not in (upright, stored):
        raise UnusableError(f"it is annotated at {size[1]}×{size[0]} pixels, but has {upright[1]}×{upright[0]}")
    labels = np.full(size, plan.background, np.uint8)
    numbers = {name: label for label, name in enumerate(plan.classes)} | {_IGNORE: IGNORED}
    for region in item.regions:
        try:
            region.paint(labels, numbers.get(region.name, plan.background))
        except ValueError as error:
            raise UnusableError(f"an object of {region.name} cannot be painted: {error}") from None
    return labels


# What there is to do


def _image_files(folder: Path) -> dict[str, Path]:
    """Image files below a folder by their path in it, without the ending.

    Raises:
        UserError: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give a folder.")
    suffixes = Image.registered_extensions()
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in suffixes and f.name[0] != ".")
    if not files:
        raise UserError(f"{folder} holds no images.")
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in files}


def plan_colors(settings: Colors) -> tuple[Plan, list[tuple[Annotated, Path | None]], dict[str, str]]:
    """What color masks are turned into.

    Raises:
        UserError: If files are missing, or the classes of the colors are not known.
    """
    images, masks = _image_files(settings.images), _image_files(settings.masks)
    if settings.classes is None:
        _show_colors([*masks.values()])
        raise UserError("--classes is missing: write the colors above to a file, give each a name, and give that file.")
    colors = read_classes(settings.classes)
    if not colors.by_color:
        raise DataError(f"{settings.classes} gives no colors: write lines such as '#ff0000 road'.")
    skipped = {f"{name}{path.suffix}": "it has no mask" for name, path in images.items() if name not in masks}
    items = [(Annotated(f"{name}{path.suffix}", path), masks[name]) for name, path in images.items() if name in masks]
    plan = Plan(settings.target, colors.classes, colors=colors, link=settings.link)
    return plan, items, skipped


def _show_colors(masks: list[Path], count: int = 16) -> None:
    """Print the colors of some masks, most common first."""
    pixels: Counter[int] = Counter()
    for index in np.linspace(0, len(masks) - 1, min(count, len(masks))).round().astype(int):
        try:
            codes = color_codes(np.asarray(Image.open(masks[index]).convert("RGB")))
        except Exception:  # a damaged file; the run with classes will name it
            continue
        pixels.update(dict(zip(*(part.tolist() for part in np.unique(codes, return_counts=True)))))
    total = sum(pixels.values())
    print(f"Colors of {min(count, len(masks))} of {len(masks)} masks:")
    for code, number in pixels.most_common(40):
        print(f"{color_name(code)} NAME      ({100 * number / total:.2f}%)")
    if len(pixels) > 40:
        print(f"... and {len(pixels) - 40} more: masks saved as JPEG, or with smooth edges, cannot be used.")


def plan_coco(settings: Coco) -> tuple[Plan, list[tuple[Annotated, Path | None]], dict[str, str]]:
    """What a COCO file is turned into."""
    if not settings.images.is_dir():
        raise UserError(f"{settings.images} does not exist: give the folder of the images.")
    items, names, notes = read_coco(settings.annotations, settings.images)
    for note in notes:
        print(f"{settings.annotations.name}: {note}.")
    plan = _painting_plan(settings.target, names, settings.background, settings.link)
    return plan, [(item, None) for item in items], {}


def plan_labelme(settings: LabelMe) -> tuple[Plan, list[tuple[Annotated, Path | None]], dict[str, str]]:
    """What LabelMe files are turned into."""
    files = sorted(settings.source.rglob("*.json")) if settings.source.is_dir() else []
    if not files:
        raise UserError(f"{settings.source} holds no JSON files of LabelMe.")
    items, skipped, left_out = [], {}, Counter()
    for path in tqdm(files, desc="read annotations", unit="file", leave=False):
        try:
            item, shapes = read_labelme(path)
        except UserError as error:
            skipped[path.name] = str(error).removeprefix(f"{path} ")
            continue
        item.name = path.relative_to(settings.source).as_posix()
        items.append(item)
        left_out.update(shapes)
    for kind, number in left_out.items():
        print(f"{number} shapes of the type {kind} have no area and are left out.")
    found = {region.name: item.name for item in items for region in item.regions}
    written = settings.target / "classes.txt"
    listed = settings.classes or (written if written.is_file() else None)
    names = read_classes(listed).classes if listed else sorted(found)
    names = [name for name in names if name not in (_IGNORE, _BACKGROUND)]
    plan = _painting_plan(settings.target, names, settings.background, settings.link)
    unknown = [name for name in found if name not in (*plan.classes, _IGNORE, _BACKGROUND)]
    if unknown:
        raise UserError(
            f"{found[unknown[0]]} labels {unknown[0]!r}, which {listed} does not name: add it there"
            f"{', or make another data folder' if listed == written else ''}."
        )
    return plan, [(item, None) for item in items], skipped


def _painting_plan(target: Path, names: Iterable[str], background: str, link: bool) -> Plan:
    names = list(names)
    if background == LEFT_OUT:
        return Plan(target, tuple(names), IGNORED, link=link)
    if background not in names:
        names.insert(0, background)
    return Plan(target, tuple(names), names.index(background), link=link)


def write_classes(plan: Plan) -> None:
    """Write the names of the classes; what is there already has to be the same.

    Raises:
        UserError: If there are other classes, or too many or too few.
    """
    if not 2 <= len(plan.classes) <= 254:
        raise UserError(
            f"There are {len(plan.classes)} classes ({', '.join(plan.classes[:5])}): 2 to 254 are possible."
        )
    # with values, since a name may begin with a number; with the colors of color masks
    colors = [f" {color_name(int(code))}" for code in color_codes(np.array(plan.colors.palette))] if plan.colors else []
    text = "".join(
        f"{label} {name}{color}\n"
        for label, (name, color) in enumerate(zip_longest(plan.classes, colors, fillvalue=""))
    )
    path = plan.target / "classes.txt"
    if path.is_file() and path.read_text(encoding="utf-8-sig") != text:
        there, count = read_classes(path), len(plan.classes)
        own_values = there.mapping is not None and not np.array_equal(there.mapping[:count], np.arange(count))
        if there.classes != plan.classes or there.by_color or own_values:
            listed = ", ".join(plan.classes[:8])
            raise UserError(f"{path} has other classes or values than 0 to {count - 1}, {listed}: use another folder.")
    plan.target.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with replace_when_complete(path) as new:
            new.write_bytes(text.encode())


def assign(items: Iterable[tuple[Annotated, Path | None]], settings: Output, skipped: dict[str, str]) -> list[Job]:
    """Give each image its split and the name of its files; images whose files would have one name are skipped."""
    jobs, taken = [], {}
    for item, mask in items:
        name = Path(item.name).with_suffix("").as_posix()
        stem = name.strip("/").replace("../", "").replace("/", "_")
        drawn = int.from_bytes(hashlib.sha256(stem.encode()).digest()[:4], "big") / 2**32
        split = "val" if drawn < settings.val_share else settings.split
        if stem in taken:
            skipped[item.name] = f"its labels would be named as those of {taken[stem]}"
            continue
        taken[stem] = item.name
        jobs.append(Job(item, split, stem, mask))
    return jobs


_plan: Plan  # of a process of the pool, to which it is sent once


def _start(plan: Plan) -> None:
    global _plan
    _plan = plan
    # Ctrl-C reaches all processes; only the main one heeds it, so that no file is cut short
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _make(job: Job) -> tuple[bool, np.ndarray]:
    return make(job, _plan)


def work(jobs: list[Job], plan: Plan, workers: int, skipped: dict[str, str]) -> dict[str, list]:
    """Make all files in parallel.

    Returns:
        For each split: images, images that were there already, pixels of each label, and images that each is in.
    """
    found: dict[str, list] = {}
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(plan,)) as pool:
        try:
            waiting = {pool.submit(_make, job): job for job in jobs}
            for done in tqdm(as_completed(waiting), total=len(jobs), desc="make labels", unit="image"):
                job = waiting[done]
                try:
                    there, pixels = done.result()
                except UnusableError as error:
                    skipped[job.item.name] = str(error)
                    continue
                counts = found.setdefault(job.split, [0, 0, np.zeros(256, np.int64), np.zeros(256, np.int64)])
                for place, value in enumerate((1, there, pixels, pixels > 0)):
                    counts[place] = counts[place] + value
        except BrokenProcessPool:
            raise UserError("a process was ended from outside, perhaps for memory: try fewer --workers.") from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return found


def summarize(found: dict[str, list], plan: Plan, skipped: dict[str, str]) -> None:
    """Print what was made, with the share of each class, and what was skipped."""
    for split, (images, there, pixels, occurs) in sorted(found.items()):
        print(f"{split}: {images} images in {plan.target / 'images' / split}, {there} of them were there already")
        for label, name in enumerate(plan.classes):
            share = 100 * pixels[label] / max(pixels[:IGNORED].sum(), 1)
            print(f"  {label:3d} {name:24s} {share:6.2f}%  in {occurs[label]} images")
        print(f"      {'left out':24s} {100 * pixels[IGNORED] / max(pixels.sum(), 1):6.2f}% of all pixels")
    if not (plan.target / "images" / "val").is_dir():
        print("No images are for validation yet: run it again with --split val, or anew with --val_share 0.1.")
    if skipped:
        print(f"skipped: {len(skipped)}")
        for name, reason in list(skipped.items())[:20]:
            print(f"  {name}: {reason}")
        if len(skipped) > 20:
            print(f"  and {len(skipped) - 20} more")


def main(argv: list[str]) -> None:
    """Make a data folder."""
    kinds = Named[Colors, tyro.conf.subcommand("colors", prefix_name=False)]
    kinds |= Named[Coco, tyro.conf.subcommand("coco", prefix_name=False)]
    kinds |= Named[LabelMe, tyro.conf.subcommand("labelme", prefix_name=False)]
    settings = tyro.cli(kinds, args=argv, description=__doc__.split("\n")[0], use_underscores=True)
    if not 0 <= settings.val_share <= 1:
        raise UserError(f"val_share must be from 0 to 1, got {settings.val_share}.")
    if settings.workers < 1:
        raise UserError(f"workers must be at least 1, got {settings.workers}.")
    plans = {Colors: plan_colors, Coco: plan_coco, LabelMe: plan_labelme}
    plan, items, skipped = plans[type(settings)](settings)
    write_classes(plan)
    jobs = assign(items, settings, skipped)
    for split in {job.split for job in jobs}:
        for kind in ("images", "labels"):
            (plan.target / kind / split).mkdir(parents=True, exist_ok=True)
    found = work(jobs, plan, settings.workers, skipped)
    summarize(found, plan, skipped)
    if not found:
        raise UserError("no labels were made: see the reasons above.")


if __name__ == "__main__":
    run(main)
