"""How often Triton compiles: its keys of what a launch needs, for a GPU that is not there."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

LAUNCHES = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from segnext_timm.kernels import cells, strips_triton

keys = {}

def launch(self, *args, grid, warmup, **options):
    bind = create_function_from_signature(self.signature, self.params, make_backend(GPUTarget("cuda", 90, 32)))
    _, *key = bind(*args, **options)
    keys.setdefault(self.__name__, set()).add(str(key))

JITFunction.run = launch
for height, width in ((1, 1), (1, 3), (7, 16), (16, 17), (64, 64), (128, 256)):
    logits = torch.zeros(2, 19, height, width)
    labels = cells.argmax(logits, (8 * height, 8 * width - 1))
    cells.cross_entropy(logits, labels, None, 255, 0.0, needs_gradient=True)
    x = torch.zeros(2, 32, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = [x.new_zeros(32, 1, 1, taps) for taps in (7, 11, 21)] + [x.new_zeros(32)] * 3
    for dilation in (1, 2):
        strips_triton.add_strips(x, [w.requires_grad_() for w in weights * 2], dilation)[0].sum().backward()
print({name: len(found) for name, found in keys.items()})
"""


def test_kernels_are_compiled_once_for_all_sizes_of_images():
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", LAUNCHES], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = {"_argmax_kernel": 1, "_cross_entropy_kernel": 1, "_gather_kernel": 1}
    assert eval(done.stdout) == counts | {
        "_fan_kernel": 4,
        "_correlate_kernel": 2,
    }  # by direction, forward and backward
