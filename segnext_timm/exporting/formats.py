"""Formats of exported models. Imports nothing heavy, so that the command checks a file name at once."""

import importlib.util
from pathlib import Path

from ..errors import ExportError, OptionError

FORMATS = {".onnx": ("fp32", "fp16", "int8"), ".pt2": ("fp32",)}  # precisions by suffix


def check_name(path: Path) -> None:
    """Raise an OptionError unless a path ends in a format's suffix."""
    if path.suffix not in FORMATS:
        known = " or ".join(FORMATS)
        raise OptionError(f"{path}: the name of an exported model ends in {known}. examples/deployment has converters.")


def check_installed(suffix: str) -> None:
    """Raise an ExportError that names the missing packages of a format."""
    needed = ("onnx", "onnxruntime", "onnxscript") if suffix == ".onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        install = 'pip install "onnx>=1.16" onnxruntime onnxscript'
        raise ExportError(f"Exporting to {suffix} needs {', '.join(missing)}: {install}")
