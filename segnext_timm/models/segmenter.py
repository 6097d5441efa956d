"""How predictions call a segmentation model of smp."""

import inspect
from typing import Any, cast

import torch
import torch.nn as nn
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.base.modules import Clamp

from .model_info import ModelInfo, to_labels, unwrap


class Segmenter:
    """A segmentation model as predictions need it: called by `__call__`, for maps that can be resized and averaged.

    SegNeXt leaves its activation out when it is asked to. Of smp's other models, a copy of the model and its head that
    shares all parts and hooks, but not the activation, is called; hooks of these two modules get the copy. The outputs
    of these models when they are compiled or wrapped, and of activations that smp does not name, are taken as they are.

    Args:
        model: Any model of smp, or another module that maps images (B, C, H, W) to maps (B, classes, h, w), with or
            without a second output.
    """

    def __init__(self, model: nn.Module) -> None:
        self.info = ModelInfo(model)
        self.model = model
        activation = self.info.activation
        self._clamp = activation if isinstance(activation, Clamp) else None
        self.gives_logits = isinstance(activation, nn.Identity | None)
        self._options: dict[str, Any] = {}
        is_segnext = _takes_activated(unwrap(model))
        if is_segnext and self.info.keeps_order and self.info.resizes_logits:
            self.gives_logits, self._options = True, {"activated": False}
        elif not is_segnext and not self.gives_logits and self.info.keeps_order and _is_plain(model):
            self.model, self.gives_logits = _without_activation(cast(SegmentationModel, model)), True
        # log-probabilities are logits; the output of a tanh, from -1 to 1, is taken as one
        self._gives_probabilities = not (self.gives_logits or isinstance(activation, nn.LogSoftmax | nn.Tanh))
        self.gives_small_maps = self.gives_logits and is_segnext  # logits before they are resized
        self._options |= {"upsampling": 1} if self.gives_small_maps else {}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Compute maps (B, classes, h, w), of an eighth of the images' size for SegNeXt's logits.

        Args:
            images: Normalized images (B, C, H, W).

        Raises:
            ValueError: If the model returns something else.
        """
        output = self.model(images, **self._options)
        maps = output[0] if isinstance(output, tuple) else output  # without those of a classification head
        if not isinstance(maps, torch.Tensor):
            raise ValueError(f"The model returned a {type(maps).__name__}, not a tensor (B, classes, H, W).")
        if maps.ndim != 4 or not maps.is_floating_point():
            raise ValueError(
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


def _takes_activated(model: nn.Module) -> bool:
    try:
        return "activated" in inspect.signature(model.forward).parameters
    except ValueError:  # a model of torch.jit
        return False


def _is_plain(model: nn.Module) -> bool:
    """Whether calls of an smp model and its head run their classes' `forward`, uncompiled and not patched."""
    return isinstance(model, SegmentationModel) and all(
        module._compiled_call_impl is None and not vars(module).keys() & {"forward", "_orig_mod"}
        for module in (model, cast(nn.Module, model.segmentation_head))
    )


def _without_activation(model: SegmentationModel) -> nn.Module:
    """Copy a model and its head, with Identity for the activation; parts, parameters and hooks are shared."""

    def copied(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
        new = object.__new__(type(module))
        vars(new).update(vars(module), _modules={**module._modules, name: child}, training=False)
        return new

    head = cast(nn.Module, model.segmentation_head)
    return copied(model, "segmentation_head", copied(head, list(head._modules)[-1], nn.Identity()))
