import importlib.util
import os
import shutil

import pytest
import torch

from random_checkpoints import backbone_shapes, random_state_dict, segmenter_shapes

if "PYTEST_XDIST_WORKER" in os.environ:
    # tests run side by side: one thread each, here and in the processes they start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run on the CPU

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS = {
    "cuda": ("needs CUDA", torch.cuda.is_available()),
    "reference": ("mmsegmentation is not installed", importlib.util.find_spec("mmseg") is not None),
    "browser": ("Chromium or playwright is missing", bool(CHROMIUM and importlib.util.find_spec("playwright"))),
}


LARGE = {"b", "l", "mscan_b", "mscan_l"}  # parameters of tests that are slow, since they run models of size B and L


@pytest.hookimpl(tryfirst=True)  # before tests marked slow are deselected
def pytest_collection_modifyitems(items):
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if LARGE.intersection(value for value in parameters if isinstance(value, str)):
            item.add_marker(pytest.mark.slow)
        for name, (reason, fulfilled) in NEEDS.items():
            if item.get_closest_marker(name) and not fulfilled:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def backbone():
    """MSCAN-T with a classifier, in the names of the paper's code."""
    return random_state_dict(backbone_shapes("t", classifier=True))


@pytest.fixture(scope="session")
def segmenter():
    """SegNeXt-T of 5 classes, in the names of mmsegmentation."""
    return random_state_dict(segmenter_shapes("t", 5))
