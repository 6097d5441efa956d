"""`segnext-timm publish`: verified checkpoints to folders, to a Hub on loopback, and a patch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard

import hub_server
import published_server
import segnext_timm
from random_checkpoints import ACCEPT_CACHED, FILES, accept_cached, backbone_shapes, random_state_dict
from segnext_timm.checkpoints import verification
from segnext_timm.checkpoints.catalog import get_segmenter_cfg
from segnext_timm.cli import main
from segnext_timm.errors import HubError
from segnext_timm.hub import publishing
from segnext_timm.hub.publishing import Release, _with_segmenter_ids, hub_ids_patch

ORIGINS = ["segnext_t.mmseg_ade20k", "segnext_t.jseg_isaid", "segnext_t.paddleseg_cityscapes"]
BACKBONE = "mscan_t.in1k"


@pytest.fixture
def verified(tmp_path, monkeypatch):
    """A cache with files of three origins and a backbone, and a report that calls them verified; gives the report."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    cache = tmp_path / "home" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    for name in ORIGINS:
        content = published_server.file_of(name, published_server.weights_of(name), tmp_path)
        (cache / get_segmenter_cfg(name).cached_name).write_bytes(content)
    torch.save(random_state_dict(backbone_shapes("t", classifier=True)), cache / FILES["t"])
    accept_cached(monkeypatch.setitem)
    entries = {}
    for name in (*ORIGINS, BACKBONE):
        path = cache / verification.get_published(name).file
        entries[name] = {"status": "verified", "sha256": verification.file_sha256(path), "size": path.stat().st_size}
    entries[ORIGINS[2]]["miou"] = 81.0
    report = tmp_path / "verified.json"
    report.write_text(json.dumps({"checkpoints": entries}))
    return report


def run(*arguments):
    return CliRunner().invoke(main, ["publish", *map(str, arguments)])


@pytest.mark.slow
def test_a_dry_run_writes_folders_that_load_back_bit_equal(verified, tmp_path):
    out = tmp_path / "out"
    done = run(*ORIGINS, BACKBONE, "--to", "user", "--dry-run", "--report", verified, "-o", out)
    assert done.exit_code == 0, done.output
    assert f"Wrote 4 models to {out}; nothing was pushed." in done.output
    for name in ORIGINS:
        assert sorted(f.name for f in (out / name).iterdir()) == ["README.md", "config.json", "model.safetensors"]
        loaded, expected = smp.from_pretrained(out / name), segnext_timm.create_segmenter(name, pretrained=True)
        for key, value in expected.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
        assert loaded.pretrained_cfg["label_names"] == expected.pretrained_cfg["label_names"]
        data = ModelCard.load(out / name / "README.md").data
        assert data.license == "apache-2.0"
        published = [r["value"] for r in get_segmenter_cfg(name).results]
        measured = [81.0] if name == ORIGINS[2] else []
        assert [r.metric_value for r in data.eval_results] == published + measured
        index = data.to_dict()["model-index"][0]
        assert index["results"][0]["metrics"][0]["type"] == "mean_iou"
    backbone = timm.create_model(f"local-dir:{out / BACKBONE}", pretrained=True)
    expected = timm.create_model(BACKBONE, pretrained=True)
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in expected.state_dict().items())
    assert ModelCard.load(out / BACKBONE / "README.md").data.license == "apache-2.0"


def test_the_patch_makes_the_package_load_from_the_hub(tmp_path):
    names = ["segnext_b.mmseg_ade20k", "mscan_t.in1k"]
    patch = hub_ids_patch([Release(name, tmp_path, f"user/{name}") for name in names])
    shutil.copytree(Path(segnext_timm.__file__).parent, tmp_path / "segnext_timm")
    subprocess.run(["git", "apply", "-"], input=patch, text=True, cwd=tmp_path, check=True)
    code = (
        "import segnext_timm, timm; from segnext_timm.checkpoints.catalog import get_segmenter_cfg as get; "
        "print(segnext_timm.__file__, get('segnext_b').hf_hub_id, *(timm.get_pretrained_cfg(n).hf_hub_id for n in "
        "('mscan_t.in1k', 'mscan_b.in1k')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    place, *ids = done.stdout.split()
    assert Path(place).is_relative_to(tmp_path), done.stderr
    assert ids == ["user/segnext_b.mmseg_ade20k", "user/mscan_t.in1k", "None"]


def test_the_patch_replaces_an_id_and_fills_an_empty_row():
    lines = [
        '    "paddleseg_cityscapes": {\n',
        '        "t": {},\n',
        '        "s": {"size": 1, "hf_hub_id": "old/s"}\n',
    ]
    repos = {f"segnext_{key}.paddleseg_cityscapes": f"user/{key}" for key in "ts"}
    assert list(_with_segmenter_ids(lines, repos))[1:] == [
        '        "t": {"hf_hub_id": "user/t"},\n',
        '        "s": {"size": 1, "hf_hub_id": "user/s"}\n',
    ]


def publish_to(server, tmp_path, *arguments, token="hf_writer"):
    """Run the command as a client of a Hub on loopback."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
        "OMP_NUM_THREADS": "1",
    }
    code = ACCEPT_CACHED + "from segnext_timm.cli import main; main()"
    command = [sys.executable, "-c", code, "publish", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.slow
def test_models_and_collection_reach_the_hub_and_nothing_is_overwritten(verified, tmp_path):
    names = [ORIGINS[0], BACKBONE]
    with hub_server.serve() as server:
        options = ("--to", "user", "--report", verified, "--collection", "SegNeXt")
        done = publish_to(server, tmp_path, *names, *options)
        assert done.returncode == 0, done.stderr
        assert set(server.repos) == {f"user/{name}" for name in names}
        assert server.collections == {"user/segnext-1": [f"user/{name}" for name in names]}
        files = server.repos[f"user/{ORIGINS[0]}"].branches["main"]
        assert set(files) >= {"README.md", "config.json", "model.safetensors"}
        assert f'smp.from_pretrained("user/{ORIGINS[0]}")'.encode() in files["README.md"]
        assert f'"hf_hub_id": "user/{ORIGINS[0]}"' in done.stdout

        before = server.repos[f"user/{ORIGINS[0]}"].sha("main")
        again = publish_to(server, tmp_path, *names, *options)
        assert again.returncode == 1
        assert f"user/{ORIGINS[0]} exists on the Hub: overwrite it with --force" in again.stderr
        assert server.repos[f"user/{ORIGINS[0]}"].sha("main") == before
        forced = publish_to(server, tmp_path, *names, *options, "--force")
        assert forced.returncode == 0, forced.stderr
        assert server.collections == {"user/segnext-1": [f"user/{name}" for name in names]}

        refused = publish_to(server, tmp_path, ORIGINS[1], *options, token="hf_reader")
        assert refused.returncode == 1
        assert (
            refused.stderr.strip()
            .splitlines()[-1]
            .startswith(f"Error: user/{ORIGINS[1]}: the token may not write to this repository on the Hub.")
        )


def test_only_verified_checkpoints_are_published(verified, tmp_path):
    out = tmp_path / "out"
    done = run("segnext_s", ORIGINS[0], "--to", "user", "--dry-run", "--report", verified, "-o", out)
    assert done.exit_code == 1
    assert "has not verified segnext_s.mmseg_ade20k: run `segnext-timm verify` first" in done.output
    cache = tmp_path / "home" / "hub" / "checkpoints" / get_segmenter_cfg(ORIGINS[0]).cached_name
    content = published_server.file_of(ORIGINS[0], published_server.weights_of(ORIGINS[0], seed=1), tmp_path)
    cache.write_bytes(content)
    done = run(ORIGINS[0], "--to", "user", "--dry-run", "--report", verified, "-o", out)
    assert done.exit_code == 1
    assert "its sha256 is" in done.output
    assert not out.exists() or not list(out.iterdir())


def test_a_folder_with_other_files_is_not_replaced(verified, tmp_path):
    folder = tmp_path / "out" / ORIGINS[0]
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    done = run(ORIGINS[0], "--to", "user", "--dry-run", "--report", verified, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "holds other files (notes.txt)" in done.output
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_second_release_replaces_the_repositories_and_one_without_a_line_is_told(tmp_path):
    names = ["segnext_b.mmseg_ade20k", "mscan_t.in1k"]
    lines = {
        name: f'hf_hub_id="a/{name}"' if name.startswith("mscan") else f'"hf_hub_id": "a/{name}"' for name in names
    }
    mscan_lines = ['        "mscan_t.in1k": _cfg(_MMSEG + "x.pth", hf_hub_id="a/mscan_t.in1k"),\n']
    catalog_lines = ['    "mmseg_ade20k": {\n', '        "b": {"id": "x", "hf_hub_id": "a/segnext_b.mmseg_ade20k"},\n']
    repos = {name: f"b/{name}" for name in names}
    edited = [*publishing._with_backbone_ids(mscan_lines, repos), *publishing._with_segmenter_ids(catalog_lines, repos)]
    assert [line.count("hf_hub_id") for line in edited] == [1, 0, 1]
    assert all(f"b/{name}" in "".join(edited) and lines[name] not in "".join(edited) for name in names)
    with pytest.raises(HubError, match=r"No lines of user/segnext_x\.none are found"):
        hub_ids_patch([Release("segnext_x.none", tmp_path, "user/segnext_x.none")])
