import json
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from huggingface_hub import ModelCard
from torch.utils.flop_counter import FlopCounterMode

import segnext_timm
from random_checkpoints import FILES, VARIANTS, accept_cached, backbone_shapes, random_state_dict
from segnext_timm import LightHamDecoder, SegNeXt, add_results
from segnext_timm.errors import OptionError
from segnext_timm.models.facts import weights_digest
from segnext_timm.models.model_info import ModelInfo
from small_models import images, tiny

GOLDEN = Path(__file__).parents[1] / "golden"

# variant: parameters at 150 classes; GMACs at 512² of the published implementation, and of this one
PUBLISHED = {
    "t": (4_263_414, 6.40, 6.01),
    "s": (13_932_886, 15.65, 14.87),
    "b": (27_636_310, 34.66, 33.02),
    "l": (48_926_550, 69.69, 66.40),
}


def test_smp_knows_segnext_by_every_name():
    assert smp.SegNeXt is SegNeXt is segnext_timm.SegNeXt
    assert smp.MODEL_ARCHITECTURES_MAPPING["segnext"] is SegNeXt
    assert "SegNeXt" in smp.__all__
    assert type(smp.create_model("SegNeXt", "tu-test_mscan", encoder_weights=None)) is SegNeXt


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_the_published_ones_and_macs_at_most(variant):
    parameters, published, gmacs = PUBLISHED[variant]
    *_, channels, rank = VARIANTS[variant]
    with torch.device("meta"):
        model = SegNeXt(
            f"tu-mscan_{variant}", encoder_weights=None, classes=150, decoder_channels=channels, decoder_rank=rank
        ).eval()
        x = torch.empty(1, 3, 512, 512)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        assert model(x).shape == (1, 150, 512, 512)
    assert round(counter.get_total_flops() / 2e9, 2) == gmacs < published


def test_native_names_are_frozen():
    assert list(tiny().state_dict()) == (GOLDEN / "segnext_test_mscan.txt").read_text().split()


def test_squeezing_before_resizing_equals_squeezing_after():
    decoder = LightHamDecoder([3, 0, 8, 16, 24, 32], channels=32, rank=4).eval()
    features = [
        images(1, c, *s)
        for c, s in zip((3, 0, 8, 16, 24, 32), ((72, 56), 2 * (1,), *[(18, 14)], (9, 7), (5, 4), (3, 2)))
    ]
    squeezed = {}
    decoder.squeeze_norm.register_forward_pre_hook(lambda module, inputs: squeezed.update(x=inputs[0]))
    decoder(features)
    resized = [torch.nn.functional.interpolate(f, (9, 7), mode="bilinear", align_corners=False) for f in features[3:]]
    weight = torch.cat([conv.weight for conv in decoder.squeeze], dim=1)
    expected = torch.nn.functional.conv2d(torch.cat(resized, dim=1), weight)
    torch.testing.assert_close(squeezed["x"], expected)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96), (129, 32)])
def test_any_size_is_segmented_at_that_size(size):
    assert tiny()(images(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_encoder_depth(depth):
    model = tiny(encoder_depth=depth)
    assert len(model.decoder.squeeze) == depth - 2
    assert model(images(1, 3, 64, 64)).shape == (1, 5, 64, 64)


@pytest.mark.parametrize(
    "encoder_name",
    [
        "resnet18",
        "vgg11",
        "mit_b0",
        "mobilenet_v2",
        "efficientnet-b0",
        "tu-resnet18",
        "tu-convnext_atto",
        "tu-regnetx_002",
    ],
)
def test_any_encoder_trains(encoder_name):
    model = tiny(encoder_name=encoder_name).train()
    output = model(images(2, 3, 64, 64))
    assert output.shape == (2, 5, 64, 64)
    output.square().mean().backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.filterwarnings("ignore:Encoder does not have prefix tokens")  # DPT's
@pytest.mark.parametrize("architecture", smp.MODEL_ARCHITECTURES_MAPPING)
def test_every_decoder_of_smp_trains_on_mscan(architecture):
    model = smp.create_model(architecture, "tu-test_mscan", encoder_weights=None, classes=5)
    output = model(images(2, 3, 128, 128))
    assert output.shape == (2, 5, 128, 128)
    output.square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not [name for name in without if not name.startswith("encoder.model.head.")]  # DPT's encoder is whole


@pytest.mark.parametrize("in_channels", [1, 4])
def test_any_number_of_input_channels(in_channels):
    assert tiny(in_channels=in_channels)(images(1, in_channels, 64, 64)).shape == (1, 5, 64, 64)


def test_timm_arguments_reach_the_encoder():
    model = tiny(drop_path_rate=0.2, output_stride=16)
    assert max(getattr(m, "drop_prob", 0) or 0 for m in model.encoder.modules()) == pytest.approx(0.2)
    assert model.encoder.model.feature_info.reduction() == [4, 8, 16, 16]
    assert model(images(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_activation_applies_to_the_resized_logits():
    x = images(1, 3, 64, 64)
    logits, probabilities = tiny()(x), tiny(activation="softmax2d")(x)
    torch.testing.assert_close(probabilities, logits.softmax(1))


def test_aux_params_add_a_classification_head():
    masks, labels = tiny(aux_params={"classes": 7, "dropout": 0.1})(images(2, 3, 64, 64))
    assert (masks.shape, labels.shape) == ((2, 5, 64, 64), (2, 7))


def test_the_last_convolution_starts_small():
    weight = tiny(classes=150).segmentation_head[0].weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_a_frozen_encoder_stays_as_it_is():
    model = tiny()
    model.freeze_encoder()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model.train()
    model(images(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.encoder.state_dict().items())
    model.unfreeze_encoder()
    assert all(p.requires_grad for p in model.parameters())


def test_labels_are_predicted_in_evaluation_mode_and_modes_stay():
    model, x = tiny(), images(1, 3, 64, 64)
    expected = model.predict_labels(x)
    model.train()
    model.freeze_encoder()
    modes = [module.training for module in model.modules()]
    assert torch.equal(model.predict_labels(x), expected)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("training", [False, True])
def test_predict_labels_compiles_to_one_graph(training):
    model, x = tiny().train(training), images(2, 3, 64, 96)
    labels = torch.compile(model.predict_labels, fullgraph=True, backend="eager")(x)
    assert torch.equal(labels, model.predict_labels(x))
    assert all(module.training == training for module in model.modules())


# Encoder weights


@pytest.fixture
def seeded(tmp_path, monkeypatch):
    """The published weights of mscan_t, random here, in a cache of their own: (state dict, cache folder)."""
    published = random_state_dict(backbone_shapes("t"))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(published, cache / FILES["t"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    accept_cached(monkeypatch.setitem)
    return published, cache


@pytest.mark.parametrize("encoder_weights", ["imagenet", True])
def test_pretrained_encoders_load_without_a_warning(seeded, caplog, encoder_weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = smp.create_model("segnext", "tu-mscan_t", encoder_weights=encoder_weights)
    assert torch.equal(model.encoder.model.stages_3.norm.weight, seeded[0]["norm4.weight"])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("encoder_weights", [None, False])
def test_random_encoders_load_nothing(seeded, encoder_weights):
    model = smp.create_model("segnext", "tu-mscan_t", encoder_weights=encoder_weights)
    assert torch.equal(model.encoder.model.stages_3.norm.weight, torch.ones(256))


def test_true_means_imagenet_for_encoders_of_smp():
    assert segnext_timm.models.segnext._smp_encoder_weights("resnet18", True) == "imagenet"
    assert segnext_timm.models.segnext._smp_encoder_weights("resnet18", "ssl") == "ssl"
    assert segnext_timm.models.segnext._smp_encoder_weights("resnet18", False) is None


# Saving and loading


def test_saving_and_loading_keeps_the_predictions(tmp_path):
    model, x = tiny(drop_path_rate=0.1, decoder_rank=6, activation="sigmoid"), images(2, 3, 70, 90)
    model.save_pretrained(tmp_path, dataset="scenes", metrics={"mIoU": 0.5})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = smp.from_pretrained(tmp_path)
    assert type(loaded) is SegNeXt
    assert not loaded.training
    assert torch.equal(loaded(x), model(x))
    assert loaded.config == model.config | {"_model_class": "SegNeXt"}
    assert torch.equal(SegNeXt.from_pretrained(tmp_path)(x), model(x))


def test_a_saved_model_loads_without_its_encoder_weights_or_a_network(seeded, tmp_path, monkeypatch):
    model = smp.create_model("segnext", "tu-mscan_t", encoder_weights="imagenet").eval()
    model.save_pretrained(tmp_path / "saved")
    next(seeded[1].iterdir()).unlink()

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded, x = smp.from_pretrained(tmp_path / "saved"), images(1, 3, 64, 64)
    assert torch.equal(loaded(x), model(x))


def test_the_card_says_how_to_load_the_model(tmp_path):
    tiny().save_pretrained(tmp_path, dataset="scenes", metrics={"mIoU": 0.5})
    card = (tmp_path / "README.md").read_text()
    front_matter = card.split("---")[1]
    assert "library_name: segmentation-models-pytorch" in front_matter
    assert "pipeline_tag: image-segmentation" in front_matter
    assert "license" not in front_matter  # nobody stated one
    assert front_matter.count("- segnext\n") == 1
    assert "import segnext_timm" in card
    assert "scenes" in card
    assert json.loads((tmp_path / "config.json").read_text())["_model_class"] == "SegNeXt"


RESULT = {"dataset": "scenes", "metric": "mIoU", "value": 71.34}


def measured(folder, **kwargs):
    """A model whose results were added to its folder."""
    tiny(**kwargs).save_pretrained(folder)
    add_results(folder, [RESULT])
    return smp.from_pretrained(folder)


def results_in(folder):
    """Whether configuration, front matter and text of a saved model state the result."""
    info = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    card = ModelCard.load(folder / "README.md")
    return ["results" in info, bool(card.data.eval_results), "71.34" in card.text]


@torch.no_grad()
def zero_encoder(model):
    for parameter in model.encoder.parameters():
        parameter.zero_()


def change_statistics(model):
    next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_var.mul_(2)


CHANGES = {
    "encoder": zero_encoder,
    "statistics": change_statistics,
    "decoder": lambda model: model.decoder.apply(reset),
    "bases": lambda model: model.decoder.hamburger.nmf.bases.mul_(2),
    "bias": lambda model: torch.nn.init.ones_(model.segmentation_head[0].bias),
}


def reset(module):
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_is_saved_without_results_of_other_weights(tmp_path, caplog, change):
    model = measured(tmp_path / "one")
    change(model)
    model.save_pretrained(tmp_path / "two")
    assert results_in(tmp_path / "two") == [False] * 3
    assert "left out results of other weights" in caplog.text


WAYS = {
    "half": lambda model: model.half().float(),
    "double": lambda model: model.double().float(),
    "saved in half": lambda model: model.half(),
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "training mode": lambda model: model.train(),
    "counters": lambda model: [m.num_batches_tracked.add_(1) for m in model.modules() if hasattr(m, "running_var")],
    "image classifier": lambda model: model.classification_head.apply(reset),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_results_stay_while_masks_are_the_same(tmp_path, caplog, way):
    model = measured(tmp_path / "one", aux_params={"classes": 2})
    way(model)
    model.save_pretrained(tmp_path / "two")
    assert results_in(tmp_path / "two") == [True] * 3
    assert not caplog.records


def test_the_digest_of_a_file_and_of_its_model_are_equal_and_change_nothing(tmp_path):
    model = tiny(decoder_channels=64).to(memory_format=torch.channels_last).train()
    model.save_pretrained(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    digests = {weights_digest(tmp_path / "model.safetensors"), weights_digest(model), weights_digest(before)}
    assert len(digests) == 1 and len(digests.pop()) == 16
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model.decoder.align.weight.requires_grad


def test_results_that_a_user_stated_without_a_digest_are_kept(tmp_path):
    model = tiny()
    model.pretrained_cfg["results"] = [RESULT]
    zero_encoder(model)
    model.save_pretrained(tmp_path)
    assert results_in(tmp_path) == [True] * 3


def test_a_digest_without_results_does_not_keep_a_model_from_being_saved(tmp_path, caplog):
    model = measured(tmp_path)
    del model.pretrained_cfg["results"]
    zero_encoder(model)
    model.save_pretrained(tmp_path)
    assert results_in(tmp_path) == [False] * 3
    assert not caplog.records


def test_a_card_never_states_results_of_other_weights(tmp_path):
    model = measured(tmp_path)
    assert "71.34" in str(model.generate_model_card())
    zero_encoder(model)
    assert "71.34" not in str(model.generate_model_card())


def test_a_generated_card_is_rewritten_when_another_model_is_saved(tmp_path):
    measured(tmp_path, pretrained_cfg={"label_names": list("abcde"), "license": "mit"})
    tiny(pretrained_cfg={"label_names": list("vwxyz")}).save_pretrained(tmp_path, metrics={"mIoU": 0.25})
    card = ModelCard.load(tmp_path / "README.md")
    assert "71.34" not in str(card) + (tmp_path / "config.json").read_text()
    assert "0 v, 1 w" in card.text and "0 a, 1 b" not in card.text and "| 0.25 |" in card.text
    assert card.data.license is None
    tiny().save_pretrained(tmp_path)
    assert "| 0.25 |" not in ModelCard.load(tmp_path / "README.md").text


def test_facts_given_when_a_model_is_saved_stay_with_it_and_results_only_with_its_weights(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "one", dataset="scenes", metrics={"mIoU": 0.25})
    model.save_pretrained(tmp_path / "two")
    smp.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "three", metrics={"mIoU": 0.5})
    zero_encoder(model)
    model.save_pretrained(tmp_path / "four")
    for name, value in (("one", 0.25), ("two", 0.25), ("three", 0.5), ("four", None)):
        card = ModelCard.load(tmp_path / name / "README.md")
        assert card.data.datasets == ["scenes"]
        assert [f"| mIoU |  | {value} |" in card.text for value in (0.25, 0.5)] == [value == 0.25, value == 0.5]


def test_a_fact_that_does_not_fit_the_model_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="does not fit the model: label_names of 2 classes"):
        tiny().save_pretrained(tmp_path / "one", model_card_kwargs={"label_names": ["a", "b"]})
    assert not (tmp_path / "one").exists()


def test_an_edited_card_keeps_its_words_when_another_model_is_saved(tmp_path):
    measured(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    card.text = "My words.\n"
    card.data.license = "cc-by-4.0"
    card.save(tmp_path / "README.md")
    tiny().save_pretrained(tmp_path)
    kept = ModelCard.load(tmp_path / "README.md")
    assert (kept.text, kept.data.license) == ("My words.\n", "cc-by-4.0")
    assert kept.data.eval_results is None and kept.data.metrics is None


def test_a_card_in_a_user_s_own_form_stays_as_it_is(tmp_path):
    (tmp_path / "README.md").write_bytes(b"Mine,\r\nall of it. ")
    tiny().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == b"Mine,\r\nall of it. "


def test_a_save_that_fails_leaves_the_saved_model_as_it_was(tmp_path):
    measured(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model = tiny()
    model.pretrained_cfg["description"] = object()  # cannot be written
    with pytest.raises(OptionError, match=r"cannot be written to config\.json: .*object"):
        model.save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder_name": "tu-mscan_x"}, r"Unknown encoder 'tu-mscan_x'\. Did you mean .*'tu-mscan_[tsbl]'"),
        ({"encoder_name": "mscan_b"}, r"Unknown encoder 'mscan_b'\. Did you mean 'tu-mscan_b'"),
        ({"encoder_name": "resnet19"}, r"Unknown encoder 'resnet19'\. Did you mean 'resnet1"),
        ({"encoder_depth": 2}, "encoder_depth must be 3, 4 or 5, got 2"),
        ({"decoder_channels": 100}, r"decoder_channels must be a multiple of 32 .*got 100; the nearest is 96"),
        ({"decoder_channels": 0}, "got 0; the nearest is 32"),
        ({"decoder_rank": 0}, "rank must be at least 1, got 0"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (1, 1, 64, 64),
            "takes images of 3 channels, got 1. Convert the images, or create the model with in_channels=1",
        ),
        ((1, 3, 64, 31), r"32×32 pixels or more, got \(1, 3, 64, 31\)"),
        ((3, 64, 64), r"takes images \(B, C, H, W\) .*, got \(3, 64, 64\)"),
    ],
)
def test_bad_images_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny()(images(*shape))


@pytest.mark.parametrize("card", [b"---\nMy notes: a: b\n---\n# Mine\n", b"# Mine \xff\n"])
def test_a_card_that_cannot_be_read_does_not_keep_a_model_from_being_saved(card, tmp_path):
    (tmp_path / "README.md").write_bytes(card)
    tiny().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "README.md").read_bytes() == card


def test_results_without_a_digest_get_that_of_the_weights_that_are_saved_with_them(tmp_path):
    results = [{"dataset": "mine", "metric": "mIoU", "value": 71.3}]
    model = tiny(pretrained_cfg={"results": results})
    model.save_pretrained(tmp_path / "a")
    assert smp.from_pretrained(tmp_path / "a").pretrained_cfg["results"] == results
    torch.nn.init.zeros_(model.decoder.align.weight)
    model.save_pretrained(tmp_path / "b")
    assert "results" not in smp.from_pretrained(tmp_path / "b").pretrained_cfg


ARRAYS = {
    "mean": np.array([0.25] * 3),
    "std": torch.tensor([0.5] * 3),
    "palette": np.arange(15, dtype=np.uint8).reshape(5, 3),
    "training": {"epochs": np.int64(3)},
}
LISTS = {
    "mean": [0.25] * 3,
    "std": [0.5] * 3,
    "palette": [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(5)],
    "training": {"epochs": 3},
}


@pytest.mark.parametrize("way", ["constructor", "setter", "in place"])
def test_facts_may_be_arrays_and_tensors_and_are_saved_as_lists(tmp_path, way):
    model = tiny(**({"pretrained_cfg": ARRAYS} if way == "constructor" else {}))
    if way == "setter":
        model.pretrained_cfg = ARRAYS
    elif way == "in place":
        model.pretrained_cfg.update(ARRAYS)
    assert ModelInfo(model).normalization == ((0.25,) * 3, (0.5,) * 3)
    assert ModelInfo(model).palette[1] == (3, 4, 5)
    model.save_pretrained(tmp_path)
    assert smp.from_pretrained(tmp_path).pretrained_cfg == LISTS


def test_class_names_by_label_are_read_as_timm_writes_them(tmp_path):
    model = tiny(pretrained_cfg={"label_names": dict(enumerate("abcde"))})
    model.save_pretrained(tmp_path)
    for same in (model, smp.from_pretrained(tmp_path)):
        assert ModelInfo(same).label_names == list("abcde")


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
def test_metrics_may_be_scalars_of_numpy_and_torch(tmp_path, value):
    tiny().save_pretrained(tmp_path / "one", metrics={"mIoU": value})
    assert smp.from_pretrained(tmp_path / "one").pretrained_cfg["results"] == [{"metric": "mIoU", "value": 0.5}]
    add_results(tmp_path / "one", [RESULT | {"value": value}])
    assert ModelCard.load(tmp_path / "one" / "README.md").data.eval_results[0].metric_value == 0.5


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"results": [{"metric": "mIoU"}]}, r'needs a "metric" and a "value", a number: {\'metric\': \'mIoU\'}'),
        ({"results": [{"metric": "mIoU", "value": "x"}]}, 'needs a "metric" and a "value", a number: '),
        ({"results": [{"metric": "mIoU", "value": 1, "dataset": 3}]}, "A result has texts, and"),
        ({"description": object()}, r"cannot be written to config\.json"),
    ],
)
def test_a_refused_fact_changes_neither_the_model_nor_the_folder(tmp_path, facts, message):
    model = tiny(pretrained_cfg={"license": "mit"})
    for attempt in (
        lambda: model.save_pretrained(tmp_path / "one", model_card_kwargs=facts),
        lambda: model.generate_model_card(**facts),
    ):
        with pytest.raises(OptionError, match=message):
            attempt()
    assert model.pretrained_cfg == {"license": "mit"}
    assert not (tmp_path / "one").exists()
    model.save_pretrained(tmp_path / "one")
