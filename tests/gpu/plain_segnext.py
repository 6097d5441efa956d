"""SegNeXt in plain torch that computes as mmsegmentation 1.2.2 does, to compare with where mmcv is not installed.

Same operations in the same order and layout: features become sequences and maps again around every block, the decoder
resizes and concatenates the features before it squeezes them, every call draws new bases on the CPU, autocast reaches
the matrix decomposition, and the loss resizes the logits to the labels' size. Left out are the accuracy that
mmsegmentation logs at every step and the synchronization of batch norms. Parameters have mmsegmentation's names.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath

STRIPS = (7, 11, 21)


def conv(in_chs: int, out_chs: int, kernel: int | tuple[int, int], stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size, or divides it by the stride."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return nn.Conv2d(in_chs, out_chs, (height, width), stride, (height // 2, width // 2), groups=groups)


def to_maps(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Sequences (B, H·W, C) to maps (B, C, H, W)."""
    return x.permute(0, 2, 1).view(x.shape[0], x.shape[2], height, width)


class PatchEmbedding(nn.Module):
    """Downsampling to a sequence. The first one is a stem of two convolutions."""

    def __init__(self, in_chs: int, out_chs: int, first: bool) -> None:
        super().__init__()
        if first:
            half = out_chs // 2
            layers = [conv(in_chs, half, 3, 2), nn.BatchNorm2d(half), nn.GELU(), conv(half, out_chs, 3, 2)]
            self.proj = nn.Sequential(*layers, nn.BatchNorm2d(out_chs))
            self.norm = nn.Identity()
        else:
            self.proj = conv(in_chs, out_chs, 3, 2)
            self.norm = nn.BatchNorm2d(out_chs)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        x = self.norm(self.proj(x))
        return x.flatten(2).transpose(1, 2), x.shape[2], x.shape[3]


class SpatialGatingUnit(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = conv(dim, dim, 5, groups=dim)
        for i, length in enumerate(STRIPS):
            setattr(self, f"conv{i}_1", conv(dim, dim, (1, length), groups=dim))
            setattr(self, f"conv{i}_2", conv(dim, dim, (length, 1), groups=dim))
        self.conv3 = conv(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated, base = x.clone(), self.conv0(x)
        strips = [getattr(self, f"conv{i}_2")(getattr(self, f"conv{i}_1")(base)) for i in range(len(STRIPS))]
        return self.conv3(sum(strips, base)) * gated


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_1 = conv(dim, dim, 1)
        self.spatial_gating_unit = SpatialGatingUnit(dim)
        self.proj_2 = conv(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x.clone()
        return self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x)))) + shortcut


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = conv(dim, hidden, 1)
        self.dwconv = conv(hidden, hidden, 3, groups=hidden)
        self.fc2 = conv(hidden, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    def __init__(self, dim: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.attn, self.mlp = Attention(dim), Mlp(dim, hidden)
        self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(torch.full((dim,), 1e-2)) for _ in range(2))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        x = to_maps(x, height, width)
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))
        return x.view(*x.shape[:2], height * width).permute(0, 2, 1)


class Backbone(nn.Module):
    def __init__(self, dims: list[int], depths: list[int], mlp_ratios: list[int], drop_path: float) -> None:
        super().__init__()
        rates = iter(torch.linspace(0, drop_path, sum(depths)).tolist())
        for i, (dim, depth, ratio) in enumerate(zip(dims, depths, mlp_ratios), start=1):
            setattr(self, f"patch_embed{i}", PatchEmbedding(dims[i - 2] if i > 1 else 3, dim, first=i == 1))
            setattr(self, f"block{i}", nn.ModuleList(Block(dim, dim * ratio, next(rates)) for _ in range(depth)))
            setattr(self, f"norm{i}", nn.LayerNorm(dim))
        self.stages = len(dims)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for i in range(1, self.stages + 1):
            x, height, width = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, height, width)
            x = to_maps(getattr(self, f"norm{i}")(x), height, width).contiguous()
            features.append(x)
        return features


class ConvNorm(nn.Module):
    """A 1×1 convolution without bias, a group norm, and a ReLU if asked."""

    def __init__(self, in_chs: int, out_chs: int, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.gn = nn.GroupNorm(32, out_chs)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gn(self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x


class Hamburger(nn.Module):
    """Matrix decomposition between two 1×1 convolutions.

    Attributes:
        bases: Bases (1, D, R) to start from instead of random ones, to compare with another model.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.bases: torch.Tensor | None = None
        self.ham_in = nn.ModuleDict({"conv": nn.Conv2d(channels, channels, 1)})
        self.ham_out = ConvNorm(channels, channels, relu=False)

    def decompose(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, D, N) to their product of bases and coefficients, of the same shape."""
        if self.bases is None:
            bases = F.normalize(torch.rand(x.shape[0], x.shape[1], self.rank).to(x.device), dim=1)
        else:
            bases = self.bases.repeat(x.shape[0], 1, 1)
        coef = F.softmax(torch.bmm(x.transpose(1, 2), bases), dim=-1)
        for _ in range(6 if self.training else 7):
            coef = self._updated(coef, torch.bmm(x.transpose(1, 2), bases), bases)
            bases = self._updated(bases, torch.bmm(x, coef), coef)
        coef = self._updated(coef, torch.bmm(x.transpose(1, 2), bases), bases)
        return torch.bmm(bases, coef.transpose(1, 2))

    @staticmethod
    def _updated(factor: torch.Tensor, numerator: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return factor * numerator / (factor.bmm(other.transpose(1, 2).bmm(other)) + 1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        context = F.relu(self.ham_in["conv"](x), inplace=True)
        context = self.decompose(context.flatten(2)).view(x.shape)
        return F.relu(x + self.ham_out(context), inplace=True)


class Head(nn.Module):
    def __init__(self, in_chs: list[int], channels: int, rank: int, classes: int) -> None:
        super().__init__()
        self.squeeze = ConvNorm(sum(in_chs), channels)
        self.hamburger = Hamburger(channels, rank)
        self.align = ConvNorm(channels, channels)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        size = features[1].shape[2:]
        x = torch.cat([F.interpolate(x, size, mode="bilinear", align_corners=False) for x in features[1:]], dim=1)
        return self.conv_seg(self.dropout(self.align(self.hamburger(self.squeeze(x)))))


class PlainSegNeXt(nn.Module):
    """SegNeXt as mmsegmentation computes it.

    Args:
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        mlp_ratios: Width of the MLPs' hidden layers over that of the blocks, in each stage.
        channels: Width of the decoder.
        rank: Number of bases of the matrix decomposition.
        classes: Number of classes.
        drop_path: Stochastic depth rate of the last block.
    """

    def __init__(
        self,
        dims: list[int],
        depths: list[int],
        mlp_ratios: list[int],
        channels: int,
        rank: int,
        classes: int,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(dims, depths, mlp_ratios, drop_path)
        self.decode_head = Head(dims[1:], channels, rank, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to logits (B, classes, H, W)."""
        logits = self.decode_head(self.backbone(images))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of full-size logits, averaged over all pixels; those labeled 255 count as 0."""
        return F.cross_entropy(self(images), labels, ignore_index=255, reduction="none").mean()


def plain_copy(model: nn.Module, drop_path: float = 0.1) -> PlainSegNeXt:
    """Create the plain model of the size, the weights and the mode of a `segnext_timm.SegNeXt` on an MSCAN."""
    from segnext_timm.checkpoints.dialects import native_to_mmseg

    stages = [module for name, module in model.encoder.model.named_children() if name.startswith("stages")]
    dims = list(model.encoder.out_channels[-len(stages) :])
    plain = PlainSegNeXt(
        dims,
        [len(stage.blocks) for stage in stages],
        [stage.blocks[0].mlp.fc1.out_channels // dim for stage, dim in zip(stages, dims)],
        model.decoder.align.out_channels,
        model.decoder.hamburger.nmf.rank,
        model.segmentation_head[0].out_channels,
        drop_path,
    )
    plain.load_state_dict(native_to_mmseg(model.state_dict()))
    return plain.train(model.training)
