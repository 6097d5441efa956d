"""What an index and an installer are told: dependencies, long description, and what the archives hold."""

import ast
import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# of what is not installed everywhere; any other name is that of its distribution
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "mmseg": "mmsegmentation", **{
    name: names[0] for name, names in packages_distributions().items()
}}  # fmt: skip


def imported(folder):
    """Distributions that the scripts of a folder import, each with the files that do."""
    files = sorted(folder.rglob("*.py"))
    folders = (path.name for path in folder.iterdir() if path.is_dir())
    own = {"segnext_timm", *sys.stdlib_module_names, *folders, *(file.stem for file in files)}
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - own:
                place = file.relative_to(folder).as_posix()
                found.setdefault(canonicalize_name(DISTRIBUTIONS.get(name, name)), set()).add(place)
    return found


def declared(*extras):
    """Distributions that the package depends on, and those of extras."""
    lines = [*PROJECT["dependencies"], *(line for e in extras for line in PROJECT["optional-dependencies"][e])]
    names = set()
    for requirement in map(Requirement, lines):
        names |= declared(*requirement.extras) if requirement.name == "segnext-timm" else set()
        names.add(canonicalize_name(requirement.name))
    return names


def test_the_package_declares_what_it_imports():
    # runtimes are imported only where models are exported, rasterio where rasters are read, av where videos are,
    # mmsegmentation only to compare with it, transformers in files that are copied for it; triton comes with torch
    known = declared("export", "geo", "video", "litert", "ncnn", "coreml", "benchmark") | {"transformers", "triton"}
    assert {name: files for name, files in imported(ROOT / "segnext_timm").items() if name not in known} == {}


def test_the_package_imports_what_it_declares():
    assert declared() - set(imported(ROOT / "segnext_timm")) == set()


def test_the_extras_declare_what_the_examples_import():
    known = declared(
        "train", "export", "integrations", "app", "benchmark", "litert", "ncnn", "coreml", "labels", "geo", "serve"
    )
    known |= {"cvat-sdk", "label-studio-ml", "label-studio-sdk"}  # tools that run a script in their own environment
    assert {name: files for name, files in imported(ROOT / "examples").items() if name not in known} == {}


def test_scripts_that_train_need_the_train_extra_only():
    scripts = ("evaluate.py", "quickstart.py", "segmentation/", "show_data.py", "train.py")
    for name, files in imported(ROOT / "examples").items():
        if name in declared("labels") - declared("train"):  # imported where a file of that kind is read
            assert all(file.startswith("segmentation/sources/") for file in files)
            continue
        assert name in declared("train") or not any(file.startswith(scripts) for file in files)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Folder of the source distribution and the wheel, built without a network."""
    pytest.importorskip("hatchling")
    pytest.importorskip("hatch_fancy_pypi_readme")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return folder


@pytest.fixture(scope="module")
def metadata(archives):
    with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(wheel.read(name))


def test_the_long_description_has_no_relative_link_or_picture(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload(decode=True).decode()
    code = re.compile(r"```.*?```", re.DOTALL)
    links = re.findall(r"\]\(([^)]*)\)", code.sub("", text))
    assert [link for link in links if not link.startswith("https://")] == []
    assert any("arxiv.org" in link for link in links)
    # all else is the readme's: its headings and code
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert code.findall(text) == code.findall(readme)
    assert re.findall(r"^#+ .*", text, re.M) == re.findall(r"^#+ .*", readme, re.M)


@pytest.fixture(scope="module")
def unpacked(archives, tmp_path_factory):
    """Folder of the wheel's files, as an installer unpacks them."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def test_the_wheel_copies_its_examples_which_run(unpacked, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}

    def run(*command):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("-m", "segnext_timm", "examples", "examples")
    assert "python examples/train.py examples/recipes/folder.yaml --data_root data/streets" in said
    source, copied = ROOT / "examples", tmp_path / "examples"
    for name in (
        "train.py",
        "recipes/folder.yaml",
        "your_own_data.md",
        "segmentation/sources/coco.py",
        "images/bases.png",
    ):
        assert (copied / name).read_bytes() == (source / name).read_bytes()
    run("examples/draw_scenes.py", "data/streets", "--train", "2", "--val", "1", "--size", "32")
    assert (tmp_path / "data" / "streets" / "classes.txt").is_file()
    assert "--crop_size" in run("examples/train.py", "--help")


def test_examples_of_the_wheel_name_no_file_of_the_project_that_is_left_out(unpacked):
    copied, source = unpacked / "segnext_timm" / "_examples", ROOT / "examples"
    own = {path.stem for path in source.iterdir() if path.is_dir() or path.suffix == ".py"}
    for file in copied.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) and not node.level else ""
            top = (module or "").split(".")[0]
            if top in own:
                place = copied / top
                assert place.is_dir() or place.with_suffix(".py").is_file(), f"{file.name} imports {module}"
    for guide in copied.rglob("*.md"):
        for picture in re.findall(r"!\[[^\]]*\]\((?!https?://)([^)]+)\)", guide.read_text(encoding="utf-8")):
            assert (guide.parent / picture).is_file(), f"{guide.name} shows {picture}"


@pytest.mark.slow
def test_an_index_can_render_the_long_description(archives):
    pytest.importorskip("twine")
    files = [str(path) for path in archives.iterdir() if path.suffix in (".whl", ".gz")]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_addresses_and_python_versions_are_stated(metadata):
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert urls["Paper"] == "https://arxiv.org/abs/2209.08575"
    versions = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") if "Python :: 3." in c]
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_archives_hold_the_package_and_the_sources_what_the_readme_names(archives):
    with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
        tops = {name.split("/")[0].split("-")[0] for name in wheel.namelist()}
        data = {"checkpoints/catalog.json", "hub/card.md.jinja", "hub_ids.json", "label_sets.json"}
        assert {f"segnext_timm/{name}" for name in data} <= set(wheel.namelist())
    assert tops == {"segnext_timm"}
    with tarfile.open(next(archives.glob("*.tar.gz"))) as sources:
        names = {name.split("/", 1)[1] for name in sources.getnames() if "/" in name}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", readme):
        target = target.rstrip("/")
        assert any(name == target or name.startswith(f"{target}/") for name in names), target
