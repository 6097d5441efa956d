"""Small models that are quick to create and run."""

import segmentation_models_pytorch as smp

import segnext_timm  # noqa: F401  registers SegNeXt and MSCAN


def narrow(**kwargs):
    """SegNeXt of 3 classes with a narrow encoder and decoder."""
    return smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=8, **kwargs)
