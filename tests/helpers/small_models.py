"""Small models that are quick to create and run."""

import segmentation_models_pytorch as smp
import torch

import segnext_timm  # noqa: F401  registers SegNeXt and MSCAN


def narrow(**kwargs):
    """SegNeXt with a narrow encoder and decoder, of 3 classes by default."""
    arguments = {"encoder_weights": None, "classes": 3, "decoder_channels": 32, "decoder_rank": 8}
    return smp.SegNeXt("tu-test_mscan", **arguments | kwargs)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 4 - 2


def tiny(**kwargs):
    """A narrow SegNeXt in evaluation mode."""
    torch.manual_seed(0)
    arguments = {"encoder_weights": None, "decoder_channels": 32, "decoder_rank": 4, "classes": 5} | kwargs
    return smp.create_model("segnext", arguments.pop("encoder_name", "tu-test_mscan"), **arguments).eval()
