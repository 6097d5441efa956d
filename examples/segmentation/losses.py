"""Losses by name, and your own.

All take the model's logits and labels. Cross-entropy never holds logits of the images' size. The others do, in float32,
since the Dice of a whole batch is not the mean of its parts: they need more memory, in proportion to the classes.

How they are averaged:

- `ce`, `focal` and `ohem` are summed over the pixels and divided by the number of all pixels, as in the published code:
  ignored pixels count as 0.
- `dice` and `lovasz` compare the pixels of a whole batch that are not ignored, class by class, and average over the
  classes that its labels hold, `dice` by the class weights: of each process, and of each accumulated part of a batch,
  by itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss

from segnext_timm import UpsampledCrossEntropyLoss

from .hooks import load_function
from .recipe import SettingsError, TrainSettings

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Losses, and the options that each takes
LOSSES: dict[str, tuple[str, ...]] = {
    "ce": ("class_weights", "label_smoothing"),
    "ce+dice": ("class_weights", "label_smoothing"),
    "dice": ("class_weights",),
    "focal": ("class_weights",),
    "lovasz": (),
    "ohem": (),
}

# Label of ignored pixels in a loss of one's own, whatever it is in the data: the default of torch's losses
OWN_IGNORE_INDEX = -100

# mmsegmentation's OHEMPixelSampler: thresh=0.7, and min_kept=100000 of a crop of 512×1024, which is a fifth
_SURE, _LEAST_SHARE = 0.7, 0.2

_LEAST_WEIGHT = 1e-9  # a divisor in place of 0, if all pixels are ignored


def check_loss(settings: TrainSettings, classes: Sequence[str]) -> None:
    """Refuse an unknown loss, and options that it does not take.

    Raises:
        SettingsError: If there is no such loss, it does not take an option, or an option is out of its range.
    """
    loss, weights = settings.loss, settings.class_weights
    if ":" in loss:
        load_function("loss", loss)
    elif loss not in LOSSES:
        raise SettingsError(f"--loss {loss}: choose from {', '.join(LOSSES)}, or name your own as module:function.")
    if loss == "lovasz" and settings.deterministic and torch.cuda.is_available():
        raise SettingsError("--loss lovasz and --deterministic cannot be combined on a GPU: torch lacks its kernels.")
    for option, given in (("class_weights", weights != "none"), ("label_smoothing", settings.label_smoothing != 0)):
        if given and option not in LOSSES.get(loss, ()):
            able = ", ".join(name for name, options in LOSSES.items() if option in options)
            raise SettingsError(f"--{option} and --loss {loss} cannot be combined: --{option} works with {able}.")
    if isinstance(weights, tuple):
        if len(weights) != len(classes):
            raise SettingsError(
                f"--class_weights needs a number for each of the {len(classes)} classes, in their order "
                f"({', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}), got {len(weights)}."
            )
        if not any(weights):
            raise SettingsError("--class_weights must not all be 0.")


def build_loss(
    settings: TrainSettings,
    ignore_index: int,
    class_weights: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
) -> Loss:
    """Create the loss of a model's output and of labels (B, H, W), a scalar in float32.

    The output is logits (B, classes, h, w), or a tuple that begins with them. If all pixels of a batch are ignored, the
    loss is 0, and so is its gradient.

    Args:
        settings: Loss and label smoothing.
        ignore_index: Label of pixels that do not count.
        class_weights: Weight of each class.
        device: Device of the logits.
    """
    weights = None if class_weights is None else torch.tensor(class_weights, device=device)
    cross_entropy = UpsampledCrossEntropyLoss(weights, ignore_index, "sum", settings.label_smoothing)
    by_pixel = UpsampledCrossEntropyLoss(ignore_index=ignore_index, reduction="none")
    dice_of_all = DiceLoss("multiclass", ignore_index=ignore_index, class_weights=weights)
    # smp's is of each class against all others; a sum over no pixel is 0, but a mean is not a number
    focal = FocalLoss("multiclass", ignore_index=ignore_index, class_weights=weights, reduction="sum")
    lovasz = LovaszLoss("multiclass", ignore_index=ignore_index)

    def dice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # smp's mean is over all classes, of which those that are absent from the labels add 0
        classes = logits.shape[1]
        each = logits.new_ones(classes, dtype=torch.float32) if weights is None else weights
        places = labels.where(labels != ignore_index, classes).flatten()
        present = each.new_zeros(classes + 1).scatter_(0, places, 1.0)[:classes]
        share = (each * present).sum() / each.sum()
        return dice_of_all(full_size(logits, labels), labels) / share.clamp(min=_LEAST_WEIGHT)

    losses: dict[str, Loss] = {
        "ce": lambda logits, labels: cross_entropy(logits, labels) / labels.numel(),
        "ce+dice": lambda logits, labels: losses["ce"](logits, labels) + losses["dice"](logits, labels),
        "dice": dice,
        "focal": lambda logits, labels: focal(full_size(logits, labels), labels) / labels.numel(),
        # smp gives an empty tensor if all pixels are ignored; the sum of a scalar is itself
        "lovasz": lambda logits, labels: lovasz(full_size(logits, labels), labels).sum(),
        "ohem": lambda logits, labels: sum_of_hard(by_pixel(logits, labels)) / labels.numel(),
    }
    if settings.loss not in losses:
        own = load_function("loss", settings.loss)
        losses[settings.loss] = lambda logits, labels: own(
            full_size(logits, labels), labels.where(labels != ignore_index, OWN_IGNORE_INDEX)
        )

    def loss_of(output: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        logits = output[0] if isinstance(output, tuple) else output
        with torch.autocast(logits.device.type, enabled=False):
            return losses[settings.loss](logits, labels)

    return loss_of


def full_size(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Resize logits (B, classes, h, w) to the size of labels (B, H, W), in float32."""
    return F.interpolate(logits.float(), labels.shape[1:], mode="bilinear")


def sum_of_hard(losses: torch.Tensor) -> torch.Tensor:
    """Sum the losses (B, H, W) of hard pixels: online hard example mining (https://arxiv.org/abs/1604.03540).

    Hard are the pixels whose true class has a probability below 0.7, and at least the fifth with the highest loss.
    """
    highest = losses.detach().flatten().topk(max(int(_LEAST_SHARE * losses.numel()), 1)).values
    hard = losses >= highest[-1].clamp(max=-math.log(_SURE))
    return losses.where(hard, 0).sum()
