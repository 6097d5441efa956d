"""The table of variants."""

import functools

import segmentation_models_pytorch as smp
import timm
import torch

from segnext_timm.variants import VARIANTS


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_the_table_of_variants_counts_as_the_models_do():
    for variant in VARIANTS.values():
        with torch.device("meta"):
            classifier = timm.create_model(variant.backbone)
            backbone = timm.create_model(variant.backbone, num_classes=0)
            make = functools.partial(smp.SegNeXt, f"tu-{variant.backbone}", encoder_weights=None)
            segmenter = make(decoder_channels=variant.decoder_channels, classes=150)
            narrow = make(decoder_channels=256, classes=19)
        assert parameters(classifier) == variant.classifier_parameters
        assert parameters(backbone) == variant.backbone_parameters
        assert parameters(segmenter) == variant.segmenter_parameters(150)
        assert parameters(narrow) == variant.segmenter_parameters(19, 256)
        stages = backbone.stages
        assert tuple(stage.norm.weight.shape[0] for stage in stages) == variant.dims
        assert tuple(len(stage.blocks) for stage in stages) == variant.depths
