"""Small models that are quick to create and run."""

import segmentation_models_pytorch as smp

import segnext_timm  # noqa: F401  registers SegNeXt and MSCAN


def narrow(**kwargs):
    """SegNeXt with a narrow encoder and decoder, of 3 classes by default."""
    arguments = {"encoder_weights": None, "classes": 3, "decoder_channels": 32, "decoder_rank": 8}
    return smp.SegNeXt("tu-test_mscan", **arguments | kwargs)
