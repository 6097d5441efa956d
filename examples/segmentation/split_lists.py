"""Lists of the images of each split: `ImageSets/Segmentation/train.txt` of Pascal VOC and CVAT, `splits/val.txt`, ...

Each line is the name of an image, with or without folders and ending, or begins with it.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from .check_messages import counted
from .name_rules import SPLITS
from .pairs import Pairs
from .recipe import DataError

PLACES = ("ImageSets/Segmentation", "ImageSets/SegmentationContext", "ImageSets", "splits", "")
_WHOLE = ("trainval", "default")  # of data sets that are not divided
_LARGER = ("trainaug", "train_aug")  # training set of SegmentationClassAug


def find_lists(folders: Iterable[Path], found: Pairs) -> tuple[dict[str, set[Path]], str] | None:
    """The images of "train" and "val" by the first lists that name some; those of "" if they are not divided.

    Outside of `ImageSets`, lists without one for validation are not heeded: they may be of something else.

    Args:
        folders: Where lists may lie.
        found: The images.

    Returns:
        The images, and a line on what was found; None without lists.

    Raises:
        DataError: If an image is in the lists of both splits.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in [*found.images, *found.unlabeled]:
        by_stem.setdefault(path.stem, []).append(path)
    larger = _LARGER if found.folders[1].name.lower().endswith("aug") else ()
    kinds = {"train": (*larger, *SPLITS["train"]), "val": SPLITS["val"], "": _WHOLE, "test": SPLITS["test"]}
    for place, sure in ((folder / name, name[:9] == "ImageSets") for folder in folders for name in PLACES):
        files = {path.stem.lower(): path for path in sorted(place.glob("*.txt"))}
        used = {kind: next((files[name] for name in names if name in files), None) for kind, names in kinds.items()}
        read = {kind: _named(path, by_stem) for kind, path in used.items() if path}
        named = {kind: images for kind, (images, _) in read.items() if images}
        tested = named.pop("test", set())
        if "val" not in named and not (named and sure):
            continue
        if both := named.get("train", set()) & named.get("val", set()):
            raise DataError(f"{used['train']} and {used['val']} both name {min(both).name}: leave it in one of them.")
        if len(named) > 1:
            named.pop("", None)
        said = ", ".join(f"{used[kind].name} names {counted(len(images), 'image')}" for kind, images in named.items())
        if missing := [name for kind in named for name in read[kind][1]]:
            said += f", and {len(missing)} that are not there, the first: {missing[0]}"
        if named.keys() == {"train"}:
            named = {"": named["train"]}
        elif named.keys() == {"val"}:
            named["train"] = {*found.images} - named["val"] - tested
            said += f", and the other {len(named['train'])} are for training"
        left = len(found.images) + len(found.unlabeled) - sum(map(len, named.values()))
        return named, f"{place}: {said}" + (f"; {left} in no list are left out" if left else "")
    return None


def keep(found: Pairs, images: set[Path]) -> Pairs:
    """Pairs of some of the images."""
    both = [pair for pair in zip(found.images, found.labels) if pair[0] in images]
    unlabeled = [path for path in found.unlabeled if path in images]
    return replace(found, images=[i for i, _ in both], labels=[label for _, label in both], unlabeled=unlabeled)


def _named(path: Path, by_stem: dict[str, list[Path]]) -> tuple[set[Path], list[str]]:
    """The images that a list names, and names of no image."""
    suffixes, found, missing = Image.registered_extensions(), set(), []
    for line in filter(None, map(str.strip, path.read_text(encoding="utf-8-sig", errors="replace").splitlines())):
        for text in (line, *line.replace(",", " ").split()[:1]):
            name = Path(text.replace("\\", "/"))
            name = name.with_suffix("") if name.suffix.lower() in suffixes else name
            same = [image for image in by_stem.get(name.name, ()) if name.parent.name in ("", image.parent.name)]
            if len(same) == 1:
                found.add(same[0])
                break
        else:
            missing.append(line)
    return found, missing
