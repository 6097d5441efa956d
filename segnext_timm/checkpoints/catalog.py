"""Published segmenters: where they are, what they are, how they were evaluated, and their published results.

Imports nothing heavy. :mod:`segnext_timm.checkpoints.loading` creates the models.
"""

import difflib
import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from ..label_sets import LABEL_SETS
from ..variants import VARIANTS, Variant

# ImageNet's statistics of RGB values from 0 to 1: timm's IMAGENET_DEFAULT_MEAN and _STD, whose import takes seconds
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SINGLE_SCALE, MULTI_SCALE, _FLIP = "single scale", "multi-scale + flip", "flip"

# Hub repositories with the safetensors of published models, by name. `segnext-timm publish` prints new entries.
HUB_IDS: dict[str, str] = {}


@dataclass(frozen=True)
class Origin:
    """A publisher of weights.

    Attributes:
        name: Its usual name.
        url: Page that describes its models.
        license: License of its weights, as an SPDX identifier in lower case.
        license_note: Caveat to the license.
        batch_counts: Whether its files contain `num_batches_tracked` of the batch norms.
    """

    name: str
    url: str
    license: str
    license_note: str
    batch_counts: bool = True


_REQUEST = "the authors of SegNeXt ask commercial users to contact them"
ORIGINS = {
    "mmseg": Origin(
        "mmsegmentation",
        "https://github.com/open-mmlab/mmsegmentation/tree/v1.2.2/configs/segnext",
        "apache-2.0",
        f"trained from the authors' ImageNet weights; {_REQUEST}",
    ),
    "jseg": Origin("JSeg", "https://github.com/uyzhang/JSeg", "apache-2.0", _REQUEST, batch_counts=False),
    "authors": Origin("the authors", "https://github.com/Visual-Attention-Network/SegNeXt", "apache-2.0", _REQUEST),
    "paddleseg": Origin(
        "PaddleSeg",
        "https://github.com/PaddlePaddle/PaddleSeg/tree/release/2.9/configs/segnext",
        "apache-2.0",
        _REQUEST,
        batch_counts=False,
    ),
}

# Tag of the published ImageNet backbones in timm, and their origin
BACKBONE_TAGS = {"in1k": "mmseg"}
# The sha256 of each backbone's file, or its first digits. Those of T, S and B are recorded by Intel's Geti, which pins
# them; of L only the digits in its name are known.
BACKBONE_SHA256 = {
    "mscan_t.in1k": "119e8c9f4479cb5ed7906c26adc3c9fe722d5c5fff63651549669bff941d11c4",
    "mscan_s.in1k": "f33ccdf2fc0afb78a39a44645eb8436891b95b1d3d9b48c1d9ace85936740a18",
    "mscan_b.in1k": "3ab7d2301876e41fdd3950e59cdce44e18ebcc36a4cf7a4f5f0817d14f381c9b",
    "mscan_l.in1k": "cef260d4",
}


@dataclass(frozen=True)
class Evaluation:
    """How a published result was measured.

    Attributes:
        mode: "whole" images, or "slide" for sliding windows.
        fit_in: Maximum side lengths (long, short) that images are resized to fit; None to keep their size.
        window: Height and width of the sliding windows in pixels.
        stride: Vertical and horizontal distance of the windows in pixels.
        divisor: Sides of resized images are rounded up to its multiples.
    """

    mode: Literal["whole", "slide"] = "whole"
    fit_in: tuple[int, int] | None = None
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    divisor: int = 1


_FITTED = Evaluation(fit_in=(2048, 512), divisor=32)
_WINDOWS = Evaluation("slide", window=(1024, 1024), stride=(768, 768))


@dataclass(frozen=True)
class SegmenterCfg:
    """A published segmenter.

    Attributes:
        name: "architecture.tag".
        origin: Key of its publisher in `ORIGINS`.
        encoder_name: Its encoder, in smp's spelling.
        decoder_channels: Width of its decoder.
        decoder_rank: Rank of its matrix decomposition in training.
        labels: Key of its data set in `LABEL_SETS`.
        url: Address of its checkpoint. Digits at the end of the name do not begin the file's sha256.
        miou: Published mIoU on the validation set in percent, by setting; empty if none was published.
        input_size: Channels, height and width of the crops it was trained on.
        evaluation: How the single-scale result was measured.
        file: Name of the checkpoint in the cache. Default: the last part of the URL.
        sha256: Hash of the checkpoint file; None if nobody has published it.
        size: Size of the checkpoint file in bytes; None if nobody has published it.
    """

    name: str
    origin: str
    encoder_name: str
    decoder_channels: int
    decoder_rank: int
    labels: str
    url: str
    miou: dict[str, float]
    input_size: tuple[int, int, int] = (3, 512, 512)
    evaluation: Evaluation = _FITTED
    file: str = ""
    sha256: str | None = None
    size: int | None = None

    @property
    def dataset(self) -> str:
        """Name of its data set."""
        return LABEL_SETS[self.labels].name

    @property
    def num_classes(self) -> int:
        """Number of its classes."""
        return len(LABEL_SETS[self.labels].classes)

    @property
    def variant(self) -> Variant:
        """Its size."""
        return VARIANTS[self.encoder_name.removeprefix("tu-mscan_")]

    @property
    def parameters(self) -> int:
        """Number of its parameters."""
        return self.variant.segmenter_parameters(self.num_classes, self.decoder_channels)

    @property
    def tensors(self) -> int:
        """Number of tensors in its checkpoint."""
        return self.variant.segmenter_tensors(ORIGINS[self.origin].batch_counts)

    @property
    def cached_name(self) -> str:
        """Name of its checkpoint in the cache."""
        return self.file or Path(urlparse(self.url).path).name

    @property
    def hf_hub_id(self) -> str | None:
        """Hub repository with its safetensors; None if there is none."""
        return HUB_IDS.get(self.name)

    @property
    def results(self) -> list[dict[str, Any]]:
        """The published mIoU, in the form that model cards need."""
        origin = ORIGINS[self.origin]
        return [
            {
                "dataset": self.dataset,
                "split": "validation",
                "metric": "mIoU",
                "setting": setting,
                "value": value,
                "source": origin.url,
                "source_name": origin.name,
            }
            for setting, value in self.miou.items()
        ]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Facts that go with the weights: classes, palette, preprocessing, license and origin."""
        labels, origin = LABEL_SETS[self.labels], ORIGINS[self.origin]
        return {
            "architecture": self.name.split(".")[0],
            "tag": self.name.split(".")[1],
            "url": self.url,
            "input_size": list(self.input_size),
            "mean": list(_MEAN),
            "std": list(_STD),
            "dataset": labels.name,
            "label_names": list(labels.classes),
            "palette": [list(color) for color in labels.palette],
            "license": origin.license,
            "origin_url": origin.url,
            "results": self.results,
        }


def _segmenter(
    key: str, origin: str, labels: str, url: str, *miou: float, rank: int | None = None, **facts: Any
) -> SegmenterCfg:
    """Describe one size of SegNeXt. `miou` is single scale, then multiple scales with flips, if published."""
    variant = VARIANTS[key]
    facts.setdefault("decoder_channels", variant.decoder_channels)
    return SegmenterCfg(
        name=f"segnext_{key}.{origin}_{labels}",
        origin=origin,
        encoder_name=f"tu-{variant.backbone}",
        decoder_rank=rank or variant.decoder_rank,
        labels=labels,
        url=url,
        miou=facts.pop("results", None) or dict(zip((SINGLE_SCALE, MULTI_SCALE), miou)),
        **facts,
    )


def _mmseg() -> Iterable[SegmenterCfg]:
    """Segmenters of mmsegmentation, all trained with rank 16."""
    base = "https://download.openmmlab.com/mmsegmentation/v0.5/segnext/"
    recorded = "647a0cda7678a35396689a4f8e9fddc33a088d8b539195d0dc97485ab8640ef1"
    for key, stamp, miou, facts in (
        ("t", "20230210_140244-05bd8466", (41.50, 42.59), {}),
        ("s", "20230214_113014-43013668", (44.16, 45.81), {}),
        ("b", "20230209_172053-b6f6c70c", (48.03, 49.68), {"sha256": recorded, "size": 110_977_141}),
        ("l", "20230209_172055-19b14b63", (50.99, 52.10), {}),
    ):
        run = f"segnext_mscan-{key}_1x16_512x512_adamw_160k_ade20k"
        yield _segmenter(key, "mmseg", "ade20k", f"{base}{run}/{run}_{stamp}.pth", *miou, rank=16, **facts)


def _jseg() -> Iterable[SegmenterCfg]:
    """Segmenters of the authors' Jittor code. Results are those of its README."""
    base = "https://cg.cs.tsinghua.edu.cn/jittor/assets/build/checkpoints/"
    names = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
    fitted, patches = Evaluation(fit_in=(2048, 512)), Evaluation(fit_in=(896, 896))
    for labels, run, side, evaluation, results in (
        ("ade20k", "512x512_ade", 512, fitted, ((41.4, 42.2), (44.3, 45.8), (48.5, 49.9), (51.0, 52.1))),
        ("cityscapes", "1024x1024_city", 1024, _WINDOWS, ((79.8, 81.4), (81.3, 82.7), (82.6, 83.8), (83.2, 83.9))),
        ("isaid", "896x896_isaid", 896, patches, ((68.3,), (68.8,), (69.9,), (70.3,))),
    ):
        for key, miou in zip(names, results):
            url = f"{base}segnext_{names[key]}_{run}_160k.pkl"
            yield _segmenter(key, "jseg", labels, url, *miou, input_size=(3, side, side), evaluation=evaluation)


def _authors() -> Iterable[SegmenterCfg]:
    """Segmenters on the authors' share links, whose URLs contain no file name. Results are the paper's."""
    ade = ("5da98841b8384ba0988a", "b2d1eb94f5944d60b3d2", "1ea8000916284493810b", "d4f8e1020643414fbf7f")
    city = ("b1613af9955849bba910", "14148cf5371a4f248db1", "adb49029f66f426bb046", "b5308d092b034f81aac0")
    city_miou = ((79.8, 81.4), (81.3, 82.7), (82.6, 83.8), (83.2, 83.9))

    def entry(key: str, labels: str, share: str, *miou: float, **facts: Any) -> SegmenterCfg:
        url, file = f"https://cloud.tsinghua.edu.cn/f/{share}/?dl=1", f"segnext_{key}.authors_{labels}.pth"
        return _segmenter(key, "authors", labels, url, *miou, file=file, **facts)

    for variant, share in zip(VARIANTS.values(), ade):
        yield entry(variant.key, "ade20k", share, *variant.miou)
    for key, share, miou in zip(VARIANTS, city, city_miou):
        yield entry(key, "cityscapes", share, *miou, input_size=(3, 1024, 1024), evaluation=_WINDOWS)
    yield entry("l", "coco_stuff164k", "aca5733f73d645feb43f")  # from issue 45 of their repository, without a result


def _paddleseg() -> Iterable[SegmenterCfg]:
    """Segmenters of PaddleSeg: a decoder of width 256 and rank 16 in all sizes, evaluated on whole images."""
    base = "https://paddleseg.bj.bcebos.com/dygraph/cityscapes/"
    results = ((81.04, 81.20, 81.43), (81.33, 81.44, 81.47), (82.74, 82.84, 83.01), (83.32, 83.38, 83.60))
    for key, miou in zip(VARIANTS, results):
        yield _segmenter(
            key,
            "paddleseg",
            "cityscapes",
            f"{base}segnext_mscan_{key}_cityscapes_1024x1024_160k/model.pdparams",
            results=dict(zip((SINGLE_SCALE, _FLIP, MULTI_SCALE), miou)),
            rank=16,
            decoder_channels=256,
            input_size=(3, 1024, 1024),
            evaluation=Evaluation(),
            file=f"segnext_{key}.paddleseg_cityscapes.pdparams",
        )


# For a name without tag, the first entry counts
_CFGS = {cfg.name: cfg for cfg in (*_mmseg(), *_jseg(), *_authors(), *_paddleseg())}


def list_segmenters(filter: str = "") -> list[str]:
    """List the names of published segmenters, for :func:`create_segmenter`.

    Args:
        filter: A pattern with wildcards, such as "*ade20k".
    """
    return [name for name in _CFGS if fnmatch.fnmatch(name, filter or "*")]


def get_segmenter_cfg(name: str) -> SegmenterCfg:
    """Look up a published segmenter.

    Args:
        name: One of :func:`list_segmenters`, or the part before its dot.

    Raises:
        ValueError: If no segmenter has that name. The message lists the nearest names.
    """
    cfg = find_segmenter(name)
    if cfg is None:
        near = difflib.get_close_matches(name, _CFGS, n=2, cutoff=0.3) or list(_CFGS)
        raise ValueError(f"Unknown segmenter {name!r}. Did you mean {' or '.join(map(repr, near))}?")
    return cfg


def list_backbones() -> list[str]:
    """List the names of published ImageNet backbones, for `timm.create_model`."""
    return [f"{variant.backbone}.{tag}" for tag in BACKBONE_TAGS for variant in VARIANTS.values()]


def published_name(name: str) -> str:
    """Complete the name of a published backbone or segmenter with its tag.

    Args:
        name: One of :func:`list_backbones` or :func:`list_segmenters`, or the part before its dot.

    Raises:
        ValueError: If no published checkpoint has that name. The message lists the nearest names.
    """
    for candidate in (name, f"{name}.in1k"):
        if candidate in list_backbones():
            return candidate
    cfg = find_segmenter(name)
    if cfg is None:
        names = [*list_backbones(), *_CFGS]
        near = difflib.get_close_matches(name, names, n=2, cutoff=0.3) or names
        raise ValueError(f"Unknown checkpoint {name!r}. Did you mean {' or '.join(map(repr, near))}?")
    return cfg.name


def find_segmenter(name: str) -> SegmenterCfg | None:
    """Look up a published segmenter; None if no segmenter has that name."""
    return _CFGS.get(name) or next((cfg for cfg in _CFGS.values() if cfg.name.split(".")[0] == name), None)


def cached_file(name: str) -> Path | None:
    """Path of a downloaded checkpoint in torch.hub's cache; None if it is not there.

    Args:
        name: Name of the file.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"  # as torch.hub.get_dir, which imports torch
    folder = Path(os.environ.get("TORCH_HOME", cache)).expanduser() / "hub" / "checkpoints"
    path = folder / name
    return path if path.is_file() else None
