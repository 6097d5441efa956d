"""Formats of exported models. Imports nothing heavy, so that the command checks a file name at once."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..errors import ExportError, OptionError


@dataclass(frozen=True)
class Format:
    """A format of exported models.

    Attributes:
        precisions: Precisions that it can have.
        packages: Packages that convert to it and run it.
        extra: Extra of this package that installs them.
        is_folder: Whether it is a folder, not a file.
    """

    precisions: tuple[str, ...] = ("fp32",)
    packages: tuple[str, ...] = ()
    extra: str = ""
    is_folder: bool = False


FORMATS = {
    ".onnx": Format(("fp32", "fp16", "int8"), ("onnx", "onnxruntime", "onnxscript"), "export"),
    ".pt2": Format(),
    ".tflite": Format(packages=("litert_torch", "ai_edge_litert"), extra="litert"),
    ".ncnn": Format(("fp32", "fp16"), ("pnnx", "ncnn"), "ncnn", is_folder=True),
    ".mlpackage": Format(("fp32", "fp16"), ("coremltools",), "coreml", is_folder=True),
}


def check_name(path: Path) -> None:
    """Raise an OptionError unless a path ends in a format's suffix."""
    if path.suffix not in FORMATS:
        raise OptionError(f"{path}: the name of an exported model ends in {', '.join(FORMATS)}.")


def check_installed(suffix: str) -> None:
    """Raise an ExportError that names the extra if a package of a format is missing."""
    missing = [name for name in FORMATS[suffix].packages if importlib.util.find_spec(name) is None]
    if missing:
        extra = FORMATS[suffix].extra
        raise ExportError(f"Exporting to {suffix} needs {missing[0]}: pip install 'segnext-timm[{extra}]'")
