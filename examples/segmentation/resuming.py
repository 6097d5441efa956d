"""The checkpoint of an interrupted run: whether the settings and the data of now fit it."""

from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .recipe import SettingsError, TrainSettings

# settings of a run that a resumed one must have too
MUST_MATCH = (
    *("dataset", "variant", "batch_size", "iterations", "seed", "crop_size", "in_channels", "bands", "range"),
    *("encoder", "decoder_channels", "decoder_rank", "precision", "ema_decay", "freeze_encoder"),
    *("base_scale", "loss", "class_weights"),
)


def changed_settings(
    before: dict[str, Any], settings: TrainSettings, names: Container[str] | None = None, but: str = "now"
) -> list[str]:
    """List settings, of `names` alone if given, whose values are not those before: "lr 0.1, now 0.2"."""
    before, now = asdict(TrainSettings()) | before, asdict(settings)  # an older checkpoint lacks new settings
    considered = [name for name in now if names is None or name in names]
    return [f"{name} {before.get(name)}, {but} {now[name]}" for name in considered if before.get(name) != now[name]]


def read_checkpoint(file: Path, settings: TrainSettings, data: str) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Args:
        file: The checkpoint.
        settings: Those of the run that resumes it.
        data: Description of its training data.

    Raises:
        SettingsError: If the checkpoint belongs to a run with other settings or data.
    """
    if not settings.resume:
        raise SettingsError(f"{file} belongs to another run: choose another --out, or remove it.")
    state = torch.load(file, map_location="cpu", weights_only=True)
    changed = changed_settings(state["settings"], settings, MUST_MATCH, "not")
    if state["data"] != data:
        changed.append(f"{state['data']}, not {data}")
    if changed:
        last = file.parent / "last"
        hint = f" To train further from its weights, add --init_from {last}." if last.is_dir() else ""
        raise SettingsError(f"{file} was written with {'; '.join(changed)}: choose another --out.{hint}")
    return state
