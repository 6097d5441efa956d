"""What `import segnext_timm` offers, and when it loads."""

import ast
import importlib
from pathlib import Path

import segnext_timm

TREE = ast.parse(Path(segnext_timm.__file__).read_text(encoding="utf-8"))


def test_public_names_are_imported_where_type_checkers_look():
    (guarded,) = [node for node in TREE.body if isinstance(node, ast.If)]
    command = "Path(*sys.argv[:1]).name not in ('segnext-timm', 'segnext-timm.exe')"
    assert ast.unparse(guarded.test) == f"TYPE_CHECKING or {command}"
    imported = {name.name: node.module for node in guarded.body for name in node.names}
    assert sorted(segnext_timm.__all__) == sorted([*imported, "__version__"])
    for name, home in imported.items():
        module = importlib.import_module(f"segnext_timm.{home}")
        assert getattr(segnext_timm, name) is getattr(module, name)


def test_no_module_bears_the_name_of_a_public_one():
    modules = {path.stem for path in Path(segnext_timm.__file__).parent.glob("*.py")}
    assert not modules & set(segnext_timm.__all__)
