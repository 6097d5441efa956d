"""Verify published checkpoints: download, hash, tensors, predictions, and results on the data sets.

The report is a JSON file. It is written after each checkpoint, and a later run continues from it.
"""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import timm
import torch

from .._atomic import replace_when_complete
from ..data_sets import count_confusion, find_split, mean_iou, open_labels
from ..errors import CheckpointError, DataSetError
from ..models import mscan
from ..models.model_info import evaluation_mode
from ..models.segnext import SegNeXt
from ..prediction.images import read_image
from ..prediction.pipeline import predict, segment
from ..variants import Variant
from .catalog import (
    SINGLE_SCALE,
    SegmenterCfg,
    find_backbone,
    get_segmenter_cfg,
    list_backbones,
    list_segmenters,
    published_name,
)
from .dialects import load_checkpoint
from .loading import create_segmenter, fetch, file_sha256, load_published
from .reference import is_installed as reference_is_installed
from .reference import reference_logits

TOLERANCE = 0.1  # in mIoU points, between the measured and the published result
_LOGIT_TOLERANCE = 1e-4  # relative to the largest logit of mmsegmentation's model
_SAVE_EVERY = 50  # images between two states of an unfinished evaluation


@dataclass(frozen=True)
class Published:
    """A published checkpoint, of a backbone or a segmenter, and what is known of its file.

    Attributes:
        name: Name that creates the model.
        url: Address of the file.
        file: Name of the file in the cache.
        sha256: Known sha256, or its first digits; None if unknown.
        size: Known size in bytes; None if unknown.
        tensors: Number of tensors, without counters of batches.
        parameters: Number of parameters.
        cfg: The segmenter; None for a backbone.
    """

    name: str
    url: str
    file: str
    sha256: str | None
    size: int | None
    tensors: int
    parameters: int
    cfg: SegmenterCfg | None = None


@dataclass
class Outcome:
    """What is known of a checkpoint after its verification.

    Attributes:
        facts: Facts for the report: sha256, size, tensors, parameters, results.
        problems: Everything that is not as published.
        notes: Remarks that are no problems.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        """Whether nothing differs from what is known."""
        return not self.problems

    def entry(self) -> dict[str, Any]:
        """Entry of the report."""
        status = "verified" if self.verified else "failed"
        return {"status": status, **self.facts, "problems": self.problems, "notes": self.notes}


def list_published() -> list[str]:
    """List the names of all published checkpoints: backbones, then segmenters."""
    return [*list_backbones(), *list_segmenters()]


def get_published(name: str) -> Published:
    """Look up a published checkpoint.

    Args:
        name: One of :func:`list_published`, or the part before its dot.

    Raises:
        ValueError: If no checkpoint has that name. The message lists the nearest names.
    """
    full_name = published_name(name)
    backbone = find_backbone(full_name)
    if backbone is None:
        cfg = get_segmenter_cfg(full_name)
        head = 3 * 2 + 4 + 3  # three group norms; conv_seg and ham_in with biases; the other three convolutions
        facts = (cfg.url, cfg.cached_name, cfg.sha256, cfg.size, _count_tensors(cfg.variant) + head, cfg.parameters)
        return Published(cfg.name, *facts, cfg=cfg)
    registered = timm.get_pretrained_cfg(full_name)
    assert registered is not None and isinstance(registered.url, str)  # a test compares the tags with timm's
    file, variant = Path(urlparse(registered.url).path).name, backbone.variant
    facts = (
        registered.url,
        file,
        mscan.PUBLISHED_SHA256[file],
        None,
        _count_tensors(variant),
        variant.backbone_parameters,
    )
    return Published(full_name, *facts)


def _count_tensors(variant: Variant) -> int:
    """Count the tensors of a backbone without classifier, without the counters of batches."""
    blocks = sum(variant.depths)
    convolutions, batch_norms = 2 + 3 + 13 * blocks, 2 + 3 + 2 * blocks
    layer_scales, layer_norms = 2 * blocks, 4
    return 2 * convolutions + 4 * batch_norms + layer_scales + 2 * layer_norms


def draw_picture(height: int = 192, width: int = 256) -> np.ndarray:
    """Draw a test picture (height, width, 3), uint8, the same everywhere: sky, ground, a house and fine stripes."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.empty((height, width, 3), np.uint8)
    picture[...] = np.stack([90 + rows % 64, 140 + columns % 48, 200 - rows % 32], -1)
    picture[rows > height * 3 // 5] = (90, 120, 60)
    house = (abs(columns - width // 3) < width // 6) & (rows > height // 4) & (rows < height * 4 // 5)
    picture[house] = (170, 90, 70)
    picture[house & (rows % 24 < 10) & (columns % 20 < 9)] = (40, 50, 80)
    picture[(columns > width * 2 // 3) & ((rows + columns) % 6 < 3)] = (60, 60, 65)
    return picture


def prediction_digest(name: str, path: Path) -> str:
    """Compute a digest of a checkpoint's prediction for :func:`draw_picture`: labels, or features of a backbone."""
    model = _load_model(get_published(name), path)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        if isinstance(model, SegNeXt):
            result: np.ndarray = predict(model, draw_picture())
        else:
            with torch.inference_mode(), evaluation_mode(model):
                result = model(_normalized(draw_picture())).numpy()
    finally:
        torch.use_deterministic_algorithms(before)
    return hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest()[:16]


def _normalized(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1


def _load_model(published: Published, path: Path) -> torch.nn.Module:
    """Create a published model from a file, without a download."""
    if published.cfg is not None:
        model = create_segmenter(published.cfg.name)
        load_published(model, published.cfg, path)
        return model.eval()
    backbone: Any = timm.create_model(published.name)
    backbone.load_state_dict(mscan.checkpoint_filter_fn(load_checkpoint(path).state_dict, backbone))
    return backbone.eval()


class Verifier:
    """Verifies one checkpoint. The methods are in the order in which :meth:`run` calls them.

    Args:
        published: The checkpoint.
        data: Folder of its data set; None to skip the evaluation.
        log: Called with a line for each step.
        state: File for the state of an unfinished evaluation.
        device: Device of the evaluation.
    """

    def __init__(
        self,
        published: Published,
        data: Path | None = None,
        log: Callable[[str], None] = print,
        state: Path | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.published = published
        self.data = data
        self.log = log
        self.state = state
        self.device = device or torch.device("cpu")
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Verify the checkpoint. A downloaded file with the wrong contents is removed from the cache."""
        self.outcome.facts |= {"url": self.published.url, "file": self.published.file}
        path = self.cached_path()
        was_cached = path.exists()
        try:
            self.download()
            self.check_file(path)
            model = self.check_model(path)
        except CheckpointError as error:
            text = str(error).removeprefix(f"{self.published.url}: ").replace(f"{path}: ", "")
            self.outcome.problems.append(text)
            if path.exists() and not was_cached:
                path.unlink()
            elif path.exists():
                self.outcome.notes.append(f"remove {path} to download it again")
            return self.outcome
        self.check_predictions(path)
        if isinstance(model, SegNeXt):
            self.compare_with_reference(model, path)
            self.evaluate(model)
        return self.outcome

    def cached_path(self) -> Path:
        """Path of the file in the cache."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.published.file

    def download(self) -> None:
        """1. Download the file, or check the cached one: length, sha256 if known, container."""
        self.log("download")
        fetch(self.published.url, sha256=self.published.sha256, file_name=self.published.file)

    def check_file(self, path: Path) -> None:
        """2. Record size and sha256, and compare them with the known ones and with the digits in the name."""
        size, digest = path.stat().st_size, file_sha256(path)
        known = self.published.sha256 is not None and len(self.published.sha256) == 64
        self.outcome.facts |= {"size": size, "sha256": digest, "sha256_known": known}
        if self.published.size not in (None, size):
            raise CheckpointError(f"it has {size} bytes, but the published file has {self.published.size}.")
        if not known:
            self.outcome.notes.append("no sha256 was published; the report records it")
        digits = Path(self.published.file).stem.rpartition("-")[2]
        if len(digits) == 8 and set(digits) <= set("0123456789abcdef") and not digest.startswith(digits):
            self.outcome.notes.append(f"the digits {digits} in the file's name do not begin its sha256")

    def check_model(self, path: Path) -> torch.nn.Module:
        """3. Compare number, names and shapes of the tensors, and the parameters; load the model."""
        self.log("check tensors")
        checkpoint = load_checkpoint(path)
        kind = "segmenter" if self.published.cfg else "backbone"
        if checkpoint.kind != kind:
            raise CheckpointError(f"it holds a {checkpoint.kind}, not a {kind}.")
        held = [n for n in checkpoint.state_dict if not n.endswith(("num_batches_tracked", "nmf.bases"))]
        split_weights = 2 if checkpoint.kind == "segmenter" else 0  # of the squeeze, one convolution in the file
        classifier = 2 if checkpoint.kind == "backbone" and checkpoint.num_classes else 0
        tensors = len(held) - split_weights - classifier
        model = _load_model(self.published, path)
        named = dict(model.named_parameters())
        parameters = sum(p.numel() for name, p in named.items() if not name.startswith("head."))
        self.outcome.facts |= {"tensors": tensors, "parameters": parameters, "spelling": checkpoint.spelling}
        for what, found, expected in (
            ("tensors without counters", tensors, self.published.tensors),
            ("parameters", parameters, self.published.parameters),
        ):
            if found != expected:
                raise CheckpointError(f"it has {found:,} {what}, but the published model has {expected:,}.")
        return model

    def check_predictions(self, path: Path) -> None:
        """4. Predict the test picture in this process and in another one: the predictions must be equal."""
        self.log("predict twice")
        here = prediction_digest(self.published.name, path)
        code = (
            "import sys; from pathlib import Path; from segnext_timm.checkpoints import verification; "
            "print(verification.prediction_digest(sys.argv[1], Path(sys.argv[2])))"
        )
        command = [sys.executable, "-c", code, self.published.name, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        there = done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no output"])[-1]
        self.outcome.facts["prediction"] = here
        if here != there:
            self.outcome.problems.append(f"two processes give different predictions: {here} and {there}")

    def compare_with_reference(self, model: SegNeXt, path: Path) -> None:
        """5. Compare the logits with those of mmsegmentation's model on the same weights, if it is installed."""
        if not reference_is_installed():
            self.outcome.notes.append("not compared with mmsegmentation, which is not installed")
            return
        self.log("compare with mmsegmentation")
        images = _normalized(draw_picture())
        with torch.inference_mode():
            ours = model(images)
            theirs = reference_logits(model, images)
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        self.outcome.facts["reference_error"] = float(f"{error:.1e}")
        if not error <= _LOGIT_TOLERANCE:
            self.outcome.problems.append(f"its logits differ from mmsegmentation's by {error:.1e} of their range")

    def evaluate(self, model: SegNeXt) -> None:
        """6. Measure mIoU on the validation set as the publisher did, and compare it with the published result."""
        cfg = self.published.cfg
        if self.data is None or cfg is None:
            self.outcome.notes.append("not evaluated: no data set was given")
            return
        miou = round(mean_iou(self._confusion(model.to(self.device), cfg, self.data)), 2)
        published = cfg.miou.get(SINGLE_SCALE)
        self.outcome.facts["miou"] = miou
        if published is None:
            self.outcome.notes.append(f"mIoU {miou}; no result was published")
        elif abs(miou - published) > TOLERANCE + 1e-9:
            self.outcome.problems.append(f"mIoU {miou}, but {published} was published (tolerance {TOLERANCE})")

    def _confusion(self, model: SegNeXt, cfg: SegmenterCfg, root: Path) -> np.ndarray:
        """Count pixels of each true class (rows) and predicted class (columns); resumes from `state`."""
        files = find_split(cfg.labels, root, "val")
        classes, done = cfg.num_classes, 0
        confusion = np.zeros((classes, classes), np.int64)
        if self.state is not None and self.state.is_file():
            with np.load(self.state) as state:
                if state["images"] == len(files.images):
                    confusion, done = state["confusion"], int(state["done"])
        how = cfg.evaluation
        for index in range(done, len(files.images)):
            labels = open_labels(files.labels[index], files.mapping)
            image = read_image(files.images[index])
            scores = segment(
                model,
                image,
                mode=how.mode,
                window=how.window,
                stride=how.stride,
                fit_in=how.fit_in,
                divisor=how.divisor,
            )
            if tuple(scores.shape[1:]) != labels.shape:
                raise DataSetError(f"{files.labels[index]}: its size differs from that of its image.")
            confusion += count_confusion(labels, scores.argmax(0).cpu().numpy(), classes)
            if (index + 1) % _SAVE_EVERY == 0:
                self.log(f"evaluate: {index + 1} of {len(files.images)} images")
                self._save_state(confusion, index + 1, len(files.images))
        if self.state is not None:
            self.state.unlink(missing_ok=True)
        return confusion

    def _save_state(self, confusion: np.ndarray, done: int, images: int) -> None:
        if self.state is not None:
            with replace_when_complete(self.state) as new, new.open("wb") as file:
                np.savez(file, confusion=confusion, done=done, images=images)


def read_report(path: Path) -> dict[str, Any]:
    """Read a report; an empty one if the file does not exist.

    Raises:
        CheckpointError: If the file is not a report.
    """
    if not path.is_file():
        return {"checkpoints": {}}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(report["checkpoints"], dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise CheckpointError(f"{path}: not a report of `segnext-timm verify`. Choose another file.") from None
    return report


def _write_report(path: Path, checkpoints: Mapping[str, Any]) -> None:
    order = {name: index for index, name in enumerate(list_published())}
    entries = {name: checkpoints[name] for name in sorted(checkpoints, key=lambda name: order.get(name, len(order)))}
    with replace_when_complete(path) as new:
        new.write_text(json.dumps({"checkpoints": entries}, indent=1) + "\n", encoding="utf-8")


def _is_complete(entry: Mapping[str, Any] | None, published: Published, evaluate: bool) -> bool:
    """Whether an earlier run verified a checkpoint whose file is still the same."""
    if entry is None or entry["status"] != "verified" or (evaluate and "miou" not in entry):
        return False
    path = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    return not path.is_file() or path.stat().st_size == entry["size"]


def _prefixed(log: Callable[[str], None], start: str) -> Callable[[str], None]:
    return lambda text: log(start + text)


def verify(
    names: Iterable[str],
    report: str | Path,
    data: Mapping[str, str | Path] | None = None,
    log: Callable[[str], None] = print,
    again: bool = False,
    device: torch.device | None = None,
) -> dict[str, dict[str, Any]]:
    """Verify published checkpoints, and write the report.

    Args:
        names: Names as for :func:`get_published`; all if empty.
        report: JSON file, written after each checkpoint. Verified checkpoints in an existing report are skipped.
        data: Folder of each data set to evaluate on, by its key.
        log: Called with a line for each step.
        again: Also verify checkpoints that the report calls verified.
        device: Device of the evaluation.

    Returns:
        Entry of each name: its `status`, "verified" or "failed", `problems`, `notes`, and facts about the file.

    Raises:
        ValueError: If a name is unknown.
        DataSetError: If files of a data set are missing.
        CheckpointError: If `report` is a file of another kind.
    """
    report = Path(report)
    wanted = [get_published(name) for name in (list(names) or list_published())]
    folders = {key: Path(folder) for key, folder in (data or {}).items()}
    for key, folder in folders.items():
        find_split(key, folder, "val")
    entries = dict(read_report(report)["checkpoints"])
    for index, published in enumerate(wanted, start=1):
        data_root = folders.get(published.cfg.labels) if published.cfg else None
        start = f"[{index}/{len(wanted)}] {published.name}: "
        if not again and _is_complete(entries.get(published.name), published, data_root is not None):
            log(f"{start}verified before")
            continue
        state = report.with_name(f".{report.name}.{published.name}.npz")
        entry = Verifier(published, data_root, _prefixed(log, start), state, device).run().entry()
        entry |= {"date": date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine()}
        entries[published.name] = entry
        _write_report(report, entries)
    return {published.name: entries[published.name] for published in wanted}


def report_table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Format entries of a report as a table, one line per checkpoint, with problems and notes."""
    width = max(map(len, entries), default=0)
    lines = []
    for name, entry in entries.items():
        remarks = "; ".join([*entry["problems"], *entry["notes"]])
        miou = f"mIoU {entry['miou']:.2f}  " if "miou" in entry else ""
        lines.append(f"{name.ljust(width)}  {entry['status'].ljust(8)}  {miou}{remarks}".rstrip())
    return "\n".join(lines)
