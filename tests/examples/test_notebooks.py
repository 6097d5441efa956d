"""The notebooks run from top to bottom, and what is stored in them is complete, small and says nothing of a machine."""

import json
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def texts(output):
    """Texts of an output; pictures are left out, because their base64 may contain any word."""
    data = {mime: value for mime, value in output.get("data", {}).items() if not mime.startswith("image/")}
    for value in (output.get("text", ""), *data.values()):
        yield value if isinstance(value, str) else "".join(value)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Name of a Jupyter kernel that runs this Python, without the user's settings."""
    folder = tmp_path / "jupyter" / "kernels" / "this_python"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "this Python", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return folder.name


@pytest.mark.slow
def test_the_notebook_runs(path, kernel, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.delenv("SEGNEXT_MODEL", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    (work / "examples").symlink_to(EXAMPLES)  # the notebook finds it as in a clone, and writes beside it
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # trained for less long
        for usual, short in (
            ('"200"', '"40"'),
            ("240", "60"),
            ("iteration 120:", "iteration 30:"),
            ('_every", 60', '_every", 30'),
        ):
            cell.source = cell.source.replace(usual, short)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name=kernel, resources={"metadata": {"path": str(work)}}
    )
    client.execute()  # raises an exception if a cell does
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("equal predictions: True" in text for output in outputs for text in texts(output))
    assert {file.name for file in work.iterdir()} == {"examples", "runs"}


def test_every_cell_was_run_in_order_without_an_error(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for output in (output for cell in cells for output in cell["outputs"]):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
        assert not any("Error" in text for text in texts(output))


def test_the_outputs_name_no_folder_of_a_machine(path):
    for text in (text for cell in code_cells(path) for output in cell["outputs"] for text in texts(output)):
        assert not [folder for folder in ("/home", "/root", "/tmp", "/work", "/Users") if folder in text], text


def test_the_file_is_small_and_holds_pictures(path):
    assert path.stat().st_size < 700_000
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 3


def test_the_metadata_hold_neither_times_nor_a_users_kernel(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert len(content["cells"]) <= 25
    assert not any(cell["metadata"] for cell in content["cells"])
