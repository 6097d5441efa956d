"""Export to LiteRT (TensorFlow Lite), ncnn and Core ML, and compare the results with the model.

Each function converts a module with fixed input sizes by the runtime's own converter. LiteRT and ncnn then run the
result. Core ML runs on macOS only, so elsewhere only its inputs and outputs are inspected.
"""

import contextlib
import io
import json
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from ..errors import ExportError

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converters' remarks on standard output and their warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def write_tflite(graph: nn.Module, images: torch.Tensor, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a LiteRT file.

    Args:
        graph: Module in evaluation mode.
        images: Example input of shape (B, C, H, W).
        path: The .tflite file.
        metadata: Not used: LiteRT files have no place for it.
    """
    import litert_torch

    with _quiet():
        converted: Any = litert_torch.convert(graph, (images,))
        converted.export(str(path))


def run_tflite(path: Path, images: np.ndarray) -> np.ndarray:
    """Run a LiteRT file on images."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def write_ncnn(graph: nn.Module, images: torch.Tensor, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write a folder with model.ncnn.param, model.ncnn.bin and metadata.json.

    Args:
        graph: Module in evaluation mode.
        images: Example input of shape (1, C, H, W).
        folder: The folder, which does not exist.
        metadata: Facts for metadata.json. With "fp16" under `precision`, weights are stored in float16.
    """
    import pnnx

    with tempfile.TemporaryDirectory() as work, _quiet(), _quiet_processes():
        pnnx.export(graph, str(Path(work) / "model.pt"), (images,), fp16=metadata["precision"] == "fp16")
        folder.mkdir()
        for name in ("model.ncnn.param", "model.ncnn.bin"):
            shutil.copy(Path(work) / name, folder)
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


@contextlib.contextmanager
def _quiet_processes() -> Iterator[None]:
    """Silence what child processes write to standard output and error."""
    import os

    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as sink:  # noqa: PTH123  (not a file)
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            for target, source in zip((1, 2), saved):
                os.dup2(source, target)
                os.close(source)


def run_ncnn(folder: Path, images: np.ndarray) -> np.ndarray:
    """Run a folder of ncnn on images, in float32."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = False
    net.load_param(str(folder / "model.ncnn.param"))
    net.load_model(str(folder / "model.ncnn.bin"))
    outputs = []
    for image in images:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image)))
        outputs.append(np.array(extractor.extract("out0")[1]))
    return np.stack(outputs)


def write_coreml(graph: nn.Module, images: torch.Tensor, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a Core ML package for iOS 16, macOS 13 and later.

    Args:
        graph: Module in evaluation mode.
        images: Example input of shape (B, C, H, W).
        path: The .mlpackage folder.
        metadata: Facts for the package's user-defined metadata; `precision` chooses float32 or float16.
    """
    import coremltools

    with _quiet():
        program = torch.export.export(graph, (images,), strict=False).run_decompositions({})
        half = metadata["precision"] == "fp16"
        package: Any = coremltools.convert(
            program,
            inputs=[coremltools.TensorType(name="images", shape=tuple(images.shape))],
            outputs=[coremltools.TensorType(name=metadata["output"])],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32,
        )
        for key, value in metadata.items():
            package.user_defined_metadata[key] = value if isinstance(value, str) else json.dumps(value)
        package.save(str(path))


def run_coreml(path: Path, images: np.ndarray) -> np.ndarray | None:
    """Run a Core ML package on images; None where Core ML does not exist."""
    import coremltools

    package: Any = coremltools.models.MLModel(str(path), skip_model_load=sys.platform != "darwin")
    description = package.get_spec().description
    if [tensor.name for tensor in description.input] != ["images"] or len(description.output) != 1:
        raise ExportError("The Core ML package has other inputs or outputs than the model.")
    if sys.platform != "darwin":
        _logger.info("Core ML runs on macOS only: the package was converted and inspected, but not run.")
        return None
    return next(iter(package.predict({"images": images}).values()))


Writer = Callable[[nn.Module, torch.Tensor, Path, Mapping[str, Any]], None]
Runner = Callable[[Path, np.ndarray], np.ndarray | None]
FORMATS: dict[str, tuple[Writer, Runner]] = {
    ".tflite": (write_tflite, run_tflite),
    ".ncnn": (write_ncnn, run_ncnn),
    ".mlpackage": (write_coreml, run_coreml),
}


def write(graph: nn.Module, images: torch.Tensor, path: Path, metadata: Mapping[str, Any], tolerance: float) -> None:
    """Convert a graph to the format of a path, and compare its output with the graph's.

    Args:
        graph: Module in evaluation mode that returns one tensor.
        images: Example input of shape (B, C, H, W).
        path: The file or folder to write, in an empty folder.
        metadata: Facts for the file.
        tolerance: Allowed difference relative to the largest value, for labels the allowed share of different ones.

    Raises:
        ExportError: If the converter fails, or the outputs differ.
    """
    writer, runner = FORMATS[path.suffix]
    try:
        writer(graph, images, path, metadata)
    except Exception as error:  # the converters raise many types of errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"The converter of {path.suffix} failed: {type(error).__name__}: {reason}") from error
    probe = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    output = runner(path, probe.numpy())
    if output is None:
        return
    with torch.no_grad():
        expected = graph(probe).numpy()
    if output.shape != expected.shape:
        raise ExportError(f"The {path.suffix} output has the shape {output.shape}, the model's {expected.shape}.")
    if np.issubdtype(expected.dtype, np.integer):
        difference = float((output != expected).mean())
    else:
        difference = float(np.abs(output - expected).max() / np.abs(expected).max())
    if not difference <= tolerance:
        raise ExportError(
            f"The {path.suffix} output differs from the model's by {difference:.1e}. No file was written."
        )
