"""Write a file or a folder to a temporary place, then rename it, so that incomplete results never appear."""

import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_when_complete(path: str | Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to, and move it to `path` when the block ends.

    If the block raises, `path` stays as it was. The parent folder is created. Files and folders get the modes of new
    ones.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a new name each time, so that leftovers of a killed process do not matter
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = work / path.name, work / f"{path.name}.old"
    try:
        yield new
        _give_usual_modes([new], work)
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

    If the block raises, `folder` stays as it was. It is created if missing, and its other files are kept. Files get the
    modes of new ones. The file named `last` is moved last: if it exists, so do the others.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # inside the folder, since that may be on another disk than its parent, which may not be writable
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new.") as work:
        yield Path(work)
        files = sorted(Path(work).iterdir(), key=lambda file: file.name == last)
        _give_usual_modes(files, Path(work))
        for file in files:
            file.replace(folder / file.name)


def _give_usual_modes(paths: Iterable[Path], work: Path) -> None:
    """Give files, and folders with all that is in them, the modes of new ones; some libraries write for one user."""
    # new ones in `work` tell the umask, which a process cannot read without changing it for all its threads
    with tempfile.TemporaryDirectory(dir=work) as name:
        file, folder = Path(name, "file"), Path(name, "folder")
        file.touch()
        folder.mkdir()
        modes = [stat.S_IMODE(new.stat().st_mode) for new in (file, folder)]
    for path in paths:
        for inner in (path, *path.rglob("*")):
            mode = modes[inner.is_dir()]
            if not inner.is_symlink() and stat.S_IMODE(inner.stat().st_mode) != mode:
                inner.chmod(mode)
