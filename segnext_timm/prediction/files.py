"""Predict image files and write label files: what `segnext-timm predict` does."""

import glob
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.nn as nn
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .._atomic import fill_when_complete, replace_when_complete
from ..errors import ImageError, OptionError
from ..models.model_info import ModelInfo
from .drawing import EXIF_SOFTWARE, NAME, class_areas, label_picture, overlay, save_overlay
from .images import check_address, count_pages, list_files, list_images, read_image
from .pipeline import predict
from .polygons import ENDINGS, Form, add_to_coco, check_options, check_place, write_names, write_polygons
from .raster_labels import ORIGIN, SOFTWARE, predict_raster, raster_areas
from .rasters import copy_place, is_raster, open_raster
from .video import CODEC, FRAME_LABELS, OVERLAY, predict_video

_logger = logging.getLogger(__name__)
_LABELS, _RASTER_LABELS, _PROBABILITIES = ".png", ".tif", "_probabilities.npy"
_KINDS = {_PROBABILITIES: "probabilities", "_overlay.jpg": "overlay", "_overlay.png": "overlay"}
_KINDS |= {".geojson": "polygons", ".json": "labelme"}  # YOLO's text does not say whose it is
_KINDS |= {OVERLAY: "video", FRAME_LABELS: "frame_labels"}
_KINDS |= {_LABELS: "labels", _RASTER_LABELS: "labels"}  # last, since they tell whose the probabilities are
_TELLING = {_PROBABILITIES: (_LABELS, _RASTER_LABELS), FRAME_LABELS: (OVERLAY,)}  # files that tell whose these are
_VIDEOS = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")


def _named(result: Path, ending: str) -> Path:
    return result.with_name(result.name + ending)


def is_video(file: str | Path) -> bool:
    """Whether a file's name is that of a video."""
    return Path(file).suffix.lower() in _VIDEOS


def check_video(file: Path, save_as: str | None = None, probabilities: bool = False, overlays: bool = True) -> Any:
    """Import PyAV; raise an OptionError if it or its encoder is missing, or an option is for images only."""
    for name, given in {"save_as": save_as, "probabilities": probabilities, "no-overlay": not overlays}.items():
        if given:
            raise OptionError(f"{file} is a video, but --{name} is for images: leave one of them out.")
    try:
        import av
    except ImportError:
        raise OptionError(f'{file} is a video, which PyAV reads: pip install "segnext-timm[video]"') from None
    if CODEC not in av.codecs_available:
        raise OptionError(f"PyAV was built without {CODEC}, which encodes videos: its wheel has it, pip install av.")
    return av


def find_images(paths: Sequence[str | Path], out: str | Path) -> dict[Path, Path]:
    """Map each image to the path of its results, without suffix: its path relative to the folder given, in `out`.

    `paths` are files, folders, see :func:`.images.list_images`, and patterns such as "photos/**/*.jpg". Videos in a
    folder are taken if there are no images in it. Files in `out` are left out. The suffix stays if names differ only in
    it: `a.jpg`, `a.png`.

    Raises:
        FileNotFoundError: If there is no such file or folder, or no image in them.
        ImageError: If an address is given.
        OptionError: If `out` is a file or contains images to predict, or if two results would have the same name.
    """
    out = Path(out)
    lowest = next(path for path in (out, *out.parents) if path.exists())
    if not lowest.is_dir():
        raise OptionError(f"{lowest} is a file, but the results need a folder.")
    places: dict[Path, Path] = {}
    for address in paths:
        check_address(address)
    named = {*map(Path, paths)}  # predicted in any case
    for path in map(Path, paths):
        root, files = path.parent, [path]
        if path.is_dir():
            if path.resolve() == out.resolve():
                raise OptionError(f"{out} is the folder of the images: choose another for the results.")
            root, holds_out = path, path.resolve() in out.resolve().parents
            files = [f for f in list_files(path) if not holds_out or out.resolve() not in f.resolve().parents]
        elif not path.exists():
            if not glob.has_magic(str(path)):
                raise FileNotFoundError(f"{path}: no such file or folder.")
            files = sorted(Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file())  # noqa: PTH207
            root = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))])
        if earlier := [f for f in files if f not in named and _stated_kinds(f)]:
            _logger.info(f"Left out {len(earlier)} results of earlier predictions, such as {earlier[0]}.")
            files = sorted({*files} - {*earlier})
        if path.is_dir():
            videos = [f for f in files if is_video(f) and f not in named]
            files, left = (images, videos) if (images := list_images(files)) else (videos, [])
            if left:
                _logger.info(f"Left out {len(left)} videos beside images, such as {left[0]}: name the ones to predict.")
        places |= {file: file.relative_to(root) for file in files}
    if not places:
        raise FileNotFoundError(f"no images in {', '.join(map(str, paths))}.")
    for file in places:
        if file.resolve().parent == out.resolve():
            raise OptionError(f"{out} contains {file.name}, a file to predict: choose another folder for the results.")
    stems = Counter(place.with_suffix("") for place in places.values())
    places = {f: place.with_suffix("") if stems[place.with_suffix("")] == 1 else place for f, place in places.items()}
    twice = [place for place, count in Counter(places.values()).items() if count > 1]
    if twice:
        raise OptionError(f"{len(twice)} results would share a name, {twice[0]}: predict the folders one by one.")
    return {file: out / place for file, place in places.items()}


def outputs(result: Path) -> dict[str, Path]:
    """Existing files of a result by kind: `labels`, `overlay`, `probabilities`, `polygons` (GeoJSON), `labelme`.

    Files that no prediction wrote are left out; but labels, whose metadata an editor may drop, only beside others.
    """
    files = {ending: file for ending in _KINDS if (file := _named(result, ending)).is_file()}
    labels = {_KINDS[ending]: files[ending] for ending in (_LABELS, _RASTER_LABELS) if ending in files}
    return labels | {_KINDS[ending]: file for ending, file in files.items() if _is_written(result, ending)}


def predict_file(
    model: nn.Module,
    file: str | Path,
    result: str | Path,
    overlays: bool = True,
    probabilities: bool = False,
    origin: str = "",
    save_as: Literal["geojson", "labelme", "yolo"] | None = None,
    simplify: float = 0,
    frame_labels: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Predict one image or video and write the results; each file is complete once it has its name.

    Args:
        model: See :func:`predict`, which states what is raised, too.
        file: The image. A georeferenced one, or a TIFF larger than Pillow opens, is read region by region; it does not
            have to fit memory. So is, for GeoJSON, one placed by files beside it. Reading by regions takes rasterio.
        result: Path of the results without suffix. `.png` is added for the labels, an indexed picture with the palette
            (16-bit gray for more than 256 classes), with a world file `.pgw` if the image came with one; `.tif` for
            those of an image that is read by regions, a GeoTIFF that lies where the image lies, whose pixels without
            data are 255 (65535 for more than 255 classes); `_overlay.jpg` for the overlay with its legend, or
            `_overlay.png` for sides over 65,500 pixels; `_probabilities.npy` for an array (classes, H, W) of float16.
            A video, which PyAV reads, gets `_overlay.mp4`, `_overlay.jpg`, its first frame with a legend of all, and
            `_labels.npz` for an array of each frame, "000000" and so on, and "seconds", their times. If Ctrl-C ends it,
            or it is damaged, these hold the frames that were predicted, there is no `_overlay.jpg`, and that is raised.
        overlays: Write the overlay.
        probabilities: Write the probabilities, tile by tile.
        origin: Model and options in words, for the metadata of the labels' file.
        save_as: Also write the labels as polygons: see :func:`.polygons.write_polygons`.
        simplify: Tolerance of the polygons' simplification, in pixels.
        frame_labels: Also write the labels of a video's frames.
        options: Others of :func:`predict`.

    Returns:
        `file`, `height`, `width` and `classes`, see :func:`class_areas`; of a video also `frames`, their number, and
        `classes` of all of them.
    """
    file, result, info = Path(file), Path(result), ModelInfo(model)
    if is_video(file):
        av, kinds = check_video(file, save_as, probabilities, overlays), f"video{', frame_labels' * frame_labels}"
        tags = {"comment": f"{NAME}: {kinds}", "description": origin}  # what MP4 has for ours
        with fill_when_complete(result.parent, last=_named(result, OVERLAY).name) as folder:
            areas, ended = predict_video(av, model, file, folder / result.name, tags, frame_labels, **options)
            _delete_earlier(result, folder)
        if ended:
            raise type(ended)(f"{file}: {ended}{areas['frames']} frames are in {_named(result, OVERLAY)}.")
        return {"file": str(file)} | areas
    if save_as:
        check_options(simplify)
        if save_as not in ENDINGS:
            raise OptionError(f"save_as must be {', '.join(ENDINGS)} or None for one image, got {save_as!r}.")
        polygons = _named(result, ENDINGS[save_as])
        if save_as == "labelme" and polygons.exists() and not _is_written(result, polygons.suffix):
            raise ImageError(f"{polygons} was corrected, or is another file: move it, or choose another folder.")
    if save_as == "geojson":
        check_place(file)
    if (pages := count_pages(file)) > 1:
        _logger.warning(f"{file} holds {pages} pages: only the first one is predicted.")
    as_raster = save_as == "geojson" or is_raster(file)
    labels = _named(result, _RASTER_LABELS if as_raster else _LABELS)
    # the labels come last: if they exist, so do the other results
    with fill_when_complete(result.parent, last=labels.name) as folder:
        work = folder / result.name
        picture = _named(work, "_overlay.jpg") if overlays else None
        tags = {SOFTWARE: f"{NAME}: labels, probabilities" if probabilities else f"{NAME}: labels"}
        tags |= {ORIGIN: origin} if origin else {}
        create = probabilities and partial(np.lib.format.open_memmap, _named(work, _PROBABILITIES), "w+", np.float16)
        predict_one = predict_raster if as_raster else _predict_picture
        areas = predict_one(model, file, folder / labels.name, picture, create, tags, **options)
        _delete_earlier(result, folder)
    if save_as:  # once the labels are complete: polygons of large images may need more memory than there is
        write_polygons(labels, polygons, info, simplify, file)
    return {"file": str(file)} | areas


def _predict_picture(
    model: nn.Module, file: Path, target: Path, picture: Path | None, create: Any, tags: dict[str, str], **options: Any
) -> dict[str, Any]:
    """Predict an image in memory, as :func:`predict_raster` does a raster."""
    info = ModelInfo(model)
    image = read_image(file, info.in_channels, info.value_range, info.bands)
    labels = predict(model, image, probabilities=create or False, scaled=True, **options)
    labels = labels[0] if create else labels
    if picture is not None:
        save_overlay(overlay(image, labels, info.label_names, info.palette), picture)
    metadata = PngInfo()
    for key, value in tags.items():
        metadata.add_text(key, value)
    label_picture(labels, info.palette).save(target, pnginfo=metadata)
    copy_place(file, target)
    return _areas(labels, info)


def _delete_earlier(result: Path, folder: Path) -> None:
    """Delete results of an earlier prediction but those that `folder` replaces; others' files of these names stay."""
    for ending in _KINDS:
        if not _named(folder / result.name, ending).exists() and _is_written(result, ending):
            _named(result, ending).unlink(missing_ok=True)


def _areas(labels: Path | np.ndarray, info: ModelInfo) -> dict[str, Any]:
    """Measure labels, or a file of them: `height`, `width` and `classes`, see :func:`class_areas`."""
    if isinstance(labels, Path):
        if labels.suffix == _RASTER_LABELS:
            return raster_areas(labels, info.label_names)
        with Image.open(labels) as picture:
            labels = np.asarray(picture)
    return {"height": labels.shape[0], "width": labels.shape[1], "classes": class_areas(labels, info.label_names)}


def _read_tags(file: Path) -> dict[str, Any]:
    """Read the metadata of labels, an overlay or polygons."""
    if is_video(file):
        with check_video(file).open(str(file)) as video:
            return {SOFTWARE: video.metadata.get("comment"), ORIGIN: video.metadata.get("description")}
    if file.suffix == _RASTER_LABELS:
        with open_raster(file) as raster:
            return raster.dataset.tags()
    if file.suffix in (".geojson", ".json"):
        with file.open(encoding="utf-8") as written:
            return json.loads(written.readline(1 << 16) + "]}")  # all but the polygons
    with Image.open(file) as picture:
        return {SOFTWARE: picture.getexif().get(EXIF_SOFTWARE)} | picture.info


def _stated_kinds(file: Path) -> list[str]:
    """Read from a result which kinds of results it tells of: its own and, of labels, probabilities. Else nothing."""
    with suppress(Exception), warnings.catch_warnings():  # readers raise anything on damaged files
        warnings.simplefilter("ignore")  # of Pillow, on large ones
        name, _, kinds = str(_read_tags(file).get(SOFTWARE)).partition(": ")
        return kinds.split(", ") if name == NAME else []
    return []


def _is_written(result: Path, ending: str) -> bool:
    """Whether a prediction wrote a file: its metadata say so, or those of the labels or the overlay beside."""
    return any(_KINDS[ending] in _stated_kinds(_named(result, each)) for each in _TELLING.get(ending, (ending,)))


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
    origin: str = "",
    save_as: Form | None = None,
    simplify: float = 0,
    **options: Any,
) -> Predictions:
    """Predict images one after another; unreadable ones are skipped and listed.

    Args:
        model: See :func:`predict`.
        places: From :func:`find_images`.
        out: Folder of `areas.json` and of `annotations.json` (COCO), which are written even if interrupted.
        areas: Write the areas of all images.
        resume: Skip images whose labels exist, and probabilities if these are wanted. Polygons are made of labels.
        report: Called with an image and its completed fraction, from 0 to 1.
        origin: See :func:`predict_file`. An OptionError is raised if existing labels state another.
        save_as: See :func:`predict_file`; or "coco".
        simplify: See :func:`predict_file`.
        options: Others of :func:`predict_file`.
    """
    out, predictions, info = Path(out), Predictions(), ModelInfo(model)
    coco = write_names(out, save_as, info) if save_as and save_as != "geojson" else {}
    done = _find_done(places, origin, areas, save_as == "geojson", options) if resume else {}
    form = None if save_as == "coco" else save_as  # of the files for one image
    options |= {"origin": origin, "save_as": form, "simplify": simplify}
    images = predictions.images
    try:
        for file, result in places.items():
            report(file, 0)
            try:
                if file not in done:
                    images.append(predict_file(model, file, result, progress=partial(report, file), **options))
                    predictions.predicted += 1
                else:
                    if form:
                        _write_missing_polygons(file, done[file], _named(result, ENDINGS[form]), info, simplify)
                    if areas:
                        images.append({"file": str(file)} | _areas(done[file], info))
                if save_as == "coco":
                    name = (result.parent / file.name).relative_to(out).as_posix()
                    labels = done.get(file) or _named(result, _RASTER_LABELS if is_raster(file) else _LABELS)
                    add_to_coco(coco, labels, name, info, simplify)
            except (FileNotFoundError, ImageError) as error:
                predictions.failures[file] = " ".join(str(error).removeprefix(f"{file}").lstrip(": ").split())
            report(file, 1)
    except KeyboardInterrupt as interrupt:
        # by the files, not by a counter: Ctrl-C may come between the two
        kept = sum(("overlay" if is_video(file) else "labels") in outputs(result) for file, result in places.items())
        told = [*interrupt.args, f"Labels of {kept} of {len(places)} files are in {out};"]
        raise KeyboardInterrupt(" ".join([*told, "run the same command with --resume to go on."])) from None
    finally:
        for name, content in {"areas.json": {"images": images} if areas else {}, "annotations.json": coco}.items():
            if content.get("images"):
                with replace_when_complete(out / name) as new:
                    new.write_text(json.dumps(content, indent=1 if name == "areas.json" else None), encoding="utf-8")
    return predictions


def _find_done(
    places: dict[Path, Path], origin: str, areas: bool, needs_raster: bool, options: dict[str, Any]
) -> dict[Path, Path]:
    """Find labels of images and overlays of videos that are complete, by image; an OptionError if of another origin."""
    done: dict[Path, Path] = {}
    for file, result in places.items():
        found, kind, more = outputs(result), "labels", "probabilities"
        if is_video(file):
            if areas or "overlay" not in found:  # its areas are not stored; without the picture, it is not complete
                continue
            kind, more = "video", "frame_labels"
        if kind not in found or (options.get(more) and more not in found):
            continue
        if needs_raster and found[kind].suffix != _RASTER_LABELS:
            continue
        try:
            stated = _read_tags(found[kind]).get(ORIGIN) or origin
        except (ImageError, OSError):  # damaged: predicted again
            continue
        if stated != origin:
            raise OptionError(
                f"{found[kind]} was predicted with {stated}, not with {origin}: choose another folder, or predict all "
                f"images again, without resuming."
            )
        done[file] = found[kind]
    return done


def _write_missing_polygons(file: Path, labels: Path, target: Path, info: ModelInfo, simplify: float) -> None:
    """Write the polygons of an image that has labels, if they are missing or, as GeoJSON, have to be simplified."""
    as_geojson = target.suffix == ENDINGS["geojson"]
    if not target.exists() or (simplify and as_geojson):
        if as_geojson:
            check_place(file)
        write_polygons(labels, target, info, simplify, file)
