"""What is known of a model's weights."""

import warnings

import pytest
import segmentation_models_pytorch as smp
import torch

import segnext_timm
from segnext_timm import create_segmenter, fuse
from segnext_timm.errors import OptionError
from small_models import tiny


def test_pretrained_cfg_is_saved_whatever_way_it_was_set(tmp_path):
    names = ["a", "b", "c", "d", "e"]
    model = tiny()
    model.pretrained_cfg = {"label_names": names}
    model.pretrained_cfg["dataset"] = "scenes"
    model.save_pretrained(tmp_path)
    assert smp.from_pretrained(tmp_path).pretrained_cfg == {"label_names": names, "dataset": "scenes"}
    model.pretrained_cfg = None
    model.save_pretrained(tmp_path)
    assert smp.from_pretrained(tmp_path).pretrained_cfg == {}


@pytest.mark.parametrize(
    "cfg", [{"label_names": ["a", "b"]}, {"palette": [[0, 0, 0]]}, {"mean": [0.5]}, {"std": [0.5] * 4}]
)
def test_pretrained_cfg_of_another_model_is_refused(cfg):
    (key,) = cfg
    with pytest.raises(ValueError, match=rf"pretrained_cfg does not fit the model: {key} of \d (classes|channels)"):
        tiny().pretrained_cfg = cfg


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"input_size": [512, 1024]}, r"input_size\"\] is channels, height and width, got \[512, 1024\]"),
        ({"mean": 0.5}, r"mean\"\] is a list of one number for each channel, got 0\.5"),
        ({"std": [0.0] * 3}, "std.* is a list of one positive number for each channel"),
        ({"mean": ["a"] * 3}, "mean.* is a list of one number for each channel"),
        ({"palette": [[0, 0]] * 5}, r"palette.* is \[red, green, blue\] by class"),
        ({"label_names": "road"}, "label_names.* is a list of one name for each class, got 'road'"),
    ],
)
def test_entries_of_pretrained_cfg_of_another_form_are_refused(cfg, message):
    model = tiny()
    with pytest.raises(OptionError, match=message):
        model.pretrained_cfg = cfg
    with pytest.raises(OptionError, match=message):
        tiny(pretrained_cfg=cfg)


def test_another_number_of_classes_does_not_keep_the_names(tmp_path, caplog):
    model = tiny(pretrained_cfg={"label_names": list("abcde"), "dataset": "scenes", "license": "mit"})
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # smp's own, of the last layer
        loaded = smp.from_pretrained(tmp_path, classes=2, strict=False)
    assert loaded.pretrained_cfg == {"license": "mit"}
    assert "left out label_names of 5 classes (the model has 2)" in caplog.text


def test_another_number_of_channels_does_not_keep_mean_and_std():
    cfg = create_segmenter("segnext_t", in_channels=4).pretrained_cfg
    assert "mean" not in cfg
    assert "std" not in cfg
    assert cfg["input_size"] == [4, 512, 512]
    assert len(cfg["label_names"]) == 150


def test_names_that_no_longer_fit_are_not_saved(tmp_path, caplog):
    model = tiny()
    model.pretrained_cfg["label_names"] = ["only one"]
    model.save_pretrained(tmp_path)
    assert smp.from_pretrained(tmp_path).pretrained_cfg == {}
    assert "left out label_names of 1 classes" in caplog.text


@pytest.mark.parametrize("encoder_name", ["tu-test_mscan", "tu-repvgg_a0", "tu-mobileone_s0", "tu-repvit_m0_9"])
def test_fused_models_of_any_encoder_are_not_saved(tmp_path, encoder_name):
    fused = fuse(tiny(encoder_name=encoder_name, encoder_depth=4 if "repvit" in encoder_name else 5))
    with pytest.raises(ValueError, match=r"^A fused model cannot be saved or pushed, because no other model"):
        fused.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="A fused model cannot be"):
        segnext_timm.push_to_hub(fused, "user/repo")


def test_a_module_named_fused_does_not_make_a_model_fused(tmp_path):
    model = tiny().eval()
    model.fused = torch.nn.Identity()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="A fused model cannot be"):
        fuse(model).save_pretrained(tmp_path)
