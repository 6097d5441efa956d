"""Show what a recipe feeds to the model: what the files hold, and augmented crops with their labels.

    python examples/show_data.py examples/recipes/ade20k.yaml --data_root DIR

Checks all files as `train.py` does, prints what they hold and what may be wrong, and draws `data.png`, or the file that
`--picture` names: crops and the share of each class.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import torch

from segmentation.balancing import balance_classes
from segmentation.bands import in_color, measure_form
from segmentation.checks import check_splits
from segmentation.data import training_samples, worker_count
from segmentation.layouts import open_split
from segmentation.pictures import draw_samples
from segmentation.recipe import SettingsError, TrainSettings, parse, run
from segmentation.scale import find_scale
from segmentation.transforms import own_transform


@dataclass
class ShowSettings(TrainSettings):
    """What is shown: the settings of a training, and a file for the picture."""

    picture: str = "data.png"
    """PNG file for the picture of the crops."""


def main(argv: list[str]) -> None:
    """Show what will be fed to the model."""
    settings = parse(ShowSettings, argv, __doc__.split("\n")[0])
    picture = Path(settings.picture)
    if picture.is_dir() or picture.suffix.lower() != ".png":
        raise SettingsError(f"--picture {picture} is not the name of a PNG file, such as data.png.")
    if settings.augment:
        own_transform(settings.augment)  # refuses a wrong name before the data are read
    if picture.exists():
        print(f"{picture} will be replaced.")
    picture.parent.mkdir(parents=True, exist_ok=True)
    splits = [open_split(settings.dataset, settings.data_root, n, settings.ignore_index) for n in ("train", "val")]
    form, note = measure_form(splits[0], settings)
    for split in splits:
        split.form = form
    reports = check_splits(*splits, settings.data_root, worker_count(settings))
    for name, report in zip(("train", "val"), reports):
        print("\n".join([*report.table(name), *report.split.notes, *report.warnings]))
    balance = balance_classes(splits[0], settings, worker_count(settings))
    base_scale, _, lines = find_scale(splits[0], settings)
    for line in filter(None, (note, *lines, *balance.notes)):
        print(line)
    settings = replace(settings, base_scale=base_scale)
    samples = training_samples(splits[0], settings, form.normalization, balance.sampler)
    mean, std = map(torch.tensor, form.normalization)
    shown = []
    for k in range(16):
        x, labels = samples[k]
        image = (x.permute(1, 2, 0) * std + mean).clamp(0, 1)
        shown.append((in_color(image.numpy()), labels.numpy()))
    split, shares = splits[0], {name: report.shares for name, report in zip(("train", "val"), reports)}
    draw_samples(shown, split.classes, split.palette, split.ignore_index, picture, shares)
    print(f"{picture}: 16 augmented crops with their labels")


if __name__ == "__main__":
    run(main)
