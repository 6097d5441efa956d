"""The converters of examples/deployment: their files give the model's output, or are not left."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from small_models import narrow

FOLDER = Path(__file__).parents[2] / "examples" / "deployment"
SIZE = (64, 96)
NAMES = {"label_names": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.25] * 3}
SCRIPTS = {".tflite": "to_litert", ".ncnn": "to_ncnn", ".mlpackage": "to_coreml"}


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Scripts import each other by name."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = narrow(pretrained_cfg=NAMES).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    return model


def probe():
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def convert(model, path, **options):
    """Convert a model by its script; return the script."""
    import converting

    script = __import__(SCRIPTS[path.suffix])
    for package in script.PACKAGES:
        pytest.importorskip(package)
    converting.write(model, path, SIZE, script.convert, script.execute, **options)
    return script


@torch.no_grad()
def assert_close(output, model, tolerance=1e-4):
    expected = model(probe()).numpy()
    assert output.shape == expected.shape
    assert np.abs(output - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.slow
def test_litert_gives_the_logits_and_the_labels(model, tmp_path):
    logits, labels = tmp_path / "logits.tflite", tmp_path / "labels.tflite"
    litert = convert(model, logits)
    assert_close(litert.execute(logits, probe().numpy()), model)
    metadata = json.loads((tmp_path / "logits.tflite.json").read_text())
    assert (metadata["label_names"], metadata["output"], metadata["mean"]) == (["a", "b", "c"], "logits", [0.5] * 3)
    convert(model, labels, argmax=True)
    assert (litert.execute(labels, probe().numpy()) == model.predict_labels(probe()).numpy()).mean() > 0.9999
    written = {f"{name}.tflite{end}" for name in ("logits", "labels") for end in ("", ".json")}
    assert {f.name for f in tmp_path.iterdir()} == written


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_ncnn_gives_the_logits(model, tmp_path, precision):
    folder = tmp_path / "model.ncnn"
    ncnn = convert(model, folder, precision=precision)
    assert_close(ncnn.execute(folder, probe().numpy()), model, 1e-4 if precision == "fp32" else 1e-2)
    assert {f.name for f in folder.iterdir()} == {"model.ncnn.param", "model.ncnn.bin", "metadata.json"}
    assert json.loads((folder / "metadata.json").read_text())["label_names"] == ["a", "b", "c"]
    convert(model, folder, precision=precision)  # replaced


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("argmax", [False, True])
def test_core_ml_is_converted_and_inspected(model, tmp_path, precision, argmax):
    path = tmp_path / "model.mlpackage"
    coreml = convert(model, path, precision=precision, argmax=argmax)
    import coremltools

    package = coremltools.models.MLModel(str(path), skip_model_load=True)
    (image,), (output,) = package.get_spec().description.input, package.get_spec().description.output
    assert (image.name, list(image.type.multiArrayType.shape)) == ("images", [1, 3, *SIZE])
    assert output.name == ("labels" if argmax else "logits")
    assert json.loads(package.user_defined_metadata["label_names"]) == ["a", "b", "c"]
    if sys.platform == "darwin":
        assert coreml.execute(path, probe().numpy()).shape == ((1, 64, 96) if argmax else (1, 3, 64, 96))


def numbers(graph, images, path, metadata):
    """A converter that writes what the graph gives for another image."""
    np.save(path.open("wb"), graph(images).detach().numpy())


def test_a_graph_that_differs_is_not_left(model, tmp_path):
    import converting

    from segnext_timm.errors import ExportError

    with pytest.raises(ExportError, match=r"The output differs from the model's by"):
        converting.write(model, tmp_path / "x.npy", SIZE, numbers, lambda path, images: np.load(path))
    with pytest.raises(ExportError, match=r"The output has the shape \(3, 64, 96\), the model's \(1, 3, 64, 96\)"):
        converting.write(model, tmp_path / "x.npy", SIZE, numbers, lambda path, images: np.load(path)[0])
    assert not list(tmp_path.iterdir())


def test_a_converter_that_fails_is_named_and_leaves_nothing(model, tmp_path):
    import converting

    from segnext_timm.errors import ExportError

    def fail(graph, images, path, metadata):
        path.write_text("half")
        raise RuntimeError("unsupported operator\nmore")

    with pytest.raises(ExportError, match=r"^The converter failed: RuntimeError: unsupported operator$"):
        converting.write(model, tmp_path / "x.tflite", SIZE, fail, lambda path, images: None)
    assert not list(tmp_path.iterdir())


def test_models_that_do_not_fit_are_refused(tmp_path):
    import converting

    from segnext_timm.errors import OptionError

    linknet = smp.Linknet("tu-test_mscan", encoder_weights=None, classes=3).eval()
    with pytest.raises(OptionError, match="multiples of 32"):
        converting.write(linknet, tmp_path / "x.npy", (64, 90), numbers, lambda path, images: None)
    two = narrow(aux_params={"classes": 2}).eval()
    with pytest.raises(OptionError, match="several outputs"):
        converting.write(two, tmp_path / "x.npy", SIZE, numbers, lambda path, images: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("to_ncnn.py", "m", "x.ncnn", "--argmax"), "unrecognized arguments: --argmax"),
        (("to_litert.py", "m", "x.tflite", "--precision", "fp16"), "argument --precision: invalid choice: 'fp16'"),
        (("to_litert.py", "m", "x.onnx"), "x.onnx: the file's name must end in .tflite"),
        (("to_coreml.py", "m", "x.mlpackage", "--size", "5k"), "'5k' is not a size, such as 512 or 512x1024"),
    ],
)
def test_a_mistake_is_one_line(words, message, monkeypatch, capsys):
    import runpy

    monkeypatch.setattr(sys, "argv", list(words))
    with pytest.raises(SystemExit):
        runpy.run_path(str(FOLDER / words[0]), run_name="__main__")
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "options"), [(".tflite", ["--argmax"]), (".ncnn", ["--precision", "fp16"])])
def test_the_scripts_load_and_convert_a_folder(model, tmp_path, suffix, options):
    script = __import__(SCRIPTS[suffix])
    for package in script.PACKAGES:
        pytest.importorskip(package)
    model.save_pretrained(tmp_path / "model")
    for folder, code in (("model", 0), ("none", 1)):
        words = [FOLDER / f"{SCRIPTS[suffix]}.py", folder, f"x{suffix}", "--size", "64x96", *options]
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-2000:]
        if code:
            assert done.stderr.splitlines()[-1].startswith(f"{SCRIPTS[suffix]}.py: none: not a folder")
    assert (tmp_path / f"x{suffix}").exists()
