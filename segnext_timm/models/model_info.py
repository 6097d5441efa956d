"""What a segmentation model says of itself: channels, classes, normalization, activation and size divisor."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from segmentation_models_pytorch.base.modules import Activation, ArgMax, Clamp
from segmentation_models_pytorch.encoders import get_preprocessing_params

from ..label_sets import Color, voc_palette

# Per pixel, these keep the order of the logits, and smp's argmax says what is greatest among them
_KNOWN = (nn.Identity, nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.Tanh, Clamp, ArgMax)


HEAD_WEIGHT = "segmentation_head.0.weight"  # of every model of smp


def tensor_digest(x: torch.Tensor) -> str:
    """The first 16 digits of the sha256 of a tensor's bytes."""
    return hashlib.sha256(x.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def _argument(model: nn.Module, name: str, default: Any) -> Any:
    """An argument that a model of smp was made with; the default for other models."""
    config = getattr(model, "config", None)
    return config.get(name, default) if isinstance(config, Mapping) else default


def in_channels(model: nn.Module) -> int:
    """Number of channels of a model's images."""
    return _argument(model, "in_channels", 3)


def num_classes(model: nn.Module) -> int:
    """Number of a model's classes; 150, an upper guess for memory, for models that are not smp's."""
    return _argument(model, "classes", 150)


def size_divisor(model: nn.Module) -> int:
    """What the sides of a model's images must be multiples of, in pixels."""
    return model.encoder.output_stride if getattr(model, "requires_divisible_input_shape", False) else 1


def names_and_palette(model: nn.Module) -> tuple[list[str], list[Color]]:
    """Name and color of each label that a model gives, both of a binary one included."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    classes = num_classes(model)
    names = list(cfg.get("label_names") or (f"class {label}" for label in range(classes)))
    colors = cfg.get("palette") or voc_palette(256)[1 if classes == 1 else 0 :][:classes]
    palette = [tuple(color) for color in colors]
    if classes == 1:  # label 0 is the absence of the class
        return ["background", *names], [(0, 0, 0), *palette]
    return names, palette


# Normalization


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel that a model's images are normalized with.

    Those of `model.pretrained_cfg`, or else those of its encoder, as `smp.encoders.get_preprocessing_params` gives them
    and users of smp train with: of timm's encoders, those of the encoder's own `pretrained_cfg`.

    Returns:
        Both of shape (C,), for RGB values from 0 to 1.

    Raises:
        ValueError: If the model does not say, and its encoder has no known preprocessing. Nothing is guessed.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if cfg.get("mean") and cfg.get("std"):
        return tuple(cfg["mean"]), tuple(cfg["std"])
    reason = "it is not a model of smp"
    encoder = _argument(model, "encoder_name", None)
    encoder_cfg = getattr(getattr(getattr(model, "encoder", None), "model", None), "pretrained_cfg", None) or {}
    if encoder_cfg.get("mean") and encoder_cfg.get("std"):
        return tuple(encoder_cfg["mean"]), tuple(encoder_cfg["std"])
    if encoder is not None:
        weights = _argument(model, "encoder_weights", None)
        try:
            return _encoder_normalization(encoder, weights if isinstance(weights, str) else "imagenet")
        except Exception as error:  # smp downloads some encoders' settings: whatever its client raises
            reason = f"those of its encoder {encoder!r} are unknown ({' '.join(str(error).split())[:200]})"
    raise ValueError(
        f"The model does not say how its images are normalized, and {reason}. Set model.pretrained_cfg = "
        f'{{"mean": [...], "std": [...]}}, of RGB values from 0 to 1, as it was trained.'
    )


@functools.cache
def _encoder_normalization(encoder: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    settings = get_preprocessing_params(encoder, weights)
    largest = settings["input_range"][1]
    mean, std = (tuple(value / largest for value in settings[key]) for key in ("mean", "std"))
    if settings["input_space"] != "RGB":
        raise ValueError(f"it takes {settings['input_space']} images")
    return mean, std


# Output


def output_activation(model: nn.Module) -> nn.Module | None:
    """The activation at the end of a model of smp, Identity for none; None for models that are not smp's."""
    head = getattr(model, "segmentation_head", None)
    last = head[-1] if isinstance(head, nn.Sequential) and len(head) else None
    return last.activation if isinstance(last, Activation) else None


def keeps_order(activation: nn.Module | None) -> bool:
    """Whether the labels of activated logits are those of the logits, pixel by pixel."""
    return isinstance(activation, _KNOWN)


def positive_above(activation: nn.Module | None) -> float:
    """The logit above which a binary model finds its class. A clamped output is a probability already."""
    return 0.5 if isinstance(activation, Clamp) else 0.0


@contextmanager
def raw_logits(model: nn.Module) -> Iterator[None]:
    """Let a model of smp give its logits: what its activation gets, where that keeps their order."""
    head = getattr(model, "segmentation_head", None)
    if not keeps_order(output_activation(model)):
        yield
        return
    hook = head[-1].register_forward_hook(lambda module, inputs, output: inputs[0])
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode, and each back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
