"""Make the labels of annotations in this process, without `prepare_labels.py`'s pool."""

import numpy as np
from PIL import Image

import prepare_labels
from segmentation.mask_labels import UnusableError
from segmentation.preparing import Job, make
from segmentation.sources import SOURCES

SIZE = (40, 60)  # height, width
SQUARE = [10, 5, 30, 5, 30, 25, 10, 25]
INSIDE = (slice(5, 25), slice(10, 30))
PAIRS = np.reshape(SQUARE, (4, 2)).tolist()


def draw_images(folder, *names):
    """Write small images."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)


class Made:
    """What a source makes: labels and reasons of skipped images by the images' names, and the classes."""

    def __init__(self, kind, *paths, **options):
        settings = SOURCES[kind](*paths, **options)
        plan, items, skipped = prepare_labels.plan_regions(settings)
        self.classes = plan.classes
        self.skipped = {name: str(error) for name, error in skipped.items()}
        self.labels = {}
        for item, _ in items:
            stem = item.name.rpartition(".")[0].replace("/", "_")
            try:
                make(Job(item, "train", stem), plan, "")
                self.labels[stem] = np.asarray(Image.open(settings.target / f"labels/train/{stem}.png"))
            except UnusableError as error:
                self.skipped[item.name] = str(error)
