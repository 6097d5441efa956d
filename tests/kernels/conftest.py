import sys

import pytest
import torch

from segnext_timm import kernels


@pytest.fixture
def use_triton(monkeypatch):
    """CUDA; without a GPU, tensors that say they are on one, whose kernels Triton interprets."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))


@pytest.fixture
def trial(monkeypatch):
    """A GPU for the trial of Triton alone: the compiler would initialize one."""
    kernels._try_triton.cache_clear()
    if not torch.cuda.is_available():
        tried = lambda: sys._getframe(1).f_globals["__name__"] == kernels.__name__  # noqa: E731
        monkeypatch.setattr("torch.cuda.is_available", tried)
        monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    yield kernels._try_triton
    kernels._try_triton.cache_clear()


@pytest.fixture
def failing_triton(monkeypatch):
    """A Triton whose compiler fails at every launch."""

    def fail(*arguments, **options):
        raise RuntimeError("ptxas failed\nwith error code 255")

    monkeypatch.setattr("triton.runtime.jit.JITFunction.run", fail)
    monkeypatch.setattr("triton.runtime.interpreter.GridExecutor.__call__", fail)
