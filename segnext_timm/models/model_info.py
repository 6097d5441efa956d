"""What a segmentation model says of itself: channels, classes, normalization, activation."""

import copy
import functools
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
import torch.nn as nn
from segmentation_models_pytorch.base.modules import Activation, ArgMax
from segmentation_models_pytorch.encoders import get_preprocessing_params

from ..errors import OptionError
from ..label_sets import Color, name_list, voc_palette
from .facts import plain_values

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

    Attributes:
        in_channels: Number of image channels; 3 for models that are not smp's.
        num_classes: Number of output channels; 150, an upper guess for memory, for models that are not smp's.
        input_size: Height and width in pixels of the images that the model was trained on; 512 each if unknown.
        size_divisor: Number of pixels that the sides of the images must be multiples of.
        activation: Final activation of an smp model, Identity if it has none; None for other models.
        keeps_order: Whether the labels of activated logits are those of the logits, pixel by pixel.
        is_segnext: Whether the model is SegNeXt, whose `forward` takes `upsampling` and `activated`.
        resizes_logits: Whether SegNeXt's own head applies the activation, after it resized the logits.
    """

    def __init__(self, model: nn.Module) -> None:
        plain: Any = unwrap(model)
        config, cfg = getattr(plain, "config", None), getattr(plain, "pretrained_cfg", None)
        self._config: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
        self._cfg: dict[str, Any] = plain_values(cfg) if isinstance(cfg, Mapping) else {}
        self._encoder = getattr(plain, "encoder", None)
        self.in_channels: int = self._config.get("in_channels", 3)
        height, width = (self._cfg.get("input_size") or (3, 512, 512))[1:]
        self.input_size: tuple[int, int] = (height, width)
        divides = getattr(plain, "requires_divisible_input_shape", False)
        self.size_divisor: int = plain.encoder.output_stride if divides else 1

        head = getattr(plain, "segmentation_head", None)
        convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)] if isinstance(head, nn.Module) else []
        self.num_classes: int = convs[-1].out_channels if convs else self._config.get("classes", 150)
        self.is_segnext: bool = getattr(plain, "takes_activated", False)
        self.resizes_logits = hasattr(head, "takes_size")
        head = unwrap(head) if isinstance(head, nn.Module) else None
        last = head[-1] if isinstance(head, nn.Sequential) and len(head) else None
        is_activation = type(last).__module__ == nn.Sigmoid.__module__
        self.activation = last.activation if isinstance(last, Activation) else last if is_activation else None
        self.keeps_order = isinstance(self.activation, _KEEPING_ORDER)

    @property
    def label_names(self) -> list[str]:
        """Name of each label; a binary model's include "background"."""
        names = self._cfg.get("label_names") or [f"class {label}" for label in range(self.num_classes)]
        return ["background", *name_list(names)] if self.num_classes == 1 else name_list(names)

    @property
    def palette(self) -> list[Color]:
        """Color of each label, black for the background of a binary model."""
        binary = self.num_classes == 1
        colors = self._cfg.get("palette") or voc_palette(256)[1 if binary else 0 :][: self.num_classes]
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

    @functools.cached_property
    def value_range(self) -> tuple[float, float] | tuple[tuple[float, float], ...] | None:
        """The values of an image that become 0 and 1: a pair (low, high) for all bands, or one for each.

        `pretrained_cfg["range"]`, in the units of the model's files; None if it is not stated: see `scale_values`.

        Raises:
            OptionError: If it is something else.
        """
        stated = self._cfg.get("range")
        if stated is None:
            return None
        try:
            pairs = np.array(stated, np.float64)
            valid = pairs.shape in ((2,), (self.in_channels, 2)) and np.isfinite(pairs).all()
            if valid and (pairs[..., 0] < pairs[..., 1]).all():
                return tuple(pairs.tolist()) if pairs.ndim == 1 else tuple(map(tuple, pairs.tolist()))
        except (TypeError, ValueError):
            pass
        raise OptionError(
            f'pretrained_cfg["range"] is [low, high], or such a pair for each of the {self.in_channels} bands, got '
            f"{stated!r}."
        )

    @functools.cached_property
    def bands(self) -> tuple[int, ...] | None:
        """The bands of a file that the model takes, from 1, in this order: `pretrained_cfg["bands"]`; None for all.

        Raises:
            OptionError: If they are something else, or not as many as the model's channels (or one, for three).
        """
        stated = self._cfg.get("bands")
        if stated is None:
            return None
        valid = isinstance(stated, list) and all(type(band) is int and band > 0 for band in stated)
        if not valid or (len(stated) != self.in_channels and (len(stated), self.in_channels) != (1, 3)):
            raise OptionError(
                f'pretrained_cfg["bands"] names the {self.in_channels} bands of a file that the model takes, from 1, '
                f"such as {[*range(1, self.in_channels + 1)]}, got {stated!r}."
            )
        return tuple(stated)

    @functools.cached_property
    def fit_in(self) -> tuple[int, int] | None:
        """The long and the short side in pixels that images are resized to fit, as when the model was evaluated.

        `pretrained_cfg["fit_in"]`; None for images of their own size, and if it is not stated.

        Raises:
            OptionError: If it is something else.
        """
        stated = self._cfg.get("fit_in")
        if stated is None:
            return None
        if isinstance(stated, list) and [type(side) for side in stated] == [int, int] and min(stated) > 0:
            return stated[0], stated[1]
        raise OptionError(
            f'pretrained_cfg["fit_in"] is the long and the short side in pixels, such as [2048, 512], or None, for '
            f"images of their own size, got {stated!r}."
        )

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
