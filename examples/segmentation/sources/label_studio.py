"""Exports of Label Studio: its JSON, and a PNG for each brushed region."""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from ..mask_labels import UnusableError
from ..recipe import UserError
from .reading import FAULTS, Annotations, ImageFolder, Images, Painted, Reading, Target, read_json
from .regions import IGNORE, Annotated, Region, ellipse, encode_run_lengths, has_area, outline, rotate, stroke

_PNG = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-[^-]*-[^-]+-(?P<name>.+)-\d+")
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")


@dataclass
class LabelStudio(Painted):
    """A JSON export of Label Studio (polygons, rectangles, ellipses, brushes), or a folder of its PNGs of regions.

    Later regions lie on top; of PNGs, which have no order, smaller ones do. Of several annotations of a task, the one
    marked as ground truth counts, else the newest; canceled ones do not. Key points and open lines are left out.
    """

    images: Images
    """Folder of the images, under the names of the uploads or their own."""
    annotations: Annotations
    """The JSON file, or a folder of files such as task-1-annotation-2-by-1-tag-car-0.png."""
    target: Target
    """Data folder to make."""
    tasks: Path | None = None
    """With PNGs: the JSON export, which says which image a task is of; else images are named by the task's number."""

    def read(self) -> Reading:
        folder, reading = ImageFolder(self.images, self.target), Reading()
        if self.annotations.is_dir():
            _read_pngs(self.annotations, self.tasks, folder, reading)
        else:
            unlabeled = several = 0
            for task, count in _newest(_read_tasks(self.annotations)):
                results, count = _results(task, count)
                several += count > 1
                if results is None:
                    unlabeled += 1
                else:
                    _read_task(task, results, folder, reading)
            if unlabeled:
                reading.notes.append(f"{unlabeled} tasks have no annotation, or a canceled one: they are left out.")
            if several:
                reading.notes.append(
                    f"{several} tasks have several annotations: the ground truth or the newest counts."
                )
        return reading.finish(self.annotations, folder)


def decode_brush(rle: list[int]) -> np.ndarray:
    """The values (N,) that Label Studio packs: red, green, blue and alpha of each pixel, by rows.

    The form is that of the package rle-pack: runs of one value, or of single ones, of lengths in one of four sizes.

    Raises:
        ValueError: If the data end too early.
    """
    bits = np.unpackbits(np.asarray(rle, np.uint8))
    text, place = (bits + 48).tobytes(), 0

    def read(size: int) -> int:
        nonlocal place
        place += size
        return int(text[place - size : place], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    weights = 1 << np.arange(word)[::-1]
    values, done = np.zeros(count, np.uint32), 0
    while done < count:
        is_run = read(1)
        length = read(sizes[read(2)]) + 1
        if is_run:
            values[done : done + length] = read(word)
        else:
            part = bits[place : place + length * word].reshape(-1, word) @ weights
            values[done : done + length] = part[: count - done]
            place += length * word
        done += length
    return values


def _read_tasks(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    tasks = content if isinstance(content, list) else [content]
    known = ("annotations", "completions", "annotation_id")
    if not tasks or not all(isinstance(task, dict) and "id" in task and set(known) & set(task) for task in tasks):
        raise UserError(f"{path} is not a JSON export of Label Studio: it is no list of tasks with annotations.")
    return tasks


def _newest(tasks: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The tasks, and the number of their rows: in the short form, JSON-MIN, one for each annotation."""
    rows: dict[Any, list[dict[str, Any]]] = {}
    for number, task in enumerate(tasks):
        rows.setdefault(str(task["id"]) if "annotation_id" in task else number, []).append(task)
    newest = [
        max(same, key=lambda t: (str(t.get("updated_at") or ""), t.get("annotation_id") or 0)) for same in rows.values()
    ]
    return list(zip(newest, map(len, rows.values())))


def _results(task: dict[str, Any], rows: int) -> tuple[list[dict[str, Any]] | None, int]:
    """The regions of the annotation of a task that counts, None without any; and the number of its annotations."""
    if "annotation_id" in task:
        lists = [value for value in task.values() if isinstance(value, list)]
        values = [value for part in lists for value in part if isinstance(value, dict)]
        return [{"value": value, "id": number, **value} for number, value in enumerate(values)], rows
    annotations = task.get("annotations") or task.get("completions") or []
    annotations = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    if not annotations:
        return None, 0
    last = max(
        annotations, key=lambda a: (bool(a.get("ground_truth")), str(a.get("updated_at") or ""), a.get("id") or 0)
    )
    return [result for result in last.get("result") or [] if isinstance(result, dict)], len(annotations)


def _image_names(task: dict[str, Any]) -> list[str]:
    """Names of the image files of a task."""
    names = []
    data = task.get("data") or task
    for value in [data["image"]] if "image" in data else data.values():
        if isinstance(value, str):
            parts = urlsplit(value.replace("\\", "/"))
            name = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
            if name.lower().endswith(_ENDINGS):
                names.append(name)
    return names or [name for name in [task.get("file_upload")] if name]


def _image_of(task: dict[str, Any], folder: ImageFolder, reading: Reading) -> Annotated:
    """The image of a task, without regions."""
    names = _image_names(task)
    try:
        if len(names) != 1:
            raise ValueError(f"the task has {len(names)} images, not one")
        path = folder.find(names[0])
    except ValueError as error:
        path = folder.folder / f"task {task['id']}"
        reading.skipped[path.name] = UnusableError("tasks have no image that is known", str(error))
    item = Annotated(folder.short_name(path), path)
    reading.items.append(item)
    return item


def _read_task(task: dict[str, Any], results: list[dict[str, Any]], folder: ImageFolder, reading: Reading) -> None:
    """Add the image of a task with its regions. A region and its label may be two results with one id."""
    item = _image_of(task, folder, reading)
    groups: dict[Any, list[dict[str, Any]]] = {}
    for number, result in enumerate(results):
        groups.setdefault(result.get("id", number), []).append(result)
    for key, group in groups.items():
        shapes = [result for result in group if _has_place(result.get("value"))]
        if not shapes:
            continue
        labels = next((labels for result in group if (labels := _labels(result.get("value")))), [])
        try:
            _add(shapes[0], labels, item, reading)
        except FAULTS as error:
            reading.fault(item, f"region {key} of task {task['id']}", error, [])


def _has_place(value: Any) -> bool:
    places = {"points", "vertices", "rle", "imageDataURL", "x"}
    return isinstance(value, dict) and bool(places & set(value))


def _labels(value: Any) -> list[str]:
    """The labels of a region: its `polygonlabels`, `brushlabels`, ..., or `labels`."""
    lists = [v for k, v in value.items() if k.endswith("labels")] if isinstance(value, dict) else []
    return [str(label).strip() for part in lists if isinstance(part, list) for label in part]


def _add(result: dict[str, Any], labels: list[str], item: Annotated, reading: Reading) -> None:
    """Add a region, which is in percent of the image.

    Raises:
        ValueError: If it is not of a known form, or some other of `FAULTS`.
    """
    value = result["value"]
    size = (int(result["original_height"]), int(result["original_width"]))
    if result.get("image_rotation"):
        raise ValueError(f"the image was turned by {result['image_rotation']} degrees in the tool")
    if item.size not in (None, size):
        raise ValueError(f"it is of an image of {size[1]}×{size[0]} pixels, others of {item.size[1]}×{item.size[0]}")
    item.size = size
    kind, region = _region(value, size)
    name = labels[0] if labels else "no label"
    if kind:
        reading.leave_out(item, f"regions of {name} are {kind}", region.polygons)
    elif len(labels) == 1:
        region.name = name
        item.regions.append(region)
    else:
        reading.left_out["regions have several labels" if labels else "regions have no label"] += 1
        item.regions.append(region)


def _region(value: dict[str, Any], size: tuple[int, int]) -> tuple[str, Region]:
    """What a region without an area is, else nothing; and the region.

    Raises:
        ValueError: If it is not of a known form, or some other of `FAULTS`.
    """
    height, width = size
    scale = np.array([width, height]) / 100
    if "rle" in value:
        alpha = decode_brush(value["rle"]).reshape(height, width, 4)[..., 3]
        return "", Region(IGNORE, counts=encode_run_lengths(alpha > 0), size=size)
    if "imageDataURL" in value:
        picture = Image.open(io.BytesIO(base64.b64decode(value["imageDataURL"].split(",")[-1])))
        if picture.size != (width, height):
            raise ValueError(f"its mask has {picture.width}×{picture.height} pixels, not {width}×{height}")
        pixels = np.asarray(picture.convert("RGBA"))
        inside = pixels[..., 3] > 0 if picture.has_transparency_data else pixels[..., 0] > 0
        return "", Region(IGNORE, counts=encode_run_lengths(inside), size=size)
    if "points" in value or "vertices" in value:
        corners = value.get("points") or [[vertex["x"], vertex["y"]] for vertex in value["vertices"]]
        points = outline(corners) * scale
        if value.get("closed", True) is False:
            return "open lines", Region(IGNORE, stroke(points))
        return (
            ("", Region(IGNORE, [points])) if has_area(points) else ("without an area", Region(IGNORE, stroke(points)))
        )
    x, y = float(value["x"]) * scale[0], float(value["y"]) * scale[1]
    if "radiusX" in value:
        radii = float(value["radiusX"]) * scale[0], float(value["radiusY"]) * scale[1]
        return "", Region(IGNORE, [ellipse(x, y, *radii, float(value.get("rotation") or 0))])
    if "height" not in value:
        return "key points", Region(IGNORE, stroke(outline([(x, y)])))
    wide, high = float(value["width"]) * scale[0], float(value["height"]) * scale[1]
    corners = outline([(x, y), (x + wide, y), (x + wide, y + high), (x, y + high)])
    return "", Region(IGNORE, [rotate(corners, corners[0], float(value.get("rotation") or 0))])


def _read_pngs(source: Path, tasks: Path | None, folder: ImageFolder, reading: Reading) -> None:
    """Add the images of the tasks that PNGs of regions are of."""
    found = [(match, path) for path in sorted(source.glob("*.png")) if (match := _PNG.fullmatch(path.stem))]
    if not found:
        raise UserError(f"{source} holds no files such as task-1-annotation-2-by-1-tag-car-0.png.")
    known = {str(task["id"]): task for task in _read_tasks(tasks)} if tasks else {}
    numbered = {path.stem: path for path in _numbered(folder)}
    for task in dict.fromkeys(match["task"] for match, _ in found):
        mine = [(match, path) for match, path in found if match["task"] == task]
        newest = max(int(match["annotation"]) for match, _ in mine)
        if task in known:
            item = _image_of(known[task], folder, reading)
        elif task in numbered:
            item = Annotated(folder.short_name(numbered[task]), numbered[task])
            reading.items.append(item)
        else:
            reading.skipped[f"task {task}"] = UnusableError(
                "tasks have no image that is known: give the JSON export by --tasks", f"no image is called {task}"
            )
            continue
        for match, path in mine:
            if int(match["annotation"]) == newest:
                _add_png(match["name"], path, item, reading)
        item.regions.sort(key=lambda region: -sum(region.counts[1::2]))


def _numbered(folder: ImageFolder) -> Iterator[Path]:
    """Images whose names are numbers."""
    return (path for path in folder.folder.glob("*") if path.stem.isdigit() and path.suffix.lower() in _ENDINGS)


def _add_png(name: str, path: Path, item: Annotated, reading: Reading) -> None:
    """Add the region of a PNG, whose pixels inside are not 0."""
    try:
        inside = np.asarray(Image.open(path).convert("L")) > 0
        if item.size not in (None, inside.shape):
            raise ValueError(f"it has another size than the other masks of {item.name}")
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        reading.fault(item, path.name, ValueError(str(error)), [])
        return
    item.size = inside.shape
    item.regions.append(Region(name, counts=encode_run_lengths(inside), size=inside.shape))
