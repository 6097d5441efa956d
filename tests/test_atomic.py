"""Files and folders that appear when they are complete: their modes."""

import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

from segnext_timm._atomic import fill_when_complete, replace_when_complete
from segnext_timm.cli import main


@pytest.fixture
def folder(tmp_path):
    """A segmenter's folder."""
    cfg = {"mean": [0.5] * 3, "std": [0.25] * 3}
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, pretrained_cfg=cfg)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def checkpoint(tmp_path):
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=8)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    return tmp_path / "x.pth"


@contextmanager
def new_umask(umask):
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


MODES = [
    (0o077, 0o600, 0o700),
    pytest.param(0o022, 0o644, 0o755, marks=pytest.mark.slow),
    pytest.param(0o002, 0o664, 0o775, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), MODES)
def test_results_have_the_modes_that_the_users_umask_gives(folder, checkpoint, tmp_path, umask, file_mode, folder_mode):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "results"
    predict = [folder, tmp_path / "a.png", "-o", out / "labels", "--probabilities", "--areas", "--device", "cpu"]
    lines = [
        ["predict", *predict],
        ["convert", checkpoint, out / "model"],
        ["export", folder, out / "model.pt2", "--size", "32"],
    ]
    with new_umask(umask):
        for line in lines:
            main(list(map(str, line)), standalone_mode=False)
    modes = {path.relative_to(out).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*")}
    folders = {"labels", "model"}
    files = {"labels/a.png", "labels/a_overlay.jpg", "labels/a_probabilities.npy", "labels/areas.json"}
    files |= {f"model/{name}" for name in ("model.safetensors", "config.json", "README.md")} | {"model.pt2"}
    assert modes == dict.fromkeys(folders, folder_mode) | dict.fromkeys(files, file_mode)


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
@pytest.mark.parametrize("writer", [fill_when_complete, replace_when_complete])
def test_what_a_library_writes_for_the_owner_only_gets_the_usual_modes(tmp_path, writer, umask):
    with new_umask(umask), writer(tmp_path / "out") as new:
        new.mkdir(exist_ok=True)
        inner = Path(tempfile.mkdtemp(dir=new)).rename(new / "inner")
        for folder in (new, inner):
            os.close(os.open(folder / "file", os.O_CREAT, 0o600))
    modes = {path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    folders, files = ("out", "out/inner"), ("out/file", "out/inner/file")
    assert modes == dict.fromkeys(folders, 0o777 & ~umask) | dict.fromkeys(files, 0o666 & ~umask)
