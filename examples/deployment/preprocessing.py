"""Images to a graph's input and labels to a picture, in numpy and Pillow: what every runtime needs beside the graph."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LEAST = 33  # pixels: the shortest side of a graph of any size


def run(main: Callable[[str, str, str], None], description: str) -> None:
    """Run a script on the files that the command line names; a mistake ends it with one line.

    Args:
        main: Takes the graph's file, the image's, and that of the result.
        description: What the script does, and how.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported file")
    parser.add_argument("image", help="image to segment")
    parser.add_argument("result", help="PNG file for the labels")
    args = parser.parse_args()
    for path in (args.model, args.image):
        if not Path(path).exists():
            parser.error(f"{path} does not exist")
    if Path(args.result).suffix.lower() != ".png":
        parser.error(f"{args.result}: labels are written as PNG, which keeps them exact")
    try:
        with open_picture(args.image):
            Path(args.result).parent.mkdir(parents=True, exist_ok=True)
        main(args.model, args.image, args.result)
    except (OSError, ModuleNotFoundError) as error:  # such as a file that is not an image
        sys.exit(f"{parser.prog}: {error}")


def open_picture(path: str | Path) -> AbstractContextManager:
    """Open an image to see whether it is one; arrays and rasters are opened when they are read."""
    return nullcontext() if Path(path).suffix.lower() in (".npy", ".tif", ".tiff") else Image.open(path)


def parse_metadata(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse metadata whose values are texts, as in ONNX files: JSON where it is JSON.

    Args:
        texts: Text by key.
    """

    def parse(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return {key: parse(text) for key, text in texts.items()}


def read_bands(path: str | Path, metadata: Mapping[str, Any]) -> np.ndarray:
    """Read the bands (H, W, C) that the graph takes, in float32 from 0 to 1, by its `range` and `bands`.

    Raises:
        OSError: If it has other bands.
    """
    if Path(path).suffix.lower() == ".npy":
        array = np.load(path)
    elif Path(path).suffix.lower() in (".tif", ".tiff"):
        import rasterio  # pip install rasterio

        with rasterio.open(path) as raster:
            array = raster.read().transpose(1, 2, 0)
    else:
        image = Image.open(path)
        if image.format == "PNG" and image.mode not in ("I", "I;16") and any(";16" in str(t[3]) for t in image.tile):
            raise OSError(f"{path} has colors of 16 bits, which Pillow reads as 8: convert it to TIFF")
        array = np.asarray(image)
    array = np.atleast_3d(array)
    channels, bands = metadata["input_size"][1], metadata.get("bands")
    if bands and max(bands) <= array.shape[2]:
        array = array[..., np.array(bands) - 1]
    if array.shape[2] == 1:
        array = array.repeat(channels, 2)
    if array.shape[2] != channels:
        wanted = f"bands {bands}" if bands else f"{channels} channels"
        raise OSError(f"{path} has {array.shape[2]} bands, and the graph takes {wanted}")
    full = {"u1": 255, "u2": 65535}.get(array.dtype.str[1:], 1)
    low, high = np.reshape(metadata.get("range") or (0, full), (-1, 2)).T.astype(np.float32)
    return np.nan_to_num(((array - low) / (high - low)).clip(0, 1)).astype(np.float32)


def resized(size: tuple[int, int], metadata: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height to which an image of some width and height is resized.

    They are those of the graph. A graph of any size gets the image at the model's scale: resized until it reaches one
    of the sides of `fit_in`, if the model states them.
    """
    if not (metadata.get("dynamic") and metadata.get("fit_in")):
        height, width = metadata["input_size"][2:]
        return width, height
    long, short = metadata["fit_in"]
    scale, step = min(long / max(size), short / min(size)), metadata["size_divisor"]
    width, height = (-(-max(round(side * scale), LEAST) // step) * step for side in size)
    return width, height


def read_image(path: str | Path, metadata: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image, resize it to the graph's input, and normalize it.

    Args:
        path: The file.
        metadata: Metadata of the graph: `input_size` (B, C, H, W), `mean` and `std` of values from 0 to 1; for others
            than photos `range` and `bands`; for graphs of any size `dynamic`, `fit_in` and `size_divisor`.

    Returns:
        The input of shape (1, C, H, W) in float32, and the image's width and height.
    """
    if metadata["input_size"][1] == 3 and not (metadata.get("range") or metadata.get("bands")):
        image = Image.open(path).convert("RGB")
        size = image.size
        width, height = resized(size, metadata)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    else:
        array = read_bands(path, metadata)
        size = array.shape[1], array.shape[0]
        width, height = resized(size, metadata)
        bands = [Image.fromarray(np.ascontiguousarray(band)) for band in array.transpose(2, 0, 1)]
        pixels = np.stack([np.asarray(band.resize((width, height), Image.Resampling.BILINEAR)) for band in bands], -1)
    if abs(size[0] * height / (size[1] * width) - 1) > 0.1:
        print(f"The image, {size[0]}×{size[1]}, is stretched to the graph's {width}×{height}.", file=sys.stderr)
    pixels = (pixels - np.float32(metadata["mean"])) / np.float32(metadata["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), size


def labels_of(output: np.ndarray) -> np.ndarray:
    """Labels (H, W) of a graph's output: logits (1, classes, H, W) or labels (1, H, W)."""
    return (output.argmax(1) if output.ndim == 4 else output)[0].astype(np.uint8)


def save_labels(labels: np.ndarray, size: tuple[int, int], metadata: Mapping[str, Any], path: str | Path) -> None:
    """Write labels as an indexed PNG of the image's size, and print the share of each class.

    Args:
        labels: Shape (H, W).
        size: Width and height of the image.
        metadata: Metadata of the graph; `palette` and `label_names` are used if they are there.
        path: The PNG file.
    """
    picture = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    picture.putpalette(
        [value for color in metadata.get("palette") or [(i, i, i) for i in range(256)] for value in color]
    )
    picture.save(path)
    names = metadata.get("label_names") or {}
    for label, count in zip(*np.unique(labels, return_counts=True)):
        name = names[label] if label < len(names) else f"class {label}"
        print(f"{name}: {count / labels.size:.1%}")
