import pytest
from accelerate.state import AcceleratorState

import miniatures


@pytest.fixture(autouse=True)
def new_accelerator():
    """Accelerate keeps its state for the process's life; each test is to begin anew."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def folder(tmp_path):
    """A data folder of three classes."""
    miniatures.make("folder", tmp_path / "data", [0, 1, 2, 255])
    return tmp_path / "data"
