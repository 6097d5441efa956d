import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def new_accelerator():
    """Accelerate keeps its state for the process's life; each test is to begin anew."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
