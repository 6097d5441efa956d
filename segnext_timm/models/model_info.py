"""What a segmentation model says of itself: channels, classes, normalization, activation."""

import copy
import functools
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn as nn
from segmentation_models_pytorch.base.modules import Activation, ArgMax
from segmentation_models_pytorch.encoders import get_preprocessing_params

from ..errors import OptionError
from ..label_sets import VOC_PALETTE, Color, name_list
from .facts import check_facts, plain_values

# Per pixel, these keep the order of the logits; smp's argmax gives the largest of them
_KEEPING_ORDER = (nn.Identity, nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.Tanh, ArgMax)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` made the module."""
    return "_orig_mod" in module._modules  # torch.compile's OptimizedModule, whose class takes a second to import


def unwrap(model: nn.Module) -> nn.Module:
    """Take a model out of `torch.compile`, DataParallel and DistributedDataParallel, which pass on its arguments."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif is_compiled(model):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


class ModelInfo:
    """What a segmentation model states about itself: in its configuration, its `pretrained_cfg`, and its modules.

    Args:
        model: Any model of smp, or another module that maps images (B, C, H, W) to logits of their size. May be
            wrapped: see :func:`unwrap`.
    """

    def __init__(self, model: nn.Module) -> None:
        plain: Any = unwrap(model)
        config, cfg = getattr(plain, "config", None), getattr(plain, "pretrained_cfg", None)
        self._config: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
        self._stated = plain_values(cfg or {})
        self._encoder = getattr(plain, "encoder", None)
        self.in_channels: int = self._config.get("in_channels", 3)  # of images; 3 for models that are not smp's
        divides = getattr(plain, "requires_divisible_input_shape", False)
        self.size_divisor: int = plain.encoder.output_stride if divides else 1  # of the sides of images, in pixels

        head = getattr(plain, "segmentation_head", None)
        convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)] if isinstance(head, nn.Module) else []
        # output channels; 150, an upper guess for memory, for models that are not smp's
        self.num_classes: int = convs[-1].out_channels if convs else self._config.get("classes", 150)
        self.is_segnext: bool = getattr(plain, "takes_activated", False)  # `forward` takes `upsampling` and `activated`
        self.resizes_logits = hasattr(head, "takes_size")  # SegNeXt's own head, which activates what it resized
        head = unwrap(head) if isinstance(head, nn.Module) else None
        last = head[-1] if isinstance(head, nn.Sequential) and len(head) else None
        is_activation = type(last).__module__ == nn.Sigmoid.__module__
        # Identity if an smp model has none; None for other models
        self.activation = last.activation if isinstance(last, Activation) else last if is_activation else None
        self.keeps_order = isinstance(self.activation, _KEEPING_ORDER)  # labels of activated logits are the logits'

    @functools.cached_property
    def _cfg(self) -> dict[str, Any]:
        """The `pretrained_cfg`; an OptionError if an entry has another form: see :func:`check_facts`."""
        check_facts(self._stated, self.num_classes, self.in_channels)
        return self._stated

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model was trained on; 512 each if unknown."""
        _, height, width = self._cfg.get("input_size") or (3, 512, 512)
        return height, width

    @property
    def label_names(self) -> list[str]:
        """Name of each label; a binary model's include "background"."""
        names = self._cfg.get("label_names") or [f"class {label}" for label in range(self.num_classes)]
        return ["background", *name_list(names)] if self.num_classes == 1 else name_list(names)

    @property
    def palette(self) -> list[Color]:
        """Color of each label, black for the background of a binary model."""
        binary = self.num_classes == 1
        colors = self._cfg.get("palette") or VOC_PALETTE[1 if binary else 0 :][: self.num_classes]
        palette = [cast(Color, tuple(color)) for color in colors]
        return [(0, 0, 0), *palette] if binary else palette

    @functools.cached_property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, both (C,), for values from 0 to 1.

        Read from the model's `pretrained_cfg`; else from a timm encoder's own `pretrained_cfg`; else from
        `smp.encoders.get_preprocessing_params`, which smp users train with.

        Raises:
            OptionError: If neither the model nor its encoder states it.
        """
        for cfg in (self._cfg, getattr(getattr(self._encoder, "model", None), "pretrained_cfg", None) or {}):
            if cfg.get("mean") and cfg.get("std"):
                return tuple(cfg["mean"]), tuple(cfg["std"])
        reason, name = "it is not a model of smp", self._config.get("encoder_name")
        if name is not None:
            weights = self._config.get("encoder_weights")
            try:
                return _encoder_normalization(name, weights if isinstance(weights, str) else "imagenet")
            except Exception as error:  # smp downloads some encoders' settings: whatever its client raises
                reason = f"those of its encoder {name!r} are unknown ({' '.join(str(error).split())[:200]})"
        raise OptionError(
            f"The model does not state how its images are normalized, and {reason}. Set model.pretrained_cfg = "
            f'{{"mean": [...], "std": [...]}}, of RGB values from 0 to 1, as it was trained.'
        )

    @property
    def value_range(self) -> tuple[float, float] | tuple[tuple[float, float], ...] | None:
        """Values of an image that become 0 and 1, a pair or one for each band; None if unknown: see `scale_values`."""
        stated = self._cfg.get("range")
        return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in stated) if stated else None

    @property
    def bands(self) -> tuple[int, ...] | None:
        """The bands of a file that the model takes, from 1, in this order: `pretrained_cfg["bands"]`; None for all."""
        return tuple(self._cfg.get("bands") or ()) or None

    @property
    def fit_in(self) -> tuple[int, int] | None:
        """Long and short side in pixels that images are resized to fit; None for images of their own size."""
        long, short = self._cfg.get("fit_in") or (0, 0)
        return (long, short) if long else None

    @functools.cached_property
    def threshold(self) -> float:
        """Output above which a binary model predicts its class.

        The middle of the activation's range, 0.5 for a sigmoid and 0 for a tanh; the output of a logit of 0 if the
        range is not bounded, as without an activation.
        """
        if isinstance(self.activation, nn.Identity | ArgMax | None):
            return 0.0  # also where the model is traced, and no output is known
        activation = copy.deepcopy(self.activation).cpu().float()
        with torch.no_grad():
            low, middle, high = activation(torch.tensor([-1e4, 0.0, 1e4]).view(1, 1, 1, 3)).flatten().tolist()
        return (low + high) / 2 if max(abs(low), abs(high)) < 100 else middle


@functools.cache
def _encoder_normalization(encoder: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    settings = get_preprocessing_params(encoder, weights)
    largest = settings["input_range"][1]
    mean, std = (tuple(value / largest for value in settings[key]) for key in ("mean", "std"))
    if settings["input_space"] != "RGB":
        raise OptionError(f"it takes {settings['input_space']} images")
    return mean, std
