"""Trackers, the table of evaluations, and what a training says."""

import csv
import json
import re
import subprocess

import accelerate.tracking
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.optim.optimizer import register_optimizer_step_post_hook

import miniatures
import terminal
import train
import training
from segmentation.recipe import SettingsError

OWN = """
import json
from accelerate.tracking import GeneralTracker

class Lines(GeneralTracker):
    name = "lines"
    requires_logging_directory = True
    tracker = None

    def __init__(self, project, folder):
        super().__init__()
        self.file = folder / "lines.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.write(project=project)

    def write(self, **line):
        with self.file.open("a") as opened:
            opened.write(json.dumps(line) + "\\n")

    def store_init_configuration(self, values):
        self.write(config=values)

    def log(self, values, step=None, **kwargs):
        self.write(step=step, **values)

    def log_images(self, values, step=None, **kwargs):
        self.write(step=step, picture=values["predictions"].shape)

class NoTracker:
    pass
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A module `own_tracker` in the current folder."""
    (tmp_path / "own_tracker.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def run(folder, out, *options):
    training.run("folder", "--data_root", folder, "--out", out, *options)


def stop_before_the_checkpoint_of(iteration, monkeypatch):
    """Let a training fail after the evaluation of an iteration and before its checkpoint."""
    save_checkpoint = train.Trainer.save_checkpoint

    def fail(trainer):
        if trainer.iteration == iteration:
            raise RuntimeError("power failure")
        save_checkpoint(trainer)

    monkeypatch.setattr(train.Trainer, "save_checkpoint", fail)


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("wandbb", "--tracker wandbb: choose tensorboard, wandb, mlflow, comet_ml, trackio, none, or your own"),
        ("no_module:Class", "--tracker no_module:Class: there is no module 'no_module'"),
        ("own_tracker:NoTracker", "--tracker own_tracker:NoTracker: it is not a subclass of accelerate.tracking.Gen"),
    ],
)
def test_what_is_no_tracker_is_refused_before_the_data_is_read(tmp_path, own_code, tracker, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        run("no data", tmp_path / "run", "--tracker", tracker)


def test_a_missing_package_is_named_before_the_data_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(SettingsError, match="--tracker comet_ml needs a package that is missing: `pip inst"):
        run("no data", tmp_path / "run", "--tracker", "comet_ml")


@pytest.fixture(scope="module")
def resumed_run(tmp_path_factory):
    """A run that failed between an evaluation and its checkpoint and was resumed: the data, its folder, its options."""
    root = tmp_path_factory.mktemp("resumed")
    miniatures.make("folder", root / "data", [0, 1, 2, 255])
    (root / "data" / "classes.txt").write_text("road; wet\nsky\ntree, rare\nd\n", encoding="utf-8")
    options = ("--tracker", "tensorboard", "--ema_decay", 0.5, "--resize_factors", 0.75, 1.5)
    options = (*options, *training.EXACT, "--no-check_data")  # d never occurs
    with pytest.MonkeyPatch.context() as patched, pytest.raises(RuntimeError, match="power failure"):
        stop_before_the_checkpoint_of(6, patched)
        run(root / "data", root / "run", *options)
    AcceleratorState._reset_state(True)
    run(root / "data", root / "run", *options)
    AcceleratorState._reset_state(True)
    return root / "data", root / "run", options


def test_tensorboard_gets_numbers_pictures_and_the_resumed_run(resumed_run):
    _, out, _ = resumed_run
    log = EventAccumulator(str(out / "log"), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert [event.step for event in log.Scalars("loss")] == [1, 2, 3, 4, 5, 6]  # 5 and 6 of the second start alone
    assert [event.step for event in log.Scalars("iou/road_ wet")] == [3, 6]
    assert [event.step for event in log.Images("predictions")] == [3, 6]
    (configuration,) = (path.parent for path in (out / "log").glob("*/events.*"))  # stored once
    told = EventAccumulator(str(configuration)).Reload().summary_metadata["_hparams_/session_start_info"]
    values = HParamsPluginData.FromString(told.plugin_data.content).session_start_info.hparams
    assert (values["iterations"].number_value, values["ema_decay"].number_value) == (6, 0.5)
    assert values["resize_factors"].string_value == "0.75 1.5"


def test_ones_own_tracker_is_named_on_the_command_line(folder, tmp_path, own_code):
    options = ("--tracker", "own_tracker:Lines", "--project", "mine", "--iterations", 2, "--eval_every", 2)
    run(folder, tmp_path / "run", *options)
    project, config, *values = map(json.loads, (tmp_path / "run" / "lines.jsonl").read_text().splitlines())
    assert project == {"project": "mine"}
    assert config["config"]["iterations"] == 2 and config["config"]["lr"] == 1e-4
    assert [line["step"] for line in values] == [1, 2, 2, 2]
    assert "loss" in values[1] and "miou" in values[2]
    assert values[3]["picture"][0] == 1 and values[3]["picture"][3] == 3  # one picture in color


def test_metrics_csv_has_a_row_for_each_evaluation_of_a_resumed_run_too(resumed_run, tmp_path):
    folder, out, options = resumed_run
    run(folder, tmp_path / "whole", *options)
    whole, parts = ((root / "metrics.csv").read_text(encoding="utf-8") for root in (tmp_path / "whole", out))
    assert whole == parts
    rows = list(csv.DictReader(whole.splitlines()))
    names = ["iteration", "loss", "lr", "miou", "macc", "aacc", "iou/road; wet", "iou/sky", "iou/tree, rare", "iou/d"]
    assert [*rows[0]] == names and [row["iteration"] for row in rows] == ["3", "6"]
    state = training.checkpoint(out)
    assert [(int(row["iteration"]), float(row["miou"])) for row in rows] == state["mious"]
    assert float(rows[1]["loss"]) == pytest.approx(np.mean(state["losses"]))


def test_the_first_evaluation_is_called_so(folder, tmp_path, capsys):
    run(folder, tmp_path / "run", "--iterations", 2, "--eval_every", 1)
    said = re.findall(r"^iteration (\d): mIoU (\S+), (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert said == [("1", said[0][1], "first"), ("2", said[1][1], f"best before {said[0][1]}")]


@pytest.mark.parametrize(("iterations", "every", "lines"), [(20, 1, range(2, 21, 2)), (6, 4, [4])])
def test_without_a_terminal_a_line_is_written_every_tenth(folder, tmp_path, capfd, iterations, every, lines):
    schedule = ("--iterations", iterations, "--log_every", every, "--eval_every", 100, "--save_every", 100)
    run(folder, tmp_path / "run", *schedule)
    said = capfd.readouterr()
    assert re.findall(rf"^iteration (\d+) of {iterations}: loss \d", said.out, re.MULTILINE) == [*map(str, lines)]
    assert said.err == ""


@pytest.mark.slow
def test_bars_are_shown_in_a_terminal_alone_and_can_be_turned_off(folder, tmp_path, monkeypatch):
    for place in ("terminal", "pipe", "off"):
        command = training.command("folder", "--data_root", folder, "--out", tmp_path / place, "--iterations", 20)
        if place == "off":
            monkeypatch.setenv("TQDM_DISABLE", "1")
        if place == "pipe":
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            out, shown = done.stdout, done.stderr.encode()
        else:
            process, shown = terminal.start(command, stdout=subprocess.PIPE, text=True)
            out, _ = process.communicate(timeout=120)
        assert (b"train:" in shown, b"evaluate:" in shown) == ((place == "terminal",) * 2)
        assert out.count(" of 20: loss") == (0 if place == "terminal" else 10)


def test_speed_is_that_of_the_iterations_since_an_evaluation_or_the_start(folder, tmp_path, monkeypatch, capsys):
    steps = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    monkeypatch.setattr(train.time, "monotonic", lambda: float(len(steps)))  # an iteration takes a second
    try:
        run(folder, tmp_path / "run", "--eval_every", 3, "--log_every", 2)
        said = re.findall(r"^iteration (\d) of 6: .* images_per_s (\S+),", capsys.readouterr().out, re.MULTILINE)
        assert said == [("2", "2.0"), ("4", "2.0"), ("6", "2.0")]
    finally:
        hook.remove()


def test_a_loss_that_is_not_a_number_is_left_out_of_the_mean(folder, tmp_path, monkeypatch):
    code = "calls = []\n\ndef loss(logits, labels):\n    calls.append(1)\n"
    code += "    return logits.mean() * (float('nan') if len(calls) == 4 else 1)\n"
    (tmp_path / "own_nan.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run(folder, tmp_path / "run", "--loss", "own_nan:loss", "--eval_every", 6)
    losses = np.array(training.checkpoint(tmp_path / "run")["losses"])
    assert np.isnan(losses).sum() == 1
    (row,) = csv.DictReader((tmp_path / "run/metrics.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["loss"]) == pytest.approx(np.nanmean(losses))
