"""Download a checkpoint into the cache, and check it."""

import hashlib
import http.client
import logging
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
import torch.hub

from .._atomic import replace_when_complete
from ..errors import CheckpointError
from .formats import check_whole

_logger = logging.getLogger(__name__)


def fetch(
    url: str, cache_dir: str | Path | None = None, sha256: str | None = None, file_name: str | None = None
) -> Path:
    """Download a file into torch.hub's cache, with a progress bar, unless the cache has it.

    The file is checked after the download and whenever it is used from the cache: against `sha256` if that is known,
    else that it is complete and readable. Without a known sha256, the download must also have the length that the
    server states, and its sha256 is logged at INFO. The file gets its name only when it is complete; a failed download
    leaves nothing.

    Args:
        url: Address of the file.
        cache_dir: Folder to use instead of `$TORCH_HOME/hub/checkpoints`.
        sha256: The file's sha256 in hexadecimal digits, or its first digits; None if unknown.
        file_name: Name of the file in the cache. Default: the last part of the URL.

    Returns:
        Path of the file in the cache.

    Raises:
        CheckpointError: If the download or a check fails.
    """
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / (file_name or Path(urlparse(url).path).name)
    if path.exists():
        try:
            _check_file(path, sha256)
        except CheckpointError as error:
            raise CheckpointError(f"{error} Remove {path} to download it again.") from None
        return path
    arriving = path
    try:
        with replace_when_complete(path) as arriving:
            torch.hub.download_url_to_file(url, str(arriving))
            if sha256 is None:
                _check_length(arriving, url)
            _check_file(arriving, sha256)
            if sha256 is None:
                _logger.info(f"{url}: no published sha256 is known; the file's is {file_sha256(arriving)}.")
    except (CheckpointError, OSError, http.client.HTTPException) as error:
        reason = str(error).replace(str(arriving), path.name)
        raise CheckpointError(
            f"{url}: the download failed ({reason}). Nothing was kept; try again, or put the file at {path} yourself."
        ) from None
    return path


def file_sha256(path: Path) -> str:
    """Compute the sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_length(path: Path, url: str) -> None:
    """Raise a CheckpointError if a download is not as long as its server states; torch.hub does not compare them."""
    try:
        with urlopen(Request(url, method="HEAD", headers={"User-Agent": "torch.hub"})) as answer:
            length = answer.headers.get("Content-Length")
    except OSError:  # a server that does not answer HEAD
        return
    if length is not None and int(length) != path.stat().st_size:
        raise CheckpointError(f"{path.stat().st_size} bytes arrived of {length}")


def _check_file(path: Path, sha256: str | None) -> None:
    """Raise a CheckpointError unless a file has its known sha256, or, without one, can be read to its end."""
    if sha256 is not None:
        found = file_sha256(path)
        if not found.startswith(sha256):
            begins = "is" if len(sha256) == 64 else "begins with"
            raise CheckpointError(f"{path}: its sha256 is {found}, but that of the published file {begins} {sha256}.")
        return
    check_whole(path)
