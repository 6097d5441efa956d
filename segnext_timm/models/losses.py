"""Argmax and cross-entropy of upsampled logits, without full-resolution logits.

A segmenter computes logits at a fraction of the image's size and resizes them. For 150 classes at 1024×2048 pixels, the
resized logits take 1.3 GB in float32, and as much time as a small network. The argmax and the cross-entropy need only a
few rows of them at a time, and the argmax only a few of the classes.

All resizing is bilinear with `align_corners=False`, as in `torch.nn.functional.interpolate`.
"""

import functools
import logging
from bisect import bisect_left
from itertools import pairwise
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

_logger = logging.getLogger(__name__)

_CPU_BYTES = 1 << 20  # of the maps that are held at once: what fits the caches
_GPU_BYTES = 1 << 28  # what keeps a GPU busy
_BANDS = 8  # of rows in an exported graph


def _source(size: int, resized: int, like: torch.Tensor) -> torch.Tensor:
    """Compute the position, on an axis of `size` pixels, that each of `resized` pixels is interpolated from."""
    centers = torch.arange(resized, dtype=like.dtype, device=like.device) + 0.5
    return (centers * (size / resized) - 0.5).clamp(0, size - 1)


def _first_pixels(size: int, resized: int) -> list[int]:
    """List the first of the two of `size` pixels that each of `resized` pixels of an axis is interpolated from."""
    return [min(max(((2 * i + 1) * size - resized) // (2 * resized), 0), size - 1) for i in range(resized)]


def _weights(size: int, resized: int, like: torch.Tensor) -> torch.Tensor:
    """Compute the matrix (resized, size) that resizes an axis."""
    pixels = torch.arange(size, dtype=like.dtype, device=like.device)
    return (1 - (_source(size, resized, like)[:, None] - pixels).abs()).clamp(min=0)


@functools.cache
def _triton_kernels() -> Any:
    """The module of Triton kernels; None if Triton is not installed."""
    try:
        from ..kernels import cells
    except ImportError:
        return None
    return cells


def _kernels(logits: torch.Tensor) -> Any:
    """The module of Triton kernels if they apply to logits and run there; else None."""
    if not logits.is_cuda or logits.dtype == torch.float64:
        return None
    kernels = _triton_kernels()
    if kernels is None or logits.shape[1] > kernels.MAX_CLASSES or not _triton_runs(logits.device):
        return None
    return kernels


@torch.compiler.assume_constant_result  # torch.compile would trace the trial, and put it into its graph
def _triton_runs(device: torch.device) -> bool:
    # nothing can be tried on a pretended GPU, or in the middle of a CUDA graph
    if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
        return True
    return _try_triton(device)


@functools.cache
def _try_triton(device: torch.device) -> bool:
    """Try a kernel. Triton needs compute capability 7 and, at the first launch, a C compiler."""
    if torch.version.cuda and torch.cuda.get_device_capability(device) < (7, 0):
        return False
    try:
        _triton_kernels().argmax(torch.zeros(1, 2, 2, 2, device=device), (2, 2))
    except Exception as error:  # whatever the compilers of Triton and C raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _logger.warning(f"Triton does not run here, so loss and labels take more time and memory: {reason}")
        return False
    return True


def _rows_at_once(width: int, classes: int, device: torch.device) -> int:
    return max((_CPU_BYTES if device.type == "cpu" else _GPU_BYTES) // (4 * width * classes), 1)


def _widen(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _candidate_classes(logits: torch.Tensor) -> torch.Tensor:
    """Classes that can be the largest between two neighboring rows of logits (B, classes, h, w) when resized.

    Every value of a resized map lies between the values of the four pixels around it. A class whose largest of these
    four is below the smallest of another class cannot be the largest.

    Returns:
        True for candidates, of shape (B, classes, h - 1), or (B, classes, 1) if h is 1.
    """
    kernel = (min(2, logits.shape[2]), min(2, logits.shape[3]))
    most = F.max_pool2d(logits, kernel, stride=1)
    least = -F.max_pool2d(-logits, kernel, stride=1)
    return (~(most < least.amax(1, keepdim=True))).any(3)  # in this form, NaN counts as a candidate


@torch.compiler.disable  # a loop over bands of different shapes: torch.compile compiles the model up to here
def resized_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Largest channel of resized maps: `interpolate(logits, size, mode="bilinear").argmax(1)`.

    Computes one band of rows at a time, on a CPU with only the classes that can be the largest in the band; a Triton
    kernel on CUDA computes a cell of pixels between four logits at a time.

    Args:
        logits: Shape (B, classes, h, w).
        size: Height and width of the labels.

    Returns:
        Labels of shape (B, *size), int64. Ties, up to rounding, are broken arbitrarily.
    """
    if torch.compiler.is_compiling():
        return _resized_argmax_graph(_widen(logits).contiguous(), size)
    if kernels := _kernels(logits):
        return kernels.argmax(logits, size)
    if logits.is_cuda:  # without Triton: no shapes that depend on the data, which would wait for the GPU
        bands = -(-size[0] // _rows_at_once(size[1], logits.shape[1] * logits.shape[0], logits.device))
        with torch.autocast(logits.device.type, enabled=False):
            return _resized_argmax_graph(_widen(logits), size, drop_classes=False, bands=bands)
    return _resized_argmax_by_bands(_widen(logits), size)


def _resized_argmax_by_bands(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`resized_argmax` with only the classes that can be the largest in a band of rows."""
    batch, classes, height, _ = logits.shape
    above = [min(row, max(height - 2, 0)) for row in _first_pixels(height, size[0])]
    share = (_source(height, size[0], logits) - torch.tensor(above, device=logits.device))[:, None, None]
    # a band holds the rows interpolated from one pair of rows of the logits, or from more if memory allows
    step = max(_rows_at_once(size[1], classes, logits.device) * height // size[0], 1)
    tops = range(0, max(height - 1, 1), step)
    ends = [bisect_left(above, top) for top in (*tops[1:], height)]
    labels = torch.empty((batch, *size), dtype=torch.long, device=logits.device)
    possible = _candidate_classes(logits)
    for i in range(batch):
        start = 0
        for top, end in zip(tops, ends):
            kept = possible[i, :, top : top + step].any(1).nonzero()[:, 0]
            source = logits[i : i + 1, kept, top : top + step + 1].contiguous(memory_format=torch.channels_last)
            wide = F.interpolate(source, (source.shape[2], size[1]), mode="bilinear", align_corners=False)
            wide = wide[0].permute(1, 2, 0)  # (rows, width, kept): the argmax reads contiguous memory
            upper, lower = wide[:-1], wide[1:]
            if wide.shape[0] != 2:
                first = torch.tensor(above[start:end], device=wide.device) - top
                upper, lower = wide[first], wide[(first + 1).clamp(max=wide.shape[0] - 1)]
            maps = torch.lerp(upper, lower, share[start:end])
            labels[i, start:end] = kept[maps.max(-1).indices]
            start = end
    return labels


def portable_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`resized_argmax` as a graph without data-dependent shapes, for runtimes such as TensorRT.

    Args:
        logits: Shape (B, classes, h, w).
        size: Height and width of the labels.

    Returns:
        Labels of shape (B, *size), int64.
    """
    return _resized_argmax_graph(_widen(logits), size, drop_classes=False)


def _resized_argmax_graph(
    logits: torch.Tensor, size: tuple[int, int], drop_classes: bool = True, bands: int | None = None
) -> torch.Tensor:
    """`resized_argmax` for torch.export and ONNX: no loop over images, and resizing by matrix products.

    Classes are the second to last axis of the maps, so that the argmax of a row reads memory that lies together. A
    graph of dynamic size is not split into bands. With `drop_classes`, each band has only the classes that can be the
    largest in it, which is faster but makes shapes depend on the data.
    """
    classes, height, width = logits.shape[1:]
    columns, rows = _weights(width, size[1], logits), _weights(height, size[0], logits)
    static = all(isinstance(side, int) for side in (height, width, *size))
    bands = (bands or max(min(_BANDS, size[0] // 16), 1)) if static else 1
    edges = [size[0] * i // bands for i in range(bands + 1)]
    labels = []
    for start, end in pairwise(edges):
        source, weights = logits, rows
        if static:
            # rows that the first and the last row of the band are interpolated from, in integer arithmetic
            first = max(((2 * start + 1) * height - size[0]) // (2 * size[0]), 0)
            last = ((2 * end - 1) * height - size[0]) // (2 * size[0]) + 2
            source, weights = logits[:, :, first:last], rows[start:end, first:last]
        kept = None
        if drop_classes:
            kept = _candidate_classes(source).any(2).any(0).nonzero()[:, 0]
            torch._check(kept.shape[0] >= 1)
            torch._check(kept.shape[0] <= classes)
            source = source.index_select(1, kept)
        wide = torch.matmul(source.transpose(1, 2), columns.T)  # (B, rows, classes, width)
        maps = torch.matmul(weights, wide.flatten(2)).unflatten(2, (source.shape[1], size[1]))
        winners = maps.argmax(2)
        labels.append(winners if kept is None else kept.index_select(0, winners.flatten()).reshape(winners.shape))
    return torch.cat(labels, 1)


def _is_integer_fraction(part: torch.Size, full: torch.Size) -> bool:
    """Whether dividing both sides of `full` by one integer, rounded up or down, gives `part`."""
    factors = range(1, max(full) + 1) if min(part) > 0 else ()
    candidates = (f for f in factors if all(side // f <= p <= -(-side // f) for p, side in zip(part, full)))
    return next(candidates, None) is not None


def _check_sizes(logits: torch.Tensor, target: torch.Tensor) -> None:
    if not _is_integer_fraction(logits.shape[-2:], target.shape[-2:]):
        raise ValueError(
            f"Logits of {tuple(logits.shape[-2:])} pixels (height, width) are not an integer fraction of labels of "
            f"{tuple(target.shape[-2:])}. Are these the labels of another image?"
        )


class UpsampledCrossEntropyLoss(nn.Module):
    """Cross-entropy of logits resized to the labels' size, without holding the resized logits.

    Equals `CrossEntropyLoss(...)(interpolate(logits, labels.shape[1:], mode="bilinear"), labels)` and its gradient, in
    a fraction of the time and memory. Use it with `SegNeXt(upsampling=1)`, whose output has an eighth of the image's
    size; logits of the labels' own size work too. The loss is computed one band of rows at a time, or on CUDA by a
    Triton kernel, in float32 even under autocast or after `half()`. It can be differentiated once. torch.compile and
    torch.export take it as one operator, `segnext_timm::upsampled_cross_entropy`.

    Args:
        weight: Weight of each class, shape (classes,); None for equal weights.
        ignore_index: Label of pixels to ignore.
        reduction: "mean" over the pixels not ignored, by weight; "sum"; or "none", which holds the resized logits.
        label_smoothing: Fraction of the target that is distributed evenly over all classes, from 0 to 1.

    Raises:
        ValueError: If `reduction` or `label_smoothing` is out of its range.
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            logits: Shape (B, classes, h, w), at an integer fraction of the labels' size, rounded up or down.
            target: Labels of shape (B, H, W), of any integer type.

        Returns:
            The loss: a scalar, or shape (B, H, W) with `reduction="none"`.

        Raises:
            ValueError: If the shapes do not fit, or the labels are not integers.
        """
        if target.dtype.is_floating_point or target.dtype.is_complex:
            raise ValueError(
                f"Labels must be integers, one class a pixel, got {target.dtype}. Convert class numbers by "
                "`target.long()`, and maps of one probability a class by `target.argmax(1)`."
            )
        if target.ndim != 3 or logits.ndim != 4 or target.shape[0] != logits.shape[0]:
            hint = " Use `target.squeeze(1)`." if target.ndim == 4 and target.shape[1] == 1 else ""
            raise ValueError(
                f"Logits (B, classes, h, w) need labels (B, H, W), got logits {tuple(logits.shape)} and labels "
                f"{tuple(target.shape)}.{hint}"
            )
        if self.weight is not None and self.weight.numel() != logits.shape[1]:
            raise ValueError(f"There are {self.weight.numel()} class weights for logits of {logits.shape[1]} classes.")
        target = target.long()
        # wide also in a criterion cast to half precision, where the sum of the pixels' weights would overflow
        wide = torch.promote_types(logits.dtype, torch.float32)
        weight = None if self.weight is None else self.weight.to(logits.device, wide)
        if self.reduction == "none":
            if not torch.compiler.is_compiling():  # which would compile anew for each size
                _check_sizes(logits, target)
            with torch.autocast(logits.device.type, enabled=False):
                maps = F.interpolate(logits.to(wide), target.shape[-2:], mode="bilinear", align_corners=False)
                return F.cross_entropy(
                    maps,
                    target,
                    weight,
                    ignore_index=self.ignore_index,
                    reduction="none",
                    label_smoothing=self.label_smoothing,
                )
        needs_gradient = logits.requires_grad and torch.is_grad_enabled()
        loss, _ = _cross_entropy(logits, target, weight, self.ignore_index, self.label_smoothing, needs_gradient)
        if self.reduction == "sum":
            return loss
        counts = target != self.ignore_index  # sums, since a boolean index would wait for a GPU
        if weight is None:
            return loss / counts.sum()
        return loss / (weight[target.where(counts, 0)] * counts).sum()

    def extra_repr(self) -> str:
        """Arguments that `repr` shows."""
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"


# A custom operator, so that torch.compile sees its shapes and traces neither the bands nor the trial of Triton
@torch.library.custom_op("segnext_timm::upsampled_cross_entropy", mutates_args=())
def _cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    smoothing: float,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the summed loss, and its gradient (B, h, w, classes) while the maps of a band are held; else (0,)."""
    _check_sizes(logits, target)
    compute = kernels.cross_entropy if (kernels := _kernels(logits)) else _cross_entropy_by_bands
    with torch.autocast(logits.device.type, enabled=False):
        loss, gradient = compute(logits, target, weight, ignore_index, smoothing, needs_gradient)
    return loss, loss.new_empty(0) if gradient is None else gradient


@_cross_entropy.register_fake
def _new_loss_and_gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    smoothing: float,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, classes, height, width = logits.shape
    loss = logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, loss.new_empty((batch, height, width, classes) if needs_gradient else (0,))


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _scale_gradient(
    ctx: Any, grad_loss: torch.Tensor, grad_gradient: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    if grad_gradient is not None:
        raise RuntimeError(
            "UpsampledCrossEntropyLoss can be differentiated once, and this differentiates its gradient. Use "
            "CrossEntropyLoss on resized logits."
        )
    (gradient,) = ctx.saved_tensors
    return (gradient.permute(0, 3, 1, 2) * grad_loss).to(ctx.dtype), None, None, None, None, None


_cross_entropy.register_autograd(_scale_gradient, setup_context=_save_gradient)


def _cross_entropy_by_bands(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    smoothing: float,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the summed loss, and its gradient (B, h, w, classes), one band of rows at a time."""
    logits_nhwc = _widen(logits).permute(0, 2, 3, 1)  # (B, h, w, classes)
    batch, height, width, classes = logits_nhwc.shape
    rows, columns = _weights(height, target.shape[1], logits_nhwc), _weights(width, target.shape[2], logits_nhwc)
    above = _first_pixels(height, target.shape[1])
    smoothing_weight = logits_nhwc.new_full((classes,), smoothing / classes)  # share of each class
    smoothing_weight = smoothing_weight if weight is None else smoothing_weight * weight
    gradient = logits_nhwc.new_empty(logits_nhwc.shape) if needs_gradient else None
    loss = logits_nhwc.new_zeros(())
    step = _rows_at_once(target.shape[2], classes, logits.device)
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
