"""A folder becomes a checkpoint of mmsegmentation, and comes back."""

import sys

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

from deployment import to_mmseg
from deployment.to_mmseg import native_to_mmseg
from random_checkpoints import VARIANTS, backbone_shapes, random_state_dict, segmenter_shapes, write, zero_state_dict
from segnext_timm import CheckpointError
from segnext_timm.checkpoints.conversion import convert
from segnext_timm.checkpoints.dialects import segmenter_to_native
from segnext_timm.hub.cards import save_backbone
from segnext_timm.models.mscan import backbone_to_native
from small_models import narrow

SETTINGS = {
    "activation": {"activation": "softmax2d"},
    "steps": {"decoder_eval_steps": 2},
    "stride": {"output_stride": 16},
    "image classifier": {"aux_params": {"classes": 2}},
}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("variant", VARIANTS)
def test_native_names_to_mmsegmentation_s_and_back_is_the_identity(variant):
    published = zero_state_dict(segmenter_shapes(variant, 7))
    native = segmenter_to_native(published)
    back = native_to_mmseg(native)
    assert {name: v.shape for name, v in back.items()} == {name: v.shape for name, v in published.items()}
    again = segmenter_to_native(back)
    assert {name: v.shape for name, v in again.items()} == {name: v.shape for name, v in native.items()}
    published = zero_state_dict(backbone_shapes(variant, classifier=True))
    assert native_to_mmseg(backbone_to_native(published)).keys() == published.keys()


def test_the_values_come_back_too():
    published = random_state_dict(segmenter_shapes("t", 7))
    back = native_to_mmseg(segmenter_to_native(published))
    assert all(torch.equal(back[name], published[name]) for name in published)


def test_the_model_s_bases_stay_here():
    model = smp.create_model("segnext", "tu-mscan_t", encoder_weights=None, classes=7)
    assert native_to_mmseg(model.state_dict()).keys() == segmenter_shapes("t", 7).keys()


def test_a_parameter_that_mmsegmentation_lacks_is_named():
    arguments = {"encoder_weights": None, "classes": 2}
    with pytest.raises(CheckpointError, match=r"no parameter for 'classification_head\."):
        native_to_mmseg(smp.SegNeXt("tu-test_mscan", aux_params={"classes": 3}, **arguments).state_dict())
    with pytest.raises(CheckpointError, match="has four stages, this model has fewer"):
        native_to_mmseg(smp.SegNeXt("tu-test_mscan", encoder_depth=4, **arguments).state_dict())


def test_a_folder_to_mmsegmentation_and_back_is_the_identity(tmp_path, segmenter, backbone):
    for name, state_dict in (("segmenter", segmenter), ("backbone", backbone)):
        convert(write(tmp_path / name, state_dict, "mmseg"), tmp_path / name, rank=24 if name == "segmenter" else None)
        to_mmseg.convert(tmp_path / name, tmp_path / f"{name}_mmseg.pth")
        assert equal(torch.load(tmp_path / f"{name}_mmseg.pth")["state_dict"], state_dict)
        convert(tmp_path / f"{name}_mmseg.pth", tmp_path / f"{name}_again")  # the rank is kept beside the weights
        for file in ("model.safetensors", "config.json", "README.md"):
            assert (tmp_path / f"{name}_again" / file).read_bytes() == (tmp_path / name / file).read_bytes()


def test_a_trained_model_goes_to_mmsegmentation_with_its_labels(tmp_path, monkeypatch, capsys):
    names, palette = ["a", "b", "c"], [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    facts = {"label_names": names, "palette": palette, "mean": [0.1] * 3, "std": [0.3] * 3}
    narrow(pretrained_cfg=facts).save_pretrained(tmp_path / "trained")
    monkeypatch.setattr(sys, "argv", ["to_mmseg.py", str(tmp_path / "trained"), str(tmp_path / "mmseg.pth")])
    to_mmseg.main()
    said = capsys.readouterr().out
    assert said == (
        f"State in mmsegmentation's configuration, times 255: mean [0.1, 0.1, 0.1], std [0.3, 0.3, 0.3].\n"
        f"Wrote {tmp_path / 'mmseg.pth'}.\n"
    )
    assert torch.load(tmp_path / "mmseg.pth")["meta"]["dataset_meta"] == {"classes": names, "palette": palette}
    convert(tmp_path / "mmseg.pth", tmp_path / "back")
    back = smp.from_pretrained(tmp_path / "back")
    assert (back.pretrained_cfg["label_names"], back.pretrained_cfg["palette"]) == (names, palette)
    assert equal(back.state_dict(), smp.from_pretrained(tmp_path / "trained").state_dict())
    with pytest.raises(SystemExit, match=r"mmseg\.pth: choose a new name that ends in \.pth"):
        to_mmseg.main()


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_model_that_mmsegmentation_s_file_cannot_state_is_refused(tmp_path, settings):
    narrow(**SETTINGS[settings]).save_pretrained(tmp_path / "model")
    (key,) = SETTINGS[settings]
    with pytest.raises(CheckpointError, match=rf"model: mmsegmentation's file cannot state {key}="):
        to_mmseg.convert(tmp_path / "model", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_another_architecture_is_refused(tmp_path):
    arguments = {"encoder_weights": None, "classes": 2, "decoder_channels": (16, 8, 8, 8, 8)}
    smp.Unet("tu-test_mscan", **arguments).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="model: holds Unet, not SegNeXt or MSCAN"):
        to_mmseg.convert(tmp_path / "model", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_a_backbone_of_another_stride_is_refused(tmp_path):
    save_backbone(timm.create_model("test_mscan", output_stride=16), tmp_path / "model")
    with pytest.raises(CheckpointError, match="mmsegmentation's file cannot state output_stride=16"):
        to_mmseg.convert(tmp_path / "model", tmp_path / "x.pth")
