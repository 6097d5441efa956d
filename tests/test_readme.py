"""The README's Python blocks run as they stand, one after another, beside what they need: a hub, weights, a photo."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hub_server
import weights_table
from random_checkpoints import ACCEPT_CACHED, FILES, backbone_shapes, random_state_dict, segmenter_shapes
from segnext_timm.cli import main

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "examples/README.md", "examples/weights.md", "examples/deployment/README.md")


def blocks(language):
    """Blocks of a language in all READMEs, in their order."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in READMES]
    return [block for text in texts for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)]


@pytest.mark.slow
def test_all_python_blocks_run(tmp_path):
    home = tmp_path / "torch" / "hub" / "checkpoints"
    home.mkdir(parents=True)
    torch.save(random_state_dict(backbone_shapes("b", classifier=True)), home / FILES["b"])
    name = "segnext_mscan-b_1x16_512x512_adamw_160k_ade20k_20230209_172053-b6f6c70c.pth"
    torch.save({"state_dict": random_state_dict(segmenter_shapes("b", 150))}, home / name)
    work = tmp_path / "work"
    work.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(noise).save(work / "street.jpg")
    code = ACCEPT_CACHED + "\n".join(blocks("python"))
    assert code.count("\n") > 50
    with hub_server.serve() as server:
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_writer",
            "TORCH_HOME": str(tmp_path / "torch"),
        }
        done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "user/repo" in server.repos
    assert {"my-segnext", "overlay.jpg", "model.onnx"} <= {file.name for file in work.iterdir()}


def test_everything_the_readmes_point_to_is_there():
    for name in READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", text):
            assert ((ROOT / name).parent / target).exists(), (name, target)
        headings = {
            re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
            for line in re.findall(r"^#+ (.*)", text, re.M)
        }
        for anchor in re.findall(r"\]\(#([^)]+)\)", text):
            assert anchor in headings, (name, anchor)


def test_the_commands_of_the_readmes_name_scripts_and_tests_that_exist():
    for block in [*blocks("bash"), *re.findall(r"`([^`\n]+)`", (ROOT / "README.md").read_text(encoding="utf-8"))]:
        for path in re.findall(r"(?:examples|tests)/[\w/]+\.(?:py|yaml)", block):
            assert (ROOT / path).is_file(), path


def test_the_table_of_weights_is_what_the_script_prints():
    assert weights_table.table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_says_what_a_report_verified(tmp_path):
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


def test_the_commands_of_the_readmes_have_the_options_they_name():
    for line in "\n".join(blocks("bash")).splitlines():
        words = shlex.split(line.split("#")[0], posix=True)
        if words[:1] != ["segnext-timm"]:
            continue
        command = main.commands[words[1]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= known, line
