"""Published segmenters: names, architecture, origin and results. Imports nothing heavy; `zoo` makes the models."""

import difflib
import fnmatch
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ..label_sets import LABEL_SETS
from ..variants import VARIANTS, Variant

_MMSEG = "https://github.com/open-mmlab/mmsegmentation/tree/v1.2.2/configs/segnext"
_MMSEG_FILES = "https://download.openmmlab.com/mmsegmentation/v0.5/segnext/"
# ImageNet's statistics of RGB values from 0 to 1: timm's IMAGENET_DEFAULT_MEAN and _STD, whose import takes seconds
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SegmenterCfg:
    """A published segmenter.

    Attributes:
        name: "architecture.tag".
        encoder_name: Its encoder, in smp's spelling.
        decoder_channels: Width of its decoder.
        decoder_rank: Rank of its matrix decomposition, with which it was trained.
        labels: Key of its data set in `labels.LABEL_SETS`.
        url: Its checkpoint. The digits at the end of the file's name do not begin its sha256 and prove nothing.
        miou: Published mIoU on the validation set in percent: single scale, and multiple scales with flips.
        origin_url: Who published it.
        input_size: Channels, height and width of the crops it was trained on.
        license: License of the weights.
        sha256: Hash of the checkpoint file, None where nobody has published it.
    """

    name: str
    encoder_name: str
    decoder_channels: int
    decoder_rank: int
    labels: str
    url: str
    miou: tuple[float, float]
    origin_url: str = _MMSEG
    input_size: tuple[int, int, int] = (3, 512, 512)
    license: str = "apache-2.0"
    sha256: str | None = None

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
        """Its published size."""
        return VARIANTS[self.encoder_name.removeprefix("tu-mscan_")]

    @property
    def parameters(self) -> int:
        """Number of its parameters."""
        return self.variant.segmenter_parameters(self.num_classes, self.decoder_channels)

    @property
    def results(self) -> list[dict[str, Any]]:
        """The published mIoU, in the form that model cards take."""
        return [
            {
                "dataset": self.dataset,
                "split": "validation",
                "metric": "mIoU",
                "setting": setting,
                "value": value,
                "source": self.origin_url,
                "source_name": "mmsegmentation",
            }
            for setting, value in zip(("single scale", "multi-scale + flip"), self.miou)
        ]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What travels with the weights: classes, palette, preprocessing, license and origin."""
        labels = LABEL_SETS[self.labels]
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
            "license": self.license,
            "origin_url": self.origin_url,
            "results": self.results,
        }


def _mmseg_ade20k(key: str, stamp: str, miou: tuple[float, float], sha256: str | None = None) -> SegmenterCfg:
    run = f"segnext_mscan-{key}_1x16_512x512_adamw_160k_ade20k"
    return SegmenterCfg(
        name=f"segnext_{key}.mmseg_ade20k",
        encoder_name=f"tu-{VARIANTS[key].backbone}",
        decoder_channels=VARIANTS[key].decoder_channels,
        decoder_rank=16,  # in all of mmsegmentation's configurations
        labels="ade20k",
        url=f"{_MMSEG_FILES}{run}/{run}_{stamp}.pth",
        miou=miou,
        sha256=sha256,
    )


_CFGS = {
    cfg.name: cfg
    for cfg in (
        _mmseg_ade20k("t", "20230210_140244-05bd8466", (41.50, 42.59)),
        _mmseg_ade20k("s", "20230214_113014-43013668", (44.16, 45.81)),
        _mmseg_ade20k(
            "b",
            "20230209_172053-b6f6c70c",
            (48.03, 49.68),
            "647a0cda7678a35396689a4f8e9fddc33a088d8b539195d0dc97485ab8640ef1",
        ),
        _mmseg_ade20k("l", "20230209_172055-19b14b63", (50.99, 52.10)),
    )
}


def list_segmenters(filter: str = "") -> list[str]:
    """Names of the published segmenters, for :func:`create_segmenter`.

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


def find_segmenter(name: str) -> SegmenterCfg | None:
    """Look up a published segmenter; None if no segmenter has that name."""
    return _CFGS.get(name) or next((cfg for cfg in _CFGS.values() if cfg.name.split(".")[0] == name), None)


def cached_file(url: str) -> Path | None:
    """Path of a downloaded checkpoint in torch.hub's cache; None if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"  # as torch.hub.get_dir, which imports torch
    folder = Path(os.environ.get("TORCH_HOME", cache)).expanduser() / "hub" / "checkpoints"
    path = folder / Path(urlparse(url).path).name
    return path if path.is_file() else None
