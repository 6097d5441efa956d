"""How the learning rate falls, when a run stops early, and how a finished one continues."""

import math

import pytest
import torch
from accelerate.state import AcceleratorState

import training
from segmentation.recipe import SettingsError, TrainSettings
from segmentation.stepping import check_schedule, lr_at, stops_early


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module of the user's own code in the current folder."""
    name = f"own_{tmp_path.name}"
    code = "def steps(iteration, iterations):\n    return 0.1 if iteration >= iterations // 2 else 1\n\n"
    code += "def falls(iteration, iterations):\n    return 1 - iteration / 4\n\n"
    code += "def odd(iteration, iterations):\n    return float('nan')\n\n"
    code += "def nothing(iteration, iterations):\n    pass\n\n"
    code += "def word(iteration, iterations):\n    return 'half'\n"
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


def rates(**settings):
    """All rates of a run of 12 iterations, 3 of them for the warm-up, over the highest."""
    settings = TrainSettings(iterations=12, warmup=3, lr=0.5, **settings)
    check_schedule(settings)
    return [lr_at(k, settings) / settings.lr for k in range(settings.iterations)]


def test_the_power_of_poly_and_cosine_shape_the_way_to_zero(own):
    warmup = [1e-6, 0.5 + 0.5e-6, 1]
    shares = [k / 8 for k in range(9)]
    assert rates() == [*map(pytest.approx, warmup), *(1 - x for x in shares)]
    assert rates(poly_power=2.0)[3:] == [pytest.approx((1 - x) ** 2) for x in shares]
    assert rates(schedule="cosine") == pytest.approx([*warmup, *(0.5 + 0.5 * math.cos(math.pi * x) for x in shares)])
    assert rates(schedule="cosine")[-1] == 0


def test_an_own_schedule_gives_the_factor_after_the_warm_up(own):
    assert rates(schedule=f"{own}:steps")[2:] == pytest.approx([1] + [1] * 3 + [0.1] * 6)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosin", "--schedule cosin: choose from poly, cosine, or name your own as module:function"),
        ("{}:falls", r"--schedule .*:falls returned -0\.25 at iteration 5: return a number, 0 or more"),
        ("{}:odd", r"--schedule .*:odd returned nan at iteration 2: return a number, 0 or more"),
        ("{}:nothing", "--schedule .*:nothing returned None at iteration 2: return a number, 0 or more"),
        ("{}:word", "--schedule .*:word returned half at iteration 2: return a number, 0 or more"),
    ],
)
def test_a_schedule_that_cannot_be_followed_ends_the_run_before_it_begins(folder, tmp_path, own, schedule, message):
    with pytest.raises(SettingsError, match=message):
        training.run("folder", "--data_root", folder, "--out", tmp_path / "run", "--schedule", schedule.format(own))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mious", "patience", "stops"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4, 0.6, 0.5], 2, False),
        ([0.5, 0.6, 0.5, 0.6], 2, True),
        ([0.5, 0.4, 0.3], None, False),
    ],
)
def test_a_run_stops_early_if_the_last_evaluations_brought_no_better_miou(mious, patience, stops):
    assert stops_early([*enumerate(mious)], patience) == stops


def test_a_run_that_stopped_early_is_finished_until_it_may_wait_longer(folder, tmp_path, capsys):
    out = tmp_path / "run"
    still = ("--lr", 1e-30, "--freeze_encoder", "--decoder_lr_factor", 1)  # nothing gets better
    options = ("--data_root", folder, "--out", out, *still, "--iterations", 12, "--eval_every", 2)
    training.run("folder", *options, "--early_stopping", 1)
    said = capsys.readouterr().out
    assert "Stopped early: no better mIoU in 1 evaluations." in said
    assert "Best mIoU" in said
    state = training.checkpoint(out)
    assert (state["iteration"], [iteration for iteration, _ in state["mious"]]) == (4, [2, 4])
    AcceleratorState._reset_state(True)
    training.run("folder", *options, "--early_stopping", 1)
    models = f"its models are {out / 'best'} and {out / 'last'}"
    said = "A larger --early_stopping continues it, another --out starts anew."
    assert capsys.readouterr().out == f"The run is already finished: {models}. {said}\n"
    AcceleratorState._reset_state(True)
    training.run("folder", *options, "--early_stopping", 2)
    assert "Changed since the checkpoint: early_stopping 1, now 2." in capsys.readouterr().out
    assert training.checkpoint(out)["iteration"] == 6


def test_a_finished_run_continues_with_more_iterations_and_is_never_cut_short(folder, tmp_path, capsys):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--lr", 1e-3, "--eval_every", 6)
    training.run("folder", *options, "--iterations", 6)
    first = training.checkpoint(tmp_path / "run")
    capsys.readouterr()
    for iterations in (4, 5):
        with pytest.raises(SettingsError, match=rf"^--iterations {iterations}: the run is at 6 of 6: give more\.$"):
            training.run("folder", *options, "--iterations", iterations)
        AcceleratorState._reset_state(True)
    training.run("folder", *options, "--iterations", 12)
    said = capsys.readouterr().out
    assert "Resuming at iteration 6 of 12, with the saved weights." in said
    # five of nine steps to 0 are left
    assert "The schedule ends at iteration 12, not 6: the learning rate goes from 0 to 0.00056." in said
    state = training.checkpoint(tmp_path / "run")
    assert (state["iteration"], state["losses"][:6], len(state["losses"])) == (12, first["losses"], 12)
    assert [iteration for iteration, _ in state["mious"]] == [6, 12]


def test_an_interrupted_run_with_every_new_setting_ends_as_one_that_was_not(folder, tmp_path, monkeypatch):
    own = f"own_{tmp_path.name}"
    code = "from torchvision.transforms import v2\n\ndef augment():\n    return v2.GaussianBlur(3)\n\n"
    code += "def schedule(iteration, iterations):\n    return 0.9**iteration\n"
    (tmp_path / f"{own}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    steps = ("--vertical_flip", "--rotate90", "--rotate", 30, "--augment", f"{own}:augment")
    options = ("--data_root", folder, *steps, "--schedule", f"{own}:schedule", "--ema_decay", 0.9998)
    options = (*options, "--early_stopping", 9, *training.EXACT)
    training.run("folder", *options, "--out", tmp_path / "whole")
    AcceleratorState._reset_state(True)
    with training.power_failure():
        training.run("folder", *options, "--out", tmp_path / "parts")
    assert training.checkpoint(tmp_path / "parts")["iteration"] == 4
    AcceleratorState._reset_state(True)
    training.run("folder", *options, "--out", tmp_path / "parts")
    one, other = (training.checkpoint(tmp_path / name) for name in ("whole", "parts"))
    for part in ("model", "average"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    assert (one["losses"], one["mious"]) == (other["losses"], other["mious"])


def test_the_moving_average_begins_with_the_first_weights_and_grows_longer(folder, tmp_path):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--ema_decay", 0.9998, "--lr", 1e-3)
    training.run("folder", *options, "--iterations", 1)
    first = training.checkpoint(tmp_path / "run")
    assert all(torch.equal(value, first["average"][name]) for name, value in first["model"].items())
    AcceleratorState._reset_state(True)
    training.run("folder", *options, "--iterations", 2)
    second = training.checkpoint(tmp_path / "run")
    name = "segmentation_head.0.weight"
    expected = first["model"][name].lerp(second["model"][name], 2 ** (-2 / 3))
    torch.testing.assert_close(second["average"][name], expected)


def test_settings_that_an_older_checkpoint_lacks_had_their_defaults(finished_run, tmp_path, capsys):
    state = training.checkpoint(finished_run.out)
    for name in ("rotate", "schedule", "early_stopping"):
        del state["settings"][name]
    (tmp_path / "run").mkdir()
    torch.save(state | {"iteration": 1}, tmp_path / "run/checkpoint.pt")
    training.set_up("folder", *finished_run.options, "--out", tmp_path / "run", "--schedule", "cosine")
    changed = f"schedule poly, now cosine; out {finished_run.out}, now {tmp_path / 'run'}"
    assert f"Changed since the checkpoint: {changed}.\n" in capsys.readouterr().out


def test_a_resumed_run_has_the_weight_decay_and_the_rates_of_its_own_settings(finished_run, tmp_path):
    (tmp_path / "run").mkdir()
    torch.save(training.checkpoint(finished_run.out) | {"iteration": 1}, tmp_path / "run/checkpoint.pt")
    changed = ("--weight_decay", 0.05, "--decoder_lr_factor", 2)
    training.run("folder", *finished_run.options, "--out", tmp_path / "run", *changed)
    groups = training.checkpoint(tmp_path / "run")["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0, 0.05}
    assert {(group["lr_factor"], group["lr"]) for group in groups} == {(1, 1e-4), (2, 2e-4)}
