"""Trainings of seconds: train.py with a narrow model, few iterations and a data folder in miniature."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

import train
from segmentation.recipe import TrainSettings, parse

EXAMPLES = Path(train.__file__).parent
RECIPES = EXAMPLES / "recipes"
NARROW = ("--encoder", "tu-test_mscan", "--decoder_channels", 32, "--decoder_rank", 4, "--init_from", "none")
SHORT = ("--crop_size", 32, "--batch_size", 2, "--iterations", 6, "--warmup", 2, "--workers", 0, "--tracker", "none")
OFTEN = ("--eval_every", 3, "--save_every", 2, "--log_every", 1)
EXACT = ("--deterministic",) if torch.cuda.is_available() else ()


def arguments(recipe: str, *options: object) -> list[str]:
    """Arguments of train.py that train a narrow model for seconds; `options` replace those given before them."""
    return list(map(str, [RECIPES / f"{recipe}.yaml", *NARROW, *SHORT, *OFTEN, *options]))


def run(recipe: str, *options: object) -> None:
    """Train in this process."""
    train.main(arguments(recipe, *options))


def set_up(recipe: str, *options: object) -> train.Trainer:
    """Do what comes before the first iteration of a training, in this process."""
    return train.Trainer(parse(TrainSettings, arguments(recipe, *options), ""))


@contextmanager
def power_failure() -> Iterator[None]:
    """Let the training in the block, of six iterations, end by an error as its last evaluation begins."""
    validate = train.Trainer.validate

    def fail_at_the_end(trainer: train.Trainer) -> None:
        if trainer.iteration == 6:
            raise RuntimeError("power failure")
        validate(trainer)

    with (
        mock.patch.object(train.Trainer, "validate", fail_at_the_end),
        pytest.raises(RuntimeError, match="power failure"),
    ):
        yield


def command(recipe: str, *options: object) -> list[str]:
    """The command that trains in a process of its own."""
    return [sys.executable, str(EXAMPLES / "train.py"), *arguments(recipe, *options)]


def narrow_settings(**settings: object) -> TrainSettings:
    """Settings of the narrow model, from random weights unless `settings` say otherwise."""
    small = {"encoder": "tu-test_mscan", "decoder_channels": 32, "decoder_rank": 4, "init_from": "none"}
    return TrainSettings(**small | settings)


def checkpoint(out: Path) -> dict:
    """The checkpoint of the run in the folder `out`."""
    return torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
