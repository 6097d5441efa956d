"""Lower the precision of models for export: float16 by casting modules, INT8 by ONNX Runtime's quantizer.

The matrix decomposition, the norms and everything at the images' size stay in float32 in both.
"""

import copy
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn as nn

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


class _InFloat32(nn.Module):
    """Runs a module in float32 and returns the dtype that it got."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x.float()).to(x.dtype)


def _to_float(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook: convert outputs to float32."""
    if isinstance(output, torch.Tensor):
        return output.float()
    return type(output)(x.float() for x in output)


def half_copy(model: nn.Module) -> nn.Module:
    """Copy a model for tracing in float16, with inputs and outputs in float32.

    Norms, the matrix decomposition (by itself) and everything after a segmentation head's convolution run in float32.
    """
    model = copy.deepcopy(model).half()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm | nn.GroupNorm) and not isinstance(parent, _InFloat32):
                setattr(parent, name, _InFloat32(child))
    first: Any = getattr(model, "encoder", model)
    first.register_forward_pre_hook(lambda module, inputs: (inputs[0].half(), *inputs[1:]))
    head: Any = getattr(model, "segmentation_head", None)
    (model if head is None else head[0]).register_forward_hook(_to_float)
    classifier: Any = getattr(model, "classification_head", None)
    if classifier is not None:
        classifier.register_forward_hook(_to_float)
    return model


def labels_of(path: Path, images: Iterable[np.ndarray], threshold: float = 0.0) -> Iterator[np.ndarray]:
    """Yield the labels (B, H, W) that a graph predicts for images.

    Args:
        path: ONNX model whose first output is logits (B, classes, H, W) or labels (B, H, W).
        images: Normalized images (B, C, H, W).
        threshold: Output above which a binary model predicts its class.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for image in images:
        output = session.run(None, {"images": image})[0]
        if output.ndim == 4:
            output = output.argmax(1) if output.shape[1] > 1 else (output[:, 0] > threshold).astype(np.int64)
        yield output


def agreement(labels: Sequence[np.ndarray], others: Iterable[np.ndarray]) -> float:
    """Compute the share of pixels with equal labels."""
    equal = total = 0
    for one, other in zip(labels, others):
        equal += int((one == other).sum())
        total += one.size
    return equal / total


class Reader:
    """Feeds calibration images to ONNX Runtime."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image as the graph's input; None at the end."""
        image = next(self.images, None)
        return None if image is None else {"images": image}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.get_next, None)


def quantize(source: Path, target: Path, images: Sequence[np.ndarray], keep_float: Sequence[str] = ()) -> None:
    """Quantize a graph's convolutions to INT8: weights per output channel, activations calibrated on images.

    Args:
        source: ONNX model in float32.
        target: ONNX model to write, with QuantizeLinear and DequantizeLinear nodes.
        images: Normalized calibration images (B, C, H, W).
        keep_float: Names of the convolutions that stay in float32.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        target,
        Reader(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(keep_float),
        calibrate_method=CalibrationMethod.MinMax,
    )


def int8_pays() -> bool | None:
    """Whether this CPU has INT8 dot products (VNNI, AMX, or ARM's); None if unknown.

    Without them, INT8 convolutions are not faster than float32.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True if platform.machine().lower() in ("arm64", "aarch64") else None
    flags = set(text.split())
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
