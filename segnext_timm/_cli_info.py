"""Collect and format the output of `segnext-timm models` and `segnext-timm info`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from .checkpoints.catalog import (
    MULTI_SCALE,
    ORIGINS,
    SINGLE_SCALE,
    BackboneCfg,
    cached_file,
    find_backbone,
    get_segmenter_cfg,
    list_backbones,
    list_segmenters,
)
from .checkpoints.folder import CONFIG, WEIGHTS, read_config
from .checkpoints.hub import find_published, hub_config, is_hub_id, is_no_connection, names_repository, unknown_model

_STATISTICS = ("running_mean", "running_var", "nmf.bases")  # saved with the weights, but not trained


def list_models(dataset: str | None = None, origin: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """List published backbones and segmenters with their parameters and accuracies in percent.

    Args:
        dataset: Key of a data set: only segmenters trained on it.
        origin: Key of an origin: only its models.
    """
    backbones = [
        {
            "name": backbone.name,
            "parameters": backbone.variant.classifier_parameters,
            "dataset": backbone.dataset,
            "top1": backbone.top1,
            **_origin_facts(backbone.origin),
            "terms": backbone.terms,
        }
        for backbone in filter(None, map(find_backbone, list_backbones()))
        if dataset is None and origin in (None, backbone.origin)
    ]
    cfgs = [get_segmenter_cfg(name) for name in list_segmenters()]
    segmenters = [
        {
            "name": cfg.name,
            "parameters": cfg.parameters,
            "dataset": cfg.dataset,
            "miou": cfg.miou.get(SINGLE_SCALE),
            "miou_multi_scale": cfg.miou.get(MULTI_SCALE),
            "rank": cfg.decoder_rank,
            **_origin_facts(cfg.origin),
            "terms": cfg.terms,
        }
        for cfg in cfgs
        if dataset in (None, cfg.labels) and origin in (None, cfg.origin)
    ]
    return {"backbones": backbones, "segmenters": segmenters}


def _origin_facts(key: str) -> dict[str, str]:
    origin = ORIGINS[key]
    return {
        "origin": origin.name,
        "origin_url": origin.url,
        "license": origin.license,
        "license_note": origin.license_note,
    }


def models_text(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Format what :func:`list_models` returns as tables, with caveats to the licenses, and terms of the data sets."""
    tables = []
    if models["backbones"]:
        rows: list[tuple[str, ...]] = [("backbone", "parameters", "weights", "top-1", "origin")]
        for m in models["backbones"]:
            rows.append((m["name"], _millions(m["parameters"]), m["dataset"], _number(m["top1"], 1), m["origin"]))
        tables.append(_table(rows))
    if models["segmenters"]:
        rows = [("segmenter", "parameters", "weights", "mIoU", "multi-scale", "rank", "origin")]
        for m in models["segmenters"]:
            miou = (_number(m["miou"], 2), _number(m["miou_multi_scale"], 2))
            row = (m["name"], _millions(m["parameters"]), m["dataset"], *miou, str(m["rank"]), m["origin"])
            rows.append(row)
        tables.append(_table(rows))
    found = {m["origin"]: m for group in models.values() for m in group}
    lines = ["Accuracies are published ones: top-1 from the paper, mIoU on the validation set from the origin."]
    lines += [f"{name}: {m['license']}; {m['license_note']}." for name, m in found.items()]
    terms = {m["dataset"]: m["terms"] for group in models.values() for m in group}
    lines += ["", "Terms of the data sets behind the weights, as their sources state them:"]
    lines += [f"{name}: {_terms_text(said) or 'not stated'}." for name, said in terms.items()]
    return "\n\n".join([*tables, "\n".join(lines)]) if tables else "No published model matches."


def _terms_text(terms: Sequence[Mapping[str, str]]) -> str:
    return "; ".join(f"{term['says']} ({term['source']})" for term in terms)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def describe_model(name: str) -> dict[str, Any]:
    """Describe a model without downloading or loading its weights.

    Args:
        name: A published backbone or segmenter, a model folder, or a repository on the Hub; timm's "local-dir:" and
            "hf-hub:" may stand before the last two.

    Returns:
        The same keys for every model; None where something is unknown or does not apply.

    Raises:
        FileNotFoundError: If there is no such model.
        PermissionError: If the Hub does not give it to this user.
        ConnectionError: If the Hub cannot be reached.
        CheckpointError: If the folder's files are damaged.
    """
    path = Path(name.removeprefix("local-dir:"))
    if (cfg := find_published(name)) is not None:
        config = {
            "_model_class": "SegNeXt",
            "encoder_name": cfg.encoder_name,
            "decoder_channels": cfg.decoder_channels,
            "decoder_rank": cfg.decoder_rank,
            "in_channels": cfg.input_size[0],
            "classes": cfg.num_classes,
            "pretrained_cfg": {
                **cfg.pretrained_cfg,
                "sha256": cfg.sha256,
                "license_note": ORIGINS[cfg.origin].license_note,
            },
        }
        return _described(cfg.name, config, cfg.parameters, cached_file(cfg.cached_name))
    if (backbone := find_backbone(name)) is not None and not (path / CONFIG).is_file():
        return _describe_backbone(backbone)
    if path.is_dir():
        weights = path / WEIGHTS
        parameters = _count_parameters(weights) if weights.is_file() else None
        return _described(name, read_config(path), parameters, weights if weights.is_file() else None)
    repo = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if names_repository(name) or (repo != name and is_hub_id(repo)):  # with timm's prefix, the Hub is meant
        return _describe_repo(repo)
    raise FileNotFoundError(unknown_model(name, [*list_segmenters(), *list_backbones()]))


def _describe_backbone(backbone: BackboneCfg) -> dict[str, Any]:
    import timm

    from . import MSCAN  # noqa: F401  registers the backbones

    registered = timm.get_pretrained_cfg(backbone.name, allow_unregistered=False)
    assert registered is not None  # timm raises for an unknown name
    cfg = registered.to_dict()
    cfg |= {"dataset": backbone.dataset, "dataset_terms": backbone.terms, "results": [backbone.result]}
    cfg["license_note"] = ORIGINS[backbone.origin].license_note
    variant = backbone.variant
    config = {"architecture": variant.backbone, "num_classes": cfg["num_classes"], "pretrained_cfg": cfg}
    file = cached_file(Path(urlparse(cfg["url"]).path).name)
    return _described(backbone.name, config, variant.classifier_parameters, file)


def _describe_repo(repo: str) -> dict[str, Any]:
    folder = hub_config(repo).parent
    weights = folder / WEIGHTS
    if weights.is_file():  # the cache has the weights of this commit
        return _described(repo, read_config(folder), _count_parameters(weights), weights)
    return _described(repo, read_config(folder), _count_parameters_on_hub(repo, folder.name), None)


def _count_parameters_on_hub(repo: str, revision: str) -> int | None:
    """Count the parameters of a repository's weights from their header; None if the Hub does not give it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        tensors = HfApi().parse_safetensors_file_metadata(repo, WEIGHTS, revision=revision).tensors
    except Exception as error:
        if not (isinstance(error, OSError | NotASafetensorsRepoError) or is_no_connection(error)):
            raise
        return None
    return _sum_of({name: (info.dtype, info.shape) for name, info in tensors.items()})


def _count_parameters(file: Path) -> int:
    """Count the parameters in a file of weights from its header."""
    from safetensors import SafetensorError, safe_open

    from .errors import CheckpointError

    try:
        with safe_open(file, framework="numpy") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118  not a dictionary
            return _sum_of({name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()})
    except SafetensorError as error:
        raise CheckpointError(f"{file}: a damaged safetensors file ({error}). Get it again.") from None


def _sum_of(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> int:
    """Count the trainable values of tensors, each given by data type and shape."""
    total = 0
    for name, (dtype, shape) in tensors.items():
        if dtype.startswith(("F", "BF")) and not name.endswith(_STATISTICS):
            count = 1
            for side in shape:
                count *= side
            total += count
    return total


def _described(name: str, config: Mapping[str, Any], parameters: int | None, weights: Path | None) -> dict[str, Any]:
    """Describe a model from its configuration, in smp's or timm's form."""
    segmenter = "encoder_name" in config
    info = config.get("pretrained_cfg") or ({} if segmenter else config)  # timm's older form has everything at its top
    names = config.get("label_names") or info.get("label_names")
    names = list(names.values()) if isinstance(names, Mapping) else names and list(names)
    size = info.get("input_size")
    return {
        "name": name,
        "kind": "segmenter" if segmenter else "backbone",
        "architecture": config.get("_model_class") if segmenter else config.get("architecture"),
        "encoder": config.get("encoder_name"),
        "decoder_channels": config.get("decoder_channels"),
        "rank": config.get("decoder_rank"),
        "in_channels": config.get("in_channels") or (size and size[0]),
        "classes": config.get("classes") if segmenter else config.get("num_classes"),
        "class_names": names or None,
        "parameters": parameters,
        "input_size": size and list(size[1:]),
        "mean": info.get("mean") and list(info["mean"]),
        "std": info.get("std") and list(info["std"]),
        "dataset": info.get("dataset"),
        "results": list(info.get("results") or ()),
        "license": info.get("license") or config.get("license"),
        "license_note": info.get("license_note"),
        "terms": list(info.get("dataset_terms") or ()),
        "origin": info.get("origin_url"),
        "url": info.get("url") or None,
        "sha256": info.get("sha256"),
        "weights": weights and str(weights),
    }


def model_text(info: Mapping[str, Any]) -> str:
    """Format what :func:`describe_model` returns as a table."""
    segmenter = info["kind"] == "segmenter"
    unknown = "not stated"
    size = info["input_size"]
    rows = [(info["kind"], info["name"]), ("architecture", str(info["architecture"] or unknown))]
    if segmenter:
        rows += [("encoder", info["encoder"])]
    rows += [(key.replace("_", " "), str(info[key])) for key in ("decoder_channels", "rank") if info[key]]
    rows += [
        ("parameters", _millions(info["parameters"]) if info["parameters"] else "unknown"),
        ("input channels", str(info["in_channels"] or unknown)),
        ("image size", "×".join(map(str, size)) if size else unknown),
        ("data set", info["dataset"] or unknown),
    ]
    rows += [(key, " ".join(f"{v:g}" for v in info[key]) if info[key] else unknown) for key in ("mean", "std")]
    license_text = "; ".join(filter(None, (info["license"] or unknown, info["license_note"])))
    rows += [("license", license_text)]
    if terms := info["terms"]:
        rows.append(("terms", f"{terms[0]['dataset']}: {_terms_text(terms)}"))
    rows += [("origin", info["origin"] or unknown)]
    for result in info["results"]:
        what = (result.get("dataset"), result.get("split"), result["metric"], result.get("setting"))
        source = f" ({result['source']})" if result.get("source") else ""
        rows.append(("result", f"{' '.join(filter(None, what))}: {result['value']}{source}"))
    rows.append(("weights", info["weights"] or f"not on this machine{_from(info['url'])}"))
    names = info["class_names"]
    rows.append(
        ("classes", f"{info['classes'] or 'none'}" + ("" if names or not info["classes"] else ", without names"))
    )
    text = _table(rows)
    if names:
        listed = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        text += "\n" + textwrap.fill(listed, 100, initial_indent="  ", subsequent_indent="  ")
    return text


def _from(url: str | None) -> str:
    return f"; downloaded at the first use from {url}" if url else ""


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}M"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
