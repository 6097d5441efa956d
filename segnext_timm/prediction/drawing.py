"""Draw labels: indexed label pictures, overlays with a legend, and areas of the classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import OptionError
from ..label_sets import VOC_PALETTE, Color
from .images import DARK, read_values, scale_values

NAME = "segnext_timm"  # with which the metadata of results begin
EXIF_SOFTWARE = 0x0131  # tag
_JPEG_SIDE = 65_500  # the longest that JPEG's library writes


def colored(labels: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Map labels (H, W) to colors (H, W, 3), uint8; black for labels beyond the palette."""
    colors = np.zeros((len(palette) + 1, 3), np.uint8)
    colors[:-1] = palette
    return np.take(colors, labels, axis=0, mode="clip")


def label_picture(labels: np.ndarray, palette: Sequence[Color]) -> Image.Image:
    """Create a picture whose pixel values are the labels (H, W).

    Indexed, with the palette, for labels of type uint8; else gray with 16 bits.
    """
    if labels.dtype != np.uint8:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    colors = bytes(value for color in palette[:256] for value in color)
    picture.putpalette(colors.ljust(768, b"\0"))  # with a shorter palette, Pillow writes fewer bits per pixel
    return picture


def class_areas(labels: np.ndarray, names: Sequence[str]) -> list[dict[str, int | float | str]]:
    """Measure how much of a picture each class covers, largest first.

    Args:
        labels: Shape (H, W), whole numbers from 0. An OptionError is raised of others.
        names: Name of each label; of a model of one class, whose labels are 0 and 1, the background's first.

    Returns:
        `label`, `name`, `pixels` and `share`, from 0 to 1, of each class that occurs.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "biu" or labels.min() < 0:
        raise OptionError(f"labels are whole numbers from 0, of shape (H, W), got {labels.dtype} {labels.shape}.")
    counts = np.zeros(int(labels.max()) + 1, np.int64)
    rows = max((1 << 24) // labels.shape[1], 1)  # at a time: bincount converts each label to 8 bytes
    for top in range(0, len(labels), rows):
        counts += np.bincount(labels[top : top + rows].ravel(), minlength=len(counts))
    return list_areas(counts, names)


def list_areas(counts: np.ndarray, names: Sequence[str]) -> list[dict[str, int | float | str]]:
    """List the areas of labels by the numbers of their pixels, see :func:`class_areas`."""
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda label: -counts[label])
    return [
        {
            "label": label,
            "name": names[label] if label < len(names) else f"class {label}",
            "pixels": int(counts[label]),
            "share": float(counts[label] / counts.sum()),
        }
        for label in order
    ]


def overlay(
    image: str | Path | Image.Image | np.ndarray | torch.Tensor,
    labels: np.ndarray,
    names: Sequence[str] | None = None,
    palette: Sequence[Color] | None = None,
    alpha: float = 0.5,
    legend: bool = True,
) -> Image.Image:
    """Draw labels over their image, with a legend of the classes present, largest first.

    Args:
        image: An image as for :func:`predict`. The first three of its bands are drawn, or the first one in gray. Values
            without a meaning as colors, such as of 12 bits in 16, are spread over the darkest to the brightest of them,
            without 1% at each end.
        labels: Shape (H, W), of the image's size.
        names: Name of each label, of a model of one class the background's first. Default: numbers.
        palette: Color of each label, red, green and blue from 0 to 255. Default: the colors of Pascal VOC.
        alpha: Opacity of the colors, from 0 to 1.
        legend: Draw the legend, below the image.

    Returns:
        The picture; with a legend, it is higher than the image, and wider than a very narrow one.

    Raises:
        ImageError: If the image cannot be read.
        OptionError: If the sizes of image and labels differ, or `alpha` is out of its range.
    """
    picture, labels = _picture(image), np.asarray(labels)
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha must be from 0 to 1, got {alpha}")
    if tuple(picture.shape[1:]) != labels.shape:
        raise OptionError(
            f"The image has {tuple(picture.shape[1:])} pixels (height, width), but the labels have {labels.shape}."
        )
    pixels = picture.permute(1, 2, 0).cpu().numpy()
    palette = VOC_PALETTE if palette is None else palette
    blended = np.empty(pixels.shape, np.uint8)
    rows = max((1 << 22) // pixels.shape[1], 1)  # at a time, to save memory
    for top in range(0, len(pixels), rows):
        part = slice(top, top + rows)
        blended[part] = np.rint(pixels[part] * (1 - alpha) + colored(labels[part], palette) * alpha)
    drawn = Image.fromarray(blended)
    return add_legend(drawn, class_areas(labels, names or ()), palette) if legend else drawn


def save_overlay(picture: Image.Image, file: Path) -> None:
    """Write an overlay that states what it is: as JPEG or, if it is too long for it, as `.png` of that name."""
    exif = Image.Exif()
    exif[EXIF_SOFTWARE] = f"{NAME}: overlay"
    picture.save(file if max(picture.size) <= _JPEG_SIDE else file.with_suffix(".png"), quality=90, exif=exif)


def _picture(image: str | Path | Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
    """Read the colors (3, H, W), uint8, of an image of any number of bands and any type."""
    values, valid = read_values(image)
    values = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    if values.dtype == torch.uint8:
        return values
    full = 1 if values.is_floating_point() else 65535
    values = values.float() if valid is None else torch.where(valid, values.float(), float("nan"))
    low, high, largest = 0.0, float(full), values.amax().item()
    if not (values.amin() >= 0 and largest <= full and (full == 1 or largest >= DARK * full)):
        few = values.flatten()[:: max(values.numel() >> 20, 1)].cpu().numpy()
        few = few[np.isfinite(few)]
        low, high = np.percentile(few, (1, 99)).tolist() if len(few) else (0, 1)
    return scale_values(values, (low, high if high > low else low + 1)).mul_(255).round_().to(torch.uint8)


def add_legend(picture: Image.Image, areas: Sequence[dict], palette: Sequence[Color]) -> Image.Image:
    """Add a row of swatches and names below a picture."""
    size = min(max(picture.width // 48, 12), 160)  # of the letters and the swatches
    font, pad = ImageFont.load_default(size), size // 2
    texts = [f"{area['name']} {share_text(area['share'])}" for area in areas]
    widths = [int(font.getlength(text)) + size + 3 * pad for text in texts]
    width = max(picture.width, max(widths, default=0) + pad)
    places, x, y = [], pad, picture.height + pad
    for entry in widths:
        if x + entry > width and x > pad:
            x, y = pad, y + size + pad
        places.append((x, y))
        x += entry
    sheet = Image.new("RGB", (width, y + size + pad), (255, 255, 255))
    sheet.paste(picture, (0, 0))
    draw, ink = ImageDraw.Draw(sheet), (30, 30, 30)
    for area, text, (x, y) in zip(areas, texts, places):
        color = tuple(palette[area["label"]]) if area["label"] < len(palette) else (0, 0, 0)
        draw.rectangle((x, y, x + size, y + size), fill=color, outline=ink)
        draw.text((x + size + pad // 2 + 1, y + size / 2), text, fill=ink, font=font, anchor="lm")
    return sheet


def share_text(share: float) -> str:
    """Format a share from 0 to 1 as a short percentage."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "<0.1%"
