"""Evaluate a segmentation model as the paper does: mIoU over the whole set, at full label size.

    python examples/evaluate.py segnext_b.mmseg_ade20k examples/recipes/ade20k.yaml --data_root DIR
    python examples/evaluate.py runs/mine/best examples/recipes/folder.yaml --data_root DIR --json a.json --csv a.csv
    python examples/evaluate.py MODEL RECIPE.yaml --scales 0.5,0.75,1,1.25,1.5,1.75 --flip       # multi-scale tables
    accelerate launch --num_processes 4 examples/evaluate.py MODEL RECIPE.yaml                   # on four GPUs

MODEL is a published segmenter's name, a folder, or a repository on the Hugging Face Hub: SegNeXt or any model of smp.
Images are read as the model states: its bands, the range of their values, and, unless the recipe or `--fit_in` says
otherwise, the size that they are fitted in; labels are compared at their own size.
The recipe decides whether images are processed whole or in sliding windows. Each image counts once with any number of
processes. `--write_card` writes the results to the card and configuration of a model folder.

Each class has IoU, Dice (which is F1), precision and recall (mmsegmentation's accuracy), counted over the pixels of all
images; a class without such pixels is absent and not in the mean. `--boundary_iou` adds the IoU near outlines.
"""

import json
from pathlib import Path

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import torch
from accelerate import Accelerator

from segmentation.bands import form_of_model
from segmentation.checks import PATIENT, check_files, in_first_process
from segmentation.data import worker_count
from segmentation.evaluation import end, evaluate, match_classes
from segmentation.files import check_writable
from segmentation.layouts import open_split
from segmentation.metrics import Scores
from segmentation.pictures import draw_confusion, draw_iou
from segmentation.recipe import RECIPE, EvalSettings, SettingsError, mixed_precision, parse, run, slow_precision
from segmentation.scale import evaluation_scale
from segnext_timm import add_results, load_segmenter

MODEL = {"MODEL": "a published name, a folder, or a repository on the Hub"}


def results_of(scores: Scores, settings: EvalSettings, name: str) -> list[dict]:
    """Convert scores to the form that model cards need."""
    setting = "single scale" if settings.scales == (1.0,) else "multi-scale"
    setting += " + flip" if settings.flip else ""
    common = {"dataset": name, "split": settings.split, "setting": setting}
    values = {"mIoU": scores.miou, "mAcc": scores.macc, "aAcc": scores.aacc}
    return [{**common, "metric": metric, "value": round(100 * value, 2)} for metric, value in values.items()]


def main(argv: list[str]) -> Scores:
    """Evaluate the model `argv[0]` with the recipe `argv[1]`."""
    name = argv.pop(0) if argv and not argv[0].startswith("-") and not argv[0].endswith(".yaml") else None
    if name is None and not {"-h", "--help"} & set(argv):
        raise SettingsError(
            f"MODEL is missing: give {MODEL['MODEL']}. Usage: evaluate.py MODEL RECIPE [--name value ...]"
        )
    settings = parse(EvalSettings, argv, __doc__.split("\n")[0], MODEL | RECIPE)
    if settings.write_card and not Path(name).is_dir():
        raise SettingsError(f"--write_card needs a model folder, which {name} is not.")
    for option in ("json", "csv"):
        file = Path(getattr(settings, option) or "")
        if file.name and file.is_dir():
            raise SettingsError(f"--{option} {file} is a folder: name a file.")
        check_writable(option, file.parent)
        if file.is_file():
            print(f"{file} will be replaced.")
    check_writable("plots", Path(settings.plots or ""))
    accelerator = Accelerator(mixed_precision=mixed_precision(settings.precision), kwargs_handlers=[PATIENT])
    if slow := slow_precision(accelerator.device, settings.precision):
        accelerator.print(slow)
    split = open_split(settings.dataset, settings.data_root, settings.split, settings.ignore_index)
    model = load_segmenter(name)
    split.form = form_of_model(model)
    fit_in, scale_note = evaluation_scale(model, settings.fit_in)
    for note in filter(None, (match_classes(model, split, settings.by_position)[1], scale_note)):
        accelerator.print(note)
    if settings.check_data:
        root, workers = settings.data_root, worker_count(settings)
        for line in in_first_process(accelerator, lambda: check_files(split, root, workers).warnings):
            accelerator.print(line)
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    views = {"scales": settings.scales, "flip": settings.flip}
    scores = evaluate(model, split, settings, accelerator, settings.by_position, settings.boundary_iou, **views)
    if accelerator.is_main_process:
        print(scores.table())
        if settings.json:
            content = {"model": name, "images": len(split), "fit_in": fit_in, **views}
            Path(settings.json).parent.mkdir(parents=True, exist_ok=True)
            Path(settings.json).write_text(json.dumps({**content, **scores.as_dict()}, indent=2), encoding="utf-8")
        if settings.csv:
            Path(settings.csv).parent.mkdir(parents=True, exist_ok=True)
            scores.write_csv(Path(settings.csv))
        if settings.plots:
            folder = Path(settings.plots)
            folder.mkdir(parents=True, exist_ok=True)
            draw_iou(scores, folder / "iou.png")
            draw_confusion(scores, folder / "confusion.png")
        if settings.write_card:
            add_results(name, results_of(scores, settings, split.name))
    end(accelerator)
    return scores


if __name__ == "__main__":
    run(main)
