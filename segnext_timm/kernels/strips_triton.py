"""Triton kernels of MSCA's strip convolutions, for CUDA and features in channels_last.

A strip lies along rows or columns, here called lines. One kernel computes three strips of the same features (fan out),
or adds up those of three features (fan in); with flipped weights, each is the other's input gradient. A second kernel
computes the gradients of the parameters. Both compute in float32, add in a fixed order, do not wait for the GPU, and
can be captured in CUDA graphs. With `TRITON_INTERPRET=1` they run on the CPU, for tests.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

_TAPS = tl.constexpr((7, 11, 21))  # of the strips
_ALL_TAPS = tl.constexpr(sum(_TAPS.value))
_PER_CHANNEL = 2 * (_ALL_TAPS.value + 3)  # parameters: weights and biases, out and in
_GROUP = tl.constexpr(8)  # taps of a program that computes gradients of parameters
_GROUPS = tl.constexpr(tuple(taps // _GROUP.value + 1 for taps in _TAPS.value))
_CHANNELS = tl.constexpr(32)  # of a program
_BYTES = tl.constexpr(256)  # of a program's positions in one channel


@triton.jit
def _locate(n, height, width, channels, VERTICAL: tl.constexpr):
    """Find places on the lines of positions `n`, counted along them; their elements; and length and step of a line."""
    lines, extent = (width, height) if VERTICAL else (height, width)
    line, place = n // extent, n % extent
    image, line = (line // lines).to(tl.int64) * height * width, line % lines
    position = image + (place * width + line if VERTICAL else line * width + place)
    return place, position * channels, extent, (width if VERTICAL else 1) * channels


@triton.jit(do_not_specialize=["positions", "height", "width", "dilation"])  # one compilation for all image sizes
def _fan_kernel(
    x, weights, biases, added, y, positions, height, width, channels, dilation, IN: tl.constexpr, BACKWARD: tl.constexpr
):
    """Convolve `x` to three `y`; or, to fan in, three `x` to one `y`, plus `added`."""
    at_once: tl.constexpr = _BYTES // (x.dtype.element_ty.primitive_bitwidth // 8)
    n = tl.program_id(0) * at_once + tl.arange(0, at_once)
    channel = tl.program_id(1) * _CHANNELS + tl.arange(0, _CHANNELS)[None, :]
    place, element, extent, step = _locate(n, height, width, channels, IN != BACKWARD)
    element = element[:, None] + channel
    in_channels = channel < channels
    exists = (n < positions)[:, None] & in_channels
    sums = tl.zeros((at_once, _CHANNELS), tl.float32)
    if IN:
        sums += tl.load(added + element, mask=exists, other=0.0).to(tl.float32)
    for i in tl.static_range(3):
        if not BACKWARD:
            sums += tl.load(biases[i] + channel, mask=in_channels, other=0.0).to(tl.float32)
        for tap in range(_TAPS[i]):  # not unrolled: its loads would all come first, and need too many registers
            shift = (tap - _TAPS[i] // 2) * dilation
            inside = exists & ((place + shift >= 0) & (place + shift < extent))[:, None]
            value = tl.load(x + element + shift * step, mask=inside, other=0.0).to(tl.float32)
            index = channel * _TAPS[i] + (_TAPS[i] - 1 - tap if BACKWARD else tap)
            sums += value * tl.load(weights[i] + index, mask=in_channels, other=0.0).to(tl.float32)
        if IN:
            x += positions.to(tl.int64) * channels
        else:
            tl.store(y + element, sums, mask=exists)
            y += positions.to(tl.int64) * channels
            sums = tl.zeros((at_once, _CHANNELS), tl.float32)
    if IN:
        tl.store(y + element, sums, mask=exists)


@triton.jit(do_not_specialize=["positions", "height", "width", "dilation", "chunk"])
def _correlate_kernel(x, gradient, partial, positions, height, width, channels, dilation, chunk, IN: tl.constexpr):
    """Sum the gradients of some taps of a strip over a chunk of positions; its bias is the tap after the last."""
    group, taps, before, strip = tl.program_id(2), _TAPS[0], 0, 0
    if group >= _GROUPS[0] + _GROUPS[1]:
        group, taps, before, strip = group - _GROUPS[0] - _GROUPS[1], _TAPS[2], _TAPS[0] + _TAPS[1], 2
    elif group >= _GROUPS[0]:
        group, taps, before, strip = group - _GROUPS[0], _TAPS[1], _TAPS[0], 1
    if IN:
        x += strip * positions.to(tl.int64) * channels
    else:
        gradient += strip * positions.to(tl.int64) * channels
    tap = group * _GROUP + tl.arange(0, _GROUP)
    is_bias = (tap == taps)[:, None]
    shift = (tap - taps // 2) * dilation
    channel = tl.program_id(1) * _CHANNELS + tl.arange(0, _CHANNELS)[None, :]
    sums = tl.zeros((_GROUP, 16, _CHANNELS), tl.float32)
    for start in range(0, chunk, 16):
        n = tl.program_id(0) * chunk + start + tl.arange(0, 16)
        place, element, extent, step = _locate(n, height, width, channels, IN)
        element = element[:, None] + channel
        exists = (n < positions)[:, None] & (channel < channels)
        moved = place[None, :] + shift[:, None]
        inside = ((moved >= 0) & (moved < extent) & (tap < taps)[:, None])[:, :, None] & exists[None, :, :]
        moved = element[None, :, :] + (shift * step)[:, None, None]
        value = tl.load(x + moved, mask=inside, other=tl.where(is_bias, 1.0, 0.0)[:, :, None]).to(tl.float32)
        sums += value * tl.load(gradient + element, mask=exists, other=0.0).to(tl.float32)[None, :, :]
    weight = before * channels + channel * taps + tap[:, None]
    index = tl.where(is_bias, (_ALL_TAPS + strip) * channels + channel, weight)
    partial += tl.program_id(0).to(tl.int64) * 2 * (_ALL_TAPS + 3) * channels
    tl.store(partial + index, tl.sum(sums, 1), mask=(tap <= taps)[:, None] & (channel < channels))


def _fan(x: torch.Tensor, weights: Any, biases: Any, added: torch.Tensor | None, dilation: int) -> torch.Tensor:
    """Fan features (B, C, H, W) out to (3, B, H, W, C); or fan these in, and add `added` (B, C, H, W).

    With biases, strips out lie along rows, and strips in along columns; without, in the backward pass, it is reversed.
    """
    batch, channels, height, width = (x if added is None else added).shape
    positions, y = batch * height * width, _new_between(x) if added is None else torch.empty_like(added)
    weights = tuple(weight.contiguous() for weight in weights)
    grid = (triton.cdiv(positions * x.element_size(), _BYTES.value), triton.cdiv(channels, _CHANNELS.value))
    sizes = (positions, height, width, channels, dilation)
    biased, added = tuple(biases or weights), y if added is None else added
    with torch.cuda.device_of(x):
        _fan_kernel[grid](x, weights, biased, added, y, *sizes, added is not y, not biases)
    return y


def _new_between(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((3, *x.permute(0, 2, 3, 1).shape))


# Custom operators, so that torch.compile sees their shapes, and does not trace launches
@torch.library.custom_op("segnext_timm::add_strips", mutates_args=())
def add_strips(
    base: torch.Tensor, parameters: Sequence[torch.Tensor], dilation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add three pairs of strip convolutions to features (B, C, H, W) in channels_last; differentiable once.

    The parameters are three weights (C, 1, 1, k) and three biases (C,) of strips along rows, then three weights
    (C, 1, k, 1) and three biases along columns. Returns the sum, and the features (3, B, H, W, C) between the strips.
    """
    between = _fan(base, parameters[:3], parameters[3:6], None, dilation)
    return _fan(between, parameters[6:9], parameters[9:], base, dilation), between


@torch.library.custom_op("segnext_timm::add_strips_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor,
    base: torch.Tensor,
    between: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    dilation: int,
    needs_parameters: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients of the features and, in float32, of weights and biases out, then in: flat, or (0,)."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    of_between = _fan(gradient, parameters[6:9], [], None, dilation)
    of_base = _fan(of_between, parameters[:3], [], gradient, dilation)
    if not needs_parameters:
        return of_base, of_base.new_empty(0, dtype=torch.float32)
    batch, channels, height, width = base.shape
    positions = batch * height * width
    chunk = max(triton.next_power_of_2(triton.cdiv(positions, 512)), 128)
    partial = base.new_empty((triton.cdiv(positions, chunk), _PER_CHANNEL * channels), dtype=torch.float32)
    grid = (len(partial), triton.cdiv(channels, _CHANNELS.value), sum(_GROUPS.value))
    sizes = (positions, height, width, channels, dilation, chunk)
    with torch.cuda.device_of(base):
        _correlate_kernel[grid](base, of_between, partial, *sizes, False)
        _correlate_kernel[grid](between, gradient, partial[:, _PER_CHANNEL // 2 * channels :], *sizes, True)
    return of_base, partial.sum(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    base, parameters, ctx.dilation = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(base, output[1], *parameters)


def _compute_gradients(ctx: Any, gradient: torch.Tensor, of_between: None) -> tuple[Any, ...]:
    base, between, *parameters = ctx.saved_tensors
    needs_parameters = any(ctx.needs_input_grad[1])
    of_base, flat = _backward(gradient, base, between, parameters, ctx.dilation, needs_parameters)
    if not needs_parameters:
        return of_base, [None] * len(parameters), None
    parts = flat.to(parameters[0].dtype).split([parameter.numel() for parameter in parameters])
    return of_base, [part.view_as(parameter) for part, parameter in zip(parts, parameters)], None


add_strips.register_fake(lambda base, *others: (torch.empty_like(base), _new_between(base)))
_backward.register_fake(
    lambda gradient, base, *others: (
        torch.empty_like(base),
        base.new_empty(_PER_CHANNEL * base.shape[1] if others[-1] else 0, dtype=torch.float32),
    )
)
add_strips.register_autograd(_compute_gradients, setup_context=_save)


def launch_all(device: torch.device) -> None:
    """Try all kernels of this module."""
    x = torch.zeros(1, 32, 1, 1, device=device, dtype=torch.bfloat16)
    parameters = [x.new_zeros(32, 1, 1, taps) for taps in _TAPS.value] + [x.new_zeros(32)] * 3
    total, between = add_strips(x, parameters * 2, 1)
    _backward(total, x, between, parameters * 2, 1, True)
