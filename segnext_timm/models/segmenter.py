"""How predictions call a segmentation model of smp."""

import copy
from typing import Any

import torch
import torch.nn as nn
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.base.modules import Clamp

from ..errors import OptionError
from .model_info import ModelInfo, to_labels


class Segmenter:
    """A segmentation model as predictions need it: called by `__call__`, for maps that can be resized and averaged.

    SegNeXt leaves its activation out when it is asked to. Of smp's other models, a copy of the model and its head that
    shares all parts and hooks, but not the activation, is called; hooks of these two modules get the copy. The outputs
    of these models when they are compiled or wrapped, and of activations that smp does not name, are taken as they are.

    Args:
        model: Any model of smp, or another module that maps images (B, C, H, W) to maps (B, classes, h, w), with or
            without a second output.

    Attributes:
        gives_logits: Whether the maps are logits.
        gives_small_maps: Whether the maps are logits of SegNeXt before they are resized.
    """

    def __init__(self, model: nn.Module) -> None:
        self.info = info = ModelInfo(model)
        self.model = model
        self._clamp = info.activation if isinstance(info.activation, Clamp) else None
        self.gives_logits = isinstance(info.activation, nn.Identity | None)
        self._options: dict[str, Any] = {}
        if info.is_segnext:
            if info.keeps_order and info.resizes_logits:
                self.gives_logits, self._options = True, {"activated": False}
        elif not self.gives_logits and info.keeps_order and _is_plain(model):
            self.gives_logits, self.model = True, _without_activation(model)
        # log-probabilities are logits; the output of a tanh, from -1 to 1, is taken as one
        self._gives_probabilities = not (self.gives_logits or isinstance(info.activation, nn.LogSoftmax | nn.Tanh))
        self.gives_small_maps = self.gives_logits and info.is_segnext
        if self.gives_small_maps:
            self._options["upsampling"] = 1

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Compute maps (B, classes, h, w) of normalized images (B, C, H, W).

        Raises:
            OptionError: If the model returns something else.
        """
        output = self.model(images, **self._options)
        maps = output[0] if isinstance(output, tuple) else output  # without those of a classification head
        if not isinstance(maps, torch.Tensor):
            raise OptionError(f"The model returned a {type(maps).__name__}, not a tensor (B, classes, H, W).")
        if maps.ndim != 4 or not maps.is_floating_point():
            raise OptionError(
                f"The model returned {str(maps.dtype).removeprefix('torch.')} {tuple(maps.shape)}, not scores (B, "
                f"classes, H, W) of each pixel: it does not segment images, or not by scores."
            )
        return maps

    def labels(self, scores: torch.Tensor, dim: int, probabilities: bool = False) -> torch.Tensor:
        """Convert maps, or :meth:`probabilities`, to labels, int64, without the dimension `dim` of the classes."""
        own = self._gives_probabilities or self._clamp is not None
        return to_labels(scores, dim, self.info.threshold if own else 0.5 if probabilities else 0.0)

    def probabilities(self, maps: torch.Tensor, dim: int) -> torch.Tensor:
        """Compute probabilities from maps with the classes along `dim`.

        The output of an activation that gives probabilities, else the softmax or, for one class, the sigmoid.
        """
        if self._gives_probabilities:
            return maps
        if self._clamp is not None:
            return self._clamp(maps)
        binary = maps.shape[dim] == 1 or isinstance(self.info.activation, nn.Sigmoid)
        return maps.sigmoid() if binary else maps.softmax(dim)


def _is_plain(model: Any) -> bool:
    """Whether calls of an smp model and its head run their classes' `forward`, uncompiled and not patched."""
    return isinstance(model, SegmentationModel) and all(
        module._compiled_call_impl is None and not vars(module).keys() & {"forward", "_orig_mod"}
        for module in (model, model.segmentation_head)
    )


def _without_activation(model: Any) -> nn.Module:
    """Copy a model and its head, with Identity for the activation; parts, parameters and hooks are shared."""
    model, head = copy.copy(model), copy.copy(model.segmentation_head)
    head._modules = {**head._modules, list(head._modules)[-1]: nn.Identity()}
    model._modules = {**model._modules, "segmentation_head": head}
    model.training = head.training = False
    return model
