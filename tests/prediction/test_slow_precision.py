"""A precision that a device computes slowly is pointed out."""

import pytest
import torch

from segnext_timm.prediction.pipeline import slow_precision


@pytest.mark.skipif(not hasattr(torch.cpu, "_is_amx_tile_supported"), reason="this torch does not know the CPU")
@pytest.mark.parametrize(("bf16", "amx"), [(True, False), (False, True), (False, False)])
def test_a_cpu_without_bf16_arithmetic_is_told(monkeypatch, bf16, amx):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    line = "This CPU has no bf16 arithmetic: bf16 is about eight times slower than fp32 here."
    assert slow_precision(torch.device("cpu"), "bf16") == (None if bf16 or amx else line)
    assert slow_precision(torch.device("cpu"), "fp32") is None
    assert slow_precision(torch.device("cuda"), "bf16") is None
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert slow_precision(torch.device("cpu"), "bf16") is None
