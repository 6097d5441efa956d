import copy
import functools
import json
import math

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from timm.utils import reparameterize_model
from torch.utils._python_dispatch import TorchDispatchMode

import segnext_timm.models.mscan
from random_checkpoints import VARIANTS
from segnext_timm import create_segmenter, export, fuse, push_to_hub
from segnext_timm.errors import ExportError
from segnext_timm.exporting import exporters
from segnext_timm.kernels import bands
from segnext_timm.models.fusion import is_fused


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 4 - 2


def lively(model):
    """The model in evaluation mode, with statistics, norms and layer scales as after training."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor, low, high):
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            draw(module.running_mean, -0.5, 0.5)
            draw(module.running_var, 0.7, 1.5)
            draw(module.weight, 0.7, 1.3)
            draw(module.bias, -0.5, 0.5)
        if hasattr(module, "gamma"):
            draw(module.gamma, -0.05, 0.05)
    return model.eval()


def tiny(**kwargs):
    """A narrow SegNeXt."""
    torch.manual_seed(0)
    arguments = {"encoder_weights": None, "decoder_channels": 32, "decoder_rank": 4, "classes": 5} | kwargs
    return lively(smp.create_model("segnext", arguments.pop("encoder_name", "tu-test_mscan"), **arguments))


def backbone(**kwargs):
    torch.manual_seed(0)
    return lively(timm.create_model("test_mscan", **kwargs))


def assert_same(outputs, expected, tolerance=1e-5):
    """Equal up to a share of the greatest value."""
    outputs, expected = ([x] if isinstance(x, torch.Tensor) else x for x in (outputs, expected))
    assert len(outputs) == len(expected)
    for output, right in zip(outputs, expected):
        assert output.shape == right.shape
        assert output.dtype == right.dtype
        assert ((output - right).abs().max() / right.abs().max()).item() < tolerance


# Fusion


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fused_segmenter_gives_the_same_logits(variant):
    model = lively(create_segmenter(f"segnext_{variant}"))
    fused = fuse(model)
    assert not [name for name, m in fused.named_modules() if isinstance(m, torch.nn.BatchNorm2d) or hasattr(m, "gamma")]
    for shape in ((1, 3, 64, 96), (3, 3, 71, 99)):
        assert_same(fused(images(*shape)), model(images(*shape)))
    fused, x = fused.to(memory_format=torch.channels_last), images(1, 3, 64, 96)
    assert_same(fused(x.contiguous(memory_format=torch.channels_last)), model(x))


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"features_only": True},
        {"features_only": True, "output_stride": 8},
        {"features_only": True, "out_indices": (1, 3), "in_chans": 4},
        {"num_classes": 0, "global_pool": ""},
    ],
)
def test_a_fused_backbone_gives_the_same_outputs(arguments):
    model = backbone(**arguments)
    x = images(2, arguments.get("in_chans", 3), 71, 99)
    for fused in (fuse(model), reparameterize_model(model)):
        assert is_fused(fused)
        assert_same(fused(x), model(x))
    double = fuse(copy.deepcopy(model).double())
    assert_same(double(x.double()), copy.deepcopy(model).double()(x.double()), tolerance=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["resnet18", "tu-repvit_m0_9"])
def test_segnext_on_other_encoders_is_fused_where_timm_supports_it(encoder):
    model, x = tiny(encoder_name=encoder, encoder_depth=5 if encoder == "resnet18" else 4), images(2, 3, 64, 96)
    fused = fuse(model)
    assert_same(fused(x), model(x), tolerance=1e-4)
    supported = encoder != "resnet18"
    assert is_fused(fused) == supported
    assert (len(fused.state_dict()) < len(model.state_dict())) == supported


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [8, 32])
def test_rows_at_a_time_give_the_same_features(output_stride, monkeypatch):
    model = backbone(features_only=True, output_stride=output_stride)
    fused = fuse(model).to(memory_format=torch.channels_last)
    x = images(2, 3, 71, 99).contiguous(memory_format=torch.channels_last)
    calls = []
    add_mlp = bands.add_mlp
    monkeypatch.setattr(bands, "add_mlp", lambda x, mlp: calls.append(mlp) or add_mlp(x, mlp))
    for tile in (1, 5000, 20000):
        monkeypatch.setattr(bands, "_MLP_BYTES", tile)
        calls.clear()
        assert_same(fused(x), model(x))
        assert calls


@torch.no_grad()
def test_fused_models_are_scripted_traced_and_compiled():
    model, x = tiny(), images(2, 3, 64, 96)
    fused = fuse(model)
    expected = model(x)
    assert_same(torch.jit.script(fused)(x), expected)
    assert_same(torch.jit.trace(fused, x)(x), expected)
    assert_same(torch.compile(fused, fullgraph=True, backend="eager")(x), expected)


@torch.no_grad()
def test_half_precision_loses_no_more_than_unfused():
    model, x = lively(create_segmenter("segnext_t")), images(1, 3, 64, 96)
    expected = model(x)

    def error(other):
        return (other(x.bfloat16()).float() - expected).square().mean().sqrt()

    half = copy.deepcopy(model).bfloat16()
    for fused in (fuse(model).bfloat16(), fuse(half)):
        assert error(fused) < 1.2 * error(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(fuse(model)(x).float(), expected, tolerance=0.05)


def test_fusing_copies_unless_asked_and_tells_states_apart():
    model = tiny()
    before = list(model.state_dict())
    fused = fuse(model)
    assert list(model.state_dict()) == before
    again = fuse(fused)
    assert again is not fused
    assert list(again.state_dict()) == list(fused.state_dict())
    assert fuse(fused, inplace=True) is fused
    assert fuse(model, inplace=True) is model
    assert is_fused(model)
    with pytest.raises(ValueError, match=r"training mode cannot be fused.*Call model.eval\(\)"):
        fuse(tiny().train())


def test_norms_that_depend_on_the_input_are_left():
    model, x = backbone(norm_layer="layernorm2d"), images(1, 3, 64, 64)
    assert not is_fused(fuse(model))
    assert torch.equal(fuse(model)(x), model(x))


def test_fused_weights_are_neither_saved_nor_pushed(tmp_path):
    with pytest.raises(ValueError, match="A fused model cannot be saved"):
        fuse(tiny()).save_pretrained(tmp_path / "model")
    for model in (tiny(), backbone()):
        with pytest.raises(ValueError, match="A fused model cannot be saved or pushed"):
            push_to_hub(fuse(model), "user/repo")


class Layouts(TorchDispatchMode):
    """Operations on feature maps that copy, or whose output is not in channels_last."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        maps = [t for t in (output if isinstance(output, tuple | list) else [output]) if isinstance(t, torch.Tensor)]
        for t in maps:
            if t.ndim == 4 and min(t.shape) > 1 and not func.is_view:
                if name in ("clone", "copy_", "_to_copy", "contiguous"):
                    self.found.append(f"{name} {tuple(t.shape)}")
                # LayerNorm works on maps whose channels are last in shape too
                if name != "native_layer_norm" and not t.is_contiguous(memory_format=torch.channels_last):
                    self.found.append(f"{name} {tuple(t.shape)} not channels_last")
        return output


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_channels_last_is_kept_by_every_operation_without_copies(fused):
    model = tiny()
    model = (fuse(model) if fused else model).to(memory_format=torch.channels_last)
    x = images(2, 3, 96, 128).contiguous(memory_format=torch.channels_last)
    with Layouts() as layouts:
        output = model(x)
    assert layouts.found == []
    assert output.is_contiguous(memory_format=torch.channels_last)


# Labels and loss


@torch.no_grad()
@pytest.mark.parametrize("activation", [None, "sigmoid", "softmax2d", "tanh", lambda: torch.nn.Hardtanh(-0.001, 0.001)])
def test_predicted_labels_are_the_greatest_of_the_output(activation):
    model = tiny(activation=activation)
    for shape in ((2, 3, 64, 96), (1, 3, 71, 99)):
        labels, output = model.predict_labels(images(*shape)), model(images(*shape))
        assert labels.dtype == torch.long
        assert torch.equal(output.gather(1, labels[:, None])[:, 0], output.amax(1))


def test_a_graph_of_wrong_labels_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    graph = exporters.argmax_graph
    monkeypatch.setattr(exporters, "argmax_graph", lambda *args, **kwargs: graph(*args, **kwargs).roll(8, 1))
    with pytest.raises(ExportError, match="differ"):
        export(tiny(), tmp_path / "model.onnx", (1, 3, 64, 96), argmax=True)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_labels_of_one_class_are_where_the_logit_is_positive():
    model, x = tiny(classes=1, activation="sigmoid"), images(2, 3, 71, 99)
    assert torch.equal(model.predict_labels(x), (model(x)[:, 0] > 0.5).long())


def test_labels_and_loss_name_bad_images():
    for call in (tiny().predict_labels, tiny(upsampling=1)):
        with pytest.raises(ValueError, match="takes images of 3 channels, got 1"):
            call(images(1, 1, 64, 64))


def test_cross_entropy_is_that_of_the_output_and_trains_all():
    model, x = tiny(), images(2, 3, 71, 99)
    target = torch.randint(0, 5, (2, 71, 99), generator=torch.Generator().manual_seed(0))
    target[0, :20] = 255
    expected = torch.nn.functional.cross_entropy(model(x), target, ignore_index=255, label_smoothing=0.1)
    model.upsampling = 1
    loss = segnext_timm.UpsampledCrossEntropyLoss(ignore_index=255, label_smoothing=0.1)(model(x), target)
    torch.testing.assert_close(loss, expected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for ours, right in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-6)


# Export


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
    model = tiny(pretrained_cfg={"label_names": list("abcde"), "mean": [0.5] * 3, "std": [0.25] * 3})
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


class Unexportable(torch.nn.Module):
    def forward(self, x):
        return x + float(x.sum().item() > math.pi)


def test_the_part_that_cannot_be_exported_is_named(tmp_path):
    model = tiny()
    model.decoder.hamburger.norm = Unexportable()
    with pytest.raises(RuntimeError, match=r"decoder\.hamburger\.norm \(Unexportable\) cannot be exported: \w+: "):
        export(model, tmp_path / "model.pt2", (1, 3, 64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "model.pth"}, r"model.pth: the name of an exported model ends in .onnx, .pt2, "),
        ({"input_size": (512, 512)}, r"input_size is a shape \(B, C, H, W\), got \(512, 512\)"),
        ({"input_size": (1, 4, 64, 64)}, "takes images of 3 channels, got 4"),
        ({"model": backbone, "argmax": True}, "argmax needs a model with a map of logits"),
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
    with pytest.raises(ImportError, match=r"pip install 'segnext-timm\[export\]'"):
        export(tiny(), tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_graph_that_differs_is_not_left(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(segnext_timm.exporting.exporters._TOLERANCES, "fp32", 0.0)
    with pytest.raises(RuntimeError, match=r"logits for images \(1, 3, 64, 64\) differ from the model's by"):
        export(tiny(), tmp_path / "model.onnx", (1, 3, 64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cuda
@torch.no_grad()
def test_fused_models_run_on_cuda():
    model, x = tiny(), images(2, 3, 64, 96)
    fused = fuse(model).cuda().to(memory_format=torch.channels_last)
    assert_same(fused(x.cuda()).cpu(), model(x), tolerance=1e-2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "activation", "classes"),
    [("segnext", "sigmoid", 1), ("fpn", "sigmoid", 1), ("fpn", "clamp", 1), ("fpn", "argmax2d", 4)],
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
