"""Convert a checkpoint to a folder that timm or smp loads, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch

from .._atomic import replace_when_complete
from ..errors import CheckpointError, OptionError
from ..hub.folder import save_backbone
from ..label_sets import LABEL_SETS
from ..models.hamburger import NMF2d
from ..models.mscan import check_parameters
from ..models.segnext import SegNeXt
from .catalog import IMAGENET_MEAN, IMAGENET_STD
from .dialects import Checkpoint, load_checkpoint, native_to_mmseg
from .folder import MODEL_FILES, PICKLE_SUFFIXES, WEIGHTS, read_model_config


def _read_labels(source: str | Path | Sequence[str] | None) -> tuple[Sequence[str] | None, Sequence | None]:
    """Read class names and palette from a text file, a data set key, or a sequence of names."""
    if source is None or not isinstance(source, str | Path):
        return source, None
    if str(source) in LABEL_SETS:
        labels = LABEL_SETS[str(source)]
        return labels.classes, labels.palette
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of class names, and not a data set: {', '.join(LABEL_SETS)}.")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()), None


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


def _read_source(src: Path, rank: int | None, ema: bool) -> Checkpoint:
    """Load a checkpoint file, or a model folder with the class names in its configuration."""
    if not src.is_dir():
        return load_checkpoint(src, rank, ema)
    config = read_model_config(src)
    checkpoint = load_checkpoint(src / WEIGHTS, rank, ema)
    info = config.get("pretrained_cfg") or {}
    return checkpoint.with_labels(config.get("label_names") or info.get("label_names"), info.get("palette"))


def _build_backbone(checkpoint: Checkpoint) -> torch.nn.Module:
    chans = checkpoint.in_chans
    # the origin of a file is unknown, so timm's facts on the published weights may not apply to it
    overlay: dict[str, Any] = {"tag": None, "url": "", "license": None, "origin_url": None}
    if chans != 3:
        cfg = timm.get_pretrained_cfg(checkpoint.architecture)
        assert cfg is not None  # recognized checkpoints are of registered models
        overlay |= {"input_size": (chans, *cfg.input_size[1:]), "mean": (0.5,) * chans, "std": (0.5,) * chans}
    with torch.device("meta"):
        return timm.create_model(
            checkpoint.architecture,
            in_chans=chans,
            num_classes=checkpoint.num_classes,
            pretrained_cfg_overlay={**overlay, "num_classes": checkpoint.num_classes},
        )


def _build_segmenter(checkpoint: Checkpoint) -> torch.nn.Module:
    info: dict[str, Any] = {}
    if checkpoint.in_chans == 3:
        info |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    if checkpoint.label_names:
        info["label_names"] = list(checkpoint.label_names)
        dataset = next((v for v in LABEL_SETS.values() if v.classes == checkpoint.label_names), None)
        info |= {"dataset": dataset.name} if dataset else {}
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
        CheckpointError: If `src` cannot be read, could execute code, or is not MSCAN or SegNeXt.
    """
    src, dst = Path(src), Path(dst)
    _check_destination(dst, to, force)
    with replace_when_complete(dst) as new:
        checkpoint = _read_source(src, rank, ema)
        try:
            if num_classes is not None:
                checkpoint = checkpoint.with_outputs(num_classes)
            names, palette = _read_labels(classes)
            if names and len(names) != checkpoint.num_classes:
                count = len(names)
                raise CheckpointError(
                    f"has {checkpoint.num_classes} classes, but {count} names were given. If only the first {count} "
                    f"outputs count, keep these with --num-classes {count} (num_classes={count})."
                )
            checkpoint = checkpoint.with_labels(names, palette)
            if checkpoint.decoder_channels and checkpoint.rank:  # a segmenter
                bases = NMF2d(checkpoint.decoder_channels, checkpoint.rank).bases
                checkpoint.state_dict.setdefault("decoder.hamburger.nmf.bases", bases)
            # the model is built on the meta device, and takes over the checkpoint's tensors
            model: Any = (_build_backbone if checkpoint.kind == "backbone" else _build_segmenter)(checkpoint)
            check_parameters(checkpoint.state_dict, model.state_dict())
            if to == "mmseg":
                _save_mmseg(checkpoint, new)
                return checkpoint
        except CheckpointError as error:
            raise CheckpointError(f"{src}: {error}") from None
        model.load_state_dict(checkpoint.state_dict, assign=True)
        if checkpoint.kind == "backbone":
            save_backbone(model, new, checkpoint.label_names)
        else:
            model.save_pretrained(new)
    return checkpoint


def _save_mmseg(checkpoint: Checkpoint, path: Path) -> None:
    meta: dict[str, Any] = {}
    if checkpoint.label_names:
        meta["dataset_meta"] = {"classes": checkpoint.label_names}
        if checkpoint.palette:
            meta["dataset_meta"]["palette"] = [list(color) for color in checkpoint.palette]
    if checkpoint.rank:
        meta["config"] = f"ham_kwargs=dict(MD_R={checkpoint.rank})"  # where mmsegmentation keeps the rank
    torch.save({"state_dict": native_to_mmseg(checkpoint.state_dict), "meta": meta}, path)
