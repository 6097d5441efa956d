"""Faster forms of what the models compute, each equal to its plain form in models/ up to rounding.

A model asks a kernel's `applies`, whose answer depends on device, layout, shapes, dtype, and on whether gradients or
graphs are wanted, never on free memory or on a timing. A kernel stays if it takes 15% off the time of a whole step or
prediction, or a third off its memory, in a usual case: see `tests/measure/kernel_gains.py`.
"""

import os

ENABLED = os.environ.get("SEGNEXT_TIMM_KERNELS", "1") != "0"  # SEGNEXT_TIMM_KERNELS=0 turns all kernels off
