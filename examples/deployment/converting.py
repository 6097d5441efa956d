"""Load a model, convert it by a vendor's package, and compare the results: what the scripts `to_*.py` share."""

import argparse
import importlib.util
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segnext_timm import fuse, load_segmenter
from segnext_timm.errors import ExportError, OptionError, SegNeXtError
from segnext_timm.exporting.exporters import describe_graph
from segnext_timm.exporting.label_graph import LabelGraph

Convert = Callable[[torch.nn.Module, torch.Tensor, Path, dict[str, Any]], None]
Execute = Callable[[Path, np.ndarray], np.ndarray | None]

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}  # relative to the largest value; for labels, share of different ones


def run(
    description: str,
    suffix: str,
    convert: Convert,
    execute: Execute,
    packages: Sequence[str],
    argmax: bool = True,
    precisions: Sequence[str] = ("fp32",),
) -> None:
    """Run a script on the model and the file that the command line names; a mistake ends it with one line.

    Args:
        description: What the script does, and how.
        suffix: End of the file's name.
        convert: Converts a graph for images of shape (B, C, H, W), writes a file, and its metadata if it takes them.
        execute: Runs a file on images; None if that is impossible on this machine.
        packages: Modules that are needed.
        argmax: Whether the runtime has an argmax.
        precisions: Precisions that `convert` knows, under `precision` of the metadata.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="published name, model folder, or repository on the Hub")
    parser.add_argument("file", type=Path, help=f"what to write; ends in {suffix}")
    parser.add_argument("--size", type=parse_size, metavar="HEIGHT[xWIDTH]", help="of the images [default: as trained]")
    if argmax:
        parser.add_argument("--argmax", action="store_true", help="output labels instead of logits")
    parser.add_argument("--precision", choices=precisions, default="fp32", help="[default: fp32]")
    args = parser.parse_args()
    if args.file.suffix != suffix:
        parser.error(f"{args.file}: the file's name must end in {suffix}")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{', '.join(missing)} not installed: see --help")
    try:
        model = load_segmenter(args.model)
        size = args.size or tuple((getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 512, 512))[1:])
        write(model, args.file, size, convert, execute, argmax and args.argmax, args.precision)
    except (SegNeXtError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"Wrote {args.file}.")


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of 512x1024, or of 512, a square."""
    found = re.fullmatch("([0-9]+)(?:x([0-9]+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 512 or 512x1024")
    return int(found[1]), int(found[2] or found[1])


def write(
    model: torch.nn.Module,
    path: Path,
    size: tuple[int, int],
    convert: Convert,
    execute: Execute,
    argmax: bool = False,
    precision: str = "fp32",
) -> None:
    """Convert a model for one image of height and width `size`; the file stays only if its output is the model's.

    Raises:
        OptionError: If the size does not fit the model, or the model has several outputs.
        ExportError: If the converter fails, or the outputs differ. No file is left.
    """
    stride = model.encoder.output_stride if model.requires_divisible_input_shape else 1
    if size[0] % stride or size[1] % stride:
        raise OptionError(f"This model takes sizes that are multiples of {stride}, got {size}.")
    model = fuse(model.eval())
    graph = LabelGraph(model, portable=True) if argmax else model
    images, probe = torch.randn(2, 1, model.config["in_channels"], *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = graph(probe)
    if not isinstance(expected, torch.Tensor):
        raise OptionError("This model has several outputs: add --argmax, or remove its classification head.")
    metadata = describe_graph(model, images.shape, ["labels" if argmax else "logits"]) | {"precision": precision}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as work:
        written = Path(work) / path.name
        try:
            convert(graph, images, written, metadata)
        except Exception as error:  # the converters raise many types of errors
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ExportError(f"The converter failed: {type(error).__name__}: {reason}") from error
        output = execute(written, probe.numpy())
        if output is None:
            print(f"{path.suffix} files do not run on this machine: converted and inspected only.")
        else:
            check(output, expected.numpy(), TOLERANCES[precision])
        if path.suffix == ".tflite":  # has no place for metadata
            path.with_name(f"{path.name}.json").write_text(json.dumps(metadata), encoding="utf-8")
        if path.is_dir():
            shutil.rmtree(path)
        written.replace(path)


def check(output: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Raise an ExportError unless a converted graph's output is the model's."""
    if output.shape != expected.shape:
        raise ExportError(f"The output has the shape {output.shape}, the model's {expected.shape}.")
    if np.issubdtype(expected.dtype, np.integer):
        difference = float((output != expected).mean())
    else:
        difference = float(np.abs(output - expected).max() / np.abs(expected).max())
    if not difference <= tolerance:
        raise ExportError(f"The output differs from the model's by {difference:.1e}. No file was written.")
