"""SegNeXt's segmentation head, and its description in a configuration."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.modules import Activation

_logger = logging.getLogger(__name__)


class ResizingHead(SegmentationHead):
    """smp's segmentation head, which resizes logits to a size that the caller gives, before the activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        activation: str | Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size=kernel_size, activation=activation, upsampling=1)
        self.takes_size = True

    def forward(self, x: torch.Tensor, size: list[int] | None, activated: bool = True) -> torch.Tensor:
        """Features (B, in_channels, h, w) to a map (B, out_channels, *size), or (B, out_channels, h, w) if None."""
        x = self[0](x)
        if size is not None:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return self[2](x) if activated else x


def make_head(
    in_channels: int, classes: int, activation: str | Callable[..., nn.Module] | None, params: Mapping[str, Any] | None
) -> SegmentationHead:
    """Create a segmentation head: see `head_params` of :class:`segnext_timm.SegNeXt`."""
    make = SegmentationHead if "upsampling" in (params or {}) else ResizingHead
    return make(in_channels, classes, activation=activation, **{"kernel_size": 1, **(params or {})})


def describe_head(head: nn.Module, activation: str | None) -> dict[str, Any]:
    """Describe a segmentation head by the arguments of SegNeXt that make one like it.

    Args:
        head: The head.
        activation: The name of its activation, if that was not replaced.

    Returns:
        `classes`, `activation` and `head_params`. The activation is None, with a warning, if smp has no name for it.

    Raises:
        ValueError: If no arguments make such a head.
    """
    if isinstance(head, SegmentationHead) and isinstance(head[0], nn.Conv2d):
        params = {"kernel_size": head[0].kernel_size[0]}
        if not isinstance(head, ResizingHead):
            params["upsampling"] = int(getattr(head[1], "scale_factor", 1))
        names = (activation, None, "sigmoid", "softmax2d", "logsoftmax", "tanh", "clamp", "argmax2d")
        name = next((name for name in names if repr(Activation(name)) == repr(head[-1])), None)
        described = make_head(head[0].in_channels, head[0].out_channels, name, params)
        if repr(list(described)[:-1]) == repr(list(head)[:-1]):
            if repr(described[-1]) != repr(head[-1]):
                _logger.warning(f"activation: left out {head[-1]}, for which smp has no name: a saved model has none.")
            is_default = params == {"kernel_size": 1}
            return {"classes": head[0].out_channels, "activation": name, "head_params": None if is_default else params}
    raise ValueError(
        f"The configuration cannot describe this segmentation head, a {type(head).__name__}, so that no saved model "
        f"would load. Use segmentation_models_pytorch.base.SegmentationHead, uncompiled."
    )
