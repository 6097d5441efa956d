"""Write files to a temporary place, then move them, so that incomplete ones never have their final names.

Whether a folder can be written to, and has the space that a training needs, is checked before the training.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .recipe import SettingsError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, or the largest file it takes


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to, and move the file to `path` if the block ends without an error.

    The parent folder is created if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as work, _full_disk_named(path):
        new = Path(work) / path.name
        yield new
        new.replace(path)


@contextmanager
def fill_when_complete(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, and move its files into `folder` if the block ends without an error.

    Other files in `folder` are kept; it is created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new.") as work, _full_disk_named(folder):
        yield Path(work)
        for file in sorted(Path(work).iterdir()):
            file.replace(folder / file.name)


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """Raise an OSError that says what to do if the disk is full, whatever the library that writes makes of it."""
    try:
        yield
    except Exception as error:
        # torch.save raises an error of its own after that of a file that Python opened; safetensors writes the number
        cause = error if isinstance(error, OSError) else error.__context__
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = cause.errno if isinstance(cause, OSError) else int(found[1]) if found else None
        if number not in _FULL:
            raise
        raise OSError(
            f"{path} cannot be written: {os.strerror(number)}. What it held before is kept: free some space, and give "
            f"the same command again."
        ) from None


def _lowest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_writable(option: str, folder: Path) -> None:
    """Check that a folder can be written to, or created, without creating it.

    Args:
        option: Name of the option that gives it, for messages.
        folder: The folder.

    Raises:
        SettingsError: If it is a file, or below one, or nothing can be written there.
    """
    lowest = _lowest_existing(folder)
    if not lowest.is_dir():
        raise SettingsError(f"--{option} {folder}: {lowest} is a file, not a folder: choose another --{option}.")
    try:
        with tempfile.TemporaryFile(dir=lowest):
            pass
    except OSError as error:
        reason = f"{lowest} cannot be written to ({os.strerror(error.errno)})"
        raise SettingsError(f"--{option} {folder}: {reason}: choose another --{option}.") from None


def check_space(out: Path, model: torch.nn.Module, with_average: bool) -> None:
    """Check that the disk has the space that a training's models and checkpoints need.

    These are `best` and `last`, and a new checkpoint beside the one that it replaces. A checkpoint holds the weights,
    AdamW's two moments of those that are trained, and the moving average. Files that a resumed run replaces count as
    free space.

    Args:
        out: Folder of the run.
        model: The model.
        with_average: Whether the checkpoint holds a moving average of the weights.

    Raises:
        SettingsError: If there is too little.
    """
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    moments = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    needed = 2 * weights + 2 * (weights * (1 + with_average) + moments)
    written = [out / "checkpoint.pt", *out.glob("best/*"), *out.glob("last/*")]
    needed -= sum(file.stat().st_size for file in written if file.is_file())
    free = shutil.disk_usage(_lowest_existing(out)).free
    if needed > free:
        raise SettingsError(
            f"--out {out}: models and checkpoints of this training need {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB "
            f"are free there: free some space, or choose another --out."
        )
