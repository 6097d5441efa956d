import functools
import json
import math

import pytest
import segmentation_models_pytorch as smp
import torch

from lively_models import assert_same, backbone, images, lively, tiny
from random_checkpoints import VARIANTS
from segnext_timm import create_segmenter, export
from segnext_timm.errors import ExportError, OptionError
from segnext_timm.exporting import exporters, label_graph
from segnext_timm.models.fusion import is_fused


def run_onnx(path, x):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"images": x.numpy()})]


@torch.no_grad()
@pytest.mark.parametrize(
    ("argmax", "sizes"),
    [
        (False, []),
        pytest.param(True, [(3, 3, 71, 99), (2, 3, 33, 128)], marks=pytest.mark.slow, id="labels of dynamic size"),
    ],
)
def test_a_program_runs_and_knows_its_preprocessing(tmp_path, argmax, sizes):
    cfg = {"label_names": list("abcde"), "mean": [0.5] * 3, "std": [0.25] * 3, "fit_in": [128, 96]}
    model = tiny(pretrained_cfg=cfg)
    path = export(model, tmp_path / "new" / "model.pt2", (1, 3, 64, 96), dynamic=bool(sizes), argmax=argmax)
    metadata = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=metadata).module()
    assert json.loads(metadata["metadata.json"]) == {
        "input_size": [1, 3, 64, 96],
        "dynamic": bool(sizes),
        "output": "labels" if argmax else "logits",
        "precision": "fp32",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "label_names": list("abcde"),
        "fit_in": [128, 96],
        "size_divisor": 1,
    }
    for shape in ((1, 3, 64, 96), *sizes):
        x = images(*shape)
        if argmax:
            assert_greatest(program(x), model(x))
        else:
            assert_same(program(x), model(x))
    assert model.training is False
    assert not is_fused(model)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("architecture", ["segnext", "unet"])
def test_a_classification_head_beside_is_exported_too(architecture, tmp_path):
    aux = {"aux_params": {"classes": 3}, "encoder_weights": None, "classes": 5}
    model, x = lively(smp.create_model(architecture, "tu-test_mscan", **aux)), images(1, 3, 64, 64)
    assert_same(torch.export.load(export(model, tmp_path / "a.pt2", (1, 3, 64, 64))).module()(x), model(x))
    labels = torch.export.load(export(model, tmp_path / "b.pt2", (1, 3, 64, 64), argmax=True)).module()(x)
    assert_greatest(labels, model(x)[0])


def assert_greatest(labels, logits):
    """Labels are those of the greatest logit, up to rounding."""
    short = logits.amax(1) - logits.gather(1, labels[:, None])[:, 0]
    assert short.max() < 1e-5 * logits.abs().max()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_exported_variants_give_the_logits(variant, tmp_path):
    model, x = lively(create_segmenter(f"segnext_{variant}", classes=19)), images(1, 3, 71, 99)
    if variant in "tl":  # the least and the deepest, which takes half a minute
        output = run_onnx(export(model, tmp_path / "model.onnx", tuple(x.shape)), x)[0]
    else:
        output = torch.export.load(export(model, tmp_path / "model.pt2", tuple(x.shape))).module()(x)
    assert_same(output, model(x), tolerance=1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "sizes", "argmax"),
    [
        (tiny, [(1, 3, 64, 96), (3, 3, 71, 99), (2, 3, 33, 128)], True),
        (lambda: tiny(encoder_name="resnet18"), [(1, 3, 64, 96), (3, 3, 71, 99), (2, 3, 33, 128)], False),
        (lambda: lively(smp.Unet("tu-test_mscan", encoder_weights=None)), [(1, 3, 64, 96), (3, 3, 128, 64)], True),
    ],
    ids=["segnext labels", "resnet", "unet labels of one class"],
)
def test_onnx_graphs_of_dynamic_size_run_at_other_sizes(make, sizes, argmax, tmp_path):
    model = make()
    path = export(model, tmp_path / "model.onnx", sizes[0], dynamic=True, argmax=argmax)
    for x in (images(*size) for size in sizes):
        (output,) = run_onnx(path, x)
        if argmax:
            logits = model(x)
            logits = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
            assert_greatest(output, logits)
        else:
            assert_same(output, model(x), tolerance=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
@torch.no_grad()
def test_onnx_files_hold_features_names_and_no_paths(tmp_path):
    onnx = pytest.importorskip("onnx")
    model, x = backbone(features_only=True, pretrained_cfg_overlay={"label_names": ["a", "b"]}), images(1, 3, 64, 64)
    path = export(model, tmp_path / "model.onnx", tuple(x.shape))
    for output, expected in zip(run_onnx(path, x), model(x), strict=True):
        assert_same(output, expected, tolerance=1e-4)
    proto = onnx.load(path)
    assert [o.name for o in proto.graph.output] == ["feature0", "feature1", "feature2", "feature3"]
    assert {p.key for p in proto.metadata_props} >= {"mean", "std", "input_size"}
    assert b"site-packages" not in path.read_bytes()


@pytest.mark.slow
@torch.no_grad()
def test_openvino_gives_the_labels(tmp_path):
    openvino = pytest.importorskip("openvino")
    model, x = tiny(classes=20), images(1, 3, 96, 128)
    path = export(model, tmp_path / "model.onnx", tuple(x.shape), argmax=True)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    labels = torch.from_numpy(compiled({"images": x.numpy()})["labels"])
    assert_greatest(labels, model(x))


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "model.pt2").mkdir()
    (tmp_path / "model.pt2" / "thesis.txt").touch()
    with pytest.raises(OptionError, match="is a folder: choose another name"):
        export(tiny(), tmp_path / "model.pt2", (1, 3, 64, 64))
    assert (tmp_path / "model.pt2" / "thesis.txt").exists()


class Unexportable(torch.nn.Module):
    def forward(self, x):
        return x + float(x.sum().item() > math.pi)


def test_a_model_that_cannot_be_exported_is_told_and_no_file_is_left(tmp_path):
    model = tiny()
    model.decoder.hamburger.norm = Unexportable()
    with pytest.raises(ExportError, match=r"The model cannot be exported: \w+: "):
        export(model, tmp_path / "model.pt2", (1, 3, 64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "model.pth"}, r"model.pth: the name of an exported model ends in .onnx or .pt2"),
        ({"input_size": (512, 512)}, r"input_size is a shape \(B, C, H, W\), got \(512, 512\)"),
        ({"input_size": 512}, r"input_size is a shape \(B, C, H, W\), got 512"),
        ({"model": lambda: "segnext_t"}, r"export takes a model, got a str: load one by segnext_timm\.load_segmenter"),
        ({"input_size": (1, 3, 32, 64), "dynamic": True}, "sizes have sides from 33 to 16384 pixels, got 32x64"),
        ({"input_size": (1, 4, 64, 64)}, "takes images of 3 channels, got 4"),
        ({"model": backbone, "argmax": True}, r"float32 \(1, 1000\), not scores \(B, classes, H, W\) of each pixel"),
    ],
)
def test_what_cannot_be_exported_is_said(arguments, message, tmp_path):
    model = arguments.pop("model", tiny)()
    path = tmp_path / arguments.pop("path", "model.pt2")
    with pytest.raises(ValueError, match=message):
        export(model, path, **{"input_size": (1, 3, 64, 64), **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r'needs .*onnxruntime.*: pip install "onnx>=1.16" onnxruntime onnxscript'):
        export(tiny(), tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_graph_that_differs_is_not_left(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(exporters._TOLERANCES, "fp32", 0.0)
    with pytest.raises(ExportError, match=r"logits for images \(1, 3, 64, 64\) differ from the model's by"):
        export(tiny(), tmp_path / "model.onnx", (1, 3, 64, 64))
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "activation", "classes"),
    [("segnext", "sigmoid", 1), pytest.param("fpn", "sigmoid", 1, marks=pytest.mark.slow), ("fpn", "clamp", 1)],
)
def test_exported_labels_are_the_model_s_whatever_its_activation(architecture, activation, classes, tmp_path):
    make = functools.partial(smp.create_model, architecture, "tu-test_mscan", encoder_weights=None, classes=classes)
    plain, model, x = lively(make()), lively(make(activation=activation)), images(1, 3, 64, 64)
    head = plain.segmentation_head[0]
    torch.nn.init.normal_(head.weight)
    head.bias -= plain(x).mean((0, 2, 3))  # so that each class occurs
    model.load_state_dict(plain.state_dict())
    labels = torch.export.load(export(model, tmp_path / "labels.pt2", (1, 3, 64, 64), argmax=True)).module()(x)
    logits = plain(x)
    threshold = 0.5 if activation == "clamp" else 0.0
    right = (logits[:, 0] > threshold).long() if classes == 1 else logits.argmax(1)
    assert (labels == right).float().mean() > 0.999
    assert len(labels.unique()) > 1
    assert type(model.segmentation_head[-1].activation) is not torch.nn.Identity  # the model itself stays


@pytest.mark.slow
def test_a_graph_of_wrong_labels_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    graph = label_graph.argmax_graph
    monkeypatch.setattr(label_graph, "argmax_graph", lambda *args, **kwargs: graph(*args, **kwargs).roll(8, 1))
    with pytest.raises(ExportError, match="differ"):
        export(tiny(), tmp_path / "model.onnx", (1, 3, 64, 96), argmax=True)
    assert not list(tmp_path.iterdir())
