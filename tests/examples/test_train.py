import functools
import re
import shutil
import sys
import traceback
from dataclasses import fields

import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard

import miniatures
import train
import training
from segmentation import data, layouts, recipe
from segmentation.recipe import SettingsError, TrainSettings, UserError
from segnext_timm.errors import HubError


@pytest.mark.parametrize(
    "dataset", [pytest.param(name, marks=[pytest.mark.slow] * (name != "folder")) for name in miniatures.PATHS]
)
def test_each_recipe_trains_and_evaluates(tmp_path, dataset):
    values = {"cityscapes": [7, 8, 0], "coco_stuff164k": [0, 5, 255]}.get(dataset, [0, 1, 2])
    sizes = ((48, 64), (20, 30), (300, 40), (600, 800))  # one smaller than a crop, one long, one huge
    miniatures.make(dataset, tmp_path / "data", values, sizes)
    options = ("--eval_window", 512, "--eval_stride", 384) if dataset == "cityscapes" else ()
    fit = ("--fit_in", 96, 64) if dataset in ("ade20k", "coco_stuff164k", "voc2012", "pascal_context") else ()
    scale = ("--base_scale", 96, 64)
    out = ("--data_root", tmp_path / "data", "--out", tmp_path / "run")
    training.run(dataset, "--iterations", 2, "--eval_every", 2, *scale, *options, *fit, *out)
    for name in ("best", "last"):
        model = smp.from_pretrained(tmp_path / "run" / name)
        split = layouts.open_split(dataset, tmp_path / "data", "val")
        assert model.pretrained_cfg["label_names"] == list(split.classes)
        assert model.pretrained_cfg["fit_in"] == ([96, 64] if fit or dataset == "folder" else None)
        assert model(torch.rand(1, 3, 40, 50)).shape == (1, len(split.classes), 40, 50)
        card = ModelCard.load(tmp_path / "run" / name / "README.md")
        assert card.data.eval_results[0].metric_type == "mean_iou"
    assert [f.name for f in (tmp_path / "run" / "predictions").iterdir()] == ["000002.png"]


@pytest.mark.parametrize(
    "options",
    [
        ("--precision", "bf16", "--grad_checkpointing", "--one_step_gradient"),
        ("--freeze_encoder", "--no-channels_last", "--no-color_distortion"),
        ("--tracker", "tensorboard", "--workers", 2, "--ema_decay", 0.5),
    ],
)
def test_the_options_train_too(folder, tmp_path, options):
    training.run("folder", "--data_root", folder, "--out", tmp_path / "run", "--iterations", 2, *options)
    assert all(value.isfinite().all() for value in training.checkpoint(tmp_path / "run")["model"].values())
    assert bool(list((tmp_path / "run").glob("log/events.*"))) == ("tensorboard" in options)


def test_binary_masks_of_0_and_255_are_refused_before_training(tmp_path):
    miniatures.make("folder", tmp_path / "data", [0, 255])
    (tmp_path / "data" / "classes.txt").write_text("background\nperson\n", encoding="utf-8")
    options = ("--data_root", tmp_path / "data", "--out", tmp_path / "run", "--iterations", 2)
    with pytest.raises(data.DataError, match="'person' never occurs"):
        training.run("folder", *options)
    assert not (tmp_path / "run").exists()
    (tmp_path / "data" / "classes.txt").write_text("0 background\n255 person\n", encoding="utf-8")
    trainer = training.set_up("folder", *options)
    assert trainer.raw_model.pretrained_cfg["label_names"] == ["background", "person"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_slow_here_is_pointed_out(folder, tmp_path, capsys, precision):
    training.set_up("folder", "--data_root", folder, "--out", tmp_path / "run", "--precision", precision)
    said = "On most CPUs, bf16 is about ten times slower than fp32."
    assert capsys.readouterr().out.count(said) == (precision == "bf16")


def test_a_loss_that_is_not_finite_changes_nothing_and_is_reported(folder, tmp_path, capsys):
    # the first updates make the weights so large that no later loss or gradient is finite
    rates = ("--lr", 1e30, "--warmup", 0, "--iterations", 40, "--eval_every", 40, "--save_every", 1)
    with pytest.raises(SettingsError, match="not finite 10 times in a row: try a smaller --lr"):
        training.run("folder", "--data_root", folder, *rates, "--out", tmp_path / "run")
    assert "no update. Images: train_" in capsys.readouterr().out
    state = training.checkpoint(tmp_path / "run")
    assert state["iteration"] < 20
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch_size", 3, "--accumulate", 2), "batch_size 3 cannot be divided among 1 processes and 2 accumulated"),
        (("--push_to_hub", "name"), "name is not a repository on the Hub: give user/name"),
        (("--data_root", "none"), "none does not exist"),
        (("--ignore_index", 7), r"holds the labels 255, but .*'255 NAME'.* --ignore_index 255"),
        (("--encoder", "tu-mscan_x"), "Unknown encoder 'tu-mscan_x'"),
        (("--init_from", "nothing"), "nothing: not a folder, not a Hub repository"),
    ],
)
def test_invalid_settings_and_data_raise_errors_that_name_them(folder, tmp_path, arguments, message):
    with pytest.raises((ValueError, OSError, SettingsError, data.DataError), match=message):
        training.run("folder", "--data_root", folder, "--out", tmp_path / "run", *arguments)


def test_a_run_is_not_overwritten(finished_run, tmp_path):
    options = finished_run.options
    before = {file: file.read_bytes() for file in finished_run.out.rglob("*") if file.is_file()}
    with pytest.raises(SettingsError, match="belongs to another run: choose another --out"):
        training.run("folder", *options, "--no-resume")
    with pytest.raises(SettingsError, match="was written with seed 0, not 1: choose another --out"):
        training.run("folder", *options, "--seed", 1)
    shutil.copytree(finished_run.data, tmp_path / "data")
    (tmp_path / "data" / "classes.txt").write_text("a\nb\nsomething else\n", encoding="utf-8")
    wrong = r"was written with 3 training images of 3 classes \(\w{8}\), not 3 training images of 3 classes \(\w{8}\)"
    with pytest.raises(SettingsError, match=wrong):
        training.run("folder", *options, "--data_root", tmp_path / "data")
    assert {file: file.read_bytes() for file in finished_run.out.rglob("*") if file.is_file()} == before


def test_a_run_goes_on_where_the_folder_moved_to_and_names_what_changed(finished_run, tmp_path, capsys):
    shutil.copytree(finished_run.data, tmp_path / "moved")
    shutil.copytree(finished_run.out, tmp_path / "run")
    state = training.checkpoint(tmp_path / "run")
    torch.save(state | {"iteration": 1}, tmp_path / "run" / "checkpoint.pt")
    options = ("--data_root", tmp_path / "moved", "--out", tmp_path / "run", "--iterations", 2)
    training.run("folder", *options, "--lr", "1e-3")
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("Changed since the checkpoint: "))
    moved = {
        f"data_root {finished_run.data}, now {tmp_path / 'moved'}",
        f"out {finished_run.out}, now {tmp_path / 'run'}",
    }
    changed = set(line.removeprefix("Changed since the checkpoint: ").removesuffix(".").split("; "))
    assert changed == {*moved, "lr 0.0001, now 0.001"}
    assert "Initial weights" not in said
    training.run("folder", *options, "--lr", "1e-2")
    assert capsys.readouterr().out.startswith("The run is already finished")


def test_a_run_goes_on_with_changed_labels_and_says_so(finished_run, tmp_path, capsys):
    shutil.copytree(finished_run.data, tmp_path / "data")
    shutil.copytree(finished_run.out, tmp_path / "run")
    torch.save(training.checkpoint(tmp_path / "run") | {"iteration": 1}, tmp_path / "run" / "checkpoint.pt")
    label = layouts.open_split("folder", tmp_path / "data", "train").labels[0]
    before = label.stat().st_size
    miniatures.labels(label, data.read_labels(label) * 0)
    training.run("folder", "--data_root", tmp_path / "data", "--out", tmp_path / "run", "--iterations", 2)
    (found,) = re.findall(r"label files of ([\d,]+) bytes, now ([\d,]+)", capsys.readouterr().out)
    bytes_before, bytes_now = (int(number.replace(",", "")) for number in found)
    assert bytes_now - bytes_before == label.stat().st_size - before != 0


def test_an_evaluation_writes_a_checkpoint(folder, tmp_path, capsys):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--save_every", 1000)
    with training.power_failure():
        training.run("folder", *options)
    state = training.checkpoint(tmp_path / "run")
    assert (state["iteration"], len(state["mious"])) == (3, 1)
    (tmp_path / "run" / "checkpoint.pt").unlink()
    training.set_up("folder", *options)
    assert f"Warning: {tmp_path / 'run'} holds a model but no checkpoint" in capsys.readouterr().out


def test_labels_for_validation_are_checked_before_anything_is_trained(folder, tmp_path):
    label = layouts.open_split("folder", folder, "val").labels[-1]
    values = data.read_labels(label).copy()
    values[0, 0] = 77
    miniatures.labels(label, values)
    with pytest.raises(data.DataError, match=r"holds the labels 77, but .*'77 NAME', or '77 -' to leave its pixels"):
        training.run("folder", "--data_root", folder, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_crops_larger_than_the_images_are_pointed_out(folder, tmp_path, capsys):
    training.set_up("folder", "--data_root", folder, "--out", tmp_path / "run", "--base_scale", 31, 31)
    assert (
        "Warning: crops of 32 are larger than the images, which are fitted in 31×31: set a smaller --crop_size"
        in capsys.readouterr().out
    )


def test_a_finished_run_that_cannot_be_pushed_says_how_to(folder, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise HubError("The Hub refused the request.")

    monkeypatch.setattr(train, "push_to_hub", refuse)
    monkeypatch.setenv("HF_TOKEN", "a token")
    options = ("--data_root", folder, "--out", tmp_path / "run", "--iterations", 1, "--push_to_hub", "user/repo")
    with pytest.raises(
        UserError, match=rf"refused the request\. .*segnext-timm push {tmp_path / 'run/best'} user/repo"
    ):
        training.run("folder", *options)


@pytest.mark.parametrize("error", [UserError("wrong"), HubError("wrong"), FileNotFoundError("wrong")])
def test_errors_that_users_can_act_on_end_a_script_in_one_line(monkeypatch, error):
    def fail(argv):
        raise error

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match=r"^train\.py: wrong$"):
        recipe.run(fail)


def test_an_error_in_a_worker_process_ends_a_script_in_one_line(monkeypatch):
    class Damaged(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise data.DataError("a.png cannot be read.")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match=r"^train\.py: a\.png cannot be read\.$") as ended:
        recipe.run(lambda argv: list(torch.utils.data.DataLoader(Damaged(), num_workers=1)))
    traceback.clear_frames(ended.value.__context__.__traceback__)  # ends the worker, for which gc would wait 5 s


def test_recipes_hold_settings_only():
    names = {f.name for f in fields(TrainSettings)}
    for path in training.RECIPES.glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= names, path


@pytest.mark.slow
def test_compiled_blocks_train_like_eager_ones(folder, tmp_path, monkeypatch):
    compile_model = functools.partial(train.compile_model, backend="eager")  # without minutes in compilers
    monkeypatch.setattr(train, "compile_model", compile_model)
    options = ("--data_root", folder, "--iterations", 3, "--eval_every", 3)
    training.run("folder", *options, "--out", tmp_path / "eager")
    AcceleratorState._reset_state(True)
    training.run("folder", *options, "--out", tmp_path / "compiled", "--compile", "blocks")
    one, other = (training.checkpoint(tmp_path / n) for n in ("eager", "compiled"))
    assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_trains_in_each_precision(folder, tmp_path, precision):
    training.run("folder", "--data_root", folder, "--out", tmp_path / "run", "--precision", precision, "--workers", 1)
    assert all(value.isfinite().all() for value in training.checkpoint(tmp_path / "run")["model"].values())
