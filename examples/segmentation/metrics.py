"""Intersection over union and accuracy of a segmentation, over a whole data set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


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


@dataclass
class Scores:
    """What a model reaches, from the pixels it gave each class.

    Attributes:
        classes: Name of each class.
        confusion: Pixels of each true class (rows) that were given each class (columns), those to ignore left out.
    """

    classes: Sequence[str]
    confusion: torch.Tensor

    @property
    def iou(self) -> torch.Tensor:
        """Intersection over union of each class; NaN for one in neither truth nor prediction."""
        confusion = self.confusion.double()
        intersection = confusion.diag()
        return intersection / (confusion.sum(0) + confusion.sum(1) - intersection)

    @property
    def accuracy(self) -> torch.Tensor:
        """Share of each class's pixels that were found; NaN for one that is not in the truth."""
        return self.confusion.double().diag() / self.confusion.double().sum(1)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur."""
        return self.iou.nanmean().item()

    @property
    def macc(self) -> float:
        """Mean accuracy over the classes in the truth."""
        return self.accuracy.nanmean().item()

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
        """All of it in percent, by name, and the pixels behind it."""

        def percent(value: float) -> float | None:
            return None if math.isnan(value) else round(100 * value, 6)

        diagonal = self.confusion.diag()
        truth, predicted = self.confusion.sum(1), self.confusion.sum(0)
        return {
            "miou": percent(self.miou),
            "macc": percent(self.macc),
            "aacc": percent(self.aacc),
            "iou": {name: percent(v) for name, v in zip(self.classes, self.iou.tolist())},
            "accuracy": {name: percent(v) for name, v in zip(self.classes, self.accuracy.tolist())},
            "pixels": {
                name: {"intersection": i, "union": t + p - i, "truth": t, "predicted": p}
                for name, i, t, p in zip(self.classes, diagonal.tolist(), truth.tolist(), predicted.tolist())
            },
        }

    def table(self) -> str:
        """IoU and accuracy of each class, and their means, in percent."""

        def line(name: str, *values: float) -> str:
            return name.ljust(width) + "".join(f"{'absent' if math.isnan(v) else f'{100 * v:.2f}':>10}" for v in values)

        width = max(map(len, [*self.classes, "all pixels"])) + 2
        lines = [" " * width + f"{'IoU':>10}{'accuracy':>10}"]
        lines += [line(*row) for row in zip(self.classes, self.iou.tolist(), self.accuracy.tolist())]
        lines += [
            line("mean", self.miou, self.macc),
            line("all pixels", math.nan, self.aacc).replace("absent", "      "),
        ]
        return "\n".join(lines)
