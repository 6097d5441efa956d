"""Export models to ONNX, torch.export, LiteRT, ncnn and Core ML."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn as nn
from segmentation_models_pytorch.base.modules import Clamp

from .._atomic import replace_when_complete
from ..errors import ExportError
from ..models.fusion import fuse
from ..models.model_info import ModelInfo, to_labels
from ..models.segnext import SegNeXt
from . import runtimes
from .calibration import Calibration, Image, read_calibration
from .formats import FORMATS, check_installed, check_name
from .labels import argmax_graph
from .precision import PRECISIONS, Precision, half_copy
from .quantization import quantize_checked

_MIN_SIDE, _MAX_SIDE, _MAX_BATCH = 33, 16384, 1024  # of dynamic sizes; from 33 on, no feature map is a single pixel
# Of an exported model's output against the model's, relative to the largest value
_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}


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
) -> Path:
    """Export a model to a file that runs without this package, in the format of the file's suffix.

    The input `images` is a batch of normalized images (B, C, H, W) in float32. The output is `logits` (B, classes, H,
    W), or `labels` (B, H, W) in int64; a feature extractor's outputs are `feature0` and so on. The file's metadata
    holds mean and standard deviation of the normalization, class names and palette: `metadata_props` of ONNX, the extra
    file `metadata.json` of torch.export.

    ONNX Runtime runs an ONNX file on two images, of two sizes if `dynamic`, and the file stays only if its outputs
    equal the model's. LiteRT and ncnn run theirs on one image. Core ML runs on macOS only; elsewhere its inputs and
    outputs are inspected.

    Args:
        model: SegNeXt on any encoder, another smp model, or a timm model. It is not changed.
        path: The file to write: .onnx, .pt2 (torch.export), .tflite (LiteRT, with the metadata in .tflite.json), .ncnn
            (a folder) or .mlpackage (Core ML).
        input_size: Shape (B, C, H, W) of the images.
        dynamic: Accept other batch sizes and image sizes, with sides from 33 to 16,384 pixels; for smp models with a
            size divisor, multiples of it.
        fuse: Fuse the model first: see :func:`fuse`.
        argmax: Output labels instead of logits. SegNeXt's graph then skips classes that cannot have the largest logit:
            see :meth:`SegNeXt.predict_labels`.
        portable: Build the graph of labels only from operators with static shapes, for runtimes such as TensorRT.
            Slower in ONNX Runtime on CPUs. Needs `argmax`.
        precision: "fp32"; "fp16"; or "int8", by post-training quantization in QDQ form. fp16 and int8 keep the matrix
            decomposition, the norms and the resizing in float32. int8 is for ONNX; fp16 for ONNX, ncnn and Core ML.
        calibration: For int8, images like those that the model will get, unnormalized: a folder, or a sequence of what
            :func:`predict` takes. Three quarters calibrate the activations; the rest is held out to compare the labels
            with the float32 model's. A folder may hold `images` and `labels` with equal names; then mIoU is measured
            too.

    Returns:
        The path.

    Raises:
        ValueError: If the file name has another suffix, the shape does not fit the model, `argmax` is set for a model
            without a map of logits, or an option is invalid.
        ExportError: If the model cannot be exported (the message names the part), or if the exported graph's output
            differs from the model's; for int8, if fewer than 98% of the held-out labels are equal even with half of the
            convolutions in float32. No file is left.
        FileNotFoundError: If there are no calibration images.
        ImageError: If a calibration image cannot be read, or does not fit the model.
        ImportError: If a package that the format needs is missing.
    """
    path = Path(path)
    check_name(path)
    if len(input_size) != 4 or min(input_size) < 1:
        raise ValueError(f"input_size is a shape (B, C, H, W), got {tuple(input_size)}.")
    _check_options(path, argmax, portable, dynamic, precision, calibration)
    check_installed(path.suffix)
    samples: Calibration | None = None
    if precision == "int8" and calibration is not None:
        samples = read_calibration(calibration, ModelInfo(model), input_size)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    if fuse:
        model = _fuse(model, inplace=True)
    portable = portable or path.suffix in runtimes.FORMATS
    half = half_copy(model) if precision == "fp16" and path.suffix == ".onnx" else None
    graph = traced = _Labels(model, portable) if argmax else model
    if half is not None:
        traced = _Labels(half, portable) if argmax else half
    images = torch.randn(input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(images)  # raises if the shape does not fit
    if (argmax or precision == "int8") and (isinstance(output, list) or _masks(output).ndim != 4):
        what = "argmax" if argmax else "int8"
        raise ValueError(f"{what} needs a model with a map of logits (B, classes, H, W), which this one is not.")
    names = ["labels"] if argmax else _output_names(output)
    metadata = _metadata(model, input_size, dynamic, names) | {"precision": precision}

    if path.suffix in runtimes.FORMATS:
        _write_for_runtime(graph, images, path, names, metadata)
        return path
    program = _trace(traced, images, dynamic)
    with replace_when_complete(path) as written:
        if path.suffix == ".pt2":
            content = io.BytesIO()  # torch's own writer aborts the process when a disk is full
            torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata)})
            written.write_bytes(content.getbuffer())
        else:
            sizes = [input_size, _other_size(model, input_size) if dynamic else input_size]
            _write_checked(program, written, graph, sizes, names, metadata, samples)
    return path


def _check_options(path: Path, argmax: bool, portable: bool, dynamic: bool, precision: str, calibration: Any) -> None:
    """Raise a ValueError for invalid combinations of export's options."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision not in (allowed := FORMATS[path.suffix].precisions):
        raise ValueError(f"{path}: {path.suffix} can be {' or '.join(allowed)}, not {precision}.")
    if dynamic and path.suffix in runtimes.FORMATS:
        raise ValueError(f"{path}: {path.suffix} takes one size of images, so dynamic does not apply.")
    if argmax and path.suffix == ".ncnn":
        raise ValueError(f"{path}: ncnn has no argmax. Export logits, and take the argmax of its output.")
    if portable and not argmax:
        raise ValueError("portable applies to graphs of labels: set argmax (--argmax) too.")
    if precision == "int8" and calibration is None:
        raise ValueError("int8 needs calibration images: pass a folder of them (--calibration DIR).")


def _write_for_runtime(
    graph: nn.Module, images: torch.Tensor, path: Path, names: list[str], metadata: dict[str, Any]
) -> None:
    """Write a file of LiteRT, ncnn or Core ML, and compare its output with the model's."""
    if len(names) > 1:
        raise ValueError(f"{path}: {path.suffix} takes models with one output, this one has {', '.join(names)}.")
    with replace_when_complete(path) as written:
        runtimes.write(graph, images, written, metadata, _TOLERANCES[metadata["precision"]])
    if path.suffix == ".tflite":
        with replace_when_complete(path.with_name(f"{path.name}.json")) as written:
            written.write_text(json.dumps(metadata), encoding="utf-8")


def _write_checked(
    program: torch.export.ExportedProgram,
    path: Path,
    graph: nn.Module,
    sizes: Sequence[tuple[int, int, int, int]],
    names: list[str],
    metadata: dict[str, Any],
    samples: Calibration | None,
) -> None:
    """Write an ONNX file in the precision of its metadata, and compare its outputs with the model's."""
    import onnx

    proto = _to_onnx(program, names)
    onnx.save(proto, path)
    tolerance = _TOLERANCES["fp16" if metadata["precision"] == "fp16" else "fp32"]
    for size in sizes:
        _check_onnx(path, graph, torch.randn(size, generator=torch.Generator().manual_seed(1)), tolerance)
    if metadata["precision"] == "int8":
        assert samples is not None  # checked with the options
        proto, facts = quantize_checked(path, samples)
        metadata = {**metadata, "int8": facts}
    onnx.helper.set_model_props(proto, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()})
    onnx.save(proto, path)


_fuse = fuse  # `export` has a parameter `fuse`


def _masks(output: Any) -> torch.Tensor:
    """Select the maps in a segmentation model's output, without the classification head's output."""
    return output[0] if isinstance(output, tuple) else output


class _Labels(nn.Module):
    """Wrapper that returns labels. Removes the activation of an smp model, which must be a copy."""

    def __init__(self, model: nn.Module, portable: bool = False) -> None:
        super().__init__()
        self.model = model
        info = ModelInfo(model)
        is_segnext = isinstance(model, SegNeXt)
        # another head than SegNeXt's own activates maps before they are resized
        gives_logits = info.keeps_order and (not is_segnext or info.resizes_logits)
        gives_logits = gives_logits or isinstance(info.activation, nn.Identity | None)
        self.threshold = 0.0 if gives_logits and not isinstance(info.activation, Clamp) else info.threshold
        if gives_logits and info.activation is not None:
            cast(nn.Sequential, model.segmentation_head)[-1] = nn.Identity()
        self.by_bands = is_segnext and gives_logits and info.num_classes > 1
        self.portable = portable

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.by_bands:
            return to_labels(_masks(self.model(images)), 1, self.threshold)
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            return cast(SegNeXt, self.model).predict_labels(images)  # what the graph's labels are compared with
        logits = _masks(self.model(images, upsampling=1))
        return argmax_graph(logits, (images.shape[-2], images.shape[-1]), drop_classes=not self.portable)


def _metadata(model: nn.Module, input_size: tuple[int, ...], dynamic: bool, names: list[str]) -> dict[str, Any]:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    try:
        mean, std = ModelInfo(model).normalization
        statistics = {"mean": list(mean), "std": list(std)}
    except ValueError:  # unknown
        statistics = {}
    known = {name: cfg[name] for name in ("label_names", "palette", "dataset", "license") if cfg.get(name)}
    return {"input_size": list(input_size), "dynamic": dynamic, "output": ", ".join(names), **statistics, **known}


def _output_names(output: Any) -> list[str]:
    if isinstance(output, torch.Tensor):
        return ["logits"]
    if isinstance(output, tuple):
        return ["logits", "image_logits"]  # of a segmentation model with a classification head
    return [f"feature{i}" for i in range(len(output))]


def _other_size(model: nn.Module, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Choose another input shape to check a dynamic graph: one more image, smaller and not square."""
    step = ModelInfo(model).size_divisor
    height, width = (max(side // 2 + more, _MIN_SIDE) for side, more in zip(size[2:], (1, 32)))
    return size[0] + 1, size[1], -(-height // step) * step, -(-width // step) * step


def _trace(graph: nn.Module, images: torch.Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    """Trace a model with torch.export; an ExportError names the part that cannot be traced."""
    model = graph.model if isinstance(graph, _Labels) else graph
    shapes = None
    if dynamic:
        step = ModelInfo(model).size_divisor

        def side(name: str) -> Any:
            dim = torch.export.Dim(name, min=-(-_MIN_SIDE // step), max=_MAX_SIDE // step)
            return step * dim if step > 1 else dim

        shapes = ({0: torch.export.Dim("batch", max=_MAX_BATCH), 2: side("height"), 3: side("width")},)
        if images.shape[0] == 1:  # torch.export treats a batch of one as a constant
            images = images.expand(2, -1, -1, -1)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        part, cause = _failing_part(model, images)
        reason = str(cause or error).strip().splitlines()[0]
        raise ExportError(f"{part} cannot be exported: {type(cause or error).__name__}: {reason}") from error


def _failing_part(model: nn.Module, images: torch.Tensor) -> tuple[str, Exception | None]:
    """Find the innermost module that torch.export fails on by itself, called as in the model, and its error."""
    arguments: dict[nn.Module, tuple[tuple, dict]] = {}

    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        arguments.setdefault(module, (args, kwargs))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in model.modules()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()

    def descend(module: nn.Module, name: str, cause: Exception | None) -> tuple[str, Exception | None]:
        for child_name, child in module.named_children():
            if child in arguments:
                args, kwargs = arguments[child]
                try:
                    with torch.no_grad(), _quiet():
                        torch.export.export(child, args, kwargs, strict=False)
                except Exception as error:
                    return descend(child, f"{name}.{child_name}".lstrip("."), error)
        return f"{name or 'The model'} ({type(module).__name__})", cause

    return descend(model, "", None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings, which users cannot act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _to_onnx(program: torch.export.ExportedProgram, names: list[str]) -> Any:
    """Convert a program to an ONNX model."""
    with _quiet():
        exported: Any = torch.onnx.export(
            program, (), dynamo=True, input_names=["images"], output_names=names, verbose=False
        )
    proto = exported.model_proto
    for part in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # source locations, with paths of this machine
    return proto


def _check_onnx(path: Path, graph: nn.Module, images: torch.Tensor, tolerance: float) -> None:
    """Raise an ExportError unless ONNX Runtime reproduces the model's output on some images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]
    with torch.no_grad():
        expected = graph(images)
    expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    for name, output, right in zip((o.name for o in session.get_outputs()), outputs, expected):
        error = float("inf")
        if output.shape == right.shape and right.is_floating_point():
            error = ((output - right).abs().max() / right.abs().max().clamp(min=1e-12)).item()
        elif output.shape == right.shape and isinstance(graph, _Labels):
            error = 0.0 if torch.equal(output, right) else _label_error(graph, images, output)
        if not error <= tolerance:
            raise ExportError(
                f"The ONNX graph's {name} for images {tuple(images.shape)} differ from the model's by {error:.1e} of "
                f"their range; at most {tolerance:.0e} is allowed. No file was written."
            )


@torch.no_grad()
def _label_error(graph: _Labels, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Compute by how much the logits of labels fall short of the largest logits, relative to their range."""
    logits = _masks(graph.model(images))
    if logits.shape[1] == 1:
        logits = torch.cat([torch.full_like(logits, graph.threshold), logits], 1)
    short = logits.amax(1) - logits.gather(1, labels[:, None])[:, 0]
    return (short.max() / logits.abs().max()).item()
