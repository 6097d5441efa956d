"""Push models and model folders to the Hugging Face Hub, and add results to them."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, get_token
from segmentation_models_pytorch.base import SegmentationModel
from timm.models import FeatureInfo

from .._atomic import replace_when_complete
from ..checkpoints.folder import CARD, CONFIG, MODEL_FILES, PICKLE_SUFFIXES, WEIGHTS, read_model_config
from ..checkpoints.hub import hub_errors
from ..models.fusion import check_not_fused
from ..models.model_info import true_results, unwrap, weights_digest
from ..models.segnext import SegNeXt
from .cards import (
    encode_card,
    given_facts,
    info_key,
    is_generated,
    parse_smp_card,
    point_to_repo,
    read_card,
    update_card,
)
from .folder import model_card, read_true_config, save_backbone, with_digest


@contextmanager
def _folder_of(model_or_folder: torch.nn.Module | str | Path) -> Iterator[Path]:
    """Yield the folder, or a temporary folder of the model."""
    if not isinstance(model_or_folder, torch.nn.Module):
        folder = Path(model_or_folder)
        if not folder.is_dir():
            what = "a file: convert it to a folder first" if folder.exists() else "no such folder"
            raise FileNotFoundError(f"{folder}: {what}.")
        read_model_config(folder)
        yield folder
        return
    model = unwrap(model_or_folder)
    check_not_fused(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if isinstance(model, SegmentationModel):
            model.save_pretrained(folder)
            if not isinstance(
                model, SegNeXt
            ):  # smp's own card claims a license, and names neither model nor repository
                _note_info(folder, getattr(model, "pretrained_cfg", None))
        elif isinstance(getattr(model, "feature_info", None), FeatureInfo) or not hasattr(model, "pretrained_cfg"):
            raise TypeError(
                f"A {type(model).__name__} cannot be pushed: pass a timm model created without features_only, or a "
                f"segmentation model of smp."
            )
        else:
            cfg: Any = model.pretrained_cfg
            save_backbone(model, folder, cfg.get("label_names"))
        yield folder


def _note_info(folder: Path, info: Mapping[str, Any] | None) -> None:
    """Add facts on the weights to the folder of an smp model without `pretrained_cfg`, and rewrite its card."""
    config = read_model_config(folder)
    if info:
        config[info_key(config)] = dict(info)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    model_card(config).save(folder / CARD)


def _files_to_push(folder: Path, extra_files: bool | Callable[[list[str]], bool] | None) -> list[Path]:
    """List the model's files, and all other files if wanted, relative to the folder."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if not path.parts[0].startswith((".git", ".cache", ".new."))]
    extra = [path for path in files if str(path) not in MODEL_FILES]
    if not extra:
        return files
    if extra_files is None:
        raise ValueError(
            f"{folder} holds more than the model's files: {', '.join(map(str, extra[:5]))}. Push these too "
            f"(extra_files=True, --extra-files), or leave them out (extra_files=False, --no-extra-files)."
        )
    if not (extra_files(list(map(str, extra))) if callable(extra_files) else extra_files):
        return [path for path in files if path not in extra]
    pickles = [str(path) for path in extra if path.suffix in PICKLE_SUFFIXES]
    if pickles:
        raise ValueError(f"{folder} holds pickles, which are not pushed: remove {', '.join(pickles)}.")
    return files


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
        repo_id: "user/repo"; created if missing.
        private: Create a private repository. An existing one must already be private.
        revision: Branch to push to; created if missing.
        create_pr: Open a pull request instead of changing the branch.
        commit_message: Message of the commit.
        card: A card, or facts that override the model's `pretrained_cfg` in the generated card: `dataset`,
            `license`, `description`, `label_names`, `training` (a dictionary of facts: recipe, seed, ...), `base_model`
            (an id on the Hub), and `results`, a list of dictionaries with `dataset`, `metric` ("mIoU"), `value` (in
            percent) and, if known, `split`, `setting`, `command`, `source` (a URL) and `source_name`.
            Default: a folder's own card; for a model, the repository's card if somebody wrote or edited it, whose text
            stays and whose results in the front matter follow. A generated card is written anew; facts that were given
            for it before are kept, results only of the same weights. The card states a license only if it is given here
            or in `pretrained_cfg`; timm's license for its published weights is not taken over for other weights.
        extra_files: Whether to also push other files in the folder: True, False, or a function that gets their names
            and decides. Pickles are never pushed.
        token: Token of the Hub. Default: the token of `hf auth login` or HF_TOKEN.

    Returns:
        The commit: its `commit_url`, and `pr_url` of a pull request.

    Raises:
        PermissionError: If there is no token, or the Hub refuses it.
        ValueError: If a folder holds other files and `extra_files` is None; if the model is fused; or if `private` is
            set and the repository is public.
        TypeError: If the model is not a timm or smp model.
        CheckpointError: If the folder is not a model folder, or holds results and its weights are damaged.
        ConnectionError: If the Hub cannot be reached.
        HubError: If the Hub refuses the request for another reason.
    """
    api = HfApi(token=token, library_name="segnext-timm")
    with _folder_of(model_or_folder) as folder:
        files = _files_to_push(folder, extra_files)
        config, changed = read_true_config(folder)
        if not (token or get_token()):
            raise PermissionError("There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.")
        with hub_errors(repo_id, revision, write=True):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise ValueError(f"{repo_id} exists and is public: make it private on the Hub, or choose another name.")
            if revision and not create_pr and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if isinstance(card, ModelCard):
                text = point_to_repo(str(card), repo_id)
            elif not isinstance(model_or_folder, torch.nn.Module):
                text = _folder_card(folder, config, changed, repo_id, card)
            else:
                exists = api.file_exists(repo_id, CARD, revision=revision)
                old = read_card(Path(api.hf_hub_download(repo_id, CARD, revision=revision))) if exists else None
                text = _model_card(folder, config, repo_id, card, old)
            content = {CARD: encode_card(text)}
            if changed:
                content[CONFIG] = json.dumps(config, indent=2, sort_keys=True).encode()
            sent = [path.as_posix() for path in files if str(path) not in content]
            operations = [CommitOperationAdd(path, str(folder / path)) for path in sent]
            operations += [CommitOperationAdd(path, data) for path, data in content.items()]
            return api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message or f"Push {_title(config)}",
                revision=revision,
                create_pr=create_pr,
            )


def _title(config: Mapping[str, Any]) -> str:
    return config.get("architecture") or f"{config.get('_model_class')} on {config['encoder_name'].removeprefix('tu-')}"


def _folder_card(
    folder: Path, config: Mapping[str, Any], changed: bool, repo_id: str, card: Mapping[str, Any] | None
) -> str:
    """Write the card to push with a folder: the folder's own, or one of `card` and the facts of a generated one.

    Args:
        folder: The folder.
        config: Its configuration, without results of other weights.
        changed: Whether it had such results.
        repo_id: Id of the repository on the Hub.
        card: Facts that override the configuration.
    """
    old = read_card(folder / CARD)
    facts = true_results(given_facts(old or ""), folder / WEIGHTS)
    if old is not None and card is None and not is_generated(old):
        if (said := parse_smp_card(old)) is None:
            return point_to_repo(update_card(old, model_card(config)) if changed else old, repo_id)
        facts = said
    return str(model_card(config, repo_id, with_digest({**facts, **(card or {})}, folder / WEIGHTS)))


def _model_card(
    folder: Path, config: Mapping[str, Any], repo_id: str, card: Mapping[str, Any] | None, old: str | None
) -> str:
    """Write the card to push with a model.

    Args:
        folder: Temporary folder of the model.
        config: Its configuration, without results of other weights.
        repo_id: Id of the repository on the Hub.
        card: Facts that override the configuration.
        old: The repository's card.
    """
    facts = true_results(given_facts(old or ""), folder / WEIGHTS)
    # what the model itself states is newer than what was said of the model that it replaces
    stated = {**config, **(config.get("pretrained_cfg") or {}), **(config.get("_pretrained_cfg") or {})}
    stated["license"] = model_card(config).data.to_dict().get("license")  # timm's is not of these weights
    facts = {key: value for key, value in facts.items() if not stated.get(key)}
    if len(facts.get("label_names") or ()) != config.get("classes", config.get("num_classes")):
        facts.pop("label_names", None)
    new = model_card(config, repo_id, with_digest({**facts, **(card or {})}, folder / WEIGHTS))
    return update_card(old, new) if old is not None and card is None else str(new)


def add_results(folder: str | Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write evaluation results to the configuration and the card of a model folder.

    Replaces results of the same data set, split, metric and setting, and leaves out results of other weights than those
    in the folder. In a card that was edited by hand, only the front matter changes.

    Args:
        folder: A folder that `convert` or `save_pretrained` made.
        results: Results as in the `card` of :func:`push_to_hub`.
    """
    folder = Path(folder)
    (config, _), old = read_true_config(folder), read_card(folder / CARD)
    facts = true_results(given_facts(old or ""), folder / WEIGHTS)

    def key(result: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(result.get(name) for name in ("dataset", "split", "metric", "setting"))

    info = config[info_key(config)] = config.get(info_key(config)) or {}
    known = facts.pop("results", None) or info.get("results") or ()
    replaced = {key(result) for result in results}
    info["results"] = [r for r in known if key(r) not in replaced] + [dict(r) for r in results]
    info["results_digest"] = weights_digest(folder / WEIGHTS)
    new = model_card(config, fields=facts)
    files = {
        CONFIG: json.dumps(config, indent=2, sort_keys=True),
        CARD: str(new) if old is None else update_card(old, new),
    }
    for name, text in files.items():
        with replace_when_complete(folder / name) as path:
            path.write_bytes(encode_card(text))
