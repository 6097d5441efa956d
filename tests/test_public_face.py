"""What `import segnext_timm` offers, and when it loads."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

import segnext_timm

TREE = ast.parse(Path(segnext_timm.__file__).read_text(encoding="utf-8"))


def test_public_names_are_imported_where_type_checkers_look():
    (guarded,) = [node for node in TREE.body if isinstance(node, ast.If)]
    assert ast.unparse(guarded.test) == "TYPE_CHECKING or not _is_the_command()"
    imported = {name.name: node.module for node in guarded.body for name in node.names}
    assert sorted(segnext_timm.__all__) == sorted([*imported, "__version__"])
    for name, home in imported.items():
        module = importlib.import_module(f"segnext_timm.{home}")
        assert getattr(segnext_timm, name) is getattr(module, name)


def test_no_module_bears_the_name_of_a_public_one():
    modules = {path.stem for path in Path(segnext_timm.__file__).parent.glob("*.py")}
    assert not modules & set(segnext_timm.__all__)


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/usr/bin/segnext-timm", "models"], ["python", "/usr/bin/segnext-timm", "models"], True),
        (["segnext-timm.exe"], ["python", "segnext-timm.exe"], True),
        (["-m", "models"], ["python", "-I", "-m", "segnext_timm", "models"], True),
        (["-m"], ["python", "-m", "segnext_timm.cli"], True),
        (["-m", "segnext_timm"], ["python", "-m", "program", "segnext_timm"], False),
        (["program.py", "segnext-timm"], ["python", "program.py", "segnext-timm"], False),
        (["-c"], ["python", "-c", "import segnext_timm"], False),
        ([""], ["python"], False),
        ([], ["program-that-embeds-python"], False),
    ],
)
def test_only_the_command_leaves_the_models_out(monkeypatch, argv, orig_argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert segnext_timm._is_the_command() is expected
