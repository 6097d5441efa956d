"""Images of more than three bands or more than eight bits: which bands are taken, and what their values mean.

Photos, of 8 bits in gray or color, are as they are. The values of other files have units of their own: the range that
becomes 0 to 1, and mean and standard deviation within it, are measured on files of the training set. The model keeps
all three in its `pretrained_cfg`, so that predictions and evaluations scale images in the same way.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from segnext_timm import SegNeXtError
from segnext_timm.prediction.images import loses_values, read_values

from .check_messages import named
from .recipe import SettingsError, TrainSettings
from .resuming import load_checkpoint
from .transforms import MEAN, STD, Normalization

if TYPE_CHECKING:
    from .data import Split

_FILES = 50  # that are measured
_PIXELS = 1 << 14  # of each
_PERCENTILES = (0.5, 99.5)  # that become 0 and 1
_FAR = 10  # times the range of all other values
_FILLS = (-9999, -99999, -32768, -32767)  # that GIS programs write where there is no data; then a smaller gap is enough

Range = tuple[float, float] | tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ImageForm:
    """How the images of a split are read.

    Attributes:
        channels: Number of channels; None for what the files have, photos in color.
        bands: Bands of the files to take, from 1, in this order; None for all.
        value_range: Values of the files that become 0 and 1, a pair for all bands or one for each; None for those of
            the files' type.
        normalization: Mean and standard deviation of each channel, of values from 0 to 1.
    """

    channels: int | None = None
    bands: tuple[int, ...] | None = None
    value_range: Range | None = None
    normalization: Normalization = (MEAN, STD)

    @property
    def is_photo(self) -> bool:
        """Whether images of 8 bits in color are taken as they are."""
        return self.channels in (None, 3) and self.bands is None and self.value_range is None


def form_of_model(model: Any) -> ImageForm:
    """The form of the images that a model takes."""
    config, facts = (getattr(model, name, None) or {} for name in ("config", "pretrained_cfg"))
    value_range, bands = (facts.get(name) for name in ("range", "bands"))
    if value_range is not None:
        pairs = np.array(value_range).tolist()
        value_range = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in pairs)
    return ImageForm(config.get("in_channels", 3), bands and tuple(bands), value_range)


def is_photo(path: Path) -> bool:
    """Whether Pillow reads a file with 8 bits, in gray or color, with all of its bands."""
    if path.suffix.lower() == ".npy":
        return False
    try:
        with Image.open(path) as image:
            return image.mode[0] not in "IF" and not loses_values(image, None)
    except Exception:  # Pillow's, of damaged files
        return False


def measure_form(split: "Split", settings: TrainSettings) -> tuple[ImageForm, str | None]:
    """Decide how the images of a training set are read, by the settings and, where they leave it open, by the files.

    The range and the statistics are those of the same pixels of the same files in every run. Files that cannot be read
    are left out: whoever checks them names them.

    Returns:
        The form, and a line on it, None for photos.

    Raises:
        SettingsError: If the settings do not fit each other, or the files.
    """
    bands, channels = settings.bands, settings.in_channels
    stated = _read_range(settings.range)
    paths = [split.images[i] for i in np.unique(np.linspace(0, len(split) - 1, _FILES).astype(int))]
    photos = {path: is_photo(path) for path in paths if path.is_file()}
    of_photos = not photos or 2 * sum(photos.values()) > len(photos)
    if channels is None and bands is not None:
        channels = 3 if len(bands) == 1 else len(bands)
    if of_photos and stated is None and channels in (None, 3):
        first = next((path for path in photos if photos[path]), None)
        return ImageForm(channels, bands), None if bands or first is None else _fourth_band(first)
    samples = _read_samples([path for path in photos if photos[path] == of_photos], channels, bands)
    if not samples:
        return ImageForm(channels, bands, stated), None
    count = len(samples[0])
    if channels is None:
        channels = 3 if of_photos or count == 1 else count
    if count != channels and (count, channels) != (1, 3):
        raise SettingsError(
            f"--in_channels {channels} does not fit images of {count} bands, such as {split.images[0].name}: leave it "
            f"out, or name the bands to take, such as --bands {' '.join(map(str, range(1, channels + 1)))}."
        )
    if stated is not None and len(stated) not in (1, count):
        raise SettingsError(f"--range has {len(stated)} pairs of low and high: give one, or {count} for the bands.")
    values = np.concatenate([sample.reshape(count, -1) for sample in samples], 1).astype(np.float64)
    fills: set[float] = set()
    if stated is None:
        of_bytes = samples[0].dtype == np.uint8
        for band in () if of_bytes else values:
            fills.update(far := _far_values(band))
            band[np.isin(band, far)] = np.nan
        stated = ((0.0, 255.0),) if of_bytes else tuple(_percentiles(band) for band in values)
    pairs = np.array(stated)
    low, high = pairs[:, :1], pairs[:, 1:]
    if settings.range is not None and np.mean((values < low) | (values > high)) > 0.5:
        raise SettingsError(
            f"--range {' '.join(map(str, settings.range))} cuts off more than half of the pixels: their values are "
            f"{np.nanmin(values):g} to {np.nanmax(values):g}."
        )
    if not values.size:
        raise SettingsError("No pixel of the images holds a number in every band: name those that do by --bands.")
    if (empty := np.isnan(values).all(1)).any():
        raise SettingsError(f"Band {empty.argmax() + 1} of the images holds no numbers: choose others by --bands.")
    scaled = ((values - low) / (high - low)).clip(0, 1)
    statistics = np.nanmean(scaled, 1), np.nanstd(scaled, 1).clip(0.001)
    mean, std = (tuple(round(float(value), 4) for value in np.resize(part, channels)) for part in statistics)
    is_scaled = samples[0].dtype != np.uint8 or settings.range is not None
    value_range = (stated[0] if len(stated) == 1 else stated) if is_scaled else None
    form = ImageForm(channels, bands, value_range, (mean, std))
    far = f"; without {named([f'{fill:g}' for fill in sorted(fills)])}, far from all other values" if fills else ""
    return form, _described(form, samples, len(stated), settings) + far


def find_form(split: "Split", settings: TrainSettings, checkpoint: Path) -> tuple[ImageForm, str | None]:
    """How the images of a run are read: as when it began, if it has a checkpoint, else by :func:`measure_form`."""
    if checkpoint.is_file() and settings.resume:
        state = load_checkpoint(checkpoint, mmap=True).get("images")
        if state is not None:
            return ImageForm(**state), None
    return measure_form(split, settings)


def _fourth_band(path: Path) -> str | None:
    """A line on a TIFF of four bands of 8 bits, the last of which may not be the opacity that the file calls it."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    with Image.open(path) as image:
        if image.mode != "RGBA":
            return None
    return f"images: the fourth band of {path.name} is taken for opacity; --bands 1 2 3 4 trains on it"


def _described(form: ImageForm, samples: Sequence[np.ndarray], pairs: int, settings: TrainSettings) -> str:
    kind, channels = samples[0].dtype, form.channels
    taken = f", bands {' '.join(map(str, form.bands))}" if form.bands else ""
    said = [f"images: {channels} channel{'s' if channels != 1 else ''} of {kind}{taken}"]
    if form.value_range is not None:
        how = "given" if settings.range is not None else f"measured on {len(samples)} files"
        listed = [form.value_range] if pairs == 1 else form.value_range
        said.append(f"black and white at {', '.join(f'{low:g} to {high:g}' for low, high in listed)} ({how})")
    mean, std = (" ".join(f"{value:.3g}" for value in part) for part in form.normalization)
    return f"{'; '.join(said)}; mean {mean}, standard deviation {std} of what is scaled"


def _read_range(numbers: Sequence[float] | None) -> tuple[tuple[float, float], ...] | None:
    """Pairs of low and high.

    Raises:
        SettingsError: If there are none.
    """
    if numbers is None:
        return None
    pairs = tuple(zip(numbers[::2], numbers[1::2]))
    if len(numbers) % 2 or not pairs or not all(np.isfinite(pair).all() and pair[0] < pair[1] for pair in pairs):
        raise SettingsError(
            f"--range is a low and a high value, such as 0 4095, or such a pair for each band, got "
            f"{' '.join(f'{number:g}' for number in numbers)}."
        )
    return pairs


def _read_samples(paths: Sequence[Path], channels: int | None, bands: Sequence[int] | None) -> list[np.ndarray]:
    """Values (bands, pixels) of some pixels of files, of the type and number of bands that most of them have."""
    found: list[np.ndarray] = []
    for path in paths:
        try:
            values, valid = read_values(path, channels, bands)
        except (SegNeXtError, OSError):
            continue
        flat = values.reshape(len(values), -1)
        flat = flat if valid is None else flat[:, valid.flatten()]
        found.append(flat[:, :: max(flat.shape[1] // _PIXELS, 1)].numpy())
    kinds = Counter((sample.dtype, len(sample)) for sample in found)
    return [sample for sample in found if (sample.dtype, len(sample)) == kinds.most_common(1)[0][0]]


def _far_values(band: np.ndarray) -> list[float]:
    """The lowest and the highest value of a band if frequent and far from all others, as where there is no data."""
    known, counts = np.unique(band[np.isfinite(band)], return_counts=True)
    least = counts.sum() * _PERCENTILES[0] / 100  # fewer are no ends of the range
    ends = [(known[end], np.delete(known, end)) for end in (0, -1) if len(known) > 16 and counts[end] > least]
    return [
        float(end)
        for end, rest in ends
        if abs(rest - end).min() > _FAR * np.ptp(rest) or (end in _FILLS and rest.min() > end / 2)
    ]


def _percentiles(band: np.ndarray) -> tuple[float, float]:
    """Low and high of a band's finite values."""
    known = band[np.isfinite(band)]
    low, high = (float(f"{value:.6g}") for value in np.percentile(known, _PERCENTILES)) if len(known) else (0.0, 1.0)
    return low, high if high > low else low + 1


def in_color(image: Image.Image | np.ndarray) -> np.ndarray:
    """The first three bands (H, W, 3) of an image, or the first one in gray, to be drawn."""
    array = np.asarray(image)
    return array[..., :3] if array.shape[2] >= 3 else np.repeat(array[..., :1], 3, 2)
