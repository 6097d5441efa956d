"""Triton kernels of the argmax and the cross-entropy of upsampled logits, for CUDA.

Bilinear resizing divides an image into cells, each between four neighboring logits. One program handles one cell: it
reads the logits at its four corners once and computes all of the cell's pixels from them, so that full-size logits are
never written. The gradient of a cell flows to its corners; a second kernel adds the gradients of the up to four cells
around each logit in a fixed order, so that the results are deterministic.

The kernels compute in float32. They do not wait for the GPU, do not depend on the data's values, and can be captured in
CUDA graphs. With `TRITON_INTERPRET=1` they run on the CPU, for tests.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl


@triton.jit
def _first_pixel(cell, cells, size, resized):
    """Find the first pixel of a cell on an axis of `size` logits and `resized` pixels, in integer arithmetic."""
    first = ((2 * cell + 1) * resized + size - 1) // (2 * size)
    return tl.where(cell <= 0, 0, tl.where(cell >= cells, resized, first))


@triton.jit
def _second_share(pixel, cell, size, resized):
    """Compute the weight of a cell's second corner on an axis: the distance from its first corner, from 0 to 1."""
    source = (pixel.to(tl.float32) + 0.5) * (size / resized) - 0.5
    return tl.minimum(tl.maximum(source, 0.0), size - 1.0) - cell.to(tl.float32)


@triton.jit
def _locate(height, width, target_height, target_width):
    """Find this program's cell: image, row, column, its first pixel's row and column, and its height and width."""
    rows, columns = tl.maximum(height - 1, 1), tl.maximum(width - 1, 1)
    cell = tl.program_id(0).to(tl.int64)
    column, row, image = cell % columns, (cell // columns) % rows, cell // (columns * rows)
    top, left = _first_pixel(row, rows, height, target_height), _first_pixel(column, columns, width, target_width)
    down = _first_pixel(row + 1, rows, height, target_height) - top
    across = _first_pixel(column + 1, columns, width, target_width) - left
    return image, row, column, top, left, down, across


@triton.jit
def _read_corners(logits, image, row, column, height, width, classes, index):
    """Read the logits at the four corners of a cell; 0 after the last class."""
    valid = index < classes
    top = (image * height + row) * width
    bottom = (image * height + tl.minimum(row + 1, height - 1)) * width
    right = tl.minimum(column + 1, width - 1)
    corner00 = tl.load(logits + (top + column) * classes + index, mask=valid, other=0.0).to(tl.float32)
    corner01 = tl.load(logits + (top + right) * classes + index, mask=valid, other=0.0).to(tl.float32)
    corner10 = tl.load(logits + (bottom + column) * classes + index, mask=valid, other=0.0).to(tl.float32)
    corner11 = tl.load(logits + (bottom + right) * classes + index, mask=valid, other=0.0).to(tl.float32)
    return corner00, corner01, corner10, corner11


@triton.jit
def _shares(y, x, row, column, height, width, target_height, target_width):
    """Compute the weights of a cell's corners in its pixels, each of shape (pixels, 1)."""
    low = _second_share(y, row, height, target_height)[:, None]
    right = _second_share(x, column, width, target_width)[:, None]
    return (1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right


@triton.jit
def _write_corners(corner_gradients, gradient00, gradient01, gradient10, gradient11, classes, index):
    """Write the gradients of this program's cell."""
    written = corner_gradients + tl.program_id(0).to(tl.int64) * 4 * classes + index
    tl.store(written, gradient00, mask=index < classes)
    tl.store(written + classes, gradient01, mask=index < classes)
    tl.store(written + 2 * classes, gradient10, mask=index < classes)
    tl.store(written + 3 * classes, gradient11, mask=index < classes)


@triton.jit
def _cross_entropy_kernel(
    logits,
    target,
    weight,
    losses,
    corner_gradients,
    height,
    width,
    classes,
    target_height,
    target_width,
    ignore_index,
    smoothing,
    WEIGHTED: tl.constexpr,
    NEEDS_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Sum the loss over a cell's pixels, and compute the gradients of its corners."""
    image, row, column, top, left, down, across = _locate(height, width, target_height, target_width)
    index = tl.arange(0, BLOCK)
    valid = index < classes
    corner00, corner01, corner10, corner11 = _read_corners(logits, image, row, column, height, width, classes, index)
    class_weight = tl.load(weight + index, mask=valid, other=0.0) if WEIGHTED else tl.where(valid, 1.0, 0.0)
    smoothing_weight = class_weight * (smoothing / classes)  # each class's share in every target
    smoothing_sum = tl.sum(smoothing_weight)
    loss = tl.zeros((PIXELS,), tl.float32)
    gradient00, gradient01 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    gradient10, gradient11 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, down * across, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        y, x = top + pixel // across, left + pixel % across
        place = (image * target_height + y) * target_width + x
        label = tl.load(target + place, mask=pixel < down * across, other=ignore_index)
        counts = (pixel < down * across) & (label != ignore_index)
        share00, share01, share10, share11 = _shares(y, x, row, column, height, width, target_height, target_width)
        maps = share00 * corner00 + share01 * corner01 + share10 * corner10 + share11 * corner11  # (PIXELS, BLOCK)
        smoothed = tl.sum(smoothing_weight * maps, 1)
        maps = tl.where(valid, maps, float("-inf"))
        largest = tl.max(maps, 1)
        exponentials = tl.exp(maps - largest[:, None])
        total = tl.sum(exponentials, 1)
        normalizer = largest + tl.log(total)
        is_label = (index == label[:, None]) & counts[:, None]
        target_weight = tl.sum(tl.where(is_label, class_weight, 0.0), 1) * (1 - smoothing)
        pixel_loss = target_weight * (normalizer - tl.sum(tl.where(is_label, maps, 0.0), 1))
        pixel_loss += tl.where(smoothing > 0, smoothing_sum * normalizer - smoothed, 0.0)
        no_class = (label < 0) | (label >= classes)
        loss += tl.where(counts, tl.where(no_class, float("nan"), pixel_loss), 0.0)
        if NEEDS_GRADIENT:
            gradient = exponentials * ((target_weight + smoothing_sum) / total)[:, None]
            gradient -= tl.where(is_label, target_weight[:, None], 0.0) + smoothing_weight
            gradient = tl.where(counts[:, None], gradient, 0.0)
            gradient00 += tl.sum(share00 * gradient, 0)
            gradient01 += tl.sum(share01 * gradient, 0)
            gradient10 += tl.sum(share10 * gradient, 0)
            gradient11 += tl.sum(share11 * gradient, 0)
    tl.store(losses + tl.program_id(0), tl.sum(loss))
    if NEEDS_GRADIENT:
        _write_corners(corner_gradients, gradient00, gradient01, gradient10, gradient11, classes, index)


@triton.jit
def _read_cell(corner_gradients, image, row, column, rows, columns, corner: tl.constexpr, classes, index):
    """Read what a cell adds to the gradient of one of its corners; zeros if there is no such cell."""
    exists = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    cell = (image * rows + row) * columns + column
    return tl.load(corner_gradients + (cell * 4 + corner) * classes + index, mask=(index < classes) & exists, other=0.0)


@triton.jit
def _gather_kernel(corner_gradients, gradient, height, width, classes, BLOCK: tl.constexpr):
    """Add the gradients of the cells around a logit."""
    rows, columns = tl.maximum(height - 1, 1), tl.maximum(width - 1, 1)
    place = tl.program_id(0).to(tl.int64)
    column, row, image = place % width, (place // width) % height, place // (width * height)
    index = tl.arange(0, BLOCK)
    total = _read_cell(corner_gradients, image, row, column, rows, columns, 0, classes, index)
    total += _read_cell(corner_gradients, image, row, column - 1, rows, columns, 1, classes, index)
    total += _read_cell(corner_gradients, image, row - 1, column, rows, columns, 2, classes, index)
    total += _read_cell(corner_gradients, image, row - 1, column - 1, rows, columns, 3, classes, index)
    tl.store(gradient + place * classes + index, total, mask=index < classes)


@triton.jit
def _argmax_kernel(
    logits, labels, height, width, classes, target_height, target_width, BLOCK: tl.constexpr, PIXELS: tl.constexpr
):
    """Find the largest class of each of a cell's pixels; the first one of equals. NaN counts as infinite."""
    image, row, column, top, left, down, across = _locate(height, width, target_height, target_width)
    index = tl.arange(0, BLOCK)
    corner00, corner01, corner10, corner11 = _read_corners(logits, image, row, column, height, width, classes, index)
    for start in range(0, down * across, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        y, x = top + pixel // across, left + pixel % across
        share00, share01, share10, share11 = _shares(y, x, row, column, height, width, target_height, target_width)
        maps = share00 * corner00 + share01 * corner01 + share10 * corner10 + share11 * corner11
        maps = tl.where(maps == maps, maps, float("inf"))
        maps = tl.where(index < classes, maps, float("-inf"))
        place = (image * target_height + y) * target_width + x
        tl.store(labels + place, tl.argmax(maps, 1).to(tl.int64), mask=pixel < down * across)


def _cells(height: int, width: int) -> int:
    return max(height - 1, 1) * max(width - 1, 1)


def _launch(classes: int) -> dict[str, int]:
    """Choose the block of classes, pixels at once and warps: what fits the registers of compute capability 8 and 9."""
    block = triton.next_power_of_2(classes)
    return {"BLOCK": block, "PIXELS": max(min(2048 // block, 16), 1), "num_warps": 4 if block <= 256 else 8}


def _nhwc(logits: torch.Tensor) -> torch.Tensor:
    """Logits (B, h, w, classes), contiguous: a view if they are in channels_last."""
    return logits.permute(0, 2, 3, 1).contiguous()


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    smoothing: float,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See :func:`upsampling.cross_entropy`; up to 1024 classes. Labels beyond the classes make the loss NaN."""
    source, target = _nhwc(logits), target.contiguous()
    weight = None if weight is None else weight.to(source.device, torch.float32).contiguous()
    batch, height, width, classes = source.shape
    cells = batch * _cells(height, width)
    losses = source.new_empty(cells, dtype=torch.float32)
    corners = source.new_empty((cells, 4, classes) if needs_gradient else (0,), dtype=torch.float32)
    with torch.cuda.device_of(source):
        _cross_entropy_kernel[(cells,)](
            source,
            target,
            losses if weight is None else weight,
            losses,
            corners,
            height,
            width,
            classes,
            target.shape[1],
            target.shape[2],
            ignore_index,
            smoothing,
            WEIGHTED=weight is not None,
            NEEDS_GRADIENT=needs_gradient,
            **_launch(classes),
        )
        if not needs_gradient:
            return losses.sum(), None
        gradient = corners.new_empty(source.shape)
        block = triton.next_power_of_2(classes)
        _gather_kernel[(batch * height * width,)](corners, gradient, height, width, classes, BLOCK=block)
    return losses.sum(), gradient


def argmax(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """See :func:`upsampling.argmax`; up to 1024 classes."""
    source = _nhwc(logits)
    batch, height, width, classes = source.shape
    labels = source.new_empty((batch, *size), dtype=torch.long)
    grid = (batch * _cells(height, width),)
    with torch.cuda.device_of(source):
        _argmax_kernel[grid](source, labels, height, width, classes, *size, **_launch(classes))
    return labels
