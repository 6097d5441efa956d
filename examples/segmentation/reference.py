"""Logits of mmsegmentation's own SegNeXt, to compare with, where it is installed.

mmsegmentation 1.2.2 runs with `mmcv-lite`, which lacks compiled operators. SegNeXt needs none of them, so a stand-in
takes their place.
"""

import importlib
import importlib.util
import sys
import types
import warnings
from typing import Any

import torch
import torch.nn.functional as F

from ..models.segnext import SegNeXt
from .dialects import native_to_mmseg


def is_installed() -> bool:
    """Whether mmsegmentation and its dependencies are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("mmseg", "mmcv", "mmengine", "ftfy", "regex"))


class _Anything(types.ModuleType):
    """Stand-in for `mmcv.ops`, of which mmsegmentation imports names that SegNeXt does not use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


def import_mmseg() -> Any:
    """Import `mmseg.models`, with a stand-in for mmcv's compiled operators if they are missing.

    Raises:
        ImportError: If mmsegmentation is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("mmcv.ops")
        except ImportError:
            sys.modules["mmcv.ops"] = _Anything("mmcv.ops")
        return importlib.import_module("mmseg.models")


def reference_logits(model: SegNeXt, images: torch.Tensor) -> torch.Tensor:
    """Compute the logits of mmsegmentation's modules with a model's weights and bases.

    Args:
        model: SegNeXt on an MSCAN.
        images: Normalized images of shape (B, 3, H, W).

    Returns:
        Logits of shape (B, classes, H, W).
    """
    models, state_dict = import_mmseg(), native_to_mmseg(model.state_dict())
    encoder, bases = model.encoder.model, model.decoder.hamburger.nmf.bases
    dims = [info["num_chs"] for info in encoder.feature_info.info]
    depths = [len(encoder[f"stages_{i}"].blocks) for i in range(4)]
    backbone = models.backbones.MSCAN(embed_dims=dims, depths=depths, mlp_ratios=[8, 8, 4, 4], norm_cfg={"type": "BN"})
    head = models.decode_heads.LightHamHead(
        in_channels=dims[1:],
        in_index=[1, 2, 3],
        channels=bases.shape[1],
        ham_channels=bases.shape[1],
        ham_kwargs={"MD_R": bases.shape[2], "rand_init": False},
        num_classes=model.segmentation_head[0].out_channels,
        norm_cfg={"type": "GN", "num_groups": 32},
        align_corners=False,
    )
    head.hamburger.ham.register_buffer("bases", bases, persistent=False)
    for prefix, module in (("backbone.", backbone), ("decode_head.", head)):
        own = {n.removeprefix(prefix): v for n, v in state_dict.items() if n.startswith(prefix)}
        module.load_state_dict(own)
        module.eval()
    with torch.inference_mode():
        return F.interpolate(head(backbone(images)), images.shape[-2:], mode="bilinear", align_corners=False)
