"""Look up models by name: published models, model folders, repositories on the Hugging Face Hub.

Imports nothing heavy and checks names without a network, so that a wrong name is reported at once.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..variants import VARIANTS
from .published import SegmenterCfg, find_segmenter, get_segmenter_cfg, list_segmenters


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration in a model folder.

    Raises:
        FileNotFoundError: If the folder has no configuration.
        CheckpointError: If it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        models = [inner for inner in (folder / "best", folder / "last") if (inner / "config.json").is_file()]
        hint = f" Did you mean {str(models[0])!r}?" if models else ""  # the folder of a training run
        raise FileNotFoundError(f"{folder}: not a model folder, it has no config.json.{hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}). Save or convert the model again.") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object. Save or convert the model again.")
    return config


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a Hub repository, user/repo."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text) is not None


def find_published(name: str | Path) -> SegmenterCfg | None:
    """Find the published segmenter of a name, unless a model folder of that name is here; None if there is none."""
    return None if (Path(name) / "config.json").is_file() else find_segmenter(str(name))


def check_segmenter(name: str | Path) -> None:
    """Check, without a network, that `name` is a published segmenter, a segmenter's folder, or has the form user/repo.

    Raises:
        FileNotFoundError: If `name` is none of these. The message suggests the nearest published name.
        CheckpointError: If it is a folder without a segmentation model.
    """
    text, path = str(name), Path(name)
    if find_published(name) is not None:
        return
    if path.is_dir():
        config = read_config(path)
        if "_model_class" not in config:
            what = config.get("architecture", "something else")
            raise CheckpointError(f"{name}: holds {what}, not a segmentation model saved by smp or this package.")
    elif path.is_file() or not is_hub_id(text):
        backbone = next((v for v in VARIANTS.values() if text.split(".")[0] == v.backbone), None)
        if backbone is not None:
            near = get_segmenter_cfg(f"segnext_{backbone.key}").name
            raise FileNotFoundError(f"{name} is a backbone, which does not predict labels. Did you mean {near!r}?")
        raise FileNotFoundError(unknown_model(text, list_segmenters()))


def unknown_model(text: str, names: Sequence[str]) -> str:
    """Error message for a name that is not published, not a folder, and not of the Hub's form."""
    if Path(text).is_file():
        return f"{text}: a file, not a model folder. Convert it to a folder with `segnext-timm convert`."
    found = difflib.get_close_matches(text, [*names, *(name.split(".")[0] for name in names)], n=1, cutoff=0.5)
    hint = f" Did you mean {found[0]!r}?" if found else " `segnext-timm models` lists the published models."
    hint = similar_folder(text) or hint
    return f"{text}: not a folder, not a Hub repository (user/repo), and not a published model.{hint}"


def similar_folder(name: str | Path) -> str:
    """Question whether a model folder with a similar name is meant, to end an error message; empty without one."""
    parent = Path(name).parent
    beside = parent.iterdir() if parent.is_dir() else ()
    folders = [path.name for path in beside if (path / "config.json").is_file()]
    found = difflib.get_close_matches(Path(name).name, folders, n=1, cutoff=0.75)
    return f" Did you mean {str(parent / found[0])!r}?" if found else ""


@contextmanager
def hub_lookup(name: str | Path) -> Iterator[None]:
    """Turn errors of a Hub lookup into one-line errors.

    Raises:
        FileNotFoundError: If there is no such repository, or no such file in it.
        ConnectionError: If the Hub cannot be reached.
    """
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{name}: no such folder, and no such repository on the Hub. If it is private, log in: hf auth login."
            f"{similar_folder(name)}"
        ) from None
    except LocalEntryNotFoundError:
        raise ConnectionError(f"{name}: no such folder, and the Hub cannot be reached.{similar_folder(name)}") from None
    except EntryNotFoundError:
        raise FileNotFoundError(f"{name}: this repository on the Hub holds no model of smp or timm.") from None
