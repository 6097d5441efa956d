"""Sections that run `examples/train.py` in processes: kill and resume, two processes, and the speed of the data."""

import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from checks import environment
from harness import EXAMPLES, NotRunError, OutOfTimeError, Run, Section, require, say

TRAINING_PACKAGES = ("accelerate", "tyro", "yaml", "tqdm", "matplotlib")
ITERATIONS = 20
# Runs a script, and says in the end of how many processes this one knows.
COUNTING = (
    "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    "import accelerate; print('processes:', accelerate.PartialState().num_processes)"
)


def data_folder(folder: Path, count: int, size: int, suffix: str = ".png") -> Path:
    """Write generated scenes as a data folder for train.py: `count` images to train on and two to validate."""
    from PIL import Image

    from segmentation import scenes

    for split, seed, number in (("train", 0, count), ("val", 1, 2)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            image, labels = scenes.draw(seed, index, size)
            Image.fromarray(image).save(folder / "images" / split / f"{index:03d}{suffix}")
            Image.fromarray(labels).save(folder / "labels" / split / f"{index:03d}.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in scenes.CLASSES), encoding="utf-8")
    return folder


def train_arguments(run: Run, data: Path, out: Path) -> list[str]:
    """Script, recipe and settings of a short run of train.py."""
    settings: dict[str, Any] = {
        "data_root": data,
        "out": out,
        "encoder": "tu-test_mscan",
        "decoder_channels": 32,
        "decoder_rank": 4,
        "init_from": "none",
        "crop_size": 64,
        "batch_size": 2,
        "iterations": ITERATIONS,
        "warmup": 2,
        "workers": 2 if run.cuda else 0,
        "tracker": "none",
        "eval_every": ITERATIONS,
        "save_every": 2,
        "log_every": 1,
        "ema_decay": 0.9,
        "clip_grad": 1.0,
    }
    arguments = [str(EXAMPLES / "train.py"), str(EXAMPLES / "recipes" / "folder.yaml")]
    return arguments + [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


def train_environment(run: Run) -> dict[str, str]:
    more = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return environment(**(more if run.cuda else {**more, "ACCELERATE_USE_CPU": "1"}))


@contextmanager
def started(command: list[str], run: Run, log: Path) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, whose output goes to a file; it is ended on leaving if it still runs."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, env=train_environment(run), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # torchrun ends its processes
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    kill(process)


def kill(process: subprocess.Popen) -> None:
    """Kill a running process and the workers in its group."""
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no output"


def finish(command: list[str], run: Run, log: Path) -> None:
    """Run a command to its end.

    Raises:
        OutOfTimeError: If the section's time is over.
        RuntimeError: If it fails.
    """
    with started(command, run, log) as process:
        try:
            status = process.wait(timeout=max(run.left(), 1))
        except subprocess.TimeoutExpired:
            raise OutOfTimeError(f"{log.stem} did not finish in time") from None
    if status:
        raise RuntimeError(f"{log.stem} ended with status {status}: {last_words(log)}")


def kill_when_saved(command: list[str], run: Run, log: Path, checkpoint: Path) -> None:
    """Run a command until its checkpoint exists, and kill it.

    Raises:
        OutOfTimeError: If the section's time is over.
        RuntimeError: If it ends before.
    """
    with started(command, run, log) as process:
        while not checkpoint.is_file():
            if process.poll() is not None:
                raise RuntimeError(f"{log.stem} ended before its first checkpoint: {last_words(log)}")
            if run.left() < 0:
                raise OutOfTimeError(f"{log.stem} wrote no checkpoint in time")
            time.sleep(0.01)
        if process.poll() is None:
            kill(process)


def load(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest relative difference of the tensors and losses of two checkpoints; 0 if they are equal in every bit."""
    found = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(one["losses"], other["losses"], strict=True)]
    for part in ("model", "average"):
        for name, value in (other.get(part) or {}).items():
            if not torch.equal(one[part][name], value):
                value, change = value.double(), one[part][name].double() - value.double()
                found.append(float(change.norm() / value.norm().clamp(min=1e-12)))
    return max(found)


def fresh(folder: Path) -> Path:
    """An empty folder: a run of train.py would resume from what an earlier proof left."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def resume(run: Run, section: Section) -> None:
    """Kill a run of train.py, resume it, and compare with uninterrupted runs."""
    require(*TRAINING_PACKAGES)
    work = fresh(run.out / "resume")
    data = data_folder(work / "data", 6, 96)

    def command(name: str) -> list[str]:
        return [sys.executable, *train_arguments(run, data, work / name), "--deterministic"]

    finish(command("whole"), run, work / "whole.log")
    say("the uninterrupted run is done", indent=True)
    kill_when_saved(command("parts"), run, work / "killed.log", work / "parts" / "checkpoint.pt")
    killed_at = load(work / "parts")["iteration"]
    say(f"killed after a checkpoint at iteration {killed_at} of {ITERATIONS}", indent=True)
    section.check("the run was killed before its end", killed_at < ITERATIONS, f"iteration {killed_at} of {ITERATIONS}")
    finish(command("parts"), run, work / "resumed.log")
    section.check("the second run resumed", "Resuming at iteration" in (work / "resumed.log").read_text("utf-8"))
    whole, parts = load(work / "whole"), load(work / "parts")
    apart = difference(parts, whole)
    section.facts.update(killed_at=killed_at, difference=apart, bit_equal=apart == 0)
    if apart == 0 or not run.cuda:
        section.check("the resumed run ends bit-equal to the uninterrupted one", apart == 0, f"difference {apart:.1e}")
        return
    finish(command("again"), run, work / "again.log")
    usual = difference(load(work / "again"), whole)
    section.facts["difference_of_uninterrupted_runs"] = usual
    detail = f"difference {apart:.1e}; two uninterrupted runs differ by {usual:.1e}"
    section.check("the resumed run differs no more than two uninterrupted runs do", apart <= 3 * usual, detail)


def two_processes(run: Run, section: Section) -> None:
    """Train with two processes: on two GPUs, or on the CPU."""
    if run.cuda and torch.cuda.device_count() < 2:
        raise NotRunError("needs two GPUs")
    require(*TRAINING_PACKAGES)
    work = fresh(run.out / "two_processes")
    data = data_folder(work / "data", 6, 96)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--no-python", sys.executable, "-c", COUNTING]
    finish(launcher + train_arguments(run, data, work / "run"), run, work / "train.log")
    state = load(work / "run")
    section.facts.update(iterations=state["iteration"], losses=state["losses"])
    aware = (work / "train.log").read_text("utf-8").count("processes: 2")
    section.check("both processes know of each other", aware == 2, f"{aware} of 2")
    section.check("all iterations are done", state["iteration"] == ITERATIONS, f"{state['iteration']} of {ITERATIONS}")
    finite = all(map(math.isfinite, state["losses"])) and all(v.isfinite().all() for v in state["model"].values())
    section.check("losses and weights are finite", finite, f"last loss {state['losses'][-1]:.3f}")


def loader(run: Run, section: Section) -> None:
    """Measure the training data's images per second, and compare with those of the training step."""
    require(*TRAINING_PACKAGES)
    from torch.utils.data import DataLoader

    from segmentation.data import training_samples
    from segmentation.layouts import open_split
    from segmentation.recipe import TrainSettings

    work = fresh(run.out / "loader")
    data = data_folder(work / "data", 4 if run.small else 16, 96 if run.small else 512, ".jpg")
    settings = TrainSettings(data_root=str(data), crop_size=64 if run.small else 512)
    workers = settings.workers if isinstance(settings.workers, int) else min(os.cpu_count() or 1, 8)
    workers = 0 if run.small else workers
    samples = training_samples(open_split("folder", data, "train", settings.ignore_index), settings)
    size, count = (2, 8) if run.small else (16, 60)
    batches = [list(range(i * size, (i + 1) * size)) for i in range(count)]
    loading = DataLoader(samples, batch_sampler=batches, num_workers=workers, pin_memory=run.cuda)
    times, clock = [], time.perf_counter()
    for i, _ in enumerate(loading):
        times.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        if i >= 3 and run.left() < 0:
            section.cut.append(f"the last {count - i - 1} of {count} batches")
            break
    warm = times[2 * workers + 1 :] or times[1:]  # workers fetch their first batches before they are asked
    speed = size / statistics.fmean(warm)
    section.add(images_per_s=speed, workers=workers, cores=os.cpu_count(), crop=settings.crop_size)
    steps = [row for row in run.rows("steps") if row["size"] == settings.crop_size and row["model"] == "segnext"]
    fastest = max((row["images_per_s"] for row in steps if row.get("images_per_s")), default=None)
    section.facts.update(loader_images_per_s=speed, step_images_per_s=fastest)
    if fastest:
        section.facts["starved"] = speed < fastest
