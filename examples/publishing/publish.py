"""Publish verified checkpoints on the Hugging Face Hub, as safetensors with model cards.

    python examples/publishing/publish.py segnext_b.mmseg_ade20k mscan_b --to USER --dry-run
    python examples/publishing/publish.py segnext_b.mmseg_ade20k mscan_b --to USER --collection "SegNeXt"

Each goes to a repository of its name. Then the package loads it from there: the table of Hub ids,
`segnext_timm/hub_ids.json`, gets its repository, and is to be committed.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the other examples
import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import click
import torch
from huggingface_hub import HfApi

from publishing.published import Published, get_published, load_model
from publishing.verify import log, read_report
from segmentation.files import fill_when_complete, replace_when_complete
from segmentation.recipe import UserError, run
from segnext_timm import add_results, push_to_hub, variants
from segnext_timm.checkpoints.catalog import ORIGINS, find_backbone
from segnext_timm.checkpoints.folder import MODEL_FILES, WEIGHTS
from segnext_timm.checkpoints.lookup import hub_errors
from segnext_timm.downloads import fetch
from segnext_timm.hub.cards import save_backbone, write_card


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
    fetch(published.url, published.path, entry["sha256"])
    model, cfg = load_model(published, published.path), published.cfg
    with fill_when_complete(folder) as new:
        if cfg is None:
            write_backbone(model, published.name, new)
            return
        model.pretrained_cfg = cfg.pretrained_cfg
        model.save_pretrained(new)
        if "miou" in entry:
            result = {"dataset": cfg.dataset, "split": "validation", "metric": "mIoU", "value": entry["miou"]}
            command = f"python examples/publishing/verify.py {published.name} --data {cfg.labels}=DIR"
            add_results(new, [{**result, "setting": "single scale, measured again", "command": command}])


def write_backbone(model: torch.nn.Module, name: str, folder: Path) -> None:
    """Write a published backbone as a model folder, with its published result on the card."""
    cfg = find_backbone(name)
    save_backbone(model, folder)
    facts = {"dataset": cfg.dataset, "dataset_terms": cfg.terms, "license": ORIGINS[cfg.origin].license}
    facts["results"] = [cfg.result]
    write_card(folder, facts)


def check_absent(api: HfApi, repo: str) -> None:
    """Raise a FileExistsError if a repository on the Hub already holds a model."""
    with hub_errors(repo):
        exists = api.repo_exists(repo) and api.file_exists(repo, WEIGHTS)
    if exists:
        raise FileExistsError(f"{repo} exists on the Hub: overwrite it with --force.")


def collect(api: HfApi, title: str, user: str, repos: Iterable[str]) -> str:
    """Add models to a collection, which is created if missing, and return its address."""
    with hub_errors(title):
        collection = api.create_collection(title, namespace=user, exists_ok=True)
        for repo in repos:
            api.add_collection_item(collection.slug, repo, "model", exists_ok=True)
    return collection.url


def write_hub_ids(table: Path, ids: Mapping[str, str]) -> None:
    """Write the table of Hub ids, by the models' names; print it if its folder is read-only."""
    text = json.dumps(ids, indent=2, sort_keys=True) + "\n"
    try:
        with replace_when_complete(table) as new:
            new.write_text(text, encoding="utf-8")
        log(f"Wrote {table}: commit it.")
    except PermissionError:
        log(f"{table} is read-only. It is to contain:")
        click.echo(text, nl=False)


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--to", "user", required=True, help="User or organization on the Hugging Face Hub.")
@click.option("--collection", metavar="TITLE", help="Collection for the models; created if missing.")
@click.option("--dry-run", is_flag=True, help="Only write the folders.")
@click.option("--report", type=FILE, default="verified.json", show_default=True, help="Report of verify.py.")
@click.option("-o", "--out", type=FOLDER, default="published", show_default=True, help="Where to write the folders.")
@click.option("--force", is_flag=True, help="Overwrite models on the Hub.")
@click.option(
    "--table",
    type=FILE,
    default=Path(variants.__file__).with_name("hub_ids.json"),
    help="Table of Hub ids to add the repositories to.  [default: the one of the installed segnext_timm]",
)
def main(
    names: tuple[str, ...],
    user: str,
    collection: str | None,
    dry_run: bool,
    report: Path,
    out: Path,
    force: bool,
    table: Path,
) -> None:
    """Publish verified checkpoints on the Hugging Face Hub, as safetensors with model cards.

    Each goes to a repository of its name. Then this package loads it from there.
    """
    entries, ids = read_report(report), json.loads(table.read_text(encoding="utf-8"))
    wanted = [get_published(name) for name in names]
    repos = {published.name: f"{user}/{published.name}" for published in wanted}
    unverified = [name for name in repos if entries.get(name, {}).get("status") != "verified"]
    if unverified:
        raise UserError(f"{report} has not verified {', '.join(unverified)}: run verify.py first.")
    api = HfApi(library_name="segnext-timm")
    if not (dry_run or force):
        for repo in repos.values():
            check_absent(api, repo)
    for published in wanted:
        log(f"{published.name}: write {out / published.name}")
        write_folder(published, out / published.name, entries[published.name])
    if dry_run:
        log(f"Wrote {len(repos)} models to {out}; nothing was pushed.")
        return
    for name, repo in repos.items():
        commit = push_to_hub(out / name, repo, commit_message=f"Publish {name}")
        log(f"{name}: {commit.commit_url}")
    write_hub_ids(table, ids | repos)
    if collection:
        log(f"collection: {collect(api, collection, user, repos.values())}")


if __name__ == "__main__":
    run(main)
