"""Bilinear resizing with `align_corners=False`, as in `torch.nn.functional.interpolate`, and what its kernels need."""

import torch
import torch.nn.functional as F

from ..errors import OptionError


def resize(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Resize maps (B, C, h, w) to (B, C, *size)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def widen(x: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32; wider types stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def source_positions(size: int, resized: int, like: torch.Tensor) -> torch.Tensor:
    """Compute the position, on an axis of `size` pixels, that each of `resized` pixels is interpolated from."""
    centers = torch.arange(resized, dtype=like.dtype, device=like.device) + 0.5
    return (centers * (size / resized) - 0.5).clamp(0, size - 1)


def resizing_matrix(size: int, resized: int, like: torch.Tensor) -> torch.Tensor:
    """Compute the matrix (resized, size) that resizes an axis."""
    pixels = torch.arange(size, dtype=like.dtype, device=like.device)
    return (1 - (source_positions(size, resized, like)[:, None] - pixels).abs()).clamp(min=0)


def candidate_classes(logits: torch.Tensor) -> torch.Tensor:
    """Find classes that can be the largest between two rows of logits (B, classes, h, w): (B, classes, max(h - 1, 1)).

    Every value of a resized map lies between the values of the four pixels around it. A class whose largest of these
    four is below the smallest of another class cannot be the largest.
    """
    kernel = (min(2, logits.shape[2]), min(2, logits.shape[3]))
    most = F.max_pool2d(logits, kernel, stride=1)
    least = -F.max_pool2d(-logits, kernel, stride=1)
    return (~(most < least.amax(1, keepdim=True))).any(3)  # in this form, NaN counts as a candidate


def check_sizes(logits: torch.Tensor, target: torch.Tensor) -> None:
    """Raise an OptionError unless logits (B, classes, h, w) have a fraction of the size of labels (B, H, W).

    A fraction is what dividing both sides by one integer gives, rounded up or down.
    """
    part, full = tuple(logits.shape[-2:]), tuple(target.shape[-2:])
    factors = range(1, max(full) + 1) if min(part) > 0 else ()
    if not any(all(side // f <= p <= -(-side // f) for p, side in zip(part, full)) for f in factors):
        raise OptionError(
            f"Logits of {part} pixels (height, width) are not an integer fraction of labels of {full}. Are these the "
            f"labels of another image?"
        )
