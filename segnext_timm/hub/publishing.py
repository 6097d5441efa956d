"""Publish verified checkpoints on the Hugging Face Hub: the maintainer's release of the models of others.

Only checkpoints that `segnext-timm verify` has verified are published, as safetensors with a model card.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import HfApi

from .._atomic import replace_when_complete
from ..checkpoints.catalog import ORIGINS, find_backbone
from ..checkpoints.folder import MODEL_FILES
from ..checkpoints.hub import hub_errors
from ..checkpoints.loading import create_segmenter, fetch
from ..checkpoints.verification import Published, get_published, read_report
from ..errors import HubError
from ..models import mscan
from .cards import save_backbone, write_card
from .push import add_results, push_to_hub


@dataclass(frozen=True)
class Release:
    """A published model.

    Attributes:
        name: Its name.
        folder: Its folder.
        repo: Its repository on the Hub.
        commit_url: The commit; None after a dry run.
    """

    name: str
    folder: Path
    repo: str
    commit_url: str | None = None


def publish(
    names: Iterable[str],
    user: str,
    report: str | Path,
    out: str | Path,
    collection: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    token: str | None = None,
    log: Callable[[str], None] = print,
) -> list[Release]:
    """Convert verified checkpoints to model folders, and push each to a repository of its name.

    Args:
        names: Names of published checkpoints.
        user: User or organization on the Hub.
        report: Report of `segnext-timm verify`.
        out: Folder for the model folders.
        collection: Title of a collection on the Hub for the models; created if missing.
        dry_run: Only write the folders.
        force: Overwrite models that exist on the Hub.
        token: Token of the Hub. Default: the token of `hf auth login` or HF_TOKEN.
        log: Called with a line for each step.

    Returns:
        The published models.

    Raises:
        ValueError: If a name is unknown or not verified.
        FileExistsError: If a folder exists and is not a model, or a model exists on the Hub and `force` is not set.
        CheckpointError: If a cached checkpoint is not the verified one.
        PermissionError: If there is no token, or the Hub refuses it.
        ConnectionError: If the Hub cannot be reached.
        HubError: If the Hub refuses a request for another reason.
    """
    entries = read_report(Path(report))["checkpoints"]
    wanted = [get_published(name) for name in names]
    unverified = [p.name for p in wanted if entries.get(p.name, {}).get("status") != "verified"]
    if unverified:
        raise ValueError(f"{report} has not verified {', '.join(unverified)}: run `segnext-timm verify` first.")
    releases = [Release(p.name, Path(out) / p.name, f"{user}/{p.name}") for p in wanted]
    api = HfApi(token=token, library_name="segnext-timm")
    if not dry_run and not force:
        _check_absent(api, releases)
    for published, release in zip(wanted, releases):
        log(f"{release.name}: write {release.folder}")
        write_folder(published, release.folder, entries[published.name])
    if dry_run:
        return releases
    done = []
    for release in releases:
        commit = push_to_hub(release.folder, release.repo, token=token, commit_message=f"Publish {release.name}")
        log(f"{release.name}: {commit.commit_url}")
        done.append(Release(release.name, release.folder, release.repo, commit.commit_url))
    if collection:
        log(f"collection: {_collect(api, collection, user, done)}")
    return done


def _check_absent(api: HfApi, releases: Iterable[Release]) -> None:
    """Raise a FileExistsError if a repository already holds a model."""
    for release in releases:
        with hub_errors(release.repo, write=True):
            exists = api.repo_exists(release.repo) and api.file_exists(release.repo, "model.safetensors")
        if exists:
            raise FileExistsError(f"{release.repo} exists on the Hub: overwrite it with --force (force=True).")


def _collect(api: HfApi, title: str, user: str, releases: Iterable[Release]) -> str:
    """Add models to a collection, and return its address."""
    with hub_errors(title, write=True):
        found = api.create_collection(title, namespace=user, exists_ok=True)
        for release in releases:
            api.add_collection_item(found.slug, release.repo, "model", exists_ok=True)
    return found.url


def write_folder(published: Published, folder: Path, entry: Mapping[str, Any]) -> None:
    """Write a verified checkpoint as a model folder, with its published and measured results on the card.

    Args:
        published: The checkpoint.
        folder: Folder to write; replaced if it is a model folder.
        entry: Its entry in the report.

    Raises:
        FileExistsError: If the folder exists and holds other files.
        CheckpointError: If the cached checkpoint is not the verified one.
    """
    other = [file.name for file in folder.iterdir() if file.name not in MODEL_FILES] if folder.is_dir() else []
    if other:
        raise FileExistsError(f"{folder} holds other files ({', '.join(other[:3])}): choose another folder.")
    fetch(published.url, sha256=entry["sha256"], file_name=published.file)
    with replace_when_complete(folder) as new:
        new.mkdir()
        if published.cfg is None:
            _write_backbone(published, new)
            return
        model = create_segmenter(published.name, pretrained=True).eval()
        model.save_pretrained(new)
        if "miou" in entry:
            measured = {
                "dataset": published.cfg.dataset,
                "split": "validation",
                "metric": "mIoU",
                "value": entry["miou"],
            }
            command = f"segnext-timm verify {published.name} --data {published.cfg.labels}=DIR"
            add_results(new, [{**measured, "setting": "single scale, measured again", "command": command}])


def _write_backbone(published: Published, folder: Path) -> None:
    cfg = find_backbone(published.name)
    assert cfg is not None  # the caller found no segmenter of that name
    model: Any = timm.create_model(published.name, pretrained=True)
    save_backbone(model, folder)
    facts = {"dataset": cfg.dataset, "license": ORIGINS[cfg.origin].license, "results": [cfg.result]}
    facts["dataset_terms"] = cfg.terms
    write_card(folder, facts)


def hub_ids_patch(releases: Iterable[Release]) -> str:
    """Write a patch that makes this package load the published models from the Hub, for `git apply`."""
    repos = {release.name: release.repo for release in releases}
    mscan_file = Path(inspect.getfile(mscan))
    patches, edited = [], ""
    for path, edit in (
        (mscan_file, _with_backbone_ids),
        (mscan_file.parents[1] / "checkpoints" / "catalog.json", _with_segmenter_ids),
    ):
        name = f"segnext_timm/{path.parent.name}/{path.name}"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        changed = list(edit(lines, repos))
        patches.append("".join(difflib.unified_diff(lines, changed, f"a/{name}", f"b/{name}")))
        edited += "".join(changed)
    if missing := [repo for repo in repos.values() if f'"{repo}"' not in edited]:
        raise HubError(f"No lines of {', '.join(missing)} are found in the tables: add these repositories by hand.")
    return "".join(patches)


def _with_backbone_ids(lines: Iterable[str], repos: Mapping[str, str]) -> Iterator[str]:
    """Add `hf_hub_id` to the lines of pretrained cfgs."""
    for line in lines:
        name = line.strip().removeprefix('"').partition('": ')[0]
        if name in repos and line.endswith("),\n"):
            others = re.sub(r', hf_hub_id="[^"]*"', "", line[:-3])
            line = f'{others}, hf_hub_id="{repos[name]}"),\n'
        yield line


def _with_segmenter_ids(lines: Iterable[str], repos: Mapping[str, str]) -> Iterator[str]:
    """Add `hf_hub_id` to the lines of models in the catalog, each of which is below the line of its group."""
    tag = ""
    for line in lines:
        if group := re.match(r' {4}"(\w+)": \{$', line):
            tag = group[1]
        model = re.match(r' +"(\w+)": \{(.*)\}(,?)$', line)
        repo = repos.get(f"segnext_{model[1]}.{tag}") if model else None
        if model and repo:
            others = re.sub(r'(, )?"hf_hub_id": "[^"]*"', "", model[2])
            facts = ", ".join(filter(None, (others, f'"hf_hub_id": "{repo}"')))
            line = f"{line[: model.start(2)]}{facts}}}{model[3]}\n"
        yield line
