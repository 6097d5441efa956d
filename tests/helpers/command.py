"""The command `segnext-timm`, in this process."""

import sys
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from click.testing import CliRunner

from segnext_timm.cli import main

COMMAND = Path(sys.executable).with_name("segnext-timm")
NARROW = {"encoder_weights": None, "classes": 3, "decoder_channels": 32, "decoder_rank": 4}


def save_segmenter(folder):
    """Save a narrow segmenter of three classes, and return its folder."""
    torch.manual_seed(0)  # without near ties
    cfg = {"input_size": [3, 64, 96], "label_names": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.25] * 3}
    smp.SegNeXt("tu-test_mscan", **NARROW, pretrained_cfg=cfg).save_pretrained(folder)
    return folder


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def last_line(done):
    return done.output.splitlines()[-1]
