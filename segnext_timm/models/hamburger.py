"""Hamburger: global context by matrix decomposition.

Paper: `Is Attention Better Than Matrix Decomposition?` - https://arxiv.org/abs/2109.04553 (ICLR 2021)
Original code: https://github.com/Gsunshine/Enjoy-Hamburger

The feature map is treated as a matrix of D channels by N positions and replaced by a low-rank approximation, which
keeps what many positions share and drops what is specific to one. SegNeXt (https://arxiv.org/abs/2209.08575, section
3.2) uses non-negative matrix factorization.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..errors import OptionError


class NMF2d(nn.Module):
    """Low-rank approximation of feature maps by non-negative matrix factorization (NMF).

    Each map, a matrix X of D channels by N = H·W positions, is factorized into R bases, B (D, R), and their
    coefficients, C (N, R), by multiplicative updates (the "NMF ham" of the Hamburger paper, after Lee and Seung), and
    replaced by B Cᵀ. The module has no parameters.

    Training draws new initial bases for each map at every step. Evaluation starts from the buffer `bases` (1, D, R),
    which is drawn once from a fixed seed and saved with the weights, and is therefore deterministic; the original code
    draws new bases at every call.

    The factorization runs in float32 (float64 for float64 inputs), also under autocast: it divides small numbers by
    small numbers, which overflows in half precision. On CUDA, its matrix products are in TF32 if the process allows it
    by `torch.backends.cuda.matmul.allow_tf32`, which torch leaves off.

    Args:
        channels: Number of channels D.
        rank: Number of bases R.
        train_steps: Number of updates in training.
        eval_steps: Number of updates in evaluation.
        one_step_gradient: Back-propagate through the last update of the coefficients only (the Hamburger paper's
            "one-step gradient", as in JSeg's SegNeXt), not through all updates: less memory, less time.

    Raises:
        OptionError: If the rank is below 1.
    """

    bases: torch.Tensor

    def __init__(
        self, channels: int, rank: int = 64, train_steps: int = 6, eval_steps: int = 7, one_step_gradient: bool = False
    ) -> None:
        super().__init__()
        if rank < 1:
            raise OptionError(f"rank must be at least 1, got {rank}")
        self.rank = rank
        self.eps = 1e-6  # added to denominators
        self.train_steps = train_steps
        self.eval_steps = eval_steps
        self.one_step_gradient = one_step_gradient
        self.register_buffer("bases", torch.empty(1, channels, rank, dtype=torch.float32))
        self.reset_bases()

    @torch.jit.ignore
    def reset_bases(self, seed: int = 0) -> None:
        """Draw the evaluation bases: uniformly random columns of unit length, reproducible by seed."""
        # always on the CPU in float32, so that the bases depend neither on the device nor on a default type
        generator = torch.Generator(device="cpu").manual_seed(seed)
        bases = torch.rand(self.bases.shape, generator=generator, dtype=torch.float32, device="cpu")
        self.bases.copy_(F.normalize(bases, dim=1))

    def _update_coefficients(self, projection: torch.Tensor, bases: torch.Tensor, coef: torch.Tensor) -> torch.Tensor:
        denominator = torch.bmm(coef, torch.bmm(bases.transpose(1, 2), bases))
        return coef * projection / (denominator + self.eps)

    def _factorize(self, x: torch.Tensor, bases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute bases, coefficients, and the projection Xᵀ B, which the next update of the coefficients needs."""
        projection = torch.bmm(x.transpose(1, 2), bases)
        coef = F.softmax(projection, dim=-1)
        for _ in range(self.train_steps if self.training else self.eval_steps):
            coef = self._update_coefficients(projection, bases, coef)
            denominator = torch.bmm(bases, torch.bmm(coef.transpose(1, 2), coef))
            bases = bases * torch.bmm(x, coef) / (denominator + self.eps)
            projection = torch.bmm(x.transpose(1, 2), bases)
        return bases, coef, projection

    def decompose(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factorize matrices X (B, D, N) into bases (B, D, R) and coefficients (B, N, R)."""
        bases = self.bases.to(x.dtype).expand(x.shape[0], -1, -1)
        if self.training:
            bases = F.normalize(torch.rand(bases.shape, dtype=x.dtype, device=x.device), dim=1)
        if self.one_step_gradient:
            with torch.no_grad():
                bases, coef, projection = self._factorize(x, bases)
            projection = torch.bmm(x.transpose(1, 2), bases)
        else:
            bases, coef, projection = self._factorize(x, bases)
        return bases, self._update_coefficients(projection, bases, coef)

    def _approximate(self, x: torch.Tensor, channels_last: bool) -> torch.Tensor:
        """Approximate X (B, D, N) by B Cᵀ of the same shape, with the memory of its transpose if `channels_last`."""
        bases, coef = self.decompose(x)
        if channels_last:
            return torch.bmm(coef, bases.transpose(1, 2)).transpose(1, 2)
        return torch.bmm(bases, coef.transpose(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Non-negative features (B, D, H, W) to features of the same shape, dtype and memory format."""
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        matrix = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))
        if torch.jit.is_scripting():
            matrix = self._approximate(matrix, channels_last)
        # is_autocast_enabled raises for some devices unless is_autocast_available; torch.compile traces only the former
        elif (
            torch.compiler.is_compiling() or torch.amp.is_autocast_available(x.device.type)
        ) and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                matrix = self._approximate(matrix, channels_last)
        else:
            matrix = self._approximate(matrix, channels_last)
        return matrix.reshape(x.shape).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """Group normalization that keeps channels_last, also on GPUs, where torch's returns NCHW."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W) to features of the same shape and memory format."""
        normalized = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return normalized.contiguous(memory_format=torch.channels_last) if channels_last else normalized


class Hamburger(nn.Module):
    """Matrix decomposition between two 1×1 convolutions, with a shortcut: relu(x + bread(NMF(relu(bread(x))))).

    Arguments are those of :class:`NMF2d`, and the number of groups of the normalization.
    """

    def __init__(
        self,
        channels: int,
        rank: int = 64,
        train_steps: int = 6,
        eval_steps: int = 7,
        one_step_gradient: bool = False,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.nmf = NMF2d(channels, rank, train_steps, eval_steps, one_step_gradient)
        self.proj_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = GroupNorm(num_groups, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, channels, H, W) to features of the same shape."""
        context = F.relu(self.proj_in(x))
        context = self.nmf(context)
        context = self.norm(self.proj_out(context))
        return F.relu(x + context)
