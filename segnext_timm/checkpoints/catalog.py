"""Published checkpoints: where they are, what they are, how they were evaluated, and their published results.

The facts are in catalog.json. A group is named "origin_dataset" and holds what its models share; `like` takes what a
group does not state from another group; `{key}` and `{id}` in an address are those of each model. A key that no class
here has is an error. Imports nothing heavy.
"""

import difflib
import fnmatch
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..label_sets import LABEL_SETS
from ..variants import HUB_IDS, VARIANTS, Variant

# ImageNet's statistics of RGB values from 0 to 1: timm's IMAGENET_DEFAULT_MEAN and _STD, whose import takes seconds
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SINGLE_SCALE, MULTI_SCALE = "single scale", "multi-scale + flip"


@dataclass(frozen=True)
class Origin:
    """A publisher of weights."""

    name: str
    url: str  # page that describes its models
    license: str  # SPDX identifier in lower case
    license_note: str
    batch_counts: bool  # whether its files contain `num_batches_tracked` of the batch norms


@dataclass(frozen=True)
class BackboneCfg:
    """A published ImageNet backbone; its address and sha256 are in models/mscan.py."""

    name: str  # in timm, with the tag, which is the key of the data set too
    origin: str  # key in `ORIGINS`
    variant: Variant
    dataset: str
    top1: float  # the paper's, in percent

    @property
    def result(self) -> dict[str, Any]:
        """The published accuracy, in the form that model cards need."""
        paper = {"source": "https://arxiv.org/abs/2209.08575", "source_name": "the paper"}
        return {"dataset": self.dataset, "metric": "top-1", "value": self.top1, **paper}

    @property
    def terms(self) -> list[dict[str, str]]:
        """What sources say of the terms of its data set: `dataset`, `says`, `source` (an address)."""
        return _terms(self.name.partition(".")[2], self.dataset)


@dataclass(frozen=True)
class Evaluation:
    """How a published result was measured; all sizes in pixels."""

    mode: Literal["whole", "slide"]
    fit_in: tuple[int, int] | None = None  # maximum long and short side of resized images; None to keep their size
    window: tuple[int, int] | None = None  # height and width
    stride: tuple[int, int] | None = None  # vertical and horizontal
    divisor: int = 1  # sides of resized images are rounded up to its multiples


@dataclass(frozen=True)
class SegmenterCfg:
    """A published segmenter."""

    name: str  # "architecture.tag"
    origin: str  # key in `ORIGINS`
    labels: str  # key in `LABEL_SETS`
    variant: Variant
    decoder_channels: int
    decoder_rank: int
    url: str  # digits at its end do not begin the file's sha256
    cached_name: str  # of its file
    miou: dict[str, float]  # on the validation set in percent, by setting; empty if none was published
    input_size: tuple[int, int, int]  # channels, height and width of the crops in training
    evaluation: Evaluation  # of the single-scale result
    sha256: str | None = None  # None if nobody has published it
    size: int | None = None  # in bytes; None if nobody has published it
    hf_hub_id: str | None = None  # Hub repository with its safetensors

    @property
    def encoder_name(self) -> str:
        """Its encoder, in smp's spelling."""
        return f"tu-{self.variant.backbone}"

    @property
    def dataset(self) -> str:
        """Name of its data set."""
        return LABEL_SETS[self.labels].name

    @property
    def num_classes(self) -> int:
        """Number of its classes."""
        return len(LABEL_SETS[self.labels].classes)

    @property
    def parameters(self) -> int:
        """Number of its parameters."""
        return self.variant.segmenter_parameters(self.num_classes, self.decoder_channels)

    @property
    def results(self) -> list[dict[str, Any]]:
        """The published mIoU, in the form that model cards need."""
        common = {"dataset": self.dataset, "split": "validation", "metric": "mIoU"}
        source = {"source": ORIGINS[self.origin].url, "source_name": ORIGINS[self.origin].name}
        return [{**common, "setting": key, "value": value, **source} for key, value in self.miou.items()]

    @property
    def terms(self) -> list[dict[str, str]]:
        """What sources say of the terms of its data set: `dataset`, `says`, `source` (an address)."""
        return _terms(self.labels, self.dataset)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Facts that go with the weights: classes, palette, preprocessing, license, terms and origin."""
        return {
            "architecture": self.name.partition(".")[0],
            "tag": self.name.partition(".")[2],
            "url": self.url,
            "input_size": list(self.input_size),
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "dataset": self.dataset,
            "label_names": list(LABEL_SETS[self.labels].classes),
            "palette": [list(color) for color in LABEL_SETS[self.labels].palette],
            "license": ORIGINS[self.origin].license,
            "dataset_terms": self.terms,
            "origin_url": ORIGINS[self.origin].url,
            "results": self.results,
        }


def _with_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


_CATALOG = json.loads(Path(__file__).with_name("catalog.json").read_text("utf-8"), object_hook=_with_tuples)


def _terms(key: str, dataset: str) -> list[dict[str, str]]:
    return [{"dataset": dataset, **term} for term in _CATALOG["terms"].get(key, ())]


def _merged(kind: str, name: str) -> dict[str, Any]:
    group = _CATALOG[kind][name]
    merged = {**_merged(kind, group["like"]), **group} if "like" in group else group
    return {key: value for key, value in merged.items() if key not in ("like", "note")}


def _groups(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, _merged(kind, name)) for name in _CATALOG[kind])


def _backbones() -> Iterator[BackboneCfg]:
    for tag, group in _groups("backbones"):
        for key, facts in group.pop("models").items():
            yield BackboneCfg(f"{VARIANTS[key].backbone}.{tag}", variant=VARIANTS[key], **group, **facts)


def _segmenters() -> Iterator[SegmenterCfg]:
    for tag, group in _groups("segmenters"):
        origin, labels = tag.split("_", 1)
        models, results, suffix = group.pop("models"), group.pop("results"), group.pop("suffix", None)
        evaluation = Evaluation(**group.pop("evaluation"))
        for key, facts in models.items():
            name, variant = f"segnext_{key}.{tag}", VARIANTS[key]
            facts = {"decoder_channels": variant.decoder_channels, "decoder_rank": variant.decoder_rank} | group | facts
            url = facts.pop("url").format(key=key, id=facts.pop("id", None))
            # an address that ends in no name of a file has the suffix of its files
            cached_name = name + suffix if suffix else url.rpartition("/")[2]
            miou = {setting: values[key] for setting, values in results.items() if key in values}
            facts |= {"url": url, "cached_name": cached_name, "miou": miou, "evaluation": evaluation}
            facts["hf_hub_id"] = HUB_IDS.get(name)
            yield SegmenterCfg(name, origin, labels, variant, **facts)


ORIGINS = {key: Origin(**group) for key, group in _groups("origins")}
_BACKBONES = {cfg.name: cfg for cfg in _backbones()}
_CFGS = {cfg.name: cfg for cfg in _segmenters()}

Cfg = TypeVar("Cfg")


def _find(name: str, cfgs: Mapping[str, Cfg]) -> Cfg | None:
    """Look up a name, or the part before its dot, for which the first entry counts."""
    return next((cfg for full, cfg in cfgs.items() if name in (full, full.partition(".")[0])), None)


def _get(name: str, cfgs: Mapping[str, Cfg], what: str) -> Cfg:
    if (cfg := _find(name, cfgs)) is None:
        near = difflib.get_close_matches(name, cfgs, n=2, cutoff=0.3) or cfgs
        raise ValueError(f"Unknown {what} {name!r}. Did you mean {' or '.join(map(repr, near))}?")
    return cfg


def list_segmenters(filter: str = "") -> list[str]:
    """List the names of published segmenters, for :func:`create_segmenter`.

    Args:
        filter: A pattern with wildcards, such as "*ade20k".
    """
    return [name for name in _CFGS if fnmatch.fnmatch(name, filter or "*")]


def list_backbones() -> list[str]:
    """List the names of published ImageNet backbones, for `timm.create_model`."""
    return list(_BACKBONES)


def find_segmenter(name: str) -> SegmenterCfg | None:
    """Look up a published segmenter by its name, or the part before its dot; None if no segmenter has that name."""
    return _find(name, _CFGS)


def find_backbone(name: str) -> BackboneCfg | None:
    """Look up a published backbone by its name, or the part before its dot; None if no backbone has that name."""
    return _find(name, _BACKBONES)


def get_segmenter_cfg(name: str) -> SegmenterCfg:
    """Look up a published segmenter by its name, or the part before its dot.

    Raises:
        ValueError: If no segmenter has that name. The message lists the nearest names.
    """
    return _get(name, _CFGS, "segmenter")


def published_name(name: str) -> str:
    """Complete the name of a published backbone or segmenter with its tag.

    Raises:
        ValueError: If no published checkpoint has that name. The message lists the nearest names.
    """
    full_names = {full: full for full in (*_BACKBONES, *_CFGS)}
    return _get(name, full_names, "checkpoint")


def cached_file(name: str) -> Path | None:
    """Find a downloaded checkpoint in torch.hub's cache by the name of its file; None if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"  # as torch.hub.get_dir, which imports torch
    path = Path(os.environ.get("TORCH_HOME", cache)).expanduser() / "hub" / "checkpoints" / name
    return path if path.is_file() else None
