"""Take the parameters of one network out of what programs keep around them, and compare them with a model's."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError

_EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # timm's, timm's, mmengine's, JSeg's
_WRAPPERS = r"(?:(?:module|_orig_mod)\.)*"  # of DistributedDataParallel and torch.compile, also around parts
_STEM = re.compile(rf"((?:.+\.)?)(?:stem\.{_WRAPPERS}conv1|patch_embed1\.{_WRAPPERS}proj\.{_WRAPPERS}0)\.weight")
_ENCODER = re.compile(rf"(?:(?:backbone|encoder\.{_WRAPPERS}model)\.{_WRAPPERS})?$")  # a segmenter's prefix ends so


def take_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Take the tensors out of a checkpoint, under `state_dict`, `model` or `module`, and NumPy's arrays as tensors."""
    if not isinstance(checkpoint, Mapping):
        found = type(checkpoint).__name__
        raise CheckpointError(f"a {found} instead of parameters by name. Check that it is the right file.")
    outer = []
    while inner := [checkpoint[k] for k in ("state_dict", "model", "module") if isinstance(checkpoint.get(k), Mapping)]:
        outer.append(checkpoint)
        checkpoint = inner[0]
        if any(checkpoint is one for one in outer):
            raise CheckpointError("contains itself instead of parameters by name. Check that it is the right file.")
    tensors = {}
    for name, value in checkpoint.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype.itemsize <= 16:
            native = value.astype(value.dtype.newbyteorder("="), copy=False)
            value = torch.from_numpy(np.require(native, requirements="W"))
        if isinstance(value, torch.Tensor):
            tensors[str(name)] = value
    return tensors


def take_network(checkpoint: Mapping[str, Any], ema: bool = False) -> dict[str, torch.Tensor]:
    """Take the one MSCAN or SegNeXt, or its moving average, out of a checkpoint; names have no prefixes of wrappers.

    Raises:
        CheckpointError: If there is none, or more than one.
    """
    for key in _EMA_KEYS if ema and isinstance(checkpoint, Mapping) else ():
        if isinstance(checkpoint.get(key), Mapping):
            return take_network(checkpoint[key])
    tensors = take_state_dict(checkpoint)
    prefixes = [match[1] for match in map(_STEM.fullmatch, tensors) if match]
    if not prefixes:
        raise CheckpointError(
            f"not a checkpoint of MSCAN or SegNeXt: expected names like 'patch_embed1.proj.0.weight' or "
            f"'stem.conv1.weight', found {', '.join([*tensors][:3]) or 'no tensors'}. Check that it is the right file."
        )
    averages = [prefix for prefix in prefixes if re.search(r"(?:^|[._])ema[._]", prefix)]
    if ema and not averages:
        raise CheckpointError("the checkpoint has no moving average (EMA) of the weights: load the weights themselves.")
    prefixes = averages if ema else [prefix for prefix in prefixes if prefix not in averages] or averages
    if len(prefixes) > 1:
        raise CheckpointError(
            f"has {len(prefixes)} networks, whose encoders' names begin with {prefixes}. Save one alone, with "
            f"torch.save(network.state_dict(), 'weights.pth'), and use that file."
        )
    prefix = _ENCODER.sub("", prefixes[0])
    own = {
        re.sub(rf"(?<![^.]){_WRAPPERS}", "", name.removeprefix(prefix)): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    return {name: value for name, value in own.items() if not name.startswith("ema_")}  # mmcv's averages


def check_parameters(state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise a CheckpointError that says how names or shapes differ from a model's, or which values are not finite."""
    differences = {
        "lacks": [name for name in expected if name not in state_dict],
        "has the unknown": [name for name in state_dict if name not in expected],
        "has the wrong shape in": [n for n, x in state_dict.items() if n in expected and x.shape != expected[n].shape],
    }
    problems = [
        f"{what} {', '.join(names[:2])}" + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        for what, names in differences.items()
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{'; '.join(problems)}: incomplete, or of another network or size. Check where it came from."
        )
    for name, x in state_dict.items():
        if x.is_floating_point() and not x.isfinite().all():
            raise CheckpointError(f"NaN or infinity in {name!r}: the training diverged, or the file is damaged.")
