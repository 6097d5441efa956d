"""Take networks out of checkpoints, identify them by their tensors, and rename these from and to published names.

Weights are published under two spellings. The authors' code (https://github.com/Visual-Attention-Network/SegNeXt) and
its Jittor version (https://github.com/uyzhang/JSeg) call the MLP's depthwise convolution `mlp.dwconv.dwconv`;
mmsegmentation calls it `mlp.dwconv`. Either spelling can occur in any file, so the names in the file decide, not its
origin. The names of the backbone are those in :mod:`segnext_timm.models.mscan`.
PaddleSeg (https://github.com/PaddlePaddle/PaddleSeg) uses other names and shapes in places: a table here translates
them to mmsegmentation's first.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..errors import CheckpointError
from ..models.mscan import PUBLISHED_NAMES, WRAPPERS, backbone_prefix, backbone_to_native, is_average, rename
from ..variants import NARROW, VARIANTS
from .formats import read_checkpoint

_VARIANTS = {variant.backbone: variant for variant in (*VARIANTS.values(), NARROW)}

# Names in the decoder of published segmenters, and names here
_DECODER_NAMES = (
    ("squeeze.gn", "decoder.squeeze_norm"),
    ("hamburger.ham_in.conv", "decoder.hamburger.proj_in"),
    ("hamburger.ham_out.conv", "decoder.hamburger.proj_out"),
    ("hamburger.ham.bases", "decoder.hamburger.nmf.bases"),
    ("hamburger.ham_out.gn", "decoder.hamburger.norm"),
    ("align.conv", "decoder.align"),
    ("align.gn", "decoder.align_norm"),
    ("conv_seg", "segmentation_head.0"),
)
# Parts of names in PaddleSeg's files, and in mmsegmentation's
_PADDLE_NAMES = (
    (r"\.dwconvs\.(\d)\.conv\d_(\d)\.", r".conv\1_\2."),
    (r"\.conv_out\.", ".conv3."),
    (r"\.(squeeze|align|ham_out)\._conv\.", r".\1.conv."),
    (r"\.(squeeze|align|ham_out)\._group_norm\.", r".\1.gn."),
    (r"\.ham_in\.", ".ham_in.conv."),
    (r"\._mean$", ".running_mean"),
    (r"\._variance$", ".running_var"),
)
_SQUEEZE = "squeeze.conv.weight"  # one convolution over concatenated features; native: one convolution a feature
_BASES = "decoder.hamburger.nmf.bases"
_BACKBONE_TO_MMSEG = [(native, published) for published, native in PUBLISHED_NAMES]
_DECODER_TO_MMSEG = [(native, published) for published, native in _DECODER_NAMES]

_ENCODER = "encoder.model."  # where an smp model keeps an encoder of timm
_ENCODER_SUFFIX = re.compile(rf"(?:(?:backbone|encoder\.{WRAPPERS}model)\.{WRAPPERS})?$")  # of a segmenter's names
_EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # timm's, timm's, mmengine's, JSeg's


# Taking the network out of a checkpoint


def _unnest(checkpoint: Mapping[str, Any], ema: bool) -> tuple[Mapping[str, Any], bool]:
    """Find the state dict in a checkpoint, and whether averages are still to be taken out of it."""
    keys = (*(_EMA_KEYS if ema else ()), "state_dict", "model", "module")
    key = next((key for key in keys if isinstance(checkpoint.get(key), Mapping)), None)
    return (checkpoint, ema) if key is None else _unnest(checkpoint[key], ema and key not in _EMA_KEYS)


def take_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Take the tensors out of a checkpoint, in which they may be nested as `state_dict`, `model` or `module`.

    Args:
        checkpoint: Tensors or arrays by name, or a dictionary that holds them beside other entries.

    Raises:
        CheckpointError: If the checkpoint holds nothing by name.
    """
    return _tensors_of(checkpoint, ema=False)[0]


def _tensors_of(checkpoint: Mapping[str, Any], ema: bool) -> tuple[dict[str, torch.Tensor], bool]:
    """Take the tensors out of a checkpoint; also tells whether averages are still to be found among them."""
    if not isinstance(checkpoint, Mapping):
        what = type(checkpoint).__name__
        raise CheckpointError(f"a {what} instead of parameters by name. Check that it is the right file.")
    checkpoint, ema = _unnest(checkpoint, ema)
    tensors = {}
    for name, value in checkpoint.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype.itemsize <= 16:
            value = torch.from_numpy(
                np.require(value.astype(value.dtype.newbyteorder("="), copy=False), requirements="W")
            )
        if isinstance(value, torch.Tensor):
            tensors[str(name)] = value
    return tensors, ema


def take_network(checkpoint: Mapping[str, Any], ema: bool = False) -> dict[str, torch.Tensor]:
    """Take the one MSCAN or SegNeXt out of a checkpoint, which may hold losses and metrics beside it.

    Args:
        checkpoint: See :func:`take_state_dict`.
        ema: Take the exponential moving average of the weights.

    Returns:
        Tensors by the names that the network itself gives them, without the prefixes of wrappers.

    Raises:
        CheckpointError: If the checkpoint holds nothing by name, no such network, or more than one; or if `ema` is set
            and it holds no moving average.
    """
    tensors, ema = _tensors_of(checkpoint, ema)
    prefix = backbone_prefix(tensors, ema)
    ema = ema and not is_average(prefix)
    prefix = _ENCODER_SUFFIX.sub("", prefix)
    own = {
        re.sub(rf"(?<![^.]){WRAPPERS}", "", name.removeprefix(prefix)): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    # mmcv keeps averages beside the weights, under the weight's name with underscores for dots
    names = {name: f"ema_{name.replace('.', '_')}" for name in own}
    averages = {name: own[average] for name, average in names.items() if average in own}
    if ema and not averages:
        raise CheckpointError("the checkpoint has no moving average (EMA) of the weights: load the weights themselves.")
    own = {name: value for name, value in own.items() if not name.startswith("ema_")}
    return own | averages if ema else own


# Renaming


def _to_mmseg_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename parameters of PaddleSeg to mmsegmentation's names, and flatten its layer scales; returns others as is."""
    if _spelling(tensors) != "PaddleSeg":
        return tensors
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in _PADDLE_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.flatten() if re.search(r"\.layer_scale_[12]$", name) else value
    return renamed


def segmenter_to_native(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Rename SegNeXt parameters of a published segmenter to native names.

    The result has the bases of the matrix decomposition only if the checkpoint has them; published ones do not.

    Args:
        checkpoint: A segmenter's state dict, with names under `backbone.` and `decode_head.`, or a checkpoint that
            holds one.

    Raises:
        CheckpointError: If it is not a published segmenter.
    """
    state_dict = _to_mmseg_names(take_network(checkpoint))
    head = {name.removeprefix("decode_head."): v for name, v in state_dict.items() if name.startswith("decode_head.")}
    if _SQUEEZE not in head:
        raise CheckpointError(
            f"not a published SegNeXt segmenter: it has no 'decode_head.{_SQUEEZE}'. Check that it is the right file."
        )
    backbone = backbone_to_native(state_dict)
    # timm's feature extractors flatten the stages into themselves
    native = {_ENCODER + re.sub(r"^stages\.", "stages_", name): value for name, value in backbone.items()}
    widths = [backbone[f"stages.{i}.norm.weight"].shape[0] for i in (1, 2, 3)]
    for level, weight in enumerate(head.pop(_SQUEEZE).split(widths, dim=1)):
        native[f"decoder.squeeze.{level}.weight"] = weight.contiguous()
    for name, value in head.items():
        native[rename(name, _DECODER_NAMES) or f"decode_head.{name}"] = value
    return native


def native_to_mmseg(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename native parameters of a backbone or a segmenter to mmsegmentation's names.

    Leaves out the bases of the matrix decomposition, which mmsegmentation draws itself.

    Args:
        state_dict: Parameters of `timm.create_model("mscan_t")`, or of SegNeXt on such an encoder.

    Raises:
        CheckpointError: If mmsegmentation's SegNeXt lacks a parameter.
    """
    squeeze = [state_dict[name] for name in (f"decoder.squeeze.{i}.weight" for i in range(3)) if name in state_dict]
    published = {}
    for name, value in state_dict.items():
        if name == _BASES or re.fullmatch(r"decoder\.squeeze\.\d\.weight", name):
            continue
        if name.startswith(_ENCODER):
            renamed = _backbone_name_to_mmseg(name.removeprefix(_ENCODER).replace("stages_", "stages."))
            renamed = renamed and f"backbone.{renamed}"
        elif squeeze:
            renamed = rename(name, _DECODER_TO_MMSEG)
            renamed = renamed and f"decode_head.{renamed}"
        else:
            renamed = _backbone_name_to_mmseg(name)
        if renamed is None:
            raise CheckpointError(f"mmsegmentation's SegNeXt has no parameter for {name!r}: convert to native.")
        published[renamed] = value
    if squeeze:
        if len(squeeze) < 3:
            raise CheckpointError("mmsegmentation's SegNeXt has four stages, this model has fewer: convert to native.")
        published[f"decode_head.{_SQUEEZE}"] = torch.cat(squeeze, dim=1)
    return published


def _backbone_name_to_mmseg(name: str) -> str | None:
    renamed = rename(name, _BACKBONE_TO_MMSEG)
    return renamed and re.sub(r"^(patch_embed|block|norm)(\d)", lambda match: f"{match[1]}{int(match[2]) + 1}", renamed)


# Identifying


@dataclass(frozen=True)
class Checkpoint:
    """A recognized checkpoint: its weights under native names, and its properties.

    Attributes:
        state_dict: Tensors by native names. A segmenter's bases are included only if the file has them.
        kind: A backbone (with or without classifier) or a whole segmenter.
        architecture: The backbone's name in timm.
        spelling: Origin of the names in the file.
        in_chans: Number of input channels.
        num_classes: Number of classes, 0 for a backbone without classifier.
        decoder_channels: Width of a segmenter's decoder.
        rank: Number of bases of a segmenter's matrix decomposition.
        rank_source: Where the rank comes from: no tensor of a published file contains it.
        label_names: Name of each class, if known.
        palette: Color of each class, if known.
    """

    state_dict: dict[str, torch.Tensor]
    kind: Literal["backbone", "segmenter"]
    architecture: str
    spelling: Literal["the paper's code", "mmsegmentation", "PaddleSeg", "native"]
    in_chans: int
    num_classes: int
    decoder_channels: int | None = None
    rank: int | None = None
    rank_source: str | None = None
    label_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None

    def with_labels(self, names: Sequence[str] | None, palette: Sequence[Sequence[int]] | None) -> "Checkpoint":
        """Copy with other class names and palette; unchanged if `names` is None."""
        colors: Any = palette and tuple(map(tuple, palette))
        return self if names is None else replace(self, label_names=tuple(names), palette=colors)

    def with_outputs(self, count: int) -> "Checkpoint":
        """Copy with only the first `count` outputs of the last layer.

        Raises:
            CheckpointError: If it has fewer outputs.
        """
        if not 1 <= count <= self.num_classes:
            raise CheckpointError(f"has {self.num_classes} classes, so the first {count} cannot be kept.")
        layer = "segmentation_head.0" if self.kind == "segmenter" else "head.fc"
        kept = {f"{layer}.{part}": self.state_dict[f"{layer}.{part}"][:count].clone() for part in ("weight", "bias")}
        names, palette = self.label_names, self.palette
        return replace(
            self,
            state_dict={**self.state_dict, **kept},
            num_classes=count,
            label_names=names and names[:count],
            palette=palette and palette[:count],
        )

    def __str__(self) -> str:
        classes = f"{self.num_classes} classes" + (" with names" if self.label_names else "")
        parts = [
            f"{'SegNeXt on ' if self.kind == 'segmenter' else ''}{self.architecture}",
            classes if self.num_classes else "no classifier",
            f"{self.in_chans} input channels",
        ]
        if self.kind == "segmenter":
            parts += [f"{self.decoder_channels} decoder channels", f"rank {self.rank} ({self.rank_source})"]
        return f"{', '.join(parts)}; names of {self.spelling}"


def _describe_mscan(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Name the MSCAN of native parameters: in timm, or by its dimensions if it is of no known size."""
    dims: list[int] = []
    depths: list[int] = []
    while (norm := state_dict.get(f"stages.{len(dims)}.norm.weight")) is not None:
        block = re.compile(rf"stages\.{len(dims)}\.blocks\.(\d+)\.")
        depths.append(len({match[1] for match in map(block.match, state_dict) if match}))
        dims.append(norm.shape[0])
    size = tuple(dims), tuple(depths)
    name = next((name for name, variant in _VARIANTS.items() if (variant.dims, variant.depths) == size), None)
    return name or f"an MSCAN of channels {size[0]} and depths {size[1]}"


def _spelling(names: Collection[str]) -> Literal["the paper's code", "mmsegmentation", "PaddleSeg", "native"]:
    if any(name.endswith("._mean") for name in names):
        return "PaddleSeg"
    if any(name.startswith(("stem.", _ENCODER)) for name in names):
        return "native"
    return "the paper's code" if any(".mlp.dwconv.dwconv." in name for name in names) else "mmsegmentation"


def _meta_labels(meta: Any, num_classes: int) -> tuple[tuple | None, tuple | None]:
    """Class names and palette as mmsegmentation 0.x (CLASSES) and 1.x (dataset_meta) keep them."""
    if not isinstance(meta, Mapping):
        return None, None
    meta = meta.get("dataset_meta") if isinstance(meta.get("dataset_meta"), Mapping) else meta
    found = []
    for key in ("classes", "palette"):
        value = next((v for k, v in meta.items() if isinstance(k, str) and k.lower() == key), None)
        value = value.tolist() if isinstance(value, np.ndarray) else value
        fits = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == num_classes
        found.append(value if fits else None)
    names, palette = found
    return names and tuple(map(str, names)), palette and tuple(tuple(map(int, color)) for color in palette)


def _rank(state_dict: Mapping[str, torch.Tensor], meta: Any, architecture: str, rank: int | None) -> tuple[int, str]:
    if _BASES in state_dict:
        held = state_dict[_BASES].shape[-1]
        if rank not in (None, held):
            raise CheckpointError(f"its bases are of rank {held}, not {rank}: leave the rank out.")
        return held, "that of its bases"
    if rank is not None:
        return rank, "as specified"
    config = " ".join(str(meta.get(key, "")) for key in ("cfg", "config")) if isinstance(meta, Mapping) else ""
    declared = re.search(r"MD_R['\"]?\s*[=:]\s*(\d+)", config)
    if declared:
        return int(declared[1]), "from the configuration in the file"
    return _VARIANTS[architecture].decoder_rank, "from the paper's code, since the file does not contain it"


def recognize(content: Any, rank: int | None = None, ema: bool = False) -> Checkpoint:
    """Identify a checkpoint from its tensors and rename them to native names.

    Args:
        content: Contents of the file.
        rank: Rank of a segmenter's matrix decomposition, for checkpoints without bases. Default: the rank in
            mmsegmentation's configuration in the checkpoint, else the rank in the paper's code.
        ema: Use the exponential moving average of the weights.

    Raises:
        CheckpointError: If it is not MSCAN or SegNeXt, not of a published size, or contains NaN or infinity.
    """
    if rank is not None and rank < 1:
        raise CheckpointError(f"rank must be at least 1, got {rank}.")
    tensors = take_network(content, ema)
    meta, spelling = content.get("meta"), _spelling(tensors)
    tensors = _to_mmseg_names(tensors)
    segmenter = f"decode_head.{_SQUEEZE}" in tensors or "decoder.squeeze.0.weight" in tensors
    backbone = backbone_to_native(tensors)
    architecture = _describe_mscan(backbone)
    if architecture not in _VARIANTS:
        raise CheckpointError(
            f"{architecture}, which is not one of {', '.join(_VARIANTS)}: create it with timm.create_model('mscan_t', "
            f"dims=…, depths=…) and load what segnext_timm.models.mscan.backbone_to_native returns."
        )
    if segmenter:
        state_dict = tensors if spelling == "native" else segmenter_to_native(tensors)
    else:
        state_dict = backbone
    for name, value in state_dict.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"NaN or infinity in {name!r}: the training diverged, or the file is damaged. Use another one."
            )
    add_batch_counts(state_dict)
    classifier = state_dict.get("segmentation_head.0.weight" if segmenter else "head.fc.weight")
    num_classes = 0 if classifier is None else classifier.shape[0]
    label_names, palette = _meta_labels(meta, num_classes)
    common: dict[str, Any] = {
        "state_dict": state_dict,
        "architecture": architecture,
        "spelling": spelling,
        "in_chans": backbone["stem.conv1.weight"].shape[1] if "stem.conv1.weight" in backbone else 3,
        "num_classes": num_classes,
        "label_names": label_names,
        "palette": palette,
    }
    if not segmenter:
        return Checkpoint(kind="backbone", **common)
    channels = state_dict["decoder.squeeze.0.weight"].shape[0]
    rank, source = _rank(state_dict, meta, architecture, rank)
    return Checkpoint(kind="segmenter", decoder_channels=channels, rank=rank, rank_source=source, **common)


def add_batch_counts(state_dict: dict[str, torch.Tensor]) -> None:
    """Add the batch norms' `num_batches_tracked`, which files of Jittor and Paddle lack, in place."""
    for name in [name for name in state_dict if name.endswith(".running_mean")]:
        state_dict.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))


def load_checkpoint(path: str | Path, rank: int | None = None, ema: bool = False) -> Checkpoint:
    """Read a published or native checkpoint safely, and identify it.

    Args:
        path: A .pth, .pt, .pkl, .pdparams, .zip or .safetensors file.
        rank: See :func:`recognize`.
        ema: See :func:`recognize`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it cannot be read, would run code, or is not what :func:`recognize` knows.
    """
    content = read_checkpoint(path)
    try:
        return recognize(content, rank, ema)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
