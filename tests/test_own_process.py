"""What holds in a process of its own, as every user's program is: one program is started for all of these tests."""

import json
import subprocess
import sys

import pytest
import torch

from segnext_timm import NMF2d
from small_models import narrow

PROGRAM = """
import json, sys
import segnext_timm
imported = sorted(sys.modules)
import segmentation_models_pytorch as smp, torch
torch.save(smp.from_pretrained("model")(torch.load("images.pt")).detach(), "logits.pt")
print(json.dumps({"imported": imported, "bases": segnext_timm.NMF2d(16, rank=4).bases.flatten().tolist()}))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """What the program prints and its messages, its model, images and logits."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "segnext-timm.py").write_text(PROGRAM, encoding="utf-8")
    torch.manual_seed(0)
    model, images = narrow().eval(), torch.randn(3, 3, 70, 90)
    model.save_pretrained(folder / "model")
    torch.save(images, folder / "images.pt")
    command = [sys.executable, "-W", "error::UserWarning", "segnext-timm.py", "segnext-timm"]  # not the command itself
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr, model, images, torch.load(folder / "logits.pt")


def test_the_import_registers_every_model_in_other_programs(program):
    assert set(program[0]["imported"]) >= {"timm", "segmentation_models_pytorch", "segnext_timm.models.segnext"}


def test_importing_and_predicting_warn_of_nothing(program):
    assert program[1] == ""


def test_bases_are_equal_in_every_process(program):
    assert program[0]["bases"] == NMF2d(16, rank=4).bases.flatten().tolist()


def test_predictions_are_equal_in_two_processes_alone_or_in_a_batch(program):
    *_, model, images, logits = program
    assert torch.equal(logits, model(images))
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, logits)
    assert torch.equal(alone.argmax(1), logits.argmax(1))
