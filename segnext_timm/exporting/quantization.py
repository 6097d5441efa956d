"""Quantize ONNX graphs to INT8 by ONNX Runtime, with as many convolutions as the labels allow.

The matrix decomposition, the norms and the resizing stay in float32.
"""

import json
import logging
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization import qdq_loss_debug as debug
from onnxruntime.quantization.shape_inference import quant_pre_process

from ..errors import ExportError

MIN_AGREEMENT = 0.98  # share of held-out pixels whose label equals the float32 graph's
_FLOAT_SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5)  # shares of the convolutions put back to float32 in turn
_RANKING_IMAGES = 4  # the activations of all layers are held for these

_logger = logging.getLogger(__name__)


class Reader(CalibrationDataReader):
    """Feeds calibration images to ONNX Runtime."""

    def __init__(self, graph: Path, images: Iterable[np.ndarray]) -> None:
        self.name = onnx.load(graph).graph.input[0].name
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image as the graph's input; None at the end."""
        image = next(self.images, None)
        return None if image is None else {self.name: image}


def quantize(source: Path, target: Path, images: Sequence[np.ndarray], keep_float: Sequence[str] = ()) -> None:
    """Quantize convolutions, except those named in `keep_float`, with weights per output channel."""
    quantize_static(
        source,
        target,
        Reader(source, images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(keep_float),
        calibrate_method=CalibrationMethod.MinMax,
    )


def quantize_checked(
    path: Path, images: Sequence[np.ndarray], held_out: Sequence[np.ndarray], threshold: float
) -> None:
    """Quantize a graph in place, and compare its labels with the float32 graph's.

    If too few labels of the held-out images (B, C, H, W) agree, the convolutions with the largest quantization error
    are put back to float32, some more in each attempt. What was measured is under `int8` in the metadata.
    """
    original = onnx.load(path)
    convolutions = [node.name for node in original.graph.node if node.op_type == "Conv"]
    expected = labels_of(path, held_out, threshold)
    ranking: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        # infers shapes, which the quantizer needs, without other changes
        quant_pre_process(path, source, skip_optimization=True, skip_symbolic_shape=True)
        for share in _FLOAT_SHARES:
            if share and not ranking:
                ranking = _rank_by_error(source, target, images[:_RANKING_IMAGES])
            restored = ranking[: round(share * len(convolutions))]
            quantize(source, target, images, restored)
            found = agreement(expected, labels_of(target, held_out, threshold))
            kept = f"{len(restored)} of {len(convolutions)} convolutions in float32"
            _logger.info(f"int8: {found:.2%} of the held-out labels are equal, with {kept}.")
            if found >= MIN_AGREEMENT:
                break
        else:
            raise ExportError(
                f"Only {found:.2%} of the held-out labels equal the float32 model's, even with half of the "
                f"convolutions in float32; {MIN_AGREEMENT:.0%} are required. Use fp32, or better calibration images."
            )
        quantized = onnx.load(target)
    facts = {"agreement": round(found, 5), "images": len(images), "held_out_images": len(held_out)}
    facts |= {"convolutions": len(convolutions), "float_convolutions": len(restored)}
    metadata = {entry.key: entry.value for entry in original.metadata_props}
    onnx.helper.set_model_props(quantized, metadata | {"int8": json.dumps(facts)})
    onnx.save(quantized, path)


def _rank_by_error(source: Path, quantized: Path, images: Sequence[np.ndarray]) -> list[str]:
    """Sort the convolutions by the error of their quantized input, largest first."""
    activations = []
    for file in (source, quantized):
        augmented = file.with_name(f"{file.stem}_activations.onnx")
        debug.modify_model_output_intermediate_tensors(file, augmented)
        activations.append(debug.collect_activations(str(augmented), Reader(file, images)))
    errors = debug.compute_activation_error(debug.create_activation_matching(activations[1], activations[0]))
    ratios = {name: error["qdq_err"] for name, error in errors.items()}  # signal to noise: small is bad
    nodes = [node for node in onnx.load(source).graph.node if node.op_type == "Conv"]
    return [node.name for node in sorted(nodes, key=lambda node: ratios.get(node.input[0], math.inf))]


def labels_of(path: Path, images: Iterable[np.ndarray], threshold: float) -> list[np.ndarray]:
    """Predict labels (B, H, W) for images by a graph whose first output is logits or labels."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {session.get_inputs()[0].name: image})[0] for image in images]
    if outputs[0].ndim == 3:
        return outputs
    return [o.argmax(1) if o.shape[1] > 1 else (o[:, 0] > threshold).astype(np.int64) for o in outputs]


def agreement(labels: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Compute the share of pixels with equal labels, for maps of one shape."""
    return float(np.mean([np.mean(one == other) for one, other in zip(labels, others)]))
