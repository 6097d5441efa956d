"""Show what a recipe feeds to the model: the share of each class, and augmented crops with their labels.

    python examples/show_data.py examples/recipes/ade20k.yaml --data_root DIR

Prints the number of images and the share of each class, and draws `data.png`, or the file that `--picture` names.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from segmentation.data import Split, check_labels, training_samples
from segmentation.layouts import open_split
from segmentation.pictures import draw_samples
from segmentation.recipe import SettingsError, TrainSettings, parse, run
from segmentation.transforms import MEAN, STD


@dataclass
class ShowSettings(TrainSettings):
    """What is shown: the settings of a training, and a file for the picture."""

    picture: str = "data.png"
    """PNG file for the picture of the crops."""


def class_pixels(split: Split) -> tuple[np.ndarray, int]:
    """Number of pixels of each class, and of those left out. Reads every image too, to find damaged ones."""
    pixels, left_out = np.zeros(len(split.classes), np.int64), 0
    for index in tqdm(range(len(split)), desc=f"read {split.images[0].parent.name}", unit="image", leave=False):
        labels = split.open(index)[1]
        kept = labels[labels != split.ignore_index]
        pixels += np.bincount(kept, minlength=len(split.classes))
        left_out += labels.size - kept.size
    return pixels, left_out


def main(argv: list[str]) -> None:
    """Show what will be fed to the model."""
    settings = parse(ShowSettings, argv, __doc__.split("\n")[0])
    picture = Path(settings.picture)
    if picture.is_dir() or picture.suffix.lower() != ".png":
        raise SettingsError(f"--picture {picture} is not the name of a PNG file, such as data.png.")
    picture.parent.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val"):
        split = open_split(settings.dataset, settings.data_root, name, settings.ignore_index)
        warning = None
        if name == "train":
            samples = training_samples(split, settings)
            warning = check_labels(split)
        pixels, left_out = class_pixels(split)
        share = 100 * left_out / max(left_out + pixels.sum(), 1)
        print(f"{name}: {len(split)} images of {split.name}, {share:.1f}% of the pixels left out")
        for label, count in enumerate(pixels):
            print(f"  {label:3d} {split.classes[label]:24s} {100 * count / max(pixels.sum(), 1):6.2f}%")
        if warning:
            print(warning)
    shown = []
    for k in range(16):
        x, labels = samples[k]
        image = (x.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)).clamp(0, 1)
        shown.append((image.numpy(), labels.numpy()))
    draw_samples(shown, samples.split.classes, samples.split.palette, samples.split.ignore_index, picture)
    print(f"{picture}: 16 augmented crops with their labels")


if __name__ == "__main__":
    run(main)
