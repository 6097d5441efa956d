"""Published checkpoints: where they are, what they are, how they were evaluated, and their published results.

The facts are in catalog.json. A group of segmenters is named "origin_dataset", and its models by their size. Imports
nothing heavy.
"""

import difflib
import fnmatch
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..label_sets import LABEL_SETS
from ..variants import HUB_IDS, VARIANTS, Variant

# ImageNet's statistics of RGB values from 0 to 1: timm's IMAGENET_DEFAULT_MEAN and _STD, whose import takes seconds
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PAPER = {"source": "https://arxiv.org/abs/2209.08575", "source_name": "the paper"}
SINGLE_SCALE, MULTI_SCALE = "single scale", "multi-scale + flip"


@dataclass(frozen=True)
class Origin:
    """A publisher of weights."""

    name: str
    url: str  # page that describes its models
    license: str  # SPDX identifier in lower case
    license_note: str


@dataclass(frozen=True)
class BackboneCfg:
    """A published ImageNet backbone; models/mscan.py, which imports nothing of this room, has its address, too."""

    name: str  # in timm, with the tag, which is the key of the data set too
    origin: str  # key in `ORIGINS`
    variant: Variant
    dataset: str
    terms: list[dict[str, str]]  # what sources say of the data set's terms: `dataset`, `says`, `source` (an address)
    parameters: int  # their number, with the classifier's
    top1: float  # the paper's, in percent
    result: dict[str, Any]  # the same, in the form that model cards need
    url: str

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Facts that go with the weights, a part of timm's: preprocessing, license, terms and origin."""
        return {
            "url": self.url,
            "input_size": [3, 224, 224],
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "dataset": self.dataset,
            "license": "apache-2.0",
            "license_note": ORIGINS[self.origin].license_note,
            "dataset_terms": [*self.terms],
            "origin_url": "https://github.com/Visual-Attention-Network/SegNeXt",
            "results": [self.result],
        }


@dataclass(frozen=True)
class SegmenterCfg:
    """A published segmenter."""

    name: str  # "architecture.tag"
    origin: str  # key in `ORIGINS`
    labels: str  # key in `LABEL_SETS`
    dataset: str
    num_classes: int
    terms: list[dict[str, str]]  # what sources say of the data set's terms: `dataset`, `says`, `source` (an address)
    variant: Variant
    encoder_name: str  # in smp
    parameters: int  # their number
    input_size: tuple[int, int, int]  # channels, height and width of the crops in training
    # How the single-scale result was measured: `mode`, whole or slide; and in pixels, where they apply, `fit_in`, the
    # maximum long and short side of resized images, `divisor` of their sides, and the windows' `window` and `stride`
    evaluation: dict[str, Any]
    url: str  # digits at its end do not begin the file's sha256
    cached_name: str  # the file's name: the last part of the address, unless catalog.json has another
    miou: dict[str, float]  # on the validation set in percent, by setting; empty if none was published
    results: list[dict[str, Any]]  # the same, in the form that model cards need
    decoder_channels: int
    decoder_rank: int
    sha256: str | None = None  # None if nobody has published it
    size: int | None = None  # in bytes; None if nobody has published it
    hf_hub_id: str | None = None  # Hub repository with its safetensors

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Facts that go with the weights: classes, palette, preprocessing, license, terms and origin."""
        architecture, _, tag = self.name.partition(".")
        return {
            "architecture": architecture,
            "tag": tag,
            "url": self.url,
            "input_size": list(self.input_size),
            "fit_in": [*self.evaluation["fit_in"]] if "fit_in" in self.evaluation else None,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "dataset": self.dataset,
            "label_names": list(LABEL_SETS[self.labels].classes),
            "palette": [list(color) for color in LABEL_SETS[self.labels].palette],
            "license": ORIGINS[self.origin].license,
            "dataset_terms": [*self.terms],
            "origin_url": ORIGINS[self.origin].url,
            "results": [*self.results],
        }


_CATALOG = json.loads(
    Path(__file__).with_name("catalog.json").read_text("utf-8"),
    object_hook=lambda entry: {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()},
)


def _terms(key: str, dataset: str) -> list[dict[str, str]]:
    return [{"dataset": dataset, **term} for term in _CATALOG["terms"][key]]


def _read_backbones() -> Iterator[BackboneCfg]:
    for name, facts in _CATALOG["backbones"].items():
        variant = next(variant for variant in VARIANTS.values() if name.startswith(f"{variant.backbone}."))
        result = {"dataset": facts["dataset"], "metric": "top-1", "value": facts["top1"], **_PAPER}
        yield BackboneCfg(name, variant=variant, terms=_terms("in1k", facts["dataset"]), result=result, **facts)


def _read_segmenters() -> Iterator[SegmenterCfg]:
    for tag, group in _CATALOG["segmenters"].items():
        origin, labels = tag.split("_", 1)
        dataset, count = LABEL_SETS[labels].name, len(LABEL_SETS[labels].classes)
        shared = {"origin": origin, "labels": labels, "dataset": dataset, "num_classes": count}
        shared |= {"input_size": group["input_size"], "evaluation": group["evaluation"]}
        source = {"source": ORIGINS[origin].url, "source_name": ORIGINS[origin].name}
        measure = {"dataset": dataset, "split": "validation", "metric": "mIoU"}
        for key, facts in group["models"].items():
            name, variant, miou = f"segnext_{key}.{tag}", VARIANTS[key], facts["miou"]
            yield SegmenterCfg(
                name,
                variant=variant,
                hf_hub_id=HUB_IDS.get(name),
                encoder_name=f"tu-{variant.backbone}",
                results=[{**measure, "setting": setting, "value": value, **source} for setting, value in miou.items()],
                terms=_terms(labels, dataset),
                **shared,
                **{"cached_name": facts["url"].rpartition("/")[2], **facts},
            )


ORIGINS = {key: Origin(**facts) for key, facts in _CATALOG["origins"].items()}
BACKBONES = {cfg.name: cfg for cfg in _read_backbones()}
_CFGS = {cfg.name: cfg for cfg in _read_segmenters()}


def list_segmenters(filter: str = "") -> list[str]:
    """List the names of published segmenters, for :func:`create_segmenter`.

    Args:
        filter: A pattern with wildcards, such as "*ade20k".
    """
    return [name for name in _CFGS if fnmatch.fnmatch(name, filter or "*")]


def _complete(name: str, names: Iterable[str]) -> str:
    """Complete a name with its tag, the first of those published; "" if it is not published."""
    return next((full for full in names if name in (full, full.partition(".")[0])), "")


def find_segmenter(name: str) -> SegmenterCfg | None:
    """Look up a published segmenter by its name, or the part before its dot; None if no segmenter has that name."""
    return _CFGS.get(_complete(name, _CFGS))


def find_backbone(name: str) -> BackboneCfg | None:
    """Look up a published backbone by its name, or the part before its dot; None if no backbone has that name."""
    return BACKBONES.get(_complete(name, BACKBONES))


def get_segmenter_cfg(name: str) -> SegmenterCfg:
    """Look up a published segmenter by its name, or the part before its dot; an OptionError suggests near names."""
    return _CFGS[published_name(name, _CFGS, "segmenter")]


def published_name(name: str, names: Iterable[str] = (*BACKBONES, *_CFGS), what: str = "checkpoint") -> str:
    """Complete the name of a published checkpoint with its tag; an OptionError suggests near names."""
    if full := _complete(name, names):
        return full
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.3) or names
    raise OptionError(f"Unknown {what} {name!r}. Did you mean {' or '.join(map(repr, near))}?")
