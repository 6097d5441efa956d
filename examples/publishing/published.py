"""A published checkpoint: what is known of its file, the model in it, and what that predicts.

    python examples/publishing/published.py segnext_b.mmseg_ade20k FILE    # prints a digest of the prediction

`verify.py` starts this script to compare the predictions of two processes.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch

from segnext_timm import SegNeXt, create_segmenter, predict
from segnext_timm.checkpoints.catalog import SegmenterCfg, find_backbone, get_segmenter_cfg, published_name
from segnext_timm.checkpoints.loading import load_published
from segnext_timm.models.mscan import PUBLISHED_SHA256


@dataclass(frozen=True)
class Published:
    """A published checkpoint of a backbone or a segmenter.

    Attributes:
        name: Name that creates the model.
        url: Address of the file.
        file: Name of the file in torch.hub's cache.
        sha256: Known sha256, or its first digits; None if unknown.
        size: Known size in bytes; None if unknown.
        cfg: The segmenter; None for a backbone.
    """

    name: str
    url: str
    file: str
    sha256: str | None
    size: int | None
    cfg: SegmenterCfg | None = None

    @property
    def path(self) -> Path:
        """Path of the file in torch.hub's cache."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file


def get_published(name: str) -> Published:
    """Look up a published checkpoint by its name, or the part before the dot.

    Raises:
        ValueError: If no checkpoint has that name. The message lists the nearest names.
    """
    name = published_name(name)
    if find_backbone(name) is not None:
        url = timm.get_pretrained_cfg(name).url
        file = url.rpartition("/")[2]
        return Published(name, url, file, PUBLISHED_SHA256[file], None)
    cfg = get_segmenter_cfg(name)
    return Published(name, cfg.url, cfg.cached_name, cfg.sha256, cfg.size, cfg)


def load_model(published: Published, path: Path) -> torch.nn.Module:
    """Create a published model from a file, without a download; in evaluation mode.

    Raises:
        CheckpointError: If names or shapes of the file's tensors are not those of the model.
    """
    if published.cfg is None:
        overlay = {"file": str(path)}
        return timm.create_model(published.name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    model = create_segmenter(published.name)
    load_published(model, published.cfg, path)
    return model.eval()


def draw_picture(height: int = 192, width: int = 256) -> np.ndarray:
    """Draw a test picture (height, width, 3), uint8, the same everywhere: sky, ground, a house and fine stripes."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.empty((height, width, 3), np.uint8)
    picture[...] = np.stack([90 + rows % 64, 140 + columns % 48, 200 - rows % 32], -1)
    picture[rows > height * 3 // 5] = (90, 120, 60)
    house = (abs(columns - width // 3) < width // 6) & (rows > height // 4) & (rows < height * 4 // 5)
    picture[house] = (170, 90, 70)
    picture[house & (rows % 24 < 10) & (columns % 20 < 9)] = (40, 50, 80)
    picture[(columns > width * 2 // 3) & ((rows + columns) % 6 < 3)] = (60, 60, 65)
    return picture


def normalized_picture() -> torch.Tensor:
    """The test picture (1, 3, H, W), with values from -1 to 1."""
    return torch.from_numpy(draw_picture()).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.inference_mode()
def prediction_digest(model: torch.nn.Module) -> str:
    """Compute a digest of what a model predicts for the test picture: labels, or the logits of a backbone."""
    if isinstance(model, SegNeXt):
        result = predict(model, draw_picture(), fit_in=None)
    else:
        result = model(normalized_picture()).numpy()
    return hashlib.sha256(result.tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    print(prediction_digest(load_model(get_published(sys.argv[1]), Path(sys.argv[2]))))
