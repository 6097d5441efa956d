"""Verify published checkpoints: download, hash, tensors, predictions, and results on the data sets.

    python examples/publishing/verify.py segnext_b.mmseg_ade20k mscan_b
    python examples/publishing/verify.py --report verified.json                        # all: about 4 GB of downloads
    python examples/publishing/verify.py segnext_t.jseg_cityscapes --data cityscapes=DIR

The report is a JSON file, written after each checkpoint. The same command continues it, also within an evaluation.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the other examples
import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import click
import torch
from accelerate import Accelerator

from publishing.published import Published, get_published, load_model, normalized_picture, prediction_digest
from publishing.reference import reference_logits
from segmentation.data import Split
from segmentation.evaluation import evaluate
from segmentation.files import replace_when_complete
from segmentation.layouts import LAYOUTS, open_split
from segmentation.metrics import Scores
from segmentation.recipe import DataSettings, UserError, run
from segnext_timm import SegNeXt, list_segmenters
from segnext_timm.checkpoints.catalog import BACKBONES, SINGLE_SCALE, SegmenterCfg
from segnext_timm.checkpoints.dialects import load_checkpoint
from segnext_timm.checkpoints.formats import read_checkpoint
from segnext_timm.downloads import fetch, file_sha256
from segnext_timm.errors import CheckpointError

TOLERANCE = 0.1  # in mIoU points, between the measured and the published result
LOGIT_TOLERANCE = 1e-4  # relative to the largest logit of mmsegmentation's model
DIGEST_SCRIPT = str(Path(__file__).with_name("published.py"))
IMAGES_AT_ONCE = 100  # between two states of an unfinished evaluation


def log(text: str) -> None:
    """Print a line on standard error."""
    click.echo(text, err=True)


@dataclass
class Verification:
    """The verification of one checkpoint. The methods are in the order in which :meth:`run` calls them.

    Attributes:
        published: The checkpoint.
        split: The validation set to evaluate on; None to skip the evaluation.
        state: File for the state of an unfinished evaluation.
        facts: What was found: sha256, size, tensors, parameters, results.
        problems: Everything that is not as published.
        notes: Other remarks.
    """

    published: Published
    split: Split | None
    state: Path
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Verify the checkpoint, and return its entry of the report. A downloaded file that is wrong is removed."""
        path = self.published.path
        was_cached = path.exists()
        self.facts |= {"url": self.published.url, "file": self.published.file}
        try:
            self.check_file(path)
            model = self.check_model(path)
        except CheckpointError as error:
            self.problems.append(str(error))
            if was_cached:
                self.notes.append(f"remove {path} to download it again")
            else:
                path.unlink(missing_ok=True)
        else:
            self.check_predictions(model, path)
            if isinstance(model, SegNeXt):
                self.compare_with_reference(model)
                self.check_miou(model)
        status = "failed" if self.problems else "verified"
        entry = {"status": status, **self.facts, "problems": self.problems, "notes": self.notes}
        return entry | {"date": date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine()}

    def check_file(self, path: Path) -> None:
        """1. Download the file, or take the cached one; compare its container, sha256 and size with the known ones."""
        log("  download")
        published = self.published
        fetch(published.url, path, published.sha256, partial(read_checkpoint, checksums=True))
        size, digest = path.stat().st_size, file_sha256(path)
        known = published.sha256 is not None and len(published.sha256) == 64
        self.facts |= {"size": size, "sha256": digest, "sha256_known": known}
        if published.size not in (None, size):
            raise CheckpointError(f"it has {size} bytes, but the published file has {published.size}.")
        if not known:
            self.notes.append("no sha256 was published; the report records it")
        digits = path.stem.rpartition("-")[2]
        if len(digits) == 8 and set(digits) <= set("0123456789abcdef") and not digest.startswith(digits):
            self.notes.append(f"the digits {digits} in the file's name do not begin its sha256")

    def check_model(self, path: Path) -> torch.nn.Module:
        """2. Load the model, which compares names and shapes of all tensors."""
        log("  check tensors")
        checkpoint = load_checkpoint(path)
        held = [name for name in checkpoint.state_dict if not name.endswith(("num_batches_tracked", "nmf.bases"))]
        # one convolution of a segmenter's file is three here; a classifier does not count
        tensors = len(held) - (2 if self.published.cfg or checkpoint.num_classes else 0)
        model = load_model(self.published, path)
        parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("head."))
        self.facts |= {"tensors": tensors, "parameters": parameters}
        return model

    def check_predictions(self, model: torch.nn.Module, path: Path) -> None:
        """3. Predict the test picture in this process and in another one: the predictions must be equal."""
        log("  predict twice")
        command = [sys.executable, DIGEST_SCRIPT, self.published.name, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        there = done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no output"])[-1]
        here = self.facts["prediction"] = prediction_digest(model)
        if here != there:
            self.problems.append(f"two processes give different predictions: {here} and {there}")

    def compare_with_reference(self, model: SegNeXt) -> None:
        """4. Compare the logits with those of mmsegmentation's model on the same weights, if it is installed."""
        log("  compare with mmsegmentation")
        images = normalized_picture()
        try:
            theirs = reference_logits(model, images)
        except ImportError as error:
            self.notes.append(f"not compared with mmsegmentation, which is not installed: {error}")
            return
        with torch.inference_mode():
            error = ((model(images) - theirs).abs().max() / theirs.abs().max()).item()
        self.facts["reference_error"] = float(f"{error:.1e}")
        if not error <= LOGIT_TOLERANCE:
            self.problems.append(f"its logits differ from mmsegmentation's by {error:.1e} of their range")

    def check_miou(self, model: SegNeXt) -> None:
        """5. Measure mIoU on the validation set as the publisher did, and compare it with the published result."""
        cfg = self.published.cfg
        if self.split is None or cfg is None:
            self.notes.append("not evaluated: no data set was given")
            return
        miou = self.facts["miou"] = round(100 * self.evaluate(model, self.split, cfg).miou, 2)
        published = cfg.miou.get(SINGLE_SCALE)
        if published is None:
            self.notes.append(f"mIoU {miou}; no result was published")
        elif abs(miou - published) > TOLERANCE + 1e-9:
            self.problems.append(f"mIoU {miou}, but {published} was published (tolerance {TOLERANCE})")

    def evaluate(self, model: SegNeXt, split: Split, cfg: SegmenterCfg) -> Scores:
        """Evaluate some images at a time, on a GPU if there is one, from the saved state on."""
        how, accelerator = cfg.evaluation, Accelerator()
        settings = DataSettings(
            eval_mode=how["mode"],
            eval_window=how.get("window"),
            eval_stride=how.get("stride"),
            fit_in=how.get("fit_in"),
            eval_divisor=how.get("divisor", 1),
        )
        classes = len(split.classes)
        state = {"split": split.fingerprint(), "done": 0, "confusion": torch.zeros(classes, classes, dtype=torch.int64)}
        if self.state.is_file() and (saved := torch.load(self.state))["split"] == state["split"]:
            state = saved
        model = model.to(accelerator.device)
        while state["done"] < len(split):
            part = slice(state["done"], state["done"] + IMAGES_AT_ONCE)
            images = replace(split, images=split.images[part], labels=split.labels[part])
            state["confusion"] = state["confusion"] + evaluate(model, images, settings, accelerator).confusion
            state["done"] += len(images)
            self.save(state)
            log(f"  evaluate: {state['done']} of {len(split)} images")
        self.state.unlink()
        return Scores(split.classes, state["confusion"])

    def save(self, state: Mapping[str, Any]) -> None:
        """Save the state of an unfinished evaluation."""
        with replace_when_complete(self.state) as new:
            torch.save(state, new)


def read_report(path: Path) -> dict[str, dict[str, Any]]:
    """Read the entries of a report by name; none if the file does not exist.

    Raises:
        UserError: If the file is not a report.
    """
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["checkpoints"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a report of verify.py. Choose another file.") from None


def write_report(path: Path, entries: Mapping[str, Any]) -> None:
    """Write the entries of a report: backbones, then segmenters, in the catalog's order."""
    order = [*BACKBONES, *list_segmenters()]
    known = {name: entries[name] for name in order if name in entries}
    with replace_when_complete(path) as new:
        new.write_text(json.dumps({"checkpoints": known | entries}, indent=1) + "\n", encoding="utf-8")


def is_complete(entry: Mapping[str, Any] | None, published: Published, evaluated: bool) -> bool:
    """Whether an earlier run verified a checkpoint, whose cached file is still the same."""
    if entry is None or entry["status"] != "verified" or (evaluated and "miou" not in entry):
        return False
    return not published.path.is_file() or published.path.stat().st_size == entry["size"]


def verify(
    names: Iterable[str], report: Path, splits: Mapping[str, Split] | None = None, again: bool = False
) -> dict[str, dict[str, Any]]:
    """Verify published checkpoints, and write the report.

    Args:
        names: Names of published checkpoints; all if empty.
        report: JSON file, written after each checkpoint. Verified checkpoints in an existing report are skipped.
        splits: Validation sets to evaluate on, by the key of the data set.
        again: Also verify checkpoints that the report calls verified.

    Returns:
        Entry of each name: its `status`, "verified" or "failed", `problems`, `notes`, and facts about the file.

    Raises:
        ValueError: If a name is unknown.
        UserError: If `report` is a file of another kind, or a file of a data set is invalid.
    """
    wanted = [get_published(name) for name in (list(names) or [*BACKBONES, *list_segmenters()])]
    entries = read_report(report)
    for number, published in enumerate(wanted, start=1):
        split = (splits or {}).get(published.cfg.labels) if published.cfg else None
        done = not again and is_complete(entries.get(published.name), published, split is not None)
        log(f"[{number}/{len(wanted)}] {published.name}{': verified before' if done else ''}")
        if not done:
            state = report.with_name(f".{report.name}.{published.name}.pt")
            entries[published.name] = Verification(published, split, state).run()
            write_report(report, entries)
    return {published.name: entries[published.name] for published in wanted}


def report_table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Format entries of a report as a table: one line per checkpoint, with problems and notes."""
    width = max(map(len, entries), default=0)
    lines = []
    for name, entry in entries.items():
        remarks = "; ".join([*entry["problems"], *entry["notes"]])
        miou = f"mIoU {entry['miou']:.2f}  " if "miou" in entry else ""
        lines.append(f"{name.ljust(width)}  {entry['status'].ljust(8)}  {miou}{remarks}".rstrip())
    return "\n".join(lines)


def open_data(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Split]:
    """Open the validation sets that `--data KEY=DIR` names."""
    found = {}
    for value in values:
        key, _, folder = value.partition("=")
        if key not in LAYOUTS or not folder:
            raise click.BadParameter(f"{value!r} is not of the form KEY=DIR, where KEY is one of {', '.join(LAYOUTS)}.")
        if not Path(folder).is_dir():
            raise click.BadParameter(f"{folder} is not a folder.")
        found[key] = open_split(key, folder, "val")
    return found


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--data", multiple=True, callback=open_data, metavar="KEY=DIR", help="Data set to evaluate; repeatable.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default="verified.json",
    show_default=True,
    help="JSON report to continue.",
)
@click.option("--again", is_flag=True, help="Also verify what the report calls verified.")
def main(names: tuple[str, ...], data: dict[str, Split], report: Path, again: bool) -> None:
    """Verify published checkpoints, all of them without NAME.

    Downloads each, checks length, sha256, and names and shapes of the tensors, and predicts a test picture in two
    processes. Compares the logits with mmsegmentation's if that is installed, and the mIoU with the published one if
    --data gives the data set. The exit status is 1 if a checkpoint is not as published.
    """
    try:
        entries = verify(names, report, data, again)
    except KeyboardInterrupt:
        log(f"\nInterrupted. The same command continues {report}.")
        sys.exit(130)  # 128 + SIGINT, as shells have it
    click.echo(report_table(entries))
    verified = [name for name, entry in entries.items() if entry["status"] == "verified"]
    click.echo(f"Verified {len(verified)} of {len(entries)} checkpoints. Report: {report}")
    if len(verified) < len(entries):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
