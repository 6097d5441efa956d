"""What a model folder is: weights, configuration and card, which timm and smp load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..label_sets import name_list

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MODEL_FILES = {WEIGHTS, CONFIG, CARD, ".gitattributes"}
TARGET_FILES = {"preprocessor_config.json", "modeling_segnext.py", "handler.py"} | {
    f"onnx/model{precision}.onnx" for precision in ("", "_fp16", "_quantized")
}  # of folders for transformers and transformers.js
PICKLE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pdopt", ".pdparams", ".pickle", ".pkl", ".pt", ".pth"}


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration in a model folder."""
    path = folder / CONFIG
    if not path.is_file():
        models = [inner for inner in (folder / "best", folder / "last") if (inner / CONFIG).is_file()]
        hint = f" Did you mean {str(models[0])!r}?" if models else ""  # a training run's folder
        raise FileNotFoundError(f"{folder}: not a model folder, it has no {CONFIG}.{hint}")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
        read_facts(config)  # raises a TypeError if they are no object
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a JSON object ({error}). Save or convert the model again.") from None
    return config


def read_model_config(folder: Path, targets: bool = False) -> dict[str, Any]:
    """Read the configuration of a folder that holds a whole model; a CheckpointError says what is missing.

    With `targets`, it may be one for transformers or transformers.js, which has that of the SegNeXt in `segmenter`.
    """
    has_graphs = targets and (folder / CONFIG).is_file() and "transformers.js_config" in read_config(folder)
    weights = () if has_graphs else (WEIGHTS,)
    if missing := [name for name in (CONFIG, *weights) if not (folder / name).is_file()]:
        reason = f"because it has no {' and no '.join(missing)}"
        raise CheckpointError(f"{folder}: not a model folder, {reason}. Convert a checkpoint first.")
    config = read_config(folder)
    if not {"encoder_name", "architecture", *(["segmenter"] if targets else [])} & config.keys():
        raise CheckpointError(f"{folder / CONFIG}: not the configuration of a model of smp or timm.")
    return config


def info_key(config: Mapping[str, Any]) -> str:
    """Return the key of this package's facts about the weights: what begins with "_", timm and smp ignore."""
    is_segnext = "encoder_name" in config and config.get("_model_class", "SegNeXt") == "SegNeXt"
    return "pretrained_cfg" if is_segnext else "_pretrained_cfg"  # the first is an argument of SegNeXt


def read_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration states of its weights: timm's facts, and this package's, which override them."""
    facts = {**(config.get("pretrained_cfg") or {}), **(config.get("_pretrained_cfg") or {})}
    names = facts.get("label_names") or config.get("label_names") or []
    return facts | ({"label_names": name_list(names)} if names else {})


def not_a_segmenter(name: str | Path, config: Mapping[str, Any]) -> CheckpointError:
    """Error for a model folder or a repository that smp cannot load."""
    what = config.get("_model_class") or config.get("architecture", "something else")
    return CheckpointError(f"{name}: holds {what}, not a segmentation model saved by smp or this package.")
