"""Take networks out of checkpoints, identify them by their tensors, and rename these.

The authors' code and JSeg call the MLP's depthwise convolution `mlp.dwconv.dwconv`; mmsegmentation calls it
`mlp.dwconv`; PaddleSeg differs from mmsegmentation in parts of names. Any spelling can occur in any file, so the names
in the file decide, not its origin. The names of the backbone are those in :mod:`segnext_timm.models.mscan`.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..errors import CheckpointError, OptionError
from ..models.mscan import backbone_to_native
from ..models.state_dicts import take_network
from ..variants import NARROW, VARIANTS
from .formats import read_checkpoint

_logger = logging.getLogger(__name__)

_VARIANTS = {variant.backbone: variant for variant in (*VARIANTS.values(), NARROW)}

# Names in the decoder of published segmenters, and names here
DECODER_NAMES = (
    ("decode_head.squeeze.gn", "decoder.squeeze_norm"),
    ("decode_head.hamburger.ham_in.conv", "decoder.hamburger.proj_in"),
    ("decode_head.hamburger.ham_out.conv", "decoder.hamburger.proj_out"),
    ("decode_head.hamburger.ham.bases", "decoder.hamburger.nmf.bases"),
    ("decode_head.hamburger.ham_out.gn", "decoder.hamburger.norm"),
    ("decode_head.align.gn", "decoder.align_norm"),  # before its beginning, "decoder.align"
    ("decode_head.align.conv", "decoder.align"),
    ("decode_head.conv_seg", "segmentation_head.0"),
)
# Patterns in PaddleSeg's names and mmsegmentation's spelling. They match no name of mmsegmentation, so every file
# passes through.
_PADDLE_NAMES = (
    (r"\.dwconvs\.(\d)\.conv\d_(\d)\.", r".conv\1_\2."),
    (r"\.conv_out\.", ".conv3."),
    (r"\.(squeeze|align|ham_out)\._conv\.", r".\1.conv."),
    (r"\.(squeeze|align|ham_out)\._group_norm\.", r".\1.gn."),
    (r"\.ham_in\.(?!conv\.)", ".ham_in.conv."),
    (r"\._mean$", ".running_mean"),
    (r"\._variance$", ".running_var"),
)
SQUEEZE = "decode_head.squeeze.conv.weight"  # one convolution over concatenated features; native: one for each feature
NATIVE_SQUEEZE = [f"decoder.squeeze.{level}.weight" for level in range(3)]
BASES = "decoder.hamburger.nmf.bases"
ENCODER = "encoder.model."  # where an smp model keeps an encoder of timm


def _to_mmseg_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename parameters of PaddleSeg to mmsegmentation's names, and flatten its layer scales; others stay as is."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in _PADDLE_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.flatten() if re.search(r"\.layer_scale_[12]$", name) else value
    return renamed


def segmenter_to_native(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Rename the parameters of a published segmenter to native names; the bases are there only if it has them."""
    tensors = _to_mmseg_names(take_network(checkpoint))
    if SQUEEZE not in tensors:
        reason = f"not a published SegNeXt segmenter: it has no {SQUEEZE!r}"
        raise CheckpointError(f"{reason}. Check that it is the right file.")
    backbone = backbone_to_native(tensors)
    # timm's feature extractors flatten the stages into themselves
    native = {ENCODER + re.sub(r"^stages\.", "stages_", name): value for name, value in backbone.items()}
    widths = [backbone[f"stages.{i}.norm.weight"].shape[0] for i in (1, 2, 3)]
    for name, weight in zip(NATIVE_SQUEEZE, tensors.pop(SQUEEZE).split(widths, dim=1)):
        native[name] = weight.contiguous()
    for name, value in tensors.items():
        if name.startswith("decode_head."):
            for published, own in DECODER_NAMES:
                name = name.replace(published, own)
            native[name] = value
    return native


@dataclass(frozen=True)
class Checkpoint:
    """A recognized checkpoint: its weights under native names, and its properties."""

    state_dict: dict[str, torch.Tensor]  # a segmenter's bases are included only if the file has them
    kind: Literal["backbone", "segmenter"]
    architecture: str  # the backbone's name in timm
    in_chans: int
    num_classes: int  # 0 for a backbone without classifier
    decoder_channels: int | None = None
    rank: int | None = None  # number of bases of a segmenter's matrix decomposition
    rank_source: str | None = None  # no tensor of a published file contains the rank
    label_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None

    def __str__(self) -> str:
        classes = f"{self.num_classes} classes" if self.num_classes else "no classifier"
        names = " with names" if self.label_names else ""
        text = f"{self.architecture}, {classes}{names}, {self.in_chans} input channels"
        if self.kind == "segmenter":
            decoder = f"{self.decoder_channels} decoder channels, rank {self.rank} ({self.rank_source})"
            return f"SegNeXt on {text}, {decoder}"
        return text


def _describe_mscan(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Name the MSCAN of native parameters: in timm, or by its dimensions if it is of no known size."""
    dims: list[int] = []
    depths: list[int] = []
    while (norm := state_dict.get(f"stages.{len(dims)}.norm.weight")) is not None:
        start = f"stages.{len(dims)}.blocks."
        depths.append(len({name.split(".")[3] for name in state_dict if name.startswith(start)}))
        dims.append(norm.shape[0])
    size = tuple(dims), tuple(depths)
    known = (name for name, variant in _VARIANTS.items() if (variant.dims, variant.depths) == size)
    return next(known, f"an MSCAN of channels {size[0]} and depths {size[1]}")


def _meta_labels(meta: Any, num_classes: int) -> tuple[tuple | None, tuple | None]:
    """Class names and palette as mmsegmentation 0.x (CLASSES) and 1.x (dataset_meta) keep them."""
    meta = meta if isinstance(meta, Mapping) else {}
    meta = meta["dataset_meta"] if isinstance(meta.get("dataset_meta"), Mapping) else meta
    found: dict[str, Any] = {}
    for key, value in meta.items():
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(value, list | tuple) and len(value) == num_classes:
            found[str(key).lower()] = value
    names, palette = found.get("classes"), found.get("palette")
    try:
        return names and tuple(map(str, names)), palette and tuple(tuple(map(int, color)) for color in palette)
    except (TypeError, ValueError):
        what = f"its palette has entries that are not [red, green, blue]: {str(palette)[:100]}"
        raise CheckpointError(f"{what}. Correct or remove it in the file's meta.") from None


def _rank(state_dict: Mapping[str, torch.Tensor], meta: Any, architecture: str, rank: int | None) -> tuple[int, str]:
    """Find the rank of a segmenter's matrix decomposition, and say where it comes from."""
    if BASES in state_dict:
        held = state_dict[BASES].shape[-1]
        if rank not in (None, held):
            raise CheckpointError(f"its bases are of rank {held}, not {rank}: leave the rank out.")
        return held, "that of its bases"
    if rank is not None:
        return rank, "as specified"
    config = " ".join(str(meta.get(key, "")) for key in ("cfg", "config")) if isinstance(meta, Mapping) else ""
    if declared := re.search(r"MD_R['\"]?\s*[=:]\s*(\d+)", config):
        return int(declared[1]), "from the configuration in the file"
    return _VARIANTS[architecture].decoder_rank, "from the paper's code, since the file does not contain it"


def recognize(content: Any, rank: int | None = None, ema: bool = False, num_classes: int | None = None) -> Checkpoint:
    """Identify the contents of a file by their tensors, under native names; for the options see :func:`convert`."""
    if rank is not None and rank < 1:
        raise OptionError(f"rank must be at least 1, got {rank}.")
    tensors = take_network(content, ema)
    backbone = backbone_to_native(_to_mmseg_names(tensors))
    architecture = _describe_mscan(backbone)
    if architecture not in _VARIANTS:
        hint = "create the model as it was trained, load the file's state_dict, and save it"
        raise CheckpointError(f"{architecture}, which is not one of {', '.join(_VARIANTS)}: {hint}.")
    state_dict = tensors if NATIVE_SQUEEZE[0] in tensors else backbone
    if any(name.startswith("decode_head.squeeze.") for name in tensors):
        state_dict = segmenter_to_native(tensors)
    elif state_dict is backbone and any(name.startswith(("decoder.", "decode_head.")) for name in tensors):
        _logger.warning("Takes only the backbone: the decoder is not SegNeXt's.")
    for name in [name for name in state_dict if name.endswith(".running_mean")]:  # files of Jittor and Paddle lack them
        state_dict.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    squeeze = state_dict.get(NATIVE_SQUEEZE[0])  # a segmenter's alone
    layer = "head.fc" if squeeze is None else "segmentation_head.0"
    outputs = state_dict[f"{layer}.weight"].shape[0] if f"{layer}.weight" in state_dict else 0
    names, palette = _meta_labels(content.get("meta"), outputs)
    if num_classes is not None:
        if not 1 <= num_classes <= outputs:
            raise CheckpointError(f"has {outputs} classes, so the first {num_classes} cannot be kept.")
        for name in (f"{layer}.weight", f"{layer}.bias"):
            state_dict[name] = state_dict[name][:num_classes].clone()
    rank, source = (None, None) if squeeze is None else _rank(state_dict, content.get("meta"), architecture, rank)
    return Checkpoint(
        state_dict=state_dict,
        kind="backbone" if squeeze is None else "segmenter",
        architecture=architecture,
        in_chans=backbone["stem.conv1.weight"].shape[1],
        num_classes=num_classes or outputs,
        decoder_channels=None if squeeze is None else squeeze.shape[0],
        rank=rank,
        rank_source=source,
        label_names=names and names[:num_classes],
        palette=palette and palette[:num_classes],
    )


def load_checkpoint(path: str | Path, **options: Any) -> Checkpoint:
    """Read a published or native checkpoint safely; see :func:`recognize`, also for the options."""
    content = read_checkpoint(path)
    try:
        return recognize(content, **options)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
