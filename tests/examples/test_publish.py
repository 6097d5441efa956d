"""publishing/publish.py: verified checkpoints to folders, to a Hub on loopback, and into the table of Hub ids."""

import dataclasses
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
from publishing import publish
from publishing.published import get_published, load_model
from random_checkpoints import ACCEPT_CACHED, FILES, accept_cached, backbone_shapes, random_state_dict
from segmentation.recipe import UserError
from segnext_timm.checkpoints import catalog
from segnext_timm.checkpoints.catalog import get_segmenter_cfg
from segnext_timm.downloads import file_sha256
from segnext_timm.errors import CheckpointError

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
        path = get_published(name).path
        entries[name] = {"status": "verified", "sha256": file_sha256(path), "size": path.stat().st_size}
    entries[ORIGINS[2]]["miou"] = 81.0
    report = tmp_path / "verified.json"
    report.write_text(json.dumps({"checkpoints": entries}))
    return report


def run(*arguments):
    return CliRunner().invoke(publish.main, list(map(str, arguments)))


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


def test_what_is_published_again_is_the_verified_file_not_what_is_on_the_hub(verified, tmp_path, monkeypatch):
    name = ORIGINS[1]
    cfg = dataclasses.replace(get_segmenter_cfg(name), hf_hub_id="user/none")
    monkeypatch.setitem(catalog._CFGS, name, cfg)
    assert run(name, "--to", "user", "--dry-run", "--report", verified, "-o", tmp_path / "out").exit_code == 0
    published = get_published(name)
    loaded, expected = smp.from_pretrained(tmp_path / "out" / name), load_model(published, published.path)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in expected.state_dict().items())


def ids_in_the_package(code, tmp_path):
    """What code prints with a package whose table has a segmenter and a backbone."""
    shutil.copytree(Path(segnext_timm.__file__).parent, tmp_path / "segnext_timm")
    table = tmp_path / "segnext_timm" / "hub_ids.json"
    publish.write_hub_ids(table, {name: f"user/{name}" for name in ("segnext_b.mmseg_ade20k", BACKBONE)})
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code += "; print(segnext_timm.__file__, *ids)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    place, *ids = done.stdout.split()
    assert Path(place).is_relative_to(tmp_path), done.stderr
    return ids


def test_the_package_loads_the_segmenters_of_the_table_from_the_hub(tmp_path):
    code = "import sys; sys.argv = ['segnext-timm']; import segnext_timm; "  # the command's import takes no seconds
    code += "from segnext_timm.checkpoints.catalog import get_segmenter_cfg as get; "
    code += "ids = [get(name).hf_hub_id for name in ('segnext_b', 'segnext_s')]"
    assert ids_in_the_package(code, tmp_path) == ["user/segnext_b.mmseg_ade20k", "None"]


@pytest.mark.slow
def test_the_package_loads_the_backbones_of_the_table_from_the_hub(tmp_path):
    code = "import segnext_timm, timm; "
    code += "ids = [timm.get_pretrained_cfg(name).hf_hub_id for name in ('mscan_t.in1k', 'mscan_b.in1k')]"
    assert ids_in_the_package(code, tmp_path) == ["user/mscan_t.in1k", "None"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_table_is_printed(tmp_path, capsys):
    table = tmp_path / "hub_ids.json"
    table.write_text("{}")
    tmp_path.chmod(0o500)
    publish.write_hub_ids(table, {"b": "user/b", "a": "user/a"})
    assert list(json.loads(capsys.readouterr().out)) == ["a", "b"]
    assert table.read_text() == "{}"


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
    code = (
        ACCEPT_CACHED
        + f"import runpy; sys.argv[0] = 'publish.py'; runpy.run_path({publish.__file__!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", ACCEPT_CACHED + code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.slow
def test_models_and_collection_reach_the_hub_and_nothing_is_overwritten(verified, tmp_path):
    names, table = [ORIGINS[0], BACKBONE], tmp_path / "hub_ids.json"
    table.write_text(f'{{"{BACKBONE}": "old/mscan", "segnext_l.jseg_isaid": "user/kept"}}')
    with hub_server.serve() as server:
        options = ("--to", "user", "--report", verified, "--collection", "SegNeXt", "--table", table)
        done = publish_to(server, tmp_path, *names, *options)
        assert done.returncode == 0, done.stderr
        assert set(server.repos) == {f"user/{name}" for name in names}
        assert server.collections == {"user/segnext-1": [f"user/{name}" for name in names]}
        files = server.repos[f"user/{ORIGINS[0]}"].branches["main"]
        assert set(files) >= {"README.md", "config.json", "model.safetensors"}
        assert f'smp.from_pretrained("user/{ORIGINS[0]}")'.encode() in files["README.md"]
        ids = {name: f"user/{name}" for name in names} | {"segnext_l.jseg_isaid": "user/kept"}
        assert list(json.loads(table.read_text()).items()) == sorted(ids.items())

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
            .startswith(f"publish.py: user/{ORIGINS[1]}: the Hub refused access (You don't have the rights")
        )


def test_only_verified_checkpoints_are_published(verified, tmp_path):
    out = tmp_path / "out"
    done = run("segnext_s", ORIGINS[0], "--to", "user", "--dry-run", "--report", verified, "-o", out)
    assert isinstance(done.exception, UserError)
    assert "has not verified segnext_s.mmseg_ade20k: run verify.py first" in str(done.exception)
    cache = tmp_path / "home" / "hub" / "checkpoints" / get_segmenter_cfg(ORIGINS[0]).cached_name
    content = published_server.file_of(ORIGINS[0], published_server.weights_of(ORIGINS[0], seed=1), tmp_path)
    cache.write_bytes(content)
    done = run(ORIGINS[0], "--to", "user", "--dry-run", "--report", verified, "-o", out)
    assert isinstance(done.exception, CheckpointError)
    assert "its sha256 is" in str(done.exception)
    assert not out.exists() or not list(out.iterdir())


def test_a_folder_with_other_files_is_not_replaced(verified, tmp_path):
    folder = tmp_path / "out" / ORIGINS[0]
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    done = run(ORIGINS[0], "--to", "user", "--dry-run", "--report", verified, "-o", tmp_path / "out")
    assert isinstance(done.exception, FileExistsError)
    assert "holds other files (notes.txt)" in str(done.exception)
    assert (folder / "notes.txt").read_text() == "mine"
