"""Every script of examples/integrations runs, with the frameworks that the extra `integrations` installs."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "integrations"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "generated.py")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_runs_and_says_what_it_shows(script, tmp_path):
    assert f"python examples/integrations/{script.name}" in script.read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    versions, *shown = done.stdout.splitlines()
    print(done.stdout)
    assert versions.startswith("torch ")
    assert shown
    assert not list(tmp_path.iterdir())  # nothing left behind


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_has_help_without_its_packages(script):
    lean = "import runpy, sys; sys.path.insert(0, str(sys.argv[1])); sys.argv = [sys.argv[2], '--help']; "
    lean += "sys.modules.update(torch=None); runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", lean, FOLDER, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python examples/integrations/{script.name}" in done.stdout


def test_a_missing_package_is_told_in_one_line():
    lean = "import runpy, sys; sys.path.insert(0, str(sys.argv[1])); sys.argv = sys.argv[2:]; "
    lean += "sys.modules.update(peft=None); runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", lean, FOLDER, FOLDER / "peft_lora.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("peft_lora.py: peft is not installed: pip install ")
    assert done.stderr.count("\n") == 1


def test_a_script_of_timms_runs_with_mscan(tmp_path):
    (tmp_path / "train.py").write_text(
        "import sys, timm, beside\nif __name__ == '__main__': print(timm.is_model(sys.argv[2]), sys.argv[1:])",
        encoding="utf-8",
    )
    (tmp_path / "beside.py").touch()
    command = [sys.executable, FOLDER / "timm_training.py", tmp_path / "train.py", "--model", "mscan_t"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "True ['--model', 'mscan_t']", done.stderr
    done = subprocess.run([*command[:2], tmp_path / "none.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "none.py: no such script" in done.stderr
