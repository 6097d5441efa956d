"""MSCAN under the other decoders of smp."""

import pytest
import segmentation_models_pytorch as smp
import torch

import segnext_timm  # noqa: F401

DECODERS = (
    "unet",
    "unetplusplus",
    "manet",
    "linknet",
    "fpn",
    "pspnet",
    "pan",
    "deeplabv3",
    "deeplabv3plus",
    "upernet",
    "segformer",
)


@pytest.mark.slow  # test_segnext.py trains all decoders with a narrow encoder
@pytest.mark.parametrize("arch", DECODERS)
def test_decoder_trains_on_mscan(arch):
    model = smp.create_model(arch, "tu-mscan_t", encoder_weights=None, classes=3).train()
    output = model(torch.rand(2, 3, 128, 128))
    assert output.shape == (2, 3, 128, 128)
    output.square().mean().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not [name for name in unused if name.startswith("decoder")]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters())
