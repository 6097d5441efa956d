"""Convert a model to LiteRT (TensorFlow Lite), and compare its output with the model's. Metadata is in FILE.json.

pip install litert-torch ai-edge-litert
python examples/deployment/to_litert.py my-segnext model.tflite --size 512 --argmax
python examples/deployment/run_litert.py model.tflite photo.jpg labels.png
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from converting import run

PACKAGES = ("litert_torch", "ai_edge_litert")


def convert(graph: torch.nn.Module, images: torch.Tensor, path: Path, metadata: dict[str, Any]) -> None:
    import litert_torch

    litert_torch.convert(graph, (images,)).export(str(path))


def execute(path: Path, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


if __name__ == "__main__":
    run(__doc__, ".tflite", convert, execute, PACKAGES)
