"""Predict image files and write label files: what `segnext-timm predict` does."""

import glob
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .._atomic import fill_when_complete, replace_when_complete
from ..errors import ImageError, OptionError
from ..models.model_info import ModelInfo
from .drawing import class_areas, label_picture, overlay
from .images import read_image
from .pipeline import predict
from .polygons import check_polygons, write_polygons
from .raster_labels import ORIGIN, SUFFIXES, is_raster, predict_raster, raster_areas, read_origin
from .rasters import copy_place

_logger = logging.getLogger(__name__)
_LABELS, _RASTER_LABELS, _POLYGONS, _PROBABILITIES = ".png", ".tif", ".geojson", "_probabilities.npy"
_OVERLAYS = ("_overlay.jpg", "_overlay.png")
_JPEG_SIDE = 65_500  # the longest that JPEG's library writes


def _named(result: Path, ending: str) -> Path:
    return result.with_name(result.name + ending)


def find_images(paths: Sequence[str | Path], out: str | Path) -> dict[Path, Path]:
    """Map each image to the path of its results.

    Args:
        paths: Files; folders, searched recursively for files with the suffix of an image; and patterns such as
            "photos/**/*.jpg".
        out: Folder of the results. Files in it are not predicted.

    Returns:
        For each image, the path of its results without suffix: `out` joined with the image's path relative to the given
        folder. The suffix stays if names differ only in it: `a.jpg`, `a.png`.

    Raises:
        FileNotFoundError: If there is no such file or folder, or no image in them.
        OptionError: If `out` is a file or contains images to predict, or if two results would have the same name.
    """
    out = Path(out)
    lowest = next(path for path in (out, *out.parents) if path.exists())
    if not lowest.is_dir():
        raise OptionError(f"{lowest} is a file, but the results need a folder.")
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN} | {*SUFFIXES}
    places: dict[Path, Path] = {}
    for path in map(Path, paths):
        root = path.parent
        if path.is_dir():
            if path.resolve() == out.resolve():
                raise OptionError(f"{out} is the folder of the images: choose another for the results.")
            root, files = path, [f for f in sorted(path.rglob("*")) if f.suffix.lower() in known and f.name[0] != "."]
            files = files or sorted(path.rglob("[!.]*.npy"))
            files = [f for f in files if f.is_file() and out.resolve() not in f.resolve().parents]
        elif path.exists():
            files = [path]
        elif glob.has_magic(str(path)):
            files = sorted(Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file())  # noqa: PTH207
            root = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))])
        else:
            raise FileNotFoundError(f"{path}: no such file or folder.")
        places |= {file: file.relative_to(root) for file in files}
    named = {*map(Path, paths)}  # predicted in any case
    if earlier := [file for file in places if file not in named and _is_result(file)]:
        _logger.info(f"Left out {len(earlier)} results of earlier predictions, such as {earlier[0]}.")
        for file in earlier:
            del places[file]
    if not places:
        raise FileNotFoundError(f"no images in {', '.join(map(str, paths))}.")
    for file in places:
        if file.resolve().parent == out.resolve():
            raise OptionError(
                f"{out} contains {file.name}, an image to predict: choose another folder for the results."
            )
    stems = Counter(place.with_suffix("") for place in places.values())
    places = {f: place.with_suffix("") if stems[place.with_suffix("")] == 1 else place for f, place in places.items()}
    twice = [place for place, count in Counter(places.values()).items() if count > 1]
    if twice:
        raise OptionError(
            f"{len(twice)} results would share the name of another, {twice[0]}: predict the folders one by one."
        )
    return {file: out / place for file, place in places.items()}


def outputs(result: Path) -> dict[str, str]:
    """Existing files of a result of :func:`find_images` by kind: `labels`, `overlay`, `probabilities`, `polygons`."""
    kinds = {_LABELS: "labels", _RASTER_LABELS: "labels", **dict.fromkeys(_OVERLAYS, "overlay")}
    kinds |= {_PROBABILITIES: "probabilities", _POLYGONS: "polygons"}
    files = {_named(result, ending): kind for ending, kind in kinds.items()}
    return {kind: str(file) for file, kind in files.items() if file.is_file()}


def predict_file(
    model: nn.Module,
    file: str | Path,
    result: str | Path,
    overlays: bool = True,
    probabilities: bool = False,
    origin: str = "",
    save_as: Literal["geojson"] | None = None,
    simplify: float = 0,
    **options: Any,
) -> dict[str, Any]:
    """Predict one image and write the results; each file is complete once it has its name.

    Args:
        model: See :func:`predict`, which states what is raised, too.
        file: The image. A georeferenced one, or a TIFF larger than Pillow opens, is read region by region; it does not
            have to fit memory. That takes rasterio. So do others, placed by files beside them, whose polygons are made.
        result: Path of the results without suffix. `.png` is added for the labels, an indexed picture with the palette
            (16-bit gray for more than 256 classes), with a world file `.pgw` if the image came with one; `.tif` for
            those of an image that is read by regions, a GeoTIFF that lies where the image lies, whose pixels without
            data are 255 (65535 for more than 255 classes); `_overlay.jpg` for the overlay with its legend, or
            `_overlay.png` for sides over 65,500 pixels; `_probabilities.npy` for an array (classes, H, W) of float16.
        overlays: Write the overlay.
        probabilities: Write the probabilities, tile by tile.
        origin: Model and options in words, for the metadata of the labels' file.
        save_as: Also write the labels of a georeferenced image as polygons: see :func:`.polygons.write_polygons`.
        simplify: Tolerance of the polygons' simplification, in pixels.
        options: Others of :func:`predict`.

    Returns:
        `file`, `height`, `width` and `classes`, see :func:`class_areas`.
    """
    file, result, info = Path(file), Path(result), ModelInfo(model)
    if save_as:
        check_polygons(file, simplify)
    as_raster = bool(save_as) or is_raster(file)
    image = None if as_raster else read_image(file, info.in_channels, info.value_range, info.bands)
    ending = _RASTER_LABELS if as_raster else _LABELS
    # the labels come last: if they exist, so do the other results
    with fill_when_complete(result.parent, last=_named(result, ending).name) as folder:
        work = folder / result.name

        def store(shape: tuple[int, ...]) -> np.ndarray:
            return np.lib.format.open_memmap(_named(work, _PROBABILITIES), "w+", np.float16, shape)

        kept = store if probabilities else None
        if image is None:
            picture = _named(work, _OVERLAYS[0]) if overlays else None
            predict_raster(model, file, _named(work, ending), picture, kept, origin, **options)
            entry = {"file": str(file)} | raster_areas(_named(work, ending), info.label_names)
        else:
            entry = _predict_in_memory(model, file, image, work, overlays, kept, origin, **options)
        for stale in (*_OVERLAYS, _PROBABILITIES, _POLYGONS):  # of earlier labels
            if not _named(work, stale).exists():
                _named(result, stale).unlink(missing_ok=True)
        other = _named(result, _LABELS if as_raster else _RASTER_LABELS)
        with suppress(ImageError, OSError):  # none, or unreadable
            if _read_origin(other):  # labels, not a file of the user's
                other.unlink()
    if save_as:  # once the labels are complete: polygons of large images may need more memory than there is
        write_polygons(_named(result, _RASTER_LABELS), _named(result, _POLYGONS), info, simplify)
    return entry


def _predict_in_memory(
    model: nn.Module,
    file: Path,
    image: torch.Tensor,
    result: Path,
    overlays: bool,
    store: Callable[[tuple[int, ...]], np.ndarray] | None,
    origin: str,
    **options: Any,
) -> dict[str, Any]:
    """Predict an image of :func:`read_image`, and write the results: see :func:`predict_file`."""
    info = ModelInfo(model)
    kept = (lambda classes: store((classes, *image.shape[1:]))) if store else False
    labels = predict(model, image, probabilities=kept, scaled=True, **options)
    labels = labels[0] if store else labels
    if overlays:
        picture = overlay(image, labels, info.label_names, info.palette)
        picture.save(_named(result, _OVERLAYS[max(picture.size) > _JPEG_SIDE]), quality=90)
        del picture
    metadata = PngInfo()
    metadata.add_text(ORIGIN, origin)
    label_picture(labels, info.palette).save(_named(result, _LABELS), pnginfo=metadata if origin else None)
    copy_place(file, _named(result, _LABELS))
    return _entry(file, labels, info)


def _entry(file: Path, labels: np.ndarray, info: ModelInfo) -> dict[str, Any]:
    """Entry of `areas.json` for one image."""
    height, width = labels.shape
    return {"file": str(file), "height": height, "width": width, "classes": class_areas(labels, info.label_names)}


def _measured(file: Path, labels: Path, info: ModelInfo) -> dict[str, Any]:
    """Entry of `areas.json` for one image, from its file of labels."""
    if labels.suffix == _RASTER_LABELS:
        return {"file": str(file)} | raster_areas(labels, info.label_names)
    with Image.open(labels) as picture:
        return _entry(file, np.asarray(picture), info)


def _read_origin(labels: Path) -> str | None:
    """Read from a file of labels which model and options made it; None if it does not say."""
    if labels.suffix == _RASTER_LABELS:
        return read_origin(labels)
    with Image.open(labels) as picture:
        return picture.info.get(ORIGIN)


def _is_result(file: Path) -> bool:
    """Whether a file is labels with the mark of :func:`predict_files`, or the overlay beside them."""
    stems = [file.name.removesuffix(end) for end in _OVERLAYS if file.name.endswith(end)]
    labels = [file, *(file.with_name(stem + end) for stem in stems for end in (_LABELS, _RASTER_LABELS))]
    with suppress(Exception), warnings.catch_warnings():  # readers raise anything on damaged files
        warnings.simplefilter("ignore")  # of Pillow, on large ones
        return any(_read_origin(each) for each in labels if each.suffix in (_LABELS, _RASTER_LABELS) and each.is_file())
    return False


@dataclass
class Predictions:
    """Number of images predicted now, what :func:`predict_file` says of each labeled image, and reasons of failures."""

    predicted: int = 0
    images: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)


def predict_files(
    model: nn.Module,
    places: dict[Path, Path],
    out: str | Path,
    areas: bool = False,
    resume: bool = False,
    report: Callable[[Path, float], None] = lambda file, share: None,
    measure_all: bool = False,
    origin: str = "",
    **options: Any,
) -> Predictions:
    """Predict images one after another; unreadable ones are skipped and listed.

    Args:
        model: See :func:`predict`.
        places: Of :func:`find_images`.
        out: Folder of the results.
        areas: Write the area of each class in each image to `areas.json`, even if interrupted.
        resume: Skip images whose labels exist, and probabilities if these are wanted. Polygons are made of labels.
        report: Called with an image and its completed fraction, from 0 to 1; with 1 exactly once per image.
        measure_all: Also measure existing labels of skipped images, so that the result lists all images.
        origin: Model and options in words. Existing labels that state another origin cannot be resumed from.
        options: Others of :func:`predict_file`.

    Raises:
        OptionError: If an option is invalid, or existing labels are of another origin.
    """
    predictions = Predictions()
    done: dict[Path, Path] = {}
    for file, result in places.items() if resume else ():
        kinds = outputs(result)
        if "labels" not in kinds or (options.get("probabilities") and "probabilities" not in kinds):
            continue
        labels = Path(kinds["labels"])
        if options.get("save_as") and labels.suffix != _RASTER_LABELS:
            continue
        try:
            found = _read_origin(labels) or origin
        except (ImageError, OSError):  # damaged: predicted again
            continue
        done[file] = labels
        if found != origin:
            raise OptionError(
                f"{labels} was predicted with {found}, not with {origin}: choose another folder, or predict all "
                f"images again, without resuming."
            )
    listed = Path(out) / "areas.json"
    entries: dict[str, dict[str, Any]] = {}
    if areas and resume and listed.is_file():
        entries = {entry["file"]: entry for entry in json.loads(listed.read_text(encoding="utf-8"))["images"]}
    try:
        for file, result in places.items():
            report(file, 0)
            try:
                if file not in done:
                    entries.pop(str(file), None)
                    progress = lambda share, file=file: report(file, min(share, 0.999))  # noqa: E731
                    entries[str(file)] = predict_file(model, file, result, progress=progress, origin=origin, **options)
                    predictions.predicted += 1
                else:
                    simplify = options.get("simplify", 0)
                    if options.get("save_as") and (simplify or "polygons" not in outputs(result)):
                        check_polygons(file, simplify)
                        write_polygons(done[file], _named(result, _POLYGONS), ModelInfo(model), simplify)
                    if (areas or measure_all) and str(file) not in entries:  # predicted without --areas
                        entries[str(file)] = _measured(file, done[file], ModelInfo(model))
            except (FileNotFoundError, ImageError) as error:
                text = str(error).removeprefix(f"{file}").lstrip(": ")
                predictions.failures[file] = " ".join(text.split())
            report(file, 1)
    finally:
        predictions.images = list(entries.values())
        if areas and predictions.images:
            with replace_when_complete(listed) as new:
                new.write_text(json.dumps({"images": predictions.images}, indent=1), encoding="utf-8")
    return predictions
