"""Model cards for the Hugging Face Hub, written from a model's configuration.

A card's front matter is what the Hub indexes: library, task, licence, data set, tags, and evaluation results in its
model-index form (https://huggingface.co/docs/hub/model-cards). The text answers what the next user asks.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .labels import LABEL_SETS

REPO_PLACEHOLDER = "USER/REPO"  # in cards of folders that have no place on the Hub yet

_PAPER = "https://arxiv.org/abs/2209.08575"
_METRIC_IDS = {"mIoU": "mean_iou", "top-1": "accuracy", "top-5": "accuracy"}  # on hf.co/metrics
_CITATION = """@inproceedings{guo2022segnext,
  title     = {SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation},
  author    = {Guo, Meng-Hao and Lu, Cheng-Ze and Hou, Qibin and Liu, Zhengning and Cheng, Ming-Ming and Hu, Shi-Min},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}"""
_LICENCE = """The authors of SegNeXt publish their weights under Apache-2.0 and ask
[commercial users to contact them](https://github.com/Visual-Attention-Network/SegNeXt)."""


def segmenter_card(
    config: Mapping[str, Any], metrics: Mapping[str, Any] | None = None, repo: str = REPO_PLACEHOLDER, **fields: Any
) -> ModelCard:
    """Card of a segmentation model of smp.

    Args:
        config: The model's configuration, as in its config.json.
        metrics: Results by name, without further details.
        repo: Where the model is to be loaded from.
        fields: What the card says in place of the configuration's `pretrained_cfg`: `dataset`, `license`,
            `description`, `label_names`, `results`.

    Returns:
        The card.
    """
    info = {**(config.get("pretrained_cfg") or {}), **fields}
    architecture = config.get("_model_class", "SegNeXt")
    encoder = str(config["encoder_name"]).removeprefix("tu-")
    name = f"{architecture} on {encoder}"
    rows = {
        "architecture": f"{architecture}, `smp.create_model`",
        "encoder": f"`{config['encoder_name']}`",
        "decoder channels": config.get("decoder_channels"),
        "rank of the decomposition": config.get("decoder_rank"),
        "input channels": config.get("in_channels"),
        "classes": config.get("classes"),
    }
    load = f"""import segmentation_models_pytorch as smp
import segnext_timm  # registers SegNeXt and MSCAN
model = smp.from_pretrained("{repo}").eval()"""
    use = """Images (B, C, H, W) of any size from 32×32 become logits (B, classes, H, W) of the same size; labels
are `model(images).argmax(1)`. Predictions are the same from run to run."""
    data = _card_data(
        info,
        name=name,
        library="segmentation-models-pytorch",
        task="image-segmentation",
        tags=["segnext", "semantic-segmentation", "segmentation-models-pytorch", "timm", "pytorch"],
    )
    text = _text(info, name, "semantic segmentation", rows, load, use, metrics)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def backbone_card(config: Mapping[str, Any], repo: str = REPO_PLACEHOLDER, **fields: Any) -> ModelCard:
    """Card of a backbone in timm's form.

    Args:
        config: The model's configuration, as in its config.json.
        repo: Where the model is to be loaded from: a name on the Hub.
        fields: As of :func:`segmenter_card`.

    Returns:
        The card.
    """
    info = {**config["pretrained_cfg"], "label_names": config.get("label_names"), **fields}
    name = config["architecture"]
    classes = config.get("num_classes", 0)
    rows = {
        "architecture": f"MSCAN, `{name}`",
        "features": "strides 4, 8, 16, 32 by `features_only=True`",
        "input channels": info.get("input_size", (3,))[0],
        "classes": classes or "none: features only",
    }
    load = f"""import timm
import segnext_timm  # registers MSCAN
model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()"""
    use = f"""The preprocessing is `timm.data.create_transform(**timm.data.resolve_model_data_config(model))`. As the
encoder of a segmenter: `smp.create_model("segnext", "tu-hf-hub:{repo}", classes=19)`."""
    data = _card_data(
        info,
        name=name,
        library="timm",
        task="image-classification" if classes else "image-feature-extraction",
        tags=["mscan", "segnext", "image-classification" if classes else "image-feature-extraction", "timm", "pytorch"],
    )
    what = "image classification and features" if classes else "image features"
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(info, name, what, rows, load, use)}")


def _dataset_id(name: str) -> str:
    """The Hub's name of a data set where it is known, else the name itself in the form of one."""
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


def _card_data(info: Mapping[str, Any], name: str, library: str, task: str, tags: list[str]) -> ModelCardData:
    results = _eval_results(info.get("results") or (), task)
    dataset = info.get("dataset")
    return ModelCardData(
        license=info.get("license") or "apache-2.0",
        library_name=library,
        pipeline_tag=task,
        tags=tags,
        datasets=[_dataset_id(dataset)] if dataset else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name,
        eval_results=results or None,
    )


def _table(rows: Iterable[Iterable[Any]]) -> str:
    first, *rest = [[str(cell) for cell in row] for row in rows]
    lines = [first, ["---"] * len(first), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(
    info: Mapping[str, Any],
    name: str,
    task: str,
    rows: Mapping[str, Any],
    load: str,
    use: str,
    metrics: Mapping[str, Any] | None = None,
) -> str:
    dataset = f", trained on {info['dataset']}" if info.get("dataset") else ""
    parts = [
        f"# {name}",
        info.get("description") or f"A model for {task}{dataset}. From [SegNeXt]({_PAPER}), NeurIPS 2022.",
        f"## Load it\n\nWith the package segnext-timm:\n\n```python\n{load}\n```\n\n{use}",
        "## Architecture\n\n" + _table([("", ""), *((k, v) for k, v in rows.items() if v is not None)]),
    ]
    if info.get("mean") and info.get("std"):
        size = info.get("input_size")
        mean, std = (" ".join(f"{v:g}" for v in info[key]) for key in ("mean", "std"))
        lines = [("", ""), ("colours", "RGB, scaled to 0..1"), ("mean", mean), ("standard deviation", std)]
        if size:
            lines.append(("image size", "×".join(map(str, size[1:]))))
        lines += [(key, info[key]) for key in ("interpolation", "crop_pct") if info.get(key)]
        parts.append(f"## Preprocessing\n\n{_table(lines)}")
    labels = info.get("label_names")
    if labels:
        names = labels.values() if isinstance(labels, Mapping) else labels
        listed = ", ".join(f"{i} {label}" for i, label in enumerate(names))
        parts.append(f"## Classes\n\n<details><summary>{len(labels)} classes</summary>\n\n{listed}\n\n</details>")
    results = [
        (r["dataset"], r.get("split", ""), r["metric"], r.get("setting", ""), r["value"], _link(r))
        for r in info.get("results") or ()
    ]
    results += [("", "", key, "", value, "") for key, value in (metrics or {}).items()]
    if results:
        parts.append(
            "## Results\n\n" + _table([("data set", "split", "metric", "setting", "value", "source"), *results])
        )
    licence = info.get("license") or "apache-2.0"
    parts.append(f"## Licence\n\nThese weights: {licence}. {_LICENCE}")
    parts.append(f"## Citation\n\n```bibtex\n{_CITATION}\n```\n")
    return "\n\n".join(parts)


def _link(result: Mapping[str, Any]) -> str:
    source = result.get("source")
    return f"[{result.get('source_name') or source}]({source})" if source else result.get("source_name") or "measured"
