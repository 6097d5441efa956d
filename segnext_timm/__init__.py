"""SegNeXt for timm, segmentation-models-pytorch (smp) and the Hugging Face Hub.

Importing this package registers the backbones `mscan_t`, `mscan_s`, `mscan_b` and `mscan_l` with timm and the
architecture `segnext` with smp.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints.catalog import list_segmenters
    from .checkpoints.conversion import convert
    from .checkpoints.loading import create_segmenter, load_segmenter
    from .errors import CheckpointError
    from .exporting.exporters import export
    from .hub.push import add_results, push_to_hub
    from .models.fusion import fuse
    from .models.hamburger import Hamburger, NMF2d
    from .models.losses import UpsampledCrossEntropyLoss
    from .models.mscan import MSCAN
    from .models.segnext import LightHamDecoder, SegNeXt
    from .prediction.drawing import class_areas, overlay
    from .prediction.images import read_image
    from .prediction.pipeline import predict, segment

__version__ = "0.1.0"

__all__ = [
    "MSCAN",
    "CheckpointError",
    "Hamburger",
    "LightHamDecoder",
    "NMF2d",
    "SegNeXt",
    "UpsampledCrossEntropyLoss",
    "__version__",
    "add_results",
    "class_areas",
    "convert",
    "create_segmenter",
    "export",
    "fuse",
    "list_segmenters",
    "load_segmenter",
    "overlay",
    "predict",
    "push_to_hub",
    "read_image",
    "segment",
]

# The module of each public name
_HOMES = {
    "MSCAN": "models.mscan",
    "CheckpointError": "errors",
    "Hamburger": "models.hamburger",
    "LightHamDecoder": "models.segnext",
    "NMF2d": "models.hamburger",
    "SegNeXt": "models.segnext",
    "UpsampledCrossEntropyLoss": "models.losses",
    "add_results": "hub.push",
    "class_areas": "prediction.drawing",
    "convert": "checkpoints.conversion",
    "create_segmenter": "checkpoints.loading",
    "export": "exporting.exporters",
    "fuse": "models.fusion",
    "list_segmenters": "checkpoints.catalog",
    "load_segmenter": "checkpoints.loading",
    "overlay": "prediction.drawing",
    "predict": "prediction.pipeline",
    "push_to_hub": "hub.push",
    "read_image": "prediction.images",
    "segment": "prediction.pipeline",
}


_loaded = False


def _load() -> None:
    """Import every module, which registers the models, and define the public names."""
    global _loaded
    _loaded = True
    for name, home in _HOMES.items():
        globals()[name] = getattr(importlib.import_module(f".{home}", __name__), name)


def _is_the_command() -> bool:
    """Whether this process is `segnext-timm ...` or `python -m segnext_timm ...`."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # while Python looks for the module; its name stands before the module's own arguments
        return sys.orig_argv[-len(sys.argv)].split(".")[0] == __name__
    name = program.replace("\\", "/").rpartition("/")[2]
    return name.removesuffix(".exe").removesuffix("-script.py") == "segnext-timm"


if not TYPE_CHECKING:  # with __getattr__, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if not _loaded and not name.startswith("__"):
            _load()
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Importing the package registers the models, so it loads torch, timm and smp, which takes seconds. Only the command
# does not wait: Python imports this file before the command's module, and `segnext-timm --help` needs no models.
# There, the first use of a public name, or of a module as an attribute, loads the rest.
if not _is_the_command():
    _load()
