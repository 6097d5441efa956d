"""SegNeXt for timm, segmentation-models-pytorch (smp) and the Hugging Face Hub.

Importing this package registers the backbones `mscan_t`, `mscan_s`, `mscan_b` and `mscan_l` with timm and the
architecture `segnext` with smp.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "MSCAN",
    "CheckpointError",
    "Hamburger",
    "LightHamDecoder",
    "NMF2d",
    "SegNeXt",
    "SegNeXtError",
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
    "parameter_groups",
    "predict",
    "predict_file",
    "push_to_hub",
    "read_image",
]


# The imports below load torch, timm and smp, which takes seconds. Python imports this file before the command's module,
# and `segnext-timm --help` needs no models, so the command's own process leaves them out: each command imports what it
# needs, and the modules of the models register them.
if TYPE_CHECKING or Path(*sys.argv[:1]).name not in ("segnext-timm", "segnext-timm.exe"):
    from .checkpoints.catalog import list_segmenters
    from .checkpoints.conversion import convert
    from .checkpoints.loading import create_segmenter, load_segmenter
    from .errors import CheckpointError, SegNeXtError
    from .exporting.exporters import export
    from .hub.push import add_results, push_to_hub
    from .models.fusion import fuse
    from .models.hamburger import Hamburger, NMF2d
    from .models.losses import UpsampledCrossEntropyLoss
    from .models.mscan import MSCAN
    from .models.optimization import parameter_groups
    from .models.segnext import LightHamDecoder, SegNeXt
    from .prediction.drawing import class_areas, overlay
    from .prediction.files import predict_file
    from .prediction.images import read_image
    from .prediction.pipeline import predict
