"""Faster forms of what the models compute, each equal to its plain form in models/ up to rounding.

A model asks the function `applies` of a kernel, whose answer depends on device, layout and gradient mode alone. The
environment variable SEGNEXT_TIMM_KERNELS=0, read when the package is imported, turns all kernels off.
"""

import os

ENABLED = os.environ.get("SEGNEXT_TIMM_KERNELS", "1") != "0"
