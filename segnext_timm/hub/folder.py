"""Model folders, which timm and smp load: model.safetensors, config.json and README.md."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from timm.models import save_for_hf

from ..checkpoints.folder import CARD, CONFIG, WEIGHTS, read_model_config
from ..models.model_info import true_results, weights_digest
from .cards import HERE, backbone_card, segmenter_card

_logger = logging.getLogger(__name__)


def read_true_config(folder: Path) -> tuple[dict[str, Any], bool]:
    """Read the configuration of a model folder without results of other weights than those in the folder.

    Returns:
        The configuration, and whether such results were left out, which is logged.

    Raises:
        CheckpointError: If the folder is not a model folder, or its weights are damaged.
    """
    config = read_model_config(folder)
    infos = {key: config[key] for key in ("pretrained_cfg", "_pretrained_cfg") if config.get(key)}
    true = {key: true_results(info, folder / WEIGHTS) for key, info in infos.items()}
    left_out = any("results" in info and "results" not in true[key] for key, info in infos.items())
    if left_out:
        _logger.warning(f"{folder / CONFIG}: left out results of other weights than those in {WEIGHTS}.")
    return config | true, left_out


def with_digest(facts: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Add the digest of a weights file to a card's facts if they hold results."""
    has_results = facts.get("results") or facts.get("metrics")
    return {**facts, "results_digest": weights_digest(weights)} if has_results else dict(facts)


def model_card(config: Mapping[str, Any], repo: str = HERE, fields: Mapping[str, Any] | None = None) -> ModelCard:
    """Write the card of a model from its configuration; `fields` override it."""
    make = segmenter_card if "encoder_name" in config else backbone_card
    return make(config, repo=repo, **(fields or {}))


def save_backbone(
    model: torch.nn.Module, folder: Path, label_names: Sequence[str] | Mapping[int, str] | None = None
) -> None:
    """Save a model in timm's format, with a model card."""
    names: dict[str, Any] = {}
    if label_names and len(label_names) == model.num_classes:  # after reset_classifier, timm keeps the old names
        names["label_names"] = label_names if isinstance(label_names, Mapping) else list(label_names)
    save_for_hf(model, str(folder), model_config=names, safe_serialization=True)
    backbone_card(read_model_config(folder)).save(folder / CARD)
