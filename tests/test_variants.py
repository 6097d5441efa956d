"""The table of variants."""

import timm
import torch

from segnext_timm.variants import VARIANTS


def test_the_table_of_variants_has_the_sizes_that_the_models_have():
    for variant in VARIANTS.values():
        with torch.device("meta"):
            stages = timm.create_model(variant.backbone).stages
        assert tuple(stage.norm.weight.shape[0] for stage in stages) == variant.dims
        assert tuple(len(stage.blocks) for stage in stages) == variant.depths
