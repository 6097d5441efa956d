"""Facts about a model's weights, as `pretrained_cfg` keeps them, and the digest that ties results to weights."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import CheckpointError, OptionError

_logger = logging.getLogger(__name__)


def weights_digest(weights: nn.Module | Mapping[str, torch.Tensor] | Path) -> str:
    """Digest the weights of a model, state dict or safetensors file: 16 digits of a sha256, equal on every device.

    Floating point values are rounded to float16, so that a model keeps its digest when it is stored in float16 or
    float64. Counters of batches and smp's classification head are left out, because masks do not depend on them.

    Raises:
        CheckpointError: If the file is damaged.
    """
    if isinstance(weights, Path):
        try:
            weights = load_file(weights)
        except SafetensorError as error:
            raise CheckpointError(f"{weights}: the file is damaged ({error}). Get it again.") from None
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked") or name.startswith("classification_head."):
            continue
        x = tensors[name].detach()
        digest.update(f"{name} {tuple(x.shape)}\n".encode())
        x = x.to(torch.float16) if x.is_floating_point() else x
        digest.update(np.ascontiguousarray(x.cpu().numpy()).data)
    return digest.hexdigest()[:16]


def plain_values(value: Any) -> Any:
    """Convert arrays, tensors and their scalars, also inside containers, to lists and numbers, as JSON keeps them."""
    if isinstance(value, Mapping):
        return {key: plain_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic | torch.Tensor) else value


def update_facts(info: Mapping[str, Any], facts: Mapping[str, Any], weights: nn.Module | Path) -> dict[str, Any]:
    """Merge `facts` into `info`, a `pretrained_cfg`, without results of other weights than `weights`.

    `results` are added to those of other data sets, splits, metrics or settings. `metrics`, numbers by name, are
    results on a data set that is not named. Results get a digest of the weights. Raises an OptionError for facts of
    another form.
    """
    known = plain_values(info)
    stated = {name: value for name, value in plain_values(facts).items() if value is not None}
    digest = known.get("results_digest")
    if digest is not None and digest != weights_digest(weights):
        if "results" in known:
            _logger.warning("pretrained_cfg: left out results of other weights.")
        known = {key: value for key, value in known.items() if key not in ("results", "metrics", "results_digest")}
    try:
        measured = [{"metric": name, "value": value} for name, value in stated.pop("metrics", {}).items()]
        if results := [*(known.get("results") or ()), *stated.pop("results", ()), *measured]:
            if wrong := [r for r in results if not (isinstance(r, Mapping) and {"metric", "value"} <= r.keys())]:
                raise OptionError(f'A result needs a "metric" and a "value", got {wrong[0]!r}.')
            keys = ("dataset", "split", "metric", "setting")
            stated["results"] = list({tuple(map(result.get, keys)): result for result in results}.values())
            stated["results_digest"] = known.get("results_digest") or weights_digest(weights)
        json.dumps(known | stated, allow_nan=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise OptionError(f"pretrained_cfg cannot be written to config.json: {error}") from None
    return known | stated
