"""Evaluate a model on a split, with mmsegmentation's metrics, in as little memory as predictions take."""

import copy
import unicodedata
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from segnext_timm import predict, read_image
from segnext_timm.label_sets import name_list

from .bands import form_of_model, in_color
from .data import Split, ignore_interrupts, worker_count
from .metrics import Scores, add_to_boundary, add_to_confusion
from .progress import progress_bar
from .recipe import DataError, DataSettings
from .scale import evaluation_scale


class Samples(Dataset):
    """Dataset of images (C, H, W), as `read_image` returns them, and labels (H, W), at their own size."""

    def __init__(self, split: Split, indices: range) -> None:
        self.split = split
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = self.split.open(self.indices[i])
        return read_image(image, np.asarray(image).shape[2]), torch.from_numpy(labels.astype("int32"))


def end(accelerator: Accelerator) -> None:
    """End a run of one or more processes.

    The processes wait for each other first. A thread of torch frees what their last exchange sent, for which it needs
    Python's lock; a process that destroys its group meanwhile holds that lock, and waits for the thread forever.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()


def class_names(model: nn.Module) -> list[str] | None:
    """Names of the labels that a model predicts, if it states them; a binary model's begin with "background"."""
    facts = getattr(model, "pretrained_cfg", None) or {}
    names = [unicodedata.normalize("NFC", name.strip()) for name in name_list(facts.get("label_names") or ())]
    return ["background", *names] if len(names) == 1 else names or None


def _label_count(model: nn.Module) -> int | None:
    """Number of the labels that a model predicts; None if it is not a model of smp."""
    head = getattr(model, "segmentation_head", None)
    convs = [module for module in head.modules() if isinstance(module, nn.Conv2d)] if head is not None else []
    return max(convs[-1].out_channels, 2) if convs else None


def match_classes(model: nn.Module, split: Split, by_position: bool = False) -> tuple[list[int], str | None]:
    """Match the labels that a model predicts with the classes of a split, by name.

    Args:
        model: The model; its `pretrained_cfg` may state its `label_names`.
        split: The data.
        by_position: Compare labels by number, whatever their names.

    Returns:
        The class of each label, and a line if these are not the same numbers, or no names are known.

    Raises:
        DataError: If the names are others, or their number where no names are compared.
    """
    classes, names, count = list(split.classes), class_names(model), _label_count(model)
    same = [*range(len(classes))]
    if names is None or by_position:
        if count not in (None, len(classes)):
            raise DataError(
                f"the model has {count} classes, but the data set has {len(classes)}: use its own data set."
            )
        return same, None if by_position else "The model does not name its classes: compared by number."
    if names == classes:
        return same, None
    if sorted(names) == sorted(classes):
        return [classes.index(name) for name in names], "The model has the classes in another order: matched by name."
    both = (names, classes), (classes, names)
    other = [", ".join([name for name in one if name not in two][:5]) or "none" for one, two in both]
    case = sorted(map(str.lower, names)) == sorted(map(str.lower, classes))
    hint = " or compare by number with --by_position" if len(names) == len(classes) else ""
    raise DataError(
        f"the model's {len(names)} classes are not the {len(classes)} of the data set"
        f"{', by upper and lower case alone' if case else ''}: only the model has {other[0]}; only the data set has "
        f"{other[1]}. Use the model's own data set, give the classes the same names{hint}."
    )


def _as_read_for(model: nn.Module, split: Split) -> Split:
    """A split whose images are read as a model takes them."""
    split = copy.copy(split)  # which may be of a class of its own
    split.form = form_of_model(model)
    return split


def _options(model: nn.Module, settings: DataSettings) -> dict[str, Any]:
    """Options of :func:`segnext_timm.predict` for the images of a split, which :func:`read_image` has scaled."""
    return {
        "mode": settings.eval_mode,
        "window": settings.eval_window,
        "stride": settings.eval_stride,
        "fit_in": evaluation_scale(model, settings.fit_in)[0],
        "divisor": settings.eval_divisor,
        "scaled": True,
    }


def evaluate(
    model: nn.Module,
    split: Split,
    settings: DataSettings,
    accelerator: Accelerator,
    by_position: bool = False,
    boundary_iou: bool = False,
    **views,
) -> Scores:
    """Evaluate a model on a split, divided among the processes.

    Args:
        model: A model of smp, or another that :func:`segnext_timm.predict` takes.
        split: The data.
        settings: The scale, mode and windows: `fit_in` and the `eval_` fields.
        accelerator: The processes.
        by_position: Compare classes by number, not by name.
        boundary_iou: Also count what boundary IoU needs.
        views: `scales` and `flip` of :func:`segnext_timm.predict`.

    Raises:
        DataError: If the model has other classes, a file cannot be read, or all pixels are left out.
    """
    classes = len(split.classes)
    label_of, _ = match_classes(model, split, by_position)
    table = None if label_of == [*range(classes)] else torch.tensor(label_of)
    options = _options(model, settings)
    split = _as_read_for(model, split)
    mine = range(accelerator.process_index, len(split), accelerator.num_processes)
    loader = DataLoader(
        Samples(split, mine), batch_size=None, num_workers=worker_count(settings), worker_init_fn=ignore_interrupts
    )
    counts = torch.zeros(classes + 3, classes, dtype=torch.int64)
    confusion, boundary = counts[:classes], counts[classes:]
    progress = progress_bar(loader, desc="evaluate", unit="image", leave=False, hidden=not accelerator.is_main_process)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for image, labels in progress:
            with accelerator.autocast():
                predicted = predict(model, image, **options, **views)
            if predicted.max() >= len(label_of):
                raise DataError(f"the model predicts {predicted.max()}, but the data set has {classes} classes.")
            predicted = torch.from_numpy(predicted)
            predicted = predicted if table is None else table[predicted.long()]
            for truth, guess in zip(labels.split(512), predicted.split(512)):  # rows, to save memory
                add_to_confusion(confusion, truth.long(), guess.long(), split.ignore_index)
            if boundary_iou:
                add_to_boundary(boundary, labels, predicted, split.ignore_index)
    finally:
        for module in training:
            module.training = True
    counts = accelerator.reduce(counts.to(accelerator.device), "sum").cpu()
    if not counts[:classes].any():
        raise DataError(
            f"The {len(split)} label files in {split.labels[0].parent} hold no pixel of any class, but only such as "
            f"are left out: give their value a class in classes.txt, or change --ignore_index."
        )
    return Scores(split.classes, counts[:classes], counts[classes:] if boundary_iou else None)


def some_predictions(
    model: nn.Module, split: Split, count: int, settings: DataSettings
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Predict some images of a split: image (H, W, 3), true labels and predicted labels (H, W) of each.

    Images are predicted as :func:`evaluate` does. Ignored pixels get the number of classes as their label,
    which pictures draw black.
    """
    samples, split, options = [], _as_read_for(model, split), _options(model, settings)
    for index in np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int):
        image, labels = split.open(int(index))
        labels = np.where(labels == split.ignore_index, len(split.classes), labels)
        samples.append((in_color(image), labels, predict(model, image, **options)))
    return samples
