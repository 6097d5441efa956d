"""How predictions call a segmentation model: for maps that can be resized and averaged, in evaluation mode."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn as nn

from ..errors import OptionError
from .model_info import ModelInfo, is_compiled


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
    lock = nullcontext() if torch.compiler.is_compiling() else _LOCK  # torch.compile traces no locks
    with lock:
        # a compiled module shares the mode of the module in it
        modules = [m for m in model.modules() if (m.training or m in _EVALUATING) and not is_compiled(m)]
        _EVALUATING.update(modules)
        for module in modules:
            module.training = False
    try:
        yield
    finally:
        with lock:
            _EVALUATING.subtract(modules)
            for module in modules:
                if not _EVALUATING[module]:
                    del _EVALUATING[module]
                    module.training = True
