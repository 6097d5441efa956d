"""Models to measure by name: SegNeXt, mmsegmentation's SegNeXt where it is installed, and any of smp or timm."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch

from publishing.reference import import_mmseg
from segmentation.recipe import UserError
from segnext_timm import SegNeXt, UpsampledCrossEntropyLoss, create_segmenter


def build(name: str, classes: int) -> torch.nn.Module:
    """A model with random weights, in evaluation mode.

    Args:
        name: "segnext_t" (s, b, l) for this package's; "mmseg_t" (s, b, l) for mmsegmentation's; "segformer:mit_b0" or
            any other architecture and encoder of smp; else a model of timm. SegNeXt has the sizes of mmsegmentation's
            configurations for ADE20K.
        classes: Number of classes.

    Raises:
        ImportError: If mmsegmentation is asked for and not installed.
        UserError: If there is no such model.
    """
    torch.manual_seed(0)
    if name.startswith("segnext_"):
        return create_segmenter(name, classes=classes).eval()
    if name.startswith("mmseg_"):
        return _mmseg_segnext(create_segmenter(name.replace("mmseg", "segnext"), classes=classes)).eval()
    if ":" in name:
        architecture, encoder = name.split(":", 1)
        return smp.create_model(architecture, encoder, encoder_weights=None, classes=classes).eval()
    if not timm.is_model(name):
        raise UserError(f"{name!r} is not a timm model, and not of the form segnext_t, mmseg_t or segformer:mit_b0.")
    return timm.create_model(name, num_classes=classes).eval()


def _mmseg_segnext(like: SegNeXt) -> torch.nn.Module:
    """mmsegmentation's SegNeXt of the sizes of one of this package's, as its configurations build it."""
    models = import_mmseg()
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    from mmengine.registry import init_default_scope

    init_default_scope("mmseg")
    stages = [module for name, module in like.encoder.model.named_children() if name.startswith("stages")]
    dims = like.encoder.out_channels[2:]
    channels = like.decoder.align.out_channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return models.EncoderDecoder(
            backbone={
                "type": "MSCAN",
                "embed_dims": list(dims),
                "depths": [len(stage.blocks) for stage in stages],
                "mlp_ratios": [stage.blocks[0].mlp.fc1.out_channels // dim for stage, dim in zip(stages, dims)],
                "drop_path_rate": 0.1,
                "norm_cfg": {"type": "BN"},
            },
            decode_head={
                "type": "LightHamHead",
                "in_channels": list(dims[1:]),
                "in_index": [1, 2, 3],
                "channels": channels,
                "ham_channels": channels,
                "ham_kwargs": {"MD_R": like.decoder.hamburger.nmf.rank},
                "dropout_ratio": 0.1,
                "num_classes": like.segmentation_head[0].out_channels,
                "norm_cfg": {"type": "GN", "num_groups": 32},
                "align_corners": False,
                "loss_decode": {"type": "CrossEntropyLoss"},
            },
            train_cfg={},
            test_cfg={"mode": "whole"},
        )


def logits_of(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes of images logits at their size, or of a classifier its logits."""
    if not hasattr(model, "encode_decode"):
        return model

    def run(images: torch.Tensor) -> torch.Tensor:
        size = tuple(images.shape[-2:])
        return model.encode_decode(images, [{"img_shape": size, "ori_shape": size, "pad_shape": size}])

    return run


def labels_of(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes of images labels at their size."""
    if isinstance(model, SegNeXt):
        return model.predict_labels
    logits = logits_of(model)
    return lambda images: logits(images).argmax(1)


def loss_of(model: torch.nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What makes of images and labels the loss that the model's users train on, labels of 255 left out."""
    if isinstance(model, SegNeXt):
        model.upsampling = 1
        loss = UpsampledCrossEntropyLoss(ignore_index=255)
        return lambda images, labels: loss(model(images), labels)
    if not hasattr(model, "encode_decode"):
        return lambda images, labels: torch.nn.functional.cross_entropy(model(images), labels, ignore_index=255)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    def run(images: torch.Tensor, labels: torch.Tensor) -> Any:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
        return model.loss(images, samples)["decode.loss_ce"]

    return run
