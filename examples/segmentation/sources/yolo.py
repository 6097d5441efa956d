"""Text files of YOLO, as Ultralytics and Roboflow write them for segmentation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated as Named

import numpy as np
import tyro
import yaml
from PIL import Image, UnidentifiedImageError

from segnext_timm.prediction.images import read_values

from ..pairs import pictures
from ..progress import progress_bar
from ..recipe import UserError
from .reading import FAULTS, ImageFolder, Images, Painted, Reading, Target
from .regions import Annotated, Region, box, has_area, outline, square_around, stroke

_LISTS = ("data.yaml", "dataset.yaml", "data.yml", "classes.txt", "obj.names")


@dataclass
class Yolo(Painted):
    """Text files of YOLO for segmentation: a line 'class x1 y1 x2 y2 ...' for each object, in shares of the image.

    Later lines lie on top. An image without a file has no objects. Boxes are left out of training.
    """

    images: Images
    """Folder of the images, such as images/train."""
    labels: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="LABELS")]]
    """Folder of the text files, such as labels/train."""
    target: Target
    """Data folder to make."""
    names: Path | None = None
    """File with the names of the class numbers: data.yaml, or a name per line; else it is looked for above LABELS."""

    def read(self) -> Reading:
        folder, reading = ImageFolder(self.images, self.target), Reading()
        names = _read_names(self.names or self._find_names())
        reading.names = list(names.values())
        images = pictures(self.images, [self.target])
        if not images:
            raise UserError(f"{self.images} holds no images.")
        files = {path.relative_to(self.labels).with_suffix("") for path in self.labels.rglob("*.txt")}
        known = {path.relative_to(self.images).with_suffix("") for path in images}
        if not files & known:
            raise UserError(f"{self.labels} holds no text file with the name of an image in {self.images}.")
        missing, unused = len(known - files), len(files - known - {Path("classes"), Path("labels")})
        if missing:
            reading.notes.append(f"{missing} images have no text file: nothing is in them, as YOLO reads it.")
        if unused:
            reading.notes.append(f"{unused} text files have no image.")
        for path in progress_bar(images, desc="read annotations", unit="file", leave=False):
            size = _upright_size(path)
            item = Annotated(folder.short_name(path), path, size)
            reading.items.append(item)
            file = self.labels / path.relative_to(self.images).with_suffix(".txt")
            if size and file.is_file():
                _read_lines(file, names, item, reading)
        return reading.finish(self.labels, folder)

    def _find_names(self) -> Path:
        places = [self.labels, *list(self.labels.absolute().parents)[:2]]
        found = next((path for place in places for name in _LISTS if (path := place / name).is_file()), None)
        if found is None:
            raise UserError(f"No data.yaml or classes.txt lies above {self.labels}: give one by --names.")
        return found


def _read_names(path: Path) -> dict[int, str]:
    """The names of the class numbers.

    Raises:
        UserError: If the file does not tell them.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix not in (".yaml", ".yml"):
            return {number: line.strip() for number, line in enumerate(text.splitlines()) if line.strip()}
        content = yaml.safe_load(text)
        names = content["names"]
        if isinstance(names, str):
            names = yaml.safe_load(names) if names.strip()[:1] in ("[", "{") else names.split(",")
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        if "kpt_shape" in content:
            raise UserError(f"{path} is of a set of poses: segmentation needs polygons.")
        return {int(number): str(name).strip() for number, name in sorted(pairs)}
    except (*FAULTS, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} does not tell the names of the classes: {' '.join(str(error).split())}.") from None


def _upright_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image as shown; None if it cannot be read."""
    try:
        try:
            image = Image.open(path)
        except UnidentifiedImageError:  # arrays, and TIFFs that Pillow does not know
            return tuple(read_values(path).values.shape[-2:])
        with image:
            turned = image.getexif().get(0x0112, 1) >= 5
            return image.size if turned else image.size[::-1]
    except Exception:  # Pillow's decoders raise anything on damaged files
        return None


def _read_lines(file: Path, names: dict[int, str], item: Annotated, reading: Reading) -> None:
    """Add the objects of a text file to an image."""
    sides = np.array(item.size[::-1])
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FAULTS as error:
        reading.fault(item, file.name, error, [])
        return
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        numbers: list[float] = []
        try:
            numbers = [float(word) for word in words[1:]]
            name = names.get(int(float(words[0])))
            _add(name, numbers, sides, item, reading)
        except FAULTS as error:
            around = [polygon * sides for polygon in square_around([min(max(n, 0.0), 1.0) for n in numbers])]
            reading.fault(item, f"line {number} of {file.name}", error, around)


def _add(name: str | None, numbers: list[float], sides: np.ndarray, item: Annotated, reading: Reading) -> None:
    """Add an object.

    Raises:
        ValueError: If the numbers are no outline.
    """
    if max(map(abs, numbers), default=0) > 2:
        raise ValueError(f"coordinates are shares of the image from 0 to 1, got {max(numbers):g}")
    if len(numbers) in (4, 5):  # with a confidence
        x, y, width, height = numbers[:4]
        corners = box(x - width / 2, y - height / 2, x + width / 2, y + height / 2) * sides
        reading.leave_out(item, f"objects of {name or 'no known class'} are boxes, as of a detection set", [corners])
        return
    points = outline(numbers) * sides
    if not len(points):
        raise ValueError("it has no outline")
    if not has_area(points):
        reading.leave_out(item, f"objects of {name} have no area", stroke(points))
    elif name is None:
        reading.leave_out(item, "objects have a class number without a name", [points])
    else:
        item.regions.append(Region(name, [points]))
