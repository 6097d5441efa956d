"""Write files or a folder to a temporary place, then rename them, so that incomplete results never appear."""

import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_when_complete(path: str | Path) -> Iterator[Path]:
    """Yield a path to write a file or a new folder to, and move it to `path` when the block ends.

    See :func:`fill_when_complete`.
    """
    path = Path(path)
    with fill_when_complete(path.parent) as work:
        yield work / path.name


@contextmanager
def fill_when_complete(folder: str | Path, last: str | None = None) -> Iterator[Path]:
    """Yield an empty folder, and move the files written to it into `folder` when the block ends.

    If the block raises, `folder` stays as it was. It is created if missing, and its other files are kept. Files get the
    modes of new ones. The file named `last` is moved last: if it exists, so do the others.
    """
    folder = Path(folder)
    # inside the folder, since that may be on another disk than its parent, which may not be writable; with a new name
    # each time, so that leftovers of a killed process do not matter
    work = folder / f".new.{uuid.uuid4().hex}"
    work.mkdir(parents=True)
    try:
        yield work
        mode = stat.S_IMODE(work.stat().st_mode)  # what the umask gives: some libraries write for one user
        for path in work.rglob("*"):
            wanted = mode if path.is_dir() else mode & 0o666
            if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != wanted:
                path.chmod(wanted)
        for path in sorted(work.iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
