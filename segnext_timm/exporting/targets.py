"""Forms of the graph that one tool reads: Deepness, a plugin of QGIS, whose files GeoDeep reads too."""

from typing import Any

import numpy as np
import torch
import torch.nn as nn

from ..errors import OptionError
from ..models.model_info import ModelInfo
from ..models.resizing import resize
from ..models.segmenter import Segmenter


class DeepnessGraph(nn.Module):
    """Wraps a segmentation model for tracing; raises an OptionError if its images are not bytes."""

    normalization: torch.Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.segmenter = Segmenter(model)
        self.model = model  # registers its parameters
        values = self.segmenter.info.value_range or (0, 255)
        if not np.all(np.reshape(values, (-1, 2)) == (0, 255)):
            raise OptionError(f"Deepness divides bytes by 255, but the model takes values from {values} as 0 to 1.")
        self.register_buffer("normalization", torch.tensor(self.segmenter.info.normalization)[..., None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) of values from 0 to 1 to probabilities (B, classes, H, W) of at least two classes."""
        mean, std = self.normalization
        maps = self.segmenter((images - mean) / std)
        shares = self.segmenter.probabilities(resize(maps, list(images.shape[-2:])), 1)
        return shares if shares.shape[1] > 1 else torch.cat([1 - shares, shares], 1)


def deepness_metadata(info: ModelInfo, input_size: tuple[int, int, int, int], resolution: float) -> dict[str, Any]:
    """Describe a DeepnessGraph in JSON; `mean` and `std` are those of its input, which it normalizes itself."""
    _, channels, side, _ = input_size
    return {
        "model_type": '"Segmentor"',
        "class_names": dict(enumerate(info.label_names)),
        "resolution": resolution,
        "tiles_size": side,  # as Deepness documents it
        "tile_size": side,  # as its code reads it
        "tiles_overlap": 25,  # percent, as windows of predict overlap
        "seg_thresh": 0,  # smaller probabilities become 0, and the largest is taken then
        "seg_small_segment": 0,
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
    }
