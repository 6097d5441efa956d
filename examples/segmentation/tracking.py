"""The log of a training: accelerate's trackers, and a table of the evaluations."""

import csv
import importlib
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers
from PIL import Image

from .files import replace_when_complete
from .hooks import load_function
from .metrics import Scores
from .recipe import SettingsError, TrainSettings

# what each tracker knows a run by, to resume it; for TensorBoard, that there is a folder
RUN_IDS = {
    "tensorboard": lambda writer: writer.log_dir,
    "wandb": lambda run: run.id,
    "mlflow": lambda run: run.info.run_id,
    "comet_ml": lambda run: run.get_key(),
    "trackio": lambda run: run.name,
}


class Tracking:
    """The log of a training: a tracker, and `metrics.csv` with a row for each evaluation.

    Args:
        settings: Those of the training.

    Attributes:
        name: The tracker for `Accelerator(log_with=...)`; None for "none" and for a class of the user's own.
        state: What a resumed training needs, for its checkpoint: the rows, and the run in each tracker that was used.

    Raises:
        SettingsError: If the tracker is unknown, its package is missing, or the user's class is not a tracker.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.own: Any = None  # the user's class
        self.state: dict[str, Any] = {"evaluations": [], "runs": {}}
        name = settings.tracker
        if ":" in name:
            self.own = load_function("tracker", name)
            if not (isinstance(self.own, type) and issubclass(self.own, GeneralTracker)):
                raise SettingsError(f"--tracker {name}: it is not a subclass of accelerate.tracking.GeneralTracker.")
        elif name not in (*RUN_IDS, "none"):
            raise SettingsError(
                f"--tracker {name}: choose {', '.join(RUN_IDS)}, none, or your own class, module:Class."
            )
        elif name != "none" and name not in map(str, get_available_trackers()):
            raise SettingsError(f"--tracker {name} needs a package that is missing: `pip install {name}`.")
        self.name = name if name in RUN_IDS else None

    def start(self, accelerator: Accelerator, iteration: int) -> None:
        """Start the tracker, with the settings as the run's configuration, or continue the run in `state`.

        Args:
            accelerator: The processes, of which the first one logs.
            iteration: The first one.
        """
        self.accelerator, settings = accelerator, self.settings
        if self.own and accelerator.is_main_process:
            folder = [accelerator.logging_dir] if self.own.requires_logging_directory else []
            accelerator.log_with = [self.own(settings.project, *folder)]
        name, run_id = settings.run_name or Path(settings.out).resolve().name, self.state["runs"].get(self.name)
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": iteration + 1} if run_id else {},  # hides what came after the checkpoint
            "wandb": {"name": name, "id": run_id, "resume": "allow"},
            "mlflow": {"run_name": name, "run_id": run_id},
            "comet_ml": {"experiment_key": run_id},
            "trackio": {"name": run_id or name, "resume": "allow" if run_id else "never"},
        }
        project = "log" if self.name == "tensorboard" else settings.project  # a folder
        config = {key: _plain(value) for key, value in asdict(settings).items()}
        if run_id and self.name in ("mlflow", "tensorboard"):
            config = None  # mlflow refuses values that changed, and TensorBoard would show it twice
        accelerator.init_trackers(project, config=config, init_kwargs=options)
        if self.name and accelerator.is_main_process:
            run = accelerator.trackers[0].tracker
            if self.name == "comet_ml":
                run.set_name(name)
            self.state["runs"][self.name] = RUN_IDS[self.name](run)

    def log_evaluation(self, iteration: int, loss: float, lr: float, scores: Scores) -> None:
        """Log the results of an evaluation, also as a row of `metrics.csv`; NaN, of absent classes, is left empty.

        Args:
            iteration: The last one before the evaluation.
            loss: A mean of the last ones.
            lr: The encoder's learning rate.
            scores: The results.
        """
        by_class = {f"iou/{name}": value for name, value in zip(scores.classes, scores.iou.tolist())}
        values = {"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc, **by_class}
        found = {name: value for name, value in values.items() if not math.isnan(value)}
        # mlflow refuses other characters
        self.accelerator.log({re.sub(r"[^\w.\- /]", "_", name): found[name] for name in found}, step=iteration)
        rows = self.state["evaluations"]
        rows.append({"iteration": iteration, "loss": loss, "lr": lr, **values})
        with (
            replace_when_complete(Path(self.settings.out) / "metrics.csv") as new,
            new.open("w", newline="", encoding="utf-8") as opened,
        ):
            writer = csv.DictWriter(opened, rows[0].keys())
            writer.writeheader()
            writer.writerows({k: "" if math.isnan(value) else value for k, value in row.items()} for row in rows)

    def log_picture(self, iteration: int, file: Path) -> None:
        """Give a picture of predictions to the tracker, if it takes pictures. The first process calls it."""
        for tracker in self.accelerator.trackers:
            if self.name == "mlflow":
                tracker.log_artifact(str(file), "predictions")
            elif self.name == "comet_ml":
                tracker.tracker.log_image(str(file), name="predictions", step=iteration)
            elif self.name == "trackio":
                trackio = importlib.import_module("trackio")  # the tracker's package, in no extra
                tracker.log({"predictions": trackio.Image(str(file))}, step=iteration)
            elif hasattr(tracker, "log_images"):
                with Image.open(file) as opened:
                    picture = np.asarray(opened.convert("RGB"))[None]
                options = {"dataformats": "NHWC"} if self.name == "tensorboard" else {}
                tracker.log_images({"predictions": picture}, step=iteration, **options)


def _plain(value: Any) -> bool | int | float | str | None:
    """A setting as trackers take it: numbers stay numbers, and lists are written as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else value
