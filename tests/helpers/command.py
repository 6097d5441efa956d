"""The command `segnext-timm`, in this process."""

import sys
from pathlib import Path

from click.testing import CliRunner

from segnext_timm.cli import main

COMMAND = Path(sys.executable).with_name("segnext-timm")
NARROW = {"encoder_weights": None, "classes": 3, "decoder_channels": 32, "decoder_rank": 4}


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def last_line(done):
    return done.output.splitlines()[-1]
