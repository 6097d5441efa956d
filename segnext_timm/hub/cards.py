"""Model cards for the Hugging Face Hub, written from a model's configuration.

The Hub indexes a card's front matter: library, task, license, data set, tags, and evaluation results in its model-index
form (https://huggingface.co/docs/hub/model-cards). The text answers the questions of the next user. A card states only
facts from the configuration or its author, and says what is unknown.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from segmentation_models_pytorch.base.hub_mixin import MODEL_CARD
from timm.models import PretrainedCfg, is_model_in_modules

from ..label_sets import LABEL_SETS
from .card_sections import (
    HERE,
    PAPER,
    backbone_license,
    backbone_usage,
    began_pretrained,
    classes_section,
    is_hub_id,
    limits_section,
    preprocessing_section,
    results_section,
    segmenter_license,
    segmenter_summary,
    segmenter_usage,
    table,
    training_section,
)

_PLACEHOLDER = "USER/REPO"  # from the documentation; replaced in cards that contain it
_METRIC_IDS = {"mIoU": "mean_iou", "top-1": "accuracy", "top-5": "accuracy"}  # on hf.co/metrics
_CITATION = """```bibtex
@inproceedings{guo2022segnext,
  title     = {SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation},
  author    = {Guo, Meng-Hao and Lu, Cheng-Ze and Hou, Qibin and Liu, Zhengning and Cheng, Ming-Ming and Hu, Shi-Min},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}
```"""


def segmenter_card(
    config: Mapping[str, Any], metrics: Mapping[str, Any] | None = None, repo: str = HERE, **fields: Any
) -> ModelCard:
    """Write the card of an smp segmentation model.

    Args:
        config: The model's configuration, as in its config.json.
        metrics: Results by name, without further details.
        repo: Hub repository in the card's code. Default: the folder of the card.
        fields: Facts that override the configuration's `pretrained_cfg`: `dataset`, `license`, `description`,
            `label_names`, `results`, `training`, `base_model`.

    Returns:
        The card.
    """
    info = {**_info(config), **fields}
    architecture = config.get("_model_class", "SegNeXt")
    encoder = str(config["encoder_name"]).removeprefix("tu-")
    is_segnext, on_mscan = (
        architecture == "SegNeXt",
        str(config["encoder_name"]).startswith("tu-") and _is_mscan(encoder),
    )
    name = f"{architecture} on {encoder}"
    base_model = info.get("base_model") or _base_model_of_segmenter(config, info)
    tags = {
        "segnext": is_segnext,
        "mscan": on_mscan,
        "semantic-segmentation": True,
        "segmentation-models-pytorch": True,
        "timm": str(config["encoder_name"]).startswith("tu-"),
        "pytorch": True,
    }
    data = _card_data(
        info,
        license=info.get("license"),
        base_model=base_model,
        model_name=name,
        library_name="segmentation-models-pytorch",
        pipeline_tag="image-segmentation",
        tags=[tag for tag, applies in tags.items() if applies],
    )
    rows = {
        "architecture": f"{architecture}, `smp.create_model`",
        "encoder": f"`{config['encoder_name']}`",
        "decoder channels": config.get("decoder_channels"),
        "rank of the decomposition": config.get("decoder_rank") if is_segnext else None,
        "input channels": config.get("in_channels"),
        "classes": config.get("classes"),
    }
    sections = [
        ("", info.get("description") or segmenter_summary(architecture, encoder, on_mscan, info)),
        ("Use it", segmenter_usage(config, info, repo, on_mscan)),
        ("Architecture", table([("", ""), *((k, v) for k, v in rows.items() if v is not None)])),
        ("Preprocessing", preprocessing_section(info)),
        ("Classes", classes_section(info.get("label_names"))),
        ("Training", training_section(info, base_model)),
        ("Results", results_section(info, metrics)),
        ("Limits", limits_section(info, config.get("classes", 1), is_segnext)),
        ("License", segmenter_license(config, info, on_mscan)),
        ("Citation", _CITATION if is_segnext or on_mscan else None),
    ]
    return _assemble(data, name, sections)


def backbone_card(config: Mapping[str, Any], repo: str = HERE, **fields: Any) -> ModelCard:
    """Write the card of a timm model.

    Args:
        config: The model's configuration, as in its config.json.
        repo: Hub repository in the card's code. Default: the folder of the card.
        fields: Facts as for :func:`segmenter_card`.

    Returns:
        The card.
    """
    info = {**_info(config), "label_names": config.get("label_names"), **fields}
    name = config["architecture"]
    is_mscan = _is_mscan(name)
    task = "image-classification" if config.get("num_classes") else "image-feature-extraction"
    published = _timm_cfg(f"{name}.{info['tag']}" if info.get("tag") else name)
    # timm's license is for its published weights, but stays when a model has other weights
    stated = fields.get("license") or (
        info.get("license") if published is None or info.get("license") != published.license else None
    )
    data = _card_data(
        info,
        license=stated,
        base_model=info.get("base_model"),
        model_name=name,
        library_name="timm",
        pipeline_tag=task,
        tags=[*(["mscan", "segnext"] if is_mscan else []), task, "timm", "pytorch"],
    )
    rows = {
        "architecture": f"MSCAN, `{name}`" if is_mscan else f"`{name}` of timm",
        "features": "strides 4, 8, 16, 32 by `features_only=True`" if is_mscan else None,
        "input channels": (info.get("input_size") or (3,))[0],
        "classes": config.get("num_classes") or "none: features only",
    }
    what = "image classification" if config.get("num_classes") else "image features"
    trained_on = f", trained on {info['dataset']}" if info.get("dataset") else ""
    source = f". MSCAN is the encoder of [SegNeXt]({PAPER}), NeurIPS 2022" if is_mscan else ""
    sections = [
        ("", info.get("description") or f"A timm model for {what}{trained_on}{source}."),
        ("Use it", backbone_usage(config, info, repo, is_mscan)),
        ("Architecture", table([("", ""), *((k, v) for k, v in rows.items() if v is not None)])),
        ("Preprocessing", preprocessing_section(info)),
        ("Classes", classes_section(info.get("label_names"))),
        ("Training", training_section(info, info.get("base_model"))),
        ("Results", results_section(info, None)),
        ("Limits", limits_section(info)),
        ("License", backbone_license(stated, info, published, is_mscan)),
        ("Citation", _CITATION if is_mscan else None),
    ]
    return _assemble(data, name, sections)


def point_to_repo(text: str, repo: str) -> str:
    """Make the code of a folder's card load from a Hub repository, and keep all other text.

    Args:
        text: The card.
        repo: Id of the repository on the Hub.
    """
    text = text.replace(f'from_pretrained("{HERE}")', f'from_pretrained("{repo}")')
    text = text.replace(f'local-dir:{HERE}"', f'hf-hub:{repo}"')
    return text.replace(_PLACEHOLDER, repo)


def parse_smp_card(text: str) -> dict[str, Any] | None:
    """Parse the facts that smp's own card adds to the configuration. None for an edited card, or one of another origin.

    smp's card claims smp's license for the weights, and does not say where to load them from.

    Args:
        text: The card.

    Returns:
        `dataset` and `metrics`, if they were given to `save_pretrained`: the card's fields.
    """
    start, *parts = re.split(r"\{\{ (\w+).*?\}\}", MODEL_CARD.strip())  # fixed text, then names and fixed texts in turn
    text = text.strip()
    if not text.startswith(start):
        return None
    values, rest = {}, text[len(start) :]
    for name, fixed in zip(parts[::2], parts[1::2]):
        values[name], found, rest = rest.partition(fixed)
        if not found:
            return None
    unknown = "[More Information Needed]"
    metrics = values["metrics"].removeprefix("```json").removesuffix("```")
    untouched = (
        not rest
        and (values["metrics"] == unknown or len(values["metrics"]) - len(metrics) == len("```json```"))
        and values["model_parameters"].startswith("{")
        and ModelCard(text).data.to_dict().get("license") == "mit"
        and not any("\n" in values[name] for name in ("dataset", "model_name", "repo_url", "docs_url"))
    )
    if not untouched:
        return None
    said = {} if values["dataset"] == unknown else {"dataset": values["dataset"]}
    return said if values["metrics"] == unknown else {**said, "metrics": json.loads(metrics)}


def info_key(config: Mapping[str, Any]) -> str:
    """Return the key under which a configuration keeps facts about its weights.

    SegNeXt has an argument `pretrained_cfg`. timm rejects unknown entries in its own, and smp passes those of other
    architectures on to timm, but both ignore names that begin with an underscore.
    """
    is_segnext = "encoder_name" in config and config.get("_model_class", "SegNeXt") == "SegNeXt"
    return "pretrained_cfg" if is_segnext else "_pretrained_cfg"


def _info(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**(config.get("pretrained_cfg") or {}), **(config.get("_pretrained_cfg") or {})}


def _is_mscan(name: str) -> bool:
    """Whether a timm name, with or without tag, is a variant of MSCAN."""
    return is_model_in_modules(name.split(".")[0], ["mscan"])


def _timm_cfg(name: str) -> PretrainedCfg | None:
    """Return timm's pretrained cfg of a name; None for an unknown name."""
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # the architecture has no such tag
        return None


def _base_model_of_segmenter(config: Mapping[str, Any], info: Mapping[str, Any]) -> str | None:
    """Return the model that training started from: a Hub id or another name; None if unknown."""
    start = (info.get("training") or {}).get("init_from")
    if start not in (None, "none", "imagenet"):
        return start
    if not began_pretrained(config, info):
        return None
    name, weights = str(config["encoder_name"]), config.get("encoder_weights")
    if ":" in name:  # "tu-hf-hub:user/repo@revision"
        return name.split(":", 1)[1].split("@")[0] if name.startswith(("tu-hf-hub:", "tu-hf_hub:")) else None
    if name.startswith("tu-"):
        cfg = _timm_cfg(name.removeprefix("tu-"))
        return (cfg.hf_hub_id or f"{cfg.architecture}.{cfg.tag}") if cfg and cfg.has_weights else None
    settings = smp.encoders.encoders.get(name, {}).get("pretrained_settings", {})
    return settings.get(weights if isinstance(weights, str) else "imagenet", {}).get("repo_id")


def _dataset_id(name: str) -> str:
    """Return the Hub id of a data set if known, else its name in the form of an id."""
    for labels in LABEL_SETS.values():
        if name in (labels.key, labels.name):
            return labels.hub_id or labels.key
    return {"ImageNet-1k": "imagenet-1k"}.get(name, "-".join(name.lower().split()))


def _eval_results(results: Iterable[Mapping[str, Any]], task: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task,
            dataset_type=_dataset_id(result["dataset"]),
            dataset_name=result["dataset"],
            dataset_split=result.get("split"),
            metric_type=_METRIC_IDS.get(result["metric"], result["metric"]),
            metric_name=" ".join(filter(None, (result["metric"], result.get("setting")))),
            metric_value=result["value"],
            source_name=result.get("source_name") if result.get("source") else None,
            source_url=result.get("source"),
        )
        for result in results
    ]


def _card_data(
    info: Mapping[str, Any], pipeline_tag: str, base_model: str | None, **front_matter: Any
) -> ModelCardData:
    results = _eval_results(info.get("results") or (), pipeline_tag)
    dataset = info.get("dataset")
    return ModelCardData(
        pipeline_tag=pipeline_tag,
        base_model=base_model if is_hub_id(base_model) else None,  # the Hub accepts only its own ids
        datasets=[_dataset_id(dataset)] if dataset else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        eval_results=results or None,
        **front_matter,
    )


def _assemble(data: ModelCardData, name: str, sections: Iterable[tuple[str, str | None]]) -> ModelCard:
    parts = [f"## {title}\n\n{text}" if title else text for title, text in sections if text]
    body = "\n\n".join(parts)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{body}\n")
