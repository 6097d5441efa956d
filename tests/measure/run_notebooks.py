"""Run the notebooks of `examples/notebooks` again and store their outputs, without times and folders of this machine.

    python tests/measure/run_notebooks.py                  # both
    python tests/measure/run_notebooks.py your_own_data

Needs the extra `docs`. What the notebooks write goes to a temporary folder.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = EXAMPLES / "notebooks"


def run(path: Path) -> None:
    """Run a notebook from top to bottom and write it back."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "examples").symlink_to(EXAMPLES)  # the notebook finds it as in a clone, and writes beside it
        options = {"coalesce_streams": True, "record_timing": False, "resources": {"metadata": {"path": work}}}
        nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", **options).execute()
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    os.environ.pop("SEGNEXT_MODEL", None)  # the notebooks would use that model
    for name in sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        run(NOTEBOOKS / f"{name}.ipynb")
        print(f"Ran {name}.")
