"""Images to a graph's input and labels to a picture, in numpy and Pillow: what every runtime needs beside the graph."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


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
        with Image.open(args.image):
            Path(args.result).parent.mkdir(parents=True, exist_ok=True)
        main(args.model, args.image, args.result)
    except OSError as error:  # such as a file that is not an image
        sys.exit(f"{parser.prog}: {error}")


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


def read_image(path: str | Path, metadata: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image, resize it to the graph's input, and normalize it.

    Args:
        path: The file.
        metadata: Metadata of the graph: `input_size` (B, C, H, W), `mean` and `std` of values from 0 to 1.

    Returns:
        The input of shape (1, 3, H, W) in float32, and the image's width and height.
    """
    image = Image.open(path).convert("RGB")
    height, width = metadata["input_size"][2:]
    if abs(image.width * height / (image.height * width) - 1) > 0.1:
        print(
            f"The image, {image.width}×{image.height}, is stretched to the graph's {width}×{height}.", file=sys.stderr
        )
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = (pixels - np.float32(metadata["mean"])) / np.float32(metadata["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), image.size


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
