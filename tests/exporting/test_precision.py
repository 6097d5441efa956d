"""Graphs in float16 and INT8, portable graphs of labels, and calibration images."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image

from segmentation import scenes
from segnext_timm import export
from segnext_timm.cli import main
from segnext_timm.errors import ExportError, ImageError
from segnext_timm.exporting.calibration import read_calibration
from segnext_timm.models.model_info import ModelInfo
from small_models import narrow

STATISTICS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PORTABLE_OPS = {
    *(
        "Add",
        "ArgMax",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "Div",
        "Gelu",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
    ),
    *("Mul", "Relu", "Reshape", "Resize", "Slice", "Softmax", "Transpose", "QuantizeLinear", "DequantizeLinear"),
}
SIZE = (1, 3, 64, 96)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of scenes with labels, in `images` and `labels`."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(12):
        image, labels = scenes.draw(1, index, 96)
        for name, array in (("images", image), ("labels", labels % 3)):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def model(photos):
    """A narrow model, trained for a few steps on the scenes: random weights have labels that noise decides."""
    torch.manual_seed(0)
    model = narrow(pretrained_cfg=STATISTICS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    files = sorted((photos / "images").iterdir())
    images, _ = read_calibration(files, ModelInfo(model), (1, 3, 96, 96))
    labels = [np.array(Image.open(photos / "labels" / f.name)) for i, f in enumerate(files) if i % 4 != 1]
    images = torch.from_numpy(np.concatenate(images))
    target = torch.from_numpy(np.stack(labels)).long()
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def metadata(path):
    onnx = pytest.importorskip("onnx")
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def agreement(one, other, images):
    """Share of equal labels of two graphs."""
    return quantization.agreement(*(quantization.labels_of(path, images, 0.0) for path in (one, other)))


def operators(path):
    onnx = pytest.importorskip("onnx")
    return {node.op_type for node in onnx.load(path).graph.node}


pytestmark = pytest.mark.slow  # the extra `export` is needed
quantization = pytest.importorskip("segnext_timm.exporting.quantization")


def test_a_head_of_ones_own_is_written_in_fp16(tmp_path):
    model = narrow().eval()
    model.segmentation_head = torch.nn.Conv2d(32, 3, 1)
    assert metadata(export(model, tmp_path / "half.onnx", SIZE, precision="fp16"))["precision"] == "fp16"


@pytest.mark.parametrize("argmax", [False, True])
def test_fp16_is_close_and_half_as_large(model, photos, tmp_path, argmax):
    full = export(model, tmp_path / "full.onnx", SIZE, argmax=argmax)
    half = export(model, tmp_path / "half.onnx", SIZE, argmax=argmax, precision="fp16")
    assert half.stat().st_size < 0.8 * full.stat().st_size
    assert metadata(half)["precision"] == "fp16"
    assert agreement(full, half, read_calibration(photos, ModelInfo(model), SIZE)[0]) >= 0.995


def test_the_decomposition_and_the_norms_stay_in_float32(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(export(model, tmp_path / "half.onnx", SIZE, precision="fp16"))
    proto = onnx.shape_inference.infer_shapes(proto)
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    kinds = {"InstanceNormalization": 1, "LayerNormalization": 1, "Softmax": 1, "Conv": 10, "Gelu": 10}  # 1 is float32
    for node in proto.graph.node:
        if node.op_type in kinds and node.output[0] in types and node is not proto.graph.node[-1]:
            assert types[node.output[0]] in (kinds[node.op_type], 1), node.name
    assert any(types.get(n.output[0]) == 10 for n in proto.graph.node if n.op_type == "Conv")
    for node in proto.graph.node:
        if node.op_type in ("InstanceNormalization", "LayerNormalization", "Softmax"):
            assert types[node.output[0]] == 1


def test_int8_agrees_and_its_figures_are_in_the_metadata(model, photos, tmp_path, caplog):
    caplog.set_level(logging.INFO, "segnext_timm")
    full = export(model, tmp_path / "full.onnx", SIZE)
    path = export(model, tmp_path / "int8.onnx", SIZE, precision="int8", calibration=photos)
    facts = json.loads(metadata(path)["int8"])
    assert facts["agreement"] >= 0.98
    assert facts["images"] + facts["held_out_images"] == 12
    assert "of the held-out labels are equal" in caplog.text
    held_out = read_calibration(photos, ModelInfo(model), SIZE)[1]
    assert agreement(full, path, held_out) == pytest.approx(facts["agreement"], abs=1e-5)
    assert path.stat().st_size < 0.8 * full.stat().st_size  # of a narrow model, the graph itself is large
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(path)


def test_int8_keeps_the_other_metadata(model, photos, tmp_path):
    full = metadata(export(model, tmp_path / "full.onnx", SIZE))
    quantized = metadata(export(model, tmp_path / "int8.onnx", SIZE, precision="int8", calibration=photos))
    assert quantized.pop("int8")
    assert quantized == full | {"precision": "int8"}


def test_weights_are_quantized_per_channel(model, photos, tmp_path):
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(export(model, tmp_path / "int8.onnx", SIZE, precision="int8", calibration=photos))
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    scales = [
        arrays[node.input[1]]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and arrays.get(node.input[0], np.zeros(0)).ndim == 4
    ]
    assert len(scales) > 10
    assert all(scale.size > 1 for scale in scales)


def test_convolutions_are_put_back_until_the_labels_agree(model, photos, tmp_path, monkeypatch):
    """Agreement is understated twice, so that the third attempt is the one that is kept."""
    real, attempts = quantization.agreement, []

    def strict(labels, others):
        attempts.append(real(labels, others))
        return attempts[-1] if len(attempts) > 2 else 0.5

    monkeypatch.setattr(quantization, "agreement", strict)
    path = export(model, tmp_path / "int8.onnx", SIZE, precision="int8", calibration=photos)
    facts = json.loads(metadata(path)["int8"])
    assert len(attempts) == 3
    assert facts["float_convolutions"] == round(0.1 * facts["convolutions"]) > 0


def test_a_model_that_cannot_be_quantized_leaves_no_file(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "agreement", lambda labels, others: 0.9)
    with pytest.raises(ExportError, match=r"Only 90\.00% of the held-out labels equal .* 98% are required"):
        export(model, tmp_path / "int8.onnx", SIZE, precision="int8", calibration=photos)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_a_portable_graph_has_static_shapes_and_the_same_labels(model, photos, tmp_path, kind):
    options = {"calibration": photos} if kind == "int8" else {}
    portable = export(model, tmp_path / "portable.onnx", SIZE, argmax=True, portable=True, precision=kind, **options)
    assert operators(portable) <= PORTABLE_OPS
    usual = export(model, tmp_path / "usual.onnx", SIZE, argmax=True, precision=kind, **options)
    assert {"NonZero"} <= operators(usual)
    assert agreement(usual, portable, read_calibration(photos, ModelInfo(model), SIZE)[0]) > 0.9999


def test_a_portable_graph_of_dynamic_size(model, tmp_path):
    path = export(model, tmp_path / "x.onnx", SIZE, argmax=True, portable=True, dynamic=True)
    assert not {"NonZero", "Loop", "If"} & operators(path)
    image = torch.randn(2, 3, 75, 110)
    (labels,) = quantization.labels_of(path, [image.numpy()], 0.0)
    assert (torch.from_numpy(labels) == model.predict_labels(image)).float().mean() > 0.999


def test_images_cover_the_input_and_are_normalized(model):
    gradient = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (50, 1, 3))
    images = [gradient, gradient[:, ::-1].copy()]
    (image,), (held_out,) = read_calibration(images, ModelInfo(model), (2, 3, 32, 32))
    assert image.shape == held_out.shape == (2, 3, 32, 32)
    pixels = image[0, 0] * STATISTICS["std"][0] + STATISTICS["mean"][0]
    assert pixels[16, 16] == pytest.approx(0.5, abs=0.02)
    assert 0.3 < pixels.min() < pixels.max() < 0.7  # the middle quarter
    assert held_out[0, 0, 0, 0] > held_out[0, 0, 0, -1]


def invoke(model, tmp_path, *arguments):
    model.save_pretrained(tmp_path / "model")
    return CliRunner().invoke(main, ["export", *map(str, (tmp_path / "model", *arguments))])


def test_the_command_exports_int8(model, photos, tmp_path):
    done = invoke(
        model, tmp_path, tmp_path / "x.onnx", "--size", 64, "--precision", "int8", "--calibration", photos, "--argmax"
    )
    assert done.exit_code == 0, done.output
    assert json.loads(metadata(tmp_path / "x.onnx")["int8"])["agreement"] >= 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("x.onnx", "--precision", "int8"),
            "int8 needs calibration images, and only int8 takes them: pass a folder (--calibration DIR).",
        ),
        (("x.onnx", "--precision", "int8", "--calibration", "none"), "Directory 'none' does not exist."),
        (("x.pt2", "--precision", "int8", "--calibration", "."), ".pt2 can be fp32, not 'int8'."),
        (("x.pt2", "--dynamic", "--size", "32"), "Dynamic sizes have sides from 33 to 16384 pixels, got 32x32."),
        (("x.onnx", "--portable"), "portable applies to graphs of labels: set argmax (--argmax) too."),
    ],
)
def test_invalid_options_end_before_the_model_is_loaded(model, tmp_path, arguments, message):
    done = invoke(model, tmp_path, *arguments)
    assert done.exit_code == (2 if "Directory" in message else 1)
    assert message in " ".join(done.output.split())


def test_unusable_calibration_images_are_named(model, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "text" / name).write_text("no image")
    one = next((photos / "images").iterdir())
    for calibration, kind, message in (
        (tmp_path / "none", FileNotFoundError, "none: no such folder of calibration images"),
        (tmp_path / "empty", FileNotFoundError, "empty holds no calibration images"),
        (tmp_path / "text", ImageError, r"a\.png cannot be read as an image"),
        ([one], ValueError, "at least two calibration images, got 1"),
        ([np.zeros((50, 50, 5), np.uint8)] * 2, ImageError, "The model takes images of 3 channels"),
    ):
        with pytest.raises(kind, match=message):
            export(model, tmp_path / "x.onnx", SIZE, precision="int8", calibration=calibration)
    for options, message in (
        ({"precision": "int4"}, "can be fp32, fp16, int8, not 'int4'"),
        ({"precision": "int8"}, "int8 needs calibration images"),
        ({"calibration": photos}, "int8 needs calibration images, and only int8 takes them"),
        ({"portable": True}, "portable applies to graphs of labels"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "x.onnx", SIZE, **options)
    classifier = timm.create_model("test_mscan")
    with pytest.raises(ValueError, match=r"not scores \(B, classes, H, W\) of each pixel"):
        export(classifier, tmp_path / "x.onnx", SIZE, precision="int8", calibration=photos)
    assert not (tmp_path / "x.onnx").exists()


def test_another_encoder_is_quantized_or_refused_in_a_line(photos, tmp_path):
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    other = smp.SegNeXt("resnet18", encoder_weights=None, classes=3, decoder_channels=32, pretrained_cfg=STATISTICS)
    try:
        path = export(other.eval(), tmp_path / "x.onnx", SIZE, precision="int8", calibration=photos)
    except ExportError as error:
        assert "\n" not in str(error)
        assert not (tmp_path / "x.onnx").exists()
    else:
        assert json.loads(metadata(path)["int8"])["agreement"] >= 0.98


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files")
@pytest.mark.parametrize("name", ["x.onnx", "x.pt2"])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(model, tmp_path, name):
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "sys.argv[0] = 'segnext-timm'; from segnext_timm.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "export", "model", out / name, "--size", "64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert not list(out.iterdir())


def test_labels_of_a_binary_model_are_above_its_threshold(photos, tmp_path):
    torch.manual_seed(0)
    model = narrow(classes=1, activation="sigmoid", pretrained_cfg=STATISTICS).eval()
    image = torch.randn(SIZE)
    with torch.no_grad():
        model.segmentation_head[0].bias -= model(image, activated=False).mean()  # so that both labels occur
    path = export(model, tmp_path / "x.onnx", SIZE)
    (labels,) = quantization.labels_of(path, [image.numpy()], ModelInfo(model).threshold)
    expected = model.predict_labels(image).numpy()
    assert 0 < expected.mean() < 1
    assert (labels == expected).mean() > 0.999


def test_only_images_of_a_data_folder_are_read(photos, model):
    images, held_out = read_calibration(photos, ModelInfo(model), SIZE)  # it has labels too
    assert (len(images), len(held_out)) == (9, 3)
