"""What a model folder is: weights, configuration and card, which timm and smp load."""

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MODEL_FILES = {WEIGHTS, CONFIG, CARD, ".gitattributes"}
PICKLE_SUFFIXES = {".bin", ".ckpt", ".pdparams", ".pickle", ".pkl", ".pt", ".pth"}


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration in a model folder.

    Raises:
        FileNotFoundError: If the folder has no configuration.
        CheckpointError: If it is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        models = [inner for inner in (folder / "best", folder / "last") if (inner / CONFIG).is_file()]
        hint = f" Did you mean {str(models[0])!r}?" if models else ""  # the folder of a training run
        raise FileNotFoundError(f"{folder}: not a model folder, it has no {CONFIG}.{hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}). Save or convert the model again.") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object. Save or convert the model again.")
    return config


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a folder that holds a whole model.

    Raises:
        CheckpointError: If the folder has no configuration or no weights, or its configuration is invalid.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: not a model folder, because it has no {' and no '.join(missing)}. Convert a checkpoint first."
        )
    return read_config(folder)
