"""Faster forms of what the models compute, each equal to its plain form in models/ up to rounding.

A model asks a kernel's `applies`, whose answer depends on device, layout, shapes, dtype, and on whether gradients or
graphs are wanted, never on free memory or on a timing. A kernel stays if it takes 15% off the time of a whole step or
prediction, or a third off its memory, in a usual case: see `tests/measure/kernel_gains.py`.
"""

import functools
import importlib.util
import logging
import os

import torch
from torch.utils._python_dispatch import _disable_current_modes

_logger = logging.getLogger(__name__)

ENABLED = os.environ.get("SEGNEXT_TIMM_KERNELS", "1") != "0"  # SEGNEXT_TIMM_KERNELS=0 turns all kernels off


@torch.compiler.assume_constant_result  # torch.compile would trace the trial, and put it into its graph
def triton_runs(device: torch.device, module: str) -> bool:
    """Whether the Triton kernels of a module run on a CUDA device, which is tried once; warns if they do not."""
    # nothing can be tried on a pretended GPU, or in the middle of a CUDA graph
    if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
        return importlib.util.find_spec("triton") is not None
    return _try_triton(device, module)


@functools.cache
def _try_triton(device: torch.device, module: str) -> bool:
    """Launch all kernels of a module. Triton needs compute capability 7 and, at the first launch, a C compiler."""
    if importlib.util.find_spec("triton") is None:
        return False
    if torch.version.cuda and torch.cuda.get_device_capability(device) < (7, 0):
        return False
    try:
        with _disable_current_modes():  # such as that of tensors without data
            importlib.import_module(f"{__name__}.{module}").launch_all(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the compilers of Triton and C raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"The Triton kernels in {module} do not run here"
        _logger.warning(f"{what}, so training and prediction take more time and memory: {reason}")
        return False
    return True
