"""The commands `models` and `info`, and what each command says of a model's name."""

import dataclasses
import json
import os
import re
import shutil
import subprocess

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import hub_server
from command import COMMAND, last_line, run, save_segmenter
from segnext_timm import add_results, load_segmenter
from segnext_timm.checkpoints.catalog import BACKBONES, ORIGINS, find_backbone, get_segmenter_cfg
from segnext_timm.errors import CheckpointError
from segnext_timm.hub.cards import write_card

CONFIG_REQUEST = "HEAD /user/model/resolve/main/config.json"


@pytest.fixture
def folder(tmp_path):
    """A segmenter's folder."""
    return save_segmenter(tmp_path / "model")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty place for downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path):
    """A Hub, and the command run in `tmp_path` with that Hub, whose address is read once per process."""
    with hub_server.serve() as server:
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

        def run(*arguments):
            return subprocess.run([COMMAND, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True)

        server.run = run
        yield server


def publish(hub, folder):
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.repos["user/model"] = hub_server.Repo(branches={"main": files})


# models


def test_models_are_listed_with_their_published_accuracy():
    done = run("models")
    assert done.exit_code == 0
    lines = [line.split() for line in done.output.splitlines()]
    assert ["mscan_b.in1k", "26,790,824", "ImageNet-1k", "83.0", "mmsegmentation"] in lines
    assert ["segnext_b.mmseg_ade20k", "27,636,310", "ADE20K", "48.03", "49.68", "16", "mmsegmentation"] in lines
    assert ["segnext_l.authors_coco_stuff164k", "48,948,075", "COCO-Stuff", "164k", "64", "the", "authors"] in lines
    for origin in ORIGINS.values():
        assert f"{origin.name}: {origin.license}; {origin.license_note}." in done.output


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--dataset", "isaid"), [f"segnext_{v}.jseg_isaid" for v in "tsbl"]),
        (("--origin", "paddleseg", "--dataset", "cityscapes"), [f"segnext_{v}.paddleseg_cityscapes" for v in "tsbl"]),
        (("--origin", "mmseg"), [f"mscan_{v}.in1k" for v in "tsbl"] + [f"segnext_{v}.mmseg_ade20k" for v in "tsbl"]),
        (("--origin", "mmseg", "--dataset", "isaid"), []),
    ],
)
def test_models_are_filtered_by_data_set_and_origin(options, names):
    models = json.loads(run("models", *options, "--json").output)
    assert [m["name"] for group in models.values() for m in group] == names
    text = run("models", *options).output
    assert all(name in text for name in names)
    assert names or text == "No published model matches.\n"


def test_models_are_listed_as_json():
    models = json.loads(run("models", "--json").output)
    facts = dataclasses.asdict(ORIGINS["mmseg"])
    origin = {"origin": facts["name"], "origin_url": facts["url"]}
    origin |= {"license": facts["license"], "license_note": facts["license_note"]}
    assert models["backbones"][2] == {
        "name": "mscan_b.in1k",
        "parameters": 26_790_824,
        "dataset": "ImageNet-1k",
        "top1": 83.0,
        **origin,
        "terms": find_backbone("mscan_b").terms,
    }
    assert models["segmenters"][2] == {
        "name": "segnext_b.mmseg_ade20k",
        "parameters": 27_636_310,
        "dataset": "ADE20K",
        "miou": 48.03,
        "miou_multi_scale": 49.68,
        "rank": 16,
        **origin,
        "terms": get_segmenter_cfg("segnext_b").terms,
    }


def test_models_state_the_terms_of_the_data_sets_shown_one_line_each():
    shown = run("models", "--dataset", "cityscapes").output.partition("Terms of the data sets")[2].splitlines()[1:]
    assert shown == [
        "Cityscapes: a platform for scientific purposes (read in part) (https://www.cityscapes-dataset.com/license)."
    ]
    everything = run("models").output
    for name in ("ImageNet-1k: not checked", "ADE20K: bsd-3-clause", "iSAID: ", "COCO-Stuff 164k: not checked"):
        assert everything.count(f"\n{name}") == 1


# info


@pytest.mark.parametrize("name", ["mscan_b", "segnext_l.authors_coco_stuff164k", "segnext_t.jseg_isaid"])
def test_info_states_the_terms_of_the_data_set_and_the_caveat_to_the_license(name):
    cfg = find_backbone(name) or get_segmenter_cfg(name)
    info = json.loads(run("info", name, "--json").output)
    assert (info["terms"], info["license_note"]) == (cfg.terms, ORIGINS[cfg.origin].license_note)
    text = run("info", name).output
    assert re.search(rf"^license note +{re.escape(info['license_note'])}$", text, re.MULTILINE)
    for term in cfg.terms:
        assert f"{term['dataset']}, {term['says']}, {term['source']}\n" in text


def test_info_describes_published_segmenters_without_their_weights(empty_cache):
    info = json.loads(run("info", "segnext_b", "--json").output)
    assert {key: info[key] for key in ("name", "kind", "architecture", "encoder", "classes", "rank")} == {
        "name": "segnext_b.mmseg_ade20k",
        "kind": "segmenter",
        "architecture": "SegNeXt",
        "encoder": "tu-mscan_b",
        "classes": 150,
        "rank": 16,
    }
    assert info["class_names"][:2] == ["wall", "building"]
    assert (info["input_size"], info["mean"], info["fit_in"]) == ([512, 512], [0.485, 0.456, 0.406], [2048, 512])
    assert [result["value"] for result in info["results"]] == [48.03, 49.68]
    assert not empty_cache.exists()
    assert "0 wall, 1 building" in run("info", "segnext_b").output


@pytest.mark.parametrize("name", ["mscan_t", *BACKBONES])
def test_info_says_of_published_backbones_what_timm_knows(empty_cache, name):
    info = json.loads(run("info", name, "--json").output)
    cfg = timm.get_pretrained_cfg(name)
    assert (info["kind"], info["classes"], info["parameters"]) == ("backbone", 1000, find_backbone(name).parameters)
    assert (info["in_channels"], *info["input_size"]) == cfg.input_size
    for key, known in (("mean", list(cfg.mean)), ("std", list(cfg.std)), ("license", cfg.license), ("url", cfg.url)):
        assert info[key] == known
    assert (info["origin"], info["results"][0]["value"]) == (cfg.origin_url, find_backbone(name).top1)
    assert not empty_cache.exists()


def test_info_describes_folders_of_smp_and_timm(folder, tmp_path):
    info = json.loads(run("info", folder, "--json").output)
    assert (info["class_names"], info["mean"], info["license"]) == (["a", "b", "c"], [0.5] * 3, None)
    assert "license           not stated" in run("info", folder).output
    unet = smp.Unet("resnet18", encoder_weights=None, classes=2)
    unet.save_pretrained(tmp_path / "unet")
    info = json.loads(run("info", tmp_path / "unet", "--json").output)
    assert (info["architecture"], info["encoder"]) == ("Unet", "resnet18")
    torch.save(timm.create_model("test_mscan").state_dict(), tmp_path / "y.pth")
    run("convert", tmp_path / "y.pth", tmp_path / "backbone")
    info = json.loads(run("info", tmp_path / "backbone", "--json").output)
    assert (info["kind"], info["architecture"], info["classes"]) == ("backbone", "test_mscan", 1000)


def test_info_states_the_facts_of_a_unet(tmp_path):
    smp.Unet("resnet18", encoder_weights=None, classes=2).save_pretrained(tmp_path)
    write_card(tmp_path, {"label_names": ["a", "b"], "license": "mit", "mean": [0.5] * 3})
    add_results(tmp_path, [{"dataset": "x", "metric": "mIoU", "value": 51.25}])
    info = json.loads(run("info", tmp_path, "--json").output)
    assert (info["class_names"], info["license"], info["mean"]) == (["a", "b"], "mit", [0.5] * 3)
    assert [result["value"] for result in info["results"]] == [51.25]


def test_info_describes_repositories_on_the_hub_without_their_weights(hub, folder, tmp_path):
    publish(hub, folder)
    found = json.loads(hub.run("info", "user/model", "--json").stdout)
    assert found == json.loads(run("info", folder, "--json").output) | {"name": "user/model"}
    assert not list((tmp_path / "hf").rglob("model.safetensors"))
    missing = hub.run("info", "user/none")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
    assert "user/none: no such folder, and no such repository on the Hub" in missing.stderr


@pytest.mark.parametrize("fault", [(503, "", "overloaded"), None])
def test_info_reads_a_repository_in_the_cache_without_the_hub(hub, folder, fault):
    publish(hub, folder)
    found = hub.run("info", "user/model", "--json").stdout
    hub.fault = fault
    asked = len(hub.requests)
    assert hub.run("info", "user/model", "--json").stdout == found != ""
    assert [request for request in hub.requests[asked:] if "config.json" in request] == [CONFIG_REQUEST]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((503, "", ""), "user/model: the Hub cannot answer now (status 503). Try again later."),
        ((429, "", ""), "user/model: the Hub cannot answer now (status 429). Try again later."),
        (None, "user/model: the Hub cannot be reached ("),
    ],
)
def test_a_hub_that_does_not_answer_is_asked_once_and_told_in_one_line(hub, fault, message):
    hub.fault = fault
    done = hub.run("info", "user/model")
    assert done.stderr.startswith(f"Error: {message}") and done.stderr.count("\n") == 1
    assert done.returncode == 1
    assert [request for request in hub.requests if "/resolve/" in request] == [CONFIG_REQUEST]


# Models by name

REST = {"info": (), "predict": (".", "-o", "out"), "export": ("x.pt2",)}


@pytest.mark.parametrize("command", REST)
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("segnext_c", "Did you mean 'segnext_"),
        ("segnext_b.mmseg_ade", "Did you mean 'segnext_b.mmseg_ade20k'?"),
        ("yolo", "`segnext-timm models` lists the published models."),
    ],
)
def test_an_unknown_model_suggests_the_nearest_name(command, name, hint):
    done = run(command, name, *REST[command])
    assert done.exit_code == 1
    assert hint in done.output
    assert done.output.count("\n") == 1


def test_a_mistyped_folder_suggests_the_nearest_one(folder, tmp_path):
    done = run("export", folder.with_name("models"), tmp_path / "x.pt2")
    assert done.exit_code == 1
    assert last_line(done).endswith(f"Did you mean {str(folder)!r}?")
    shutil.copytree(folder, tmp_path / "run" / "best")
    done = run("export", tmp_path / "run", tmp_path / "x.pt2")
    assert last_line(done).endswith(f"it has no config.json. Did you mean {str(tmp_path / 'run/best')!r}?")


@pytest.mark.parametrize("command", REST)
def test_a_mistyped_model_in_a_folder_here_is_told_without_asking_the_hub(hub, folder, tmp_path, command):
    shutil.copytree(folder, tmp_path / "runs" / "best")
    done = hub.run(command, "runs/bset", *REST[command])
    message = "runs/bset: the folder runs has no bset, so the Hub is not asked. Did you mean 'runs/best'?"
    assert (done.returncode, done.stderr) == (1, f"Error: {message}\n")
    assert hub.requests == []


def test_a_model_folder_goes_before_a_published_model_of_its_name(folder, tmp_path, monkeypatch, empty_cache):
    monkeypatch.chdir(tmp_path)
    folder.rename("segnext_t")
    assert json.loads(run("info", "segnext_t", "--json").output)["encoder"] == "tu-test_mscan"
    assert load_segmenter("segnext_t").config["encoder_name"] == "tu-test_mscan"
    assert not empty_cache.exists()


def test_models_that_give_no_labels_are_named(tmp_path):
    torch.save(timm.create_model("test_mscan").state_dict(), tmp_path / "y.pth")
    run("convert", tmp_path / "y.pth", tmp_path / "backbone")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    for name, message in (
        ("mscan_b", "mscan_b is a backbone, which does not predict labels. Did you mean 'segnext_b.mmseg_ade20k'?"),
        (tmp_path / "backbone", "backbone: holds test_mscan, not a segmentation model"),
        (tmp_path / "broken", "config.json: not a JSON object ("),
        (tmp_path / "y.pth", "y.pth: a file, not a model folder. Convert it to a folder with `segnext-timm convert`."),
        (tmp_path / "backbone" / "config.json", "a file of a model folder. Give the folder, "),
    ):
        done = run("predict", name, tmp_path, "-o", tmp_path / "out")
        assert done.exit_code == 1
        assert message in done.output
        assert done.output.count("\n") == 1


def test_weights_that_are_damaged_or_do_not_fit_are_named(folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"classes": 3', '"classes": 4'), encoding="utf-8")
    message = r"model: the weights do not fit its config\.json\. .*segmentation_head\.0\.weight"
    with pytest.raises(CheckpointError, match=message):
        load_segmenter(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a checkpoint"):
        load_segmenter(folder)
