"""SegNeXt, in the form of a segmentation_models_pytorch (smp) architecture.

Paper: `SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation`
    - https://arxiv.org/abs/2209.08575 (NeurIPS 2022)
Original code: https://github.com/Visual-Attention-Network/SegNeXt
"""

import difflib
from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from segmentation_models_pytorch.base import ClassificationHead, SegmentationHead
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from segmentation_models_pytorch.base.utils import is_torch_compiling
from segmentation_models_pytorch.encoders import get_encoder, get_encoder_names

from ..errors import OptionError
from ..variants import MIN_SIDE
from .hamburger import GroupNorm, Hamburger
from .hub_mixin import SegNeXtHubMixin
from .losses import resized_argmax
from .resizing import resize
from .segmenter import Segmenter, evaluation_mode

_NUM_GROUPS = 32  # groups of every GroupNorm in the decoder


class LightHamDecoder(nn.Module):
    """Light Hamburger decoder: fuses the features of strides 8 to 32 at stride 8 and adds their global context.

    Section 3.2 and figure 3(c) of the paper. The features are squeezed, each by a 1×1 convolution of its own, before
    they are resized and summed; the original resizes and concatenates them, then squeezes them together. Both give the
    same result, because a 1×1 convolution commutes with bilinear resizing; this order needs a quarter of the work.

    Args:
        encoder_channels: Channels of the encoder's features, the image first, strides doubling. The first three
            (strides 1, 2, 4) are not used; at least one more is needed.
        channels: Width of the decoder, divisible by 32.
        rank: Number of bases of the matrix decomposition.
        dropout: Rate at which whole channels of the output are dropped in training.
        train_steps: Updates of the matrix decomposition in training.
        eval_steps: Updates of the matrix decomposition in evaluation.
        one_step_gradient: Back-propagate through the last of these updates only.

    Raises:
        OptionError: If `channels` is not divisible by 32.
    """

    def __init__(
        self,
        encoder_channels: list[int],
        channels: int = 256,
        rank: int = 16,
        dropout: float = 0.1,
        train_steps: int = 6,
        eval_steps: int = 7,
        one_step_gradient: bool = False,
    ) -> None:
        super().__init__()
        if channels < 1 or channels % _NUM_GROUPS:
            raise OptionError(
                f"decoder_channels must be a multiple of {_NUM_GROUPS} (the groups of its GroupNorms), got {channels}; "
                f"the nearest is {max(round(channels / _NUM_GROUPS), 1) * _NUM_GROUPS}."
            )
        self.squeeze = nn.ModuleList(nn.Conv2d(chs, channels, 1, bias=False) for chs in encoder_channels[3:])
        self.squeeze_norm = GroupNorm(_NUM_GROUPS, channels)
        self.hamburger = Hamburger(channels, rank, train_steps, eval_steps, one_step_gradient, num_groups=_NUM_GROUPS)
        self.align = nn.Conv2d(channels, channels, 1, bias=False)
        self.align_norm = GroupNorm(_NUM_GROUPS, channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Fuse features (B, C_i, H_i, W_i), one for each of `encoder_channels`, to one (B, channels, H_3, W_3)."""
        x = self.squeeze[0](features[3])
        for i, squeeze in enumerate(self.squeeze):
            if i > 0:
                x = x + resize(squeeze(features[3 + i]), list(x.shape[-2:]))
        x = F.relu(self.squeeze_norm(x))
        x = self.hamburger(x)
        x = F.relu(self.align_norm(self.align(x)))
        return self.dropout(x)


class ResizingHead(SegmentationHead):
    """A 1×1 convolution and smp's activation of its output, which is resized first."""

    def __init__(self, in_channels: int, classes: int, activation: Any = None) -> None:
        super().__init__(in_channels, classes, kernel_size=1, activation=activation)
        self.takes_size = True

    def forward(self, x: torch.Tensor, size: list[int] | None, activated: bool = True) -> torch.Tensor:
        """Features (B, in_channels, h, w) to a map (B, classes, *size), or (B, classes, h, w) if None."""
        x = self[0](x)
        if size is not None:
            x = resize(x, size)
        return self[2](x) if activated else x


class SegNeXt(SegNeXtHubMixin):
    """SegNeXt: convolutional attention in the encoder, matrix decomposition in the decoder.

    Images of any size from 32×32 up are segmented at exactly that size. Evaluation is deterministic: see
    :class:`segnext_timm.models.hamburger.NMF2d`.

    Args:
        encoder_name: Any encoder of smp, or "tu-" and any feature extractor of timm. The paper's are "tu-mscan_t",
            "tu-mscan_s", "tu-mscan_b" and "tu-mscan_l".
        encoder_depth: Number of encoder stages in range [3, 5]; the decoder takes those from stride 8 on.
        encoder_weights: "imagenet" or True for an encoder pretrained on ImageNet, None or False for a random one, or
            another of the weights that smp knows for the encoder.
        decoder_channels: Width of the decoder, divisible by 32. The paper's: 256 for T and S, 512 for B, 1024 for L.
        decoder_rank: Number of bases of the matrix decomposition. The paper's code: 16 for T and S, 64 for B and L;
            mmsegmentation's configurations: 16 for all.
        decoder_dropout: Rate at which the decoder's output channels are dropped in training.
        decoder_train_steps: Updates of the matrix decomposition in training.
        decoder_eval_steps: Updates of the matrix decomposition in evaluation.
        in_channels: Number of input channels, 3 for RGB images.
        classes: Number of classes, the channels of the output.
        activation: Applied to the output: "sigmoid", "softmax2d", "logsoftmax", "tanh", "identity", a callable that
            makes a module, or None for logits.
        aux_params: Arguments of smp's `ClassificationHead` on top of the encoder: `classes`, `pooling` ("max" or
            "avg"), `dropout` and `activation`; None for no such head.
        decoder_one_step_gradient: Back-propagate through the last update of the matrix decomposition only, as JSeg
            does, for less memory and time in training.
        upsampling: 8 for output of the images' size, 1 for that of the decoder's logits, an eighth of it, which
            :class:`segnext_timm.UpsampledCrossEntropyLoss` takes. The attribute of this name can be set at any time.
            Saved models load with 8.
        pretrained_cfg: What is known of the weights: see the property :attr:`pretrained_cfg`. Entries for another
            number of classes or channels are left out, with a warning.
        kwargs: Arguments of timm's encoder, such as `drop_path_rate=0.1`, or `output_stride`.

    Any head of smp fits as `segmentation_head`: its output is resized to the images' size. The configuration does not
    describe it, so such a model is not saved by :meth:`save_pretrained`.

    Raises:
        OptionError: If the encoder is unknown or an argument is out of its range.

    .. seealso:: https://arxiv.org/abs/2209.08575
    """

    requires_divisible_input_shape = False
    takes_activated = True  # an argument of `forward`: see ModelInfo

    @supports_config_loading
    def __init__(
        self,
        encoder_name: str = "tu-mscan_t",
        encoder_depth: int = 5,
        encoder_weights: str | bool | None = "imagenet",
        decoder_channels: int = 256,
        decoder_rank: int = 16,
        decoder_dropout: float = 0.1,
        decoder_train_steps: int = 6,
        decoder_eval_steps: int = 7,
        in_channels: int = 3,
        classes: int = 1,
        activation: str | Callable[..., nn.Module] | None = None,
        aux_params: dict[str, Any] | None = None,
        decoder_one_step_gradient: bool = False,
        upsampling: int = 8,
        pretrained_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        _check_encoder_name(encoder_name)
        _check_upsampling(upsampling)
        if encoder_depth not in (3, 4, 5):
            raise OptionError(f"encoder_depth must be 3, 4 or 5, got {encoder_depth}")
        if classes < 1:
            raise OptionError(f"classes must be at least 1, got {classes}.")
        self.in_channels = in_channels
        self.upsampling = upsampling
        self.config["upsampling"] = 8  # a model saved during training loads with full-size output
        self.config["pretrained_cfg"] = self._fitting_facts(pretrained_cfg or {}, classes)
        self.encoder = get_encoder(
            encoder_name,
            in_channels=in_channels,
            depth=encoder_depth,
            weights=_smp_encoder_weights(encoder_name, encoder_weights),
            **kwargs,
        )
        self.decoder = LightHamDecoder(
            encoder_channels=self.encoder.out_channels,
            channels=decoder_channels,
            rank=decoder_rank,
            dropout=decoder_dropout,
            train_steps=decoder_train_steps,
            eval_steps=decoder_eval_steps,
            one_step_gradient=decoder_one_step_gradient,
        )
        self.segmentation_head = ResizingHead(decoder_channels, classes, activation)
        self.classification_head = (
            None if aux_params is None else ClassificationHead(self.encoder.out_channels[-1], **aux_params)
        )
        self.name = f"segnext-{encoder_name}"
        self.initialize()

    def initialize(self) -> None:
        """Draw the decoder's and the heads' weights as smp does, and the classifier's with standard deviation 0.01."""
        super().initialize()
        nn.init.normal_(self.segmentation_head[0].weight, std=0.01)

    @torch.jit.unused
    def check_input_shape(self, x: torch.Tensor) -> None:
        """Raise an OptionError unless `x` is a batch of images with the model's channels and 32×32 pixels or more."""
        shape = tuple(x.shape)
        if x.ndim != 4 or min(shape[-2:]) < MIN_SIDE:
            raise OptionError(
                f"SegNeXt takes images (B, C, H, W) of {MIN_SIDE}×{MIN_SIDE} pixels or more, got {shape}."
            )
        if shape[1] != self.in_channels:
            raise OptionError(
                f"This model takes images of {self.in_channels} channels, got {shape[1]}. Convert the images, or "
                f"create the model with in_channels={shape[1]}."
            )

    def forward(
        self, x: torch.Tensor, upsampling: int | None = None, activated: bool = True
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Segment images.

        Args:
            x: Images of shape (B, in_channels, H, W), H and W at least 32.
            upsampling: 8 or 1 for this call, in place of the attribute of this name.
            activated: Apply `activation`. Without effect on a head that replaced the model's own.

        Returns:
            Logits, after `activation` if there is one, of shape (B, classes, H, W), or with `upsampling=1` (B, classes,
            H / 8, W / 8), rounded up; with `aux_params`, a tuple of these and the classification head's output.
        """
        if upsampling is None:
            upsampling = self.upsampling
        if not (torch.jit.is_scripting() or torch.jit.is_tracing() or is_torch_compiling()):
            _check_upsampling(upsampling)
            self.check_input_shape(x)
        features = self.encoder(x)
        size: list[int] | None = [x.shape[-2], x.shape[-1]] if upsampling != 1 else None
        masks = self.decoder(features)
        if hasattr(self.segmentation_head, "takes_size"):
            masks = self.segmentation_head(masks, size, activated)
        else:  # a head of the user's
            masks = self.segmentation_head(masks)
            if size is not None:
                masks = resize(masks, size)
        if self.classification_head is not None:
            return masks, self.classification_head(features[-1])
        return masks

    @torch.jit.unused
    def predict_labels(self, x: torch.Tensor) -> torch.Tensor:
        """Predict labels in evaluation mode, equal to `forward(x).argmax(1)`, without full-resolution logits.

        Calls the model, so that its hooks fire. A model compiled in place, by `model.compile()`, runs compiled.

        Args:
            x: Images of shape (B, in_channels, H, W), H and W at least 32.

        Returns:
            Labels of shape (B, H, W), int64. A model of one class predicts 1 where its probability exceeds 0.5, else 0.
        """
        segmenter = Segmenter(self)
        with torch.no_grad(), evaluation_mode(self):
            maps = segmenter(x)
            if segmenter.gives_logits and maps.shape[1] > 1:
                return resized_argmax(maps, x.shape[-2:])
            if maps.shape[-2:] != x.shape[-2:]:
                maps = resize(maps, list(x.shape[-2:]))
            return segmenter.labels(maps, 1)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's activations in the backward pass: less memory, more time.

        Works block by block in MSCAN and in other timm encoders whose stages support it, else stage by stage.

        Raises:
            OptionError: If the encoder does not support it.
        """
        able: list[Any] = [module for module in self.encoder.modules() if hasattr(module, "grad_checkpointing")]
        if not able:
            raise OptionError(f"The encoder {type(self.encoder).__name__} does not support gradient checkpointing.")
        stages = [module for module in able if module is not getattr(self.encoder, "model", None)]
        for module in stages or able:
            module.grad_checkpointing = enable


def _check_upsampling(upsampling: int) -> None:
    if upsampling not in (1, 8):
        raise OptionError(
            f"upsampling must be 8 (output of the images' size) or 1 (output of the decoder's size), got {upsampling!r}"
        )


def _check_encoder_name(name: str) -> None:
    """Raise an OptionError that lists the nearest names unless `name` is an encoder of smp or timm."""
    plain = name.split(".")[0]
    known = timm.is_model(plain[3:]) if plain.startswith("tu-") else plain in get_encoder_names()
    if not known and not name.startswith("timm-") and ":" not in name:  # an old name, a file
        names = [*get_encoder_names(), *(f"tu-{model}" for model in timm.list_models())]
        near = difflib.get_close_matches(name, names, n=4) or ["tu-mscan_t"]
        raise OptionError(f"Unknown encoder {name!r}. Did you mean {' or '.join(map(repr, near))}?")


def _smp_encoder_weights(encoder_name: str, weights: str | bool | None) -> str | bool | None:
    """Translate `encoder_weights` for smp's `get_encoder`: True for timm's encoders, a name for smp's, or None."""
    if weights in ("imagenet", True):
        return True if encoder_name.startswith("tu-") else "imagenet"
    return weights or None


# Registration with smp: an attribute of the package, and a name for `create_model`
smp.SegNeXt = SegNeXt
smp.MODEL_ARCHITECTURES_MAPPING["segnext"] = SegNeXt
if "SegNeXt" not in smp.__all__:
    smp.__all__.append("SegNeXt")
