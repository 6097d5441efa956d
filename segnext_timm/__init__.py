"""SegNeXt for timm, segmentation-models-pytorch (smp) and the Hugging Face Hub.

Importing this package registers the backbones `mscan_t`, `mscan_s`, `mscan_b` and `mscan_l` with timm and the
architecture `segnext` with smp.
"""

from .deploy import export, fuse
from .hamburger import Hamburger, NMF2d
from .hub import convert, push_to_hub
from .images import overlay
from .inference import predict
from .mscan import MSCAN
from .reading import CheckpointError
from .resizing import UpsampledCrossEntropyLoss
from .segnext import LightHamDecoder, SegNeXt
from .zoo import create_segmenter, list_segmenters

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
    "convert",
    "create_segmenter",
    "export",
    "fuse",
    "list_segmenters",
    "overlay",
    "predict",
    "push_to_hub",
]
