"""What `segnext-timm models` and `segnext-timm info` print. Imports nothing heavy."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoints import catalog
from .checkpoints.catalog import MULTI_SCALE, SINGLE_SCALE
from .checkpoints.folder import CONFIG, read_config, read_facts
from .checkpoints.lookup import find_published, hub_config, names_repository, unknown_model

_CAVEATS = ("origin_url", "license", "license_note", "terms")  # below the table of models


def list_models(dataset: str | None = None, origin: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """List published backbones and segmenters, of one data set or origin if given, with their accuracy in percent."""
    backbones = [
        _row(cfg, top1=cfg.top1)
        for cfg in catalog.BACKBONES.values()
        if dataset is None and origin in (None, cfg.origin)
    ]
    segmenters = [
        _row(cfg, miou=cfg.miou.get(SINGLE_SCALE), miou_multi_scale=cfg.miou.get(MULTI_SCALE), rank=cfg.decoder_rank)
        for cfg in map(catalog.get_segmenter_cfg, catalog.list_segmenters())
        if dataset in (None, cfg.labels) and origin in (None, cfg.origin)
    ]
    return {"backbones": backbones, "segmenters": segmenters}


def _row(cfg: catalog.BackboneCfg | catalog.SegmenterCfg, **figures: Any) -> dict[str, Any]:
    origin, row = catalog.ORIGINS[cfg.origin], {"name": cfg.name, "parameters": cfg.parameters, "dataset": cfg.dataset}
    caveats = {"license": origin.license, "license_note": origin.license_note, "terms": cfg.terms}
    return {**row, **figures, "origin": origin.name, "origin_url": origin.url, **caveats}


def models_text(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Format what :func:`list_models` returns as tables, with caveats to the licenses, and terms of the data sets."""
    listed = [model for group in models.values() for model in group]
    if not listed:
        return "No published model matches."
    tables = []
    for group in filter(None, models.values()):
        columns = [key for key in group[0] if key not in _CAVEATS]
        tables.append(_table([columns, *([_text(model[key]) for key in columns] for model in group)]))
    notes = {m["origin"]: f"{m['license']}; {m['license_note']}" for m in listed}
    terms = {m["dataset"]: "; ".join(f"{t['says']} ({t['source']})" for t in m["terms"]) for m in listed}
    lines = ["Accuracies are published ones: top-1 from the paper, mIoU on the validation set from the origin."]
    lines += [f"{origin}: {note}." for origin, note in notes.items()]
    lines += ["", "Terms of the data sets behind the weights, as their sources state them:"]
    lines += [f"{dataset}: {said or 'not stated'}." for dataset, said in terms.items()]
    return "\n\n".join([*tables, "\n".join(lines)])


def describe_model(name: str) -> dict[str, Any]:
    """Describe a published model, a folder, or a repository on the Hub, without loading or downloading its weights.

    The keys are the same for every model; values that are unknown or do not apply are None.
    """
    if (cfg := find_published(name)) is not None:
        note = catalog.ORIGINS[cfg.origin].license_note
        config = {
            "_model_class": "SegNeXt",
            "encoder_name": cfg.encoder_name,
            "decoder_channels": cfg.decoder_channels,
            "decoder_rank": cfg.decoder_rank,
            "classes": cfg.num_classes,
            "pretrained_cfg": {**cfg.pretrained_cfg, "sha256": cfg.sha256, "license_note": note},
        }
        return _described(cfg.name, config, cfg.parameters)
    folder = Path(name)
    if (backbone := catalog.find_backbone(name)) is not None and not (folder / CONFIG).is_file():
        config = {"architecture": backbone.variant.backbone, "num_classes": 1000}
        return _described(backbone.name, config | {"pretrained_cfg": backbone.pretrained_cfg}, backbone.parameters)
    if not folder.is_dir():
        if not names_repository(name):
            raise FileNotFoundError(unknown_model(name, [*catalog.list_segmenters(), *catalog.BACKBONES]))
        folder = hub_config(name).parent
    return _described(name, read_config(folder))


def _described(name: str, config: dict[str, Any], parameters: int | None = None) -> dict[str, Any]:
    """Describe a model from its configuration, in smp's or timm's form."""
    segmenter = "encoder_name" in config
    info = ({} if segmenter else config) | read_facts(config)  # timm's older form has everything at its top
    size = info.get("input_size")
    return {
        "name": name,
        "kind": "segmenter" if segmenter else "backbone",
        "architecture": config.get("_model_class" if segmenter else "architecture"),
        "encoder": config.get("encoder_name"),
        "decoder_channels": config.get("decoder_channels"),
        "rank": config.get("decoder_rank"),
        "in_channels": config.get("in_channels") or (size and size[0]),
        "classes": config.get("classes" if segmenter else "num_classes"),
        "parameters": parameters,
        "input_size": size and size[1:],
        **{key: info.get(key) for key in ("mean", "std", "fit_in", "dataset", "sha256", "url", "license_note")},
        "license": info.get("license"),
        "terms": list(info.get("dataset_terms") or ()),
        "results": list(info.get("results") or ()),
        "origin": info.get("origin_url"),
        "class_names": info.get("label_names"),
    }


def model_text(info: Mapping[str, Any]) -> str:
    """Format what :func:`describe_model` returns as a table; what does not apply, or is not known, is left out."""
    rows = []
    for key, value in {**info, "license": info["license"] or "not stated"}.items():
        if key in ("results", "terms"):
            lines = [", ".join(map(str, entry.values())) for entry in value]
        elif key == "class_names" and value:
            lines = textwrap.wrap(", ".join(f"{label} {name}" for label, name in enumerate(value)), 100)
        else:
            lines = [_text(value)] if value is not None else []
        rows += [["" if number else key.replace("_", " "), line] for number, line in enumerate(lines)]
    return _table(rows)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
