import copy

import pytest
import torch
from timm.utils import reparameterize_model
from torch.utils._python_dispatch import TorchDispatchMode

from lively_models import assert_same, backbone, images, lively, tiny
from random_checkpoints import VARIANTS
from segnext_timm import create_segmenter, fuse, push_to_hub
from segnext_timm.kernels import bands
from segnext_timm.models.fusion import is_fused


def test_a_model_with_a_part_in_training_mode_is_not_fused():
    model = tiny().eval()
    model.encoder.train()
    with pytest.raises(ValueError, match="in training mode cannot be fused"):
        fuse(model)


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
def test_hooks_of_an_mlp_and_its_parts_fire_on_large_images(monkeypatch):
    monkeypatch.setattr(bands, "_MLP_BYTES", 1)
    fused = fuse(backbone(features_only=True)).to(memory_format=torch.channels_last)
    x, shapes = images(1, 3, 64, 96).contiguous(memory_format=torch.channels_last), []
    mlp = fused.stages_0.blocks[0].mlp
    for part in (mlp, mlp.fc1):
        handle = part.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[2:])))
        fused(x)
        handle.remove()
    assert shapes == [(16, 24)] * 2


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


@pytest.mark.cuda
@torch.no_grad()
def test_fused_models_run_on_cuda():
    model, x = tiny(), images(2, 3, 64, 96)
    fused = fuse(model).cuda().to(memory_format=torch.channels_last)
    assert_same(fused(x.cuda()).cpu(), model(x), tolerance=1e-2)


@pytest.mark.slow
def test_fused_and_compiled_models_predict_the_labels_of_the_model():
    model = tiny()
    compiled = fuse(model).to(memory_format=torch.channels_last)
    compiled.compile(mode="reduce-overhead")
    for seed in (0, 1):
        x = images(1, 3, 64, 96, seed=seed)
        assert torch.equal(compiled.predict_labels(x), model.predict_labels(x))
