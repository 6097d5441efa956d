"""Classes of unequal frequency: weights for the loss, and samples that hold rare classes more often."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .checks import Report
from .file_facts import gather
from .recipe import DataError, TrainSettings

if TYPE_CHECKING:
    from .data import Split

WEIGHT_RANGE = (0.1, 10.0)  # of automatic weights, so that no class decides the run alone


@dataclass
class Balance:
    """What is done about rare classes.

    Attributes:
        weights: Weight of each class in the loss; None for equal ones.
        sampler: Draws the samples; None for all images in turn.
        notes: Lines on both.
    """

    weights: tuple[float, ...] | None
    sampler: "RareClassSampler | None"
    notes: list[str]


def balance_classes(split: "Split", settings: TrainSettings, workers: int = 1) -> Balance:
    """Find the class weights and the sampler that settings ask for.

    Args:
        split: Training data.
        settings: Class weights, rare-class sampling, and the data folder, which remembers what its files hold.
        workers: Number of threads that count pixels.

    Raises:
        DataError: If a label file cannot be read, or none holds a class.
    """
    weights, temperature = settings.class_weights, settings.rare_class_sampling
    sampler, notes = None, []
    if weights == "auto" or temperature is not None:
        pixels = count_pixels(split, settings.data_root, workers)
        if not pixels.any():
            raise DataError("no pixel of the training labels has a class: all are left out.")
    if weights == "auto":
        weights = tuple(median_frequency_weights(pixels).tolist())
    if temperature is not None:
        sampler = RareClassSampler(pixels, temperature)
        shares = sampler.probabilities.tolist()
        notes.append(f"Samples drawn for each class: {_by_class(split.classes, shares, '.1%')}")
        samples = settings.iterations * settings.batch_size
        seldom = [name for name, share in zip(split.classes, shares) if 0 < share * samples < 1]
        if seldom:
            notes.append(
                f"Warning: of {samples} samples, none may be drawn for {', '.join(seldom)}: images without other "
                f"classes are not seen. A higher --rare_class_sampling draws classes more evenly."
            )
    if weights == "none":
        return Balance(None, sampler, notes)
    return Balance(weights, sampler, [f"Class weights: {_by_class(split.classes, weights)}", *notes])


def _by_class(classes: Sequence[str], values: Sequence[float], form: str = ".3g") -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in zip(classes, values))


def count_pixels(split: "Split", root: Path | str | None = None, workers: int = 1) -> np.ndarray:
    """Count the pixels of each class in each image, of shape (images, classes).

    Raises:
        DataError: If a label file cannot be read.
    """
    files = [(path, "colors" if split.by_color else "values") for path in split.labels]
    found = gather(files, root, workers, "count classes")
    for facts in found.values():
        if isinstance(facts, DataError):
            raise facts
    return Report(split, [], [found[file] for file in files]).by_class[:, :-1]


def median_frequency_weights(pixels: np.ndarray) -> np.ndarray:
    """Compute the weight of each class, of shape (classes,): the median of the classes' frequencies over its own.

    The frequency of a class is its share of the pixels of the images that hold it: Eigen and Fergus, section 4
    (https://arxiv.org/abs/1411.4734). Ignored pixels do not count. Weights are clipped to `WEIGHT_RANGE`; classes that
    no image holds have the weight 1.

    Args:
        pixels: Number of pixels of each class in each image, of shape (images, classes).
    """
    around = ((pixels > 0) * pixels.sum(1, keepdims=True)).sum(0)  # pixels of the images that hold a class
    present = around > 0
    frequencies = pixels.sum(0)[present] / around[present]
    weights = np.ones(pixels.shape[1])
    weights[present] = (np.median(frequencies) / frequencies).clip(*WEIGHT_RANGE)
    return weights


class RareClassSampler:
    """Draws a class, rare ones more often, then an image that holds it.

    The probability of a class that has the share f of all classes' pixels is in proportion to
    exp((1 - f) / temperature), and images that hold it are equally probable: DAFormer, section 3.2, equation 4
    (https://arxiv.org/abs/2111.14887), with a temperature of 0.01.

    Args:
        pixels: Number of pixels of each class in each image, of shape (images, classes).
        temperature: The higher, the more evenly classes are drawn.
    """

    def __init__(self, pixels: np.ndarray, temperature: float) -> None:
        shares = torch.from_numpy(pixels.sum(0) / pixels.sum())
        scores = ((1 - shares) / temperature).masked_fill(shares == 0, -torch.inf)
        self.probabilities = scores.softmax(0)
        self.images = [np.flatnonzero(held) for held in pixels.T]

    def draw(self, seed: int) -> tuple[int, int]:
        """Draw the number of an image, and the class for which it is drawn."""
        generator = torch.Generator().manual_seed(seed)
        label = int(torch.multinomial(self.probabilities, 1, generator=generator))
        place = torch.randint(len(self.images[label]), (), generator=generator)
        return int(self.images[label][place]), label
