"""MSCAN, the multi-scale convolutional attention backbone of SegNeXt.

Paper: `SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation`
    - https://arxiv.org/abs/2209.08575 (NeurIPS 2022)

@inproceedings{guo2022segnext,
  title={SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation},
  author={Guo, Meng-Hao and Lu, Cheng-Ze and Hou, Qibin and Liu, Zhengning and Cheng, Ming-Ming and Hu, Shi-Min},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}

Original code and weights: https://github.com/Visual-Attention-Network/SegNeXt. This is an independent
implementation of the published architecture; its outputs equal the original's on the same weights.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torch.fx
import torch.nn as nn
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import (
    ClassifierHead,
    DropPath,
    LayerNorm2d,
    LayerScale2d,
    calculate_drop_path_rates,
    get_act_layer,
    get_device_dtype,
    get_norm_layer,
    trunc_normal_,
)
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._builder import _resolve_pretrained_source
from timm.models._features import feature_take_indices
from timm.models._hub import get_cache_dir

from ..downloads import fetch
from ..errors import OptionError
from ..kernels import strips
from ..variants import HUB_IDS, NARROW, VARIANTS
from .fusion import FusedMSCANBlock, affine_of, fold_norm
from .state_dicts import check_parameters, take_network

_logger = logging.getLogger(__name__)

__all__ = ["MSCAN"]  # register_model adds each entrypoint to this


@torch.fx.wrap
def _saturate(x: torch.Tensor) -> torch.Tensor:
    """Clamp float16 to its finite range: the attention product can overflow to inf, which later becomes NaN."""
    return x.clamp(-65504.0, 65504.0) if x.dtype == torch.float16 else x


class MultiScaleConvAttention(nn.Module):
    """Multi-scale convolutional attention (MSCA), section 3.1 and equations 1 and 2 of the paper.

    A depthwise 5×5 convolution gathers local context; three pairs of depthwise strip convolutions (1×k, then k×1)
    gather it at larger scales; a 1×1 convolution mixes their sum into the attention that weights the input.
    """

    def __init__(self, dim: int, dilation: int = 1, **dd: Any) -> None:
        super().__init__()

        def depthwise(height: int, width: int) -> nn.Conv2d:
            padding = (height // 2 * dilation, width // 2 * dilation)
            return nn.Conv2d(dim, dim, (height, width), padding=padding, dilation=dilation, groups=dim, **dd)

        self.dwconv = depthwise(5, 5)
        self.branches = nn.ModuleList(nn.Sequential(depthwise(1, k), depthwise(k, 1)) for k in (7, 11, 21))
        self.proj = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, dim, H, W) to features of the same shape."""
        base = self.dwconv(x)
        if not torch.jit.is_scripting():  # noqa: SIM102  # TorchScript would compile the second condition of an `and`
            if strips.applies(base, self.branches):
                return _saturate(self.proj(strips.add_branches(base, self.branches)) * x)
        attn = base
        for branch in self.branches:
            attn = attn + branch(base)
        return _saturate(self.proj(attn) * x)


class SpatialAttention(nn.Module):
    """MSCA between two 1×1 convolutions, with a shortcut around all three (figure 2 of the paper)."""

    def __init__(self, dim: int, dilation: int, act_layer: type[nn.Module], **dd: Any) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(dim, dim, 1, **dd)
        self.act = act_layer()
        self.msca = MultiScaleConvAttention(dim, dilation, **dd)
        self.proj_out = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, dim, H, W) to features of the same shape."""
        shortcut = x
        x = self.act(self.proj_in(x))
        x = self.msca(x)
        return _saturate(self.proj_out(x)) + shortcut


class ConvMlp(nn.Module):
    """Inverted bottleneck of 1×1 convolutions with a depthwise 3×3 convolution before its activation."""

    def __init__(self, dim: int, hidden_dim: int, dilation: int, act_layer: type[nn.Module], **dd: Any) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1, **dd)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=dilation, dilation=dilation, groups=hidden_dim, **dd)
        self.act = act_layer()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, dim, H, W) to features of the same shape."""
        x = self.fc1(x)
        x = self.dwconv(x)
        return self.fc2(self.act(x))


class MSCANBlock(nn.Module):
    """Attention and MLP, each normalized first, scaled per channel and added to its input."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4.0,
        ls_init_value: float = 1e-2,
        dilation: int = 1,
        drop_path: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim, **dd)
        self.attn = SpatialAttention(dim, dilation, act_layer, **dd)
        self.ls1 = LayerScale2d(dim, init_values=ls_init_value, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

        self.norm2 = norm_layer(dim, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), dilation, act_layer, **dd)
        self.ls2 = LayerScale2d(dim, init_values=ls_init_value, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, dim, H, W) to features of the same shape."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x

    def fuse(self) -> nn.Module:
        """Create a fused block for inference. Returns this block if its norms cannot be folded."""
        affine1, affine2 = affine_of(self.norm1), affine_of(self.norm2)
        return self if affine1 is None or affine2 is None else FusedMSCANBlock(self, affine1, affine2)


class Stem(nn.Module):
    """Two 3×3 convolutions of stride 2: an image to features at a quarter of its size."""

    def __init__(
        self, in_chs: int, out_chs: int, act_layer: type[nn.Module], norm_layer: type[nn.Module], **dd: Any
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = norm_layer(out_chs // 2, **dd)
        self.act = act_layer()
        self.conv2 = nn.Conv2d(out_chs // 2, out_chs, 3, stride=2, padding=1, **dd)
        self.norm2 = norm_layer(out_chs, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to features (B, dim, H / 4, W / 4), sizes rounded up."""
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))

    def reparameterize(self) -> None:
        """Fold the norms into the convolutions, for inference."""
        self.conv1, self.norm1 = fold_norm(self.conv1, self.norm1)
        self.conv2, self.norm2 = fold_norm(self.conv2, self.norm2)


class Downsample(nn.Module):
    """Overlapping 3×3 convolution and normalization between two stages."""

    def __init__(
        self, in_chs: int, out_chs: int, stride: int, dilation: int, norm_layer: type[nn.Module], **dd: Any
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=dilation, dilation=dilation, **dd)
        self.norm = norm_layer(out_chs, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W) to features (B, dim, H / stride, W / stride), sizes rounded up."""
        return self.norm(self.conv(x))

    def reparameterize(self) -> None:
        """Fold the norm into the convolution, for inference."""
        self.conv, self.norm = fold_norm(self.conv, self.norm)


class MSCANStage(nn.Module):
    """Downsampling, blocks at one resolution, and a LayerNorm whose output is both feature and next input."""

    def __init__(self, dim: int, downsample: nn.Module, blocks: list[MSCANBlock], **dd: Any) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = LayerNorm2d(dim, eps=1e-5, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, C, H, W) of the previous stage to those of this stage."""
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)


class MSCAN(nn.Module):
    """Multi-Scale Convolutional Attention Network, the encoder of SegNeXt: section 3.1 and table 2 of the paper."""

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int = 32,
        depths: tuple[int, ...] = (3, 3, 12, 3),
        dims: tuple[int, ...] = (64, 128, 320, 512),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        ls_init_value: float = 1e-2,
        act_layer: str | Callable[..., nn.Module] = "gelu",
        norm_layer: str | Callable[..., nn.Module] = "batchnorm2d",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Set up the backbone.

        Args:
            in_chans: Number of input image channels.
            num_classes: Number of classes of the classifier, 0 for none.
            global_pool: Global pooling type.
            output_stride: Stride of the last feature, one of (8, 16, 32); stages that lose their stride are dilated,
                so that their features are those of stride 32, more densely sampled.
            depths: Number of blocks in each stage.
            dims: Number of channels in each stage.
            mlp_ratios: Width of the MLP's hidden layer over that of the block, in each stage (table 2 of the paper).
            ls_init_value: Initial value of the blocks' layer scales; 1e-2 in the paper's code. Training from scratch
                may want another.
            act_layer: Activation layer.
            norm_layer: Normalization layer of the stem, the downsampling and the blocks. The norm that ends each
                stage is a LayerNorm over channels whatever this is.
            drop_rate: Dropout rate before the classifier.
            drop_path_rate: Stochastic depth rate of the last block; rates rise linearly from 0 over all blocks.
            device: Device of the parameters.
            dtype: Data type of the parameters.

        Raises:
            OptionError: If `output_stride` is another.
        """
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if output_stride not in (8, 16, 32):
            raise OptionError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        make_act: Any = get_act_layer(act_layer)
        make_norm: Any = get_norm_layer(norm_layer)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.feature_info: list[dict[str, Any]] = []

        self.stem = Stem(in_chans, dims[0], make_act, make_norm, **dd)

        drop_path_rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        reduction, dilation = 4, 1
        for i, dim in enumerate(dims):
            downsample: nn.Module = nn.Identity()
            if i > 0:
                stride = 2 if reduction < output_stride else 1
                # the downsampling of a stage that loses its stride reads features at the previous stage's sampling
                downsample = Downsample(dims[i - 1], dim, stride, dilation, make_norm, **dd)
                reduction *= stride
                dilation *= 2 // stride
            blocks = [
                MSCANBlock(dim, mlp_ratios[i], ls_init_value, dilation, rate, make_act, make_norm, **dd)
                for rate in drop_path_rates[i]
            ]
            stages.append(MSCANStage(dim, downsample, blocks, **dd))
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)

        self.num_features = dims[-1]
        self.head = ClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        if not self.stem.conv1.weight.is_meta:  # smp builds one there per model, where values take time for nothing
            self.apply(_init_weights)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by block, or by stage if `coarse`, for layer-wise learning rate decay."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        # a stage's downsampling goes with its first block, its norm with its last
        stages: Any = self.stages
        norms = [(rf"^stages\.({i})\.norm", (len(stage.blocks) - 1,)) for i, stage in enumerate(stages)]
        return {
            "stem": r"^stem",
            "blocks": [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), *norms],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        stages: Any = self.stages
        for stage in stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the linear layer that computes the logits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, 0 classes for none, and its pooling: '' for none, None to keep it."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features
        self.head.apply(_init_weights)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the features (B, C_i, H_i, W_i) of stages, after what `forward_features` returns.

        Arguments as in timm's models. `norm` has no effect: the features of all stages are normalized.
        """
        assert output_fmt in ("NCHW",), "Output shape must be NCHW."
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.stages), indices)

        x = self.stem(x)
        if torch.jit.is_scripting() or not stop_early:  # can't slice blocks in torchscript
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        for feat_idx, stage in enumerate(stages):
            x = stage(x)
            if feat_idx in take_indices:
                intermediates.append(x)

        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages behind the last of `indices`, and the classifier. Returns the indices, from 0.

        Arguments as in timm's models. `prune_norm` has no effect: each stage's norm is part of its feature.
        """
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        self.num_features = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the last stage's feature (B, num_features, H / 32, W / 32), sizes rounded up."""
        x = self.stem(x)
        x = self.stages(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The last stage's feature to logits (B, num_classes), or to the pooled feature if `pre_logits`."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


# Parts of published names, after `_STAGE` has moved the number of the stage to the front, and parts of names here. None
# occurs in a name of the other side, so that the table also leads back: see `examples/deployment/to_mmseg.py`.
PUBLISHED_NAMES = (
    ("stages.0.patch_embed.proj.0", "stem.conv1"),
    ("stages.0.patch_embed.proj.1", "stem.norm1"),
    ("stages.0.patch_embed.proj.3", "stem.conv2"),
    ("stages.0.patch_embed.proj.4", "stem.norm2"),
    (".patch_embed.proj", ".downsample.conv"),
    (".patch_embed.norm", ".downsample.norm"),
    (".block.", ".blocks."),
    (".attn.proj_1", ".attn.proj_in"),
    (".attn.proj_2", ".attn.proj_out"),
    *((f".spatial_gating_unit.conv{i}_{j + 1}", f".msca.branches.{i}.{j}") for i in range(3) for j in range(2)),
    (".spatial_gating_unit.conv0", ".msca.dwconv"),
    (".spatial_gating_unit.conv3", ".msca.proj"),
    (".layer_scale_1", ".ls1.gamma"),
    (".layer_scale_2", ".ls2.gamma"),
    ("head.weight", "head.fc.weight"),
    ("head.bias", "head.fc.bias"),
)
_STAGE = re.compile(r"^(patch_embed|block|norm)(\d)")
_ENCODER = re.compile(r"^(?:backbone|encoder\.model)\.")  # prefix in a segmenter


def backbone_to_native(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Take MSCAN's parameters out of a checkpoint, alone or as part of a segmenter, under native names.

    Raises:
        CheckpointError: If there is no MSCAN among them, or more than one.
    """
    tensors = take_network(checkpoint)
    encoder = {_ENCODER.sub("", name): value for name, value in tensors.items() if _ENCODER.match(name)}
    native = {}
    for name, value in (encoder or tensors).items():
        # timm's feature extractors flatten the stages into themselves; the authors' and JSeg's code nests the `dwconv`
        name = name.replace("stages_", "stages.").replace("mlp.dwconv.dwconv", "mlp.dwconv")
        name = _STAGE.sub(lambda match: f"stages.{int(match[2]) - 1}.{match[1]}", name)
        for published, own in PUBLISHED_NAMES:
            name = name.replace(published, own)
        native[name] = value
    return native


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: MSCAN) -> dict[str, torch.Tensor]:
    """Rename the parameters of a published checkpoint, or of a segmenter's backbone, to those of `model`.

    Raises:
        CheckpointError: If parameters other than the classifier's are missing, unknown or of another shape.
    """
    state_dict = backbone_to_native(state_dict)
    adapted = ("head.fc.weight", "head.fc.bias", "stem.conv1.weight")  # by timm, to other classes and channels
    found, expected = (
        {name: value for name, value in tensors.items() if name not in adapted}
        for tensors in (state_dict, model.state_dict())
    )
    check_parameters(found, expected)
    wanted = getattr(model, "pretrained_cfg", {}).get("num_classes")
    classifier = state_dict.get("head.fc.weight")
    if classifier is not None and wanted == model.num_classes and wanted != len(classifier):
        state_dict = {name: value for name, value in state_dict.items() if not name.startswith("head.fc.")}
    if "head.fc.weight" not in state_dict and 0 < model.num_classes == wanted:
        _logger.warning("The checkpoint has no classifier: only the backbone is loaded, the classifier stays random.")
    return state_dict


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    # The weights were trained with the code of VAN (https://github.com/Visual-Attention-Network/VAN-Classification),
    # whose evaluation has mean and std 0.5, crop 0.9 and bicubic interpolation at 224².
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_INCEPTION_MEAN,
        "std": IMAGENET_INCEPTION_STD,
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2209.08575",
        "paper_name": "SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation",
        "origin_url": "https://github.com/Visual-Attention-Network/SegNeXt",
        **kwargs,
    }


_MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segnext/"

default_cfgs = generate_default_cfgs(
    {
        "mscan_t.in1k": _cfg(_MMSEG + "mscan_t_20230227-119e8c9f.pth", hf_hub_id=HUB_IDS.get("mscan_t.in1k")),
        "mscan_s.in1k": _cfg(_MMSEG + "mscan_s_20230227-f33ccdf2.pth", hf_hub_id=HUB_IDS.get("mscan_s.in1k")),
        "mscan_b.in1k": _cfg(_MMSEG + "mscan_b_20230227-3ab7d230.pth", hf_hub_id=HUB_IDS.get("mscan_b.in1k")),
        "mscan_l.in1k": _cfg(_MMSEG + "mscan_l_20230227-cef260d4.pth", hf_hub_id=HUB_IDS.get("mscan_l.in1k")),
        "test_mscan.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5), license=None, origin_url=None),
    }
)

# The sha256 of each published file. Those of T, S and B are recorded by Intel's Geti, which pins them; of L only the
# digits in its name are known.
PUBLISHED_SHA256 = {
    "mscan_t_20230227-119e8c9f.pth": "119e8c9f4479cb5ed7906c26adc3c9fe722d5c5fff63651549669bff941d11c4",
    "mscan_s_20230227-f33ccdf2.pth": "f33ccdf2fc0afb78a39a44645eb8436891b95b1d3d9b48c1d9ace85936740a18",
    "mscan_b_20230227-3ab7d230.pth": "3ab7d2301876e41fdd3950e59cdce44e18ebcc36a4cf7a4f5f0817d14f381c9b",
    "mscan_l_20230227-cef260d4.pth": "cef260d4",
}


def _create_mscan(variant: str, pretrained: bool = False, **kwargs: Any) -> MSCAN:
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    source, location = _resolve_pretrained_source(cfg.to_dict())
    if pretrained and source == "file" and "num_classes" in kwargs:  # a user's own keeps its classifier, if it fits
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        kwargs["pretrained_cfg_overlay"] = {"num_classes": kwargs["num_classes"], **overlay}

    def build(**model_args: Any) -> MSCAN:
        model = MSCAN(**model_args)  # wrong arguments end here, before any download
        if pretrained and source == "url":
            path = Path(kwargs.get("cache_dir") or get_cache_dir(), Path(urlparse(location).path).name)
            if sha256 := PUBLISHED_SHA256.get(path.name):  # timm downloads other files, and compares no hashes
                fetch(location, path, sha256)
        return model

    if kwargs.get("features_only", False):
        kwargs.setdefault("num_classes", 0)  # timm's wrapper drops the classifier anyway
    return build_model_with_cfg(
        build,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        pretrained_strict=False,  # the filter checks every name, and lets a classifier be missing
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **kwargs,
    )


@register_model
def mscan_t(pretrained: bool = False, **kwargs: Any) -> MSCAN:
    """MSCAN-T, 4.2M parameters, 0.9 GMACs at 224²."""
    model_args = {"dims": VARIANTS["t"].dims, "depths": VARIANTS["t"].depths}
    return _create_mscan("mscan_t", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def mscan_s(pretrained: bool = False, **kwargs: Any) -> MSCAN:
    """MSCAN-S, 14.0M parameters, 2.6 GMACs at 224²."""
    model_args = {"dims": VARIANTS["s"].dims, "depths": VARIANTS["s"].depths}
    return _create_mscan("mscan_s", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def mscan_b(pretrained: bool = False, **kwargs: Any) -> MSCAN:
    """MSCAN-B, 26.8M parameters, 5.1 GMACs at 224²."""
    model_args = {"dims": VARIANTS["b"].dims, "depths": VARIANTS["b"].depths}
    return _create_mscan("mscan_b", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def mscan_l(pretrained: bool = False, **kwargs: Any) -> MSCAN:
    """MSCAN-L, 45.1M parameters, 9.0 GMACs at 224²."""
    model_args = {"dims": VARIANTS["l"].dims, "depths": VARIANTS["l"].depths}
    return _create_mscan("mscan_l", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def test_mscan(pretrained: bool = False, **kwargs: Any) -> MSCAN:
    """A narrow MSCAN for tests, without published weights."""
    model_args = {"dims": NARROW.dims, "depths": NARROW.depths, "mlp_ratios": (2, 2, 2, 2)}
    return _create_mscan("test_mscan", pretrained=pretrained, **dict(model_args, **kwargs))
