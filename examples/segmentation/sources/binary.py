"""Binary masks: a file for each class of an image, or for each object."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated as Named

import tyro

from ..class_list import read_classes
from ..mask_labels import UnusableError
from ..name_rules import plain
from ..pairs import two_kinds
from ..recipe import UserError
from .reading import Images, Painted, Reading, Target, is_background
from .regions import Annotated, Region


@dataclass
class Binary(Painted):
    """Binary masks: IMAGE/CLASS.png, CLASS/IMAGE.png or IMAGE_CLASS.png; IMAGE/*.png for objects of one class.

    Where masks overlap, the class that comes later in the list counts. IMAGES and MASKS may be one folder, with folders
    `images` and `masks` for each image below.
    """

    images: Images
    """Folder of the images."""
    masks: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="MASKS")]]
    """Folder of the masks, whose pixels of the class have one value above 0."""
    target: Target
    """Data folder to make."""

    def read(self) -> Reading:
        if self.classes is None:
            raise UserError("--classes is missing: give a file with the names of the classes, which the masks bear.")
        classes = [name for name in read_classes(self.classes).classes if not is_background(name)]
        images, masks, _ = two_kinds(self.images, self.masks, [self.target])
        if not masks:
            raise UserError(f"{self.images} does not tell masks from images: put them into folders of their own.")
        items: dict[str, Annotated] = {}
        for name, files in images.items():
            if len(files) > 1:
                raise UserError(f"{files[0]} and {files[1]} have one name: rename or remove one.")
            items[name] = Annotated(files[0].relative_to(self.images).as_posix(), files[0])
        meanings = {name: {*_meanings(name, items, classes)} for name in masks}
        if len(classes) == 1 and not any(meanings.values()):  # names without a class: objects of the only one
            meanings = {name: {(image, classes[0]) for image in _images_of(name, items)} for name in masks}
        for name, files in masks.items():
            found = meanings[name]
            if len(found) != 1:
                raise UserError(
                    f"{files[0]} {'may be of several images or classes' if found else 'is of no image and class'}: "
                    f"masks are named such as {next(iter(items))}_{classes[0]}, or lie in folders of these names. The "
                    f"classes are {', '.join(classes[:8])}{', ...' * (len(classes) > 8)}."
                )
            image, label = found.pop()
            items[image].regions += [Region(label, file=path) for path in files]
        reading = Reading()
        for item in items.values():
            item.regions.sort(key=lambda region: classes.index(region.name))
            reading.items.append(item)
            if not item.regions:
                reading.skipped[item.name] = UnusableError("images have no masks", "it has no masks")
        return reading.finish(self.masks)


def _meanings(mask: str, images: Mapping[str, object], classes: list[str]) -> Iterator[tuple[str, str]]:
    """The image and the class that the name of a mask may mean."""
    *folders, stem = parts = mask.split("/")
    for name in classes:
        rests = [parts[:k] + parts[k + 1 :] for k, part in enumerate(parts) if plain(part) == plain(name)]
        for mark in "_- ":
            rests += [[*folders, stem.removesuffix(mark + name)], [*folders, stem.removeprefix(name + mark)]]
        for rest in rests:
            if rest != parts and "/".join(rest) in images:
                yield "/".join(rest), name


def _images_of(mask: str, images: Mapping[str, object]) -> list[str]:
    """Images that an object may be of: the one that its folder is named for, or those in that folder."""
    place, _, stem = mask.rpartition("/")
    if not place or not re.search(r"\d", stem):  # a name without a number may be that of another class
        return []
    return [place] if place in images else [image for image in images if image.rpartition("/")[0] == place]
