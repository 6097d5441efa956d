"""Images from files and arrays, and pictures of labels: nothing here knows a model."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .errors import ImageError
from .labels import Color, voc_palette

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by channels
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    """A Pillow image of any mode as one of 8 bits a channel."""
    if channels not in _MODES:
        raise ImageError(f"Files hold 1, 3 or 4 channels, the model takes {channels}: pass an array or a tensor.")
    if channels == 4 and image.mode != "RGBA":
        raise ImageError(f"The model takes 4 channels, the image has those of {image.mode!r}.")
    if image.mode.startswith("I"):  # 16 bits: Pillow would cut the values off at 255
        values = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def _open(image: str | Path | Image.Image, channels: int) -> np.ndarray:
    """A file or an image of Pillow as an array (H, W) or (H, W, channels) of uint8, upright."""
    if isinstance(image, Image.Image):
        return np.array(_to_mode(ImageOps.exif_transpose(image), channels))
    with warnings.catch_warnings():
        # of sizes: Pillow warns from 89 megapixels on, and refuses from 179 on
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(image) as opened:
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            return np.array(_to_mode(opened, channels))


def read_image(image: str | Path | Image.Image | np.ndarray | torch.Tensor, channels: int = 3) -> torch.Tensor:
    """An image as a tensor of shape (channels, H, W).

    Args:
        image: A file that Pillow reads, or an image of Pillow: turned as its EXIF data say, alpha left out, 16 bits
            brought to 8. Or an array (H, W, C) or (H, W), or a tensor (C, H, W): uint8 from 0 to 255, uint16 from 0 to
            65535, or floating point from 0 to 1.
        channels: How many the image is to have. Grey becomes colour and colour grey; other numbers must be there.

    Returns:
        uint8 from 0 to 255, or float32 from 0 to 1 for arrays and tensors of other types.

    Raises:
        FileNotFoundError: If there is no such file.
        ImageError: If a file cannot be read as an image, or shape, type or values are others.
    """
    if isinstance(image, str | Path | Image.Image):
        try:
            array = _open(image, channels)
        except FileNotFoundError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(f"{image}: {error} Raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file.") from None
        except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
            reason = "not an image file" if type(error).__name__ == "UnidentifiedImageError" else str(error)
            raise ImageError(f"{image} cannot be read as an image: {reason}") from None
        tensor = torch.from_numpy(array)
    else:
        tensor = torch.as_tensor(np.array(image) if isinstance(image, np.ndarray) else image)
    is_array = not isinstance(image, torch.Tensor)
    if is_array and tensor.ndim == 2:
        tensor = tensor[..., None]
    tensor = tensor.permute(2, 0, 1) if is_array and tensor.ndim == 3 else tensor
    found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(image.shape) if hasattr(image, 'shape') else ''}"
    if tensor.ndim != 3 or tensor.numel() == 0:
        raise ImageError(f"An image is an array (H, W, C) or (H, W), or a tensor (C, H, W), got {found}.")
    if tensor.dtype == torch.uint16:
        tensor = tensor.float() / 65535
    if tensor.shape[0] == 1 and channels == 3:
        tensor = tensor.expand(3, -1, -1)
    elif tensor.shape[0] == 3 and channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114], device=tensor.device)[:, None, None]  # Pillow's, of "L"
        grey = (tensor * weights).sum(0, keepdim=True)
        tensor = grey.round().to(tensor.dtype) if tensor.dtype == torch.uint8 else grey
    if tensor.shape[0] != channels:
        raise ImageError(f"The model takes images of {channels} channels, got {found}.")
    if tensor.dtype == torch.uint8:
        return tensor.contiguous()
    if not tensor.is_floating_point():
        raise ImageError(f"An image is uint8, uint16, or floating point from 0 to 1, got {found}.")
    tensor = tensor.float()
    if not (tensor.amin() >= 0 and tensor.amax() <= 1):  # NaN too
        raise ImageError(
            f"Images of floating point have values from 0 to 1, not normalised ones; got {tensor.amin():.3g} to "
            f"{tensor.amax():.3g}."
        )
    return tensor.contiguous()


def colored(labels: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Labels (H, W) as colours (H, W, 3), uint8; labels beyond the palette are black."""
    colors = np.zeros((len(palette) + 1, 3), np.uint8)
    colors[:-1] = palette
    return np.take(colors, labels, axis=0, mode="clip")


def label_picture(labels: np.ndarray, palette: Sequence[Color]) -> Image.Image:
    """Labels as a picture whose pixels are the labels.

    Args:
        labels: Shape (H, W): uint8, or another type for labels beyond 255.
        palette: Colour of each label up to 255.

    Returns:
        An indexed picture with the palette; for labels beyond 255, a grey one of 16 bits.
    """
    if labels.dtype != np.uint8:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    colors = bytes(value for color in palette[:256] for value in color)
    picture.putpalette(colors.ljust(768, b"\0"))  # of a shorter one, Pillow writes fewer bits a pixel
    return picture


def class_areas(labels: np.ndarray, names: Sequence[str]) -> list[dict[str, int | float | str]]:
    """How much of a picture each class covers, largest first.

    Args:
        labels: Shape (H, W), from 0.
        names: Name of each class.

    Returns:
        `label`, `name`, `pixels` and `share`, from 0 to 1, of each class that occurs.
    """
    rows = max((1 << 24) // labels.shape[1], 1)  # at a time: counting makes 8 bytes of each
    bands = [np.bincount(labels[top : top + rows].ravel()) for top in range(0, len(labels), rows)]
    counts = np.zeros(max(map(len, bands)), np.int64)
    for band in bands:
        counts[: len(band)] += band
    order = sorted(np.flatnonzero(counts), key=lambda label: -counts[label])
    return [
        {
            "label": int(label),
            "name": names[label] if label < len(names) else f"class {label}",
            "pixels": int(counts[label]),
            "share": float(counts[label] / labels.size),
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
        image: What :func:`predict` takes; uint8, or values from 0 to 1.
        labels: Shape (H, W), of the image's size.
        names: Name of each class; numbers otherwise.
        palette: Colour of each class, red, green and blue from 0 to 255; those of Pascal VOC otherwise.
        alpha: Opacity of the colours, from 0 to 1.
        legend: Draw the legend, below the image.

    Returns:
        The picture; with a legend, it is higher than the image, and wider than a very narrow one.

    Raises:
        ValueError: If the sizes of image and labels differ, or the image cannot be read.
    """
    picture, labels = read_image(image), np.asarray(labels)
    if tuple(picture.shape[1:]) != labels.shape:
        raise ValueError(f"An image of {tuple(picture.shape[1:])} and labels of {labels.shape} pixels do not fit.")
    if picture.dtype != torch.uint8:
        picture = (picture * 255).round().to(torch.uint8)
    pixels = picture.permute(1, 2, 0).cpu().numpy()
    palette = voc_palette(256) if palette is None else palette
    blended = np.empty(pixels.shape, np.uint8)
    rows = max((1 << 22) // pixels.shape[1], 1)  # at a time: little memory beside the picture's
    for top in range(0, len(pixels), rows):
        part = slice(top, top + rows)
        blended[part] = np.rint(pixels[part] * (1 - alpha) + colored(labels[part], palette) * alpha)
    drawn = Image.fromarray(blended)
    return _with_legend(drawn, class_areas(labels, names or ()), palette) if legend else drawn


def _with_legend(picture: Image.Image, areas: Sequence[dict], palette: Sequence[Color]) -> Image.Image:
    """The picture with a row of swatches and names below."""
    size = min(max(picture.width // 48, 12), 160)  # of the letters
    font = ImageFont.load_default(size)
    pad, box = size // 2, size
    texts = [f"{area['name']} {share_text(area['share'])}" for area in areas]
    widths = [int(font.getlength(text)) + box + 3 * pad for text in texts]
    width = max(picture.width, max(widths) + pad)
    places, x, y = [], pad, pad
    for entry in widths:
        if x + entry > width and x > pad:
            x, y = pad, y + box + pad
        places.append((x, y))
        x += entry
    sheet = Image.new("RGB", (width, picture.height + y + box + pad), _PAPER)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for area, text, (x, y) in zip(areas, texts, places):
        top = picture.height + y
        color = tuple(palette[area["label"]]) if area["label"] < len(palette) else (0, 0, 0)
        draw.rectangle((x, top, x + box, top + box), fill=color, outline=_INK)
        draw.text((x + box + pad // 2 + 1, top + box / 2), text, fill=_INK, font=font, anchor="lm")
    return sheet


def share_text(share: float) -> str:
    """A share from 0 to 1 as a short percentage."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "<0.1%"
