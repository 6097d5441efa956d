import functools
import gc
import importlib.util
import os
import shutil

import pytest

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # before a folder's conftest.py imports Triton: its kernels run on the CPU
LARGE = {"b", "l", "mscan_b", "mscan_l"}  # parameters of tests that are slow, since they run models of size B and L


def pytest_configure(config):
    if config.getoption("dist", "no") != "no" and "PYTEST_XDIST_WORKER" not in os.environ:
        return  # the process that starts the others: it runs no tests, and they would wait until it has imported torch
    gc.disable()  # until the tests begin: next to nothing that is imported becomes garbage
    import jinja2
    import torch

    # huggingface_hub compiles the template for each card that a test writes
    jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)

    if "PYTEST_XDIST_WORKER" in os.environ:
        # tests run side by side: one thread each, here and in the processes they start
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # where there is a driver alone


def pytest_collection_finish():
    gc.freeze()  # each full collection would look at a million imported objects again, a tenth of all time
    gc.set_threshold(20_000)
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before fixtures, which draw weights
def pytest_runtest_setup():
    import torch

    torch.manual_seed(0)  # the numbers of a test do not depend on the tests before it, which differ from run to run


def needs():
    """What tests with a mark need, and whether it is there."""
    import torch

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    return {
        "cuda": ("needs CUDA", torch.cuda.is_available()),
        "reference": ("mmsegmentation is not installed", importlib.util.find_spec("mmseg") is not None),
        "browser": ("Chromium or playwright is missing", bool(chromium and importlib.util.find_spec("playwright"))),
    }


@pytest.hookimpl(tryfirst=True)  # before tests marked slow are deselected
def pytest_collection_modifyitems(items):
    marks = needs()
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if LARGE.intersection(value for value in parameters if isinstance(value, str)):
            item.add_marker(pytest.mark.slow)
        for name, (reason, fulfilled) in marks.items():
            if item.get_closest_marker(name) and not fulfilled:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def backbone():
    """MSCAN-T with a classifier, in the names of the paper's code."""
    from random_checkpoints import backbone_shapes, random_state_dict

    return random_state_dict(backbone_shapes("t", classifier=True))


@pytest.fixture(scope="session")
def segmenter():
    """SegNeXt-T of 5 classes, in the names of mmsegmentation."""
    from random_checkpoints import random_state_dict, segmenter_shapes

    return random_state_dict(segmenter_shapes("t", 5))
