"""Label maps in files of MATLAB."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated as Named
from typing import Any

import numpy as np
import tyro

from ..progress import progress_bar
from ..recipe import UserError
from .reading import FAULTS, Images, Target
from .unpacking import Unpacked, write_mask

# usual names of label maps, in any case: LabelMap in Pascal-Context, Segmentation in SBD, S in SIFT Flow
_NAMES = ("labelmap", "labels", "label", "groundtruth", "segmentation", "seg", "gt", "mask", "s")


@dataclass
class Mat(Unpacked):
    """MATLAB files, each with the label map of an image. Needs scipy."""

    images: Images
    """Folder of the images."""
    maps: tyro.conf.Positional[Named[Path, tyro.conf.arg(metavar="MATS")]]
    """Folder of the .mat files; their names are those of the images, or differ by one affix."""
    target: Target
    """Data folder to make."""
    field: str | None = None
    """The label map in a file: 'LabelMap', 'GTcls.Segmentation', or 'groundTruth.1.labels' in the first cell; else the
    only one, or one of a usual name."""

    def unpack(self, work: Path) -> tuple[Path, Path]:
        files = sorted(self.maps.rglob("*.mat")) if self.maps.is_dir() else []
        if not files:
            raise UserError(f"{self.maps} holds no .mat files.")
        faults = []
        for path in progress_bar(files, desc="unpack", unit="file", leave=False):
            try:
                write_mask(_label_map(path, self.field), work / path.relative_to(self.maps).with_suffix(".png"))
            except FAULTS as error:
                faults.append(f"{path.name}: {error}")
        if len(faults) == len(files):
            raise UserError(f"No label map can be read, the first: {faults[0]}.")
        for line in faults[:10]:
            print(line)
        if faults:
            print(f"{len(faults)} of {len(files)} files cannot be read.")
        return self.images, work


def _label_map(path: Path, field: str | None) -> np.ndarray:
    """The label map of a file.

    Raises:
        UserError: If scipy is missing.
        ValueError: If the file cannot be read, or does not tell which map it is.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError('files of MATLAB need scipy: pip install "scipy>=1.11"') from None
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)
    except NotImplementedError:
        raise ValueError("it is of MATLAB 7.3: save it by save(name, variables, '-v7')") from None
    except Exception as error:  # scipy raises anything on damaged files
        raise ValueError(f"it cannot be read: {error}") from None
    maps = dict(_maps({key: value for key, value in content.items() if key[:2] != "__"}, ""))
    listed = ", ".join(f"{name} ({values.shape[0]}×{values.shape[1]})" for name, values in list(maps.items())[:8])
    if field is not None:
        if field not in maps:
            raise ValueError(f"it has no label map {field!r}; it has {listed or 'none'}")
        return maps[field]
    if len(maps) == 1:
        return next(iter(maps.values()))
    for usual in _NAMES:
        found = [name for name in maps if name.split(".")[-1].lower() == usual]
        if len(found) == 1:
            return maps[found[0]]
    raise ValueError(f"it has several label maps, give one by --field: {listed}" if maps else "it has no label map")


def _maps(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays of two dimensions in structures and cells, with the names of their places."""
    if isinstance(value, dict):
        parts = value.items()
    elif hasattr(value, "_fieldnames"):
        parts = [(field, getattr(value, field)) for field in value._fieldnames]
    elif isinstance(value, np.ndarray) and value.dtype == object:
        parts = [(str(number), part) for number, part in enumerate(value.ravel(), 1)]
    else:
        if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in "buif":
            yield name, value
        return
    for part, inner in parts:
        yield from _maps(inner, f"{name}.{part}" if name else part)
