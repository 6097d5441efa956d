"""The model that training begins with: its weights, what it is told of its data, and its parameter groups."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch

from segnext_timm import SegNeXt, create_segmenter, list_segmenters
from segnext_timm.checkpoints.segmenters import load_segmenter
from segnext_timm.models.model_info import tensor_digest
from segnext_timm.variants import VARIANTS as SIZES

from .data import Split
from .metrics import Scores
from .recipe import TrainSettings
from .transforms import MEAN, STD

# encoder, decoder channels, rank and drop path rate of the paper's models (its code, configs of ADE20K)
VARIANTS = {v.key: (f"tu-{v.backbone}", v.decoder_channels, v.decoder_rank, v.drop_path_rate) for v in SIZES.values()}


def build_model(
    settings: TrainSettings, split: Split, log: Callable[[str], None] = print
) -> smp.base.SegmentationModel:
    """Create the model to train, and tell it its classes and preprocessing.

    Args:
        settings: Model and `init_from`.
        split: What is trained on.
        log: Takes the report on the weights that were loaded.

    Returns:
        The model, with the weights that training begins with.
    """
    if settings.init_from in ("imagenet", "none") or _is_published(settings.init_from):
        state = torch.get_rng_state()
        model = create_model(settings, len(split.classes), settings.init_from != "none")
        loaded = set()
        if settings.init_from != "none":
            # what loading changed counts, whatever was meant to be loaded
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                initial = create_model(settings, len(split.classes), False).state_dict()
            meant = "" if _is_published(settings.init_from) else "encoder."
            changed = {name for name, value in model.state_dict().items() if not torch.equal(value, initial[name])}
            loaded = {name for name in changed if name.startswith(meant)}
    else:
        source = load_segmenter(settings.init_from)
        config = {**source.config, "classes": len(split.classes), "encoder_weights": None, "pretrained_cfg": None}
        model = type(source)(**{name: value for name, value in config.items() if not name.startswith("_")})
        own = model.state_dict()
        fitting = {n: v for n, v in source.state_dict().items() if n in own and v.shape == own[n].shape}
        model.load_state_dict(fitting, strict=False)
        loaded = set(fitting)
    log(weights_report(model, loaded, settings.init_from))
    describe(model, split, settings.crop_size)
    if isinstance(model, SegNeXt):
        model.upsampling = 1  # the loss resizes the logits
    model.encoder.requires_grad_(not settings.freeze_encoder)
    if settings.grad_checkpointing:
        (model if isinstance(model, SegNeXt) else model.encoder.model).set_grad_checkpointing(True)
    if settings.compile:
        model.encoder.compile()
    return model


def _is_published(name: str) -> bool:
    return any(name in (published, published.split(".")[0]) for published in list_segmenters())


def create_model(settings: TrainSettings, classes: int, pretrained: bool) -> SegNeXt:
    """SegNeXt as the settings say, or the published segmenter that they begin with."""
    encoder, channels, rank, drop_path = VARIANTS[settings.variant]
    encoder = settings.encoder or encoder
    drop_path = drop_path if settings.drop_path_rate is None else settings.drop_path_rate
    if _is_published(settings.init_from):
        return create_segmenter(
            settings.init_from,
            pretrained=pretrained,
            classes=classes,
            drop_path_rate=drop_path,
            decoder_one_step_gradient=settings.one_step_gradient,
        )
    return SegNeXt(
        encoder,
        encoder_weights="imagenet" if pretrained else None,
        decoder_channels=settings.decoder_channels or channels,
        decoder_rank=settings.decoder_rank or rank,
        classes=classes,
        decoder_one_step_gradient=settings.one_step_gradient,
        **({"drop_path_rate": drop_path} if "mscan" in encoder or settings.drop_path_rate is not None else {}),
    )


def weights_report(model: torch.nn.Module, loaded: set[str], source: str) -> str:
    """Report which weights were loaded into which part of a model and what stays random, one line per part.

    Pretrained weights that silently did not load are the commonest reason for bad results.

    Args:
        model: The model.
        loaded: Names of the tensors that were loaded.
        source: Where they come from.
    """
    lines = ["Weights that training begins with:"]
    # counters, and bases that come from a fixed seed, say nothing of what was loaded
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
        lines.append(f"  {part.replace('_', ' ')}: {text}")
    if source != "none" and not any(name.startswith("encoder.") and name in loaded for name in names):
        lines.append(f"Warning: nothing was loaded into the encoder from {source}; training from scratch takes longer.")
    return "\n".join(lines)


def with_synced_norms(
    model: torch.nn.Module, wanted: bool, processes: int, device: torch.device, log: Callable[[str], None] = print
) -> torch.nn.Module:
    """Make batch norms compute their statistics over all processes, if that is wanted and can be; else say why not."""
    if processes > 1 and wanted and device.type == "cuda":
        return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if processes > 1:
        reason = f"torch does so on GPUs only, and this is {device.type}" if wanted else "sync_batchnorm is off"
        log(f"Batch norms are not synchronized: {reason}.")
    return model


def describe(model: torch.nn.Module, split: Split, crop_size: int) -> None:
    """Tell a model what it is trained on: classes, palette and preprocessing are saved with it."""
    if isinstance(model, SegNeXt):
        known = {"dataset": split.name, "label_names": list(split.classes), "palette": list(map(list, split.palette))}
        origin = {key: url for key, url in model.pretrained_cfg.items() if key == "origin_url"}  # what it begins with
        model.pretrained_cfg.clear()
        model.pretrained_cfg.update(
            known, **origin, mean=list(MEAN), std=list(STD), input_size=[3, crop_size, crop_size]
        )


def note_results(model: SegNeXt, split: Split, scores: Scores) -> None:
    """Tell a model its mIoU on a split; it is saved with it, as long as the weights stay those that have it."""
    result = {"dataset": split.name, "split": "val", "metric": "mIoU", "value": round(100 * scores.miou, 2)}
    model.pretrained_cfg["results"] = [{**result, "setting": "single scale"}]
    model.pretrained_cfg["results_digest"] = tensor_digest(model.segmentation_head[0].weight)


def training_facts(settings: TrainSettings, iteration: int) -> dict[str, Any]:
    """What a model card tells of the training, up to an iteration."""
    names = ("dataset", "crop_size", "batch_size", "lr", "weight_decay", "precision", "ema_decay", "seed")
    start = Path(settings.init_from)
    return {
        "script": "examples/train.py of segnext-timm",
        "iterations": f"{iteration} of {settings.iterations}",
        **{name: getattr(settings, name) for name in names},
        # the name of a folder here says nothing elsewhere, and may look like one on the Hub
        "init_from": f"{start.name} (a local model)" if start.is_dir() else settings.init_from,
    }


def parameter_groups(model: torch.nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay, as the paper's code has them.

    The encoder's norms do not decay, but for the stem's: the published code exempts parameters by the word "norm" in
    their names, and there the stem's batch norms are called `proj.1` and `proj.4`, the decoder's group norms `gn`.
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
