"""Push models and model folders to the Hugging Face Hub, and add results to them."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, get_token
from segmentation_models_pytorch.base import SegmentationModel
from timm.models import FeatureInfo

from ..checkpoints.folder import CARD, MODEL_FILES, TARGET_FILES, info_key, read_model_config
from ..checkpoints.lookup import hub_errors
from ..errors import OptionError
from ..models.facts import plain_values
from ..models.fusion import check_not_fused
from ..models.model_info import unwrap
from ..models.segnext import SegNeXt
from .cards import save_backbone, write_card


def push_to_hub(
    model_or_folder: torch.nn.Module | str | Path,
    repo_id: str,
    private: bool | None = False,
    revision: str | None = None,
    create_pr: bool | None = False,
    commit_message: str | None = None,
    card: ModelCard | Mapping[str, Any] | None = None,
    token: str | None = None,
    allow_patterns: list[str] | str | None = None,
    ignore_patterns: list[str] | str | None = None,
    delete_patterns: list[str] | str | None = None,
) -> CommitInfo:
    """Push a model to the Hugging Face Hub as safetensors, with its configuration and a card.

    `timm.create_model("hf-hub:user/repo", pretrained=True)` loads a timm model from there, and
    `smp.from_pretrained("user/repo")` a segmentation model; MSCAN and SegNeXt after `import segnext_timm`.

    The card is written from config.json. A card that was edited by hand, in the folder or else on the Hub, stays as it
    is. smp's own card, which claims smp's license for the weights, is replaced unless it was edited or states a data
    set or metrics.

    Args:
        model_or_folder: A timm model, an smp model, or a folder that `convert` or `save_pretrained` made. Other files
            in it stay behind: `hf upload` takes them.
        repo_id: "user/repo"; created if missing.
        private: Create a private repository. An existing one must already be private.
        revision: Branch to push to; created if missing.
        create_pr: Open a pull request to the main branch instead.
        commit_message: Message of the commit.
        card: A card to push as it is, or facts that override the model's `pretrained_cfg`, where SegNeXt keeps them:
            `dataset`, `license`, `description`, `label_names`, `training` (a dictionary: recipe, seed, ...),
            `base_model` (an id on the Hub), `metrics` (numbers by name), and `results` to add, a list of dictionaries
            with `dataset`, `metric` ("mIoU"), `value` (in percent) and, if known, `split`, `setting`, `command`,
            `source` (a URL) and `source_name`. The license in timm's own configuration is that of the weights that
            timm publishes: the card gives it as theirs, and a `license` stated here as that of these weights.
        token: Token of the Hub. Default: the token of `hf auth login` or HF_TOKEN.
        allow_patterns: Push only files that match one of these, as in `HfApi.upload_folder`.
        ignore_patterns: Do not push files that match one of these.
        delete_patterns: Delete files on the Hub that match one of these, in the same commit.

    Returns:
        The commit: its `commit_url`, and `pr_url` of a pull request.

    Raises:
        PermissionError: If there is no token, or the Hub refuses it.
        OptionError: If the model is fused, or not timm's or smp's; if a fact does not fit it; if `private` is set and
            the repository is public; or if both `revision` and `create_pr` are given.
        FileNotFoundError: If there is no such folder.
        CheckpointError: If the folder is not a model folder.
        ConnectionError: If the Hub cannot be reached.
        HubError: If the Hub refuses the request for another reason.
    """
    if revision and create_pr:
        raise OptionError("A pull request is opened to the main branch: give revision or create_pr, not both.")
    api = HfApi(token=token, library_name="segnext-timm")
    facts = dict(card) if isinstance(card, Mapping) else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if isinstance(model_or_folder, torch.nn.Module):
            _save_model(unwrap(model_or_folder), folder, facts)
        else:
            _copy_folder(Path(model_or_folder), folder)
        write_card(folder, facts)  # fails before the Hub is asked
        if not (token or get_token()):
            raise PermissionError("There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.")
        with hub_errors(repo_id, revision):
            repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise OptionError(f"{repo_id} exists and is public: make it private, or choose another name.")
            if revision and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            exists = api.file_exists(repo_id, CARD, revision=revision)
            on_hub = Path(api.hf_hub_download(repo_id, CARD, revision=revision)) if exists else None
            write_card(folder, facts, repo_id, on_hub)
            if isinstance(card, ModelCard):
                (folder / CARD).write_text(str(card), encoding="utf-8")
            message = commit_message or "Push model using segnext-timm."
            options: dict[str, Any] = {"commit_message": message, "revision": revision, "create_pr": create_pr}
            options |= {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
            return api.upload_folder(repo_id=repo_id, folder_path=folder, delete_patterns=delete_patterns, **options)


def _save_model(model: torch.nn.Module, folder: Path, facts: Mapping[str, Any]) -> None:
    check_not_fused(model)
    info: Any = getattr(model, "pretrained_cfg", None)
    if isinstance(model, SegNeXt):
        model.save_pretrained(folder, model_card_kwargs=facts)
    elif isinstance(model, SegmentationModel):
        config = {**model.config, "_model_class": type(model).__name__}
        model.save_pretrained(folder, config=config | ({info_key(config): plain_values(info)} if info else {}))
    elif info is None or isinstance(getattr(model, "feature_info", None), FeatureInfo):
        what = f"A {type(model).__name__} cannot be pushed"
        raise OptionError(f"{what}: pass an smp model, or a timm model without features_only.")
    else:
        save_backbone(model, folder, {"label_names": info.get("label_names")})


def _copy_folder(source: Path, folder: Path) -> None:
    """Copy the model's files, and no others: a folder of a training may hold pickles."""
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder.")
    config = read_model_config(source, targets=True)  # raises an error if the folder is not a model's
    for name in MODEL_FILES | (TARGET_FILES if "segmenter" in config else set()):
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def add_results(folder: str | Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write evaluation results to the configuration and the card of a model folder.

    Replaces results of the same data set, split, metric and setting. A card that was edited by hand stays as it is.

    Args:
        folder: A folder that `convert` or `save_pretrained` made.
        results: Results as in the `card` of :func:`push_to_hub`.

    Raises:
        CheckpointError: If the folder is not a model folder.
        OptionError: If a result lacks its metric or value.
    """
    write_card(Path(folder), {"results": results})
