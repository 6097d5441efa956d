"""Model cards: what they say is true of the model, and the code in them runs."""

import re
import shutil

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

import segnext_timm
from segnext_timm.hub.cards import segmenter_card
from segnext_timm.hub.push import _folder_of as folder_of


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def narrow(**kwargs):
    """A narrow segmenter."""
    return smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=8, **kwargs)


def test_cards_hold_what_the_next_user_needs():
    model = narrow(pretrained_cfg={"mean": [0.5] * 3, "std": [0.5] * 3, "dataset": "scenes", "input_size": [3, 64, 96]})
    card = model.generate_model_card(metrics={"mIoU": 0.5})
    assert isinstance(card, ModelCard)
    for text in (
        'smp.from_pretrained(".")',  # the folder that holds the card
        "pip install segnext-timm",
        "from segnext_timm import",
        "module 'segmentation_models_pytorch' has no attribute 'SegNeXt'",
        "| encoder | `tu-test_mscan` |",
        "| decoder channels | 32 |",
        "| mean | 0.5 0.5 0.5 |",
        "| image size | 64×96 |",
        "mIoU |  | 0.5 | the publisher of this model |",
        "trained on crops of 64×96 pixels",
        "@inproceedings{guo2022segnext",
    ):
        assert text in card.text, text
    assert card.data.datasets == ["scenes"]
    assert card.data.eval_results is None
    assert "USER/REPO" not in str(card)


OF_SEGNEXT = ("segnext", "mscan", "commercial users", "2209.08575", "guo2022", "32×32")


def pushed_card(model):
    """The card of a folder that `push_to_hub` would send."""
    with folder_of(model) as folder:
        return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("resnet10t", num_classes=7),
        lambda: smp.Unet("resnet18", encoder_weights=None),
        lambda: smp.FPN("tu-resnet10t", encoder_weights=None, classes=3),
    ],
    ids=["timm", "Unet", "FPN"],
)
def test_cards_of_other_models_say_nothing_of_segnext(make):
    card = pushed_card(make())
    for word in OF_SEGNEXT:
        assert word not in str(card).lower(), word
    assert card.data.license is None
    assert "Not stated" in card.text


@pytest.mark.parametrize("name", [n for n in smp.MODEL_ARCHITECTURES_MAPPING if n not in ("dpt", "segnext")])
def test_cards_state_the_divisor_that_the_architecture_requires(name):
    with torch.device("meta"):
        model = smp.create_model(name, "resnet18", encoder_weights=None, classes=3)
    card = segmenter_card(model.config | {"_model_class": type(model).__name__})
    if type(model).requires_divisible_input_shape:
        assert f"height and width multiples of {model.encoder.output_stride}," in card.text
    else:
        assert "sides of any length" in card.text
    assert "32×32" not in card.text


def test_the_card_of_a_unet_on_mscan_imports_the_package_and_is_of_a_unet():
    card = pushed_card(smp.Unet("tu-test_mscan", encoder_weights=None, classes=3))
    assert "# Unet on test_mscan" in card.text
    assert "from segnext_timm import" in card.text
    assert "`Unknown model (test_mscan)`" in card.text
    assert "segnext" not in card.data.tags and "mscan" in card.data.tags
    assert "the same from run to run" not in card.text and "rank" not in card.text


def test_the_authors_request_stands_where_their_weights_are_inside(tmp_path):
    config = {"_model_class": "SegNeXt", "encoder_name": "tu-mscan_t", "classes": 3, "encoder_weights": None}
    request = "commercial users to contact them"
    assert request not in segmenter_card(config).text
    fine_tuned = segmenter_card(config | {"encoder_weights": "imagenet"})
    assert request in fine_tuned.text and "The encoder was fine-tuned from" in fine_tuned.text
    assert fine_tuned.data.license is None
    published = segnext_timm.checkpoints.published.get_segmenter_cfg("segnext_t.mmseg_ade20k").pretrained_cfg
    card = segmenter_card(config | {"pretrained_cfg": published})
    assert request in card.text and card.data.license == "apache-2.0"
    assert request not in segmenter_card(config | {"encoder_name": "resnet18", "encoder_weights": "imagenet"}).text
    # what the encoder started from is known of a model that was saved and loaded
    model = narrow()
    model.config["encoder_weights"] = "imagenet"
    model.save_pretrained(tmp_path / "one")
    assert request in smp.from_pretrained(tmp_path / "one").generate_model_card().text


@pytest.mark.parametrize(
    ("encoder", "weights", "expected"),
    [
        ("tu-hf-hub:user/repo", True, "user/repo"),
        ("resnet18", "imagenet", "smp-hub/resnet18.imagenet"),
        ("tu-resnet18", True, "timm/resnet18.a1_in1k"),
        ("tu-mscan_t", "imagenet", None),  # published, but not on the Hub: named in the text
        ("tu-hf-hub:user/repo", None, None),
    ],
)
def test_the_base_model_is_named_where_it_is_known(encoder, weights, expected):
    card = segmenter_card({"encoder_name": encoder, "encoder_weights": weights, "classes": 3})
    assert card.data.base_model == expected
    named = expected or ("mscan_t.in1k" if weights else None)
    assert ("started from" in card.text) == bool(named)
    assert named is None or named in card.text


def test_cards_state_the_training_and_who_measured_the_results():
    training = {"recipe": "folder.yaml", "crop_size": 64, "iterations": 300, "seed": 7}
    results = [
        {"dataset": "a", "metric": "mIoU", "value": 1.5, "source": "https://x.org", "source_name": "X"},
        {"dataset": "b", "split": "val", "metric": "mIoU", "setting": "flip", "value": 2.5, "command": "evaluate me"},
    ]
    card = narrow(pretrained_cfg={"training": training, "results": results}).generate_model_card()
    for row in ("| recipe | folder.yaml |", "| crop size | 64 |", "| iterations | 300 |", "| seed | 7 |"):
        assert row in card.text
    assert "| a |  | mIoU |  | 1.5 | published by [X](https://x.org) |" in card.text
    assert "| b | val | mIoU | flip | 2.5 | the publisher of this model |" in card.text
    assert "evaluate me" in card.text
    assert "trained on crops of 64×64 pixels" in card.text


def test_the_code_of_cards_runs_as_it_stands(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    for name, model in {
        "segnext": narrow(
            pretrained_cfg={"label_names": ["a", "b", "c"], "palette": [[0, 0, 0], [9, 9, 9], [0, 9, 0]]}
        ),
        "unet": smp.Unet("tu-test_mscan", encoder_weights=None, classes=2),
        "backbone": timm.create_model("test_mscan", num_classes=3),
    }.items():
        with folder_of(model) as folder:
            shutil.copytree(folder, tmp_path / name)
        Image.fromarray(image).save(tmp_path / name / "image.jpg")
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        monkeypatch.chdir(tmp_path / name)
        exec(code, {})
        assert (tmp_path / name / "overlay.jpg").is_file() == (name != "backbone")


@pytest.mark.parametrize("encoder", ["tu-test_mscan", "resnet18"])
def test_models_load_after_their_results_were_added(tmp_path, encoder):
    result = {"dataset": "scenes", "metric": "mIoU", "value": 71.3}
    smp.FPN(encoder, encoder_weights=None, classes=3).save_pretrained(tmp_path / "fpn")
    backbone = timm.create_model("test_mscan")
    with folder_of(backbone) as folder:
        shutil.copytree(folder, tmp_path / "backbone")
    for name in ("fpn", "backbone"):
        segnext_timm.hub.push.add_results(tmp_path / name, [result])
        segnext_timm.hub.push.add_results(tmp_path / name, [result | {"value": 71.4}])
        (added,) = ModelCard.load(tmp_path / name / "README.md").data.eval_results
        assert added.metric_value == 71.4
    assert isinstance(smp.from_pretrained(tmp_path / "fpn"), smp.FPN)
    assert equal(
        timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).state_dict(), backbone.state_dict()
    )


def test_names_of_other_classes_do_not_travel():
    model = timm.create_model("test_mscan", num_classes=3)
    model.pretrained_cfg["label_names"] = tuple(map(str, range(1000)))  # of the classifier it had
    assert "classes</summary>" not in pushed_card(model).text
    model.pretrained_cfg["label_names"] = ("x", "y", "z")
    assert "0 x, 1 y, 2 z" in pushed_card(model).text


def test_what_timm_says_of_its_own_weights_is_not_said_of_others():
    # timm's record is of the weights it publishes; what they are under is said of these only
    card = pushed_card(timm.create_model("mscan_t", num_classes=5))
    assert card.data.license is None
    assert "If they come from the published `mscan_t.in1k`, its license applies: apache-2.0" in card.text
    model = timm.create_model("test_mscan", num_classes=5)
    model.pretrained_cfg["license"] = "cc-by-4.0"
    assert pushed_card(model).data.license == "cc-by-4.0"
