"""Labels in exported graphs, from small logits."""

from itertools import pairwise

import torch

from ..kernels.bands import candidate_classes, resizing_matrix

_BANDS = 8  # of rows: the maps of one fit the caches, and the graph stays small


def argmax_graph(logits: torch.Tensor, size: tuple[int, int], drop_classes: bool = False) -> torch.Tensor:
    """Compute `interpolate(logits, size, mode="bilinear").argmax(1)` by operators that every runtime has.

    Resizing is two matrix products. Classes are the second to last axis of the maps, so that the argmax of a row reads
    memory that lies together. A graph of dynamic size has one band of rows.

    Args:
        logits: Shape (B, classes, h, w).
        size: Height and width of the labels.
        drop_classes: Compute a band with only the classes that can be the largest in it: faster, for many classes, on
            runtimes with shapes that depend on the data.

    Returns:
        Labels of shape (B, *size), int64.
    """
    # contiguous, or torch.export constrains dynamic sizes
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    classes, height, width = logits.shape[1:]
    columns, rows = resizing_matrix(width, size[1], logits), resizing_matrix(height, size[0], logits)
    static = all(isinstance(side, int) for side in (height, width, *size))
    bands = max(min(_BANDS, size[0] // 16), 1) if static else 1
    labels = []
    for start, end in pairwise([size[0] * i // bands for i in range(bands + 1)]):
        source, weights = logits, rows
        if static:
            # rows that the first and the last row of the band are interpolated from, in integer arithmetic
            first = max(((2 * start + 1) * height - size[0]) // (2 * size[0]), 0)
            last = ((2 * end - 1) * height - size[0]) // (2 * size[0]) + 2
            source, weights = logits[:, :, first:last], rows[start:end, first:last]
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
