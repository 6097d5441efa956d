"""Create published segmenters, and load segmenters by name, from folders and from the Hub."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from huggingface_hub import hf_hub_download
from timm.models import adapt_input_conv

from ..downloads import fetch
from ..errors import CheckpointError, OptionError
from ..models.facts import check_facts
from ..models.segnext import SegNeXt
from ..models.state_dicts import check_parameters
from .catalog import SegmenterCfg, get_segmenter_cfg
from .dialects import load_checkpoint
from .folder import CONFIG, WEIGHTS, info_key, not_a_segmenter, read_config
from .formats import read_checkpoint
from .lookup import check_segmenter, find_published, hub_config, hub_errors

_logger = logging.getLogger(__name__)

# Facts to drop when the classes change (_OF_CLASSES), or when the published weights are not loaded (_OF_WEIGHTS)
_OF_CLASSES = {"label_names", "palette", "dataset"}
_OF_WEIGHTS = {"url", "origin_url", "license", "dataset_terms"}


def create_segmenter(name: str, pretrained: bool = False, classes: int | None = None, **overrides: Any) -> SegNeXt:
    """Create a published segmenter.

    Args:
        name: One of :func:`list_segmenters`, such as "segnext_b.mmseg_ade20k".
        pretrained: Load the published weights, downloaded once into torch.hub's cache and checked.
        classes: Number of classes, those of the published model by default. With another number, the last layer stays
            as initialized.
        overrides: Other arguments of :class:`SegNeXt` and of timm's encoder, such as `drop_path_rate=0.1`. With
            `in_channels`, the pretrained stem is adapted as timm does.

    Returns:
        The model, in training mode; :attr:`SegNeXt.pretrained_cfg` has its class names, palette and preprocessing.

    Raises:
        OptionError: If no segmenter has that name, or `classes` is less than 1.
        CheckpointError: If the weights cannot be downloaded, are damaged, or do not fit the overrides.
    """
    return _create_published(get_segmenter_cfg(name), pretrained, classes, overrides, {})


def _create_published(
    cfg: SegmenterCfg, pretrained: bool, classes: int | None, overrides: Mapping[str, Any], source: Mapping[str, Any]
) -> SegNeXt:
    """Create a published segmenter; `source` holds revision, token and cache_dir of :func:`load_segmenter`."""
    same_classes = classes in (None, cfg.num_classes)
    untrue = {"results"} | (set() if same_classes else _OF_CLASSES) | (set() if pretrained else _OF_WEIGHTS)
    arguments = {
        "encoder_name": cfg.encoder_name,
        "encoder_weights": None,
        "decoder_channels": cfg.decoder_channels,
        "decoder_rank": cfg.decoder_rank,
        "classes": cfg.num_classes if classes is None else classes,
        "pretrained_cfg": {key: value for key, value in cfg.pretrained_cfg.items() if key not in untrue},
    }
    model = SegNeXt(**{**arguments, **overrides})
    if pretrained:
        if cfg.hf_hub_id:
            with hub_errors(cfg.hf_hub_id, source.get("revision")):
                path = Path(hf_hub_download(cfg.hf_hub_id, WEIGHTS, **source))
        else:
            path = Path(source.get("cache_dir") or Path(torch.hub.get_dir(), "checkpoints"), cfg.cached_name)
            fetch(cfg.url, path, cfg.sha256, functools.partial(read_checkpoint, checksums=True))
        load_published(model, cfg, path, same_classes)
        if not same_classes:
            _warn_of_classes(cfg.name, cfg.num_classes, classes)
    return model


def _warn_of_classes(name: str | Path, found: int, wanted: int | None) -> None:
    _logger.warning(f"{name} has {found} classes, but {wanted} are requested: the last layer is not loaded.")


def load_published(model: SegNeXt, cfg: SegmenterCfg, path: Path, classifier: bool = True) -> None:
    """Load the checkpoint of a published segmenter from a file; without `classifier`, all but the last layer."""
    checkpoint, own = load_checkpoint(path), model.state_dict()
    state_dict, expected = dict(checkpoint.state_dict), cfg.variant.backbone
    if checkpoint.architecture != expected:
        raise CheckpointError(f"{path}: weights of {checkpoint.architecture}, not of {expected}: remove the file.")
    if model.in_channels != checkpoint.in_chans:
        stem = "encoder.model.stem.conv1.weight"
        state_dict[stem] = adapt_input_conv(model.in_channels, state_dict[stem])
    kept = ("decoder.hamburger.nmf.bases", "classification_head.", *(() if classifier else ("segmentation_head.0.",)))
    state_dict |= {name: value for name, value in own.items() if name.startswith(kept)}
    try:
        check_parameters(state_dict, own)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    model.load_state_dict(state_dict)


def load_segmenter(
    name: str | Path,
    classes: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> torch.nn.Module:
    """Load a trained segmentation model.

    The file holds all weights: pretrained weights of the encoder are never downloaded.

    Args:
        name: One of :func:`list_segmenters`, a folder that `save_pretrained` or `convert` made, or the name of a
            repository on the Hugging Face Hub, of any architecture of smp. A folder goes before a published segmenter
            of the same name.
        classes: Number of classes, those of the saved model by default. With another number, the last layer stays as
            initialized.
        revision: Branch, tag or commit of the repository on the Hub.
        token: Token of the Hub. Default: the token of `hf auth login` or HF_TOKEN.
        cache_dir: Folder of downloaded files. Default: the Hub's cache, or torch.hub's for files of other publishers.

    Returns:
        The model, in evaluation mode.

    Raises:
        OptionError: If `classes` is less than 1, or `revision` is given for a file that is not on the Hub.
        FileNotFoundError: If no such segmenter, folder or repository exists.
        PermissionError: If the Hub does not give the repository to the token.
        ConnectionError: If the Hub cannot be reached.
        HubError: If the Hub refuses the request for another reason.
        CheckpointError: If the folder or repository holds something else, or its weights are damaged or do not fit.
    """
    if classes is not None and classes < 1:
        raise OptionError(f"classes must be at least 1, got {classes}.")
    check_segmenter(name)
    if (cfg := find_published(name)) is not None:
        if revision is not None and cfg.hf_hub_id is None:
            raise OptionError(f"{name} comes from its publisher, not from the Hub: leave out revision={revision!r}.")
        source = {"revision": revision, "token": token, "cache_dir": cache_dir}
        return _create_published(cfg, True, classes, {}, source).eval()
    folder = Path(name)
    if not folder.is_dir():
        folder = hub_config(str(name), revision, token, cache_dir).parent
        with hub_errors(name, revision):  # the weights of the configuration's commit
            hf_hub_download(str(name), WEIGHTS, revision=folder.name, token=token, cache_dir=cache_dir)
    config = read_config(folder)
    found = config.get("classes", 1)  # smp's default
    if changed := classes not in (None, found):
        _warn_of_classes(name, found, classes)
        config["classes"], key = classes, info_key(config)
        config[key] = {fact: value for fact, value in (config.get(key) or {}).items() if fact not in _OF_CLASSES}
    model = build_segmenter(folder, config, name)
    getattr(model, "pretrained_cfg", {}).pop("results", None)  # they belong to the folder: see SegNeXt
    weights = read_checkpoint(folder / WEIGHTS)
    try:
        if changed:
            layer = {key: value for key, value in model.state_dict().items() if key.startswith("segmentation_head.")}
            weights |= {key: x for key, x in layer.items() if key in weights and x.shape != weights[key].shape}
        model.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError) as error:  # the last of a file that holds no weights by name
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{name}: the weights do not fit its config.json. {reason}") from None
    return model.eval()


def build_segmenter(folder: Path, config: Mapping[str, Any], name: str | Path) -> Any:
    """Create the model that the configuration of a folder describes, without its weights; `name` is for messages."""
    architecture = getattr(smp, str(config.get("_model_class")), None)
    if not (isinstance(architecture, type) and issubclass(architecture, smp.base.SegmentationModel)):
        raise not_a_segmenter(name, config)
    arguments = {key: value for key, value in config.items() if not key.startswith("_")} | {"encoder_weights": None}
    try:
        model = architecture(**arguments)
        if facts := config.get("_pretrained_cfg"):  # other architectures than SegNeXt keep them there
            check_facts(facts, config.get("classes", 1), config.get("in_channels", 3))
            model.pretrained_cfg = facts
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # of smp and timm, for arguments
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder / CONFIG}: {architecture.__name__} cannot be created. {reason}") from error
    model.config["encoder_weights"] = config.get("encoder_weights")  # what the training began with
    return model
