"""What train.py and evaluate.py find out before the long work, and what they say of files that cannot be used."""

import re
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

import evaluate
import training
from segmentation import files
from segmentation.recipe import SettingsError


def copy_run(run, folder, **state):
    """A copy of a finished run whose checkpoint says something else, and the options that resume it."""
    shutil.copytree(run.out, folder)
    torch.save(training.checkpoint(folder) | state, folder / "checkpoint.pt")
    return (*run.options, "--out", folder)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_data_are_read(tmp_path):
    (tmp_path / "notes").write_text("")
    for out in (tmp_path / "notes", tmp_path / "notes" / "run"):
        message = f"--out {out}: {tmp_path / 'notes'} is a file, not a folder: choose another --out."
        with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
            training.run("folder", "--data_root", "none", "--out", out)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root writes to")
def test_a_folder_that_is_not_ones_own_is_refused_by_its_option():
    with pytest.raises(SettingsError, match=r"^--out /proc/run: /proc cannot be written to \(.+\): choose another"):
        training.run("folder", "--data_root", "none", "--out", "/proc/run")
    with pytest.raises(SettingsError, match=r"^--json /proc: /proc cannot be written to"):
        evaluate.main(["model", str(training.RECIPES / "folder.yaml"), "--json", "/proc/scores.json"])


def test_a_training_that_does_not_fit_on_the_disk_is_refused(folder, tmp_path, monkeypatch):
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1_000_000))
    options = ("--data_root", folder, "--out", tmp_path / "run")
    with pytest.raises(SettingsError, match=r"need 0\.\d+ GB, and 0\.001 GB are free there: free some space, or"):
        training.run("folder", *options)
    assert not (tmp_path / "run").exists()


def test_the_space_that_a_training_needs_is_what_it_writes(finished_run, tmp_path, monkeypatch):
    needed = []
    usage = namedtuple("Usage", "free")
    model = torch.nn.Linear(1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed[0]))
    checkpoint = torch.optim.AdamW(model.parameters())
    model(torch.rand(1, 1000)).sum().backward()
    checkpoint.step()
    weights = sum(p.nbytes for p in model.parameters())
    needed.append(2 * weights + 2 * 4 * weights)  # best, last; twice weights, moments, average
    files.check_space(tmp_path, model, with_average=True)
    needed[0] -= 1
    with pytest.raises(SettingsError):
        files.check_space(tmp_path, model, with_average=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"1")  # which is replaced
    files.check_space(tmp_path, model, with_average=True)


@pytest.mark.parametrize("end", [0, 1, 5000, 100_000, -1])
def test_a_short_checkpoint_is_named_in_one_line(finished_run, tmp_path, end):
    options = copy_run(finished_run, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:end])
    message = f"{file} is damaged, or no checkpoint of train.py: remove it to start anew, or train further from its "
    message += f"weights with --init_from {tmp_path / 'run' / 'last'} and another --out."
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        training.run("folder", *options)


def test_a_checkpoint_of_something_else_is_refused(finished_run, tmp_path):
    shutil.copytree(finished_run.out, tmp_path / "run")
    torch.save({"state_dict": {}}, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(SettingsError, match=r"is damaged, or no checkpoint of train\.py: remove it"):
        training.run("folder", *finished_run.options, "--out", tmp_path / "run")


@pytest.mark.parametrize(("iteration", "which"), [(0, "checkpoint.pt"), (1, "last")])  # an evaluation is at the end
def test_a_full_disk_ends_a_run_in_one_line_and_keeps_what_was_there(finished_run, tmp_path, iteration, which):
    options = (*copy_run(finished_run, tmp_path / "run", iteration=iteration), "--save_every", 1)
    before = {
        f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.name in ("checkpoint.pt", "model.safetensors")
    }
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # a write fails as on a full disk
    try:
        with pytest.raises(OSError, match=rf"{which} cannot be written: File too large\. What it held before is kept"):
            training.run("folder", *options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file: file.read_bytes() for file in before} == before


def test_a_finished_run_says_which_settings_were_not_used(finished_run, capsys):
    training.run("folder", *finished_run.options, "--lr", "1e-2")
    run = finished_run.out
    models = f"its models are {run / 'best'} and {run / 'last'}"
    more = "A larger --iterations continues it, another --out starts anew."
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"The run is already finished: {models}. {more}",
        "These settings were not used: lr 0.0001, now 0.01.",
    ]


def test_a_rate_that_never_falls_is_pointed_out(folder, tmp_path, capsys):
    training.set_up("folder", "--data_root", folder, "--out", tmp_path / "run", "--iterations", 1)
    assert "Warning: --warmup 2 is no less than --iterations: the rate only rises." in capsys.readouterr().out
