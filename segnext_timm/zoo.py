"""Published segmenters by name: architecture, classes and weights."""

import difflib
import fnmatch
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import adapt_input_conv

from .checkpoints import CheckpointError, check_parameters, load_checkpoint
from .labels import LABEL_SETS
from .reading import fetch
from .segnext import SegNeXt

_logger = logging.getLogger(__name__)

_MMSEG = "https://github.com/open-mmlab/mmsegmentation/tree/v1.2.2/configs/segnext"
_MMSEG_FILES = "https://download.openmmlab.com/mmsegmentation/v0.5/segnext/"


@dataclass(frozen=True)
class SegmenterCfg:
    """A published segmenter.

    Attributes:
        name: "architecture.tag".
        encoder_name: Its encoder, in smp's spelling.
        decoder_channels: Width of its decoder.
        decoder_rank: Rank of its matrix decomposition, with which it was trained.
        labels: Key of its data set in `labels.LABEL_SETS`.
        url: Its checkpoint. The digits at the end of the file's name do not begin its sha256.
        miou: Published mIoU on the validation set in percent: single scale, and multiple scales with flips.
        origin_url: Who published it.
        input_size: Channels, height and width of the crops it was trained on.
        license: Of the weights.
        sha256: Of the checkpoint, None if it is not known.
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
        """What travels with the weights: classes, palette, preprocessing, licence and origin."""
        labels = LABEL_SETS[self.labels]
        return {
            "architecture": self.name.split(".")[0],
            "tag": self.name.split(".")[1],
            "url": self.url,
            "input_size": list(self.input_size),
            "mean": list(IMAGENET_DEFAULT_MEAN),
            "std": list(IMAGENET_DEFAULT_STD),
            "dataset": labels.name,
            "label_names": list(labels.classes),
            "palette": [list(color) for color in labels.palette],
            "license": self.license,
            "origin_url": self.origin_url,
        }


def _mmseg_ade20k(
    variant: str, channels: int, stamp: str, miou: tuple[float, float], sha256: str | None = None
) -> SegmenterCfg:
    run = f"segnext_mscan-{variant}_1x16_512x512_adamw_160k_ade20k"
    return SegmenterCfg(
        name=f"segnext_{variant}.mmseg_ade20k",
        encoder_name=f"tu-mscan_{variant}",
        decoder_channels=channels,
        decoder_rank=16,
        labels="ade20k",
        url=f"{_MMSEG_FILES}{run}/{run}_{stamp}.pth",
        miou=miou,
        sha256=sha256,
    )


_SEGNEXT_B_SHA256 = "647a0cda7678a35396689a4f8e9fddc33a088d8b539195d0dc97485ab8640ef1"  # recorded by a user of the file
_CFGS = {
    cfg.name: cfg
    for cfg in (
        _mmseg_ade20k("t", 256, "20230210_140244-05bd8466", (41.50, 42.59)),
        _mmseg_ade20k("s", 256, "20230214_113014-43013668", (44.16, 45.81)),
        _mmseg_ade20k("b", 512, "20230209_172053-b6f6c70c", (48.03, 49.68), _SEGNEXT_B_SHA256),
        _mmseg_ade20k("l", 1024, "20230209_172055-19b14b63", (50.99, 52.10)),
    )
}


def list_segmenters(filter: str = "") -> list[str]:
    """Names of the published segmenters, for :func:`create_segmenter`.

    Args:
        filter: A pattern with wildcards, such as "*ade20k".
    """
    return [name for name in _CFGS if fnmatch.fnmatch(name, filter or "*")]


def get_segmenter_cfg(name: str) -> SegmenterCfg:
    """What is known of a published segmenter.

    Args:
        name: One of :func:`list_segmenters`, or the part before its dot.

    Raises:
        ValueError: If there is none of that name. The message lists the nearest ones.
    """
    cfg = _CFGS.get(name) or next((cfg for cfg in _CFGS.values() if cfg.name.split(".")[0] == name), None)
    if cfg is None:
        near = difflib.get_close_matches(name, _CFGS, n=2, cutoff=0.3) or list(_CFGS)
        raise ValueError(f"Unknown segmenter {name!r}. Did you mean {' or '.join(map(repr, near))}?")
    return cfg


def create_segmenter(name: str, pretrained: bool = False, classes: int | None = None, **overrides: Any) -> SegNeXt:
    """Create a published segmenter.

    Args:
        name: One of :func:`list_segmenters`, such as "segnext_b.mmseg_ade20k".
        pretrained: Load the published weights; they are downloaded once, into torch.hub's cache, and their hash is
            checked.
        classes: Number of classes, those of the published model by default. With another number, the last layer stays
            as initialised.
        overrides: Other arguments of :class:`SegNeXt`, and of timm's encoder: `drop_path_rate=0.1`,
            `decoder_one_step_gradient=True`. With `in_channels`, the pretrained stem is adapted as timm does.

    Returns:
        The model, in training mode; :attr:`SegNeXt.pretrained_cfg` has its class names, palette and preprocessing.

    Raises:
        ValueError: If there is no segmenter of that name.
        CheckpointError: If the weights cannot be downloaded, are damaged, or do not fit the overrides.
    """
    cfg = get_segmenter_cfg(name)
    info = cfg.pretrained_cfg
    same_classes = classes in (None, cfg.num_classes)
    if not same_classes:
        info = {key: value for key, value in info.items() if key not in ("label_names", "palette", "dataset")}
    arguments = {
        "encoder_name": cfg.encoder_name,
        "encoder_weights": None,
        "decoder_channels": cfg.decoder_channels,
        "decoder_rank": cfg.decoder_rank,
        "classes": cfg.num_classes if classes is None else classes,
        "pretrained_cfg": info,
    }
    model = SegNeXt(**{**arguments, **overrides})
    if pretrained:
        path = fetch(cfg.url, sha256=cfg.sha256)
        checkpoint = load_checkpoint(path, rank=model.decoder.hamburger.nmf.rank)
        expected = cfg.encoder_name.removeprefix("tu-")
        if checkpoint.architecture != expected:
            raise CheckpointError(f"{path}: weights of {checkpoint.architecture}, not of {expected}: remove the file.")
        try:
            _load(model, checkpoint.state_dict, same_classes)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        if not same_classes:
            _logger.warning(
                f"{cfg.name} has {cfg.num_classes} classes, {classes} were asked for: all weights but the last layer's "
                f"are loaded, and that one stays as initialised."
            )
    return model


def _load(model: SegNeXt, state_dict: dict[str, torch.Tensor], classifier: bool) -> None:
    own = model.state_dict()
    keep = ["decoder.hamburger.nmf.bases"]  # the model's own
    if not classifier:
        keep += ["segmentation_head.0.weight", "segmentation_head.0.bias"]
    keep += [name for name in own if name.startswith("classification_head.")]
    stem = "encoder.model.stem.conv1.weight"
    if stem in state_dict and model.in_channels != state_dict[stem].shape[1]:
        state_dict[stem] = adapt_input_conv(model.in_channels, state_dict[stem])
    state_dict |= {name: own[name] for name in keep}
    check_parameters(state_dict, own)
    model.load_state_dict(state_dict)


def load_segmenter(name: str | Path) -> torch.nn.Module:
    """A trained segmentation model.

    Args:
        name: One of :func:`list_segmenters`, a folder that `save_pretrained` or `convert` made, or the name of a
            repository on the Hugging Face Hub, of any architecture of smp.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: If it is none of these.
    """
    text = str(name)
    if text in _CFGS or any(text == cfg.name.split(".")[0] for cfg in _CFGS.values()):
        return create_segmenter(text, pretrained=True).eval()
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise FileNotFoundError(f"{name}: not a model folder, it has no config.json.")
    elif text.count("/") != 1 or text.startswith((".", "/")):
        raise FileNotFoundError(
            f"{name}: no such folder, no name on the Hub (user/repo), and none of {', '.join(list_segmenters())}."
        )
    return smp.from_pretrained(text).eval()
