import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import measurements
import pytest
import torch
import visit
from measurements import Visit, read
from visit_page import NO_TIME, page


def faulty(visit):
    visit.measure("works", lambda visit: {"ms": 1.0})
    visit.measure("fails", lambda visit: 1 / 0)
    visit.measure("kills", lambda visit: os.kill(os.getpid(), signal.SIGKILL))
    visit.measure("hangs", lambda visit: time.sleep(60))
    visit.measure("never begins", lambda visit: {})


def test_what_kills_its_process_or_hangs_costs_its_own_result_only(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "faulty", faulty, raising=False)
    monkeypatch.setattr(measurements, "sound", lambda visit: visit.measure("works", lambda visit: {}), raising=False)
    seconds = Visit(torch.device("cpu"), True, tmp_path / "log.jsonl", end=time.monotonic() + 3)
    visit.run(seconds, ["faulty", "sound"])
    assert {key: row.get("error") for key, row in read(seconds.log).items()} == {
        ("sound", "works"): None,
        ("faulty", "works"): None,
        ("faulty", "fails"): "ZeroDivisionError: division by zero",
        ("faulty", "kills"): "the process ended with -9",
        ("faulty", "hangs"): "not done in time",
    }


def test_a_page_says_which_goals_are_reached_and_what_the_rules_decide():
    rows = [
        {"part": "steps", "what": "t, all", "ms": 50.0, "MB": 4000.0},
        {"part": "steps", "what": "t, plain", "ms": 130.0, "MB": 12000.0},
        {"part": "pieces", "what": "strips of t, stage 1, Triton", "ms": 1.0},
        {"part": "pieces", "what": "strips of t, stage 1, NCHW", "ms": 4.0},
        {"part": "pieces", "what": "strips of b, stage 1, NCHW", "error": "RuntimeError: a | b"},
        {"part": "profile", "what": "t, all", "ms": 40.0, "kernels": [["a kernel", 2.5, 3]]},
        {"part": "profile", "what": "t, 1", "ms": 36.0},
        {"part": "tests", "what": "pytest", "holds": False},
    ]
    text = page("card-2026-01-01-abc", ["tests", "steps", "profile", "compiled"], rows)
    for line in (
        "| step of T, ms | ≤ 45 | 50 | not reached |",
        "| step of T, times as fast as plain torch | ≥ 2.5 | 2.6 | reached |",
        "| step of B, ms | ≤ 90 |  | not measured |",
        "| Triton's strips stay: time over NCHW, all stages | ≤ 0.5 |  | not measured |",
        "| a CUDA graph is needed: step of 1 image / kernels of 16 | ≥ 0.8 | 0.9 | yes |",
        "- tests, pytest: does not hold",
        "- pieces, strips of b, stage 1, NCHW: RuntimeError: a | b",
        "| a kernel | 2.5 | 3 |",
        "## Compiled\n\nNot run.",
    ):
        assert line in text


@pytest.mark.slow
def test_processes_can_use_cuda_since_the_first_one_has_not():
    code = "import torch, visit; p = visit.start(torch._C._cuda_isInBadFork); p.join(); raise SystemExit(p.exitcode)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(visit.__file__).parent, check=True)


@pytest.mark.slow
def test_a_dry_run_that_is_killed_continues_and_measures_all_parts(tmp_path):
    command = [sys.executable, visit.__file__, "--device", "cpu", "--small", "--commit", "abc", "--out", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        next(line for line in first.stdout if "steps" in line)
        first.kill()
    (log,) = tmp_path.glob("cpu-small-????-??-??-abc.jsonl")
    before = log.read_text(encoding="utf-8")
    assert "## Steps\n\nNot run." in log.with_suffix(".md").read_text(encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True)
    after = log.read_text(encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert after.startswith(before)
    rows = read(log)
    assert len(rows) == len(after.splitlines())  # each was measured once
    assert {part for part, _ in rows} == visit.PARTS.keys()
    failed = [row for row in rows.values() if "error" in row or row.get("holds") is False or row.get("note") == NO_TIME]
    assert not failed
    assert all(f"| {what} |" in log.with_suffix(".md").read_text(encoding="utf-8") for _, what in rows)
