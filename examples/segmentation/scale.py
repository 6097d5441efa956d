"""The scale of images: the size that they are fitted in for training, evaluation and prediction.

An image is resized, up or down, keeping its aspect, until it reaches a long or a short side. A trained model keeps both
in its `pretrained_cfg["fit_in"]`; null there means images at their own size, and no entry that the scale is unknown.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from .file_facts import has_place, image_sides
from .recipe import Scale, TrainSettings

if TYPE_CHECKING:
    from .data import Split

Sides = tuple[int, int]  # long and short side in pixels

LARGEST = (2048, 1536)  # 3 megapixels: `predict` processes them whole, in about 2 GB
_LITTLE = 0.25  # share of an image's long side in a crop that is worth a remark


def find_scale(split: "Split", settings: TrainSettings) -> tuple[Sides | None, Sides | None, list[str]]:
    """Decide the scale of a training and of its evaluations.

    A `base_scale` of auto depends on the training images:

    - Photos are fitted in the median of their long sides and the median of their short sides, scaled down together, if
      needed, to fit in 2048×1536: 3 megapixels, which `predict` processes whole, in about 2 GB. Photos of other sizes
      are resized to it, up or down.
    - Images keep their own size if they are no photos (of other bands, or more than 8 bits), if they state where they
      lie on the ground, or if they are square tiles of one size up to 2048, as cut from something larger: a pixel
      shows as much in larger images, which are predicted in windows.

    Args:
        split: The training images, with their form.
        settings: Scales, crop size, and the data folder, which may remember the sizes of the images.

    Returns:
        `base_scale` and `fit_in`, None for the images' own size, and lines on them.
    """
    base, fit_in, crop, lines = settings.base_scale, settings.fit_in, settings.crop_size, []
    sizes = image_sides(split.images, settings.data_root) if base == "auto" else []
    if base == "auto":
        base, line = _choose(split, np.array(sizes), fit_in)
        lines.append(line)
    base = _long_first(base)
    fit_in = base if fit_in == "auto" else _long_first(fit_in)
    if fit_in != base and settings.base_scale != "auto":
        lines.append(f"Scale: {_in_words(base)} in training, but {_in_words(fit_in)} in evaluation and prediction.")
    shorter = base[1] if base else max((short for _, short in sizes), default=crop)
    # images may reach the short side of a given size first, and their long sides are then not known
    name, shown = ("long", base[0]) if base and sizes else ("short", shorter)
    if crop > shorter:
        size = f"are fitted in {_written(base)}" if base else f"have short sides of up to {shorter}"
        hint = "set a smaller --crop_size, or a larger --base_scale"
        lines.append(f"Warning: crops of {crop} are larger than the images, which {size}: {hint}.")
    elif base and crop < _LITTLE * shown:
        lines.append(
            f"  crops of {crop} show {crop / shown:.0%} of the {name} side: a larger --crop_size, or a smaller "
            f"--base_scale, shows more around each pixel"
        )
    return base, fit_in, lines


def evaluation_scale(model: Any, fit_in: Scale) -> tuple[Sides | None, str | None]:
    """Decide what images are fitted in when a model is evaluated.

    Args:
        model: The model; its `pretrained_cfg` may state its scale.
        fit_in: A size, None for the images' own, or auto for what the model states, their own if it states nothing.

    Returns:
        The size, None for the images' own, and a line on it, unless it is what the model states and is their own.
    """
    facts = getattr(model, "pretrained_cfg", None) or {}
    known, stated = "fit_in" in facts, facts.get("fit_in")
    stated = stated and tuple(stated)
    if fit_in != "auto":
        differs = known and stated != fit_in
        return fit_in, f"Scale: {_in_words(fit_in)}, but the model states: {_in_words(stated)}." if differs else None
    if not known:
        return None, "The model states no scale of its images: they keep their own size, unless --fit_in is given."
    return stated, stated and f"Scale: {_in_words(stated)}, as the model states."


def _long_first(sides: Sides | None) -> Sides | None:
    return sides and (max(sides), min(sides))


def _written(sides: Any) -> str:
    return "×".join(str(int(side)) for side in sides)


def _in_words(sides: Sides | None) -> str:
    return f"images are fitted in {_written(sides)}" if sides else "images keep their own size"


def _choose(split: "Split", sizes: np.ndarray, fit_in: Scale) -> tuple[Sides | None, str]:
    """Choose a scale by the images' sizes (images, 2), long side first, and say so in a line."""
    uses = "training, evaluation and prediction" if fit_in == "auto" else "training"
    if not len(sizes):
        return None, f"Scale: images that cannot be read keep their own size in {uses}."
    ends = [*dict.fromkeys(_written(sizes[i]) for i in np.argsort(sizes.prod(1), kind="stable")[[0, -1]])]
    images = f"images of {' to '.join(ends)} ({len(sizes)})"
    if reason := _reason_to_keep(split, sizes):
        return None, f"Scale: {images} {reason}: they keep their own size in {uses}; --base_scale LONG SHORT fits them."
    median = np.median(sizes, 0)
    factor = min(1, *(largest / side for largest, side in zip(LARGEST, median)))
    long, short = (max(round(side * factor), 1) for side in median.tolist())
    by = f", by the median of their sides, {_written(median)}," if len(ends) > 1 else ""
    fitted = f"are fitted in {_written((long, short))}{by} for {uses}"
    return (long, short), f"Scale: {images} {fitted}; --base_scale LONG SHORT sets another."


def _reason_to_keep(split: "Split", sizes: np.ndarray) -> str | None:
    """Why images keep their own size, in words; None for photos."""
    if not split.form.is_photo:
        return "are no photos"
    if has_place(split.images[0]):
        return "have a place on the ground"
    if sizes.min() == sizes.max() <= LARGEST[0]:
        return "are square and of one size, as tiles are"
    return None
