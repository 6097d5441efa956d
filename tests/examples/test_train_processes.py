"""Training in processes of its own: killed and interrupted ones that go on, several that train together."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import segmentation_models_pytorch as smp
import torch
from huggingface_hub import ModelCard

import hub_server
import miniatures
import struck
import terminal
import train
import training
from ports import free_port
from segmentation import data, layouts
from segmentation.recipe import TrainSettings


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(folder, tmp_path):
    options = ("--data_root", folder, "--ema_decay", 0.9, "--clip_grad", 1.0, "--accumulate", 2, "--crop_size", 64)
    options = (*options, *training.EXACT)
    training.run("folder", *options, "--out", tmp_path / "whole")
    command = training.command("folder", *options, "--out", tmp_path / "parts")
    # as the second checkpoint is to replace the first
    killed = struck.command(signal.SIGKILL, 2, tmp_path / "parts" / "checkpoint.pt", *command[1:])
    assert subprocess.run(killed).returncode == -signal.SIGKILL
    assert training.checkpoint(tmp_path / "parts")["iteration"] == 2
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Resuming at iteration" in done.stdout
    one, other = (training.checkpoint(tmp_path / n) for n in ("whole", "parts"))
    for part in ("model", "average"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    assert one["losses"] == other["losses"]
    assert one["mious"] == other["mious"]


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_one_that_was_not(folder, tmp_path):
    own = ("--augment", "torchvision.transforms.v2:RandomHorizontalFlip")
    steps = ("--vertical_flip", "--rotate90", "--rotate", 30, *own, "--schedule", "cosine", "--ema_decay", 0.9998)
    options = ("--data_root", folder, *steps, "--early_stopping", 9, *training.EXACT)
    options = (*options, "--iterations", 40, "--save_every", 1, "--eval_every", 20)
    training.run("folder", *options, "--out", tmp_path / "whole")
    command = training.command("folder", *options, "--out", tmp_path / "parts")
    for count in np.random.default_rng(0).integers(1, 60, 10):  # an iteration has eight operations on files, or more
        killed = struck.command(signal.SIGKILL, count, tmp_path / "parts", *command[1:])
        assert subprocess.run(killed, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert 0 < training.checkpoint(tmp_path / "parts")["iteration"] < 40
    subprocess.run(command, check=True, capture_output=True)
    one, other = (training.checkpoint(tmp_path / n) for n in ("whole", "parts"))
    for part in ("model", "average"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    assert one["losses"] == other["losses"]
    saved = [smp.from_pretrained(tmp_path / n / "last").state_dict() for n in ("whole", "parts")]
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(folder, tmp_path):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--workers", 1)
    options = (*options, "--iterations", 2000, "--save_every", 2000, "--eval_every", 2000)
    process, shown = terminal.start(
        training.command("folder", *options),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    while not re.search(rb"\| [1-9]\d+/2000", shown):  # the bar leaves out numbers
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command resumes the run" in output
    state = training.checkpoint(tmp_path / "run")
    assert 10 <= state["iteration"] == len(state["losses"]) < 2000


@pytest.mark.slow
def test_an_error_is_one_line_without_a_traceback(folder, tmp_path):
    split = layouts.open_split("folder", folder, "train")
    for label in split.labels:
        miniatures.labels(label, np.full_like(data.read_labels(label), 9))
    command = training.command("folder", "--workers", 1, "--data_root", folder, "--out", tmp_path / "run")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"train.py: {folder / 'labels' / 'train'}")
    assert "holds the labels 9, but there are 3 classes (0 to 2)" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_best_model_is_pushed_in_the_end(folder, tmp_path):
    with hub_server.serve() as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer", "HF_HUB_DISABLE_XET": "1"}
        env["HF_HOME"] = str(tmp_path / "hf")
        options = ("--data_root", folder, "--out", tmp_path / "run", "--push_to_hub", "writer/mine")
        command = training.command("folder", *options)
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        files = hub.repos["writer/mine"].branches["main"]
    assert files["model.safetensors"] == (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert ModelCard(files["README.md"].decode()).data.eval_results[0].dataset_split == "val"


def test_processes_share_the_samples_of_an_iteration():
    settings = TrainSettings(batch_size=8, accumulate=2, iterations=5)
    for start in (0, 3):
        taken = [k for p in range(2) for batch in train.sample_numbers(settings, start, p, 2) for k in batch]
        assert sorted(taken) == list(range(8 * start, 40))
        assert next(iter(train.sample_numbers(settings, start, 1, 2))) == [8 * start + 2, 8 * start + 3]


def launch(script, *arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes, "--standalone", script]
    env = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    return subprocess.run(list(map(str, [*command, *arguments])), capture_output=True, text=True, env=env)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "factor"), [("ce", 1), ("focal", 1), ("lovasz", 0.5)])
def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(tmp_path, loss, factor):
    # ce and focal are means over all pixels, so it does not matter that one process has ignored pixels only; lovasz is
    # the mean of the processes' losses, of which one is 0
    script = Path(__file__).parents[1] / "helpers" / "two_processes.py"
    gradients = []
    for processes in (1, 2):
        done = launch(script, tmp_path / f"{processes}.pt", training.EXAMPLES, loss, processes=processes)
        assert done.returncode == 0, done.stderr
        gradients.append(torch.load(tmp_path / f"{processes}.pt"))
    for name, one in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], factor * one, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.slow
def test_any_error_of_the_first_process_is_raised_in_all(tmp_path):
    code = "import sys\n\nsys.path.insert(0, sys.argv[1])\nfrom accelerate import Accelerator\n\n"
    code += "from segmentation.checks import in_first_process\n\naccelerator = Accelerator()\ntry:\n"
    code += "    in_first_process(accelerator, lambda: {}['no such key'])\nexcept KeyError as error:\n"
    # one write, which the other process does not interrupt
    code += "    sys.stdout.write(f'{accelerator.process_index} {error}\\n')\naccelerator.end_training()\n"
    (tmp_path / "fails.py").write_text(code, encoding="utf-8")
    done = launch(tmp_path / "fails.py", training.EXAMPLES)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 'no such key'", "1 'no such key'"]


@pytest.mark.slow
def test_two_processes_train_and_go_on(folder, tmp_path):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--batch_size", 4)
    arguments = training.arguments("folder", *options)
    done = launch(training.EXAMPLES / "train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "Batch norms are not synchronized: torch does so on GPUs only" in done.stdout
    state = training.checkpoint(tmp_path / "run")
    assert state["iteration"] == len(state["losses"]) == 6
    assert smp.from_pretrained(tmp_path / "run" / "best")(torch.rand(1, 3, 40, 40)).isfinite().all()
    assert "The run is already finished" in launch(training.EXAMPLES / "train.py", *arguments).stdout


@pytest.mark.slow
def test_two_processes_stop_early_together(folder, tmp_path):
    still = ("--lr", 1e-30, "--freeze_encoder", "--decoder_lr_factor", 1, "--eval_every", 2, "--early_stopping", 2)
    options = ("--data_root", folder, "--out", tmp_path / "run", "--batch_size", 4, "--iterations", 8, *still)
    arguments = training.arguments("folder", *options)
    done = launch(training.EXAMPLES / "train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Stopped early: no better mIoU in 2 evaluations.") == 1
    assert training.checkpoint(tmp_path / "run")["iteration"] == 6
    assert "A larger --early_stopping continues it" in launch(training.EXAMPLES / "train.py", *arguments).stdout


@pytest.mark.slow
def test_two_processes_notice_a_signal_to_one_within_seconds(folder, tmp_path):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--batch_size", 4, "--iterations", 100_000)
    options = (*options, *("--log_every", 100_000, "--save_every", 100_000, "--eval_every", 100_000))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone"]
    command += [training.EXAMPLES / "train.py", *training.arguments("folder", *options)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    process, shown = terminal.start(command, stdout=subprocess.PIPE, env=environment)
    while not re.search(rb"\| [1-9]\d+/100000", shown):  # the bar leaves out numbers
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(5)  # the processes now ask each other every three seconds
    ranks = psutil.Process(process.pid).children()
    start = time.monotonic()
    ranks[1].terminate()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - start < 20
    assert process.returncode == 0
    assert b"Stopped after iteration" in output
    state = training.checkpoint(tmp_path / "run")
    assert 10 <= state["iteration"] == len(state["losses"]) < 100_000


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_together(folder, tmp_path):
    options = ("--data_root", folder, "--batch_size", 8, "--accumulate", 2, "--crop_size", 64, "--iterations", 2)
    arguments = training.arguments("folder", *options)
    port = free_port()
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    nodes = []
    for node in range(2):  # each with a folder of its own: only the first writes
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 2]
        command += ["--rdzv-backend", "static", "--node-rank", node, "--master-addr", "127.0.0.1"]
        command += ["--master-port", port, training.EXAMPLES / "train.py"]
        command += [*arguments, "--out", tmp_path / f"node{node}"]
        nodes.append(subprocess.Popen(list(map(str, command)), env=env, stderr=subprocess.PIPE, text=True))
    errors = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert training.checkpoint(tmp_path / "node0")["iteration"] == 2
    assert not (tmp_path / "node1" / "checkpoint.pt").exists()


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_with_synchronized_batch_norms(folder, tmp_path):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--batch_size", 4)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 2, training.EXAMPLES / "train.py"]
    command += training.arguments("folder", *options)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not synchronized" not in done.stdout
