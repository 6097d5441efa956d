"""IoU, Dice, precision, recall and boundary IoU of a segmentation, over a whole data set."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TITLES = {"iou": "IoU", "dice": "Dice", "boundary_iou": "boundary IoU"}  # in tables, where they differ from the names


def add_to_confusion(confusion: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor, ignore_index: int) -> None:
    """Count the pixels of an image. Unlike torchmetrics' confusion matrix, this never waits for a GPU.

    Args:
        confusion: Counts (classes, classes), int64, changed in place: true classes are rows.
        labels: True classes, or `ignore_index`.
        predicted: Predicted classes, of the same shape.
        ignore_index: Label of pixels that do not count.
    """
    classes = len(confusion)
    counts = labels != ignore_index
    places = (labels * classes + predicted).where(counts, 0).flatten()
    confusion.view(-1).scatter_add_(0, places, counts.flatten().to(confusion.dtype))


def _any_within(found: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    """Whether any of `length` neighbors along a dimension is true, for each place where all of them exist."""
    counts = found.cumsum(dim, dtype=torch.int32)
    counts = torch.cat([torch.zeros_like(counts.narrow(dim, 0, 1)), counts], dim)
    places = found.shape[dim] - length + 1
    return counts.narrow(dim, length, places) != counts.narrow(dim, 0, places)


def boundary_band(labels: torch.Tensor) -> torch.Tensor:
    """Find the pixels near the outline of their region, for all classes at once.

    They are G_d ∩ G of Cheng et al. (2021, https://arxiv.org/abs/2103.16562) as in the paper's code: what d erosions by
    3×3 remove from the mask of a class, where d is 2% of the image's diagonal and nothing lies beyond its border. That
    is every pixel with another label, or the border, in the square of side 2 d + 1 around it.

    Args:
        labels: Shape (H, W).

    Returns:
        Booleans (H, W).
    """
    height, width = labels.shape
    d = max(round(0.02 * math.hypot(height, width)), 1)
    band = torch.ones(height, width, dtype=torch.bool)
    if min(height, width) > 2 * d:
        across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
        # a square has one label if each of its rows has, and one of its columns
        changes = _any_within(_any_within(across, 2 * d, 1), 2 * d + 1, 0)
        band[d:-d, d:-d] = changes | _any_within(down[:, d:-d], 2 * d, 0)
    return band


def add_to_boundary(boundary: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor, ignore_index: int) -> None:
    """Count the pixels of an image that boundary IoU compares.

    Args:
        boundary: Counts (3, classes), int64, changed in place: pixels of each class in the band of the truth, in the
            band of the prediction, and in both.
        labels: True classes (H, W), or `ignore_index`, which is of no class in the prediction too.
        predicted: Predicted classes (H, W).
        ignore_index: Label of pixels that do not count.
    """
    counts = labels != ignore_index
    truth, guess = (each.int().where(counts, -1) for each in (labels, predicted))
    in_truth, in_guess = boundary_band(truth) & counts, boundary_band(guess) & counts
    in_both = in_truth & in_guess & (truth == guess)
    for row, (values, chosen) in zip(boundary, ((truth, in_truth), (guess, in_guess), (truth, in_both))):
        row += torch.bincount(values[chosen], minlength=len(row))


@dataclass
class Scores:
    """What a model reaches, from the pixels it gave each class.

    Every metric of a class is NaN if its denominator has no pixel, and is then left out of the mean.

    Attributes:
        classes: Name of each class.
        confusion: Pixels of each true class (rows) that were given each class (columns), those to ignore left out.
        boundary: Counts of :func:`add_to_boundary`, if boundary IoU was asked for.
    """

    classes: Sequence[str]
    confusion: torch.Tensor
    boundary: torch.Tensor | None = None

    @property
    def iou(self) -> torch.Tensor:
        """Intersection over union of each class; NaN for one in neither truth nor prediction."""
        confusion = self.confusion.double()
        intersection = confusion.diag()
        return intersection / (confusion.sum(0) + confusion.sum(1) - intersection)

    @property
    def dice(self) -> torch.Tensor:
        """Dice of each class, which is F1: 2 IoU / (1 + IoU)."""
        return 2 * self.iou / (1 + self.iou)

    @property
    def precision(self) -> torch.Tensor:
        """Share of the pixels that were given each class that are of it; NaN for one that was never predicted."""
        return self.confusion.double().diag() / self.confusion.double().sum(0)

    @property
    def recall(self) -> torch.Tensor:
        """Share of each class's pixels that were found, mmsegmentation's Acc; NaN for one that is not in the truth."""
        return self.confusion.double().diag() / self.confusion.double().sum(1)

    @property
    def boundary_iou(self) -> torch.Tensor:
        """IoU of each class near outlines (:func:`boundary_band`), over the pixels of all images as `iou`."""
        truth, predicted, both = self.boundary.double()
        return both / (truth + predicted - both)

    @property
    def by_class(self) -> dict[str, torch.Tensor]:
        """All metrics of each class."""
        names = ("iou", "dice", "precision", "recall", *(["boundary_iou"] if self.boundary is not None else []))
        return {name: getattr(self, name) for name in names}

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur."""
        return self.iou.nanmean().item()

    @property
    def macc(self) -> float:
        """Mean recall over the classes in the truth, which the literature calls mean accuracy."""
        return self.recall.nanmean().item()

    @property
    def aacc(self) -> float:
        """Share of all pixels that are right."""
        return (self.confusion.diag().sum() / self.confusion.sum().clamp(min=1)).item()

    @property
    def most_common_class_miou(self) -> float:
        """mIoU of predicting the most common class everywhere."""
        truth = self.confusion.sum(1)
        guess = torch.zeros_like(self.confusion)
        guess[:, truth.argmax()] = truth
        return Scores(self.classes, guess).miou

    def as_dict(self) -> dict[str, Any]:
        """All of it in percent, by name, None for what is NaN, and the pixels behind it."""
        diagonal = self.confusion.diag()
        truth, predicted = self.confusion.sum(1), self.confusion.sum(0)
        means = {f"m{name}": values.nanmean().item() for name, values in self.by_class.items()}
        return {
            **{name: _percent(value) for name, value in {**means, "macc": self.macc, "aacc": self.aacc}.items()},
            **{
                metric: {name: _percent(value) for name, value in zip(self.classes, values.tolist())}
                for metric, values in self.by_class.items()
            },
            "pixels": {
                name: {"intersection": i, "union": t + p - i, "truth": t, "predicted": p}
                for name, i, t, p in zip(self.classes, diagonal.tolist(), truth.tolist(), predicted.tolist())
            },
        }

    def write_csv(self, file: Path) -> None:
        """Write a row for each class: its metrics in percent, empty where they are NaN, and its pixels."""
        content = self.as_dict()
        metrics = [*self.by_class]
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow(["class", *metrics, "true_pixels", "predicted_pixels"])
            for name in self.classes:
                pixels = content["pixels"][name]
                writer.writerow([name, *(content[m][name] for m in metrics), pixels["truth"], pixels["predicted"]])

    def table(self) -> str:
        """All metrics of each class, and their means, in percent."""
        columns = self.by_class
        width = max(map(len, [*self.classes, "all pixels"])) + 2

        def line(name: str, cells: Iterable[str]) -> str:
            return (name.ljust(width) + "".join(f"{cell:>14}" for cell in cells)).rstrip()

        def text(value: float) -> str:
            return "absent" if math.isnan(value) else f"{100 * value:.2f}"

        lines = [line("", (TITLES.get(name, name) for name in columns))]
        for name, *values in zip(self.classes, *(each.tolist() for each in columns.values())):
            lines.append(line(name, map(text, values)))
        lines.append(line("mean", (text(each.nanmean().item()) for each in columns.values())))
        lines.append(line("all pixels", (text(self.aacc) if name == "recall" else "" for name in columns)))
        return "\n".join(lines)


def _percent(value: float) -> float | None:
    """A share in percent; None for NaN."""
    return None if math.isnan(value) else round(100 * value, 6)
