"""Parameter groups for the optimizers of torch."""

from typing import Any

import torch.nn as nn

from ..errors import OptionError
from .model_info import unwrap


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.01, head_lr_scale: float = 10.0
) -> list[dict[str, Any]]:
    """Group a segmentation model's parameters for an optimizer: the encoder at `lr`, all others at a higher rate.

    Norms, biases and layer scales, which have one dimension, get no weight decay. Frozen parameters are left out.

    Args:
        model: Any model of smp, also in `torch.compile`, DataParallel or DistributedDataParallel.
        lr: Learning rate of the encoder. The paper's: 6e-5, with AdamW.
        weight_decay: Weight decay of weights.
        head_lr_scale: Learning rate of decoder and heads, over that of the encoder. The paper's: 10.

    Returns:
        At most four groups, each with its `params`, `lr` and `weight_decay`.

    Raises:
        OptionError: If the model has no `encoder`, as timm's models.

    Example:
        >>> optimizer = torch.optim.AdamW(segnext_timm.parameter_groups(model, lr=6e-5))
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    named = dict(unwrap(model).named_parameters())
    if not any(name.startswith("encoder.") for name in named):
        raise OptionError("parameter_groups takes a segmentation model with an `encoder`. For others, use timm.optim.")
    for name, parameter in named.items():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("encoder."), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr if in_encoder else lr * head_lr_scale,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (in_encoder, decays), parameters in groups.items()
    ]
