"""mmsegmentation's own SegNeXt, to compare with.

    pip install mmsegmentation==1.2.2 mmcv-lite==2.1.0 mmengine ftfy regex

`mmcv-lite` lacks mmcv's compiled operators. SegNeXt needs none of them, so a stand-in takes their place while
mmsegmentation is imported.
"""

import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from deployment.to_mmseg import native_to_mmseg
from segnext_timm import SegNeXt


class Operators(types.ModuleType):
    """Stand-in for `mmcv.ops`, with a class for every name that mmsegmentation imports from it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


def import_mmseg() -> Any:
    """Import `mmseg.models`, also where mmcv has no compiled operators.

    Raises:
        ImportError: If mmsegmentation is not installed.
    """
    has_operators = importlib.util.find_spec("mmcv._ext") is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not has_operators:
            sys.modules["mmcv.ops"] = Operators("mmcv.ops")
        try:
            return importlib.import_module("mmseg.models")
        finally:
            if not has_operators:
                del sys.modules["mmcv.ops"]


def mmseg_backbone(dims: Sequence[int], depths: Sequence[int]) -> torch.nn.Module:
    """mmsegmentation's MSCAN, in evaluation mode."""
    return (
        import_mmseg()
        .backbones.MSCAN(embed_dims=list(dims), depths=list(depths), mlp_ratios=[8, 8, 4, 4], norm_cfg={"type": "BN"})
        .eval()
    )


def mmseg_head(dims: Sequence[int], classes: int, bases: torch.Tensor) -> torch.nn.Module:
    """mmsegmentation's LightHamHead, in evaluation mode.

    Args:
        dims: Channels of the backbone's four stages.
        classes: Number of classes.
        bases: What its matrix decomposition starts from, of shape (1, channels, rank).
    """
    _, channels, rank = bases.shape
    head = import_mmseg().decode_heads.LightHamHead(
        in_channels=list(dims[1:]),
        in_index=[1, 2, 3],
        channels=channels,
        ham_channels=channels,
        ham_kwargs={"MD_R": rank, "rand_init": False},
        num_classes=classes,
        norm_cfg={"type": "GN", "num_groups": 32},
        align_corners=False,
    )
    head.hamburger.ham.register_buffer("bases", bases, persistent=False)
    return head.eval()


def reference_logits(model: SegNeXt, images: torch.Tensor) -> torch.Tensor:
    """Compute the logits of mmsegmentation's modules with a model's weights and bases.

    Args:
        model: SegNeXt on an MSCAN.
        images: Normalized images of shape (B, 3, H, W).

    Returns:
        Logits of shape (B, classes, H, W).

    Raises:
        ImportError: If mmsegmentation is not installed.
    """
    encoder, state_dict = model.encoder.model, native_to_mmseg(model.state_dict())
    dims = [info["num_chs"] for info in encoder.feature_info.info]
    backbone = mmseg_backbone(dims, [len(encoder[f"stages_{i}"].blocks) for i in range(4)])
    classes = model.segmentation_head[0].out_channels
    head = mmseg_head(dims, classes, model.decoder.hamburger.nmf.bases)
    for prefix, module in (("backbone.", backbone), ("decode_head.", head)):
        module.load_state_dict({n.removeprefix(prefix): v for n, v in state_dict.items() if n.startswith(prefix)})
    with torch.inference_mode():
        return F.interpolate(head(backbone(images)), images.shape[-2:], mode="bilinear", align_corners=False)
