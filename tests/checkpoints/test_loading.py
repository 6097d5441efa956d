import logging
import socket
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
from huggingface_hub import ModelCard
from timm.models import adapt_input_conv

from random_checkpoints import VARIANTS, random_state_dict, segmenter_shapes
from segnext_timm import CheckpointError, NMF2d, create_segmenter, list_segmenters, load_segmenter
from segnext_timm.checkpoints.catalog import get_segmenter_cfg
from segnext_timm.checkpoints.dialects import segmenter_to_native
from segnext_timm.errors import OptionError
from segnext_timm.label_sets import LABEL_SETS

PUBLISHED = {
    # published mIoU, single and multi-scale, and the end of the file's name
    "t": (41.50, 42.59, "20230210_140244-05bd8466.pth"),
    "s": (44.16, 45.81, "20230214_113014-43013668.pth"),
    "b": (48.03, 49.68, "20230209_172053-b6f6c70c.pth"),
    "l": (50.99, 52.10, "20230209_172055-19b14b63.pth"),
}


@pytest.fixture(scope="module")
def weights():
    return random_state_dict(segmenter_shapes("t", 150))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Put a checkpoint under a published name in an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def seed(name, checkpoint):
        path = tmp_path / "hub" / "checkpoints" / Path(urlparse(get_segmenter_cfg(name).url).path).name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)

    return seed


def test_the_published_segmenters_are_listed_with_what_is_known_of_them():
    names = [f"segnext_{v}.mmseg_ade20k" for v in PUBLISHED]
    assert list_segmenters("*mmseg*") == names
    assert list_segmenters("segnext_l.mmseg*") == names[-1:]
    for variant, (single, multi, end) in PUBLISHED.items():
        cfg = get_segmenter_cfg(f"segnext_{variant}")
        folder = f"segnext_mscan-{variant}_1x16_512x512_adamw_160k_ade20k"
        assert cfg.url == f"https://download.openmmlab.com/mmsegmentation/v0.5/segnext/{folder}/{folder}_{end}"
        assert tuple(cfg.miou.values()) == (single, multi)
        assert (cfg.decoder_channels, cfg.decoder_rank) == (VARIANTS[variant][3], 16)
        assert [r["value"] for r in cfg.results] == [single, multi]
        assert all(r["source"].startswith("https://") for r in cfg.results)
        info = cfg.pretrained_cfg
        assert (info["mean"], info["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        assert (len(info["label_names"]), len(info["palette"])) == (150, 150)


@pytest.mark.parametrize("nest", [dict, lambda s: {"state_dict": s, "meta": {"epoch": 1}}])
def test_published_weights_load_by_name(cache, caplog, weights, nest):
    cache("segnext_t", nest(weights))
    model = create_segmenter("segnext_t.mmseg_ade20k", pretrained=True)
    state_dict = model.state_dict()
    assert torch.equal(state_dict.pop("decoder.hamburger.nmf.bases"), NMF2d(256, 16).bases)
    native = segmenter_to_native(weights)
    assert all(torch.equal(state_dict[name], value) for name, value in native.items())
    assert model.pretrained_cfg["label_names"] == list(LABEL_SETS["ade20k"].classes)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_another_number_of_classes_keeps_all_but_the_last_layer_and_says_so(cache, caplog, weights):
    cache("segnext_t", weights)
    model = create_segmenter("segnext_t", pretrained=True, classes=4)
    assert torch.equal(model.decoder.align.weight, weights["decode_head.align.conv.weight"])
    assert model.segmentation_head[0].weight.shape == (4, 256, 1, 1)
    assert model.segmentation_head[0].weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert "label_names" not in model.pretrained_cfg
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "150 classes, but 4 are requested: the last layer is not loaded" in record.message


def card_results(folder):
    return [result.metric_value for result in ModelCard.load(folder / "README.md").data.eval_results or ()]


def test_a_published_model_which_may_be_trained_is_saved_without_published_results(cache, tmp_path, weights):
    cache("segnext_t", weights)
    model = create_segmenter("segnext_t", pretrained=True)
    model.save_pretrained(tmp_path / "a")
    assert card_results(tmp_path / "a") == []
    model.save_pretrained(tmp_path / "b", model_card_kwargs={"results": get_segmenter_cfg("segnext_t").results})
    assert card_results(tmp_path / "b") == list(get_segmenter_cfg("segnext_t").miou.values())
    model.save_pretrained(tmp_path / "c")
    assert card_results(tmp_path / "c") == []


@pytest.mark.parametrize(
    "arguments",
    [{"pretrained": False}, {"pretrained": True, "classes": 4}, {"pretrained": True, "decoder_eval_steps": 9}],
)
def test_a_changed_model_claims_no_published_results(cache, weights, arguments):
    cache("segnext_t", weights)
    info = create_segmenter("segnext_t", **arguments).pretrained_cfg
    assert "results" not in info
    assert ("license" in info) == ("origin_url" in info) == arguments["pretrained"]


def test_overrides_reach_the_model(cache, weights):
    cache("segnext_t", weights)
    model = create_segmenter(
        "segnext_t", pretrained=True, in_channels=6, decoder_rank=24, drop_path_rate=0.1, aux_params={"classes": 2}
    )
    stem = model.encoder.model.stem.conv1.weight
    assert torch.equal(stem, adapt_input_conv(6, weights["backbone.patch_embed1.proj.0.weight"]))
    assert torch.equal(model.decoder.hamburger.nmf.bases, NMF2d(256, 24).bases)
    assert model.encoder.model.stages_3.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)


def test_the_real_segnext_b_is_accepted_though_its_name_lies(cache):
    """Its name ends in b6f6c70c, its recorded sha256 begins with 647a0cda."""
    recorded = "647a0cda7678a35396689a4f8e9fddc33a088d8b539195d0dc97485ab8640ef1"
    assert [get_segmenter_cfg(f"segnext_{v}").sha256 for v in "tsbl"] == [None, None, recorded, None]
    cache("segnext_b", {"state_dict": {}})
    with pytest.raises(
        CheckpointError, match=rf"b6f6c70c\.pth: its sha256 is \w+, but the published file's begins with {recorded}"
    ):
        create_segmenter("segnext_b", pretrained=True)


def test_without_pretrained_nothing_is_fetched(cache, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"opened a connection: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    model = create_segmenter("segnext_t")
    assert not (tmp_path / "hub").exists()
    assert model.segmentation_head[0].out_channels == 150


def test_a_revision_of_a_file_that_is_not_on_the_hub_is_refused(cache, weights):
    cache("segnext_t", weights)
    with pytest.raises(OptionError, match=r"segnext_t comes from its publisher.*leave out revision='nope'"):
        load_segmenter("segnext_t", revision="nope")


def test_unknown_names_and_weights_that_do_not_fit_raise_errors_that_say_so(cache, weights):
    with pytest.raises(ValueError, match=r"Unknown segmenter 'segnext_x'. Did you mean 'segnext_"):
        create_segmenter("segnext_x")
    cache("segnext_t", weights)
    with pytest.raises(CheckpointError, match=r"05bd8466\.pth: has the wrong shape in .*decoder\."):
        create_segmenter("segnext_t", pretrained=True, decoder_channels=128)
    cache("segnext_s", weights)
    with pytest.raises(CheckpointError, match=r"43013668\.pth: weights of mscan_t, not of mscan_s"):
        create_segmenter("segnext_s", pretrained=True)
    cache("segnext_t", {"conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"05bd8466\.pth: not a checkpoint of MSCAN"):
        create_segmenter("segnext_t", pretrained=True)
