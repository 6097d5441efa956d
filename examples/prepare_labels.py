"""Turn masks and the exports of label tools into the label PNGs that `recipes/folder.yaml` trains on.

    python examples/prepare_labels.py masks IMAGES MASKS data/mine --classes classes.txt --val_share 0.1
    python examples/prepare_labels.py coco IMAGES instances_train.json data/mine --split train
    python examples/prepare_labels.py labelme FOLDER data/mine --val_share 0.1
    python examples/prepare_labels.py cvat IMAGES annotations.xml data/mine
    python examples/prepare_labels.py yolo images/train labels/train data/mine
    python examples/prepare_labels.py labelstudio IMAGES project.json data/mine
    python examples/prepare_labels.py binary IMAGES MASKS data/mine --classes classes.txt
    python examples/prepare_labels.py mat IMAGES MATS data/mine --classes classes.txt
    python examples/prepare_labels.py datasets user/name data/mine --classes classes.txt

The images go to `images/{train,val}`, their labels to `labels/{train,val}`, the names of the classes to `classes.txt`.
The same command, given again, makes what is missing and what has changed, and moves images whose split has. What cannot
be used is skipped and listed at the end; if that is more than a tenth, the command fails, and what was made stays.
Masks that hold the numbers, values or colors of `classes.txt` exactly need no conversion.
"""

import hashlib
import re
import signal
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Annotated as Named

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import numpy as np
import tyro

from segmentation.check_messages import named, values_of, written
from segmentation.class_list import color_codes, color_name, read_classes
from segmentation.files import replace_when_complete
from segmentation.mask_labels import IGNORED, UnusableError, check_palettes, mask_rule, show_values
from segmentation.pairs import pair
from segmentation.prepared import Record, digest, find_in_other_splits, move
from segmentation.preparing import Job, Plan, Result, make
from segmentation.progress import progress_bar
from segmentation.recipe import UserError, run
from segmentation.sources import SOURCES
from segmentation.sources.reading import Output, Painted, class_order, is_background
from segmentation.sources.regions import IGNORE, Annotated
from segmentation.sources.unpacking import Unpacked, work_folder
from segmentation.split_lists import find_lists, keep

MOST_SKIPPED = 0.1  # share of the images; if more are skipped, the command fails
NO_MASK = "images have no mask"
SAVE_EVERY = 60.0  # seconds between writes of the record
_NO_NAME = re.compile(r"-|.*[\n\r].*|.*\s#(\s.*|[0-9a-fA-F]{6})", re.DOTALL)  # what means something else in classes.txt


@dataclass
class Masks(Output):
    """Masks: an image file for each image, with a color or a value for each class.

    Names are equal, or differ by one affix, as a.jpg and a_mask.png do; both may lie in one folder.
    """

    images: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="IMAGES")]]
    """Folder of the images."""
    masks: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="MASKS")]]
    """Folder of the masks."""
    target: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="TARGET")]]
    """Data folder to make."""
    classes: Path | None = None
    """Class list: '#ff0000 road', '255 road' or 'road' on each line, '#000000 -' for pixels to leave out."""
    threshold: int | None = None
    """For two classes, and masks as JPEG or with smooth edges: pixels from this gray value on are of the brighter, or,
    if the list gives no values, the second class."""
    nearest: float = 0
    """For such masks and more classes: the largest distance from the value or color (in RGB) of a class at which pixels
    are taken for the nearest class; those beyond are left out."""
    mask_names: str = "*"
    """File names of the masks, if there are several kinds, such as '*_labelIds.png'."""
    labeled_only: bool = False
    """Leave out images without a mask, however many; else the command fails if they are more than a tenth."""


Found = tuple[Plan, list[tuple[Annotated, Path | None]], dict[str, UnusableError]]


# What there is to do


def plan_masks(settings: Masks) -> Found:
    """What masks are turned into.

    Raises:
        UserError: If files are missing, the names do not tell the masks of the images, or the classes are not known.
    """
    for kind in ("labels", "images"):
        if settings.masks.resolve().is_relative_to((settings.target / kind).resolve()):
            raise UserError(f"{settings.masks} lies in {settings.target} and would be overwritten: use another TARGET.")
    found = pair(settings.images, settings.masks, without=[settings.target], label_names=settings.mask_names)
    splits = {}
    if lists := find_lists([settings.images, settings.images.parent], found):
        splits, note = lists
        found = keep(found, set().union(*splits.values()))
        unused = settings.val_share and settings.split == "train" and len(splits) > 1
        print(note + "; --val_share is not used" * bool(unused))
    print(found)
    if settings.classes is None:
        show_values(found.labels)
        raise UserError("--classes is missing: write the lines above to a file, give each a name, and give that file.")
    rule = mask_rule(read_classes(settings.classes), settings.threshold, settings.nearest)
    if rule.threshold is None:
        check_palettes(found.labels, rule.classes, settings.workers)
    no_mask = UnusableError(NO_MASK, "it has no mask")
    unlabeled = [] if settings.labeled_only else found.unlabeled
    skipped = {path.relative_to(settings.images).as_posix(): no_mask for path in unlabeled}
    split_of = {path: split for split, paths in splits.items() for path in paths if split and settings.split == "train"}
    items = [
        (Annotated(path.relative_to(settings.images).as_posix(), path, split=split_of.get(path)), mask)
        for path, mask in zip(found.images, found.labels)
    ]
    return Plan(settings.target, rule.classes.classes, masks=rule, link=settings.link), items, skipped


def plan_unpacked(settings: Unpacked) -> Found:
    """What label maps in other files are turned into."""
    work = work_folder(settings.target)
    images, masks = settings.unpack(work)
    shared = {option.name: getattr(settings, option.name) for option in fields(Output)}
    shared["link"] &= not images.is_relative_to(work)  # which does not stay
    return plan_masks(Masks(images, masks, settings.target, classes=settings.classes, **shared))


def plan_regions(settings: Painted) -> Found:
    """What annotations are turned into whose regions are painted.

    Raises:
        UserError: If they are of another kind, or a class is not listed.
    """
    reading = settings.read()
    for note in reading.notes:
        print(note)
    found = {region.name: item.name for item in reading.items for region in item.regions}
    written = settings.target / "classes.txt"
    keep = written.is_file() and not _follows(settings.target, {_key(item.name, settings) for item in reading.items})
    listed = settings.classes or (written if keep else None)
    listed_names = read_classes(listed).classes if listed else reading.names
    if not listed_names and set(found) <= {IGNORE}:
        for name, error in reading.skipped.items():
            raise UserError(f"No image can be used: {error.kind}; the first, {name}: {error}.")
        raise UserError("No image has an object of a class: nothing can be learned from these annotations.")
    names, background = class_order(sorted(found) if listed_names is None else listed_names, settings.background)
    unknown = [name for name in found if name not in names and name != IGNORE and not is_background(name)]
    if unknown:
        raise UserError(
            f"{found[unknown[0]]} labels {unknown[0]!r}, which {listed} does not name: add it there"
            f"{', or make another data folder' if listed == written else ''}."
        )
    plan = Plan(settings.target, tuple(names), background, link=settings.link)
    return plan, [(item, None) for item in reading.items], reading.skipped


def _follows(target: Path, keys: set[str]) -> bool:
    """Whether `classes.txt` may follow changed classes: it was written here, and all its labels are made anew."""
    record, path = Record.read(target), target / "classes.txt"
    mine = path.is_file() and record.classes == digest(path.read_bytes())
    return mine and {key.split("/", 1)[1] for key in record.made} <= {key.split("/", 1)[1] for key in keys}


def write_classes(plan: Plan, jobs: list[Job], dry_run: bool) -> None:
    """Write the names of the classes; what is there already has to be the same, or may follow.

    Labels of classes that have changed are removed, since they would mean others.

    Raises:
        UserError: If there are other classes, or too many or too few.
    """
    if not 2 <= len(plan.classes) <= 254:
        raise UserError(
            f"There are {len(plan.classes)} classes ({', '.join(plan.classes[:5])}): 2 to 254 are possible."
        )
    if odd := [name for name in plan.classes if _NO_NAME.fullmatch(name)]:
        raise UserError(f"classes.txt cannot hold the class {odd[0]!r}: give it another name in the annotations.")
    for name, count in Counter(map(str.casefold, plan.classes)).items():
        if count > 1:
            print(f"Warning: {count} classes differ in the case of letters only: {name!r}.")
    # with values, since a name may begin with a number; with the colors of color masks
    shown = plan.masks.classes.palette if plan.masks and plan.masks.classes.by_color else ()
    colors = [f" {color_name(int(code))}" for code in color_codes(np.array(shown))] if shown else []
    text = "".join(
        f"{label} {name}{color}\n"
        for label, (name, color) in enumerate(zip_longest(plan.classes, colors, fillvalue=""))
    ).encode()
    path, record = plan.target / "classes.txt", Record.read(plan.target)
    if path.is_file() and path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n") != text:
        there, count = read_classes(path), len(plan.classes)
        own_values = there.mapping is not None and not np.array_equal(there.mapping[:count], np.arange(count))
        other = there.classes != plan.classes or there.by_color or own_values
        follows = _follows(plan.target, {job.key for job in jobs})
        if other and not follows:
            listed = ", ".join(plan.classes[:8])
            raise UserError(f"{path} has other classes or values than 0 to {count - 1}, {listed}: use another folder.")
        if not follows:
            return
        if other:
            print(f"The classes have changed: {path} follows, and the {len(record.made)} labels are made anew.")
            for key in () if dry_run else record.made:
                record.label(key).unlink(missing_ok=True)
    if dry_run or (path.is_file() and path.read_bytes() == text):
        return
    with replace_when_complete(path) as new:
        new.write_bytes(text)
    record.classes = digest(text)
    record.write()


def _key(name: str, settings: Output) -> str:
    """The split and the name of the files that are made of an image."""
    stem = Path(name).with_suffix("").as_posix().strip("/").replace("../", "").replace("/", "_")
    drawn = int.from_bytes(hashlib.sha256(stem.encode()).digest()[:4], "big") / 2**32
    return f"{'val' if drawn < settings.val_share else settings.split}/{stem}"


def assign(
    items: Iterable[tuple[Annotated, Path | None]], settings: Output, skipped: dict[str, UnusableError]
) -> list[Job]:
    """Give each image its split and the name of its files; images whose files would have one name are skipped."""
    jobs, taken = [], {}
    for item, mask in items:
        split, stem = _key(item.name, settings).split("/", 1)
        split = item.split or split
        if stem in taken:
            reason = f"its labels would be named as those of {taken[stem]}"
            skipped[item.name] = UnusableError("images have the name of another image", reason)
            continue
        taken[stem] = item.name
        jobs.append(Job(item, split, stem, mask))
    return jobs


def move_to_splits(jobs: list[Job], record: Record, dry_run: bool) -> None:
    """Move images that an earlier run put into the other split, so that none is in both."""
    found = find_in_other_splits(record, ((job.key, job.source) for job in jobs))
    ways = Counter((other.split("/")[0], key.split("/")[0]) for key, other, _ in found)
    for (old, new), count in ways.items():
        print(f"{count} images {'would move' if dry_run else 'moved'} from {old} to {new}, where they belong now.")
    if not dry_run and found:
        for key, other, path in found:
            move(record, key, other, path)
        record.write()


_plan: Plan  # of a process of the pool, to which it is sent once
_settings: str


def _start(plan: Plan) -> None:
    global _plan, _settings
    _plan, _settings = plan, plan.settings()
    # Ctrl-C reaches all processes; only the main one heeds it, so that no file is cut short
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _make(job: Job) -> Result:
    return make(job, _plan, _settings)


@dataclass
class Counts:
    """Numbers of a split: images, those that were there already, pixels of each label, and images that each is in.

    `far` pixels are near to no class; `lost` objects are painted on no pixel, by image.
    """

    images: int = 0
    there: int = 0
    far: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    occurs: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))

    def add(self, name: str, result: Result) -> None:
        """Count an image."""
        self.images += 1
        self.there += result.there
        self.far += result.far
        if result.lost:
            self.lost[name] = result.lost
        self.pixels += result.pixels
        self.occurs += result.pixels > 0


def work(
    jobs: list[Job], plan: Plan, record: Record, workers: int, skipped: dict[str, UnusableError]
) -> dict[str, Counts]:
    """Make all files in parallel, and note in the record what they were made of. Returns the counts of each split."""
    found: dict[str, Counts] = {}
    saved = time.monotonic()
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(plan,)) as pool:
        try:
            waiting = {pool.submit(_make, job): job for job in jobs}
            for done in progress_bar(as_completed(waiting), total=len(jobs), desc="make labels", unit="image"):
                job = waiting[done]
                try:
                    result = done.result()
                except UnusableError as error:
                    skipped[job.item.name] = error
                    continue
                record.made[job.key] = result.made
                found.setdefault(job.split, Counts()).add(job.item.name, result)
                if time.monotonic() - saved > SAVE_EVERY:
                    record.write()
                    saved = time.monotonic()
        except BrokenProcessPool:
            raise UserError("a process was ended from outside, perhaps for memory: try fewer --workers.") from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            # files that were finished meanwhile
            for done, job in waiting.items():
                if done.done() and not done.cancelled() and not done.exception():
                    record.made[job.key] = done.result().made
            raise
        finally:
            record.write()
    return found


def summarize(found: dict[str, Counts], plan: Plan) -> None:
    """Print what was made, with the share of each class."""
    for split, counts in sorted(found.items()):
        where = plan.target / "images" / split
        print(f"{split}: {counts.images} images in {where}, {counts.there} of them were there already")
        pixels = counts.pixels
        for label, name in enumerate(plan.classes):
            share = 100 * pixels[label] / max(pixels[:IGNORED].sum(), 1)
            print(f"  {label:3d} {name:24s} {share:6.2f}%  in {counts.occurs[label]} images")
        print(f"      {'left out':24s} {100 * pixels[IGNORED] / max(pixels.sum(), 1):6.2f}% of all pixels")
        if counts.far:
            share = 100 * counts.far / pixels.sum()
            print(
                f"      {share:.2g}% of all pixels are farther than {plan.masks.nearest:g} from every class: left out"
            )
        if counts.lost:
            print(
                f"Warning: {sum(counts.lost.values())} objects in {len(counts.lost)} images are lost (the first: "
                f"{min(counts.lost)}): their outlines lie outside the image, are smaller than a pixel, or are in "
                "shares of the image from 0 to 1 instead of pixels."
            )
    for split, how in (
        ("val", "again with --val_share 0.1, which moves about a tenth there"),
        ("train", "without --split val"),
    ):
        folder = plan.target / "images" / split
        if not folder.is_dir() or not any(folder.iterdir()):
            other = "give other images with --split val" if split == "val" else "give other images with --split train"
            print(f"No images are in {split} yet: give the same command {how}, or {other}.")


def warn_of_old(jobs: list[Job], record: Record, skipped: Iterable[str], settings: Output) -> None:
    """Print which files of an earlier run stay although what they were made of cannot be used any more, or is gone."""
    now = {job.key for job in jobs if record.made.get(job.key) is not job.made}
    planned, folders = {job.key for job in jobs}, {job.source.absolute().parent for job in jobs}
    lost = {_key(name, settings).split("/", 1)[1] for name in skipped}

    def is_old(key: str) -> bool:
        unlabeled = key not in planned and Path(record.made[key].source).parent in folders
        return key not in now and (unlabeled or key.split("/", 1)[1] in lost or record.is_gone(key))

    if old := [key for key in record.made if is_old(key)]:
        images = f"{len(old)} image{'s' * (len(old) > 1)} of an earlier run (the first: {old[0]})"
        print(
            f"Warning: {record.target} keeps {images}, though what they were made of was skipped or is gone: remove "
            f"images and labels unless they are wanted."
        )


def check_one_class(found: dict[str, Counts], plan: Plan) -> None:
    """Print a warning if all pixels have one class.

    Raises:
        UserError: If they have, and masks hold other values, which were left out or lie on one side of the threshold.
    """
    pixels, masks = sum(counts.pixels for counts in found.values()), plan.masks
    absent = [name for name, number in zip(plan.classes, pixels) if not number]
    left_out = pixels[IGNORED] - sum(counts.far for counts in found.values())
    if len(absent) != len(plan.classes) - 1:
        return
    if masks is None or (masks.threshold is None and not left_out):
        print(f"Warning: no pixel is of the class {named(absent)}: nothing can be learned from these labels alone.")
        return
    if masks.threshold is not None:
        raise UserError(
            f"--threshold {masks.threshold} leaves no pixel for the class {absent[0]!r}: all gray values lie on one "
            f"side of it. The same command without --classes shows the values."
        )
    values = [written(value, masks.classes) for value in values_of(masks.classes)[len(plan.classes)]]
    raise UserError(
        f"no pixel is of the class {named(absent)}, and {100 * left_out / pixels.sum():.2g}% have the "
        f"{'color' if masks.classes.by_color else 'value'} {named(values)}, which is left out. If that is "
        f"{absent[0]!r}, write '{values[0]} {absent[0]}' in the file of --classes, and such values before the other "
        f"names."
    )


def report_skipped(skipped: dict[str, UnusableError], total: int, plan: Plan) -> None:
    """List what was skipped, by kind.

    Raises:
        UserError: If it is more than a tenth.
    """
    if not skipped:
        return
    print(f"skipped: {len(skipped)} of {total}")
    kinds = Counter(error.kind for error in skipped.values()).most_common()
    lines = []
    for kind, count in kinds:
        advice = f": {plan.masks.advice()}" if plan.masks and " between the " in kind else ""
        advice = ": if they are not labeled yet, add --labeled_only" if kind == NO_MASK else advice
        lines.append(f"{count} of {total}: {kind}{advice}")
        print(lines[-1])
        reasons = [(name, str(error)) for name, error in skipped.items() if error.kind == kind]
        for name, reason in reasons[:10]:
            print(f"  {name}: {reason}")
        if count > 10:
            print(f"  and {count - 10} more")
    if len(skipped) > MOST_SKIPPED * total:
        raise UserError(
            f"{len(skipped)} of {total} images were skipped, more than a tenth ({'; '.join(lines[:3])}). What was made "
            f"stays in {plan.target}."
        )


def main(argv: list[str]) -> None:
    """Make a data folder."""
    kinds = Named[Masks, tyro.conf.subcommand("masks", prefix_name=False)]
    for name, source in SOURCES.items():
        kinds |= Named[source, tyro.conf.subcommand(name, prefix_name=False)]
    argv = ["masks", *argv[1:]] if argv[:1] == ["colors"] else argv  # its earlier name
    settings = tyro.cli(kinds, args=argv, description=__doc__.split("\n")[0], use_underscores=True)
    if not 0 <= settings.val_share <= 1:
        raise UserError(f"val_share must be from 0 to 1, got {settings.val_share}.")
    if settings.workers < 1:
        raise UserError(f"workers must be at least 1, got {settings.workers}.")
    if settings.target.is_file():
        raise UserError(f"{settings.target} is a file: give a folder as TARGET.")
    planned = {Masks: plan_masks, Unpacked: plan_unpacked, Painted: plan_regions}
    plan, items, skipped = next(how for kind, how in planned.items() if isinstance(settings, kind))(settings)
    jobs = assign(items, settings, skipped)
    total = len(jobs) + len(skipped)
    write_classes(plan, jobs, settings.dry_run)
    record = Record.read(plan.target)
    move_to_splits(jobs, record, settings.dry_run)
    if settings.dry_run:
        counts = Counter(job.split for job in jobs)
        print(
            f"{', '.join(f'{n} images for {s}' for s, n in sorted(counts.items()))} in {plan.target}; nothing written."
        )
        return
    for job in jobs:
        job.made = record.made.get(job.key)
    for split in {job.split for job in jobs}:
        for kind in ("images", "labels"):
            (plan.target / kind / split).mkdir(parents=True, exist_ok=True)
    found = work(jobs, plan, record, settings.workers, skipped)
    summarize(found, plan)
    warn_of_old(jobs, record, skipped, settings)
    report_skipped(skipped, total, plan)
    if not found:
        raise UserError("no labels were made: see the reasons above.")
    check_one_class(found, plan)


if __name__ == "__main__":
    run(main)
