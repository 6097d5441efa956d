"""Write files to a temporary place, then move them, so that incomplete ones never have their final names."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to, and move the file to `path` if the block ends without an error.

    The parent folder is created if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as work:
        new = Path(work) / path.name
        yield new
        new.replace(path)


@contextmanager
def fill_when_complete(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, and move its files into `folder` if the block ends without an error.

    Other files in `folder` are kept; it is created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new.") as work:
        yield Path(work)
        for file in sorted(Path(work).iterdir()):
            file.replace(folder / file.name)
