"""The learning rate at each iteration, and when a run has learned enough."""

import math
from collections.abc import Sequence
from numbers import Real

from .hooks import load_function
from .recipe import SettingsError, TrainSettings


def lr_at(iteration: int, settings: TrainSettings) -> float:
    """Compute the encoder's learning rate at an iteration: linear warm-up from factor 1e-6, then the schedule."""
    if iteration < settings.warmup:
        share = iteration / max(settings.warmup - 1, 1)
        return settings.lr * (1e-6 + (1 - 1e-6) * share)
    left = max(1 - (iteration - settings.warmup) / max(settings.iterations - settings.warmup - 1, 1), 0.0)
    if settings.schedule == "poly":
        return settings.lr * left**settings.poly_power
    if settings.schedule == "cosine":
        return settings.lr * (1 - math.cos(math.pi * left)) / 2
    return settings.lr * load_function("schedule", settings.schedule)(iteration, settings.iterations)


def check_schedule(settings: TrainSettings) -> None:
    """Compute all factors of a user's own schedule before the run begins.

    Raises:
        SettingsError: If there is no such schedule, or its function returns no number, or one below 0.
    """
    name = settings.schedule
    if name in ("poly", "cosine"):
        return
    if ":" not in name:
        raise SettingsError(f"--schedule {name}: choose from poly, cosine, or name your own as module:function.")
    own = load_function("schedule", name)
    for iteration in range(settings.warmup, settings.iterations):
        factor = own(iteration, settings.iterations)
        if not (isinstance(factor, Real) and 0 <= factor < math.inf):
            got = f"--schedule {name} returned {factor} at iteration {iteration}"
            raise SettingsError(f"{got}: return a number, 0 or more.")


def stops_early(mious: Sequence[tuple[int, float]], patience: int | None) -> bool:
    """Whether none of the last `patience` evaluations has a better mIoU than all before them.

    Args:
        mious: Iteration and mIoU of each evaluation.
        patience: Number of evaluations; None never stops.
    """
    scores = [miou for _, miou in mious]
    return patience is not None and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])
