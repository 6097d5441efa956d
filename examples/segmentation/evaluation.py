"""Evaluate a model on a split, with mmsegmentation's metrics."""

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from segnext_timm import predict, read_image, segment

from .data import Split, ignore_interrupts, worker_count
from .metrics import Scores, add_to_confusion
from .recipe import DataError, DataSettings


class Samples(Dataset):
    """Dataset of images (3, H, W), uint8, and labels (H, W), int64, at their own size."""

    def __init__(self, split: Split, indices: range) -> None:
        self.split = split
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = self.split.open(self.indices[i])
        return read_image(image), torch.from_numpy(labels.astype("int64"))


def quiet_unless_main(accelerator: Accelerator) -> dict[str, bool]:
    """Arguments of tqdm that show the first process's bar only, and that one unless TQDM_DISABLE is set."""
    return {} if accelerator.is_main_process else {"disable": True}


def end(accelerator: Accelerator) -> None:
    """End a run of one or more processes.

    The processes wait for each other first. A thread of torch frees what their last exchange sent, for which it needs
    Python's lock; a process that destroys its group meanwhile holds that lock, and waits for the thread forever.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()


def evaluate(model: torch.nn.Module, split: Split, settings: DataSettings, accelerator: Accelerator, **views) -> Scores:
    """Evaluate a model on a split, divided among the processes.

    Args:
        model: Maps normalized images (1, C, H, W) to logits of the same size.
        split: The data.
        settings: Image size, mode and windows: the `eval_` fields.
        accelerator: The processes.
        views: `scales` and `flip` of :func:`segnext_timm.segment`.

    Raises:
        DataError: If the model has another number of classes, or a file cannot be read.
    """
    classes = len(split.classes)
    mine = range(accelerator.process_index, len(split), accelerator.num_processes)
    loader = DataLoader(
        Samples(split, mine),
        batch_size=None,
        num_workers=worker_count(settings),
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_interrupts,
    )
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=accelerator.device)
    progress = tqdm(loader, desc="evaluate", unit="image", leave=False, **quiet_unless_main(accelerator))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
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
                raise DataError(
                    f"the model has {scores.shape[0]} classes, but the data set has {classes}: use its own data set."
                )
            labels = labels.to(accelerator.device, non_blocking=True)
            add_to_confusion(confusion, labels, scores.argmax(0), split.ignore_index)
    finally:
        for module in training:
            module.training = True
    return Scores(split.classes, accelerator.reduce(confusion, "sum").cpu())


def some_predictions(
    model: torch.nn.Module, split: Split, count: int, fit_in: tuple[int, int] | None = None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Predict some images of a split: image (H, W, 3), true labels and predicted labels (H, W) of each.

    Ignored pixels get the number of classes as their label, which pictures draw black.
    """
    samples = []
    for index in np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int):
        image, labels = split.open(int(index))
        labels = np.where(labels == split.ignore_index, len(split.classes), labels)
        samples.append((np.asarray(image), labels, predict(model, image, fit_in=fit_in)))
    return samples
