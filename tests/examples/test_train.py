import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard

import hub_server
import miniatures
import train
from segmentation import data, layouts, models
from segmentation.recipe import SettingsError, TrainSettings, UserError
from segmentation.transforms import finish_on_device
from segnext_timm import UpsampledCrossEntropyLoss
from segnext_timm.errors import HubError
from segnext_timm.models.model_info import ModelInfo
from segnext_timm.prediction.pipeline import slow_precision

EXAMPLES = Path(data.__file__).parents[1]
RECIPES = EXAMPLES / "recipes"
NARROW = ("--encoder", "tu-test_mscan", "--decoder_channels", 32, "--decoder_rank", 4, "--init_from", "none")
EXACT = ("--deterministic",) if torch.cuda.is_available() else ()
SHORT = ("--crop_size", 32, "--batch_size", 2, "--iterations", 6, "--warmup", 2, "--workers", 0, "--tracker", "none")
QUICK = ("--eval_every", 3, "--save_every", 2, "--log_every", 1)


def run(recipe, *arguments):
    train.main(list(map(str, [RECIPES / f"{recipe}.yaml", *NARROW, *SHORT, *QUICK, *arguments])))


@pytest.fixture
def folder(tmp_path):
    """A data folder of three classes."""
    miniatures.make("folder", tmp_path / "data", [0, 1, 2, 255])
    return tmp_path / "data"


def weights(out):
    return torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)["model"]


ALIKE = {
    "cityscapes",
    "isaid",
    "coco_stuff164k",
    "voc2012",
    "pascal_context",
}  # all but their files, which test_data reads


@pytest.mark.parametrize(
    "dataset", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in miniatures.PATHS]
)
def test_each_recipe_trains_and_evaluates(tmp_path, dataset):
    values = {"cityscapes": [7, 8, 0], "coco_stuff164k": [0, 5, 255]}.get(dataset, [0, 1, 2])
    sizes = ((48, 64), (20, 30), (300, 40), (1500, 2000))  # one smaller than a crop, one long, one huge
    miniatures.make(dataset, tmp_path / "data", values, sizes)
    options = ("--eval_window", 512, "--eval_stride", 384) if dataset == "cityscapes" else ()
    fit = ("--eval_fit", 96, 64) if dataset in ("ade20k", "coco_stuff164k", "voc2012", "pascal_context") else ()
    scale = ("--base_scale", 96, 64)
    out = ("--data_root", tmp_path / "data", "--out", tmp_path / "run")
    run(dataset, "--iterations", 2, "--eval_every", 2, *scale, *options, *fit, *out)
    for name in ("best", "last"):
        model = smp.from_pretrained(tmp_path / "run" / name)
        split = layouts.open_split(dataset, tmp_path / "data", "val")
        assert model.pretrained_cfg["label_names"] == list(split.classes)
        assert model(torch.rand(1, 3, 40, 50)).shape == (1, len(split.classes), 40, 50)
        card = ModelCard.load(tmp_path / "run" / name / "README.md")
        assert card.data.eval_results[0].metric_type == "mean_iou"
    assert [f.name for f in (tmp_path / "run" / "predictions").iterdir()] == ["000002.png"]


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(folder, tmp_path):
    options = ("--data_root", folder, "--ema_decay", 0.9, "--clip_grad", 1.0, "--accumulate", 2, "--crop_size", 64)
    options = (*options, *EXACT)
    run("folder", *options, "--out", tmp_path / "whole")
    command = [sys.executable, EXAMPLES / "train.py", RECIPES / "folder.yaml", *NARROW, *SHORT, *QUICK, *options]
    command = list(map(str, [*command, "--out", tmp_path / "parts"]))
    process = subprocess.Popen(command)
    while not (tmp_path / "parts" / "checkpoint.pt").is_file():
        assert process.poll() is None
    process.kill()
    process.wait()
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["iteration"] < 6
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Resuming at iteration" in done.stdout
    one, other = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("whole", "parts"))
    for part in ("model", "average"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    assert one["losses"] == other["losses"]
    assert one["mious"] == other["mious"]


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(folder, tmp_path):
    options = (
        "--data_root",
        folder,
        "--out",
        tmp_path / "run",
        "--iterations",
        2000,
        "--save_every",
        2000,
        "--workers",
        1,
    )
    options = (*options, "--eval_every", 2000)
    command = [sys.executable, EXAMPLES / "train.py", RECIPES / "folder.yaml", *NARROW, *SHORT, *QUICK, *options]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    shown = b""
    while not re.search(rb"\| [1-9]\d+/2000", shown):  # the bar leaves out numbers
        shown += process.stderr.read(50)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command resumes the run" in output
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert 10 <= state["iteration"] == len(state["losses"]) < 2000


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

    reference.import_mmseg()
    from mmengine.optim import LinearLR, PolyLR, build_optim_wrapper

    import agreement
    from segnext_timm.checkpoints.recognition import native_to_mmseg

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
    for group in models.parameter_groups(ours, settings):
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
        settings = TrainSettings(encoder="tu-test_mscan", decoder_channels=32, init_from="none", freeze_encoder=frozen)
        model = models.build_model(settings, split)
        grouped = [p for group in models.parameter_groups(model, settings) for p in group["params"]]
        expected = [p for n, p in model.named_parameters() if not (frozen and n.startswith("encoder."))]
        assert len(grouped) == len({id(p) for p in grouped}) == len(expected)


def test_processes_share_the_samples_of_an_iteration():
    settings = TrainSettings(batch_size=8, accumulate=2, iterations=5)
    for start in (0, 3):
        taken = [k for p in range(2) for batch in train.sample_numbers(settings, start, p, 2) for k in batch]
        assert sorted(taken) == list(range(8 * start, 40))
        assert next(iter(train.sample_numbers(settings, start, 1, 2))) == [8 * start + 2, 8 * start + 3]


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
    loss_fn = UpsampledCrossEntropyLoss(ignore_index=255, reduction="sum")
    torch.testing.assert_close(train.mean_over_pixels(loss_fn, model(images), labels), expected)


def test_other_beginnings(folder, tmp_path):
    run("folder", "--data_root", folder, "--out", tmp_path / "first", "--iterations", 2)
    split = layouts.open_split("folder", folder, "train")
    settings = TrainSettings(init_from=str(tmp_path / "first" / "best"))
    model = models.build_model(settings, split)
    saved = smp.from_pretrained(tmp_path / "first" / "best").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    split.classes, split.palette = (*split.classes, "more"), (*split.palette, (0, 0, 0))
    other = models.build_model(settings, split).state_dict()
    assert torch.equal(other["decoder.align.weight"], saved["decoder.align.weight"])
    assert other["segmentation_head.0.weight"].shape[0] == 4


def highest_drop_path(model):
    return max(getattr(module, "drop_prob", None) or 0 for module in model.encoder.modules())


def test_settings_of_the_training_apply_to_models_that_are_loaded_too(folder, tmp_path):
    split = layouts.open_split("folder", folder, "train")
    small = {"decoder_channels": 32, "decoder_rank": 4}
    settings = TrainSettings(encoder="tu-test_mscan", init_from="none", drop_path_rate=0.2, **small)
    models.build_model(settings, split, str).save_pretrained(tmp_path / "model")
    start = {"init_from": str(tmp_path / "model")}
    assert highest_drop_path(models.build_model(TrainSettings(**start), split, str)) == pytest.approx(0.2)
    model = models.build_model(TrainSettings(drop_path_rate=0.3, one_step_gradient=True, **start), split, str)
    assert highest_drop_path(model) == pytest.approx(0.3)
    assert model.config["decoder_one_step_gradient"] is True
    models.build_model(TrainSettings(encoder="tu-test_mscan", **small, **start), split, str)
    with pytest.raises(SettingsError, match=r"--decoder_rank 16 contradicts --init_from .*model, where it is 4: leave"):
        models.build_model(TrainSettings(decoder_rank=16, **start), split, str)


@pytest.mark.parametrize(("variant", "rate"), [("b", 0.1), ("l", 0.3)])
def test_published_segmenters_are_trained_with_the_drop_path_rate_of_their_size(variant, rate):
    name = f"segnext_{variant}.mmseg_ade20k"
    with torch.device("meta"):
        model = models.create_model(TrainSettings(init_from=name), 3, False)
        models.create_model(TrainSettings(init_from=name, variant=variant), 3, False)
    assert highest_drop_path(model) == pytest.approx(rate)
    with pytest.raises(SettingsError, match=f"--variant s contradicts .*, where it is tu-mscan_{variant}: leave"):
        models.create_model(TrainSettings(init_from=name, variant="s"), 3, False)


@pytest.mark.parametrize(
    "options",
    [
        ("--precision", "bf16", "--grad_checkpointing", "--one_step_gradient"),
        ("--freeze_encoder", "--no-channels_last", "--no-color_distortion"),
        ("--tracker", "tensorboard", "--workers", 2, "--ema_decay", 0.5),
    ],
)
def test_the_options_train_too(folder, tmp_path, options):
    run("folder", "--data_root", folder, "--out", tmp_path / "run", "--iterations", 2, *options)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert bool(list((tmp_path / "run").glob("log/events.*"))) == ("tensorboard" in options)


def test_the_report_says_which_weights_were_loaded(folder, tmp_path):
    split, said = layouts.open_split("folder", folder, "train"), []
    small = {"decoder_channels": 32, "decoder_rank": 4}
    models.build_model(TrainSettings(encoder="tu-test_mscan", init_from="none", **small), split, said.append)
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
    settings = TrainSettings(encoder=f"tu-local-dir:{tmp_path / 'test_mscan'}", **small)
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
        "  segmentation head: random, all 2 tensors",
    ]


def test_the_report_leaves_the_weights_and_the_random_numbers_as_they_were(folder, tmp_path):
    split = layouts.open_split("folder", folder, "train")
    timm.models.save_for_hf(timm.create_model("test_mscan"), tmp_path / "test_mscan", model_config={})
    settings = TrainSettings(encoder=f"tu-local-dir:{tmp_path / 'test_mscan'}", decoder_channels=32, decoder_rank=4)
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


def test_binary_masks_of_0_and_255_are_refused_before_training(tmp_path):
    miniatures.make("folder", tmp_path / "data", [0, 255])
    (tmp_path / "data" / "classes.txt").write_text("background\nperson\n", encoding="utf-8")
    options = ("--data_root", tmp_path / "data", "--out", tmp_path / "run", "--iterations", 2)
    with pytest.raises(data.DataError, match="'person' never occurs"):
        run("folder", *options)
    assert not (tmp_path / "run").exists()
    (tmp_path / "data" / "classes.txt").write_text("0 background\n255 person\n", encoding="utf-8")
    run("folder", *options)
    assert smp.from_pretrained(tmp_path / "run" / "last").pretrained_cfg["label_names"] == ["background", "person"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_slow_here_is_pointed_out(folder, tmp_path, capsys, precision):
    run("folder", "--data_root", folder, "--out", tmp_path / "run", "--iterations", 1, "--precision", precision)
    said = slow_precision(torch.device("cpu"), precision)
    assert said is None or capsys.readouterr().out.count(said) == 1
    assert precision == "bf16" or said is None


def test_a_frozen_encoder_stays_as_it_is(folder, tmp_path):
    run(
        "folder",
        "--data_root",
        folder,
        "--out",
        tmp_path / "a",
        "--freeze_encoder",
        "--iterations",
        2,
        "--save_every",
        1,
    )
    torch.manual_seed(0)
    split = layouts.open_split("folder", folder, "train")
    settings = TrainSettings(encoder="tu-test_mscan", decoder_channels=32, decoder_rank=4, init_from="none")
    start = models.build_model(settings, split).state_dict()
    end = weights(tmp_path / "a")
    for name, value in start.items():
        assert torch.equal(end[name], value) == name.startswith(("encoder.", "decoder.hamburger.nmf")), name


def test_a_loss_that_is_not_finite_changes_nothing_and_is_reported(folder, tmp_path, capsys):
    # the first updates make the weights so large that no later loss or gradient is finite
    rates = ("--lr", 1e30, "--warmup", 0, "--iterations", 40, "--eval_every", 40, "--save_every", 1)
    with pytest.raises(SettingsError, match="not finite 10 times in a row: try a smaller --lr"):
        run("folder", "--data_root", folder, *rates, "--out", tmp_path / "run")
    assert "no update. Images: train_" in capsys.readouterr().out
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["iteration"] < 20
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch_size", 3, "--accumulate", 2), "batch_size 3 cannot be divided among 1 processes and 2 accumulated"),
        (("--data_root", "none"), "none does not exist"),
        (("--ignore_index", 7), r"holds the labels 255, but .*'255 NAME'.* --ignore_index 255"),
        (("--encoder", "tu-mscan_x"), "Unknown encoder 'tu-mscan_x'"),
        (("--init_from", "nothing"), "nothing: not a folder, not a Hub repository"),
    ],
)
def test_invalid_settings_and_data_raise_errors_that_name_them(folder, tmp_path, arguments, message):
    with pytest.raises((ValueError, OSError, SettingsError, data.DataError), match=message):
        run("folder", "--data_root", folder, "--out", tmp_path / "run", *arguments)


def test_a_run_is_not_overwritten(folder, tmp_path):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--iterations", 2)
    run("folder", *options)
    with pytest.raises(SettingsError, match="belongs to another run: choose another --out"):
        run("folder", *options, "--no-resume")
    with pytest.raises(SettingsError, match="was written with seed 0, not 1: choose another --out"):
        run("folder", *options, "--seed", 1)
    (folder / "classes.txt").write_text("a\nb\nsomething else\n", encoding="utf-8")
    wrong = r"was written with 3 training images of 3 classes \(\w{8}\), not 3 training images of 3 classes \(\w{8}\)"
    with pytest.raises(SettingsError, match=wrong):
        run("folder", *options)


def test_a_run_goes_on_where_the_folder_moved_to_and_names_what_changed(folder, tmp_path, capsys):
    options = ("--out", tmp_path / "run", "--iterations", 2)
    run("folder", "--data_root", folder, *options)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    torch.save(state | {"iteration": 1}, tmp_path / "run" / "checkpoint.pt")
    folder.rename(tmp_path / "moved")
    capsys.readouterr()
    run("folder", "--data_root", tmp_path / "moved", *options, "--lr", "1e-3")
    changed = f"Changed since the checkpoint: data_root {folder}, now {tmp_path / 'moved'}; lr 0.0001, now 0.001.\n"
    said = capsys.readouterr().out
    assert changed in said
    assert "Initial weights" not in said
    run("folder", "--data_root", tmp_path / "moved", *options, "--lr", "1e-2")
    assert capsys.readouterr().out.startswith("The run is already finished")


def test_an_evaluation_writes_a_checkpoint(folder, tmp_path, capsys, monkeypatch):
    validate = train.Trainer.validate

    def fail_at_the_end(trainer):
        if trainer.iteration == 6:
            raise RuntimeError("power failure")
        validate(trainer)

    monkeypatch.setattr(train.Trainer, "validate", fail_at_the_end)
    options = ("--data_root", folder, "--out", tmp_path / "run", "--save_every", 1000)
    with pytest.raises(RuntimeError, match="power failure"):
        run("folder", *options)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (state["iteration"], len(state["mious"])) == (3, 1)
    (tmp_path / "run" / "checkpoint.pt").unlink()
    monkeypatch.setattr(train.Trainer, "validate", validate)
    run("folder", *options)
    assert f"Warning: {tmp_path / 'run'} holds a model but no checkpoint" in capsys.readouterr().out


def test_labels_for_validation_are_checked_before_anything_is_trained(folder, tmp_path):
    label = layouts.open_split("folder", folder, "val").labels[-1]
    values = data.read_labels(label).copy()
    values[0, 0] = 77
    miniatures.labels(label, values)
    with pytest.raises(data.DataError, match=r"holds the labels 77, but .*'77 NAME', or '77 -' to leave its pixels"):
        run("folder", "--data_root", folder, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_crops_larger_than_the_images_are_pointed_out(folder, tmp_path, capsys):
    run("folder", "--data_root", folder, "--out", tmp_path / "run", "--iterations", 1, "--base_scale", 31, 31)
    assert "Warning: crops of 32 are larger than the images, which are fitted in 31 31" in capsys.readouterr().out


@pytest.mark.parametrize("on_device", [False, True])
def test_models_of_smp_are_trained_on_what_they_will_be_given(folder, tmp_path, on_device):
    smp.Unet("tu-test_mscan", encoder_weights=None, classes=3).save_pretrained(tmp_path / "unet")
    settings = TrainSettings(
        data_root=str(folder),
        init_from=str(tmp_path / "unet"),
        out=str(tmp_path / "run"),
        crop_size=32,
        workers=0,
        tracker="none",
        color_on_device=on_device,
    )
    trainer = train.Trainer(settings)
    model = smp.from_pretrained(tmp_path / "unet")
    assert trainer.normalization == ModelInfo(model).normalization == ((0.5,) * 3, (0.5,) * 3)
    batch = [part[None] for part in trainer.samples[0]]
    images = finish_on_device(*batch, trainer.normalization)[0] if on_device else batch[0]
    assert -1 <= images.min() < images.max() <= 1


def test_a_finished_run_that_cannot_be_pushed_says_how_to(folder, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise HubError("The Hub refused the request.")

    monkeypatch.setattr(train, "push_to_hub", refuse)
    options = ("--data_root", folder, "--out", tmp_path / "run", "--iterations", 1, "--push_to_hub", "user/repo")
    with pytest.raises(
        UserError, match=rf"refused the request\. .*segnext-timm push {tmp_path / 'run/best'} user/repo"
    ):
        run("folder", *options)


def test_no_more_processes_read_images_than_there_are_cores():
    assert data.worker_count(TrainSettings(workers=0)) == 0
    assert data.worker_count(TrainSettings(workers=1)) == 1
    assert 1 <= data.worker_count(TrainSettings(workers=100_000)) <= os.cpu_count()


def test_an_error_is_one_line_without_a_traceback(folder, tmp_path):
    split = layouts.open_split("folder", folder, "train")
    for label in split.labels:
        miniatures.labels(label, np.full_like(data.read_labels(label), 9))
    command = [sys.executable, EXAMPLES / "train.py", RECIPES / "folder.yaml", *NARROW, *SHORT, "--workers", 1]
    command += ["--data_root", folder, "--out", tmp_path / "run"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"train.py: {folder / 'labels' / 'train'}")
    assert "holds the labels 9, but there are 3 classes (0 to 2)" in done.stderr.splitlines()[-1]


def test_recipes_hold_settings_only():
    names = {f.name for f in fields(TrainSettings)}
    for path in RECIPES.glob("*.yaml"):
        import yaml

        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= names, path


def launch(script, *arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes, "--standalone", script]
    env = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    return subprocess.run(list(map(str, [*command, *arguments])), capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(tmp_path):
    script = Path(__file__).parents[1] / "helpers" / "two_processes.py"
    gradients = []
    for processes in (1, 2):
        done = launch(script, tmp_path / f"{processes}.pt", EXAMPLES, processes=processes)
        assert done.returncode == 0, done.stderr
        gradients.append(torch.load(tmp_path / f"{processes}.pt"))
    for name, one in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], one, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.slow
def test_two_processes_train_and_go_on(folder, tmp_path):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--batch_size", 4)
    arguments = (RECIPES / "folder.yaml", *NARROW, *SHORT, *QUICK, *options)
    done = launch(EXAMPLES / "train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "Batch norms are not synchronized: torch does so on GPUs only" in done.stdout
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == len(state["losses"]) == 6
    assert smp.from_pretrained(tmp_path / "run" / "best")(torch.rand(1, 3, 40, 40)).isfinite().all()
    assert "The run is already finished" in launch(EXAMPLES / "train.py", *arguments).stdout


@pytest.mark.slow
def test_compiled_blocks_train_like_eager_ones(folder, tmp_path, monkeypatch):
    compile_model = functools.partial(train.compile_model, backend="eager")  # without minutes in compilers
    monkeypatch.setattr(train, "compile_model", compile_model)
    options = ("--data_root", folder, "--iterations", 3, "--eval_every", 3)
    run("folder", *options, "--out", tmp_path / "eager")
    AcceleratorState._reset_state(True)
    run("folder", *options, "--out", tmp_path / "compiled", "--compile", "blocks")
    one, other = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("eager", "compiled"))
    assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_together(folder, tmp_path):
    options = ("--data_root", folder, "--batch_size", 8, "--accumulate", 2, "--crop_size", 64, "--iterations", 2)
    arguments = (RECIPES / "folder.yaml", *NARROW, *SHORT, *QUICK, *options)
    port = free_port()
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    nodes = []
    for node in range(2):  # each with a folder of its own: only the first writes
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 2]
        command += ["--rdzv-backend", "static", "--node-rank", node, "--master-addr", "127.0.0.1"]
        command += ["--master-port", port, EXAMPLES / "train.py", *arguments, "--out", tmp_path / f"node{node}"]
        nodes.append(subprocess.Popen(list(map(str, command)), env=env, stderr=subprocess.PIPE, text=True))
    errors = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert torch.load(tmp_path / "node0" / "checkpoint.pt", weights_only=True)["iteration"] == 2
    assert not (tmp_path / "node1" / "checkpoint.pt").exists()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_the_best_model_is_pushed_in_the_end(folder, tmp_path):
    with hub_server.serve() as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, EXAMPLES / "train.py", RECIPES / "folder.yaml", *NARROW, *SHORT, *QUICK]
        command += ["--data_root", folder, "--out", tmp_path / "run", "--push_to_hub", "writer/mine"]
        env["HF_HOME"] = str(tmp_path / "hf")
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        files = hub.repos["writer/mine"].branches["main"]
    assert files["model.safetensors"] == (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert ModelCard(files["README.md"].decode()).data.eval_results[0].dataset_split == "val"


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_one_that_was_not(folder, tmp_path):
    options = ("--data_root", folder, "--iterations", 60, "--save_every", 1, "--eval_every", 20, *EXACT)
    run("folder", *options, "--out", tmp_path / "whole")
    command = [sys.executable, EXAMPLES / "train.py", RECIPES / "folder.yaml", *NARROW, *SHORT, *QUICK, *options]
    command = list(map(str, [*command, "--out", tmp_path / "parts"]))
    rng, kills = np.random.default_rng(0), 0
    while kills < 10:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        shown = b""
        while b"train" not in shown:
            shown += process.stderr.read(20)
            assert process.poll() is None
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, "the run ended before it was killed ten times"
        process.kill()
        process.communicate()
        kills += 1
    subprocess.run(command, check=True, capture_output=True)
    one, other = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("whole", "parts"))
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    assert one["losses"] == other["losses"]
    saved = [smp.from_pretrained(tmp_path / n / "last").state_dict() for n in ("whole", "parts")]
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_trains_in_each_precision(folder, tmp_path, precision):
    run("folder", "--data_root", folder, "--out", tmp_path / "run", "--precision", precision, "--workers", 1)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_with_synchronized_batch_norms(folder, tmp_path):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--batch_size", 4)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 2, EXAMPLES / "train.py"]
    command += [RECIPES / "folder.yaml", *NARROW, *SHORT, *QUICK, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not synchronized" not in done.stdout
