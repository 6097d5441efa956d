"""Checkpoints as they are published, with random weights: names and shapes written down from the sources.

Independent of the package's own translation table on purpose: this is what that table is tested against.
"""

import dataclasses
import hashlib
import operator
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

VARIANTS = {
    # variant: dims, depths, MLP ratios, decoder channels, rank in the paper's code
    "t": ((32, 64, 160, 256), (3, 3, 5, 2), (8, 8, 4, 4), 256, 16),
    "s": ((64, 128, 320, 512), (2, 2, 4, 2), (8, 8, 4, 4), 256, 16),
    "b": ((64, 128, 320, 512), (3, 3, 12, 3), (8, 8, 4, 4), 512, 64),
    "l": ((64, 128, 320, 512), (3, 5, 27, 3), (8, 8, 4, 4), 1024, 64),
}

# ImageNet-1k weights, by the names that torch.hub looks for in its cache
FILES = {
    "t": "mscan_t_20230227-119e8c9f.pth",
    "s": "mscan_s_20230227-f33ccdf2.pth",
    "b": "mscan_b_20230227-3ab7d230.pth",
    "l": "mscan_l_20230227-cef260d4.pth",
}


def _conv(name, out, inp, *kernel, bias=True):
    shapes = {f"{name}.weight": (out, inp, *kernel)}
    return {**shapes, f"{name}.bias": (out,)} if bias else shapes


def _norm(name, dim, running=True):
    shapes = {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    if running:
        shapes |= {f"{name}.running_mean": (dim,), f"{name}.running_var": (dim,), f"{name}.num_batches_tracked": ()}
    return shapes


def backbone_shapes(variant: str, dialect: str = "mmseg", classifier: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of MSCAN's parameters and buffers.

    Args:
        variant: One of `VARIANTS`.
        dialect: "paper" for the authors' spelling, "mmseg" for mmsegmentation's.
        classifier: Include the 1000-class classifier.
    """
    dims, depths, ratios, _, _ = VARIANTS[variant]
    half = dims[0] // 2
    shapes = {
        **_conv("patch_embed1.proj.0", half, 3, 3, 3),
        **_norm("patch_embed1.proj.1", half),
        **_conv("patch_embed1.proj.3", dims[0], half, 3, 3),
        **_norm("patch_embed1.proj.4", dims[0]),
    }
    dwconv = "mlp.dwconv.dwconv" if dialect == "paper" else "mlp.dwconv"
    for i, (dim, depth, ratio) in enumerate(zip(dims, depths, ratios), start=1):
        if i > 1:
            shapes |= _conv(f"patch_embed{i}.proj", dim, dims[i - 2], 3, 3) | _norm(f"patch_embed{i}.norm", dim)
        for j in range(depth):
            block, gate = f"block{i}.{j}", f"block{i}.{j}.attn.spatial_gating_unit"
            shapes |= {f"{block}.layer_scale_1": (dim,), f"{block}.layer_scale_2": (dim,)}
            shapes |= _norm(f"{block}.norm1", dim) | _conv(f"{block}.attn.proj_1", dim, dim, 1, 1)
            shapes |= _conv(f"{gate}.conv0", dim, 1, 5, 5)
            for k, length in enumerate((7, 11, 21)):
                shapes |= _conv(f"{gate}.conv{k}_1", dim, 1, 1, length) | _conv(f"{gate}.conv{k}_2", dim, 1, length, 1)
            shapes |= _conv(f"{gate}.conv3", dim, dim, 1, 1) | _conv(f"{block}.attn.proj_2", dim, dim, 1, 1)
            hidden = dim * ratio
            shapes |= _norm(f"{block}.norm2", dim) | _conv(f"{block}.mlp.fc1", hidden, dim, 1, 1)
            shapes |= _conv(f"{block}.{dwconv}", hidden, 1, 3, 3) | _conv(f"{block}.mlp.fc2", dim, hidden, 1, 1)
        shapes |= _norm(f"norm{i}", dim, running=False)
    if classifier:
        shapes |= {"head.weight": (1000, dims[-1]), "head.bias": (1000,)}
    return shapes


def head_shapes(variant: str, classes: int, channels: int | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the light Hamburger head's parameters."""
    dims, _, _, published_channels, _ = VARIANTS[variant]
    channels = channels or published_channels
    return {
        **_conv("conv_seg", classes, channels, 1, 1),
        **_conv("squeeze.conv", channels, sum(dims[1:]), 1, 1, bias=False),
        **_norm("squeeze.gn", channels, running=False),
        **_conv("hamburger.ham_in.conv", channels, channels, 1, 1),
        **_conv("hamburger.ham_out.conv", channels, channels, 1, 1, bias=False),
        **_norm("hamburger.ham_out.gn", channels, running=False),
        **_conv("align.conv", channels, channels, 1, 1, bias=False),
        **_norm("align.gn", channels, running=False),
    }


def segmenter_shapes(
    variant: str, classes: int, dialect: str = "mmseg", channels: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a segmenter's parameters and buffers."""
    return {
        **{f"backbone.{name}": shape for name, shape in backbone_shapes(variant, dialect).items()},
        **{f"decode_head.{name}": shape for name, shape in head_shapes(variant, classes, channels).items()},
    }


def random_state_dict(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values in which every weight, scale, bias and running statistic matters.

    Convolutions keep the scale of what passes through them; scales, variances and layer scales are spread around a
    positive mean, biases and means around 0. Made of `torch.rand` alone, whose values do not depend on the processor,
    and drawn in the order of the names.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape, low, high):
        return torch.rand(shape, generator=generator) * (high - low) + low

    state_dict = {}
    for name, shape in sorted(shapes.items()):
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(100)
        elif "layer_scale" in name:
            value = uniform(shape, 0.03, 0.1)
        elif name.endswith(("running_var", "weight")) and len(shape) == 1:
            value = uniform(shape, 0.5, 1.5)
        elif len(shape) > 1:
            bound = (3 / torch.tensor(shape[1:]).prod().item()) ** 0.5
            value = uniform(shape, -bound, bound)
        else:
            value = uniform(shape, -0.5, 0.5)
        state_dict[name] = value
    return state_dict


def zero_state_dict(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Zeros that take no memory, for what looks at names and shapes only."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def paper_spelling(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """mmsegmentation's names to those of the authors' code."""
    return {name.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv."): value for name, value in state_dict.items()}


def paddle_spelling(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """mmsegmentation's names and shapes to those of PaddleSeg."""
    renamed = {}
    for name, value in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        gate = re.fullmatch(r"(.*spatial_gating_unit\.)conv([012])_([12])(\..*)", name)
        if gate:
            start, k, n, end = gate.groups()
            name = f"{start}dwconvs.{k}.conv{int(k) + 1}_{n}{end}"
        for ours, theirs in (
            ("spatial_gating_unit.conv3.", "spatial_gating_unit.conv_out."),
            ("running_mean", "_mean"),
            ("running_var", "_variance"),
            ("decode_head.squeeze.conv.", "decode_head.squeeze._conv."),
            ("decode_head.squeeze.gn.", "decode_head.squeeze._group_norm."),
            ("decode_head.align.conv.", "decode_head.align._conv."),
            ("decode_head.align.gn.", "decode_head.align._group_norm."),
            ("hamburger.ham_in.conv.", "hamburger.ham_in."),
            ("hamburger.ham_out.conv.", "hamburger.ham_out._conv."),
            ("hamburger.ham_out.gn.", "hamburger.ham_out._group_norm."),
        ):
            name = name.replace(ours, theirs)
        renamed[name] = value[:, None, None] if ".layer_scale_" in name else value
    return renamed


def write(path: Path, state_dict: dict[str, torch.Tensor], dialect: str, protocol: int = 4) -> Path:
    """Write weights in mmsegmentation's spelling as one of the origins publishes them.

    Args:
        path: The file, without suffix.
        state_dict: A backbone's or a segmenter's.
        dialect: "paper" or "mmseg" (PyTorch's files), "jittor" (a pickle of arrays, without counts of batches),
            "paddle" (a .pdparams) or "paddle zip" (a zip file of one, as PaddleSeg's backbones).
        protocol: Protocol of Paddle's pickle.

    Returns:
        The file.
    """
    if dialect == "mmseg":
        torch.save({"state_dict": state_dict, "meta": {}}, path.with_suffix(".pth"))
        return path.with_suffix(".pth")
    if dialect.startswith("paddle"):
        arrays = {name: value.numpy() for name, value in paddle_spelling(state_dict).items()}
        table = {"StructuredToParameterName@@": {name: f"param_{i}" for i, name in enumerate(arrays)}}
        data = pickle.dumps(arrays | table, protocol)
        if dialect == "paddle":
            path.with_suffix(".pdparams").write_bytes(data)
            return path.with_suffix(".pdparams")
        with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(f"{path.name}/model.pdparams", data)
        return path.with_suffix(".zip")
    state_dict = paper_spelling(state_dict)
    if dialect == "paper":
        torch.save({"state_dict": state_dict}, path.with_suffix(".pth"))
        return path.with_suffix(".pth")
    arrays = {name: v.numpy() for name, v in state_dict.items() if not name.endswith("num_batches_tracked")}
    segmenter = any(name.startswith("decode_head.") for name in arrays)
    save_jittor(path.with_suffix(".pkl"), {"model": arrays, "meta": {"iter": 1}} if segmenter else arrays)
    return path.with_suffix(".pkl")


def save_jittor(path: Path, content: object) -> None:
    """Write as Jittor's `save` does: a pickle, its sha1 and a mark."""
    data = pickle.dumps(content, 4)
    path.write_bytes(data + hashlib.sha1(data).digest() + b"HCAJSLHD")


def accept_cached(setitem: Callable = operator.setitem) -> None:
    """Let the files under published names in torch.hub's cache, random here, pass for the published ones.

    Args:
        setitem: Sets an item of a dictionary: `monkeypatch.setitem` in a test, which sets it back.
    """
    from segnext_timm.checkpoints import catalog as segmenters
    from segnext_timm.models import mscan

    cached = {file.name: file for file in (Path(torch.hub.get_dir()) / "checkpoints").iterdir()}
    for name in mscan.PUBLISHED_SHA256.keys() & cached.keys():
        setitem(mscan.PUBLISHED_SHA256, name, hashlib.sha256(cached[name].read_bytes()).hexdigest())
    for name, cfg in list(segmenters._CFGS.items()):
        file = cached.get(cfg.cached_name)
        if file and cfg.sha256:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            setitem(segmenters._CFGS, name, dataclasses.replace(cfg, sha256=digest))


ACCEPT_CACHED = (
    f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
    "import random_checkpoints; random_checkpoints.accept_cached()\n"
)
