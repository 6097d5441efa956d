"""mmsegmentation's SegNeXt, where it is installed: `pip install mmsegmentation==1.2.2 mmcv-lite==2.1.0 ftfy regex`."""

import torch

from publishing.reference import mmseg_backbone, mmseg_head
from random_checkpoints import VARIANTS


def backbone(variant: str) -> torch.nn.Module:
    """mmsegmentation's MSCAN, in evaluation mode."""
    dims, depths, *_ = VARIANTS[variant]
    return mmseg_backbone(dims, depths)


def head(variant: str, classes: int, bases: torch.Tensor) -> torch.nn.Module:
    """mmsegmentation's LightHamHead, in evaluation mode, its decomposition started from given bases (1, D, R)."""
    return mmseg_head(VARIANTS[variant][0], classes, bases)


def split(state_dict: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The part of a state dict under a prefix, without it."""
    return {name.removeprefix(prefix): v for name, v in state_dict.items() if name.startswith(prefix)}


def run(variant: str, state_dict: dict[str, torch.Tensor], bases: torch.Tensor, x: torch.Tensor) -> dict:
    """What mmsegmentation's modules make of images, in the dtype of the images.

    Args:
        variant: One of `VARIANTS`.
        state_dict: A segmenter's, in mmsegmentation's spelling, and `head.weight` and `head.bias`.
        bases: What the decomposition starts from, of shape (1, D, R).
        x: Images of shape (B, 3, H, W).

    Returns:
        `feature0` to `feature3`; `logits` of the classifier, which mmsegmentation has not got, computed from
        `feature3`; `masks`, the segmenter's logits at the images' size.
    """
    classes = state_dict["decode_head.conv_seg.bias"].shape[0]
    encoder, decoder = backbone(variant), head(variant, classes, bases)
    encoder.load_state_dict(split(state_dict, "backbone."))
    decoder.load_state_dict(split(state_dict, "decode_head."))
    with torch.inference_mode():
        features = encoder.to(x.dtype)(x)
        masks = decoder.to(x.dtype)(features)
        masks = torch.nn.functional.interpolate(masks, x.shape[-2:], mode="bilinear", align_corners=False)
        pooled = features[-1].mean((2, 3))
        logits = pooled @ state_dict["head.weight"].to(x.dtype).T + state_dict["head.bias"].to(x.dtype)
    return {**{f"feature{i}": f for i, f in enumerate(features)}, "logits": logits, "masks": masks}
