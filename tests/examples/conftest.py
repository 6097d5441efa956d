from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import miniatures
import training


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


@dataclass
class FinishedRun:
    """A training of two iterations: copy what a test changes."""

    data: Path
    out: Path
    options: tuple[object, ...]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A run that all tests of a worker read."""
    root = tmp_path_factory.mktemp("finished")
    miniatures.make("folder", root / "data", [0, 1, 2, 255])
    options = ("--data_root", root / "data", "--out", root / "run", "--iterations", 2)
    training.run("folder", *options)
    AcceleratorState._reset_state(True)
    return FinishedRun(root / "data", root / "run", options)
