"""Folders for timm and smp, and their way to the Hub and back."""

import argparse
import logging
import signal
import subprocess
import sys

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import ModelCard
from timm.utils import CheckpointSaver, ModelEmaV3

import convert_memory
import struck
from command import COMMAND
from random_checkpoints import backbone_shapes, random_state_dict, segmenter_shapes, write
from segnext_timm import CheckpointError, NMF2d, add_results, convert
from segnext_timm.checkpoints import conversion
from segnext_timm.checkpoints.dialects import segmenter_to_native
from segnext_timm.checkpoints.folder import read_config, read_facts
from segnext_timm.hub.cards import save_backbone
from segnext_timm.label_sets import LABEL_SETS
from segnext_timm.models.mscan import backbone_to_native
from small_models import narrow

DIALECTS = pytest.mark.parametrize("dialect", ["paper", "mmseg", "jittor"])


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_counts(state_dict):
    return {name: value for name, value in state_dict.items() if not name.endswith("num_batches_tracked")}


# Converting


@DIALECTS
def test_a_backbone_becomes_a_folder_that_timm_loads(tmp_path, caplog, backbone, dialect):
    found = convert(write(tmp_path / "mscan_t", backbone, dialect), tmp_path / "out")
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert equal(without_counts(model.state_dict()), without_counts(backbone_to_native(backbone)))
    assert model.pretrained_cfg["mean"] == (0.5,) * 3 or list(model.pretrained_cfg["mean"]) == [0.5] * 3
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert (found.kind, found.architecture) == ("backbone", "mscan_t")
    features = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, features_only=True)
    assert torch.equal(features.stages_0.norm.weight, model.stages[0].norm.weight)


@DIALECTS
def test_a_segmenter_becomes_a_folder_that_smp_loads(tmp_path, segmenter, dialect):
    found = convert(write(tmp_path / "x", segmenter, dialect), tmp_path / "out")
    assert str(found).startswith("SegNeXt on mscan_t, 5 classes, 3 input channels, 256 decoder channels, rank 16 (from")
    model = smp.from_pretrained(tmp_path / "out")
    state_dict = dict(model.state_dict())
    assert torch.equal(state_dict.pop("decoder.hamburger.nmf.bases"), NMF2d(256, 16).bases)
    assert equal(without_counts(state_dict), without_counts(segmenter_to_native(segmenter)))
    assert model.pretrained_cfg["mean"] == [0.485, 0.456, 0.406]


def test_converted_files_claim_no_license(tmp_path, backbone, segmenter):
    for name, state_dict in (("backbone", backbone), ("segmenter", segmenter)):
        convert(write(tmp_path / name, state_dict, "paper"), tmp_path / name)
        card = ModelCard.load(tmp_path / name / "README.md")
        assert card.data.license is None
        assert "Not stated" in card.text and "commercial users" not in card.text
        assert "license" not in (tmp_path / name / "config.json").read_text(encoding="utf-8")


def test_other_input_channels_and_no_classifier(tmp_path):
    for kwargs in ({"in_chans": 6, "num_classes": 7}, {"num_classes": 0}):
        source = timm.create_model("test_mscan", **kwargs)
        torch.save({"state_dict_ema": source.state_dict(), "state_dict": {}}, tmp_path / "checkpoint.pth")
        convert(tmp_path / "checkpoint.pth", tmp_path / "out", ema=True, force=True)
        model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        assert equal(model.state_dict(), source.state_dict())
    assert ModelCard.load(tmp_path / "out" / "README.md").data.pipeline_tag == "image-feature-extraction"
    source = narrow(in_channels=4)
    torch.save(source.state_dict(), tmp_path / "checkpoint.pth")
    convert(tmp_path / "checkpoint.pth", tmp_path / "four")
    assert equal(smp.from_pretrained(tmp_path / "four").state_dict(), source.state_dict())


def test_class_names_come_from_the_checkpoint_a_file_or_a_data_set(tmp_path):
    state_dict = narrow().state_dict()
    torch.save({"state_dict": state_dict, "meta": {"CLASSES": ("x", "y", "z")}}, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "own")
    assert smp.from_pretrained(tmp_path / "own").pretrained_cfg["label_names"] == ["x", "y", "z"]
    (tmp_path / "classes.txt").write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    convert(tmp_path / "x.pth", tmp_path / "file", classes=tmp_path / "classes.txt")
    assert smp.from_pretrained(tmp_path / "file").pretrained_cfg["label_names"] == ["one", "two", "three"]
    with pytest.raises(CheckpointError, match="has 3 classes, but 150 names were given"):
        convert(tmp_path / "x.pth", tmp_path / "ade", classes="ade20k")
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file of class names, and not a data set: ade20k"):
        convert(tmp_path / "x.pth", tmp_path / "ade", classes="none.txt")
    torch.save(random_state_dict(segmenter_shapes("t", 150)), tmp_path / "ade.pth")
    convert(tmp_path / "ade.pth", tmp_path / "ade", classes="ade20k")
    info = smp.from_pretrained(tmp_path / "ade").pretrained_cfg
    assert tuple(info["label_names"]) == LABEL_SETS["ade20k"].classes
    assert info["palette"][0] == [120, 120, 120]
    card = ModelCard.load(tmp_path / "ade" / "README.md")
    assert card.data.datasets == ["scene_parse_150"]
    assert "149 flag" in card.text


def test_nothing_is_overwritten_or_left_half_made(tmp_path):
    torch.save(narrow().state_dict(), tmp_path / "x.pth")
    (tmp_path / "bad.pth").write_text("<html>", encoding="utf-8")
    with pytest.raises(CheckpointError):
        convert(tmp_path / "bad.pth", tmp_path / "out")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bad.pth", "x.pth"]
    convert(tmp_path / "x.pth", tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("my words", encoding="utf-8")
    with pytest.raises(FileExistsError, match="exists: choose another name, or replace a model folder with --force"):
        convert(tmp_path / "x.pth", tmp_path / "out")
    with pytest.raises(CheckpointError):
        convert(tmp_path / "bad.pth", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "my words"
    convert(tmp_path / "x.pth", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") != "my words"
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds more than a model \(thesis\.tex\): it is not replaced"):
        convert(tmp_path / "x.pth", tmp_path / "out", force=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bad.pth", "out", "x.pth"]


def test_the_current_folder_is_filled_if_it_is_empty(tmp_path, monkeypatch):
    torch.save(narrow().state_dict(), tmp_path / "x.pth")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "bad.pth").write_text("<html>", encoding="utf-8")
    with pytest.raises(CheckpointError):
        convert("../bad.pth", ".")
    assert not [*(tmp_path / "empty").iterdir()]
    convert("../x.pth", ".")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_mistakes_in_converting_are_named(tmp_path, segmenter):
    torch.save(narrow().state_dict(), tmp_path / "x.pth")
    for arguments, message in (
        ({"dst": tmp_path / "out.safetensors"}, r"will be a folder: choose a name without \.safetensors"),
        ({"dst": tmp_path / "out", "rank": 4}, r"x\.pth: its bases are of rank 8, not 4: leave the rank out"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "x.pth", **arguments)
    incomplete = {name: value for name, value in segmenter.items() if "block3.1." not in name and "gn" not in name}
    incomplete["decode_head.extra"] = torch.zeros(1)
    torch.save(incomplete, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match=r"y\.pth: (an MSCAN of channels|lacks)") as error:
        convert(tmp_path / "y.pth", tmp_path / "out")
    assert "\n" not in str(error.value)
    forged = {"stage.extra": torch.zeros(1).expand(1 << 45), "norm1.bias": torch.tensor([float("nan")] * 16)}
    torch.save(narrow().state_dict() | forged, tmp_path / "z.pth")
    with pytest.raises(CheckpointError, match=r"z\.pth: .*has the unknown .*stage\.extra"):
        convert(tmp_path / "z.pth", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        CheckpointError, match=r"empty: not a model folder, because it has no config\.json and no model\.saf"
    ):
        convert(tmp_path / "empty", tmp_path / "out")
    smp.SegNeXt("resnet18", encoder_weights=None, classes=2, decoder_channels=32).save_pretrained(tmp_path / "resnet")
    with pytest.raises(CheckpointError, match="not a checkpoint of MSCAN"):
        convert(tmp_path / "resnet", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_converting_the_large_segmenter_takes_little_memory():
    assert max(convert_memory.main().values()) < 2.5


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_conversion_leaves_nothing_under_the_name(tmp_path, stop, code):
    source = write(tmp_path / "b", random_state_dict(segmenter_shapes("b", 150)), "mmseg")
    command = [COMMAND, "convert", source, tmp_path / "out"]
    # the weights are written, but not yet under their name
    assert subprocess.run(struck.command(stop, 1, "model.safetensors", *command)).returncode == code
    left = [f for f in tmp_path.iterdir() if f.name != "b.pth"]
    assert tmp_path / "out" not in left
    assert left == [] if stop == signal.SIGINT else [*left[0].rglob("model.safetensors")]
    subprocess.run(command, check=True)
    assert smp.from_pretrained(tmp_path / "out").segmentation_head[0].out_channels == 150


# pretrained=True, and what its files can be


def test_weights_of_another_variant_are_named(tmp_path):
    for name, classes in (("s", 1000), ("s", 10)):  # with other classes, timm would load what fits
        torch.save(random_state_dict(backbone_shapes("s", classifier=True)), tmp_path / "s.pth")
        with pytest.raises(CheckpointError, match=r"lacks stages\.0\.blocks\.2\.norm1.* of another network or size"):
            overlay = {"file": str(tmp_path / f"{name}.pth")}
            timm.create_model("mscan_b", pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)


def test_a_file_of_another_network_given_to_timm_is_named(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of MSCAN.*found conv1\.weight") as error:
        timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "x.pth")})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dialect", ["paper", "mmseg"])
def test_timm_takes_published_files_and_converted_ones(tmp_path, backbone, dialect):
    path = write(tmp_path / "mscan_t", backbone, dialect)
    native = backbone_to_native(backbone)
    loaded = timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert all(torch.equal(native[name], value) for name, value in loaded.state_dict().items() if name in native)
    convert(path, tmp_path / "out")
    model = timm.create_model("mscan_t", checkpoint_path=str(tmp_path / "out" / "model.safetensors"))
    assert equal(model.state_dict(), native)


def test_a_face_parser_with_more_outputs_than_classes_is_converted(tmp_path):
    torch.save(random_state_dict(segmenter_shapes("t", 150)), tmp_path / "face.pth")
    names = [f"part {i}" for i in range(19)]
    with pytest.raises(CheckpointError, match=r"has 150 classes, but 19 names .* keep these with --num-classes 19"):
        convert(tmp_path / "face.pth", tmp_path / "face", classes=names)
    convert(tmp_path / "face.pth", tmp_path / "face", classes=names, num_classes=19)
    model = smp.from_pretrained(tmp_path / "face")
    assert model.segmentation_head[0].out_channels == 19
    assert model.pretrained_cfg["label_names"] == names
    with pytest.raises(CheckpointError, match=r"face\.pth: has 150 classes, so the first 151 cannot be kept"):
        convert(tmp_path / "face.pth", tmp_path / "other", num_classes=151)


def test_a_paddleseg_file_becomes_a_folder_that_smp_loads(tmp_path, segmenter):
    convert(write(tmp_path / "x", segmenter, "paddle"), tmp_path / "out")
    model = smp.from_pretrained(tmp_path / "out")
    state_dict = dict(model.state_dict())
    state_dict.pop("decoder.hamburger.nmf.bases")
    assert equal(without_counts(state_dict), without_counts(segmenter_to_native(segmenter)))


def test_a_byte_order_mark_is_no_part_of_a_class_name(tmp_path):
    (tmp_path / "names.txt").write_text("road\nsky\n", encoding="utf-8-sig")
    assert conversion._read_labels(tmp_path / "names.txt") == (("road", "sky"), None)


# What trainers write


@pytest.fixture(scope="module")
def timm_run(tmp_path_factory):
    """A folder of checkpoints as timm's train.py writes them, the model, and its moving average."""
    folder = tmp_path_factory.mktemp("run")
    model = timm.create_model("test_mscan", num_classes=3)
    average = ModelEmaV3(timm.create_model("test_mscan", num_classes=3))
    saver = CheckpointSaver(
        model,
        torch.optim.AdamW(model.parameters()),
        args=argparse.Namespace(model="test_mscan", lr=0.1, mean=None),
        model_ema=average,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(0, metric=1.0)
    saver.save_recovery(0, 5)
    return folder, model, average.module


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("name", ["model_best", "last", "checkpoint-0", "recovery-0-5"])
def test_what_timm_s_training_writes_is_converted(tmp_path, timm_run, name, ema):
    folder, model, average = timm_run
    convert(folder / f"{name}.pth.tar", tmp_path / "out", ema=ema)
    converted = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert equal(converted.state_dict(), (average if ema else model).state_dict())


def test_what_timm_s_training_writes_is_loaded_with_its_classifier(timm_run):
    folder, _, average = timm_run  # of files with an average, timm takes that
    overlay = {"file": str(folder / "model_best.pth.tar"), "num_classes": 3}
    loaded = timm.create_model("test_mscan", num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay)
    assert equal(loaded.state_dict(), average.state_dict())
    other = timm.create_model("test_mscan", num_classes=4, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(other.stem.conv1.weight, average.stem.conv1.weight)


BESIDE = {"criterion.weight": torch.ones(3), "loss_fn.weight": torch.ones(3), "train_iou.confmat": torch.ones(3, 3)}


def lightning_checkpoint(path, network, prefix="model."):
    state_dict = {**BESIDE, **{prefix + name: value for name, value in network.state_dict().items()}}
    torch.save({"state_dict": state_dict, "callbacks": {}, "pytorch-lightning_version": "2.5.0"}, path)


@pytest.mark.parametrize("prefix", ["model.", "model._orig_mod."])
@pytest.mark.parametrize(
    "create", [lambda: narrow(), lambda: timm.create_model("test_mscan")], ids=["segmenter", "backbone"]
)
def test_a_lightning_checkpoint_with_losses_and_metrics_is_converted(tmp_path, create, prefix):
    path, network = tmp_path / "last.ckpt", create()
    lightning_checkpoint(path, network, prefix)
    found = convert(path, tmp_path / "out")
    assert equal(found.state_dict, network.state_dict())


def test_a_backbone_beside_losses_is_loaded_by_timm(tmp_path):
    model = timm.create_model("test_mscan")
    lightning_checkpoint(tmp_path / "last.ckpt", model)
    overlay = {"file": str(tmp_path / "last.ckpt")}
    loaded = timm.create_model("test_mscan", pretrained=True, pretrained_cfg_overlay=overlay)
    assert equal(loaded.state_dict(), model.state_dict())


def test_an_unknown_parameter_inside_the_network_is_an_unknown_parameter(tmp_path):
    network = narrow()
    state_dict = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state_dict | {"model.extra.weight": torch.ones(1)}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"has the unknown extra\.weight: incomplete, or of another"):
        convert(tmp_path / "x.ckpt", tmp_path / "out")


# Folders of other than the original's settings

FACTS = {"mean": [0.1] * 3, "std": [0.3] * 3, "license": "cc-by-4.0", "dataset": "scenes", "fit_in": [96, 64]}
FACTS |= {"label_names": list("abc")}
SETTINGS = {
    "facts": {"pretrained_cfg": FACTS},
    "activation": {"activation": "softmax2d"},
    "steps": {"decoder_eval_steps": 2},
    "stride": {"output_stride": 16},
    "image classifier": {"aux_params": {"classes": 2}},
}


@torch.no_grad()
def masks(model):
    output = model.eval()(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_converted_folder_holds_the_same_model(tmp_path, settings):
    model = narrow(**settings)
    model.config["encoder_weights"] = "imagenet"  # what its training began with
    model.save_pretrained(tmp_path / "model", metrics={"mIoU": 0.5})
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    convert(tmp_path / "model", tmp_path / "model", force=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before
    assert torch.equal(masks(smp.from_pretrained(tmp_path / "model")), masks(model))


def test_names_given_for_a_folder_change_nothing_else(tmp_path):
    narrow(pretrained_cfg=FACTS | {"palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]]}).save_pretrained(tmp_path / "model")
    add_results(tmp_path / "model", [{"dataset": "x", "metric": "mIoU", "value": 75.5}])
    convert(tmp_path / "model", tmp_path / "named", classes=["x", "y", "z"])
    before, after = (read_facts(read_config(tmp_path / name)) for name in ("model", "named"))
    assert after == before | {"label_names": ["x", "y", "z"]}


def test_fewer_classes_of_a_folder_keep_the_first_names_and_no_results(tmp_path):
    narrow(pretrained_cfg=FACTS).save_pretrained(tmp_path / "model", metrics={"mIoU": 0.5})
    convert(tmp_path / "model", tmp_path / "two", num_classes=2)
    facts = smp.from_pretrained(tmp_path / "two").pretrained_cfg
    assert facts == FACTS | {"label_names": ["a", "b"]}
    assert "results" not in read_facts(read_config(tmp_path / "two"))


def test_a_converted_folder_of_a_backbone_holds_the_same_model(tmp_path):
    overlay = {"mean": (0.1,) * 3, "std": (0.3,) * 3, "input_size": (3, 96, 96), "license": "mit"}
    model = timm.create_model("test_mscan", num_classes=3, output_stride=16, pretrained_cfg_overlay=overlay)
    save_backbone(model, tmp_path / "model", {"label_names": ["a", "b", "c"]})
    add_results(tmp_path / "model", [{"dataset": "x", "metric": "top-1", "value": 75.5}])
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    convert(tmp_path / "model", tmp_path / "model", force=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before


def test_a_file_with_an_image_classifier_is_converted_without_it_and_says_so(tmp_path, caplog):
    model = narrow(aux_params={"classes": 2})
    torch.save(model.state_dict(), tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "out")
    assert "Left out the classification head (aux_params)" in caplog.text
    assert torch.equal(masks(smp.from_pretrained(tmp_path / "out")), masks(model))


def test_a_file_of_fewer_stages_says_how_to_save_its_model(tmp_path):
    torch.save(narrow(encoder_depth=4).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="create the model as it was trained, load the file's"):
        convert(tmp_path / "x.pth", tmp_path / "out")


@pytest.mark.parametrize("folder", [False, True])
def test_another_segmenter_on_mscan_is_converted_to_its_backbone_and_says_so(tmp_path, caplog, folder):
    model = smp.Unet("tu-test_mscan", encoder_weights=None, classes=3)
    model.save_pretrained(tmp_path / "unet")
    torch.save(model.state_dict(), tmp_path / "x.pth")
    found = convert(tmp_path / ("unet" if folder else "x.pth"), tmp_path / "out")
    assert found.kind == "backbone"
    assert "only the backbone: the decoder is not SegNeXt's" in caplog.text


def test_more_names_than_classes_give_no_hint_to_keep_the_first(tmp_path):
    torch.save(narrow().state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"has 3 classes, but 150 names were given\.$"):
        convert(tmp_path / "x.pth", tmp_path / "out", classes="ade20k")
