"""The rules of the house: imports go down only and form no circle; modules stay short."""

import ast
from pathlib import Path

import segnext_timm

PACKAGE = Path(segnext_timm.__file__).parent
EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = (*PACKAGE.rglob("*.py"), *EXAMPLES.rglob("*.py"))
MAX_MODULE_LINES = 500  # except mscan.py, which is one file by timm's custom
# From the bottom up; a name of a folder stands for its modules that are not listed themselves
FLOORS = {
    "what stands alone": (
        *("_atomic", "downloads", "errors", "label_sets", "variants"),
        *("models.resizing", "models.state_dicts"),
    ),
    "kernels": ("kernels",),
    "models": ("models",),
    "checkpoints": ("checkpoints",),
    "prediction": ("checkpoints.lookup", "checkpoints.loading", "prediction"),
    "sharing": ("checkpoints.conversion", "exporting", "hub", "prediction.files"),
    "command and face": ("", "__main__", "_cli_info", "cli"),
}
UPWARD = {("models.hub_mixin", f"hub.{module}") for module in ("cards", "push")}  # smp asks a model for its card


def floor_of(module):
    for name in (module, module.rpartition(".")[0]):
        for height, names in enumerate(FLOORS.values()):
            if name in names:
                return height
    raise AssertionError(f"{module} has no floor")


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


def arrows():
    """Imports of a module by another, without the face, which names everything."""
    return {(module, other) for module, imported in imports().items() if module for other in imported if other}


def test_imports_go_down_only():
    assert {arrow for arrow in arrows() if floor_of(arrow[1]) > floor_of(arrow[0])} == UPWARD


def test_the_imports_that_go_up_are_inside_functions():
    for module, other in UPWARD:
        tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        at_top = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
        assert not any(other.split(".")[0] in (node.module or "").split(".") for node in at_top)


def test_models_import_no_other_room_than_kernels():
    rooms = {module.split(".")[0] for module in imports() if "." in module}
    reached = {o.split(".")[0] for m, o in arrows() - UPWARD if m.split(".")[0] == "models"}
    assert reached & rooms == {"models", "kernels"}
    expected = {"downloads", "errors", "kernels.strips", "models.fusion", "models.state_dicts", "variants"}
    assert {o for m, o in arrows() if m == "models.mscan"} == expected


def test_only_models_import_kernels():
    rooms = {module.split(".")[0] for module, other in arrows() if other.split(".")[0] == "kernels"}
    assert rooms == {"models", "kernels"}


def test_no_import_forms_a_circle():
    found = arrows() - UPWARD
    graph = {module: {other for one, other in found if one == module} for module in imports()}
    while graph:
        free = [module for module, imported in graph.items() if not imported & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for module in free:
            del graph[module]


def test_modules_are_short():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES if path.name != "mscan.py"}
    assert [path for path in FILES if lines.get(path, 0) > MAX_MODULE_LINES] == []


def main():
    """Print the floors from the top down: modules, lines, and arrows down, level and up."""
    found = arrows()
    heights = {module: floor_of(module) for module in imports()}
    paths = {module: PACKAGE / f"{module.replace('.', '/') or '__init__'}.py" for module in heights}
    print("| floor | modules | lines | arrows down | level | up |\n|---|---|---|---|---|---|")
    for height, name in reversed(list(enumerate(FLOORS))):
        modules = [module for module in heights if heights[module] == height]
        lines = sum(len(paths[m].read_text(encoding="utf-8").splitlines()) for m in modules if paths[m].is_file())
        steps = [heights[other] - height for module, other in found if heights[module] == height]
        counts = (sum(step < 0 for step in steps), steps.count(0), sum(step > 0 for step in steps))
        print(f"| {name} | {len(modules)} | {lines} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
