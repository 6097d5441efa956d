import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

import quickstart
import terminal
from segmentation import scenes
from segmentation.recipe import DataError
from segnext_timm import predict

SCRIPT = Path(quickstart.__file__)


@pytest.fixture
def folder(tmp_path):
    """A data folder of eight small scenes, four of them held out."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(4):
            image, labels = scenes.draw(len(split), index, size=64)
            Image.fromarray(image).save(root / "images" / split / f"{index}.jpg")
            Image.fromarray(labels).save(root / "labels" / split / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(scenes.CLASSES))
    return root


def command(root, out, *arguments):
    options = ["--data", root, "--out", out, "--encoder", "tu-test_mscan", "--crop-size", "64", "--batch-size", "2"]
    return [sys.executable, str(SCRIPT), *map(str, options), *map(str, arguments)]


def run(root, *arguments):
    return subprocess.run(command(root, root.parent / "out", *arguments), capture_output=True, text=True)


def test_scenes_are_the_same_for_the_same_seed_and_hold_all_classes():
    image, labels = scenes.draw(0, 3)
    again, _ = scenes.draw(0, 3)
    other, _ = scenes.draw(1, 3)
    assert image.shape == (128, 128, 3)
    assert labels.shape == (128, 128)
    assert np.array_equal(image, again)
    assert not np.array_equal(image, other)
    drawn = {label for index in range(8) for label in np.unique(scenes.draw(0, index)[1])}
    assert drawn == set(range(len(scenes.CLASSES)))


def test_a_run_leaves_a_model_that_loads_and_two_pictures(folder, monkeypatch, capsys):
    out = folder.parent / "out"
    monkeypatch.setattr(sys, "argv", command(folder, out, "--steps", 3)[1:])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    shown = capsys.readouterr().out
    assert "the predictions are equal" in shown
    assert re.search(r"mIoU 0\.\d+; always predicting the most common class: 0\.\d+", shown)
    names = ["README.md", "config.json", "model.safetensors", "predictions.png", "training.png"]
    assert sorted(f.name for f in out.iterdir()) == names
    assert smp.from_pretrained(out)(torch.rand(1, 3, 64, 64)).shape == (1, 7, 64, 64)


@pytest.mark.slow
def test_ctrl_c_keeps_the_model_so_far(folder):
    out = folder.parent / "out"
    process, shown = terminal.start(
        command(folder, out, "--steps", 100_000),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )
    while not re.search(rb"train: .* ([3-9]|[1-9]\d+)/100000", shown):
        assert process.poll() is None, shown
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert "keeping the model so far" in stdout
    assert (out / "model.safetensors").is_file()
    assert b"Traceback" not in shown


def break_label(root, values):
    labels = np.zeros((64, 64), np.uint8)
    labels[0, : len(values)] = values
    Image.fromarray(labels).save(root / "labels" / "train" / "2.png")


def make_binary(root):
    (root / "classes.txt").write_text("background\nperson\n")
    for file in (root / "labels").rglob("*.png"):
        Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(file)


MISTAKES = {
    "binary masks": (make_binary, r"hold the values 0 and 255 only.*'person' never occurs\..*'255 person', one per"),
    "label out of range": (
        lambda root: break_label(root, [11, 40]),
        r"labels/train/2.png holds the labels 11, 40, but there are 7 classes \(0 to 6\).*--ignore_index 11",
    ),
    "no label": (lambda root: (root / "labels/train/1.png").unlink(), r"1 of 4 images have no labels: add .*1\.png"),
    "no classes": (lambda root: (root / "classes.txt").unlink(), r"classes\.txt does not exist"),
    "no folder": (lambda root: (root / "images").rename(root / "pictures"), r"images/train does not exist"),
    "empty split": (lambda root: [f.unlink() for f in (root / "images/val").iterdir()], r"images/val holds no images"),
    "broken image": (
        lambda root: (root / "images/train/0.jpg").write_text("not an image"),
        r"images/train/0.jpg cannot be read as an image",
    ),
    "size mismatch": (
        lambda root: Image.new("L", (60, 64)).save(root / "labels/train/0.png"),
        r"0.png has 60×64 pixels .* its image 0.jpg 64×64",
    ),
    "color labels": (
        lambda root: Image.new("RGB", (64, 64), "red").save(root / "labels/train/0.png"),
        r"is a color image",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_data_gets_one_line_that_names_the_file(folder, mistake, capsys):
    make, message = MISTAKES[mistake]
    make(folder)
    with pytest.raises(DataError, match=message):
        quickstart.main(["--data", str(folder), "--out", str(folder.parent / "out"), "--steps", "1"])
    assert not (folder.parent / "out").exists()


@pytest.mark.slow
def test_errors_are_printed_without_a_traceback(folder):
    break_label(folder, [9])
    result = run(folder)
    assert result.returncode == 1
    message = result.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert message.startswith("quickstart: ")
    assert "Traceback" not in result.stderr
    result = run(folder, "--encoder", "tu-mscan_x", "--ignore-index", 9)
    assert "Unknown encoder 'tu-mscan_x'. Did you mean" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.timed
@pytest.mark.slow
def test_the_main_job_reaches_its_accuracy_in_minutes(tmp_path):
    result = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    names = (*scenes.CLASSES, "mean")
    iou = {name: float(re.search(rf"^{name} +(\d+\.\d+)", result.stdout, re.MULTILINE)[1]) for name in names}
    assert min(iou.values()) >= 50
    assert iou["mean"] >= 80
    assert int(re.search(r"Done in (\d+) s", result.stdout)[1]) < 300

    # windows as large as the training images see nearly what the whole image shows
    model = smp.from_pretrained(tmp_path / "runs" / "quickstart").eval()
    agreement = []
    for index in range(4):
        image = scenes.draw(1, index, 256)[0]
        agreement.append((predict(model, image, mode="slide") == predict(model, image, mode="whole")).mean())
    assert np.mean(agreement) > 0.9

    following = subprocess.run(shlex.split(result.stdout.splitlines()[-1]), cwd=tmp_path, capture_output=True)
    assert following.returncode == 0, following.stderr
    assert len(list((tmp_path / "predictions").glob("*_overlay.jpg"))) == 8
