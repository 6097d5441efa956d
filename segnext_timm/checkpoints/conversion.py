"""Convert a checkpoint to a folder that timm or smp loads, and back."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch

from .._atomic import replace_when_complete
from ..errors import CheckpointError, OptionError
from ..hub.cards import save_backbone
from ..label_sets import LABEL_SETS
from ..models.hamburger import NMF2d
from ..models.mscan import check_parameters
from ..models.segnext import SegNeXt
from .catalog import IMAGENET_MEAN, IMAGENET_STD
from .dialects import Checkpoint, load_checkpoint, native_to_mmseg
from .folder import MODEL_FILES, PICKLE_SUFFIXES, WEIGHTS, read_model_config


def convert(
    src: str | Path,
    dst: str | Path,
    rank: int | None = None,
    to: Literal["native", "mmseg"] = "native",
    classes: str | Path | Sequence[str] | None = None,
    ema: bool = False,
    force: bool = False,
    num_classes: int | None = None,
) -> Checkpoint:
    """Convert an MSCAN or SegNeXt checkpoint for timm, smp or mmsegmentation.

    A backbone becomes a folder for `timm.create_model("local-dir:DST", pretrained=True)`, a segmenter one for
    `smp.from_pretrained("DST")`: model.safetensors, config.json and a model card. The folder appears only when it is
    complete.

    Args:
        src: A checkpoint of the paper's code, mmsegmentation, JSeg, PaddleSeg or this package (.pth, .pt, .pkl,
            .pdparams, .zip, .safetensors), or a folder written by this function.
        dst: The folder to write; with `to="mmseg"`, the .pth file.
        rank: Rank R of a segmenter's matrix decomposition, which published files do not contain. Default: the rank in
            the paper's code (16 for T and S, 64 for B and L). mmsegmentation trained its own models with 16.
        to: "native", or "mmseg" for mmsegmentation's names.
        classes: Class names, a text file with one name per line, or a data set key such as "ade20k". Default: the
            names in the checkpoint, if any.
        ema: Use the exponential moving average of the weights, if the checkpoint has one.
        force: Replace `dst` if it is a file or a model folder.
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
    _check_destination(dst, to, force)
    with replace_when_complete(dst) as new:
        config = read_model_config(src) if src.is_dir() else {}
        file = src / WEIGHTS if src.is_dir() else src
        checkpoint = load_checkpoint(file, rank=rank, ema=ema, num_classes=num_classes)
        try:
            checkpoint = _with_labels(checkpoint, config, classes)
            if checkpoint.decoder_channels and checkpoint.rank:  # a segmenter
                bases = NMF2d(checkpoint.decoder_channels, checkpoint.rank).bases
                checkpoint.state_dict.setdefault("decoder.hamburger.nmf.bases", bases)
            model: Any = (_build_backbone if checkpoint.kind == "backbone" else _build_segmenter)(checkpoint)
            check_parameters(checkpoint.state_dict, model.state_dict())
            if to == "mmseg":
                torch.save({"state_dict": native_to_mmseg(checkpoint.state_dict), "meta": _meta(checkpoint)}, new)
                return checkpoint
        except CheckpointError as error:
            raise CheckpointError(f"{src}: {error}") from None
        model.load_state_dict(checkpoint.state_dict, assign=True)  # takes the tensors over
        if checkpoint.kind == "backbone":
            save_backbone(model, new, checkpoint.label_names)
        else:
            model.save_pretrained(new)
    return checkpoint


def _check_destination(dst: Path, to: str, force: bool) -> None:
    """Raise an error if a checkpoint cannot be written to `dst`, or what is there may not be replaced."""
    if to not in ("native", "mmseg"):
        raise OptionError(f"to must be 'native' or 'mmseg', got {to!r}.")
    if to == "mmseg" and dst.suffix != ".pth":
        raise OptionError(f"mmsegmentation loads .pth files: choose a name that ends in .pth, not {dst}.")
    if to == "native" and dst.suffix in (PICKLE_SUFFIXES | {".safetensors"}):
        raise OptionError(f"{dst} will be a folder: choose a name without {dst.suffix}.")
    inside = {file.name for file in dst.iterdir()} if dst.is_dir() else set()
    if not force and (inside or dst.is_file()):
        raise FileExistsError(f"{dst} exists: choose another name, or replace it with --force (force=True).")
    if extra := sorted(inside - MODEL_FILES):
        raise FileExistsError(f"{dst} holds more than a model ({', '.join(extra[:3])}): it is not replaced.")


def _with_labels(checkpoint: Checkpoint, config: dict, classes: str | Path | Sequence[str] | None) -> Checkpoint:
    """Add the class names and colors given, else those in a model folder's configuration, else keep the file's."""
    info = config.get("pretrained_cfg") or {}
    names, palette = config.get("label_names") or info.get("label_names"), info.get("palette")
    if classes is not None:
        names, palette = _read_labels(classes)
        if len(names) != checkpoint.num_classes:
            what = f"has {checkpoint.num_classes} classes, but {len(names)} names were given"
            hint = f"keep these with --num-classes {len(names)} (num_classes={len(names)})"
            raise CheckpointError(f"{what}. If only the first {len(names)} outputs count, {hint}.")
    if names is None:
        return checkpoint
    colors: Any = palette and tuple(map(tuple, palette))[: checkpoint.num_classes]
    return replace(checkpoint, label_names=tuple(names)[: checkpoint.num_classes], palette=colors)


def _read_labels(source: str | Path | Sequence[str]) -> tuple[Sequence[str], Sequence | None]:
    """Read class names and palette from a text file, a data set key, or a sequence of names."""
    if not isinstance(source, str | Path):
        return source, None
    if str(source) in LABEL_SETS:
        return LABEL_SETS[str(source)].classes, LABEL_SETS[str(source)].palette
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file of class names, and not a data set: {', '.join(LABEL_SETS)}.")
    lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
    return tuple(line.strip() for line in lines if line.strip()), None


def _build_backbone(checkpoint: Checkpoint) -> torch.nn.Module:
    chans, classes = checkpoint.in_chans, checkpoint.num_classes
    # the origin of a file is unknown, so timm's facts on the published weights may not apply to it
    overlay: dict[str, Any] = {"tag": None, "url": "", "license": None, "origin_url": None, "num_classes": classes}
    if chans != 3:
        cfg: Any = timm.get_pretrained_cfg(checkpoint.architecture)
        overlay |= {"input_size": (chans, *cfg.input_size[1:]), "mean": (0.5,) * chans, "std": (0.5,) * chans}
    options: dict[str, Any] = {"in_chans": chans, "num_classes": classes, "pretrained_cfg_overlay": overlay}
    with torch.device("meta"):
        return timm.create_model(checkpoint.architecture, **options)


def _build_segmenter(checkpoint: Checkpoint) -> torch.nn.Module:
    info: dict[str, Any] = {}
    if checkpoint.in_chans == 3:
        info |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    if checkpoint.label_names:
        info["label_names"] = list(checkpoint.label_names)
        known = [labels.name for labels in LABEL_SETS.values() if labels.classes == checkpoint.label_names]
        info |= {"dataset": known[0]} if known else {}
    if checkpoint.palette:
        info["palette"] = [list(color) for color in checkpoint.palette]
    with torch.device("meta"):
        return SegNeXt(
            f"tu-{checkpoint.architecture}",
            encoder_weights=None,
            decoder_channels=checkpoint.decoder_channels,
            decoder_rank=checkpoint.rank,
            in_channels=checkpoint.in_chans,
            classes=checkpoint.num_classes,
            pretrained_cfg=info,
        )


def _meta(checkpoint: Checkpoint) -> dict[str, Any]:
    """What mmsegmentation keeps beside the weights: class names, colors, and the rank in a configuration."""
    meta: dict[str, Any] = {"config": f"ham_kwargs=dict(MD_R={checkpoint.rank})"} if checkpoint.rank else {}
    if checkpoint.label_names:
        palette = {"palette": [list(color) for color in checkpoint.palette]} if checkpoint.palette else {}
        meta["dataset_meta"] = {"classes": checkpoint.label_names, **palette}
    return meta
