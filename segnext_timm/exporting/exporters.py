"""Export models to ONNX and torch.export, and compare the files' outputs with the models'."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn as nn
from torch.export import ExportedProgram

from .._atomic import replace_when_complete
from ..errors import ExportError, OptionError
from ..models.facts import plain_values
from ..models.fusion import fuse as fuse_model
from ..models.model_info import ModelInfo
from ..models.segmenter import Segmenter
from ..prediction.pipeline import check_model
from . import targets
from .calibration import Image, read_calibration
from .label_graph import LabelGraph
from .options import FOLDERS, MAX_SIDE, MIN_SIDE, check_export

_logger = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "int8"]

_MAX_BATCH = 1024  # of graphs of dynamic size
# largest difference of an exported model's output, relative to the largest value; int8 is first written in float32
_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-4}


def export(
    model: nn.Module,
    path: str | Path,
    input_size: tuple[int, int, int, int] = (1, 3, 512, 512),
    dynamic: bool = False,
    fuse: bool = True,
    argmax: bool = False,
    portable: bool = False,
    precision: Precision = "fp32",
    calibration: str | Path | Sequence[Image] | None = None,
    target: Literal["deepness", "transformers", "transformers.js"] | None = None,
    resolution: float | None = None,
) -> Path:
    """Export a model to a file that runs without this package: ONNX, or a program of torch.export; or for one tool.

    The input `images` is a batch of normalized images (B, C, H, W) in float32. The output is `logits` (B, classes, H,
    W), or `labels` (B, H, W) in int64; a feature extractor's outputs are `feature0` and so on. The metadata holds mean
    and standard deviation of the normalization, class names and palette: `metadata_props` of ONNX, the extra file
    `metadata.json` of torch.export.

    The file is run, with `dynamic` on two sizes, and stays only if its outputs equal the model's. Returns `path`.

    Args:
        model: SegNeXt on any encoder, another smp model, or a timm model. It is not changed.
        path: The file to write: .onnx or .pt2 (torch.export); with target "transformers" or "transformers.js" a folder
            of its own, in which transformers.js finds several precisions if they are exported one after another.
        input_size: Shape (B, C, H, W) of the images.
        dynamic: Accept other batch sizes and image sizes, with sides from 33 to 16,384 pixels; for smp models with a
            size divisor, multiples of it.
        fuse: Fuse the model first: see :func:`fuse`.
        argmax: Output labels instead of logits. SegNeXt's graph then skips classes that cannot have the largest logit.
        portable: Build the graph of labels only from operators with static shapes, for runtimes such as TensorRT.
            Slower in ONNX Runtime for many classes. Needs `argmax`.
        precision: "fp32"; for ONNX also "fp16", or "int8" by post-training quantization in QDQ form. Both keep the
            matrix decomposition, the norms and the resizing in float32.
        calibration: For int8, images like those that the model will get, unnormalized: a folder, or a sequence of what
            :func:`predict` takes. A quarter is held out to compare the labels with the float32 model's.
        target: "deepness" for the QGIS plugin Deepness and for GeoDeep: the graph takes one square image of bytes
            divided by 255, and outputs `probabilities` (1, classes, H, W), of two classes for a binary model.
            "transformers" for a folder with the weights of a SegNeXt, which `from_pretrained` and `pipeline` load with
            `trust_remote_code=True` where this package is installed. "transformers.js" for a folder with an ONNX file
            from `pixel_values` to `logits`, of dynamic size. Both get images of three channels of bytes.
        resolution: For Deepness, and only then: centimeters per pixel of the maps that the model was trained on.

    Raises:
        OptionError: If an option is invalid, or does not fit the model.
        ExportError: If a package is missing, the model cannot be exported, or the outputs differ; for int8, if fewer
            than 98% of the held-out labels are equal even with half of the convolutions in float32. No file is left.
        FileNotFoundError: If there are no calibration images.
        ImageError: If a calibration image cannot be read, or does not fit the model.
    """
    check_model(model, "export")
    if not isinstance(input_size, Sequence) or len(input_size) != 4 or min(input_size) < 1:
        raise OptionError(f"input_size is a shape (B, C, H, W), got {input_size}.")
    path = Path(path)
    options = (dynamic, argmax, portable, precision, calibration, target, resolution)
    check_export(path, input_size[0], input_size[2:], *options)
    info = ModelInfo(model)
    samples = None if calibration is None else read_calibration(calibration, info, input_size)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    file, settings = path, None
    if target in FOLDERS:
        settings = targets.transformers_settings(model, path, str(target))
        targets.leave_logits(model)
        if target == "transformers":
            targets.write_folder(path, settings, model)
            return path
        file, dynamic = targets.transformers_js_file(path, precision), True
    if fuse:
        model = fuse_model(model, inplace=True)
    images = torch.randn(input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(images)  # raises if the shape does not fit
        if argmax or target or precision == "int8":
            Segmenter(model)(images)  # raises unless the model gives scores of each pixel
    names = ["labels"] if argmax else ["probabilities"] if target == "deepness" else _output_names(output)
    metadata = describe_graph(model, input_size, names) | {"dynamic": dynamic, "precision": precision}
    metadata["size_divisor"] = info.size_divisor
    half = _half_copy(model) if precision == "fp16" else model
    graph, traced = (LabelGraph(part, portable) if argmax else part for part in (model, half))
    if resolution is not None:
        graph, traced = targets.DeepnessGraph(model), targets.DeepnessGraph(half)
        metadata |= targets.deepness_metadata(info, input_size, resolution)
    program = _trace(traced, images, info.size_divisor if dynamic else None)
    sizes = [input_size]
    if dynamic:
        batch, channels, height, width = input_size
        sizes.append((batch + 1, channels, height + info.size_divisor, width + 2 * info.size_divisor))
    with replace_when_complete(file) as written:
        if file.suffix == ".onnx":
            _write_onnx(program, written, "pixel_values" if settings else "images", names, metadata)
        else:
            content = io.BytesIO()  # torch's own writer aborts the process when a disk is full
            torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata)})
            written.write_bytes(content.getbuffer())
        for size in sizes:
            images = torch.randn(size, generator=torch.Generator().manual_seed(1))
            _compare(written, graph, images, names, _TOLERANCES[precision])
        if samples is not None:
            from .quantization import quantize_checked

            quantize_checked(written, *samples, info.threshold)
    if settings:
        targets.write_folder(path, settings)
    return path


def describe_graph(model: nn.Module, input_size: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """Metadata of an exported model: what is known of its input, its outputs and its classes."""
    cfg = plain_values(getattr(model, "pretrained_cfg", None) or {})
    try:
        mean, std = ModelInfo(model).normalization
        statistics = {"mean": list(mean), "std": list(std)}
    except OptionError as error:
        _logger.warning(f"Mean and std are left out of the metadata: {error}")
        statistics = {}
    stated = ("fit_in", "range", "bands", "label_names", "palette", "dataset", "license")
    known = {name: cfg[name] for name in stated if cfg.get(name)}
    return {"input_size": list(input_size), "output": ", ".join(names), **statistics, **known}


def _output_names(output: Any) -> list[str]:
    if isinstance(output, list):
        return [f"feature{i}" for i in range(len(output))]
    return ["logits", "image_logits"] if isinstance(output, tuple) else ["logits"]  # the former with a classifier


def _half_copy(model: nn.Module) -> nn.Module:
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


def _trace(graph: nn.Module, images: torch.Tensor, step: int | None) -> ExportedProgram:
    """Trace a graph for sizes that are multiples of `step`, or for one size."""
    shapes = None
    if step is not None:
        least, most = -(-MIN_SIDE // step), MAX_SIDE // step
        sides = [torch.export.Dim(name, min=least, max=most) for name in ("height", "width")]
        height, width = [step * side for side in sides] if step > 1 else sides
        shapes = ({0: torch.export.Dim("batch", max=_MAX_BATCH), 2: height, 3: width},)
        if images.shape[0] == 1:  # torch.export treats a batch of one as a constant
            images = images.expand(2, -1, -1, -1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise ExportError(f"The model cannot be exported: {reason}") from error  # whose traceback names the part


def _write_onnx(
    program: ExportedProgram, path: Path, input_name: str, names: Sequence[str], metadata: dict[str, Any]
) -> None:
    """Write an ONNX model without names of this machine's folders."""
    import onnx

    options: dict[str, Any] = {"input_names": [input_name], "output_names": names, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = cast(Any, torch.onnx.export(program, (), dynamo=True, **options)).model_proto
    for part in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # locations in source files
    onnx.helper.set_model_props(proto, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()})
    onnx.save(proto, path)


@torch.no_grad()
def _compare(path: Path, graph: nn.Module, images: torch.Tensor, names: Sequence[str], tolerance: float) -> None:
    """Raise an ExportError unless an exported file gives the model's outputs for some images."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        inputs = {session.get_inputs()[0].name: images.numpy()}
        outputs = [torch.from_numpy(output) for output in session.run(None, inputs)]
    else:
        outputs = _as_list(torch.export.load(path).module()(images))
    for name, output, expected in zip(names, outputs, _as_list(graph(images))):
        if output.shape != expected.shape:
            error = float("inf")
        elif isinstance(graph, LabelGraph):
            error = graph.shortfall(images, output)  # by scores that were resized in another way
        else:
            error = ((output - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
        if not error <= tolerance:
            raise ExportError(
                f"The exported {name} for images {tuple(images.shape)} differ from the model's by {error:.1e} of their "
                f"range; at most {tolerance:.0e} is allowed. No file was written."
            )


def _as_list(output: Any) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else list(output)
