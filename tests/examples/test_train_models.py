"""What train.py builds before it trains: models and the report on their weights, parameter groups, rates."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import train
import training
from publishing.reference import import_mmseg
from segmentation import data, layouts, models
from segmentation.losses import build_loss
from segmentation.recipe import SettingsError, TrainSettings
from segnext_timm.models.model_info import ModelInfo


def test_rates_rise_and_fall_as_published():
    settings = TrainSettings()
    assert train.lr_at(0, settings) == pytest.approx(6e-11)
    assert train.lr_at(1499, settings) == train.lr_at(1500, settings) == pytest.approx(6e-5)
    assert train.lr_at(750, settings) == pytest.approx(6e-5 * 750 / 1499, rel=1e-3)
    assert train.lr_at(80_000, settings) == pytest.approx(6e-5 * (1 - 78_500 / 158_499))
    assert train.lr_at(159_999, settings) == train.lr_at(160_000, settings) == 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", "tsbl")
def test_rates_and_decays_are_those_of_mmengine(variant):
    import reference

    import_mmseg()
    from mmengine.optim import LinearLR, PolyLR, build_optim_wrapper

    import agreement
    from deployment.to_mmseg import native_to_mmseg

    settings = TrainSettings(variant=variant, init_from="none", iterations=160_000)
    classes = [str(i) for i in range(agreement.CLASSES)]
    split = data.Split("x", [], [], classes, [(0, 0, 0)] * len(classes))
    ours = models.build_model(settings, split)
    channels, rank = models.VARIANTS[variant][1:3]
    theirs = torch.nn.ModuleDict(
        {
            "backbone": reference.backbone(variant),
            "decode_head": reference.head(variant, len(classes), torch.zeros(1, channels, rank)),
        }
    )
    wrapper = build_optim_wrapper(
        theirs,
        {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": 6e-5, "betas": (0.9, 0.999), "weight_decay": 0.01},
            "paramwise_cfg": {
                "custom_keys": {
                    "pos_block": {"decay_mult": 0.0},
                    "norm": {"decay_mult": 0.0},
                    "head": {"lr_mult": 10.0},
                }
            },
        },
    )
    schedules = [
        LinearLR(wrapper, start_factor=1e-6, by_epoch=False, begin=0, end=1500),
        PolyLR(wrapper, power=1.0, begin=1500, end=160_000, eta_min=0.0, by_epoch=False),
    ]
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    own = {id(parameter): name for name, parameter in ours.named_parameters()}
    groups = {}
    for group in models.paper_parameter_groups(ours, settings):
        groups |= {own[id(parameter)]: group for parameter in group["params"]}
    published = {}
    for name in groups:
        # of a published name, what is native: one parameter at a time, the squeeze's three being one there
        if name.startswith("decoder.squeeze."):
            published["decode_head.squeeze.conv.weight"] = groups[name]
        else:
            state = {"decoder.squeeze.0.weight": torch.zeros(1)} | {name: torch.zeros(1)}
            state |= {f"decoder.squeeze.{i}.weight": torch.zeros(1, 1) for i in range(3)}
            (renamed,) = set(native_to_mmseg(state)) - {"decode_head.squeeze.conv.weight"}
            published[renamed] = groups[name]
    compared, looked_at = 0, {0, 750, 1_500} | ({80_000, 159_999, 160_000} if variant == "t" else set())
    for iteration in range(max(looked_at) + 1):
        if iteration in looked_at:
            for group in wrapper.optimizer.param_groups:
                for parameter in group["params"]:
                    own_group = published[names[id(parameter)]]
                    rate = train.lr_at(iteration, settings) * own_group["lr_factor"]
                    assert rate == pytest.approx(group["lr"], rel=1e-9, abs=1e-20), (names[id(parameter)], iteration)
                    assert own_group["weight_decay"] == group["weight_decay"], names[id(parameter)]
                    compared += 1
        for schedule in schedules:
            schedule.step()
    assert compared == len(looked_at) * len(names)


def test_every_parameter_is_in_one_group_and_frozen_ones_in_none():
    split = data.Split("x", [], [], ["a", "b"], [(0, 0, 0)] * 2)
    for frozen in (False, True):
        settings = training.narrow_settings(freeze_encoder=frozen)
        model = models.build_model(settings, split)
        grouped = [p for group in models.paper_parameter_groups(model, settings) for p in group["params"]]
        expected = [p for n, p in model.named_parameters() if not (frozen and n.startswith("encoder."))]
        assert len(grouped) == len({id(p) for p in grouped}) == len(expected)


@pytest.mark.parametrize(
    "model",
    [
        smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=4),
        smp.Unet("tu-test_mscan", encoder_weights=None, classes=3),
    ],
    ids=["segnext", "unet"],
)
def test_the_loss_is_averaged_over_all_pixels(model):
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    labels[0] = 255
    expected = torch.nn.functional.cross_entropy(model.eval()(images)[1:], labels[1:]) / 2
    if isinstance(model, smp.SegNeXt):
        model.upsampling = 1
    torch.testing.assert_close(build_loss(TrainSettings(), 255)(model(images), labels), expected)


def test_other_beginnings(finished_run):
    split = layouts.open_split("folder", finished_run.data, "train")
    settings = TrainSettings(init_from=str(finished_run.out / "best"))
    model = models.build_model(settings, split)
    saved = smp.from_pretrained(finished_run.out / "best").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    split.classes, split.palette = (*split.classes, "more"), (*split.palette, (0, 0, 0))
    other = models.build_model(settings, split).state_dict()
    assert torch.equal(other["decoder.align.weight"], saved["decoder.align.weight"])
    assert other["segmentation_head.0.weight"].shape[0] == 4


def highest_drop_path(model):
    return max(getattr(module, "drop_prob", None) or 0 for module in model.encoder.modules())


def test_settings_of_the_training_apply_to_models_that_are_loaded_too(folder, tmp_path):
    split = layouts.open_split("folder", folder, "train")
    models.build_model(training.narrow_settings(drop_path_rate=0.2), split, str).save_pretrained(tmp_path / "model")
    start = {"init_from": str(tmp_path / "model")}
    assert highest_drop_path(models.build_model(TrainSettings(**start), split, str)) == pytest.approx(0.2)
    model = models.build_model(TrainSettings(drop_path_rate=0.3, one_step_gradient=True, **start), split, str)
    assert highest_drop_path(model) == pytest.approx(0.3)
    assert model.config["decoder_one_step_gradient"] is True
    models.build_model(training.narrow_settings(**start), split, str)
    with pytest.raises(SettingsError, match=r"--decoder_rank 16 contradicts --init_from .*model, where it is 4: leave"):
        models.build_model(TrainSettings(decoder_rank=16, **start), split, str)


@pytest.mark.parametrize(("variant", "rate"), [("t", 0.1), ("l", 0.3)])
def test_published_segmenters_are_trained_with_the_drop_path_rate_of_their_size(variant, rate):
    name = f"segnext_{variant}.mmseg_ade20k"
    with torch.device("meta"):
        model = models.create_model(TrainSettings(init_from=name), 3, False)
        models.create_model(TrainSettings(init_from=name, variant=variant), 3, False)
    assert highest_drop_path(model) == pytest.approx(rate)
    with pytest.raises(SettingsError, match=f"--variant s contradicts .*, where it is tu-mscan_{variant}: leave"):
        models.create_model(TrainSettings(init_from=name, variant="s"), 3, False)


def test_the_report_says_which_weights_were_loaded(folder, tmp_path):
    split, said = layouts.open_split("folder", folder, "train"), []
    models.build_model(training.narrow_settings(), split, said.append)
    assert said[-1].splitlines()[1:] == [
        "  encoder: random, all 218 tensors",
        "  decoder: random, all 13 tensors",
        "  segmentation head: random, all 2 tensors",
    ]
    encoder = timm.create_model("test_mscan")
    for value in encoder.state_dict().values():
        value.add_(1)  # as training does, this changes what is constant at first too
    encoder.stem.norm1.reset_parameters()
    timm.models.save_for_hf(encoder, tmp_path / "test_mscan", model_config={"num_classes": encoder.num_classes})
    encoder_name = f"tu-local-dir:{tmp_path / 'test_mscan'}"
    settings = training.narrow_settings(encoder=encoder_name, init_from="imagenet")
    model = models.build_model(settings, split, said.append)
    assert said[-1].splitlines()[1:] == [
        "  encoder: 214 of 218 tensors from imagenet; as initialized: encoder.model.stem.norm1.weight, "
        "encoder.model.stem.norm1.bias, encoder.model.stem.norm1.running_mean, ...",
        "  decoder: random, all 13 tensors",
        "  segmentation head: random, all 2 tensors",
    ]
    model.save_pretrained(tmp_path / "model")
    split.classes, split.palette = (*split.classes, "more"), (*split.palette, (0, 0, 0))
    models.build_model(TrainSettings(init_from=str(tmp_path / "model")), split, said.append)
    assert said[-1].splitlines()[1:] == [
        f"  encoder: all 218 tensors from {tmp_path / 'model'}",
        f"  decoder: all 13 tensors from {tmp_path / 'model'}",
        f"  segmentation head: {len(split.classes) - 1} of {len(split.classes)} classes by name; as initialized: more, "
        f"from {tmp_path / 'model'}",
    ]


@pytest.mark.parametrize("architecture", ["SegNeXt", "Unet"])
@pytest.mark.parametrize(
    ("names", "rows", "said"),
    [
        (["a", "b", "c"], {0: 0, 1: 1, 2: 2}, "all 2 tensors from"),
        (["c", "a", "b"], {0: 1, 1: 2, 2: 0}, "3 of 3 classes by name, in another order, from"),
        (["x", "c", "a", "y"], {0: 2, 2: 1}, "2 of 3 classes by name; as initialized: b, from"),
        (["x", "y", "z"], {}, "0 of 3 classes by name; as initialized: a, b, c, from"),
        (None, {0: 0, 1: 1, 2: 2}, "3 of 3 classes by number, since they have no names there, from"),
    ],
)
def test_rows_of_the_last_layer_are_copied_by_the_names_of_the_classes(tmp_path, architecture, names, rows, said):
    own = {"decoder_channels": 32, "decoder_rank": 4} if architecture == "SegNeXt" else {}
    source = getattr(smp, architecture)("tu-test_mscan", encoder_weights=None, classes=len(names or "abc"), **own)
    facts = {"label_names": names} if names else {}
    if architecture == "SegNeXt":
        source.pretrained_cfg = facts
        source.save_pretrained(tmp_path / "model")
    else:
        source.save_pretrained(
            tmp_path / "model", config={**source.config, "_model_class": "Unet", "_pretrained_cfg": facts}
        )
    lines = []
    split = data.Split("x", [], [], ("a", "b", "c"), ((0, 0, 0),) * 3)
    model = models.build_model(TrainSettings(init_from=str(tmp_path / "model")), split, lines.append)
    assert f"  segmentation head: {said} {tmp_path / 'model'}" in lines[-1].splitlines()
    for name, from_name in zip(models.last_layer(model), models.last_layer(source)):
        new, old = model.state_dict()[name], source.state_dict()[from_name]
        assert all(torch.equal(new[to], old[row]) for to, row in rows.items())
        drawn = [to for to in range(3) if to not in rows and name.endswith("weight")]
        assert not any(torch.equal(new[to], row) for to in drawn for row in old)


def test_the_report_leaves_the_weights_and_the_random_numbers_as_they_were(folder, tmp_path):
    split = layouts.open_split("folder", folder, "train")
    timm.models.save_for_hf(timm.create_model("test_mscan"), tmp_path / "test_mscan", model_config={})
    encoder_name = f"tu-local-dir:{tmp_path / 'test_mscan'}"
    settings = training.narrow_settings(encoder=encoder_name, init_from="imagenet")
    torch.manual_seed(0)
    expected, after = models.create_model(settings, 3, True).state_dict(), torch.rand(1)
    torch.manual_seed(0)
    model = models.build_model(settings, split).state_dict()
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(value, model[name]) for name, value in expected.items())


def test_pretrained_weights_that_did_not_load_are_pointed_out():
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, decoder_channels=32, decoder_rank=4)
    report = models.weights_report(model, {"decoder.align.weight"}, "imagenet")
    assert "Warning: nothing was loaded into the encoder from imagenet" in report
    assert "Warning" not in models.weights_report(model, set(), "none")


def test_batch_norms_are_synchronized_across_gpus_unless_told_otherwise():
    def norms(wanted, processes, device):
        said, model = [], torch.nn.Sequential(torch.nn.BatchNorm2d(4))
        model = models.with_synced_norms(model, wanted, processes, torch.device(device), said.append)
        return type(model[0]), said

    assert TrainSettings().sync_batchnorm
    assert norms(True, 2, "cuda") == (torch.nn.SyncBatchNorm, [])
    assert norms(True, 1, "cuda") == (torch.nn.BatchNorm2d, [])
    assert norms(False, 2, "cuda") == (
        torch.nn.BatchNorm2d,
        ["Batch norms are not synchronized: sync_batchnorm is off."],
    )
    assert norms(True, 2, "cpu")[0] is torch.nn.BatchNorm2d


def test_a_frozen_encoder_stays_as_it_is(folder, tmp_path):
    options = ("--data_root", folder, "--out", tmp_path / "a", "--iterations", 2, "--save_every", 1)
    training.run("folder", *options, "--freeze_encoder")
    torch.manual_seed(0)
    split = layouts.open_split("folder", folder, "train")
    start = models.build_model(training.narrow_settings(), split).state_dict()
    end = training.checkpoint(tmp_path / "a")["model"]
    for name, value in start.items():
        assert torch.equal(end[name], value) == name.startswith(("encoder.", "decoder.hamburger.nmf")), name


def test_models_of_smp_are_trained_on_what_they_will_be_given(folder, tmp_path):
    smp.Unet("tu-test_mscan", encoder_weights=None, classes=3).save_pretrained(tmp_path / "unet")
    settings = TrainSettings(
        data_root=str(folder),
        init_from=str(tmp_path / "unet"),
        out=str(tmp_path / "run"),
        crop_size=32,
        workers=0,
        tracker="none",
    )
    trainer = train.Trainer(settings)
    model = smp.from_pretrained(tmp_path / "unet")
    assert trainer.normalization == ModelInfo(model).normalization == ((0.5,) * 3, (0.5,) * 3)
    image = trainer.samples[0][0]
    assert -1 <= image.min() < image.max() <= 1


def test_the_terms_of_the_data_behind_the_first_weights_stay_with_a_model(folder):
    split = layouts.open_split("folder", folder, "train")
    terms = [{"dataset": "Streets", "says": "for science", "source": "https://example.org"}]
    began = {"origin_url": "https://example.org/weights", "dataset_terms": terms, "results": []}
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, decoder_channels=32, classes=3, pretrained_cfg=began)
    models.describe(model, split, 64)
    assert model.pretrained_cfg["dataset_terms"] == terms
    assert "results" not in model.pretrained_cfg
    assert "- The terms of Streets, by [this source](https://example.org): for science." in str(
        model.generate_model_card()
    )


def test_a_frozen_encoder_of_random_weights_is_pointed_out(folder):
    said = []
    settings = training.narrow_settings(data_root=str(folder), freeze_encoder=True)
    models.build_model(settings, layouts.open_split("folder", folder, "train"), said.append)
    assert "Warning: --freeze_encoder keeps the random weights of --init_from none." in said
