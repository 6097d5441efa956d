import json
import re
import subprocess
import sys
import time
from pathlib import Path

import checks
import kernels
import processes
import prove
import pytest
import report
import steps
import torch
from harness import NotRunError, Run, Section
from plain_segnext import plain_copy

from random_checkpoints import random_state_dict, segmenter_shapes
from segnext_timm import create_segmenter
from segnext_timm.checkpoints.dialects import segmenter_to_native

SCRIPT = Path(prove.__file__)
SETTINGS = {"device": "cpu", "small": True, "minutes": 1, "date": "today"}


def a_run(out, seconds=60.0):
    return Run(torch.device("cpu"), True, out, time.monotonic() + seconds)


def spec(name, call, **options):
    return prove.Spec(name, "", 1, call=call, needs=options.pop("needs", ()), **options)


def results(out):
    content = json.loads((out / "prove.json").read_text(encoding="utf-8"))
    return {section["name"]: section for section in content["sections"]}


def test_the_plain_model_computes_what_segnext_does():
    model = create_segmenter("segnext_t", classes=5).eval()
    state = segmenter_to_native(random_state_dict(segmenter_shapes("t", 5)))
    model.load_state_dict(state, strict=False)
    plain = plain_copy(model)
    plain.decode_head.hamburger.bases = model.decoder.hamburger.nmf.bases
    images = torch.randn(2, 3, 72, 104, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model(images), plain(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_plain_model_draws_bases_at_every_call_and_trains():
    plain = plain_copy(create_segmenter("segnext_t", classes=5)).eval()
    images, labels = torch.randn(1, 3, 64, 64), torch.randint(0, 5, (1, 64, 64))
    with torch.no_grad():
        assert not torch.equal(plain(images), plain(images))
    plain.train().loss(images, labels).backward()
    assert all(p.grad is not None for p in plain.parameters())


def test_a_section_that_fails_is_recorded_and_the_next_goes_on(tmp_path):
    def fails(run, section):
        section.add(ms=1.0)
        raise ValueError("the seventh kernel is missing")

    run = a_run(tmp_path)
    specs = [
        spec("agreement", fails, is_check=True),
        spec("steps", lambda run, section: section.check("a sum", True)),
        spec("training", lambda run, section: None, needs=("no_such_package",)),
    ]
    prove.run_sections(specs, run, SETTINGS)
    found = results(tmp_path)
    assert found["agreement"]["status"] == "failed"
    assert found["agreement"]["rows"] == [{"ms": 1.0}]
    assert found["agreement"]["error"][-1] == "ValueError: the seventh kernel is missing"
    assert found["steps"]["status"] == "passed"
    assert found["training"]["not_run"] == ["everything: no_such_package is not installed"]
    page = (tmp_path / "prove.md").read_text(encoding="utf-8")
    assert "the seventh kernel is missing" in page
    assert "no_such_package is not installed" in page
    assert prove.exit_status(run) == 1


def test_measurements_that_fail_leave_the_exit_status_zero(tmp_path):
    def fails(run, section):
        raise RuntimeError("no")

    run = a_run(tmp_path)
    prove.run_sections([spec("steps", fails)], run, SETTINGS)
    assert run.sections["steps"].status == "failed"
    assert prove.exit_status(run) == 0


def test_a_section_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(prove, "GRACE", 0)
    run = a_run(tmp_path, seconds=0.3)
    specs = [spec("steps", lambda run, section: time.sleep(60)), spec("loader", lambda run, section: None)]
    prove.run_sections(specs, run, SETTINGS)
    assert time.monotonic() - run.end < 20
    assert run.sections["steps"].status == "stopped"
    assert run.sections["steps"].cut == ["the rest: the section did not end in time"]


def test_ctrl_c_keeps_the_results_so_far(tmp_path):
    def interrupted(run, section):
        section.add(ms=2.0)
        raise KeyboardInterrupt

    specs = [spec("depthwise", interrupted), spec("loader", lambda run, section: None)]
    with pytest.raises(KeyboardInterrupt):
        prove.run_sections(specs, a_run(tmp_path), SETTINGS)
    assert results(tmp_path)["depthwise"]["rows"] == [{"ms": 2.0}]
    assert "loader" not in results(tmp_path)


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path):
    run = a_run(tmp_path)
    specs = [spec("steps", lambda run, section: section.add(ms=1.0)), spec("loader", lambda run, section: None)]
    prove.run_sections(specs, run, SETTINGS)  # rows of steps without a model
    assert list(results(tmp_path)) == ["steps", "loader"]
    assert "prove.json has the results" in (tmp_path / "prove.md").read_text(encoding="utf-8")


def test_only_some_sections_keep_the_results_of_the_others(tmp_path):
    prove.run_sections([spec("loader", lambda run, section: section.add(ms=3.0))], a_run(tmp_path), SETTINGS)
    status = prove.main(["--device", "cpu", "--small", "--out", str(tmp_path), "--only", "machine"])
    assert status == 0
    assert list(results(tmp_path)) == ["machine", "loader"]
    assert results(tmp_path)["machine"]["facts"]["matmul_gflops"]["fp32"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--device", "tpu"], "unknown device 'tpu': choose cuda or cpu"), (["--minutes", "0"], "must be positive")],
)
def test_arguments_that_cannot_be_used_give_one_line(arguments, message):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_outputs_that_differ_do_not_agree():
    expected = {
        "logits": torch.randn(1, 3, 8, 8),
        "loss": torch.ones(()),
        "gradients": torch.ones(100),
        "labels": torch.zeros(1, 64, 64),
    }
    expected["labels"] = checks.full_size(expected["logits"], (64, 64)).argmax(1).float()
    for key, change in (
        ("logits", lambda x: x * 1.1),
        ("loss", lambda x: x * float("nan")),
        ("gradients", lambda x: x.cumsum(0)),
        ("labels", lambda x: 2 - x),
        ("labels", None),
    ):
        section = Section("agreement")
        found = {**expected, key: change(expected[key])} if change else expected
        checks.compare(section, key, found, expected, (1e-3, 1e-3))
        assert section.checks[0]["holds"] == (change is None)


def test_the_report_of_pytest_is_read(tmp_path):
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="one"/>'
        '<testcase classname="a" name="two"><failure message="assert 1 == 2">a.py:3</failure></testcase>'
        '<testcase classname="a" name="three"><skipped message="needs two GPUs"/></testcase>'
        '<testcase classname="" name="tests.test_train"><error message="collection failure">'
        "E   ModuleNotFoundError: No module named 'tyro'</error></testcase></testsuite></testsuites>",
        encoding="utf-8",
    )
    section = Section("tests", is_check=True)
    checks.read_report(tmp_path / "report.xml", section)
    assert section.facts == {"passed": 1, "failed": 1, "skipped": 1}
    assert section.not_run == ["test file tests.test_train: tyro is not installed"]
    assert [check["name"] for check in section.checks if not check["holds"]] == ["a.two", "no CUDA test fails"]


def test_checkpoints_are_compared_in_every_bit():
    one = {"losses": [1.0, 0.5], "model": {"a": torch.ones(3)}, "average": None}
    assert processes.difference(one, one) == 0
    other = {**one, "model": {"a": torch.ones(3).nextafter(torch.tensor(2.0))}}
    assert 0 < processes.difference(one, other) < 1e-6


def test_goals_and_bounds():
    machine = {"matmul_gflops": {"bf16": 1e5}, "copy_gb_per_s": 1000.0}
    common = {"variant": "t", "batch": 16, "size": 512, "precision": "bf16"}
    rows = [
        {**common, "model": "segnext", "layout": "NCHW", "mode": "eager", "ms": 40.0, "peak_mb": 400.0},
        {**common, "model": "plain", "layout": "NCHW", "mode": "eager", "ms": 80.0, "peak_mb": 1000.0},
        {**common, "model": "segnext", "layout": "NCHW", "mode": "blocks", "ms": 35.0, "peak_mb": 300.0},
        {**common, "model": "segnext", "layout": "NCHW", "mode": "graph", "error": "out of memory"},
    ]
    rows[0] |= {"gflops": 1000.0, "gigabytes": 30.0}
    assert report.bounds(rows[0], machine) == (10.0, 30.0)
    assert report.with_counts(rows[2], rows)["gigabytes"] == 30.0
    goals = {goal: (measured, met) for _, goal, measured, met in report.goal_rows(rows, machine)}
    assert goals == {
        "step 1.5× as fast as the reference's, eager": ("2.00×", True),
        "step 2.5× as fast, compiled": ("2.29×", False),
        "half the reference's memory": ("0.40×", True),
        "60% of the bound, eager": ("75%", True),
    }


def test_the_depthwise_convolutions_are_those_of_the_model():
    model = create_segmenter("segnext_t", classes=5)
    found = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.groups == m.in_channels > 1]
    listed = list(kernels.depthwise_of("t", 512))
    shapes = sorted((m.in_channels, m.kernel_size) for m in found)
    assert shapes == sorted((case.channels, case.kernel) for case in listed for _ in range(case.count))
    assert [case.side for case in listed[::8]] == [128, 64, 32, 16]


def test_the_arithmetic_of_depthwise_convolutions_is_counted_once():
    conv, x = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(2, 8, 4, 4, requires_grad=True)
    found = steps.counted(lambda: conv(x).sum().backward())
    assert found["gflops"] == pytest.approx(3 * 2 * 9 * x.numel() / 1e9)


def test_the_most_important_steps_come_first():
    first = steps.plan(small=False)[:3]
    assert {(step.model, step.mode) for step in first} == {
        ("segnext", "eager"),
        ("plain", "eager"),
        ("segnext", "blocks"),
    }
    assert all((step.batch, step.size, step.precision) == (16, 512, "bf16") for step in first)


def test_tests_without_a_gpu_are_not_run(tmp_path):
    with pytest.raises(NotRunError, match="needs CUDA"):
        checks.cuda_tests(a_run(tmp_path), Section("tests"))


@pytest.mark.slow
def test_the_dry_run_passes(tmp_path):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--small", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path)
    assert list(found) == [spec.name for spec in prove.SPECS]
    assert found["tests"]["status"] == "not run"
    for name in ("agreement", "training", "resume", "processes"):
        assert found[name]["status"] == "passed", found[name]
    for name in ("machine", "steps", "depthwise", "inference", "loader"):
        assert found[name]["status"] == "measured", found[name]
        assert not any("error" in row for row in found[name]["rows"])
    page = (tmp_path / "prove.md").read_text(encoding="utf-8")
    assert found["machine"]["facts"]["cpu"] in page.splitlines()[0]
    assert "- CUDA tests: not run: everything: needs CUDA" in page
    assert len(page.splitlines()) < 120
    assert not re.search(r"\bnan\b|None", page)
