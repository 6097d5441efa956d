"""Exported models in their runtimes: one function per runtime, each returning the call that runs a case once."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segnext_timm import export

from .cases import Case, NotApplicableError, prepare_torch
from .peers import build

OPTIONS = ("portable", "fp16", "int8")  # after the colon: onnx:portable, openvino:int8


@dataclass(frozen=True)
class Runtime:
    """A runtime: packages it needs, suffix of its files, options of the export that it takes, and its function."""

    packages: tuple[str, ...]
    suffix: str
    options: tuple[str, ...]
    load: Callable[[Path, np.ndarray, int], Callable[[], Any]]


def load_onnxruntime(file: Path, images: np.ndarray, threads: int) -> Callable[[], Any]:
    """ONNX Runtime, with the providers that it has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=onnxruntime.get_available_providers())
    return lambda: session.run(None, {"images": images})[0]


def load_openvino(file: Path, images: np.ndarray, threads: int) -> Callable[[], Any]:
    """OpenVINO on the CPU, in float32 except for quantized convolutions."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    return lambda: request.infer({"images": images})[0]


def load_litert(file: Path, images: np.ndarray, threads: int) -> Callable[[], Any]:
    """LiteRT on the CPU, with XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(str(file), num_threads=threads)
    interpreter.allocate_tensors()
    given, returned = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def call() -> np.ndarray:
        interpreter.set_tensor(given, images)
        interpreter.invoke()
        return interpreter.get_tensor(returned)

    return call


def load_ncnn(file: Path, images: np.ndarray, threads: int) -> Callable[[], Any]:
    """ncnn on the CPU, with arithmetic in float32."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = False
    net.opt.num_threads = threads
    net.load_param(str(file / "model.ncnn.param"))
    net.load_model(str(file / "model.ncnn.bin"))

    def call() -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(images[0]))
        return extractor.extract("out0")[1]

    return call


def load_aotinductor(file: Path, images: np.ndarray, threads: int) -> Callable[[], Any]:
    """Compile a .pt2 program with AOTInductor, which needs a C++ compiler, and load the result."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    torch.set_num_threads(threads)
    package = file.with_suffix(".aoti.pt2")
    if not package.is_file():
        aoti_compile_and_package(torch.export.load(file), package_path=str(package))
    program, batch = aoti_load_package(str(package)), torch.from_numpy(images)
    return lambda: program(batch)


RUNTIMES = {
    "onnx": Runtime(("onnxruntime",), ".onnx", OPTIONS, load_onnxruntime),
    "openvino": Runtime(("openvino",), ".onnx", OPTIONS, load_openvino),
    "litert": Runtime(("ai_edge_litert", "litert_torch"), ".tflite", (), load_litert),
    "ncnn": Runtime(("ncnn", "pnnx"), ".ncnn", ("fp16",), load_ncnn),
    "aotinductor": Runtime((), ".pt2", ("portable",), load_aotinductor),
}
CONVERTERS = {"litert": "to_litert", "ncnn": "to_ncnn"}  # scripts of examples/deployment


def prepare(case: Case) -> Callable[[], Any]:
    """Build the function that runs a case once."""
    return prepare_runtime(case) if case.way in RUNTIMES else prepare_torch(case)


def missing(case: Case) -> str | None:
    """Name the packages that a case needs and that are not installed; None if there are none."""
    needed = list(RUNTIMES[case.way].packages) if case.way in RUNTIMES else []
    needed += ["mmseg"] if case.model.startswith("mmseg") else []
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def prepare_runtime(case: Case) -> Callable[[], Any]:
    """Build the call of an exported graph in its runtime. Exports the graph if its file does not exist."""
    runtime, options = RUNTIMES[case.way], case.options
    if case.task == "train":
        raise NotApplicableError(f"{case.way!r} does not apply to training")
    unknown = set(options) - set(runtime.options)
    if unknown:
        raise NotApplicableError(f"{case.way!r} does not take the options {', '.join(sorted(unknown))}")
    if {"fp16", "int8"} <= set(options):
        raise NotApplicableError("a graph is fp16 or int8, not both")
    if case.way == "ncnn" and case.task == "labels":
        raise NotApplicableError("ncnn has no argmax")
    images = case.images().cpu()
    file = case.file.with_name(f"{'-'.join((case.file.name, *sorted(options)))}{runtime.suffix}")
    if not file.exists():
        _export(case, file, tuple(images.shape), options)
    return runtime.load(file, images.numpy(), case.threads)


def _export(case: Case, file: Path, shape: tuple[int, ...], options: Sequence[str]) -> None:
    """Export a case's model. For int8, calibrate on random images: the times need no accuracy."""
    labels = case.task == "labels"
    model = build(case.model, case.classes)
    precision = "fp16" if "fp16" in options else "fp32"
    if case.way in CONVERTERS:
        sys.path.append(str(Path(__file__).parents[1] / "deployment"))  # its scripts import each other by name
        converter, converting = (importlib.import_module(name) for name in (CONVERTERS[case.way], "converting"))
        converting.write(model, file, shape[2:], converter.convert, converter.execute, labels, precision)
        return
    export(model, file, shape, argmax=labels, portable=labels and "portable" in options, precision=precision)
    if "int8" in options:
        from segnext_timm.exporting.quantization import quantize

        images = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy() for seed in range(2)]
        quantize(file, file, images)
