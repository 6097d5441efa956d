"""Graphs that output labels."""

from itertools import pairwise

import torch
import torch.nn as nn

from ..models.resizing import candidate_classes, resize, resizing_matrix, widen
from ..models.segmenter import Segmenter

_BANDS = 8  # bands of rows: the maps of one fit the caches, and the graph stays small


class LabelGraph(nn.Module):
    """Wraps a segmentation model for tracing; portable graphs have only operators with static shapes."""

    def __init__(self, model: nn.Module, portable: bool = False) -> None:
        super().__init__()
        self.segmenter = Segmenter(model)
        self.model = self.segmenter.model  # registers its parameters
        # the info keeps it, since tracing cannot compute it
        self.threshold = 0.0 if self.segmenter.gives_logits else self.segmenter.info.threshold
        self.portable = portable

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to labels (B, H, W), int64."""
        maps = self.segmenter(images)
        size = (images.shape[-2], images.shape[-1])
        if self.segmenter.gives_small_maps and maps.shape[1] > 1:
            return argmax_graph(maps, size, drop_classes=not self.portable)
        if maps.shape[-2:] != size:
            maps = resize(maps, list(size))
        return self.segmenter.labels(maps, 1)

    def shortfall(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Compute by how much scores of labels fall short of the best scores, relative to the largest."""
        scores = resize(self.segmenter(images), [images.shape[-2], images.shape[-1]])
        if scores.shape[1] == 1:
            scores = torch.cat([torch.full_like(scores, self.threshold), scores], 1)
        short = scores.amax(1) - scores.gather(1, labels[:, None])[:, 0]
        return (short.max() / scores.abs().max()).item()


def argmax_graph(logits: torch.Tensor, size: tuple[int, int], drop_classes: bool = False) -> torch.Tensor:
    """Compute `interpolate(logits, size, mode="bilinear").argmax(1)` by operators that every runtime has.

    Resizing is two matrix products. Classes are the second to last axis of the maps, so that the argmax of a row reads
    memory that lies together. A graph of dynamic size has one band of rows. With `drop_classes`, a band has only the
    classes that can be the largest in it, and shapes that depend on the data: for T with 150 classes at 512×512, a
    fifth less time in ONNX Runtime.
    """
    # contiguous, or torch.export constrains dynamic sizes
    logits = widen(logits).contiguous()
    classes, height, width = logits.shape[1:]
    columns, rows = resizing_matrix(width, size[1], logits), resizing_matrix(height, size[0], logits)
    static = all(isinstance(side, int) for side in (height, width, *size))
    bands = max(min(_BANDS, size[0] // 16), 1) if static else 1
    labels = []
    for start, end in pairwise([size[0] * i // bands for i in range(bands + 1)]):
        source, weights = logits, rows
        if static:
            # the rows of the logits that the band covers, and one on each side
            part = slice(max(start * height // size[0] - 1, 0), -(-end * height // size[0]) + 1)
            source, weights = logits[:, :, part], rows[start:end, part]
        kept = None
        if drop_classes:
            kept = candidate_classes(source).any(2).any(0).nonzero()[:, 0]
            torch._check(kept.shape[0] >= 1)
            torch._check(kept.shape[0] <= classes)
            source = source.index_select(1, kept)
        wide = torch.matmul(source.transpose(1, 2), columns.T)  # (B, rows, classes, width)
        maps = torch.matmul(weights, wide.flatten(2)).unflatten(2, (source.shape[1], size[1]))
        winners = maps.argmax(2)
        labels.append(winners if kept is None else kept.index_select(0, winners.flatten()).reshape(winners.shape))
    return torch.cat(labels, 1)
