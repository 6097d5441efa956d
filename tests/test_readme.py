"""README and guides: their blocks run, trainings for few iterations; links, options and messages lead somewhere."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

import hub_server
import weights_table
from random_checkpoints import ACCEPT_CACHED, FILES, backbone_shapes, random_state_dict, segmenter_shapes
from run_blocks import blocks
from segnext_timm.checkpoints.catalog import get_segmenter_cfg
from segnext_timm.cli import main

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *sorted(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.md")))
PAGES = (*PAGES, "examples/deployment/README.md", "examples/tools/README.md", ".github/CONTRIBUTING.md")
T = "segnext_t.mmseg_ade20k"
API = ROOT / "examples" / "api.md"
RECIPE = ROOT / "examples" / "segmentation" / "recipe.py"
SOURCES = sorted((ROOT / "examples/segmentation/sources").glob("*.py"))
UNRUN = ("examples/api.md", ".github/CONTRIBUTING.md")  # signatures; the steps of a fresh clone
RUN = [page for page in PAGES if any(b.language != "text" for b in blocks(ROOT / page)) and page not in UNRUN]


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.fixture
def workplace(tmp_path):
    """A folder with what the pages expect: the examples, photos, trained models, and published files in the cache."""
    home = tmp_path / "torch" / "hub" / "checkpoints"
    home.mkdir(parents=True)
    torch.save(random_state_dict(backbone_shapes("b", classifier=True)), home / FILES["b"])
    torch.save({"state_dict": random_state_dict(segmenter_shapes("t", 150))}, home / get_segmenter_cfg(T).cached_name)
    work = tmp_path / "work"
    (work / "photos").mkdir(parents=True)
    (work / "examples").symlink_to(ROOT / "examples")
    (work / "tests").symlink_to(ROOT / "tests")
    rng = np.random.default_rng(0)
    for path in (work / "street.jpg", *(work / "photos" / f"{i}.jpg" for i in range(4))):
        Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8)).save(path)
    cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "label_names": ["a", "b"], "palette": [[0, 0, 0], [255, 0, 0]]}
    model = smp.SegNeXt("tu-mscan_t", encoder_weights=None, classes=2, pretrained_cfg=cfg)
    for folder in ("my-segnext", "runs/quickstart"):
        model.save_pretrained(work / folder)
    return work


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_in_order(page, workplace, tmp_path):
    if page == "README.md":  # in a fresh clone, where only a photo was put
        pytest.importorskip("onnxscript")
        for folder in ("my-segnext", "runs", "photos"):
            shutil.rmtree(workplace / folder)
    with hub_server.serve() as server:
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_writer",
            "TORCH_HOME": str(tmp_path / "torch"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        code = ACCEPT_CACHED + f"import sys; sys.path.insert(0, {str(ROOT / 'tests' / 'helpers')!r})\n"
        code += f"import pathlib, run_blocks; run_blocks.main(pathlib.Path({str(ROOT / page)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=workplace, env=environment, capture_output=True, text=True, timeout=900
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def test_everything_the_pages_point_to_is_there():
    for name in PAGES:
        text = text_of(name)
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert ((ROOT / name).parent / target).exists(), (name, target)
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            page = (ROOT / name).parent / target if target else ROOT / name
            assert anchor in anchors(page.read_text(encoding="utf-8")), (name, target, anchor)


def anchors(text):
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_commands_name_scripts_extras_and_options_that_exist():
    extras = set(re.findall(r"^(\w+) = \[", text_of("pyproject.toml").split("optional-dependencies]")[1], re.MULTILINE))
    for page in PAGES:
        text = text_of(page)
        for names in re.findall(r"pip install [^\n`]*(?:segnext-timm|\.)\[([\w,]+)\]", text):
            assert set(names.split(",")) <= extras, (page, names)
        for path in re.findall(r"(?:examples|tests)/[\w/]+\.(?:py|yaml)", text):
            assert (ROOT / path).is_file(), (page, path)
        for block in blocks(ROOT / page):
            for command in block.commands() if block.language.startswith("bash") else ():
                check_options(page, shlex.split(command))


def check_options(page, words):
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    if words[0] == "segnext-timm":
        assert words[1] in main.commands, (page, words)
        parameters = main.commands[words[1]].params
        known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        assert options <= known, (page, words)
        return
    script = next((word for word in words if word.startswith("examples/") and word.endswith(".py")), None)
    if script is None:
        return
    known = options_of(ROOT / script)
    for option in (word.split("=")[0] for word in words[words.index(script) :] if word.startswith("--")):
        assert option in known or option.removeprefix("--no-") in known, (page, script, option)


def options_of(script):
    """Options of a script: its parser's arguments, and fields of its settings and of those that it imports.

    Fields that are true or false are listed without `--` too, for `--no-NAME`.
    """
    own, recipe = (ast.parse(path.read_text(encoding="utf-8")) for path in (script, RECIPE))
    sources = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES] if "SOURCES" in ast.unparse(own) else []
    classes = {
        node.name: node for tree in (recipe, *sources, own) for node in tree.body if isinstance(node, ast.ClassDef)
    }
    names = {node.name for tree in (*sources, own) for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in (
        node for node in own.body if isinstance(node, ast.ImportFrom) and node.module == "segmentation.recipe"
    ):
        names |= classes.keys() & {alias.name for alias in node.names}
    found = {"--help"}
    while names:
        settings = classes[names.pop()]
        names |= {base.id for base in settings.bases if isinstance(base, ast.Name)} & classes.keys()
        for field in (node for node in settings.body if isinstance(node, ast.AnnAssign)):
            found |= {f"--{field.target.id}"} | (
                {field.target.id} if ast.unparse(field.annotation) == "bool" else set()
            )
    for node in ast.walk(own):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
            "add_argument",
            "option",
        ):  # argparse, click
            texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            found |= {option for text in texts for option in text.split("/")}
    return found


def test_an_option_of_another_script_does_not_pass_for_one():
    options = options_of(ROOT / "examples" / "evaluate.py")
    assert {"--data_root", "--flip", "flip"} <= options
    assert not {"--iterations", "--lr", "--miou", "data_root"} & options


def test_messages_of_the_troubleshooting_are_those_of_the_code():
    section = text_of("examples/troubleshooting.md").split("\n## ")[0]
    sources = [*ROOT.glob("segnext_timm/**/*.py"), *ROOT.glob("examples/**/*.py")]
    code = re.sub(r"\s+", " ", " ".join(path.read_text(encoding="utf-8") for path in sources))
    code = re.sub(r'" f?"', "", code)  # strings over several lines
    foreign = ("Unknown model", "Missing key", "Too many open files", "bus error", "Expected more than 1 value")
    for message in re.findall(r"^\| `([^`]+)`", section, re.MULTILINE):
        if not message.startswith(foreign):
            pattern = re.escape(message).replace("255", r"\{[^}]+\}").replace("\\ 2\\ ", r"\ \{[^}]+\}\ ")
            pattern = pattern.replace("10", r"\{[^}]+\}").replace("'mscan_b'", r"\{[^}]+\}")
            assert re.search(pattern, code), message


@pytest.mark.slow
def test_the_api_reference_is_what_the_docstrings_say():
    if importlib.util.find_spec("griffe2md") is None:
        pytest.skip("griffe2md is not installed")
    import api_reference

    assert api_reference.page() == API.read_text(encoding="utf-8"), "run tests/measure/api_reference.py"


@pytest.mark.slow
def test_the_table_of_weights_is_what_the_script_prints():
    assert weights_table.table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_says_what_a_report_verified(tmp_path, monkeypatch):
    for function in ("size_of_segmenter", "size_of_backbone"):
        monkeypatch.setattr(weights_table, function, lambda *arguments: (1.0, 1.0))
    entries = {
        "segnext_t.mmseg_ade20k": {"status": "verified", "date": "2026-01-02"},
        "segnext_b.mmseg_ade20k": {"status": "failed", "date": "2026-01-02"},
        "segnext_l.authors_coco_stuff164k": {"status": "verified", "date": "2026-01-03"},
    }
    (tmp_path / "report.json").write_text(json.dumps({"checkpoints": entries}))
    rows = {
        line.split("`")[1]: line for line in weights_table.table(tmp_path / "report.json").splitlines() if "`" in line
    }
    assert rows["segnext_{t,s,b,l}.mmseg_ade20k"].endswith("| T verified; others not yet |")
    assert rows["segnext_l.authors_coco_stuff164k"].endswith("| verified 2026-01-03 |")
    assert rows["segnext_{t,s,b,l}.jseg_isaid"].endswith("| not yet verified |")
