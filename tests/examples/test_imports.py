"""Scripts that people copy use what segnext_timm promises, not its inner modules."""

import ast
from pathlib import Path

import pytest

import segnext_timm

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {path.relative_to(EXAMPLES).as_posix(): path for path in sorted(EXAMPLES.rglob("*.py"))}
OURS = ("benchmarking/", "figures/", "publishing/")  # scripts of this project, which `segnext-timm examples` leaves out
# those of `prediction` are for files of any bands and values, of `exporting` and `checkpoints` for converters
PUBLIC_MODULES = {"errors", "label_sets", "variants", "models.mscan", "prediction.images", "prediction.rasters"}
PUBLIC_MODULES |= {"exporting.exporters", "exporting.label_graph", "checkpoints.dialects"}
# what no public name gives: names and colors of labels, of binary models and of those that state none, too; polygons
EXCEPTIONS = {
    "tools/cvat_function.py": ["models.model_info", "prediction.polygons"],
    "tools/label_studio_backend.py": ["models.model_info", "prediction.polygons"],
    "tools/serve_litserve.py": ["models.model_info"],
}


def private_imports(source):
    """Names that a script imports from the package beyond its public ones."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("segnext_timm.")]
        elif isinstance(node, ast.ImportFrom) and node.module == "segnext_timm":
            found += [alias.name for alias in node.names if alias.name not in segnext_timm.__all__]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("segnext_timm."):
            module = node.module.removeprefix("segnext_timm.")
            found += [module] if module not in PUBLIC_MODULES else []
            found += [alias.name for alias in node.names if alias.name.startswith("_")]
    return found


@pytest.mark.parametrize("script", [name for name in SCRIPTS if not name.startswith(OURS)])
def test_examples_import_public_names_only(script):
    assert private_imports(SCRIPTS[script].read_text(encoding="utf-8")) == EXCEPTIONS.get(script, [])


@pytest.mark.parametrize(
    "line",
    [
        "from segnext_timm._atomic import replace_when_complete",
        "from segnext_timm.prediction.pipeline import predict",
        "from segnext_timm import hub",
        "from segnext_timm.models.mscan import _create_mscan",
        "import segnext_timm.checkpoints.lookup",
    ],
)
def test_private_imports_are_found(line):
    assert len(private_imports(line)) == 1
