"""Model cards for the Hugging Face Hub, written from a model's configuration.

A card's front matter is what the Hub indexes: library, task, license, data set, tags, and evaluation results in its
model-index form (https://huggingface.co/docs/hub/model-cards). The text answers what the next user asks. A card states
only what the configuration or its author states: what is unknown is said to be unknown.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from segmentation_models_pytorch.base.hub_mixin import MODEL_CARD
from timm.models import PretrainedCfg, is_model_in_modules

from ..label_sets import LABEL_SETS

HERE = "."  # where the model is for the card of a folder: beside the card
_PLACEHOLDER = "USER/REPO"  # as documentation writes it; a card that somebody copied it into must not keep it

_PAPER = "https://arxiv.org/abs/2209.08575"
_AUTHORS = "https://github.com/Visual-Attention-Network/SegNeXt"
_INSTALL = "pip install segnext-timm"
_METRIC_IDS = {"mIoU": "mean_iou", "top-1": "accuracy", "top-5": "accuracy"}  # on hf.co/metrics
_CITATION = """```bibtex
@inproceedings{guo2022segnext,
  title     = {SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation},
  author    = {Guo, Meng-Hao and Lu, Cheng-Ze and Hou, Qibin and Liu, Zhengning and Cheng, Ming-Ming and Hu, Shi-Min},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}
```"""
_REQUEST = f"""The authors of SegNeXt publish their weights under Apache-2.0 and ask
[commercial users to contact them]({_AUTHORS})."""
_NOT_STATED = "Not stated: ask the publisher of this model."


def segmenter_card(
    config: Mapping[str, Any], metrics: Mapping[str, Any] | None = None, repo: str = HERE, **fields: Any
) -> ModelCard:
    """Card of a segmentation model of smp.

    Args:
        config: The model's configuration, as in its config.json.
        metrics: Results by name, without further details.
        repo: Repository on the Hub that the model is loaded from; by default, the folder that holds the card.
        fields: What the card says in place of the configuration's `pretrained_cfg`: `dataset`, `license`,
            `description`, `label_names`, `results`, `training`, `base_model`.

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
        ("", info.get("description") or _segmenter_summary(architecture, encoder, on_mscan, info)),
        ("Use it", _segmenter_usage(config, info, repo, on_mscan)),
        ("Architecture", _table([("", ""), *((k, v) for k, v in rows.items() if v is not None)])),
        ("Preprocessing", _preprocessing(info)),
        ("Classes", _classes(info.get("label_names"))),
        ("Training", _training(info, base_model)),
        ("Results", _results(info, metrics)),
        ("Limits", _limits(info, config.get("classes", 1), is_segnext)),
        ("License", _segmenter_license(config, info, on_mscan)),
        ("Citation", _CITATION if is_segnext or on_mscan else None),
    ]
    return _assemble(data, name, sections)


def backbone_card(config: Mapping[str, Any], repo: str = HERE, **fields: Any) -> ModelCard:
    """Card of a timm model.

    Args:
        config: The model's configuration, as in its config.json.
        repo: Repository on the Hub that the model is loaded from; by default, the folder that holds the card.
        fields: As of :func:`segmenter_card`.

    Returns:
        The card.
    """
    info = {**_info(config), "label_names": config.get("label_names"), **fields}
    name = config["architecture"]
    is_mscan = _is_mscan(name)
    task = "image-classification" if config.get("num_classes") else "image-feature-extraction"
    published = _timm_cfg(f"{name}.{info['tag']}" if info.get("tag") else name)
    # timm names a license for the weights it publishes, and keeps it when the model has others
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
    source = f". MSCAN is the encoder of [SegNeXt]({_PAPER}), NeurIPS 2022" if is_mscan else ""
    sections = [
        ("", info.get("description") or f"A timm model for {what}{trained_on}{source}."),
        ("Use it", _backbone_usage(config, info, repo, is_mscan)),
        ("Architecture", _table([("", ""), *((k, v) for k, v in rows.items() if v is not None)])),
        ("Preprocessing", _preprocessing(info)),
        ("Classes", _classes(info.get("label_names"))),
        ("Training", _training(info, info.get("base_model"))),
        ("Results", _results(info, None)),
        ("Limits", _limits(info)),
        ("License", _backbone_license(stated, info, published, is_mscan)),
        ("Citation", _CITATION if is_mscan else None),
    ]
    return _assemble(data, name, sections)


def point_to_repo(text: str, repo: str) -> str:
    """Point the code of a folder's card at a Hub repository; text that people wrote is kept.

    Args:
        text: The card.
        repo: Id of the repository on the Hub.
    """
    text = text.replace(f'from_pretrained("{HERE}")', f'from_pretrained("{repo}")')
    text = text.replace(f'local-dir:{HERE}"', f'hf-hub:{repo}"')
    return text.replace(_PLACEHOLDER, repo)


def parse_smp_card(text: str) -> dict[str, Any] | None:
    """Parse what smp's own card adds to the configuration; None for a card that smp did not write or that was edited.

    smp's card claims the license of smp for the weights, and names no place to load them from.

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


# What is known of a model


def info_key(config: Mapping[str, Any]) -> str:
    """Key under which a configuration keeps facts on its weights.

    SegNeXt takes `pretrained_cfg`. timm refuses entries that it does not know in its own, and smp hands those of other
    architectures to timm; both leave out a name that begins with an underscore.
    """
    is_segnext = "encoder_name" in config and config.get("_model_class", "SegNeXt") == "SegNeXt"
    return "pretrained_cfg" if is_segnext else "_pretrained_cfg"


def _info(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**(config.get("pretrained_cfg") or {}), **(config.get("_pretrained_cfg") or {})}


def _is_mscan(name: str) -> bool:
    """Whether a timm name, with or without tag, is a variant of MSCAN."""
    return is_model_in_modules(name.split(".")[0], ["mscan"])


def _timm_cfg(name: str) -> PretrainedCfg | None:
    """timm's record of the weights published under a name; None for an unknown name."""
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # the architecture has no such tag
        return None


def _is_hub_id(name: str | None) -> bool:
    if not name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def _began_pretrained(config: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    """Whether the encoder started from pretrained weights."""
    start = (info.get("training") or {}).get("init_from")
    return config.get("encoder_weights") not in (None, False) or start == "imagenet"


def _base_model_of_segmenter(config: Mapping[str, Any], info: Mapping[str, Any]) -> str | None:
    """Model that training started from: a Hub id or another name; None if unknown."""
    start = (info.get("training") or {}).get("init_from")
    if start not in (None, "none", "imagenet"):
        return start
    if not _began_pretrained(config, info):
        return None
    name, weights = str(config["encoder_name"]), config.get("encoder_weights")
    if ":" in name:  # "tu-hf-hub:user/repo@revision"
        return name.split(":", 1)[1].split("@")[0] if name.startswith(("tu-hf-hub:", "tu-hf_hub:")) else None
    if name.startswith("tu-"):
        cfg = _timm_cfg(name.removeprefix("tu-"))
        return (cfg.hf_hub_id or f"{cfg.architecture}.{cfg.tag}") if cfg and cfg.has_weights else None
    settings = smp.encoders.encoders.get(name, {}).get("pretrained_settings", {})
    return settings.get(weights if isinstance(weights, str) else "imagenet", {}).get("repo_id")


def _divisor(config: Mapping[str, Any]) -> int | None:
    """Number that height and width must be multiples of: 1 for any size; None if unknown."""
    architecture = config.get("_model_class", "SegNeXt")
    if not getattr(getattr(smp, architecture, None), "requires_divisible_input_shape", True):
        return 1
    if architecture == "DPT" or "encoder_depth" not in config:
        return None
    stride = config.get("encoder_output_stride") or config.get("output_stride") or 32
    return min(stride, 2 ** config["encoder_depth"])


def _dataset_id(name: str) -> str:
    """Hub id of a data set if known, else its name in the form of an id."""
    for labels in LABEL_SETS.values():
        if name in (labels.key, labels.name):
            return labels.hub_id or labels.key
    return {"ImageNet-1k": "imagenet-1k"}.get(name, "-".join(name.lower().split()))


# Front matter


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
        base_model=base_model if _is_hub_id(base_model) else None,  # the Hub takes ids of its own only
        datasets=[_dataset_id(dataset)] if dataset else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        eval_results=results or None,
        **front_matter,
    )


# Text


def _assemble(data: ModelCardData, name: str, sections: Iterable[tuple[str, str | None]]) -> ModelCard:
    parts = [f"## {title}\n\n{text}" if title else text for title, text in sections if text]
    body = "\n\n".join(parts)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{body}\n")


def _table(rows: Iterable[Iterable[Any]]) -> str:
    first, *rest = [[str(cell) for cell in row] for row in rows]
    lines = [first, ["---"] * len(first), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _segmenter_summary(architecture: str, encoder: str, on_mscan: bool, info: Mapping[str, Any]) -> str:
    trained_on = f", trained on {info['dataset']}" if info.get("dataset") else ""
    if architecture == "SegNeXt":
        what = f"[SegNeXt]({_PAPER}) (NeurIPS 2022)" if on_mscan else f"the decoder of [SegNeXt]({_PAPER}) on {encoder}"
    else:
        what = f"{architecture} of segmentation-models-pytorch on {encoder}"
        what += f", the encoder of [SegNeXt]({_PAPER})" if on_mscan else ""
    return f"A model for semantic segmentation{trained_on}: {what}."


def _segmenter_usage(config: Mapping[str, Any], info: Mapping[str, Any], repo: str, on_mscan: bool) -> str:
    is_segnext = config.get("_model_class", "SegNeXt") == "SegNeXt"
    load = f'model = smp.from_pretrained("{repo}").eval()'
    if is_segnext or on_mscan:
        registers = "SegNeXt and MSCAN" if is_segnext else "MSCAN"
        image = "image.tif" if config.get("in_channels") == 4 else "image.jpg"
        # a binary model has one more label than names
        named = is_segnext and config.get("classes", 1) > 1
        known = [f'model.pretrained_cfg["{key}"]' for key in ("label_names", "palette") if named and info.get(key)]
        install, code = (
            _INSTALL,
            f"""import segmentation_models_pytorch as smp
from segnext_timm import overlay, predict  # this import registers {registers}

{load}
labels = predict(model, "{image}")  # (height, width), at the image's own size
overlay({", ".join([f'"{image}"', "labels", *known])}).save("overlay.jpg")""",
        )
        error = "module 'segmentation_models_pytorch' has no attribute 'SegNeXt'"
        if not is_segnext:
            error = f"Unknown model ({str(config['encoder_name']).removeprefix('tu-').split('.')[0]})"
        notes = [f"Without `import segnext_timm`, loading ends with `{error}`."]
        if config.get("in_channels", 3) not in (1, 3, 4):
            notes.append(f"`predict` takes arrays (height, width, {config['in_channels']}) in place of files.")
    else:
        install = "pip install segmentation-models-pytorch"
        code = f"import segmentation_models_pytorch as smp\n\n{load}"
        notes = (
            ["If the encoder is an MSCAN, `import segnext_timm` first."] if ":" in str(config["encoder_name"]) else []
        )
    notes.append(_input_and_output(config))
    return f"```bash\n{install}\n```\n\n```python\n{code}\n```\n\n" + "\n".join(notes)


def _input_and_output(config: Mapping[str, Any]) -> str:
    divisor, activation = _divisor(config), config.get("activation")
    sizes = {None: "", 1: ", sides of any length,"}.get(divisor, f", height and width multiples of {divisor},")
    if config.get("_model_class", "SegNeXt") == "SegNeXt":
        sizes = " of any size from 32×32 up"
    outputs = f"maps after the activation `{activation}`" if activation else "logits"
    masks = "`model(images)[0]`" if config.get("aux_params") else "`model(images)`"
    text = f"Images (B, C, H, W){sizes} become {outputs} (B, classes, H, W), {masks}"
    if config.get("classes", 1) > 1:
        return f"{text}; labels are their argmax over the classes."
    return f"{text}." if activation else f"{text}; positive where the class is."


def _backbone_usage(config: Mapping[str, Any], info: Mapping[str, Any], repo: str, is_mscan: bool) -> str:
    place = f"local-dir:{HERE}" if repo == HERE else f"hf-hub:{repo}"
    has_images = (info.get("input_size") or (3,))[0] == 3
    lines = ["import timm"]
    lines += ["import segnext_timm  # registers MSCAN"] if is_mscan else []
    lines += ["from PIL import Image"] if has_images else []
    lines += ["", f'model = timm.create_model("{place}", pretrained=True).eval()']
    if has_images:
        lines += [
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            f"{'logits' if config.get('num_classes') else 'features'} = "
            'model(transform(Image.open("image.jpg").convert("RGB"))[None])',
        ]
    code, notes = "\n".join(lines), []
    if is_mscan:
        encoder = f'smp.create_model("segnext", "tu-{place}", encoder_weights=True, classes=19)'
        notes = [
            f"Without `import segnext_timm`, loading ends with `Unknown model ({config['architecture']})`.",
            f"As the encoder of a segmenter: `{encoder}`.",
        ]
    install = _INSTALL if is_mscan else "pip install timm"
    return f"```bash\n{install}\n```\n\n```python\n{code}\n```" + "".join(f"\n\n{note}" for note in notes)


def _preprocessing(info: Mapping[str, Any]) -> str | None:
    if not (info.get("mean") and info.get("std")):
        return None
    mean, std = (" ".join(f"{v:g}" for v in info[key]) for key in ("mean", "std"))
    lines = [("", ""), ("values", "scaled to 0..1")]
    if len(info["mean"]) == 3:
        lines.append(("colors", "RGB"))
    lines += [("mean", mean), ("standard deviation", std)]
    if info.get("input_size"):
        lines.append(("image size", "×".join(map(str, info["input_size"][1:]))))
    lines += [(key, info[key]) for key in ("interpolation", "crop_pct") if info.get(key)]
    return _table(lines)


def _classes(labels: Any) -> str | None:
    if not labels:
        return None
    names = labels.values() if isinstance(labels, Mapping) else labels
    listed = ", ".join(f"{i} {label}" for i, label in enumerate(names))
    return f"<details><summary>{len(labels)} classes</summary>\n\n{listed}\n\n</details>"


def _training(info: Mapping[str, Any], base_model: str | None) -> str | None:
    rows = [(str(key).replace("_", " "), value) for key, value in (info.get("training") or {}).items()]
    rows = [(key, value) for key, value in rows if value is not None]
    if base_model:
        link = f"[{base_model}](https://huggingface.co/{base_model})" if _is_hub_id(base_model) else f"`{base_model}`"
        rows = [("started from", link), *((key, value) for key, value in rows if key != "init from")]
    return _table([("", ""), *rows]) if rows else None


def _results(info: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> str | None:
    results = list(info.get("results") or ())
    rows = [
        (r["dataset"], r.get("split", ""), r["metric"], r.get("setting", ""), r["value"], _measured_by(r))
        for r in results
    ]
    rows += [("", "", key, "", value, _measured_by({})) for key, value in (metrics or {}).items()]
    if not rows:
        return None
    text = _table([("data set", "split", "metric", "setting", "value", "measured by"), *rows])
    commands = dict.fromkeys(r["command"] for r in results if r.get("command"))
    return text + "".join(f"\n\n```bash\n{command}\n```" for command in commands)


def _measured_by(result: Mapping[str, Any]) -> str:
    source, name = result.get("source"), result.get("source_name")
    if source:
        return f"published by [{name or source}]({source})"
    return f"published by {name}" if name else "the publisher of this model"


def _limits(info: Mapping[str, Any], classes: int | None = None, is_segnext: bool = False) -> str:
    """Limits of the model; `classes` is given for a segmentation model."""
    training = info.get("training") or {}
    dataset, size = info.get("dataset") or training.get("dataset"), training.get("crop_size")
    if size is None and info.get("input_size"):
        size = info["input_size"][1:]
    size = (size, size) if isinstance(size, int) else size
    lines = [
        f"It was trained on {dataset}; on images of another kind, expect lower accuracy."
        if dataset
        else "What it was trained on is not stated; on images of another kind, expect lower accuracy."
    ]
    if classes is not None and size:
        size = "×".join(map(str, size))
        lines.append(f"It was trained on crops of {size} pixels: objects of other sizes in pixels are found less well.")
    if classes is not None and classes > 1:
        lines.append("Every pixel gets one of its classes, even where none of them fits.")
    if is_segnext:
        lines.append("Predictions of one image are the same from run to run on one machine.")
    return "\n".join(f"- {line}" for line in lines)


def _segmenter_license(config: Mapping[str, Any], info: Mapping[str, Any], on_mscan: bool) -> str:
    stated = info.get("license")
    parts = [f"These weights: {stated}." if stated else _NOT_STATED]
    origin = info.get("origin_url") or info.get("url")
    if origin:
        kind = "They were fine-tuned from" if info.get("training") else "They are, or were fine-tuned from,"
        parts.append(f"{kind} [published weights]({origin}).")
    elif on_mscan and _began_pretrained(config, info):
        parts.append("The encoder was fine-tuned from the ImageNet weights that the authors of SegNeXt published.")
    if on_mscan and (origin or _began_pretrained(config, info)):
        parts.append(_REQUEST)
    return "\n".join(parts)


def _backbone_license(
    stated: str | None, info: Mapping[str, Any], published: PretrainedCfg | None, is_mscan: bool
) -> str:
    parts = [f"These weights: {stated}." if stated else _NOT_STATED]
    if published is not None and published.has_weights and info.get("origin_url") == published.origin_url:
        place = f" ([origin]({published.origin_url}))" if published.origin_url else ""
        parts.append(
            f"If they began as the published `{published.architecture}.{published.tag}`, the license of these applies: "
            f"{published.license or 'not stated'}{place}."
        )
        if is_mscan:
            parts.append(_REQUEST)
    return "\n".join(parts)
