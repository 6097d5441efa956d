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


# Custom operators, so that torch.compile sees their shapes, and does not trace launches
@torch.library.custom_op("segnext_timm::fan_strips", mutates_args=())
def fan(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    added: torch.Tensor | None,
    dilation: int,
) -> torch.Tensor:
    """Fan features (B, C, H, W) out to (3, B, H, W, C); or fan these in, and add `added` (B, C, H, W).

    With biases, strips out lie along rows, and strips in along columns; without, in the backward pass, it is reversed.
    """
    batch, channels, height, width = (x if added is None else added).shape
    positions, y = batch * height * width, _new_features(x, weights, biases, added, dilation)
    weights = tuple(weight.contiguous() for weight in weights)
    grid = (triton.cdiv(positions * x.element_size(), _BYTES.value), triton.cdiv(channels, _CHANNELS.value))
    sizes = (positions, height, width, channels, dilation)
    with torch.cuda.device_of(x):
        _fan_kernel[grid](
            x,
            weights,
            tuple(biases or weights),
            y if added is None else added,
            y,
            *sizes,
            added is not None,
            not biases,
        )
    return y


@fan.register_fake
def _new_features(
    x: torch.Tensor, weights: Any, biases: Any, added: torch.Tensor | None, dilation: int
) -> torch.Tensor:
    return x.new_empty((3, *x.permute(0, 2, 3, 1).shape)) if added is None else torch.empty_like(added)


@torch.library.custom_op("segnext_timm::correlate_strips", mutates_args=())
def correlate(
    x: torch.Tensor, between: torch.Tensor, gradient: torch.Tensor, of_between: torch.Tensor, dilation: int
) -> torch.Tensor:
    """Compute gradients (float32, flat) of weights and biases out, then in, from both fans' inputs and gradients."""
    batch, channels, height, width = x.shape
    positions = batch * height * width
    chunk = max(triton.next_power_of_2(triton.cdiv(positions, 512)), 128)
    partial = x.new_empty((triton.cdiv(positions, chunk), *_new_gradients(x).shape), dtype=torch.float32)
    grid = (len(partial), triton.cdiv(channels, _CHANNELS.value), sum(_GROUPS.value))
    sizes = (positions, height, width, channels, dilation, chunk)
    with torch.cuda.device_of(x):
        _correlate_kernel[grid](x, of_between, partial, *sizes, False)
        _correlate_kernel[grid](between, gradient, partial[:, partial.shape[1] // 2 :], *sizes, True)
    return partial.sum(0)


@correlate.register_fake
def _new_gradients(x: torch.Tensor, *others: Any) -> torch.Tensor:
    return x.new_empty(2 * (_ALL_TAPS.value + 3) * x.shape[1], dtype=torch.float32)


class Strips(torch.autograd.Function):
    """Add three pairs of strip convolutions to features (B, C, H, W) in channels_last; differentiable once.

    The parameters are three weights (C, 1, 1, k) and three biases (C,) of strips along rows, then three weights
    (C, 1, k, 1) and three biases along columns.
    """

    @staticmethod
    def forward(ctx: Any, base: torch.Tensor, dilation: int, *parameters: torch.Tensor) -> torch.Tensor:
        """Compute the sum."""
        between = fan(base, parameters[:3], parameters[3:6], None, dilation)
        ctx.save_for_backward(base, between, *parameters)
        ctx.dilation = dilation
        return fan(between, parameters[6:9], parameters[9:], base, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of features and parameters."""
        base, between, *parameters = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_between = fan(gradient, parameters[6:9], [], None, ctx.dilation)
        of_base = fan(of_between, parameters[:3], [], gradient, ctx.dilation)
        if not any(ctx.needs_input_grad[2:]):
            return of_base, None, *(None for _ in parameters)
        flat = correlate(base, between, gradient, of_between, ctx.dilation).to(parameters[0].dtype)
        parts = flat.split([parameter.numel() for parameter in parameters])
        return of_base, None, *(part.view_as(parameter) for part, parameter in zip(parts, parameters))


def launch_all(device: torch.device) -> None:
    """Try all kernels of this module."""
    x = torch.zeros(1, 32, 1, 1, device=device, dtype=torch.bfloat16)
    weights = [x.new_zeros(32, 1, 1, taps) for taps in _TAPS.value]
    between = fan(x, weights, [x] * 3, None, 1)
    fan(between, weights, [], x, 1)
    correlate(x, between, x, between, 1)
