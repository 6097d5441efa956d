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
import training_memory
from random_checkpoints import FILES, VARIANTS, accept_cached, backbone_shapes, random_state_dict
from segnext_timm import LightHamDecoder, SegNeXt, UpsampledCrossEntropyLoss, add_results, create_segmenter, fuse
from segnext_timm.errors import OptionError
from segnext_timm.models.model_info import ModelInfo

GOLDEN = Path(__file__).parents[1] / "golden"

# variant: parameters at 150 classes; GMACs at 512² of the published implementation, and of this one
PUBLISHED = {
    "t": (4_263_414, 6.40, 6.01),
    "s": (13_932_886, 15.65, 14.87),
    "b": (27_636_310, 34.66, 33.02),
    "l": (48_926_550, 69.69, 66.40),
}


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 4 - 2


def tiny(**kwargs):
    """A narrow SegNeXt in evaluation mode."""
    torch.manual_seed(0)
    arguments = {"encoder_weights": None, "decoder_channels": 32, "decoder_rank": 4, "classes": 5} | kwargs
    return smp.create_model("segnext", arguments.pop("encoder_name", "tu-test_mscan"), **arguments).eval()


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


# What is known of the weights


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


def reset(module):
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def test_a_loaded_model_has_no_results_since_it_may_be_trained(tmp_path):
    model = measured(tmp_path / "one")
    assert "results" not in model.pretrained_cfg
    model.save_pretrained(tmp_path / "two")
    assert results_in(tmp_path / "one") == [True] * 3
    assert results_in(tmp_path / "two") == [False] * 3


def test_results_that_a_user_stated_are_kept(tmp_path):
    model = tiny()
    model.pretrained_cfg["results"] = [RESULT]
    zero_encoder(model)
    model.save_pretrained(tmp_path)
    assert results_in(tmp_path) == [True] * 3


def test_a_generated_card_is_rewritten_when_another_model_is_saved(tmp_path):
    measured(tmp_path, pretrained_cfg={"label_names": list("abcde"), "license": "mit"})
    tiny(pretrained_cfg={"label_names": list("vwxyz")}).save_pretrained(tmp_path, metrics={"mIoU": 0.25})
    card = ModelCard.load(tmp_path / "README.md")
    assert "71.34" not in str(card) + (tmp_path / "config.json").read_text()
    assert "0 v, 1 w" in card.text and "0 a, 1 b" not in card.text and "| 0.25 |" in card.text
    assert card.data.license is None
    tiny().save_pretrained(tmp_path)
    assert "| 0.25 |" not in ModelCard.load(tmp_path / "README.md").text


def test_facts_given_when_a_model_is_saved_stay_with_it_and_results_with_the_folder(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "one", dataset="scenes", metrics={"mIoU": 0.25})
    model.save_pretrained(tmp_path / "two")
    smp.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "three", metrics={"mIoU": 0.5})
    for name, value in (("one", 0.25), ("two", None), ("three", 0.5)):
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
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["pretrained_cfg"]["results"] == [{"metric": "mIoU", "value": 0.5}]
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
