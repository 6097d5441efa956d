"""Facts about a model's weights, as `pretrained_cfg` keeps them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..errors import OptionError


def plain_values(value: Any) -> Any:
    """Convert arrays, tensors and their scalars, also inside containers, to lists and numbers, as JSON keeps them."""
    if isinstance(value, Mapping):
        return {key: plain_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic | torch.Tensor) else value


def _numbers(values: Any) -> np.ndarray | None:
    """Convert a list of finite numbers, or of lists of these, to an array; None for anything else."""
    if not isinstance(values, list) or not {type(value) for value in np.array(values, object).flat} <= {int, float}:
        return None
    array = np.array(values)
    return array if array.dtype.kind in "if" and np.isfinite(array).all() else None


def check_facts(cfg: Any, classes: int, channels: int) -> dict[str, str]:
    """Describe the lists in a `pretrained_cfg` that are not of the model's number of classes or channels, by name.

    Raises:
        OptionError: If an entry that predictions need has another form. None and empty lists state nothing.
    """
    if not isinstance(cfg, Mapping):
        raise OptionError(f"pretrained_cfg is facts by their names, got {cfg!r}.")
    stated = {name: value for name, value in cfg.items() if value not in (None, [])}
    if not isinstance(names := stated.get("label_names", []), list | Mapping):
        raise OptionError(f'pretrained_cfg["label_names"] is a list of one name for each class, got {names!r}.')

    def sizes(x: np.ndarray, *shape: int) -> bool:
        return x.shape == shape and x.dtype.kind == "i" and x.min() > 0

    bands = f"names the {channels} bands of a file that the model takes, from 1, such as {[*range(1, channels + 1)]}"
    pairs = f"is [low, high], or such a pair for each of the {channels} bands"
    sides = "is the long and the short side in pixels, such as [2048, 512], or None, for images of their own size"
    forms: dict[str, tuple[str, Callable[[np.ndarray], bool]]] = {
        "palette": ("is [red, green, blue] by class", lambda x: x.shape[1:] == (3,) and set(x.flat) <= {*range(256)}),
        "mean": ("is a list of one number for each channel", lambda x: x.ndim == 1),
        "std": ("is a list of one positive number for each channel", lambda x: x.ndim == 1 and x.min() > 0),
        "input_size": ("is channels, height and width", lambda x: sizes(x, 3)),
        "range": (pairs, lambda x: x.shape in ((2,), (channels, 2)) and all(x[..., 0].ravel() < x[..., 1].ravel())),
        "bands": (bands, lambda x: sizes(x, channels) or (channels == 3 and sizes(x, 1))),
        "fit_in": (sides, lambda x: sizes(x, 2)),
    }
    for name, (form, fits) in forms.items():
        if name in stated and ((array := _numbers(stated[name])) is None or not fits(array)):
            raise OptionError(f'pretrained_cfg["{name}"] {form}, got {stated[name]!r}.')
    lists = dict.fromkeys(("label_names", "palette"), ("classes", classes))
    lists |= dict.fromkeys(("mean", "std"), ("channels", channels))
    return {
        name: f"{name} of {len(stated[name])} {what} (the model has {size})"
        for name, (what, size) in lists.items()
        if name in stated and len(stated[name]) != size
    }


def update_facts(info: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `facts` into `info`, a `pretrained_cfg`.

    `results` are added to those of other data sets, splits, metrics or settings. `metrics`, numbers by name, are
    results on a data set that is not named. Raises an OptionError for facts of another form.
    """
    known = plain_values(info)
    stated = {name: value for name, value in plain_values(facts).items() if value is not None}
    try:
        measured = [{"metric": name, "value": value} for name, value in stated.pop("metrics", {}).items()]
        if results := [*(known.get("results") or ()), *stated.pop("results", ()), *measured]:
            keys = ("dataset", "split", "metric", "setting")
            for result in results:
                are_texts = all(isinstance(result.get(key), str | None) for key in keys)
                if not are_texts or not result.get("metric") or type(result.get("value")) not in (int, float):
                    raise OptionError(f'A result has texts, and needs a "metric" and a "value", a number: {result!r}.')
            stated["results"] = list({tuple(map(result.get, keys)): result for result in results}.values())
        json.dumps(known | stated, allow_nan=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise OptionError(f"pretrained_cfg cannot be written to config.json: {error}") from None
    return known | stated
