"""What a segmentation model says of itself: channels, classes, normalization, activation, digest of its weights."""

import copy
import functools
import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file
from segmentation_models_pytorch.base.modules import Activation, ArgMax
from segmentation_models_pytorch.encoders import get_preprocessing_params

from ..errors import CheckpointError, OptionError
from ..label_sets import Color, name_list, voc_palette

_logger = logging.getLogger(__name__)

# Per pixel, these keep the order of the logits; smp's argmax gives the largest of them
_KEEPING_ORDER = (nn.Identity, nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.Tanh, ArgMax)


def weights_digest(weights: nn.Module | Mapping[str, torch.Tensor] | Path) -> str:
    """Digest the weights of a model, state dict or safetensors file: 16 digits of a sha256, equal on every device.

    Floating point values are rounded to float16, so that a model keeps its digest when it is stored in float16 or
    float64. Counters of batches and smp's classification head are left out, because masks do not depend on them.

    Raises:
        CheckpointError: If the file is damaged.
    """
    if isinstance(weights, Path):
        try:
            weights = load_file(weights)
        except SafetensorError as error:
            raise CheckpointError(f"{weights}: the file is damaged ({error}). Get it again.") from None
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked") or name.startswith("classification_head."):
            continue
        x = tensors[name].detach()
        digest.update(f"{name} {tuple(x.shape)}\n".encode())
        x = x.to(torch.float16) if x.is_floating_point() else x
        digest.update(np.ascontiguousarray(x.cpu().numpy()).data)
    return digest.hexdigest()[:16]


def plain_values(value: Any) -> Any:
    """Convert arrays, tensors and their scalars, also inside containers, to lists and numbers, as JSON keeps them."""
    if isinstance(value, Mapping):
        return {key: plain_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic | torch.Tensor) else value


def update_facts(info: Mapping[str, Any], facts: Mapping[str, Any], weights: nn.Module | Path) -> dict[str, Any]:
    """Merge `facts` into `info`, a `pretrained_cfg`, without results of other weights than `weights`.

    `results` are added to those of other data sets, splits, metrics or settings. `metrics`, numbers by name, are
    results on a data set that is not named. Results get a digest of the weights. Raises an OptionError for facts of
    another form.
    """
    known = plain_values(info)
    stated = {name: value for name, value in plain_values(facts).items() if value is not None}
    digest = known.get("results_digest")
    if digest is not None and digest != weights_digest(weights):
        if "results" in known:
            _logger.warning("pretrained_cfg: left out results of other weights.")
        known = {key: value for key, value in known.items() if key not in ("results", "metrics", "results_digest")}
    try:
        measured = [{"metric": name, "value": value} for name, value in stated.pop("metrics", {}).items()]
        if results := [*(known.get("results") or ()), *stated.pop("results", ()), *measured]:
            if wrong := [r for r in results if not (isinstance(r, Mapping) and {"metric", "value"} <= r.keys())]:
                raise OptionError(f'A result needs a "metric" and a "value", got {wrong[0]!r}.')
            keys = ("dataset", "split", "metric", "setting")
            stated["results"] = list({tuple(map(result.get, keys)): result for result in results}.values())
            stated["results_digest"] = known.get("results_digest") or weights_digest(weights)
        json.dumps(known | stated, allow_nan=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise OptionError(f"pretrained_cfg cannot be written to config.json: {error}") from None
    return known | stated


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules  # torch.compile's OptimizedModule, whose class takes a second to import


def unwrap(model: nn.Module) -> nn.Module:
    """Take a model out of `torch.compile`, DataParallel and DistributedDataParallel, which pass on its arguments."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif _is_compiled(model):
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


class Segmenter:
    """A segmentation model as predictions need it: called by `__call__`, for maps that can be resized and averaged.

    SegNeXt leaves its activation out when it is asked to; the outputs of other models are taken as they are.

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
        leaves_out = info.is_segnext and info.keeps_order and info.resizes_logits
        self.gives_logits = leaves_out or isinstance(info.activation, nn.Identity | None)
        self.gives_small_maps = self.gives_logits and info.is_segnext
        self._options: dict[str, Any] = {"upsampling": 1} if self.gives_small_maps else {}
        self._options |= {"activated": False} if leaves_out else {}
        # log-probabilities are logits; the output of a tanh, from -1 to 1, is taken as one
        self._gives_probabilities = not (self.gives_logits or isinstance(info.activation, nn.LogSoftmax | nn.Tanh))

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
        if scores.shape[dim] > 1:
            return scores.max(dim).indices
        threshold = self.info.threshold if self._gives_probabilities else 0.5 if probabilities else 0.0
        return (scores.select(dim, 0) > threshold).long()

    def probabilities(self, maps: torch.Tensor, dim: int) -> torch.Tensor:
        """Convert maps with the classes along `dim` to probabilities: by softmax or, for one class, by sigmoid."""
        if self._gives_probabilities:
            return maps
        binary = maps.shape[dim] == 1 or isinstance(self.info.activation, nn.Sigmoid)
        return maps.sigmoid() if binary else maps.softmax(dim)


_EVALUATING: Counter[nn.Module] = Counter()  # running blocks that use each module in training mode
_LOCK = threading.Lock()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode, and each back into its own mode when the last block that uses it ends.

    Blocks may overlap, in several threads, with models that share modules. A model in evaluation mode is not changed.
    """
    with _LOCK:
        # a compiled module shares the mode of the module in it
        modules = [m for m in model.modules() if (m.training or m in _EVALUATING) and not _is_compiled(m)]
        _EVALUATING.update(modules)
        for module in modules:
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            _EVALUATING.subtract(modules)
            for module in modules:
                if not _EVALUATING[module]:
                    del _EVALUATING[module]
                    module.training = True
