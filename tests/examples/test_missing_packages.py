"""A script that lacks a package of an extra says so in one line; other errors keep their traceback."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from segmentation import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FILES = {
    path.relative_to(EXAMPLES).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for folder in (".", "segmentation", "benchmarking", "publishing", "figures", "integrations")
    for path in sorted((EXAMPLES / folder).glob("*.py"))
}
NO_SCRIPTS = ("segmentation/", "publishing/published.py")  # the latter is started by verify.py, and needs no extra
SCRIPTS = [name for name, tree in FILES.items() if "__main__" in ast.unparse(tree) and not name.startswith(NO_SCRIPTS)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def imports(tree):
    """Top-level modules that a file imports where it begins, in their order, without the standard library."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names += [node.module.split(".")[0]]
    return [name for name in names if name not in sys.stdlib_module_names]


def run(script, missing, *arguments):
    """Run a script where a module is not installed."""
    code = "import runpy, sys; from pathlib import Path; sys.modules[sys.argv[1]] = None; sys.argv = sys.argv[2:]; "
    code += "sys.path.insert(0, str(Path(sys.argv[0]).parent)); runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, missing, EXAMPLES / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_package_of_an_extra_is_told_in_one_line():
    done = run("draw_scenes.py", "tyro", "--help")
    assert done.returncode == 1
    assert done.stderr == 'draw_scenes.py: tyro is not installed: pip install "segnext-timm[train]"\n'


def test_another_missing_module_shows_its_traceback():
    done = run("draw_scenes.py", "segmentation.scenes", "--help")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_imports_first_what_tells_missing_packages(script):
    assert imports(FILES[script])[0] in ("segmentation", "generated")  # which imports it


def test_the_extras_install_the_packages_that_they_are_named_for():
    distributions = {name: names[0] for name, names in packages_distributions().items()}
    distributions |= {"mmcv": "mmcv-lite", "mmseg": "mmsegmentation"}
    for extra, modules in EXTRAS.items():
        declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"][extra]}
        assert {canonicalize_name(distributions.get(name, name)) for name in modules} <= declared


def test_every_package_that_the_scripts_begin_with_is_of_an_extra_or_comes_with_segnext_timm():
    own = {"segnext_timm", "generated", *(path.stem for path in EXAMPLES.iterdir())}
    own |= {"PIL", "segmentation_models_pytorch", *(Requirement(line).name for line in PROJECT["dependencies"])}
    known = own.union(*EXTRAS.values())
    assert {name: set(imports(tree)) - known for name, tree in FILES.items() if set(imports(tree)) - known} == {}
