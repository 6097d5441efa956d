"""The rules of the house: imports go down only and form no circle; modules and functions stay short."""

import ast
from pathlib import Path

import pytest

import segnext_timm

PACKAGE = Path(segnext_timm.__file__).parent
EXAMPLES = Path(__file__).parents[1] / "examples"
MAX_MODULE_LINES = 500  # except mscan.py, which is one file by timm's custom
MAX_FUNCTION_LINES = 60  # without its docstring
# From the bottom up; a name of a folder stands for its modules that are not listed themselves. Cards are text made of
# dictionaries and stand alone: smp asks the model for its own.
LAYERS = (
    ("_atomic", "data_sets", "errors", "hub.card_sections", "hub.cards", "label_sets", "variants"),
    ("kernels", "checkpoints.folder", "checkpoints.formats", "checkpoints.dialects", "checkpoints.unpickler", "models"),
    ("checkpoints.hub", "checkpoints.catalog", "checkpoints.loading", "prediction"),
    (
        "checkpoints.conversion",
        "checkpoints.reference",
        "checkpoints.verification",
        "deployment",
        "hub",
        "prediction.files",
    ),
    ("", "__main__", "_cli_info", "_cli_types", "cli"),
)


def layer_of(module):
    for name in (module, module.rpartition(".")[0]):
        for height, names in enumerate(LAYERS):
            if name in names:
                return height
    raise AssertionError(f"{module} has no layer")


def imports():
    """Modules of the package that each module imports, also inside functions."""
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        modules[".".join(parts).removesuffix("__init__").rstrip(".")] = path
    found = {}
    for module, path in modules.items():
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [part for part in package[: len(package) - node.level + 1] if part]
                base += node.module.split(".") if node.module else []
                names = {".".join([*base, alias.name]) for alias in node.names}
                found[module] |= {name if name in modules else ".".join(base) for name in names}
    return found


def test_imports_go_down_only():
    for module, imported in imports().items():
        if module == "":
            continue  # the face names everything
        for other in imported:
            assert layer_of(other) <= layer_of(module), f"{module} imports {other}, which lies above"


def test_no_import_forms_a_circle():
    graph = {module: imported - {""} for module, imported in imports().items() if module}
    while graph:
        free = [module for module, imported in graph.items() if not imported & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for module in free:
            del graph[module]


@pytest.mark.parametrize("path", [*PACKAGE.rglob("*.py"), *EXAMPLES.rglob("*.py")], ids=lambda path: path.stem)
def test_modules_and_functions_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_MODULE_LINES or path.name == "mscan.py"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            lines = node.end_lineno - node.lineno + 1
            lines -= docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            assert lines < MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"
