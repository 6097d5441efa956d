"""Write a file or a folder to a temporary place, then rename it, so that incomplete results never appear."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_when_complete(path: str | Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to, and move it to `path` when the block ends.

    If the block raises, `path` stays as it was. The parent folder is created.

    Args:
        path: Final place of the file or folder; replaced if it exists.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a new name each time, so that leftovers of a killed process do not matter
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = work / path.name, work / f"{path.name}.old"
    try:
        yield new
        if path.is_dir():  # folders, unlike files, cannot be replaced in one step
            path.rename(old)
        new.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def fill_when_complete(folder: str | Path, last: str | None = None) -> Iterator[Path]:
    """Yield an empty folder, and move the files written to it into `folder` when the block ends.

    If the block raises, `folder` stays as it was. Other files in `folder` are kept.

    Args:
        folder: Final place of the files; created if missing.
        last: Name of the file to move last: if it exists, so do the others.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # inside the folder, since that may be on another disk than its parent, which may not be writable
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new.") as work:
        yield Path(work)
        for file in sorted(Path(work).iterdir(), key=lambda file: file.name == last):
            file.chmod(0o644)  # some libraries write for the owner only
            file.replace(folder / file.name)
