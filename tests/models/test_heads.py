import json

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

import segnext_timm
from segnext_timm.models.segnext import ResizingHead
from small_models import narrow


def with_head(make):
    torch.manual_seed(0)  # for the head, too
    model = narrow()
    model.segmentation_head = make()
    return model.eval()


def x(seed=0):
    return torch.randn(1, 3, 71, 97, generator=torch.Generator().manual_seed(seed))


OF_SMP = {
    "smp's own": lambda: smp.base.SegmentationHead(32, 7),
    "upsampling": lambda: smp.base.SegmentationHead(32, 7, kernel_size=5, upsampling=8),
    "activated": lambda: smp.base.SegmentationHead(32, 7, kernel_size=1, activation="sigmoid", upsampling=4),
    "binary": lambda: smp.base.SegmentationHead(32, 1),
}
HEADS = {**OF_SMP, "the paper's": lambda: ResizingHead(32, 7)}


@torch.no_grad()
@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_any_head_of_smp_fits_and_gives_maps_of_the_image_s_size(make):
    model = with_head(make)
    classes = model.segmentation_head[0].out_channels
    output = model(x())
    assert output.shape == (1, classes, 71, 97)
    labels = model.predict_labels(x())
    threshold = 0.0
    expected = output.argmax(1) if classes > 1 else (output[:, 0] > threshold).long()
    assert (labels == expected).float().mean() > 0.999
    torch.testing.assert_close(torch.jit.script(model)(x()), output)


@torch.no_grad()
def test_what_a_head_returns_is_resized_to_the_image():
    model = with_head(lambda: smp.base.SegmentationHead(32, 7, kernel_size=3, upsampling=8))
    raw = model(x(), upsampling=1)
    assert raw.shape == (1, 7, 72, 104)
    torch.testing.assert_close(model(x()), F.interpolate(raw, (71, 97), mode="bilinear"))
    model.segmentation_head = torch.nn.Conv2d(32, 4, 1)
    assert model(x()).shape == (1, 4, 71, 97)


@torch.no_grad()
@pytest.mark.parametrize("replace", ["head", "convolution"])
def test_a_model_with_other_classes_is_saved_and_loaded_with_them(replace, tmp_path):
    model = narrow(pretrained_cfg={"label_names": list("abc"), "license": "mit"}).eval()
    if replace == "head":
        model.segmentation_head = ResizingHead(32, 7).eval()
    else:
        model.segmentation_head[0] = torch.nn.Conv2d(32, 7, 1)
    model.save_pretrained(tmp_path)
    for loaded in (smp.from_pretrained(tmp_path), segnext_timm.load_segmenter(tmp_path)):
        assert torch.equal(loaded.eval()(x()), model(x()))
        assert loaded.pretrained_cfg == {"license": "mit"}
    assert json.loads((tmp_path / "config.json").read_text())["classes"] == 7


def test_class_names_of_the_head_before_are_left_out(tmp_path, caplog):
    model = narrow(pretrained_cfg={"label_names": list("abc"), "license": "mit"})
    model.segmentation_head = ResizingHead(32, 7)
    model.save_pretrained(tmp_path)
    assert "left out label_names of 3 classes (the model has 7)" in caplog.text
    assert segnext_timm.load_segmenter(tmp_path).pretrained_cfg == {"license": "mit"}


OTHERS = {
    **OF_SMP,
    "convolution": lambda: torch.nn.Conv2d(32, 4, 1),
    "larger kernel": lambda: torch.nn.Sequential(torch.nn.Conv2d(32, 4, 3, padding=1), torch.nn.Identity()),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_a_head_that_no_configuration_describes_is_refused_before_anything_is_written(make, tmp_path):
    model = narrow()
    model.segmentation_head = make()
    with pytest.raises(ValueError, match=r"The configuration cannot describe this segmentation head"):
        model.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"The configuration cannot describe this segmentation head"):
        segnext_timm.push_to_hub(model, "user/repo", token="hf_x")
    assert not (tmp_path / "out").exists()


def test_an_activation_that_smp_does_not_name_is_left_out_with_a_warning(tmp_path, caplog):
    model = smp.SegNeXt(
        "tu-test_mscan", encoder_weights=None, decoder_channels=32, classes=1, activation=torch.nn.Hardsigmoid
    ).eval()
    model.save_pretrained(tmp_path)
    assert "activation: left out Activation" in caplog.text
    loaded = segnext_timm.load_segmenter(tmp_path)
    torch.testing.assert_close(F.hardsigmoid(loaded(x())), model(x()))


def test_a_model_with_another_head_trains_with_the_loss_of_small_logits():
    model = with_head(lambda: smp.base.SegmentationHead(32, 7)).train()
    model.upsampling = 1
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 7, (2, 64, 64))
    segnext_timm.UpsampledCrossEntropyLoss()(model(images), labels).backward()
    assert all(p.grad is not None for p in model.parameters())
