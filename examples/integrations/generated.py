"""Data that the scripts of this folder draw for themselves, and what they print: versions and help."""

import sys
from importlib.metadata import version
from pathlib import Path

# before the imports of frameworks, here and in the scripts, which import this module first
if sys.argv[1:2] in (["-h"], ["--help"]):
    print(sys.modules["__main__"].__doc__)
    sys.exit()

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the other examples
import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from segmentation import scenes

CLASSES = scenes.CLASSES
MEAN, STD = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)


def street_scenes(count: int, size: int = 96, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Street scenes: images (count, 3, size, size) with values from 0 to 1, and labels (count, size, size), int64."""
    drawn = [scenes.draw(seed, index, size) for index in range(count)]
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in drawn]) / 255
    return images, torch.stack([torch.from_numpy(labels) for _, labels in drawn]).long()


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Images as MSCAN takes them for segmentation."""
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def batches(images: torch.Tensor, labels: torch.Tensor, size: int, steps: int):
    """As many batches as there are steps, in the images' order, over and over."""
    for step in range(steps):
        chosen = torch.arange(step * size, (step + 1) * size) % len(images)
        yield images[chosen], labels[chosen]


def show_versions(*names: str) -> None:
    """Print the versions of packages."""
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "timm", *names)), flush=True)
