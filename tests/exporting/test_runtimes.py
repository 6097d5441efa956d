"""LiteRT, ncnn and Core ML: their graphs give the model's output, or the file is not left."""

import json
import sys

import numpy as np
import pytest
import torch

from segnext_timm import export
from segnext_timm.errors import ExportError
from segnext_timm.exporting import formats, runtimes
from small_models import narrow

SIZE = (1, 3, 64, 96)
NAMES = {"label_names": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.25] * 3}
pytestmark = pytest.mark.slow  # the converters are large


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = narrow(pretrained_cfg=NAMES).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    return model


def need(suffix):
    for package in formats.FORMATS[suffix].packages:
        pytest.importorskip(package)


def probe():
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(5))


def close(output, expected, tolerance=1e-4):
    expected = expected.detach().numpy()
    assert output.shape == expected.shape
    assert np.abs(output - expected).max() <= tolerance * np.abs(expected).max()


def test_litert_gives_the_logits_and_the_labels(model, tmp_path):
    need(".tflite")
    logits = export(model, tmp_path / "logits.tflite", SIZE)
    close(runtimes.run_tflite(logits, probe().numpy()), model(probe()))
    metadata = json.loads((tmp_path / "logits.tflite.json").read_text())
    assert (metadata["label_names"], metadata["output"], metadata["mean"]) == (["a", "b", "c"], "logits", [0.5] * 3)
    labels = runtimes.run_tflite(export(model, tmp_path / "labels.tflite", SIZE, argmax=True), probe().numpy())
    assert (labels == model.predict_labels(probe()).numpy()).mean() > 0.9999
    assert {f.name for f in tmp_path.iterdir()} == {
        f"{name}.tflite{end}" for name in ("logits", "labels") for end in ("", ".json")
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_ncnn_gives_the_logits(model, tmp_path, precision):
    need(".ncnn")
    folder = export(model, tmp_path / "model.ncnn", SIZE, precision=precision)
    close(runtimes.run_ncnn(folder, probe().numpy()), model(probe()), 1e-4 if precision == "fp32" else 1e-2)
    assert {f.name for f in folder.iterdir()} == {"model.ncnn.param", "model.ncnn.bin", "metadata.json"}
    assert json.loads((folder / "metadata.json").read_text())["label_names"] == ["a", "b", "c"]
    export(model, folder, SIZE, precision=precision)  # replaced


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("argmax", [False, True])
def test_core_ml_is_converted_and_inspected(model, tmp_path, precision, argmax):
    need(".mlpackage")
    import coremltools

    path = export(model, tmp_path / "model.mlpackage", SIZE, precision=precision, argmax=argmax)
    package = coremltools.models.MLModel(str(path), skip_model_load=True)
    (image,), (output,) = package.get_spec().description.input, package.get_spec().description.output
    assert (image.name, list(image.type.multiArrayType.shape)) == ("images", list(SIZE))
    assert output.name == ("labels" if argmax else "logits")
    assert json.loads(package.user_defined_metadata["label_names"]) == ["a", "b", "c"]
    if sys.platform == "darwin":
        result = runtimes.run_coreml(path, probe().numpy())
        assert result.shape == ((1, 64, 96) if argmax else (1, 3, 64, 96))


def test_a_graph_that_differs_is_not_left(model, tmp_path, monkeypatch):
    need(".ncnn")
    monkeypatch.setitem(
        runtimes.FORMATS, ".ncnn", (runtimes.write_ncnn, lambda path, images: runtimes.run_ncnn(path, images) + 1)
    )
    with pytest.raises(ExportError, match=r"The \.ncnn output differs from the model's by"):
        export(model, tmp_path / "model.ncnn", SIZE)
    assert not list(tmp_path.iterdir())


def test_a_converter_that_fails_is_named_and_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("unsupported operator\nmore")

    monkeypatch.setitem(runtimes.FORMATS, ".tflite", (fail, runtimes.run_tflite))
    monkeypatch.setattr("segnext_timm.exporting.exporters.check_installed", lambda suffix: None)
    with pytest.raises(ExportError, match=r"^The converter of \.tflite failed: RuntimeError: unsupported operator$"):
        export(model, tmp_path / "x.tflite", SIZE)
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_is_not_installed_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    for suffix, package, extra in (
        (".tflite", "litert_torch", "litert"),
        (".ncnn", "pnnx", "ncnn"),
        (".mlpackage", "coremltools", "coreml"),
    ):
        with pytest.raises(ImportError, match=rf"Exporting to \{suffix} needs {package}: .*segnext-timm\[{extra}\]"):
            export(model, tmp_path / f"x{suffix}", SIZE)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.tflite", {"precision": "fp16"}, r"\.tflite can be fp32, not fp16"),
        ("x.ncnn", {"argmax": True}, "ncnn has no argmax"),
        ("x.mlpackage", {"dynamic": True}, r"\.mlpackage takes one size of images"),
        ("x.ncnn", {"precision": "int8", "calibration": []}, r"\.ncnn can be fp32 or fp16, not int8"),
    ],
)
def test_options_that_a_runtime_lacks_are_named(model, tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / name, SIZE, **options)
