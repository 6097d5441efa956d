"""Create the model to train: initial weights, facts about its data, and parameter groups."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from timm.layers import convert_sync_batchnorm
from timm.models import adapt_input_conv

from segnext_timm import SegNeXt, create_segmenter, list_segmenters, load_segmenter
from segnext_timm.variants import VARIANTS as SIZES

from .data import Split
from .evaluation import class_names
from .metrics import Scores
from .recipe import Scale, SettingsError, TrainSettings
from .transforms import Normalization

# encoder, decoder channels, rank and drop path rate of the paper's models (its code, configs of ADE20K)
VARIANTS = {v.key: (f"tu-{v.backbone}", v.decoder_channels, v.decoder_rank, v.drop_path_rate) for v in SIZES.values()}

_OF_ORIGIN = ("origin_url", "dataset_terms")  # of the initial weights: where they come from, and their data's terms


def build_model(
    settings: TrainSettings, split: Split, log: Callable[[str], None] = print
) -> smp.base.SegmentationModel:
    """Create the model to train, with class names and preprocessing.

    Args:
        settings: Model and `init_from`.
        split: Training data.
        log: Called with the report on the loaded weights.

    Returns:
        The model with its initial weights.
    """
    classes, channels, head, stem = len(split.classes), split.form.channels or 3, None, None
    if settings.init_from in ("imagenet", "none"):
        with torch.random.fork_rng(devices=[]):
            initial = create_model(settings, classes, False, channels).state_dict()
        model = create_model(settings, classes, settings.init_from != "none", channels)
        stem = 3 if settings.init_from != "none" and channels != 3 else None
        # report what loading really changed
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, initial[name])}
        loaded = {name for name in changed if name.startswith("encoder.")} if settings.init_from != "none" else set()
    else:
        source = load_segmenter(settings.init_from)
        published = _is_published(settings.init_from)
        model = create_model(settings, classes, False, channels) if published else None
        model = model or _like(source, settings, classes, channels)
        if not (isinstance(model, SegNeXt) or split.form.is_photo):
            raise SettingsError(
                f"{type(model).__name__} of {settings.init_from} keeps no range and no bands of its images: for images "
                f"of {channels} channels or more than 8 bits, train SegNeXt."
            )
        own, last, weights = model.state_dict(), last_layer(source), source.state_dict()
        first = first_layer(source)
        if weights[first].shape[1] == 3 != channels:
            weights[first], stem = adapt_input_conv(channels, weights[first]), 3
        fitting = {n: v for n, v in weights.items() if n in own and v.shape == own[n].shape}
        fitting = {name: value for name, value in fitting.items() if name not in last}
        model.load_state_dict(fitting, strict=False)
        head = copy_classes(model, source, split.classes)
        loaded = {*fitting, *(last if head is None else ())}
        if isinstance(model, SegNeXt):
            model.pretrained_cfg.update({k: v for k, v in source.pretrained_cfg.items() if k in _OF_ORIGIN})
    log(weights_report(model, loaded, settings.init_from, head))
    if stem:
        log(f"  of these, the first convolution of {stem} channels was adapted to {channels}, as timm does")
    describe(model, split, settings.crop_size, settings.fit_in)
    if settings.fit_in not in (None, "auto") and not isinstance(model, SegNeXt):
        log(f"  {type(model).__name__} does not keep the scale of its images: give predict fit_in={settings.fit_in}")
    if isinstance(model, SegNeXt):
        model.upsampling = 1  # the loss resizes the logits
    model.encoder.requires_grad_(not settings.freeze_encoder)
    if settings.freeze_encoder and settings.init_from == "none":
        log("Warning: --freeze_encoder keeps the random weights of --init_from none.")
    if settings.grad_checkpointing:
        (model if isinstance(model, SegNeXt) else model.encoder.model).set_grad_checkpointing(True)
    return model


def last_layer(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the weight and the bias, if it has one, of the convolution that computes the classes' logits."""
    convs = [name for name, module in model.segmentation_head.named_modules() if isinstance(module, torch.nn.Conv2d)]
    names = (f"segmentation_head.{convs[-1]}.{part}" for part in ("weight", "bias"))
    return tuple(name for name in names if name in model.state_dict())


def first_layer(model: torch.nn.Module) -> str:
    """Name of the weight of the convolution that takes the image."""
    names = (f"{name}.weight" for name, m in model.encoder.named_modules() if isinstance(m, torch.nn.Conv2d))
    return f"encoder.{next(names)}"


def copy_classes(model: torch.nn.Module, source: torch.nn.Module, classes: Sequence[str]) -> str | None:
    """Copy the rows of the last layer that belong to the same classes, by name; others stay as initialized.

    A source that does not name its classes gives all rows by number, if there are as many.

    Returns:
        What was copied, in words; None if it is the whole layer as it is.
    """
    own, theirs, names = model.state_dict(), source.state_dict(), class_names(source)
    layer, count = last_layer(model), theirs[last_layer(source)[0]].shape[0]
    if names is None:
        rows = {i: i for i in range(count)} if count == len(classes) else {}
        note = "by number, since they have no names there"
    else:  # the one row of a binary model has another meaning
        rows = {i: names.index(name) for i, name in enumerate(classes) if name in names and len(names) == count}
        note = "by name"
    for name, from_name in zip(layer, last_layer(source)):
        for to, row in rows.items():
            own[name][to] = theirs[from_name][row]
    if names == list(classes) and rows:
        return None
    new = [name for i, name in enumerate(classes) if i not in rows]
    more = f"; as initialized: {', '.join(new[:5])}{f' and {len(new) - 5} more' if len(new) > 5 else ''}" if new else ""
    moved = ", in another order" if names is not None and not new else ""
    return f"{len(rows)} of {len(classes)} classes {note}{moved}{more}"


def _is_published(name: str) -> bool:
    """Whether a published segmenter has the name, or begins with it before its dot, and no folder here has it."""
    published = list_segmenters()
    return not Path(name).is_dir() and (name in published or name in {each.partition(".")[0] for each in published})


def create_model(settings: TrainSettings, classes: int, pretrained: bool, in_channels: int = 3) -> SegNeXt:
    """Create SegNeXt from the settings, or the published segmenter that they name."""
    if _is_published(settings.init_from):
        _, _, _, drop_path = VARIANTS[settings.init_from.partition(".")[0].removeprefix("segnext_")]
        model = create_segmenter(
            settings.init_from,
            pretrained=pretrained,
            classes=classes,
            in_channels=in_channels,
            drop_path_rate=drop_path if settings.drop_path_rate is None else settings.drop_path_rate,
            decoder_one_step_gradient=settings.one_step_gradient,
        )
        _check_size(settings, *(model.config[name] for name in ("encoder_name", "decoder_channels", "decoder_rank")))
        return model
    encoder, channels, rank, drop_path = VARIANTS[settings.variant or "t"]
    encoder = settings.encoder or encoder
    drop_path = drop_path if settings.drop_path_rate is None else settings.drop_path_rate
    return SegNeXt(
        encoder,
        encoder_weights="imagenet" if pretrained else None,
        decoder_channels=settings.decoder_channels or channels,
        decoder_rank=settings.decoder_rank or rank,
        classes=classes,
        in_channels=in_channels,
        decoder_one_step_gradient=settings.one_step_gradient,
        **({"drop_path_rate": drop_path} if "mscan" in encoder or settings.drop_path_rate is not None else {}),
    )


def _like(source: torch.nn.Module, settings: TrainSettings, classes: int, channels: int) -> torch.nn.Module:
    """Create a model like a loaded one, with another number of classes and the settings of its training."""
    config = {**source.config, "classes": classes, "encoder_weights": None, "in_channels": channels}
    config |= {"pretrained_cfg": None, "aux_params": None}  # an image classifier would get no gradient
    _check_size(settings, *(config.get(name) for name in ("encoder_name", "decoder_channels", "decoder_rank")))
    if isinstance(source, SegNeXt):
        config["decoder_one_step_gradient"] = settings.one_step_gradient
    if settings.drop_path_rate is not None:
        config["drop_path_rate"] = settings.drop_path_rate
    return type(source)(**{name: value for name, value in config.items() if not name.startswith("_")})


def _check_size(settings: TrainSettings, encoder: str, channels: Any, rank: int | None) -> None:
    """Raise a SettingsError if a setting contradicts the model that `init_from` names."""
    size = settings.variant and VARIANTS[settings.variant][0]
    for name, value, asked, found in (
        ("variant", settings.variant, None if settings.encoder else size, encoder.split(".")[0]),
        ("encoder", settings.encoder, settings.encoder, encoder),
        ("decoder_channels", settings.decoder_channels, settings.decoder_channels, channels),
        ("decoder_rank", settings.decoder_rank, settings.decoder_rank, rank),
    ):
        if asked is not None and asked != found:
            raise SettingsError(
                f"--{name} {value} contradicts --init_from {settings.init_from}, where it is {found}: leave --{name} "
                f"out, or start from other weights."
            )


def weights_report(model: torch.nn.Module, loaded: set[str], source: str, head: str | None = None) -> str:
    """Report which weights were loaded into which part of a model and what stays random, one line per part.

    Pretrained weights that silently did not load are the most common reason for bad results.

    Args:
        model: The model.
        loaded: Names of the tensors that were loaded.
        source: Their origin.
        head: What of the last layer was loaded, if that is not all or nothing.
    """
    lines = ["Initial weights:"]
    # counters and bases are the same with and without loading
    names = [n for n in model.state_dict() if not n.endswith((".num_batches_tracked", ".nmf.bases"))]
    for part in dict.fromkeys(name.split(".")[0] for name in names):
        own = [name for name in names if name.split(".")[0] == part]
        missing = [name for name in own if name not in loaded]
        if not missing:
            text = f"all {len(own)} tensors from {source}"
        elif len(missing) == len(own):
            text = f"random, all {len(own)} tensors"
        else:
            listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            text = f"{len(own) - len(missing)} of {len(own)} tensors from {source}; as initialized: {listed}"
        if head and part == "segmentation_head":
            text = f"{head}, from {source}"
        lines.append(f"  {part.replace('_', ' ')}: {text}")
    if source != "none" and not any(name.startswith("encoder.") and name in loaded for name in names):
        lines.append(f"Warning: nothing was loaded into the encoder from {source}; training from scratch takes longer.")
    return "\n".join(lines)


def with_synced_norms(
    model: torch.nn.Module, wanted: bool, processes: int, device: torch.device, log: Callable[[str], None] = print
) -> torch.nn.Module:
    """Synchronize batch norms across processes if that is wanted and possible; else log the reason."""
    if processes > 1 and wanted and device.type == "cuda":
        return convert_sync_batchnorm(model)  # timm's, because torch's drops the activations of BatchNormAct2d
    if processes > 1:
        reason = f"torch does so on GPUs only, and this is {device.type}" if wanted else "sync_batchnorm is off"
        log(f"Batch norms are not synchronized: {reason}.")
    return model


def normalization(model: smp.base.SegmentationModel) -> Normalization:
    """Mean and standard deviation that predict and evaluate use: those of the model, of its encoder, or smp's."""
    for module in (model, getattr(model.encoder, "model", None)):
        facts = getattr(module, "pretrained_cfg", None) or {}
        if facts.get("mean") and facts.get("std"):
            return tuple(facts["mean"]), tuple(facts["std"])
    encoder, weights = model.config["encoder_name"], model.config.get("encoder_weights") or "imagenet"
    facts = smp.encoders.get_preprocessing_params(encoder, weights)
    mean, std = (tuple(value / facts["input_range"][1] for value in facts[key]) for key in ("mean", "std"))
    return mean, std


def describe(model: torch.nn.Module, split: Split, crop_size: int, fit_in: Scale = "auto") -> None:
    """Store data set, class names, palette and preprocessing in the model, which saves them; auto is no scale yet."""
    if isinstance(model, SegNeXt):
        known = {"dataset": split.name, "label_names": list(split.classes), "palette": list(map(list, split.palette))}
        origin = {key: model.pretrained_cfg[key] for key in _OF_ORIGIN if key in model.pretrained_cfg}
        mean, std = map(list, split.form.normalization)
        form = {"range": split.form.value_range, "bands": split.form.bands}
        model.pretrained_cfg.clear()
        model.pretrained_cfg.update(
            known,
            **origin,
            **{key: np.array(value).tolist() for key, value in form.items() if value is not None},
            mean=mean,
            std=std,
            **({} if fit_in == "auto" else {"fit_in": fit_in and list(fit_in)}),
            input_size=[split.form.channels or 3, crop_size, crop_size],
        )


def note_results(model: SegNeXt, split: Split, scores: Scores) -> None:
    """Store a split's mIoU in the model, which is saved with it if it is saved before it is trained further."""
    result = {"dataset": split.name, "split": "val", "metric": "mIoU", "value": round(100 * scores.miou, 2)}
    model.pretrained_cfg["results"] = [{**result, "setting": "single scale"}]


def training_facts(settings: TrainSettings, iteration: int) -> dict[str, Any]:
    """Collect facts about the training, up to an iteration, for the model card."""
    names = ("dataset", "crop_size", "batch_size", "loss", "lr", "weight_decay", "precision", "ema_decay", "seed")
    start = Path(settings.init_from)
    return {
        "script": "examples/train.py of segnext-timm",
        "iterations": f"{iteration} of {settings.iterations}",
        **{name: getattr(settings, name) for name in names},
        # a local folder's path means nothing elsewhere, and may look like a Hub repository
        "init_from": f"{start.name} (a local model)" if start.is_dir() else settings.init_from,
    }


def paper_parameter_groups(model: torch.nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Group parameters by learning rate and weight decay, exactly as in the paper's code.

    Only the encoder's norms outside the stem have no weight decay: the published code exempts parameters with "norm" in
    their names, and it calls the stem's batch norms `proj.1` and `proj.4`, and the decoder's group norms `gn`.
    `segnext_timm.parameter_groups` is for other loops: it exempts all norms, biases and layer scales, as is usual.
    """
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_encoder = name.startswith("encoder.")
            decays = not (in_encoder and "norm" in name and ".stem." not in name)
            groups.setdefault((in_encoder, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_factor": 1.0 if in_encoder else settings.decoder_lr_factor,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (in_encoder, decays), parameters in groups.items()
    ]
