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

LOG2E = tl.constexpr(1.4426950408889634)  # 1 / log 2: GPUs have an instruction for exp2
_SIZES = ["height", "width", "target_height", "target_width"]  # not specialized: one compilation for all image sizes
_CORNER_BYTES = 512 << 20  # size of the gradients of cells' corners, which take four times as much as logits in float32


@triton.jit
def _first_pixel(cell, cells, size, resized):
    """Find the first pixel of a cell on an axis of `size` logits and `resized` pixels, in integer arithmetic."""
    first = (((2 * cell + 1).to(tl.int64) * resized + size - 1) // (2 * size)).to(tl.int32)
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
    cell = tl.program_id(0)
    column, row, image = cell % columns, (cell // columns) % rows, (cell // columns // rows).to(tl.int64)
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


@triton.jit(do_not_specialize=_SIZES)
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
    """Sum the loss over a cell's pixels, and compute the gradients of its corners.

    With maps m and the target t of a pixel, which label smoothing spreads over the classes, its loss is
    Σt · log Σexp(m) - Σt·m, and its gradient Σt · softmax(m) - t. In a row, m is linear in the pixel's distance from
    the cell's left side, and so is what reaches the corners: a row needs the sums of t and of Σt · softmax(m), each by
    itself and times the distance.
    """
    image, row, column, top, left, down, across = _locate(height, width, target_height, target_width)
    index = tl.arange(0, BLOCK)
    valid = index < classes
    corner00, corner01, corner10, corner11 = _read_corners(logits, image, row, column, height, width, classes, index)
    class_weight = tl.load(weight + index, mask=valid, other=0.0) if WEIGHTED else tl.where(valid, 1.0, 0.0)
    smoothing_weight = class_weight * (smoothing / classes)  # each class's share in every target
    smoothing_sum = tl.sum(smoothing_weight)
    loss = 0.0
    gradient00, gradient01 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    gradient10, gradient11 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for line in range(0, down):
        low = _second_share(top + line, row, height, target_height)
        first = (corner00 + low * (corner10 - corner00)) * LOG2E
        slope = (corner01 + low * (corner11 - corner01)) * LOG2E - first
        start = tl.where(valid, first, float("-inf"))
        labels = target + (image * target_height + top + line) * target_width + left
        targets, softmaxes = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        targets_right, softmaxes_right = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        counted, counted_right = tl.zeros((PIXELS,), tl.float32), tl.zeros((PIXELS,), tl.float32)
        normalizers = tl.zeros((PIXELS,), tl.float32)
        for pixel in range(0, across, PIXELS):
            x = pixel + tl.arange(0, PIXELS)
            label = tl.load(labels + x, mask=x < across, other=0)
            counts = (x < across) & (label != ignore_index)
            known = counts & (label >= 0) & (label < classes)
            label = tl.where(known, label, 0).to(tl.int32)
            label_weight = (tl.load(weight + label) if WEIGHTED else 1.0) * (1 - smoothing)
            label_weight = tl.where(known, label_weight, 0.0)
            target_weight = tl.where(counts, label_weight + smoothing_sum, 0.0)
            right = _second_share(left + x, column, width, target_width)
            maps = start + right[:, None] * slope  # (PIXELS, BLOCK)
            largest = tl.max(maps, 1)
            exponentials = tl.exp2(maps - largest[:, None])
            total = tl.sum(exponentials, 1)
            normalizer = tl.where(known, target_weight * (largest + tl.log2(total)), float("nan"))
            normalizers += tl.where(counts, normalizer, 0.0)
            label_target = tl.where(index == label[:, None], label_weight[:, None], 0.0)
            targets += tl.sum(label_target, 0)
            targets_right += tl.sum(right[:, None] * label_target, 0)
            counted += tl.where(counts, 1.0, 0.0)
            counted_right += tl.where(counts, right, 0.0)
            if NEEDS_GRADIENT:
                scale = target_weight / total
                softmaxes += tl.sum(scale[:, None] * exponentials, 0)
                softmaxes_right += tl.sum((right * scale)[:, None] * exponentials, 0)
        targets += smoothing_weight * tl.sum(counted)
        targets_right += smoothing_weight * tl.sum(counted_right)
        loss += (tl.sum(normalizers) - tl.sum(first * targets + slope * targets_right)) / LOG2E
        if NEEDS_GRADIENT:
            gradient_right = softmaxes_right - targets_right
            gradient_left = softmaxes - targets - gradient_right
            gradient00 += (1 - low) * gradient_left
            gradient01 += (1 - low) * gradient_right
            gradient10 += low * gradient_left
            gradient11 += low * gradient_right
    tl.store(losses + tl.program_id(0), loss)
    if NEEDS_GRADIENT:
        written = corner_gradients + tl.program_id(0).to(tl.int64) * 4 * classes + index
        tl.store(written, gradient00, mask=valid)
        tl.store(written + classes, gradient01, mask=valid)
        tl.store(written + 2 * classes, gradient10, mask=valid)
        tl.store(written + 3 * classes, gradient11, mask=valid)


@triton.jit
def _read_cell(corner_gradients, image, row, column, rows, columns, corner: tl.constexpr, classes, index):
    """Read what a cell adds to the gradient of one of its corners; zeros if there is no such cell."""
    exists = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    cell = (image * rows + row) * columns + column
    return tl.load(corner_gradients + (cell * 4 + corner) * classes + index, mask=(index < classes) & exists, other=0.0)


@triton.jit(do_not_specialize=_SIZES[:2])
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


@triton.jit(do_not_specialize=_SIZES)
def _argmax_kernel(
    logits, labels, height, width, classes, target_height, target_width, BLOCK: tl.constexpr, PIXELS: tl.constexpr
):
    """Find the largest class of each of a cell's pixels; the first one of equals. NaN counts as infinite."""
    image, row, column, top, left, down, across = _locate(height, width, target_height, target_width)
    index = tl.arange(0, BLOCK)
    corner00, corner01, corner10, corner11 = _read_corners(logits, image, row, column, height, width, classes, index)
    for line in range(0, down):
        low = _second_share(top + line, row, height, target_height)
        first = (1 - low) * corner00 + low * corner10
        second = (1 - low) * corner01 + low * corner11
        place = labels + (image * target_height + top + line) * target_width + left
        for pixel in range(0, across, PIXELS):
            x = pixel + tl.arange(0, PIXELS)
            right = _second_share(left + x, column, width, target_width)[:, None]
            maps = (1 - right) * first + right * second  # (PIXELS, BLOCK)
            maps = tl.where(maps == maps, maps, float("inf"))
            maps = tl.where(index < classes, maps, float("-inf"))
            tl.store(place + x, tl.argmax(maps, 1).to(tl.int64), mask=x < across)


def _cells(height: int, width: int) -> int:
    return max(height - 1, 1) * max(width - 1, 1)


def _launch(classes: int) -> dict[str, int]:
    """Choose the block of classes, pixels at once and warps: what fits the registers of a thread, without a stack."""
    block = triton.next_power_of_2(classes)
    return {"BLOCK": block, "PIXELS": 4, "num_warps": max(block // 256, 1)}


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
    cells = _cells(height, width)
    losses = source.new_empty((batch, cells), dtype=torch.float32)
    gradient = losses.new_empty(source.shape) if needs_gradient else None
    step = max(_CORNER_BYTES // (16 * cells * classes), 1)  # images at once
    corners = losses.new_empty((min(step, batch), cells, 4, classes) if needs_gradient else (0,))
    launch = _launch(classes)
    with torch.cuda.device_of(source):
        for start in range(0, batch, step):
            images = slice(start, start + step)
            count = min(step, batch - start)
            _cross_entropy_kernel[(count * cells,)](
                source[images],
                target[images],
                losses if weight is None else weight,
                losses[images],
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
                **launch,
            )
            if gradient is not None:
                grid = (count * height * width,)
                _gather_kernel[grid](corners, gradient[images], height, width, classes, BLOCK=launch["BLOCK"])
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


def launch_all(device: torch.device) -> None:
    """Try all kernels of this module."""
    logits = torch.zeros(1, 2, 2, 2, device=device)
    cross_entropy(logits, argmax(logits, (2, 2)), None, -100, 0.0, needs_gradient=True)
