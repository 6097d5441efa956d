"""Folders that timm and smp load, and the Hugging Face Hub: convert checkpoints to them, push them."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.utils import HfHubHTTPError
from safetensors import safe_open
from segmentation_models_pytorch.base import SegmentationModel
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import FeatureInfo, save_for_hf

from .cards import HERE, backbone_card, info_key, parse_smp_card, point_to_repo, segmenter_card
from .checkpoints import Checkpoint, CheckpointError, check_parameters, load_checkpoint, native_to_mmseg
from .errors import HubError
from .folding import check_not_fused
from .hamburger import NMF2d
from .labels import LABEL_SETS
from .model_info import HEAD_WEIGHT, tensor_digest
from .segnext import SegNeXt

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_MODEL_FILES = {WEIGHTS, CONFIG, CARD, ".gitattributes"}
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


# Folders


@contextmanager
def _beside(path: Path, force: bool) -> Iterator[Path]:
    """A name beside `path` to write to; what is written takes the place of `path` in the end, or is removed.

    Raises:
        FileExistsError: If there is something at `path`, unless `force` allows to replace a file or model folder.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):  # an empty folder is free to be filled
        if not force:
            raise FileExistsError(f"{path} exists: choose another name, or allow to replace it (--force).")
        extra = sorted(file.name for file in path.iterdir() if file.name not in _MODEL_FILES) if path.is_dir() else []
        if extra:
            raise FileExistsError(f"{path} holds more than a model ({', '.join(extra[:3])}): it is not replaced.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # a new name each time: what a killed run left does not matter
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = work / "new", work / "old"
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: not a model folder, it has no {' and no '.join(missing)}. Convert to one first."
        )
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def _card(config: Mapping[str, Any], repo: str = HERE, fields: Mapping[str, Any] | None = None) -> ModelCard:
    make = segmenter_card if "encoder_name" in config else backbone_card
    return make(config, repo=repo, **(fields or {}))


def _save_backbone(
    model: torch.nn.Module, folder: Path, label_names: Sequence[str] | Mapping[int, str] | None = None
) -> None:
    """Write timm's own form of a model, with a card."""
    fit = label_names and len(label_names) == model.num_classes  # timm keeps the names of a replaced classifier
    names = {"label_names": label_names if isinstance(label_names, Mapping) else list(label_names)} if fit else {}
    save_for_hf(model, str(folder), model_config=names, safe_serialization=True)
    backbone_card(_read_config(folder)).save(folder / CARD)


# Converting


def _read_labels(source: str | Path | Sequence[str] | None) -> tuple[tuple[str, ...] | None, tuple | None]:
    """Class names and palette from a file with a name a line, from the name of a known data set, or as they are."""
    if source is None or not isinstance(source, str | Path):
        return source and tuple(source), None
    if str(source) in LABEL_SETS:
        labels = LABEL_SETS[str(source)]
        return labels.classes, labels.palette
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of class names, nor one of {', '.join(LABEL_SETS)}.")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()), None


def _read_source(src: Path, rank: int | None, ema: bool) -> Checkpoint:
    """A checkpoint file, or the one in a model folder with the class names that its configuration knows."""
    if not src.is_dir():
        return load_checkpoint(src, rank, ema)
    config = _read_config(src)
    checkpoint = load_checkpoint(src / WEIGHTS, rank, ema)
    info = config.get("pretrained_cfg") or {}
    names = config.get("label_names") or info.get("label_names")
    palette = info.get("palette")
    return checkpoint.with_labels(names and tuple(names), palette and tuple(tuple(color) for color in palette))


def _build_backbone(checkpoint: Checkpoint) -> torch.nn.Module:
    chans = checkpoint.in_chans
    # a file does not tell where it comes from: timm's record of the published weights may not be true of it
    overlay: dict[str, Any] = {"tag": None, "url": "", "license": None, "origin_url": None}
    if chans != 3:
        cfg = timm.get_pretrained_cfg(checkpoint.architecture)
        overlay |= {"input_size": (chans, *cfg.input_size[1:]), "mean": (0.5,) * chans, "std": (0.5,) * chans}
    with torch.device("meta"):
        return timm.create_model(
            checkpoint.architecture,
            in_chans=chans,
            num_classes=checkpoint.num_classes,
            pretrained_cfg_overlay={**overlay, "num_classes": checkpoint.num_classes},
        )


def _build_segmenter(checkpoint: Checkpoint) -> torch.nn.Module:
    info: dict[str, Any] = {}
    if checkpoint.in_chans == 3:
        info |= {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD)}
    if checkpoint.label_names:
        info["label_names"] = list(checkpoint.label_names)
        dataset = next((v for v in LABEL_SETS.values() if v.classes == checkpoint.label_names), None)
        info |= {"dataset": dataset.name} if dataset else {}
    if checkpoint.palette:
        info["palette"] = [list(color) for color in checkpoint.palette]
    with torch.device("meta"):
        return SegNeXt(
            f"tu-{checkpoint.architecture}",
            encoder_weights=None,
            decoder_channels=checkpoint.decoder_channels,
            decoder_rank=checkpoint.rank,
            in_channels=checkpoint.in_chans,
            classes=checkpoint.num_classes,
            pretrained_cfg=info,
        )


def convert(
    src: str | Path,
    dst: str | Path,
    rank: int | None = None,
    to: Literal["native", "mmseg"] = "native",
    classes: str | Path | Sequence[str] | None = None,
    ema: bool = False,
    force: bool = False,
) -> Checkpoint:
    """Make of a checkpoint of any origin what timm, smp or mmsegmentation loads.

    A backbone becomes a folder for `timm.create_model("local-dir:DST", pretrained=True)`, a segmenter one for
    `smp.from_pretrained("DST")`: model.safetensors, config.json and a model card. It takes its place only when it is
    whole.

    Args:
        src: A checkpoint of the paper's code, mmsegmentation, JSeg or this package (.pth, .pt, .pkl, .safetensors), or
            a folder that this function made.
        dst: The folder to make; with `to="mmseg"`, the .pth file.
        rank: Rank R of a segmenter's matrix decomposition. Published files do not tell it; without it, that of the
            paper's code is taken (16 for T and S, 64 for B and L). mmsegmentation's own models have 16 throughout.
        to: "native", or "mmseg" for mmsegmentation's names.
        classes: Names of the classes: themselves, a file with one a line, or a data set such as "ade20k". Without it,
            those in the checkpoint, if any.
        ema: Take the exponential moving average of the weights, if the checkpoint has one.
        force: Replace what is at `dst`, if it is a file or a model folder.

    Returns:
        What was recognised: its string says it in a line.

    Raises:
        FileNotFoundError: If there is no such file.
        FileExistsError: If there is something at `dst`.
        CheckpointError: If `src` cannot be read, would run code, or is not MSCAN or SegNeXt.
    """
    src, dst = Path(src), Path(dst)
    if to not in ("native", "mmseg"):
        raise ValueError(f"to must be 'native' or 'mmseg', got {to!r}")
    if to == "mmseg" and dst.suffix != ".pth":
        raise ValueError(f"mmsegmentation loads .pth files: name one, not {dst}.")
    if to == "native" and dst.suffix in (_PICKLES | {".safetensors"}):
        raise ValueError(f"{dst} will be a folder: name it without {dst.suffix}.")
    with _beside(dst, force) as new:
        checkpoint = _read_source(src, rank, ema)
        names, palette = _read_labels(classes)
        if names and len(names) != checkpoint.num_classes:
            raise CheckpointError(f"{src}: has {checkpoint.num_classes} classes, but {len(names)} names were given.")
        checkpoint = checkpoint.with_labels(names, palette)
        if checkpoint.kind == "segmenter":
            bases = NMF2d(checkpoint.decoder_channels, checkpoint.rank).bases
            checkpoint.state_dict.setdefault("decoder.hamburger.nmf.bases", bases)
        try:
            # the model is built without memory of its own, and given the tensors as they are
            model = (_build_backbone if checkpoint.kind == "backbone" else _build_segmenter)(checkpoint)
            check_parameters(checkpoint.state_dict, model.state_dict())
            if to == "mmseg":
                _save_mmseg(checkpoint, new)
                return checkpoint
        except CheckpointError as error:
            raise CheckpointError(f"{src}: {error}") from None
        model.load_state_dict(checkpoint.state_dict, assign=True)
        if checkpoint.kind == "backbone":
            _save_backbone(model, new, checkpoint.label_names)
        else:
            model.save_pretrained(new)
        (new / WEIGHTS).chmod((new / CONFIG).stat().st_mode)  # safetensors writes for the owner only
    return checkpoint


def _save_mmseg(checkpoint: Checkpoint, path: Path) -> None:
    meta: dict[str, Any] = {}
    if checkpoint.label_names:
        meta["dataset_meta"] = {"classes": checkpoint.label_names}
        if checkpoint.palette:
            meta["dataset_meta"]["palette"] = [list(color) for color in checkpoint.palette]
    if checkpoint.rank:
        meta["config"] = f"ham_kwargs=dict(MD_R={checkpoint.rank})"  # where mmsegmentation keeps the rank
    torch.save({"state_dict": native_to_mmseg(checkpoint.state_dict), "meta": meta}, path)


# Pushing


def _unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside what DistributedDataParallel and torch.compile make of it."""
    while (inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None)) is not None:
        model = inner
    return model


@contextmanager
def _folder_of(model_or_folder: torch.nn.Module | str | Path) -> Iterator[Path]:
    """The folder, or that of a model for as long as it takes."""
    if not isinstance(model_or_folder, torch.nn.Module):
        folder = Path(model_or_folder)
        if not folder.is_dir():
            what = "a file: convert it to a folder first" if folder.exists() else "no such folder"
            raise FileNotFoundError(f"{folder}: {what}.")
        _read_config(folder)
        yield folder
        return
    model = _unwrap(model_or_folder)
    check_not_fused(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if isinstance(model, SegmentationModel):
            model.save_pretrained(folder)
            if not isinstance(model, SegNeXt):  # smp's own card claims a license and knows neither name nor place
                _note_info(folder, getattr(model, "pretrained_cfg", None))
        elif isinstance(getattr(model, "feature_info", None), FeatureInfo) or not hasattr(model, "pretrained_cfg"):
            raise TypeError(
                f"A {type(model).__name__} cannot be pushed: pass a timm model created without features_only, or a "
                f"segmentation model of smp."
            )
        else:
            _save_backbone(model, folder, model.pretrained_cfg.get("label_names"))
        yield folder


def _note_info(folder: Path, info: Mapping[str, Any] | None) -> None:
    """Write what is known of a model of smp that has no place for it into its folder, and a card that says so."""
    config = _read_config(folder)
    if info:
        config[info_key(config)] = dict(info)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    _card(config).save(folder / CARD)


def _files_to_push(folder: Path, extra_files: bool | Callable[[list[str]], bool] | None) -> list[Path]:
    """Names, relative to the folder, of the model's files, and of all others if these are wanted."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if path.parts[0] not in (".git", ".cache")]
    extra = [path for path in files if str(path) not in _MODEL_FILES]
    if not extra:
        return files
    if extra_files is None:
        raise ValueError(
            f"{folder} holds more than the model's files: {', '.join(map(str, extra[:5]))}. Push these too "
            f"(extra_files=True, --extra-files), or leave them out (extra_files=False, --no-extra-files)."
        )
    if not (extra_files(list(map(str, extra))) if callable(extra_files) else extra_files):
        return [path for path in files if path not in extra]
    pickles = [str(path) for path in extra if path.suffix in _PICKLES]
    if pickles:
        raise ValueError(f"{folder} holds pickles, which are not pushed: remove {', '.join(pickles)}.")
    return files


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Errors of the Hub and of the way to it, in a line."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise PermissionError("The Hub refused the token: log in with `hf auth login`, or set HF_TOKEN.") from None
        if status == 403:
            raise PermissionError(f"The token may not write to {repo_id}: take one with write access to it.") from None
        reason = getattr(error, "server_message", None) or str(error).strip().splitlines()[-1]
        raise HubError(f"The Hub did not take {repo_id} (status {status}): {reason}") from None
    except Exception as error:
        # the client's library for HTTP is requests, httpx or another one, by its version
        if isinstance(error, ConnectionError) or type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise ConnectionError(f"The Hub cannot be reached: {error}") from None
        raise


def push_to_hub(
    model_or_folder: torch.nn.Module | str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    card: ModelCard | Mapping[str, Any] | None = None,
    extra_files: bool | Callable[[list[str]], bool] | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push a model to the Hugging Face Hub as safetensors, with its configuration and a card.

    `timm.create_model("hf-hub:user/repo", pretrained=True)` loads a timm model from there, and
    `smp.from_pretrained("user/repo")` a segmentation model; MSCAN and SegNeXt after `import segnext_timm`.

    Args:
        model_or_folder: A timm model, an smp model, or a folder that `convert` or `save_pretrained` made.
        repo_id: "user/repo". Made if there is no such repository.
        private: Make it a private one. A repository that is there must be private already.
        revision: Branch to push to, made if there is none.
        create_pr: Open a pull request instead of changing the branch.
        commit_message: Says what the commit is.
        card: The card itself, or what the written one says in place of the model's `pretrained_cfg`: `dataset`,
            `license`, `description`, `label_names`, `training` (a dictionary of facts: recipe, seed, ...), `base_model`
            (an id on the Hub), and `results`, a list of dictionaries with `dataset`, `metric` ("mIoU"), `value` (in
            percent) and, if known, `split`, `setting`, `command`, `source` (a URL) and `source_name`.
            Without it, a folder's own card is pushed, and for a model a card that is in the repository is kept. A card
            names no license that is not stated here or in `pretrained_cfg`; what timm says of the weights that it
            publishes is not said of others.
        extra_files: Whether to push what else lies in a folder: True, False, or a function that is asked with its
            names. Pickles are never pushed.
        token: Of the Hub; without it, that of `hf auth login` or HF_TOKEN.

    Returns:
        The commit: its `commit_url`, and `pr_url` of a pull request.

    Raises:
        PermissionError: If there is no token, or the Hub refuses it.
        ValueError: If a folder holds files that are not the model's, and `extra_files` does not say what to do; if the
            model is fused; or if the repository is public, and `private` asks for a private one.
        TypeError: If the model is neither timm's nor smp's.
        ConnectionError: If the Hub cannot be reached.
        HubError: If the Hub refuses for another reason.
    """
    api = HfApi(token=token, library_name="segnext-timm")
    with _folder_of(model_or_folder) as folder:
        files = _files_to_push(folder, extra_files)
        if not (token or get_token()):
            raise PermissionError("There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.")
        with _hub_errors(repo_id):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise ValueError(f"{repo_id} exists and is public: make it private on the Hub, or choose another name.")
            if revision and not create_pr and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            is_model = isinstance(model_or_folder, torch.nn.Module)
            keep_card = is_model and card is None and api.file_exists(repo_id, CARD, revision=revision)
            operations = [CommitOperationAdd(str(path), str(folder / path)) for path in files if str(path) != CARD]
            if not keep_card:
                text = _card_text(folder, repo_id, card)
                operations.append(CommitOperationAdd(CARD, text.encode()))
            return api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message or f"Push {_title(_read_config(folder))}",
                revision=revision,
                create_pr=create_pr,
            )


def _title(config: Mapping[str, Any]) -> str:
    return config.get("architecture") or f"{config.get('_model_class')} on {config['encoder_name'].removeprefix('tu-')}"


def _card_text(folder: Path, repo_id: str, card: ModelCard | Mapping[str, Any] | None) -> str:
    if isinstance(card, ModelCard):
        return point_to_repo(str(card), repo_id)
    if card is None and (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8")
        if (said := parse_smp_card(text)) is None:
            return point_to_repo(text, repo_id)
        card = said
    return str(_card(_read_config(folder), repo_id, card))


def add_results(folder: str | Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write evaluation results into a model folder: into its configuration and its card.

    Results of the same data set, split, metric and setting are replaced. Of a card that was edited by hand, only the
    front matter is changed.

    Args:
        folder: A folder that `convert` or `save_pretrained` made.
        results: As of :func:`push_to_hub`'s `card`.
    """
    folder = Path(folder)
    config = _read_config(folder)
    before = str(_card(config))

    def key(result: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(result.get(name) for name in ("dataset", "split", "metric", "setting"))

    info = config[info_key(config)] = config.get(info_key(config)) or {}
    replaced = {key(result) for result in results}
    info["results"] = [r for r in info.get("results") or () if key(r) not in replaced] + [dict(r) for r in results]
    info.pop("results_digest", None)
    with safe_open(folder / WEIGHTS, "pt") as weights:
        if HEAD_WEIGHT in weights.keys():  # noqa: SIM118  (not a dictionary)
            info["results_digest"] = tensor_digest(weights.get_tensor(HEAD_WEIGHT))
    after = _card(config)
    path = folder / CARD
    if path.is_file() and path.read_text(encoding="utf-8").strip() != before.strip():
        card = ModelCard.load(path)
        card.data.model_name = card.data.model_name or after.data.model_name
        card.data.eval_results, card.data.metrics = after.data.eval_results, after.data.metrics
        after = card
    for name, text in ((CONFIG, json.dumps(config, indent=2, sort_keys=True)), (CARD, str(after))):
        new = folder / f".{name}.new"
        new.write_text(text, encoding="utf-8")
        new.replace(folder / name)
