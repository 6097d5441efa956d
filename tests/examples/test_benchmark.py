import json

import numpy as np
import pytest
import torch
from PIL import Image

import benchmark
from benchmarking import cases, ceilings, peers, runtimes
from segmentation.recipe import UserError

SEGNEXT = "segnext:tu-test_mscan"  # narrow


@pytest.fixture(autouse=True)
def _quick_ceilings(monkeypatch):
    monkeypatch.setattr(ceilings, "CEILING_SIDE", {"cpu": 256, "cuda": 256})


def run(tmp_path, *arguments):
    benchmark.main([*map(str, arguments), "--out", str(tmp_path / "out"), "--classes", "5", "--device", "cpu"])
    return json.loads((tmp_path / "out" / "benchmark.json").read_text())["results"]


@pytest.mark.slow
def test_growth_over_sizes_and_batches(tmp_path, capsys):
    contenders = (f"{SEGNEXT}@fused", "unet:tu-test_mscan@bf16", "test_mscan@eager")
    sizes = ("--sizes", "64", "64x96", "--batches", "1", "2", "--rounds", "2", "--warmup", "0", "--no-memory")
    results = run(tmp_path, "--contenders", *contenders, "--tasks", "logits", *sizes)
    assert [r["contender"] for r in results[:3]] == list(contenders)
    assert len(results) == 12
    assert all(len(r["times_ms"]) == 2 and r["gflops"] > 0 and r["gigabytes"] > 0 for r in results)
    assert results[6]["gflops"] == pytest.approx(1.5 * results[0]["gflops"], rel=0.1)
    said = capsys.readouterr().out
    assert said.count("| `unet:tu-test_mscan@bf16` |") == 4
    assert ", features " in said.splitlines()[0]
    assert Image.open(tmp_path / "out" / "benchmark.png").width > 300


def test_what_cannot_be_run_is_left_out_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    ways = ("openvino", "memory", "graph", "eager")
    contenders = ("mmseg_t@eager", *(f"{SEGNEXT}@{way}" for way in ways))
    results = run(
        tmp_path, "--contenders", *contenders, "--sizes", 64, "--tasks", "labels", "--rounds", 1, "--no-memory"
    )
    assert [r["contender"] for r in results] == [f"{SEGNEXT}@eager"]
    said = capsys.readouterr().out
    assert "mmseg_t@eager is left out: mmseg not installed." in said
    assert "openvino is left out: openvino not installed." in said
    assert "memory is left out: 'memory' applies to training only." in said
    assert "graph is left out: CUDA graphs need CUDA." in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--contenders", "segnext_t"), r"'segnext_t' is not of the form MODEL@WAY"),
        (("--sizes", "5k"), "size '5k' is not a side"),
        (("--contenders", "segnext_t@quick"), "unknown way 'quick'"),
        (("--contenders", "mscan_x@eager"), "'mscan_x' is not a timm model"),
    ],
)
def test_an_invalid_size_or_contender_is_named(arguments, message, tmp_path):
    with pytest.raises((UserError, ValueError), match=message):
        run(tmp_path, *arguments, "--rounds", 1, "--no-memory")


@pytest.mark.slow
@pytest.mark.parametrize(("way", "tolerance"), [("onnx:fp16", 1e-2), ("openvino", 1e-3), ("onnx:int8", 0.2)])
def test_every_runtime_computes_the_model_s_logits(way, tolerance, tmp_path):
    case = cases.Case(f"{SEGNEXT}@{way}", "logits", 64, 96, 1, 5, "cpu", 1, str(tmp_path))
    reason = runtimes.missing(case)
    if reason:
        pytest.skip(reason)
    logits = np.asarray(runtimes.prepare(case)()).reshape(1, 5, 64, 96)
    with torch.no_grad():
        expected = peers.build(case.model, 5)(case.images()).numpy()
    assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.slow
def test_labels_of_graphs_that_do_not_apply_are_left_out(tmp_path, capsys):
    contenders = [f"{SEGNEXT}@{way}" for way in ("ncnn", "openvino:quick", "eager")]
    results = run(
        tmp_path, "--contenders", *contenders, "--sizes", 64, "--tasks", "labels", "--rounds", 1, "--no-memory"
    )
    assert [r["contender"] for r in results] == contenders[2:]
    said = capsys.readouterr().out
    assert "ncnn is left out: ncnn" in said  # not installed, or no argmax
    assert "openvino:quick is left out: " in said


@pytest.mark.slow
def test_training_steps_with_their_memory(tmp_path):
    contenders = (f"{SEGNEXT}@eager", f"{SEGNEXT}@memory")
    eager, memory = run(tmp_path, "--contenders", *contenders, "--tasks", "train", "--sizes", 256, "--rounds", 2)
    assert 0 < memory["tensors_mb"] < eager["tensors_mb"]
    assert memory["process_mb"] > 0
