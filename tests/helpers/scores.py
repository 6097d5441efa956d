"""The scores that predict takes labels from, of a whole image at once."""

import torch

from segnext_timm.models.segmenter import Segmenter
from segnext_timm.prediction import pipeline
from segnext_timm.prediction.pipeline import _plan, _tiles_of_scores
from segnext_timm.prediction.windows import Pixels


def shrink_tiles(monkeypatch, side, classes=3):
    """Let predict compute the scores of tiles of `side` pixels at once."""
    monkeypatch.setattr(pipeline, "_CPU_TILE_BYTES", 4 * classes * side**2)


@torch.inference_mode()
def segment(model, image, **options):
    """Scores (classes, H, W) of an image (C, H, W): logits of a single pass, else mean probabilities."""
    segmenter, size = Segmenter(model), (image.shape[-2], image.shape[-1])
    _, passes = _plan(segmenter, Pixels(image, next(model.parameters()).device), **options)
    ((_, _, scores),) = _tiles_of_scores(segmenter, passes, size)
    return scores.permute(2, 0, 1)
