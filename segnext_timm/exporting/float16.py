"""Copies of models that compute in float16, for tracing."""

import copy
from typing import Any

import torch
import torch.nn as nn


def half_copy(model: nn.Module) -> nn.Module:
    """Copy a model for tracing in float16, with inputs and outputs in float32.

    Norms, the matrix decomposition (by itself) and everything after a segmentation head's convolution run in float32.
    ONNX Runtime's converter of graphs would round every intermediate result of the decomposition to float16.
    """
    model = copy.deepcopy(model).half()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
            module.register_forward_hook(lambda _, inputs, output: output.half())
    first: Any = getattr(model, "encoder", model)
    first.register_forward_pre_hook(lambda _, inputs: (inputs[0].half(), *inputs[1:]))
    head: Any = getattr(model, "segmentation_head", model)
    convolutions = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    for last in (model if head is model else convolutions[-1], getattr(model, "classification_head", None)):
        if last is not None:
            last.register_forward_hook(_to_float)
    return model


def _to_float(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output.float() if isinstance(output, torch.Tensor) else type(output)(x.float() for x in output)
