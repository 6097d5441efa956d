"""Quantize ONNX graphs to INT8, and put convolutions back to float32 until enough labels agree."""

import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch

from ..errors import ExportError
from .calibration import Calibration
from .precision import Reader, agreement, int8_pays, labels_of, quantize

MIN_AGREEMENT = 0.98  # share of held-out pixels whose label equals the float32 graph's
_FLOAT_SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5)  # of the convolutions, put back to float32 in turn
_RANKING_IMAGES = 4  # the activations of all layers are held for these

_logger = logging.getLogger(__name__)


def quantize_checked(path: Path, samples: Calibration) -> tuple[Any, dict[str, Any]]:
    """Quantize a graph, and compare its labels with the float32 graph's on held-out images.

    If too few labels agree, the convolutions with the largest quantization error are put back to float32, some more in
    each attempt.

    Args:
        path: ONNX model in float32.
        samples: Calibration and held-out images.

    Returns:
        The quantized ONNX model, and facts about it: `agreement`, `convolutions`, `float_convolutions`, `images`, and
        with true labels `miou_fp32` and `miou_int8` in percent.

    Raises:
        ExportError: If too few labels agree even with half of the convolutions in float32.
    """
    import onnx

    if int8_pays() is False:
        _logger.warning("This CPU has no INT8 dot products (VNNI, AMX): an int8 graph is not faster than fp32 here.")
    convolutions = [
        node.name for node in onnx.load(path, load_external_data=False).graph.node if node.op_type == "Conv"
    ]
    expected = list(labels_of(path, samples.held_out, samples.threshold))
    ranking: list[str] = []
    found = 0.0
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        _prepare(path, source)
        for share in _FLOAT_SHARES:
            if share and not ranking:
                ranking = _rank(source, target, samples.images[:_RANKING_IMAGES])
            restored = ranking[: round(share * len(convolutions))]
            quantize(source, target, samples.images, restored)
            labels = list(labels_of(target, samples.held_out, samples.threshold))
            found = agreement(expected, labels)
            _logger.info(
                f"int8: {found:.2%} of the held-out labels are equal, with {len(restored)} of {len(convolutions)} "
                f"convolutions in float32."
            )
            if found >= MIN_AGREEMENT:
                break
        else:
            raise ExportError(
                f"Only {found:.2%} of the held-out labels equal the float32 model's, even with half of the "
                f"convolutions in float32; {MIN_AGREEMENT:.0%} are required. Use fp32, or better calibration images."
            )
        facts: dict[str, Any] = {
            "agreement": round(found, 5),
            "images": len(samples.images),
            "held_out_images": len(samples.held_out),
            "convolutions": len(convolutions),
            "float_convolutions": len(restored),
        }
        if samples.labels is not None:
            for name, predicted in (("miou_fp32", expected), ("miou_int8", labels)):
                maps = [torch.from_numpy(np.stack(x)) for x in ([p[0] for p in predicted], samples.labels)]
                counts = smp.metrics.get_stats(*maps, "multiclass", 255, num_classes=samples.num_classes)
                hits, excess, missed, _ = (count.sum(0) for count in counts)
                facts[name] = round(100 * (hits / (hits + excess + missed)).nanmean().item(), 2)
            _logger.info(f"int8: mIoU {facts['miou_int8']:.2f}, and {facts['miou_fp32']:.2f} in float32.")
        return onnx.load(target), facts


def _prepare(path: Path, target: Path) -> None:
    """Infer shapes, which the quantizer needs, without other changes to the graph."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(path, target, skip_optimization=True, skip_symbolic_shape=True)


def _rank(source: Path, quantized: Path, images: Sequence[np.ndarray]) -> list[str]:
    """Sort the convolutions by the error of their quantized input, largest first."""
    import onnx
    from onnxruntime.quantization import qdq_loss_debug as debug

    folder = source.parent
    activations = []
    for file in (source, quantized):
        augmented = folder / f"{file.stem}_activations.onnx"
        debug.modify_model_output_intermediate_tensors(file, augmented)
        activations.append(debug.collect_activations(str(augmented), Reader(images)))
    matched = debug.create_activation_matching(activations[1], activations[0])
    errors = debug.compute_activation_error(matched)
    ratios = {name: error["qdq_err"] for name, error in errors.items()}  # signal to noise: small is bad
    nodes = [node for node in onnx.load(source).graph.node if node.op_type == "Conv"]
    return [node.name for node in sorted(nodes, key=lambda node: ratios.get(node.input[0], math.inf))]
