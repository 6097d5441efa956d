"""Convert a checkpoint to a folder that timm or smp loads."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch

from .._atomic import fill_when_complete, replace_when_complete
from ..errors import CheckpointError, OptionError
from ..hub.cards import save_backbone
from ..label_sets import LABEL_SETS
from ..models.hamburger import NMF2d
from ..models.state_dicts import check_parameters
from .catalog import IMAGENET_MEAN, IMAGENET_STD
from .dialects import Checkpoint, load_checkpoint
from .folder import CONFIG, MODEL_FILES, PICKLE_SUFFIXES, WEIGHTS, info_key, read_facts, read_model_config
from .loading import build_segmenter

_logger = logging.getLogger(__name__)


def convert(
    src: str | Path,
    dst: str | Path,
    rank: int | None = None,
    classes: str | Path | Sequence[str] | None = None,
    ema: bool = False,
    force: bool = False,
    num_classes: int | None = None,
) -> Checkpoint:
    """Convert an MSCAN or SegNeXt checkpoint for timm or smp.

    A backbone becomes a folder for `timm.create_model("local-dir:DST", pretrained=True)`, a segmenter one for
    `smp.from_pretrained("DST")`: model.safetensors, config.json and a model card. The files appear only when they
    are complete.

    Args:
        src: A checkpoint of the paper's code, mmsegmentation, JSeg, PaddleSeg or this package (.pth, .pt, .pkl,
            .pdparams, .zip, .safetensors), or a model folder, whose settings and facts are kept.
        dst: The folder to write.
        rank: Rank R of a segmenter's matrix decomposition, which published files do not contain. Default: the rank in
            the paper's code (16 for T and S, 64 for B and L). mmsegmentation trained its own models with 16.
        classes: Class names, a text file with one name per line, or a data set key such as "ade20k". Default: the
            names in the checkpoint, if any.
        ema: Use the exponential moving average of the weights, if the checkpoint has one.
        force: Replace `dst` if it is a model folder.
        num_classes: Keep only the first outputs, for files with more outputs than classes. Default: all outputs.

    Returns:
        The recognized checkpoint; `str` describes it in one line.

    Raises:
        FileNotFoundError: If `src` does not exist.
        FileExistsError: If `dst` exists.
        OptionError: If an argument is invalid.
        CheckpointError: If `src` cannot be read, could execute code, or is not MSCAN or SegNeXt.
    """
    src, dst = Path(src), Path(dst)
    _check_destination(dst, force)
    # an existing folder may be the current one, or a disk's, which cannot be replaced
    with fill_when_complete(dst, last=CONFIG) if dst.is_dir() else replace_when_complete(dst) as new:
        config = read_model_config(src) if src.is_dir() else {}
        if num_classes is not None:
            (config.get(info_key(config)) or {}).pop("results", None)  # measured with all classes
        checkpoint = load_checkpoint(src / WEIGHTS if config else src, rank=rank, ema=ema, num_classes=num_classes)
        if checkpoint.kind == "backbone" and "encoder_name" in config:
            config = {}  # the folder holds another segmenter, such as Unet: convert only its MSCAN
        try:
            checkpoint = _with_labels(checkpoint, read_facts(config), classes)
            if checkpoint.decoder_channels and checkpoint.rank:  # a segmenter
                bases = NMF2d(checkpoint.decoder_channels, checkpoint.rank).bases
                checkpoint.state_dict.setdefault("decoder.hamburger.nmf.bases", bases)
                heads = [name for name in checkpoint.state_dict if name.startswith("classification_head.")]
                if heads and not config:
                    _logger.warning("Left out the classification head (aux_params), which no configuration describes.")
                    for name in heads:
                        del checkpoint.state_dict[name]
            with torch.device("meta"):
                if checkpoint.kind == "backbone":
                    model: Any = _build_backbone(checkpoint, config)
                else:
                    model = _build_segmenter(checkpoint, config, src)
            check_parameters(checkpoint.state_dict, model.state_dict())
        except CheckpointError as error:
            raise CheckpointError(f"{src}: {error}") from None
        model.load_state_dict(checkpoint.state_dict, assign=True)  # takes the tensors over
        if checkpoint.kind == "backbone":
            facts = config.get("_pretrained_cfg") or {}
            save_backbone(model, new, {**facts, "label_names": checkpoint.label_names})
        else:
            model.save_pretrained(new)
    return checkpoint


def _check_destination(dst: Path, force: bool) -> None:
    """Raise an error if a checkpoint cannot be written to `dst`, or what is there may not be replaced."""
    if dst.suffix in (PICKLE_SUFFIXES | {".safetensors"}):
        raise OptionError(f"{dst} will be a folder: choose a name without {dst.suffix}.")
    inside = {file.name for file in dst.iterdir()} if dst.is_dir() else set()
    if dst.is_file() or (inside and not force):
        raise FileExistsError(
            f"{dst} exists: choose another name, or replace a model folder with --force (force=True)."
        )
    if extra := sorted(inside - MODEL_FILES):
        raise FileExistsError(f"{dst} holds more than a model ({', '.join(extra[:3])}): it is not replaced.")


def _with_labels(checkpoint: Checkpoint, facts: dict, classes: str | Path | Sequence[str] | None) -> Checkpoint:
    """Add the class names and colors given, else those in a model folder's facts, else keep the file's."""
    names, palette = facts.get("label_names"), facts.get("palette")
    if classes is not None:
        names, colors = _read_labels(classes)
        palette = colors or palette
        if len(names) != checkpoint.num_classes:
            what = f"has {checkpoint.num_classes} classes, but {len(names)} names were given"
            hint = f"If only the first {len(names)} outputs count, keep these with --num-classes {len(names)}"
            hint = f" {hint} (num_classes={len(names)})." if len(names) < checkpoint.num_classes else ""
            raise CheckpointError(f"{what}.{hint}")
    if names is None:
        return checkpoint
    colors = palette and tuple(map(tuple, palette))[: checkpoint.num_classes]
    return replace(checkpoint, label_names=tuple(names)[: checkpoint.num_classes], palette=colors)


def _read_labels(source: str | Path | Sequence[str]) -> tuple[Sequence[str], Sequence | None]:
    """Read class names and palette from a text file, a data set key, or a sequence of names."""
    if not isinstance(source, str | Path):
        return source, None
    if str(source) in LABEL_SETS:
        return LABEL_SETS[str(source)].classes, LABEL_SETS[str(source)].palette
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file of class names, and not a data set: {', '.join(LABEL_SETS)}.")
    try:
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise OptionError(f"{source}: not a text file in UTF-8 with one class name per line.") from None
    return tuple(line.strip() for line in lines if line.strip()), None


def _build_backbone(checkpoint: Checkpoint, config: Mapping[str, Any]) -> torch.nn.Module:
    chans, classes = checkpoint.in_chans, checkpoint.num_classes
    # the origin of a file is unknown, so timm's facts on the published weights may not apply to it
    overlay: dict[str, Any] = {"tag": None, "url": "", "license": None, "origin_url": None}
    if chans != 3:
        cfg: Any = timm.get_pretrained_cfg(checkpoint.architecture)
        overlay |= {"input_size": (chans, *cfg.input_size[1:]), "mean": (0.5,) * chans, "std": (0.5,) * chans}
    overlay |= {**(config.get("pretrained_cfg") or {}), "num_classes": classes, "label_names": None}
    options: dict[str, Any] = {**(config.get("model_args") or {}), "in_chans": chans, "num_classes": classes}
    return timm.create_model(checkpoint.architecture, **options, pretrained_cfg_overlay=overlay)


def _build_segmenter(checkpoint: Checkpoint, config: Mapping[str, Any], src: Path) -> torch.nn.Module:
    """Build the model of a folder's configuration, if there is one, else the original."""
    facts = read_facts(config)
    if not config and checkpoint.in_chans == 3:
        facts |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    if checkpoint.label_names:
        facts["label_names"] = list(checkpoint.label_names)
        known = [labels.name for labels in LABEL_SETS.values() if labels.classes == checkpoint.label_names]
        facts |= {"dataset": known[0]} if known and not facts.get("dataset") else {}
    if checkpoint.palette:
        facts["palette"] = [list(color) for color in checkpoint.palette]
    original = {"encoder_name": f"tu-{checkpoint.architecture}", "in_channels": checkpoint.in_chans}
    original |= {"decoder_channels": checkpoint.decoder_channels, "decoder_rank": checkpoint.rank}
    changed = {"_model_class": "SegNeXt", "classes": checkpoint.num_classes, "pretrained_cfg": facts}
    return build_segmenter(src, {**original, **config, **changed}, src)
