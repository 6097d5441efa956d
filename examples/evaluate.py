"""Evaluate a segmentation model as the paper does: mIoU over the whole set, at full label size.

    python examples/evaluate.py segnext_b.mmseg_ade20k examples/recipes/ade20k.yaml --data_root DIR
    python examples/evaluate.py runs/mine/best examples/recipes/folder.yaml --data_root DIR --json scores.json
    python examples/evaluate.py MODEL RECIPE.yaml --scales 0.5,0.75,1,1.25,1.5,1.75 --flip       # multi-scale tables
    accelerate launch --num_processes 4 examples/evaluate.py MODEL RECIPE.yaml                   # on four GPUs

MODEL is a published segmenter's name, a folder, or a repository on the Hugging Face Hub: SegNeXt or any model of smp.
Images are seen whole or in sliding windows, as the recipe says. Each image is counted once, however many processes
there are. With `--write_card`, the results go into a model folder's card and configuration.
"""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_confusion_matrix
from tqdm import tqdm

from segnext_timm.checkpoints.segmenters import load_segmenter
from segnext_timm.hub.push import add_results
from segnext_timm.models.model_info import evaluation_mode
from segnext_timm.prediction.images import read_image
from segnext_timm.prediction.pipeline import predict, segment, slow_precision

from data import Split, ignore_interrupts, open_split
from metrics import Scores
from recipe import RECIPE, DataSettings, EvalSettings, SettingsError, mixed_precision, parse, run

MODEL = {"MODEL": "a published name, a folder, or a repository on the Hub"}


class Samples(Dataset):
    """Images (3, H, W), uint8, with labels (H, W), int64, at their own size."""

    def __init__(self, split: Split, indices: range) -> None:
        self.split = split
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = self.split.open(self.indices[i])
        return read_image(image), torch.from_numpy(labels.astype("int64"))


def evaluate(model: torch.nn.Module, split: Split, settings: DataSettings, accelerator: Accelerator, **views) -> Scores:
    """Scores of a model on a split, shared among the processes.

    Args:
        model: Maps normalized images (1, C, H, W) to logits of the same size.
        split: What it is evaluated on.
        settings: How images are seen: the `eval_` fields.
        accelerator: The processes.
        views: `scales` and `flip` of :func:`segnext_timm.prediction.pipeline.segment`.
    """
    classes = len(split.classes)
    mine = range(accelerator.process_index, len(split), accelerator.num_processes)
    loader = DataLoader(
        Samples(split, mine), batch_size=None, num_workers=settings.workers, worker_init_fn=ignore_interrupts
    )
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=accelerator.device)
    progress = tqdm(loader, desc="evaluate", unit="image", disable=not accelerator.is_main_process, leave=False)
    with evaluation_mode(model):
        for image, labels in progress:
            with accelerator.autocast():
                scores = segment(
                    model,
                    image,
                    mode=settings.eval_mode,
                    window=settings.eval_window,
                    stride=settings.eval_stride,
                    fit_in=settings.eval_fit,
                    divisor=settings.eval_divisor,
                    **views,
                )
            if scores.shape[0] != classes:
                raise ValueError(
                    f"the model has {scores.shape[0]} classes, the data set {classes}: evaluate it on its own."
                )
            labels = labels.to(accelerator.device)
            confusion += multiclass_confusion_matrix(
                scores.argmax(0), labels, classes, ignore_index=split.ignore_index, validate_args=False
            )
    return Scores(split.classes, accelerator.reduce(confusion, "sum").cpu())


def some_predictions(
    model: torch.nn.Module, split: Split, count: int, fit_in: tuple[int, int] | None = None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Image (H, W, 3), true and predicted labels (H, W) of images spread over a split.

    Pixels to ignore get the number of classes as their label, for which no picture has a color.
    """
    samples = []
    for index in np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int):
        image, labels = split.open(int(index))
        labels = np.where(labels == split.ignore_index, len(split.classes), labels)
        samples.append((np.asarray(image), labels, predict(model, image, fit_in=fit_in)))
    return samples


def results_of(scores: Scores, settings: EvalSettings, name: str) -> list[dict]:
    """Scores in the form that model cards take."""
    setting = "single scale" if settings.scales == (1.0,) else "multi-scale"
    setting += " + flip" if settings.flip else ""
    common = {"dataset": name, "split": settings.split, "setting": setting}
    values = {"mIoU": scores.miou, "mAcc": scores.macc, "aAcc": scores.aacc}
    return [{**common, "metric": metric, "value": round(100 * value, 2)} for metric, value in values.items()]


def main(argv: list[str]) -> Scores:
    """Evaluate `argv[0]`, a model, by `argv[1]`, a recipe."""
    name = argv.pop(0) if argv and not argv[0].startswith("-") and not argv[0].endswith(".yaml") else None
    if name is None and not {"-h", "--help"} & set(argv):
        raise SettingsError(
            f"MODEL is missing: it is {MODEL['MODEL']}. Usage: evaluate.py MODEL RECIPE [--name value ...]"
        )
    settings = parse(EvalSettings, argv, __doc__.split("\n")[0], MODEL | RECIPE)
    if settings.write_card and not Path(name).is_dir():
        raise ValueError(f"--write_card needs a model folder, {name} is not one.")
    accelerator = Accelerator(mixed_precision=mixed_precision(settings.precision))
    if slow := slow_precision(accelerator.device, settings.precision):
        accelerator.print(slow)
    split = open_split(settings.dataset, settings.data_root, settings.split, settings.ignore_index)
    model = load_segmenter(name).to(accelerator.device, memory_format=torch.channels_last)
    scores = evaluate(model, split, settings, accelerator, scales=settings.scales, flip=settings.flip)
    if accelerator.is_main_process:
        print(scores.table())
        if settings.json:
            content = {"model": name, "images": len(split), "scales": settings.scales, "flip": settings.flip}
            Path(settings.json).write_text(json.dumps({**content, **scores.as_dict()}, indent=2), encoding="utf-8")
        if settings.plots:
            Path(settings.plots).mkdir(parents=True, exist_ok=True)
            scores.draw(Path(settings.plots))
        if settings.write_card:
            add_results(name, results_of(scores, settings, split.name))
    accelerator.end_training()
    return scores


if __name__ == "__main__":
    run(main)
