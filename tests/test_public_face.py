"""What `import segnext_timm` offers, and when it loads."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import segnext_timm


def test_public_names_live_where_type_checkers_are_told():
    tree = ast.parse(Path(segnext_timm.__file__).read_text(encoding="utf-8"))
    told = {
        name.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for name in node.names
    }
    assert told == segnext_timm._HOMES
    assert sorted(segnext_timm.__all__) == sorted([*told, "__version__"])
    for name, home in told.items():
        module = importlib.import_module(f"segnext_timm.{home}")
        assert getattr(segnext_timm, name) is getattr(module, name)


def test_no_module_bears_the_name_of_a_public_one():
    modules = {path.stem for path in Path(segnext_timm.__file__).parent.glob("*.py")}
    assert not modules & set(segnext_timm.__all__)
    with pytest.raises(AttributeError, match="module 'segnext_timm' has no attribute 'segnext_x'"):
        segnext_timm.segnext_x  # noqa: B018


@pytest.mark.parametrize(
    "use", ["segnext_timm.checkpoints.loading", "from segnext_timm.checkpoints.loading import load_segmenter"]
)
def test_the_first_use_in_the_command_registers_every_model(use):
    code = f"""
import sys
sys.argv = ["/usr/bin/segnext-timm"]
import segnext_timm
assert "torch" not in sys.modules
assert "SegNeXt" in dir(segnext_timm)
{use}
import timm, segmentation_models_pytorch as smp
assert timm.is_model("mscan_t")
assert smp.MODEL_ARCHITECTURES_MAPPING["segnext"] is segnext_timm.SegNeXt
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/usr/bin/segnext-timm", "models"], ["python", "/usr/bin/segnext-timm", "models"], True),
        (["C:\\Scripts\\segnext-timm.exe"], ["python", "C:\\Scripts\\segnext-timm.exe"], True),
        (["-m", "models"], ["python", "-I", "-m", "segnext_timm", "models"], True),
        (["-m"], ["python", "-m", "segnext_timm.cli"], True),
        (["-m", "segnext_timm"], ["python", "-m", "program", "segnext_timm"], False),
        (["program.py", "segnext-timm"], ["python", "program.py", "segnext-timm"], False),
        (["-c"], ["python", "-c", "import segnext_timm"], False),
        ([""], ["python"], False),
    ],
)
def test_only_the_command_waits_with_registration(monkeypatch, argv, orig_argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert segnext_timm._is_the_command() is expected


def test_the_import_registers_every_model_in_other_programs(tmp_path):
    code = "import sys, segnext_timm; assert {'timm', 'segmentation_models_pytorch'} <= set(sys.modules)"
    (tmp_path / "program.py").write_text(code, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "program", "segnext_timm"], cwd=tmp_path, check=True)
