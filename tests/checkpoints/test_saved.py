"""`load_segmenter`: from folders and from the Hub, with other classes, without a network for what a folder holds."""

import functools
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

import hub_server
from segnext_timm import CheckpointError, load_segmenter
from segnext_timm.checkpoints.folder import read_config, read_facts
from segnext_timm.hub.cards import write_card
from segnext_timm.hub.push import _save_model
from segnext_timm.models.model_info import ModelInfo
from small_models import narrow


def images():
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """Refuse every connection, and hide what was downloaded before."""

    def refuse(*args, **kwargs):
        raise OSError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with hub_server.client("http://127.0.0.1:9", tmp_path / "hf", token=""):
        yield


@pytest.mark.parametrize(
    ("make", "encoder"),
    [
        (smp.Unet, "tu-mscan_t"),
        pytest.param(smp.FPN, "tu-resnet18", marks=pytest.mark.slow),
        pytest.param(smp.Unet, "resnet18", marks=pytest.mark.slow),
        (smp.SegNeXt, "tu-mscan_t"),
    ],
)
def test_a_saved_model_loads_without_a_network_and_remembers_what_it_began_with(make, encoder, no_network, tmp_path):
    model = make(encoder, encoder_weights=None, classes=2)
    model.config["encoder_weights"] = "imagenet"  # as it is when made with these weights
    model.save_pretrained(tmp_path / "m")
    loaded = load_segmenter(tmp_path / "m")
    loaded.save_pretrained(tmp_path / "again")
    assert (loaded.config["encoder_weights"], loaded.training) == ("imagenet", False)
    assert load_segmenter(tmp_path / "again").config["encoder_weights"] == "imagenet"


@torch.no_grad()
@pytest.mark.parametrize("make", [narrow, lambda: smp.Unet("tu-test_mscan", encoder_weights=None, classes=3)])
def test_another_number_of_classes_keeps_all_weights_but_the_last_layer_s(make, tmp_path, caplog):
    model = make().eval()
    model.save_pretrained(tmp_path)
    loaded = load_segmenter(tmp_path, classes=7)
    assert loaded(images()).shape == (1, 7, 64, 64)
    assert not loaded.training
    own, before = loaded.state_dict(), model.state_dict()
    assert own.keys() == before.keys()
    changed = {name for name in own if own[name].shape != before[name].shape}
    assert changed == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert all(torch.equal(own[name], before[name]) for name in own.keys() - changed)
    assert "has 3 classes, but 7 are requested: the last layer is not loaded" in caplog.text
    assert loaded.config["classes"] == 7


def test_facts_about_the_classes_before_go_with_them(tmp_path, caplog):
    facts = {
        "label_names": list("abc"),
        "dataset": "mine",
        "results": [{"dataset": "mine", "metric": "mIoU", "value": 1}],
    }
    narrow(pretrained_cfg={**facts, "license": "mit", "mean": [0.5] * 3, "std": [0.5] * 3}).save_pretrained(tmp_path)
    assert load_segmenter(tmp_path, classes=7).pretrained_cfg.keys() == {"license", "mean", "std"}
    assert load_segmenter(tmp_path, classes=3).pretrained_cfg.keys() >= {"label_names", "dataset", "license"}
    assert len(caplog.records) == 1


def test_a_folder_of_another_architecture_than_smp_s_is_named(tmp_path):
    narrow().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"SegNeXt"', '"Segmenter3D"'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds Segmenter3D, not a segmentation model"):
        load_segmenter(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    config.write_text(config.read_text().replace('"Segmenter3D"', '"SegNeXt"'), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        load_segmenter(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoder_name": 5},
        {"encoder_name": None},
        {"pretrained_cfg": "abc"},
        {"pretrained_cfg": [1]},
        {"pretrained_cfg": {"input_size": [3, "a", "b"]}},
        {"pretrained_cfg": {"mean": ["a"] * 3}},
        {"pretrained_cfg": {"palette": [[0, 0]] * 3}},
        {"pretrained_cfg": {"std": [0, 0, 0]}},
        {"_model_class": "Unet", "_pretrained_cfg": {"mean": 0.5}},
        {"_model_class": "Unet", "_pretrained_cfg": {"input_size": [3]}},
    ],
)
def test_a_configuration_that_creates_no_model_is_named(tmp_path, wrong):
    narrow().save_pretrained(tmp_path)
    settings = {"encoder_name": "tu-test_mscan", "in_channels": 3, "classes": 3, "_model_class": "SegNeXt"}
    (tmp_path / "config.json").write_text(json.dumps(settings | wrong), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        load_segmenter(tmp_path)


@pytest.mark.parametrize("classes", [None, 7])
def test_weights_without_names_are_told(tmp_path, classes):
    narrow().save_pretrained(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the weights do not fit its config\.json"):
        load_segmenter(tmp_path, classes=classes)


def test_revision_token_and_cache_folder_reach_the_hub(tmp_path):
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folders.append(tmp_path / str(seed))
        narrow().save_pretrained(folders[-1])
    with hub_server.serve() as hub:
        repo = hub.repos["user/repo"] = hub_server.Repo(private=True)
        for branch, folder in zip(("main", "other"), folders):
            repo.branches[branch] = {file.name: file.read_bytes() for file in folder.iterdir()}
        with hub_server.client(hub.url, tmp_path / "hf", token=""):
            load = functools.partial(load_segmenter, "user/repo", token="hf_reader", cache_dir=tmp_path / "cache")
            main, other = (
                load(revision=revision).segmentation_head[0].weight.sum().item() for revision in (None, "other")
            )
            assert load(classes=9).config["classes"] == 9
            with pytest.raises(FileNotFoundError, match=r"no such repository on the Hub\. If it is private, log in"):
                load_segmenter("user/repo", cache_dir=tmp_path / "cache2")
    sums = [load_segmenter(folder).segmentation_head[0].weight.sum().item() for folder in folders]
    assert [main, other] == pytest.approx(sums)
    assert (tmp_path / "cache" / "models--user--repo").is_dir()
    assert not list(Path(tmp_path, "hf").glob("hub/models*"))


def test_facts_of_a_unet_come_back_with_it(tmp_path):
    model = smp.Unet("tu-test_mscan", encoder_weights=None, classes=3)
    facts = {"label_names": list("abc"), "mean": np.array([0.25] * 3), "std": torch.full((3,), 0.5)}
    model.pretrained_cfg = facts | {"results": [{"dataset": "x", "metric": "mIoU", "value": np.float32(0.5)}]}
    _save_model(model, tmp_path, {})
    write_card(tmp_path)
    info = ModelInfo(load_segmenter(tmp_path))
    assert (info.label_names, info.normalization) == (["a", "b", "c"], ((0.25,) * 3, (0.5,) * 3))
    assert load_segmenter(tmp_path, classes=7).pretrained_cfg.keys() == {"mean", "std"}
    loaded = load_segmenter(tmp_path)
    _save_model(loaded, tmp_path / "again", {})
    assert read_facts(read_config(tmp_path / "again")) == loaded.pretrained_cfg
    saved = read_facts(read_config(tmp_path))
    assert saved.pop("results")[0]["value"] == 0.5
    assert saved == loaded.pretrained_cfg


@pytest.mark.parametrize("make", [narrow, lambda: smp.Unet("tu-test_mscan", encoder_weights=None)])
def test_an_unknown_key_in_the_configuration_is_named_with_its_file(make, tmp_path):
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"flavor": 1}))
    with pytest.raises(CheckpointError, match=r"config\.json: \w+ cannot be created\. .*'flavor'"):
        load_segmenter(tmp_path)
