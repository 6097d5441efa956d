"""SegNeXt for timm, segmentation-models-pytorch (smp) and the Hugging Face Hub.

Importing this package registers the backbones `mscan_t`, `mscan_s`, `mscan_b` and `mscan_l` with timm and the
architecture `segnext` with smp.
"""

from .hamburger import Hamburger, NMF2d
from .mscan import MSCAN
from .segnext import LightHamDecoder, SegNeXt

__version__ = "0.1.0"

__all__ = ["MSCAN", "Hamburger", "LightHamDecoder", "NMF2d", "SegNeXt", "__version__"]
