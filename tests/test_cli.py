import subprocess
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from click.testing import CliRunner

from segnext_timm import __version__
from segnext_timm.cli import main


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def checkpoint(tmp_path):
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=8)
    state_dict = {name: v for name, v in model.state_dict().items() if not name.endswith("bases")}
    torch.save(state_dict, tmp_path / "x.pth")
    return tmp_path / "x.pth"


def test_the_command_is_installed():
    command = Path(sys.executable).with_name("segnext-timm")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout


def test_models_are_listed_with_their_published_accuracy():
    done = run("models")
    assert done.exit_code == 0
    lines = [line.split() for line in done.output.splitlines()]
    assert ["mscan_b.in1k", "26.79M", "ImageNet-1k", "83.0"] in lines
    assert ["segnext_b.mmseg_ade20k", "27.64M", "ADE20K", "48.03", "49.68", "16"] in lines
    assert "Apache-2.0" in done.output


def test_convert_says_what_it_found_and_how_to_load_it(checkpoint, tmp_path):
    done = run("convert", checkpoint, tmp_path / "out", "--rank", 4)
    assert done.exit_code == 0
    assert "SegNeXt on test_mscan, 3 classes, 3 input channels, 32 decoder channels, rank 4 (as told)" in done.output
    assert f'smp.from_pretrained("{tmp_path / "out"}")' in done.output
    assert smp.from_pretrained(tmp_path / "out").decoder.hamburger.nmf.rank == 4
    torch.save(timm.create_model("test_mscan").state_dict(), tmp_path / "y.pth")
    done = run("convert", tmp_path / "y.pth", tmp_path / "backbone")
    assert f'timm.create_model("local-dir:{tmp_path / "backbone"}", pretrained=True)' in done.output
    done = run("convert", tmp_path / "out", tmp_path / "mmseg.pth", "--to", "mmseg")
    assert done.output.endswith(f"Wrote {tmp_path / 'mmseg.pth'}.\n")


def test_export_takes_the_size_that_the_model_knows(tmp_path):
    cfg = {"input_size": [3, 64, 96], "label_names": ["a", "b", "c"]}
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, pretrained_cfg=cfg)
    model.save_pretrained(tmp_path / "model")
    done = run("export", tmp_path / "model", tmp_path / "model.pt2", "--argmax")
    assert done.exit_code == 0, done.output
    assert "Exporting for images (1, 3, 64, 96) ..." in done.output
    assert f"Wrote {tmp_path / 'model.pt2'}" in done.output
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(images), model.eval().predict_labels(images))


def test_mistakes_end_in_one_line(checkpoint, tmp_path):
    (tmp_path / "page.pth").write_text("<html>", encoding="utf-8")
    for arguments, message in (
        (("convert", tmp_path / "none.pth", tmp_path / "out"), "none.pth: no such file."),
        (("convert", tmp_path / "page.pth", tmp_path / "out"), "page.pth: a web page, not a checkpoint"),
        (("convert", checkpoint, tmp_path), "exists: choose another name, or allow to replace it (--force)"),
        (("convert", checkpoint, tmp_path / "out", "--rank", "0"), "0 is not in the range x>=1"),
        (("push", tmp_path / "none", "user/repo"), "no such folder"),
        (("export", tmp_path / "none", tmp_path / "x.onnx"), "no such folder, no name on the Hub"),
        (("export", tmp_path / "none", tmp_path / "x.onnx", "--size", "16", "16"), "16 is not in the range x>=32"),
    ):
        done = run(*arguments)
        assert done.exit_code != 0
        assert isinstance(done.exception, SystemExit)
        assert message in done.output.splitlines()[-1], done.output
    assert not (tmp_path / "out").exists()
    assert isinstance(run("--traceback", "convert", tmp_path / "none.pth", tmp_path / "out").exception, OSError)
