"""How a SegNeXt computes: gradients, layouts, precision, compilation, and the size of its output."""

import pytest
import segmentation_models_pytorch as smp
import torch

import training_memory
from segnext_timm import SegNeXt, UpsampledCrossEntropyLoss
from small_models import images, tiny


def test_one_step_gradient_reaches_all_parameters():
    model = tiny(decoder_one_step_gradient=True).train()
    model(images(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_checkpointed_blocks_give_the_same_gradients_and_keep_less():
    gradients, kept = [], []
    for enable in (False, True):
        model = tiny().to(memory_format=torch.channels_last)
        model.set_grad_checkpointing(enable)
        assert [stage.grad_checkpointing for stage in list(model.encoder.model.children())[1:]] == [enable] * 4
        kept.append(sum(training_memory.kept(model, 64)[0].values()))
        loss = UpsampledCrossEntropyLoss()(model.eval()(images(2, 3, 64, 64)), torch.zeros(2, 64, 64, dtype=torch.long))
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert kept[1] < 0.6 * kept[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_an_encoder_that_cannot_be_checkpointed_is_named():
    with pytest.raises(ValueError, match="The encoder ResNetEncoder does not support gradient checkpointing"):
        tiny(encoder_name="resnet18").set_grad_checkpointing()


def test_channels_last_images_stay_channels_last():
    model = tiny().to(memory_format=torch.channels_last)
    layouts = {}
    for name, module in model.named_modules():
        if name.startswith(("encoder.model.", "decoder.")):
            module.register_forward_hook(
                lambda m, i, o, name=name: layouts.update({name: o.is_contiguous(memory_format=torch.channels_last)})
            )
    model(images(2, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    not_channels_last = {name for name, channels_last in layouts.items() if not channels_last}
    assert not_channels_last <= {"decoder.hamburger.nmf"}  # the decomposition works on matrices


# Output of the decoder's size, for the loss


def test_upsampling_1_gives_the_decoder_s_logits_as_argument_attribute_or_for_one_call():
    model, x = tiny(), images(2, 3, 70, 90)
    full = model(x)
    of_one_call = model(x, upsampling=1)
    assert torch.equal(model(x), full)
    model.upsampling = 1
    logits = model(x)
    assert logits.shape == (2, 5, 9, 12)
    assert torch.equal(logits, of_one_call)
    assert torch.equal(model(x, upsampling=8), full)
    assert torch.equal(tiny(upsampling=1)(x), logits)
    expected = torch.nn.functional.interpolate(logits, (70, 90), mode="bilinear", align_corners=False)
    torch.testing.assert_close(full, expected)
    assert model.predict_labels(x).shape == (2, 70, 90)
    model.upsampling = 8
    assert torch.equal(model(x), full)
    assert torch.jit.script(tiny(upsampling=1))(x).shape == (2, 5, 9, 12)


@pytest.mark.parametrize("upsampling", [0, 2, 4, "8"])
def test_other_upsamplings_are_refused(upsampling):
    with pytest.raises(ValueError, match=r"upsampling must be 8 .* or 1"):
        tiny(upsampling=upsampling)
    model = tiny()
    model.upsampling = upsampling
    with pytest.raises(ValueError, match=r"upsampling must be 8 .* or 1"):
        model(images(1, 3, 64, 64))


def test_a_model_saved_in_training_loads_as_one_of_full_size(tmp_path):
    tiny(upsampling=1).save_pretrained(tmp_path / "a")
    model = tiny()
    model.upsampling = 1
    model.save_pretrained(tmp_path / "b")
    for folder in ("a", "b"):
        assert smp.from_pretrained(tmp_path / folder)(images(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_model_and_loss_are_ordinary_modules():
    assert not hasattr(SegNeXt, "cross_entropy")
    model, x, target = tiny(upsampling=1).train(), images(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    called = []
    model.register_forward_hook(lambda *args: called.append(True))
    UpsampledCrossEntropyLoss()(model(x), target).backward()
    assert called
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_autocast_stays_finite(dtype, training):
    torch.manual_seed(0)
    model = smp.create_model("segnext", "tu-mscan_t", encoder_weights=None, classes=5).train(training)
    x = images(2, 3, 64, 64) * 50
    with torch.autocast("cpu", dtype=dtype):
        output = model(x)
    assert output.isfinite().all()
    torch.nn.functional.cross_entropy(output.float(), torch.zeros(2, 64, 64, dtype=torch.long)).backward()
    assert [name for name, p in model.named_parameters() if not p.grad.isfinite().all()] == []


@pytest.mark.slow
def test_script_compile_and_export_give_the_eager_result():
    model, x = tiny(), images(2, 3, 70, 90)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    size = {i: torch.export.Dim(name, min=33, max=1024) for i, name in ((2, "height"), (3, "width"))}
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=64), **size},))
    for other in (x, images(1, 3, 64, 64), images(3, 3, 33, 128)):
        torch.testing.assert_close(compiled(other), model(other))
        torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.slow
@torch.no_grad()
def test_inductor_gives_the_eager_result():
    model = tiny(depths=(1, 1, 1, 1))  # every kernel takes a second to compile
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for x in (images(2, 3, 70, 90), images(3, 3, 75, 101)):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_autocast_stays_finite_and_close_to_the_cpu(dtype):
    model, x = tiny(), images(2, 3, 70, 90)
    expected = model(x)
    model, x = model.cuda(), x.cuda()
    torch.testing.assert_close(model(x).cpu(), expected, rtol=1e-2, atol=1e-3)
    with torch.autocast("cuda", dtype=dtype):
        output = model.train()(x * 50)
    assert output.isfinite().all()
