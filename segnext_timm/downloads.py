"""Download published files, and check them."""

import hashlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import torch

from .errors import CheckpointError


def fetch(url: str, path: Path, sha256: str | None, read: Callable[[Path], object] | None = None) -> None:
    """Download a file to `path`, with a progress bar, unless it is there.

    The file is checked either way: against `sha256`, or its first digits, if that is known, else by `read`, which
    raises a CheckpointError if the file is damaged. A failed download leaves nothing.

    Raises:
        CheckpointError: If the download fails, or the file is not the published one.
    """
    existed = path.exists()
    try:
        if not existed:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
        if sha256 is not None:
            if not (found := file_sha256(path)).startswith(sha256):
                raise CheckpointError(f"{path}: its sha256 is {found}, but the published file's begins with {sha256}.")
        elif read is not None:
            read(path)
    except (CheckpointError, OSError, HTTPException) as error:
        if existed:
            raise CheckpointError(f"{error} Remove {path} to download it again.") from None
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{url}: the download failed ({error}). Nothing was kept; try again, or put the file at {path} yourself."
        ) from None


def file_sha256(path: Path) -> str:
    """Compute the sha256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
