"""Convert a model to Core ML for iOS 16, macOS 13 and later, and compare its output with the model's on a Mac.

pip install coremltools
python examples/deployment/to_coreml.py my-segnext model.mlpackage --size 512 --argmax --precision fp16

Elsewhere, where Core ML does not run, the names and the number of inputs and outputs are checked.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from converting import run

from segnext_timm.errors import ExportError

PACKAGES = ("coremltools",)


def convert(graph: torch.nn.Module, images: torch.Tensor, path: Path, metadata: dict[str, Any]) -> None:
    import coremltools

    precision = coremltools.precision
    package = coremltools.convert(
        torch.export.export(graph, (images,), strict=False).run_decompositions({}),
        inputs=[coremltools.TensorType(name="images", shape=tuple(images.shape))],
        outputs=[coremltools.TensorType(name=metadata["output"])],
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target.iOS16,
        compute_precision=precision.FLOAT16 if metadata["precision"] == "fp16" else precision.FLOAT32,
    )
    for key, value in metadata.items():
        package.user_defined_metadata[key] = value if isinstance(value, str) else json.dumps(value)
    package.save(str(path))


def execute(path: Path, images: np.ndarray) -> np.ndarray | None:
    import coremltools

    package = coremltools.models.MLModel(str(path), skip_model_load=sys.platform != "darwin")
    description = package.get_spec().description
    if [tensor.name for tensor in description.input] != ["images"] or len(description.output) != 1:
        raise ExportError("The Core ML package has other inputs or outputs than the model.")
    return next(iter(package.predict({"images": images}).values())) if sys.platform == "darwin" else None


if __name__ == "__main__":
    run(__doc__, ".mlpackage", convert, execute, PACKAGES, precisions=("fp32", "fp16"))
