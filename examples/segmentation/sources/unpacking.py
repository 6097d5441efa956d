"""Index masks inside other files: they are written out as PNGs for a time, then read as masks."""

import atexit
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .reading import Output


@dataclass(kw_only=True)
class Unpacked(Output):
    """What all sources have in common that hold label maps."""

    classes: Path | None = None
    """Class list: '7 road' on each line, '0 -' for pixels to leave out; without it, the values are listed."""

    def unpack(self, work: Path) -> tuple[Path, Path]:
        """Write images and index masks to an empty folder.

        Returns:
            Folder of the images, and of the masks.

        Raises:
            UserError: If there is nothing to unpack.
        """
        raise NotImplementedError


def work_folder(target: Path) -> Path:
    """An empty folder in a data folder that is removed when the program ends."""
    work = target / ".unpacked"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    atexit.register(_remove, work)
    return work


def _remove(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    if work.parent.is_dir() and not any(work.parent.iterdir()):
        work.parent.rmdir()


def write_mask(values: Any, path: Path) -> None:
    """Write a label map (H, W) as a PNG of 8 or 16 bits.

    Raises:
        ValueError: If it is no map of whole numbers from 0 to 65535.
    """
    labels = np.asarray(values)
    if labels.ndim != 2 or labels.dtype.kind not in "buif":
        raise ValueError(f"its label map has the shape {labels.shape} and the type {labels.dtype}")
    if not ((labels >= 0) & (labels <= 65535) & (labels == np.rint(labels))).all():
        raise ValueError(f"its label map holds {labels.min():g} to {labels.max():g}, not whole numbers up to 65535")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16)).save(path)
