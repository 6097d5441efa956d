"""Sections of model cards: summary, usage, preprocessing, classes, training, results, limits, license."""

from collections.abc import Iterable, Mapping
from typing import Any

import segmentation_models_pytorch as smp
from huggingface_hub.utils import HFValidationError, validate_repo_id
from timm.models import PretrainedCfg

HERE = "."  # place of the model in the card of a folder
PAPER = "https://arxiv.org/abs/2209.08575"
_AUTHORS = "https://github.com/Visual-Attention-Network/SegNeXt"
_INSTALL = "pip install segnext-timm"
_REQUEST = f"""The authors of SegNeXt publish their weights under Apache-2.0 and ask
[commercial users to contact them]({_AUTHORS})."""
_NOT_STATED = "Not stated. Ask the publisher of this model."


def is_hub_id(name: str | None) -> bool:
    """Whether a name has the form of a repository on the Hub, user/name."""
    if not name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def began_pretrained(config: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    """Whether the encoder started from pretrained weights."""
    start = (info.get("training") or {}).get("init_from")
    return config.get("encoder_weights") not in (None, False) or start == "imagenet"


def _divisor(config: Mapping[str, Any]) -> int | None:
    """Number that height and width must be multiples of: 1 for any size; None if unknown."""
    architecture = config.get("_model_class", "SegNeXt")
    if not getattr(getattr(smp, architecture, None), "requires_divisible_input_shape", True):
        return 1
    if architecture == "DPT" or "encoder_depth" not in config:
        return None
    stride = config.get("encoder_output_stride") or config.get("output_stride") or 32
    return min(stride, 2 ** config["encoder_depth"])


def table(rows: Iterable[Iterable[Any]]) -> str:
    """Format rows, the header first, as a Markdown table."""
    first, *rest = [[str(cell) for cell in row] for row in rows]
    lines = [first, ["---"] * len(first), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def segmenter_summary(architecture: str, encoder: str, on_mscan: bool, info: Mapping[str, Any]) -> str:
    """One sentence on a segmentation model."""
    trained_on = f", trained on {info['dataset']}" if info.get("dataset") else ""
    if architecture == "SegNeXt":
        what = f"[SegNeXt]({PAPER}) (NeurIPS 2022)" if on_mscan else f"the decoder of [SegNeXt]({PAPER}) on {encoder}"
    else:
        what = f"{architecture} of segmentation-models-pytorch on {encoder}"
        what += f", the encoder of [SegNeXt]({PAPER})" if on_mscan else ""
    return f"A model for semantic segmentation{trained_on}: {what}."


def segmenter_usage(config: Mapping[str, Any], info: Mapping[str, Any], repo: str, on_mscan: bool) -> str:
    """Install line, code from an image to an overlay, and the error without the import."""
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


def backbone_usage(config: Mapping[str, Any], info: Mapping[str, Any], repo: str, is_mscan: bool) -> str:
    """Install line and code for a timm model."""
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


def preprocessing_section(info: Mapping[str, Any]) -> str | None:
    """Mean, standard deviation and size of the images; None if unknown."""
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
    return table(lines)


def classes_section(labels: Any) -> str | None:
    """Names of the classes, folded; None if unknown."""
    if not labels:
        return None
    names = labels.values() if isinstance(labels, Mapping) else labels
    listed = ", ".join(f"{i} {label}" for i, label in enumerate(names))
    return f"<details><summary>{len(labels)} classes</summary>\n\n{listed}\n\n</details>"


def training_section(info: Mapping[str, Any], base_model: str | None) -> str | None:
    """Facts on the training as a table; None if unknown."""
    rows = [(str(key).replace("_", " "), value) for key, value in (info.get("training") or {}).items()]
    rows = [(key, value) for key, value in rows if value is not None]
    if base_model:
        link = f"[{base_model}](https://huggingface.co/{base_model})" if is_hub_id(base_model) else f"`{base_model}`"
        rows = [("started from", link), *((key, value) for key, value in rows if key != "init from")]
    return table([("", ""), *rows]) if rows else None


def results_section(info: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> str | None:
    """Results with who measured them, and the commands; None if there are none."""
    results = list(info.get("results") or ())
    rows = [
        (r["dataset"], r.get("split", ""), r["metric"], r.get("setting", ""), r["value"], _measured_by(r))
        for r in results
    ]
    rows += [("", "", key, "", value, _measured_by({})) for key, value in (metrics or {}).items()]
    if not rows:
        return None
    text = table([("data set", "split", "metric", "setting", "value", "measured by"), *rows])
    commands = dict.fromkeys(r["command"] for r in results if r.get("command"))
    return text + "".join(f"\n\n```bash\n{command}\n```" for command in commands)


def _measured_by(result: Mapping[str, Any]) -> str:
    source, name = result.get("source"), result.get("source_name")
    if source:
        return f"published by [{name or source}]({source})"
    return f"published by {name}" if name else "the publisher of this model"


def limits_section(info: Mapping[str, Any], classes: int | None = None, is_segnext: bool = False) -> str:
    """Limits of the model; `classes` is given for a segmentation model."""
    training = info.get("training") or {}
    dataset, size = info.get("dataset") or training.get("dataset"), training.get("crop_size")
    if size is None and info.get("input_size"):
        size = info["input_size"][1:]
    size = (size, size) if isinstance(size, int) else size
    lines = [
        f"It was trained on {dataset}; expect lower accuracy on images of another kind."
        if dataset
        else "Its training data is not stated; expect lower accuracy on images of another kind."
    ]
    if classes is not None and size:
        size = "×".join(map(str, size))
        lines.append(
            f"It was trained on crops of {size} pixels; expect lower accuracy for objects of other sizes in pixels."
        )
    if classes is not None and classes > 1:
        lines.append("It assigns a class to every pixel, even where no class fits.")
    if is_segnext:
        lines.append("Predictions are deterministic: the same from run to run on one machine.")
    return "\n".join(f"- {line}" for line in lines)


def segmenter_license(config: Mapping[str, Any], info: Mapping[str, Any], on_mscan: bool) -> str:
    """License and origin of a segmentation model's weights."""
    stated = info.get("license")
    parts = [f"These weights: {stated}." if stated else _NOT_STATED]
    origin = info.get("origin_url") or info.get("url")
    if origin:
        kind = "They were fine-tuned from" if info.get("training") else "They are, or were fine-tuned from,"
        parts.append(f"{kind} [published weights]({origin}).")
    elif on_mscan and began_pretrained(config, info):
        parts.append("The encoder was fine-tuned from the ImageNet weights that the authors of SegNeXt published.")
    if on_mscan and (origin or began_pretrained(config, info)):
        parts.append(_REQUEST)
    return "\n".join([*parts, *_terms(info)])


def _terms(info: Mapping[str, Any]) -> list[str]:
    """What sources say of the terms of the data sets behind published weights."""
    return [
        f"- The terms of {term['dataset']}, by [this source]({term['source']}): {term['says']}."
        for term in info.get("dataset_terms") or ()
    ]


def backbone_license(
    stated: str | None, info: Mapping[str, Any], published: PretrainedCfg | None, is_mscan: bool
) -> str:
    """License and origin of a timm model's weights."""
    parts = [f"These weights: {stated}." if stated else _NOT_STATED]
    if published is not None and published.has_weights and info.get("origin_url") == published.origin_url:
        place = f" ([origin]({published.origin_url}))" if published.origin_url else ""
        parts.append(
            f"If they come from the published `{published.architecture}.{published.tag}`, its license applies: "
            f"{published.license or 'not stated'}{place}."
        )
        if is_mscan:
            parts.append(_REQUEST)
    return "\n".join([*parts, *_terms(info)])
