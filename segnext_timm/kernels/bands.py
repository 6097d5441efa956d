"""Argmax and cross-entropy of resized logits, and MLPs, on a CPU: a band of rows at a time, which its caches hold.

Resizing is bilinear with `align_corners=False`, as in `torch.nn.functional.interpolate`.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .. import kernels
from ..models.resizing import candidate_classes, resize, resizing_matrix, source_positions, widen

_BYTES = 1 << 20  # size of the resized maps held at once
_MLP_BYTES = 4 << 20  # size of an MLP's features held at once; measured on cores with 2.5 MB of second-level cache


def _first_pixels(size: int, resized: int) -> list[int]:
    """List the first of the two of `size` pixels that each of `resized` pixels of an axis is interpolated from."""
    return [min(max(((2 * i + 1) * size - resized) // (2 * resized), 0), size - 1) for i in range(resized)]


def _rows_at_once(width: int, classes: int) -> int:
    return max(_BYTES // (4 * width * classes), 1)


def argmax(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """See :func:`upsampling.argmax`; compares only the channels that can be the largest in a band of rows."""
    logits = widen(logits)
    batch, classes, height, _ = logits.shape
    above = [min(row, max(height - 2, 0)) for row in _first_pixels(height, size[0])]
    share = (source_positions(height, size[0], logits) - torch.tensor(above))[:, None, None]
    # one band: the output rows between two neighboring logit rows, or several such bands if they fit in _BYTES
    step = max(_rows_at_once(size[1], classes) * height // size[0], 1)
    tops = range(0, max(height - 1, 1), step)
    ends = [bisect_left(above, top) for top in (*tops[1:], height)]
    labels = torch.empty((batch, *size), dtype=torch.long)
    possible = candidate_classes(logits)
    for i in range(batch):
        start = 0
        for top, end in zip(tops, ends):
            kept = possible[i, :, top : top + step].any(1).nonzero()[:, 0]
            source = logits[i : i + 1, kept, top : top + step + 1].contiguous(memory_format=torch.channels_last)
            wide = resize(source, [source.shape[2], size[1]])
            wide = wide[0].permute(1, 2, 0)  # (rows, width, kept): the argmax reads contiguous memory
            upper, lower = wide[:-1], wide[1:]
            if wide.shape[0] != 2:
                first = torch.tensor(above[start:end]) - top
                upper, lower = wide[first], wide[(first + 1).clamp(max=wide.shape[0] - 1)]
            maps = torch.lerp(upper, lower, share[start:end])
            labels[i, start:end] = kept[maps.max(-1).indices]
            start = end
    return labels


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    smoothing: float,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See :func:`upsampling.cross_entropy`; computes the gradient while the maps of a band are held."""
    logits_nhwc = widen(logits).permute(0, 2, 3, 1)  # (B, h, w, classes)
    batch, height, width, classes = logits_nhwc.shape
    rows = resizing_matrix(height, target.shape[1], logits_nhwc)
    columns = resizing_matrix(width, target.shape[2], logits_nhwc)
    above = _first_pixels(height, target.shape[1])
    smoothing_weight = logits_nhwc.new_full((classes,), smoothing / classes)  # share of each class
    smoothing_weight = smoothing_weight if weight is None else smoothing_weight * weight
    gradient = logits_nhwc.new_empty(logits_nhwc.shape) if needs_gradient else None
    loss = logits_nhwc.new_zeros(())
    step = _rows_at_once(target.shape[2], classes)
    for i in range(batch):
        wide = torch.matmul(columns, logits_nhwc[i])  # (h, W, classes)
        wide_gradient = torch.zeros_like(wide) if needs_gradient else None
        for start in range(0, target.shape[1], step):
            end = min(start + step, target.shape[1])
            band = slice(above[start], above[end - 1] + 2)
            resize = rows[start:end, band]
            maps = torch.mm(resize, wide[band].flatten(1)).view(-1, classes)  # (pixels, classes)
            label = target[i, start:end].reshape(-1, 1)
            counts = label != ignore_index
            label = label.where(counts, 0)
            target_weight = counts.to(maps.dtype) * (1 - smoothing)
            target_weight = target_weight if weight is None else target_weight * weight[label]
            maps = F.log_softmax(maps, 1)
            loss -= (maps.gather(1, label) * target_weight).sum()
            if smoothing:
                loss -= ((maps @ smoothing_weight)[:, None] * counts).sum()
            if wide_gradient is not None:
                maps.exp_().mul_(target_weight + smoothing_weight.sum() * counts).scatter_add_(1, label, -target_weight)
                if smoothing:
                    maps.sub_(smoothing_weight * counts)
                wide_gradient[band].flatten(1).addmm_(resize.T, maps.view(end - start, -1))
        if gradient is not None and wide_gradient is not None:
            torch.matmul(columns.T, wide_gradient, out=gradient[i])
    return loss, gradient


def applies_to_mlp(x: torch.Tensor, mlp: Any) -> bool:
    """Whether :func:`add_mlp` is worth it for features (B, C, H, W) and MSCAN's ConvMlp, which must have no hooks."""
    graphs = torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()
    if not kernels.ENABLED or mlp.training or graphs:
        return False
    in_rows = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    if not in_rows or _hidden_bytes(x, mlp) <= 2 * _MLP_BYTES:
        return False
    return not any(part._forward_hooks or part._forward_pre_hooks for part in mlp.modules())


def _hidden_bytes(x: torch.Tensor, mlp: Any) -> int:
    return x.numel() // x.shape[1] * mlp.fc1.out_channels * x.element_size()


def add_mlp(x: torch.Tensor, mlp: Any) -> torch.Tensor:
    """Compute `x + mlp(x)` of features (B, C, H, W) and MSCAN's ConvMlp in evaluation, some rows at a time."""
    height = x.shape[2]
    rows = max(_MLP_BYTES * height // _hidden_bytes(x, mlp), 1)
    halo = mlp.dwconv.dilation[0]  # its kernel has 3 rows
    out = torch.empty_like(x)
    for top in range(0, height, rows):
        first = max(top - halo, 0)
        hidden = mlp.dwconv(mlp.fc1(x[:, :, first : top + rows + halo]))
        hidden = hidden[:, :, top - first : top - first + rows]
        out[:, :, top : top + rows] = x[:, :, top : top + rows] + mlp.fc2(mlp.act(hidden))
    return out
