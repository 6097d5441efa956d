"""The checkpoint of an interrupted run: whether the settings and the data of now fit it."""

from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .recipe import SettingsError, TrainSettings
from .stepping import lr_at

# settings of a run that a resumed one must have too; of others, such as those of the augmentation, it uses its own
MUST_MATCH = (
    *("dataset", "variant", "batch_size", "seed", "crop_size", "in_channels", "bands", "range"),
    *("encoder", "decoder_channels", "decoder_rank", "precision", "ema_decay", "freeze_encoder"),
    *("base_scale", "loss", "class_weights"),
)


def changed_settings(
    before: dict[str, Any], settings: TrainSettings, names: Container[str] | None = None, but: str = "now"
) -> list[str]:
    """List settings, of `names` alone if given, whose values are not those before: "lr 0.1, now 0.2"."""
    before, now = asdict(TrainSettings()) | before, asdict(settings)  # an older checkpoint lacks new settings
    considered = [name for name in now if names is None or name in names]
    return [f"{name} {before[name]}, {but} {now[name]}" for name in considered if before[name] != now[name]]


def changed_rate(state: dict[str, Any], settings: TrainSettings) -> str | None:
    """Say what the learning rate does where a run resumes with another number of iterations."""
    before, group = state["settings"]["iterations"], state["optimizer"]["param_groups"][0]
    if before == settings.iterations:
        return None
    rates = f"{group['lr'] / group['lr_factor']:.2g} to {lr_at(state['iteration'], settings):.2g}"
    return f"The schedule ends at iteration {settings.iterations}, not {before}: the learning rate goes from {rates}."


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer; what settings and device of now decide stays as it is.

    Args:
        optimizer: Its groups have a `lr_factor`.
        state: Of an optimizer of the same parameters, perhaps on another device.
    """
    groups = [
        {**before, **{name: now[name] for name in ("lr_factor", "weight_decay", "fused")}}
        for before, now in zip(state["param_groups"], optimizer.param_groups)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def load_checkpoint(file: Path, **options: Any) -> dict[str, Any]:
    """Load the checkpoint of a run.

    Args:
        file: The checkpoint.
        options: Others of `torch.load`.

    Raises:
        SettingsError: If it is damaged, or is something else.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, **options)
        is_whole = "settings" in state
    except PermissionError:
        raise
    except Exception:  # torch's readers of archives and pickles raise anything on damaged files
        is_whole = False
    if is_whole:
        return state
    last = file.parent / "last"
    hint = f", or train further from its weights with --init_from {last} and another --out" if last.is_dir() else ""
    raise SettingsError(f"{file} is damaged, or no checkpoint of train.py: remove it to start anew{hint}.")


def read_checkpoint(file: Path, settings: TrainSettings, data: str) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Args:
        file: The checkpoint.
        settings: Those of the run that resumes it.
        data: Description of its training data.

    Raises:
        SettingsError: If the checkpoint is damaged, of a run with other settings or data, or further than the settings.
    """
    if not settings.resume:
        raise SettingsError(f"{file} belongs to another run: choose another --out, or remove it.")
    state = load_checkpoint(file)
    changed = changed_settings(state["settings"], settings, MUST_MATCH, "not")
    if state["data"] != data:
        changed.append(f"{state['data']}, not {data}")
    if changed:
        last = file.parent / "last"
        hint = f" To train further from its weights, add --init_from {last}." if last.is_dir() else ""
        raise SettingsError(f"{file} was written with {'; '.join(changed)}: choose another --out.{hint}")
    reached, planned = state["iteration"], state["settings"]["iterations"]
    if settings.iterations <= reached and settings.iterations < planned:
        raise SettingsError(f"--iterations {settings.iterations}: the run is at {reached} of {planned}: give more.")
    return state
