"""Formats of exported models. Imports nothing heavy, so that the command checks its options at once."""

import importlib.util
from pathlib import Path
from typing import Any

from ..errors import ExportError, OptionError

MIN_SIDE, MAX_SIDE = 33, 16384  # of dynamic sizes, in pixels; from 33 on, no feature map is a single pixel
FORMATS = {".onnx": ("fp32", "fp16", "int8"), ".pt2": ("fp32",)}  # precisions by suffix
FOLDERS = {"transformers": ("fp32",), "transformers.js": FORMATS[".onnx"]}  # precisions by target of a folder
TARGETS = ("deepness", *FOLDERS)  # tools that read a form of their own


def check_export(
    path: Path,
    batch: int,
    size: Any,
    dynamic: bool,
    argmax: bool,
    portable: bool,
    precision: str,
    calibration: Any,
    target: str | None,
    resolution: float | None,
) -> None:
    """Check what :func:`export` is asked for, before a model is loaded. `size` is that of the images, if stated.

    Raises:
        OptionError: If an option is invalid, or does not fit the others.
        ExportError: If a package is missing.
    """
    if target not in (None, *TARGETS):
        raise OptionError(f"target is {', '.join(TARGETS)} or nothing, got {target!r}.")
    is_folder = target in FOLDERS
    if is_folder and (path.suffix in FORMATS or path.is_file()):
        raise OptionError(f"{path}: {target} reads a folder: choose the name of one.")
    if not is_folder and path.suffix not in FORMATS:
        known = " or ".join(FORMATS)
        hint = "For LiteRT, ncnn and Core ML there are examples/deployment/to_*.py."
        raise OptionError(f"{path}: the name of an exported model ends in {known}. {hint}")
    if not is_folder and path.is_dir():
        raise OptionError(f"{path} is a folder: choose another name.")
    kind, precisions = (target, FOLDERS[target]) if target in FOLDERS else (path.suffix, FORMATS[path.suffix])
    if precision not in precisions:
        raise OptionError(f"{path}: {kind} can be {', '.join(precisions)}, not {precision!r}.")
    if portable and not argmax:
        raise OptionError("portable applies to graphs of labels: set argmax (--argmax) too.")
    if (precision == "int8") != (calibration is not None):
        raise OptionError("int8 needs calibration images, and only int8 takes them: pass a folder (--calibration DIR).")
    if (dynamic or target == "transformers.js") and size and not MIN_SIDE <= min(size) <= max(size) <= MAX_SIDE:
        raise OptionError(f"Dynamic sizes have sides from {MIN_SIDE} to {MAX_SIDE} pixels, got {size[0]}x{size[1]}.")
    if (target == "deepness") != (resolution is not None) or (resolution is not None and not resolution > 0):
        what = "Deepness, and no other target, needs a resolution in cm per pixel (--resolution 10)"
        raise OptionError(f"{what}, got {target!r} with {resolution}.")
    if is_folder and (argmax or dynamic):
        raise OptionError(f"{target} takes logits, of images of any size: leave argmax and dynamic out.")
    if target == "deepness":
        refused = {path.suffix: path.suffix != ".onnx", "dynamic": dynamic, "argmax": argmax}
        refused |= {"int8": precision == "int8", f"batches of {batch}": batch > 1}
        refused |= {f"a size of {size}": size and size[0] != size[1]}
        if wrong := ", ".join(name for name, given in refused.items() if given):
            raise OptionError(f"{target} reads .onnx files that give probabilities of one square image, not {wrong}.")
    needed = () if kind in (".pt2", "transformers") else ("onnx", "onnxruntime", "onnxscript")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        install = 'pip install "onnx>=1.16" onnxruntime onnxscript'
        raise ExportError(f"Exporting to {kind} needs {', '.join(missing)}: {install}")
