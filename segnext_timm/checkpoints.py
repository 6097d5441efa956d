"""Published checkpoint dialects to native parameter names.

SegNeXt's weights are published under two spellings: that of the authors' code
(https://github.com/Visual-Attention-Network/SegNeXt, and its Jittor twin), whose depthwise convolution in the MLP is
`mlp.dwconv.dwconv`, and that of mmsegmentation, whose is `mlp.dwconv`. Either can turn up in any file, so names are
told apart by themselves, never by where they come from. One table of rules translates both.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

# Published module or parameter name, native name. `{i}` counts stages from 0 and `{i1}` from 1, `{j}` counts blocks,
# `{k}` the branches of the attention, `{n1}` the two strips of a branch from 1. What follows the name (`.weight`,
# `.running_mean`, ...) is kept.
_BACKBONE_RULES = (
    ("patch_embed1.proj.0", "stem.conv1"),
    ("patch_embed1.proj.1", "stem.norm1"),
    ("patch_embed1.proj.3", "stem.conv2"),
    ("patch_embed1.proj.4", "stem.norm2"),
    ("patch_embed{i1}.proj", "stages.{i}.downsample.conv"),
    ("patch_embed{i1}.norm", "stages.{i}.downsample.norm"),
    ("block{i1}.{j}.norm1", "stages.{i}.blocks.{j}.norm1"),
    ("block{i1}.{j}.attn.proj_1", "stages.{i}.blocks.{j}.attn.proj_in"),
    ("block{i1}.{j}.attn.spatial_gating_unit.conv0", "stages.{i}.blocks.{j}.attn.msca.dwconv"),
    ("block{i1}.{j}.attn.spatial_gating_unit.conv{k}_{n1}", "stages.{i}.blocks.{j}.attn.msca.branches.{k}.{n}"),
    ("block{i1}.{j}.attn.spatial_gating_unit.conv3", "stages.{i}.blocks.{j}.attn.msca.proj"),
    ("block{i1}.{j}.attn.proj_2", "stages.{i}.blocks.{j}.attn.proj_out"),
    ("block{i1}.{j}.layer_scale_1", "stages.{i}.blocks.{j}.ls1.gamma"),
    ("block{i1}.{j}.norm2", "stages.{i}.blocks.{j}.norm2"),
    ("block{i1}.{j}.mlp.fc1", "stages.{i}.blocks.{j}.mlp.fc1"),
    ("block{i1}.{j}.mlp.dwconv.dwconv", "stages.{i}.blocks.{j}.mlp.dwconv"),
    ("block{i1}.{j}.mlp.dwconv", "stages.{i}.blocks.{j}.mlp.dwconv"),
    ("block{i1}.{j}.mlp.fc2", "stages.{i}.blocks.{j}.mlp.fc2"),
    ("block{i1}.{j}.layer_scale_2", "stages.{i}.blocks.{j}.ls2.gamma"),
    ("norm{i1}", "stages.{i}.norm"),
    ("head", "head.fc"),
)

_DECODER_RULES = (
    ("squeeze.gn", "decoder.squeeze_norm"),
    ("hamburger.ham_in.conv", "decoder.hamburger.proj_in"),
    ("hamburger.ham_out.conv", "decoder.hamburger.proj_out"),
    ("hamburger.ham_out.gn", "decoder.hamburger.norm"),
    ("align.conv", "decoder.align"),
    ("align.gn", "decoder.align_norm"),
    ("conv_seg", "segmentation_head.0"),
)
_SQUEEZE = "squeeze.conv.weight"  # one convolution over concatenated features; native: one convolution a feature


def _compile(rules: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern, str]]:
    def pattern(published: str) -> re.Pattern:
        escaped = re.escape(published).replace(r"\{", "{").replace(r"\}", "}")
        return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>\\d+)", escaped) + r"(?=\.|$)")

    return [(pattern(published), native) for published, native in rules]


_BACKBONE_PATTERNS = _compile(_BACKBONE_RULES)
_DECODER_PATTERNS = _compile(_DECODER_RULES)


def _rename(name: str, patterns: list[tuple[re.Pattern, str]]) -> str | None:
    """Native spelling of a published name, None if no rule fits."""
    for pattern, native in patterns:
        match = pattern.match(name)
        if match:
            numbers = {key: int(value) for key, value in match.groupdict().items()}
            numbers |= {key[:-1]: value - 1 for key, value in numbers.items() if key.endswith("1")}
            return native.format(**numbers) + name[match.end() :]
    return None


def unnest(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict inside a checkpoint, which may hold it as `state_dict` or `model`, or be it.

    Args:
        checkpoint: What the file holds: parameters by name, or a dictionary with them among other things.
    """
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), Mapping):
            return unnest(checkpoint[key])
    return {name: value for name, value in checkpoint.items() if isinstance(value, torch.Tensor)}


def backbone_to_native(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Parameters of MSCAN by their native names, from any published spelling or from native ones.

    Of a segmenter, the backbone is taken. A name that fits no rule is kept as it is, for `load_state_dict` to report.

    Args:
        checkpoint: A backbone's or a segmenter's state dict, or a checkpoint that holds one.

    Raises:
        ValueError: If no name in it is one of MSCAN's.
    """
    state_dict = unnest(checkpoint)
    if any(name.startswith("backbone.") for name in state_dict):
        state_dict = {
            name.removeprefix("backbone."): v for name, v in state_dict.items() if name.startswith("backbone.")
        }
    if any(name.startswith(("stem.", "stages.")) for name in state_dict):
        return state_dict
    renamed = {name: _rename(name, _BACKBONE_PATTERNS) for name in state_dict}
    if not any(new and new.startswith("stages.") for new in renamed.values()):
        names = ", ".join(list(state_dict)[:3]) or "no tensors"
        raise ValueError(
            f"Not a checkpoint of MSCAN: expected names like 'patch_embed1.proj.0.weight' or 'stem.conv1.weight', "
            f"found {names}."
        )
    return {renamed[name] or name: value for name, value in state_dict.items()}


def segmenter_to_native(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Parameters of SegNeXt by their native names, from a published segmenter.

    The bases of the matrix decomposition are not among them: no published checkpoint holds any.

    Args:
        checkpoint: A segmenter's state dict, with names under `backbone.` and `decode_head.`, or a checkpoint that
            holds one.

    Raises:
        ValueError: If it is not a published segmenter.
    """
    state_dict = unnest(checkpoint)
    head = {name.removeprefix("decode_head."): v for name, v in state_dict.items() if name.startswith("decode_head.")}
    if _SQUEEZE not in head:
        raise ValueError(f"Not a published SegNeXt segmenter: it has no 'decode_head.{_SQUEEZE}'.")
    native = {}
    backbone = backbone_to_native(state_dict)
    for name, value in backbone.items():
        # timm's feature extractors flatten the stages into themselves
        native["encoder.model." + re.sub(r"^stages\.", "stages_", name)] = value
    widths = [backbone[f"stages.{i}.norm.weight"].shape[0] for i in (1, 2, 3)]
    for level, weight in enumerate(head.pop(_SQUEEZE).split(widths, dim=1)):
        native[f"decoder.squeeze.{level}.weight"] = weight.contiguous()
    for name, value in head.items():
        native[_rename(name, _DECODER_PATTERNS) or f"decode_head.{name}"] = value
    return native
