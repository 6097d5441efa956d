"""publishing/verify.py against published files on loopback: right ones, and every kind of wrong one."""

import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import miniatures
import published_server
from publishing import verify
from publishing.published import draw_picture, get_published, load_model, prediction_digest
from publishing.verify import Verification, main
from random_checkpoints import FILES, backbone_shapes, random_state_dict
from segmentation import evaluation, layouts
from segmentation.recipe import DataError, UserError
from segnext_timm import create_segmenter, predict
from segnext_timm.models.mscan import PUBLISHED_SHA256

MMSEG, JSEG, AUTHORS = "segnext_t.mmseg_ade20k", "segnext_t.jseg_ade20k", "segnext_t.authors_cityscapes"
PADDLE, ISAID, SMALL = "segnext_t.paddleseg_cityscapes", "segnext_t.jseg_isaid", "segnext_s.mmseg_ade20k"
DIGITS = "segnext_b.mmseg_ade20k"  # its file's name ends in digits that do not begin its sha256


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server(cache):
    with published_server.serve() as files:
        yield files


@pytest.fixture
def offer(server, tmp_path, monkeypatch):
    """Serve a published file with random weights; gives its path on the server."""

    def offer(name, content=None, sha256=None):
        if content is None:
            content = published_server.file_of(name, published_server.weights_of(name), tmp_path)
        return published_server.offer(server, name, content, monkeypatch.setitem, sha256)

    return offer


@pytest.fixture
def one_process(monkeypatch):
    """Do without the second process, which takes seconds to start and knows no changed URLs."""
    real = subprocess.run

    def run(command, **kwargs):
        if command[0] != sys.executable:
            return real(command, **kwargs)
        assert command[1] == verify.DIGEST_SCRIPT
        digest = prediction_digest(load_model(get_published(command[2]), Path(command[3])))
        return subprocess.CompletedProcess(command, 0, f"{digest}\n", "")

    monkeypatch.setattr(verify.subprocess, "run", run)


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.slow
def test_predictions_of_two_processes_are_equal(offer, tmp_path, cache):
    offer(MMSEG)
    assert run(MMSEG, "--report", tmp_path / "report.json").exit_code == 0


def test_right_files_of_every_origin_are_verified(offer, server, tmp_path, cache, one_process):
    offer(MMSEG, sha256="right")
    for name in (JSEG, AUTHORS, PADDLE):
        offer(name)
    report = tmp_path / "report.json"
    done = run(MMSEG, JSEG, AUTHORS, PADDLE, "--report", report)
    assert done.exit_code == 0, done.output
    assert "Verified 4 of 4 checkpoints." in done.output
    entries = json.loads(report.read_text())["checkpoints"]
    assert [entry["status"] for entry in entries.values()] == ["verified"] * 4
    assert {entry["tensors"] for entry in entries.values()} == {519}
    assert (entries[MMSEG]["sha256_known"], entries[JSEG]["sha256_known"]) == (True, False)
    assert "no sha256 was published; the report records it" in entries[JSEG]["notes"]

    # the second run downloads nothing, verifies nothing, and says so
    again = run(MMSEG, JSEG, AUTHORS, PADDLE, "--report", report)
    assert again.exit_code == 0
    assert again.output.count("verified before") == 4
    assert set(server.requests.values()) == {1}


def test_each_wrong_file_is_named_and_the_others_are_finished(offer, server, tmp_path, cache, one_process):
    offer(MMSEG)
    flipped = bytearray(published_server.file_of(JSEG, published_server.weights_of(JSEG), tmp_path))
    flipped[len(flipped) // 2] ^= 1
    offer(JSEG, bytes(flipped))
    server.cut.add(offer(AUTHORS))
    offer(ISAID, b"<!DOCTYPE html><html>Please log in</html>")
    offer(SMALL, published_server.file_of(MMSEG, published_server.weights_of(MMSEG), tmp_path))  # a T, not an S
    offer(DIGITS, sha256="0" * 64)
    names = [MMSEG, JSEG, AUTHORS, ISAID, SMALL, DIGITS]
    done = run(*names, "--report", tmp_path / "report.json")
    assert done.exit_code == 1
    assert "Verified 1 of 6 checkpoints." in done.output
    table = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("segnext_")}
    for name, words in (
        (MMSEG, "verified"),
        (JSEG, "its checksum does not match"),
        (AUTHORS, "the download failed"),
        (ISAID, "a web page, not a checkpoint"),
        (SMALL, "weights of mscan_t, not of mscan_s"),
        (DIGITS, "the published file's begins with 0000"),
    ):
        assert words in table[name], table[name]
    assert "the digits 05bd8466 in the file's name do not begin its sha256" in table[MMSEG]
    kept = [file.name for file in cache.iterdir()]
    assert kept == [get_published(MMSEG).file]


def test_a_broken_file_of_the_user_s_is_kept_and_named(offer, tmp_path, cache, one_process):
    offer(MMSEG)
    path = cache / get_published(MMSEG).file
    path.write_bytes(b"not weights")
    (entry,) = verify.verify([MMSEG], tmp_path / "report.json").values()
    assert entry["status"] == "failed"
    assert any(str(path) in note for note in entry["notes"])
    assert path.read_bytes() == b"not weights"


@pytest.mark.slow
def test_an_interrupted_run_continues_without_a_second_download(offer, server, tmp_path, cache, monkeypatch):
    offer(MMSEG), offer(JSEG)
    report = tmp_path / "report.json"
    check = Verification.check_predictions

    def interrupt(self, model, path):
        if self.published.name == JSEG:
            raise KeyboardInterrupt
        self.facts["prediction"] = "0" * 16

    monkeypatch.setattr(Verification, "check_predictions", interrupt)
    done = run(MMSEG, JSEG, "--report", report)
    assert done.exit_code == 130
    assert f"Interrupted. The same command continues {report}." in done.output
    assert list(json.loads(report.read_text())["checkpoints"]) == [MMSEG]
    monkeypatch.setattr(Verification, "check_predictions", check)
    done = run(MMSEG, JSEG, "--report", report)
    assert done.exit_code == 0, done.output
    assert f"{MMSEG}: verified before" in done.output
    assert set(server.requests.values()) == {1}


def test_predictions_that_differ_between_processes_are_a_problem(offer, tmp_path, monkeypatch):
    offer(MMSEG)
    digests = iter(("a" * 16, "b" * 16))
    monkeypatch.setattr(verify, "prediction_digest", lambda model: next(digests))
    monkeypatch.setattr(verify.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, next(digests), ""))
    (entry,) = verify.verify([MMSEG], tmp_path / "report.json").values()
    assert entry["problems"] == [f"two processes give different predictions: {'b' * 16} and {'a' * 16}"]


def city(root):
    miniatures.make("cityscapes", root, [7, 8, 11, 12, 13, 0])
    return root


def test_the_data_set_is_evaluated_as_published_and_resumed(offer, tmp_path, one_process, monkeypatch):
    offer(PADDLE)
    root = city(tmp_path / "city")
    monkeypatch.setattr(verify, "IMAGES_AT_ONCE", 1)
    report = tmp_path / "report.json"
    done = run(PADDLE, "--data", f"cityscapes={root}", "--report", report)
    assert done.exit_code == 1  # random weights do not reach the published result
    (entry,) = json.loads(report.read_text())["checkpoints"].values()
    assert 0 <= entry["miou"] < 30
    assert entry["problems"] == [f"mIoU {entry['miou']}, but 81.04 was published (tolerance 0.1)"]
    assert not list(tmp_path.glob(".report*"))

    # the same number, from a run that was interrupted after the first image
    save = Verification.save

    def interrupt(self, state):
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Verification, "save", interrupt)
    assert run(PADDLE, "--data", f"cityscapes={root}", "--report", report).exit_code == 130
    monkeypatch.setattr(Verification, "save", save)
    evaluated = []
    evaluate = evaluation.evaluate
    monkeypatch.setattr(
        verify, "evaluate", lambda model, split, *rest: evaluated.extend(split.images) or evaluate(model, split, *rest)
    )
    run(PADDLE, "--data", f"cityscapes={root}", "--report", report)
    (resumed,) = json.loads(report.read_text())["checkpoints"].values()
    assert resumed["miou"] == entry["miou"]
    assert len(evaluated) == len(miniatures.SIZES) - 1


@pytest.mark.slow
def test_miou_is_that_of_the_confusion_matrix(offer, tmp_path, one_process, monkeypatch):
    """Labels that equal the model's own predictions give 100."""
    offer(ISAID)
    root = tmp_path / "isaid"
    miniatures.make("isaid", root, [0, 1, 2])
    model = create_segmenter(ISAID, pretrained=True).eval()
    for image in sorted((root / "img_dir" / "val").iterdir()):
        labels = predict(model, image, mode="whole", fit_in=(896, 896))
        target = root / "ann_dir" / "val" / f"{image.stem}_instance_color_RGB.png"
        Image.fromarray(labels).save(target)
    (entry,) = verify.verify(
        [ISAID], tmp_path / "report.json", {"isaid": layouts.open_split("isaid", root, "val")}
    ).values()
    assert entry["miou"] == 100.0


@pytest.mark.reference
@pytest.mark.slow
def test_logits_are_compared_with_mmsegmentation(offer, tmp_path, one_process, monkeypatch):
    offer(PADDLE), offer(MMSEG)
    entries = verify.verify([PADDLE, MMSEG], tmp_path / "report.json")
    assert all(entry["reference_error"] < 1e-5 for entry in entries.values())
    monkeypatch.setattr(verify, "reference_logits", lambda model, images: model(images) + 1)
    (entry,) = verify.verify([MMSEG], tmp_path / "other.json").values()
    assert "its logits differ from mmsegmentation's by" in entry["problems"][0]


def test_the_picture_is_the_same_everywhere():
    picture = draw_picture()
    assert picture.shape == (192, 256, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert hashlib.sha256(picture.tobytes()).hexdigest().startswith("8739e3ebbf1e")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "ade20k"), "'ade20k' is not of the form KEY=DIR"),
        (("--data", "ade=."), "'ade=.' is not of the form KEY=DIR, where KEY is one of ade20k"),
        (("--data", "ade20k=none"), "none is not a folder"),
    ],
)
def test_invalid_arguments_end_before_any_download(arguments, message, cache):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_an_unknown_name_is_an_error_before_any_download(offer, server, tmp_path):
    offer(MMSEG)
    with pytest.raises(ValueError, match=r"Unknown checkpoint 'segnext_x'\. Did you mean"):
        verify.verify([MMSEG, "segnext_x"], tmp_path / "r.json")
    assert not server.requests


def test_a_folder_that_is_not_the_data_set_is_named_before_any_download(offer, server, tmp_path):
    offer(MMSEG)
    done = run(MMSEG, "--data", f"ade20k={tmp_path}", "--report", tmp_path / "r.json")
    assert isinstance(done.exception, DataError)
    assert "validation does not exist: point to the folder of the data set" in str(done.exception)
    assert not server.requests


def test_the_script_ends_with_one_line_on_a_user_s_mistake(tmp_path, monkeypatch, capfd):
    (tmp_path / "r.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["verify.py", MMSEG, "--report", str(tmp_path / "r.json")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(verify.__file__, run_name="__main__")
    assert ended.value.code == f"verify.py: {tmp_path / 'r.json'}: not a report of verify.py. Choose another file."
    assert capfd.readouterr().err == ""


def test_a_report_of_another_kind_is_not_overwritten(tmp_path, cache):
    (tmp_path / "r.json").write_text('{"results": []}')
    with pytest.raises(UserError, match=r"r\.json: not a report of verify\.py"):
        verify.verify([MMSEG], tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text() == '{"results": []}'


def test_backbones_are_verified_too(tmp_path, cache, monkeypatch, one_process):
    weights = random_state_dict(backbone_shapes("t", classifier=True))
    torch.save(weights, cache / FILES["t"])
    for variant in "ts":
        monkeypatch.setitem(PUBLISHED_SHA256, FILES[variant], None)
    names = ["mscan_t.in1k"]
    entries = verify.verify(names, tmp_path / "report.json")
    assert [entry["status"] for entry in entries.values()] == ["verified"], entries
    assert {entry["parameters"] for entry in entries.values()} == {3_903_584}
    torch.save({"state_dict": {}}, cache / FILES["s"])
    (entry,) = verify.verify(["mscan_s.in1k"], tmp_path / "report.json").values()
    assert entry["status"] == "failed"
