import dataclasses
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from click.testing import CliRunner
from PIL import Image

import hub_server
from segnext_timm import __version__, load_segmenter
from segnext_timm._cli_types import Group, out_of_memory
from segnext_timm.checkpoints.catalog import ORIGINS, find_backbone, get_segmenter_cfg
from segnext_timm.cli import main
from segnext_timm.errors import CheckpointError, ExportError, HubError

COMMAND = Path(sys.executable).with_name("segnext-timm")
QUICK = [("--help",), ("--version",), ("models",), ("predict", "--help")]
CONFIG_REQUEST = "HEAD /user/model/resolve/main/config.json"
HEAVY = {"torch", "torchvision", "timm", "segmentation_models_pytorch", "numpy", "PIL", "huggingface_hub"}


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def checkpoint(tmp_path):
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=8)
    state_dict = {name: v for name, v in model.state_dict().items() if not name.endswith("bases")}
    torch.save(state_dict, tmp_path / "x.pth")
    return tmp_path / "x.pth"


@pytest.fixture
def folder(tmp_path):
    """A segmenter's folder."""
    cfg = {"input_size": [3, 64, 96], "label_names": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.25] * 3}
    smp.SegNeXt(
        "tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=4, pretrained_cfg=cfg
    ).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty place for downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub(tmp_path):
    """A Hub, and the command run in `tmp_path` with that Hub and an empty cache."""
    with hub_server.serve() as server:
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

        def run(*arguments):
            return subprocess.run([COMMAND, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True)

        server.run = run
        yield server


def imported(command):
    """Packages that a command imports, and what it prints."""
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 20
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}, done.stdout


def test_the_command_is_installed():
    done = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout


@pytest.mark.parametrize("arguments", [*QUICK, ("info", "segnext_b")])
def test_quick_answers_import_nothing_heavy(arguments):
    packages, output = imported([COMMAND, *arguments])
    assert packages & HEAVY == set()
    assert packages >= {"click", "segnext_timm"}
    assert output


def test_python_m_runs_the_command_as_quickly():
    packages, output = imported([sys.executable, "-m", "segnext_timm", "--help"])
    assert packages & HEAVY == set()
    assert output.startswith("Usage: segnext-timm [OPTIONS] COMMAND")


@pytest.mark.timed
@pytest.mark.parametrize("arguments", QUICK)
def test_quick_answers_take_less_than_half_a_second(arguments):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([COMMAND, *arguments], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.5


@pytest.mark.parametrize("name", main.commands)
def test_every_command_helps_with_an_example_and_a_text_for_each_option(name):
    for option in ("--help", "-h"):
        done = run(name, option)
        assert done.exit_code == 0
        assert f"  segnext-timm {name} " in done.output.partition("Examples:")[2] or name == "models"
        assert "Error" not in done.output
    assert all(option.help for option in main.commands[name].params if isinstance(option, click.Option))


@pytest.fixture
def failing():
    """A command of the same kind that raises what it is given."""
    group = Group(params=[click.Option(["--traceback"], is_flag=True)])

    def run(error, *options):
        @group.command("fail")
        def fail():
            raise error

        return CliRunner().invoke(group, [*options, "fail"])

    return run


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong\nvalue"),
        CheckpointError("wrong\nvalue"),
        FileNotFoundError("wrong\nvalue"),
        PermissionError("wrong\nvalue"),
        ConnectionError("wrong\nvalue"),
        HubError("wrong\nvalue"),
        ExportError("wrong\nvalue"),
        ImportError("wrong\nvalue"),
    ],
)
def test_users_errors_are_one_line(failing, error):
    done = failing(error)
    assert done.exit_code == 1
    assert done.output == "Error: wrong value\n"
    assert failing(error, "--traceback").exception is error


@pytest.mark.parametrize("error", [RuntimeError("bug"), TypeError("bug"), KeyError("bug"), ImportError("", name="x")])
def test_bugs_show_their_traceback(failing, error):
    assert failing(error).exception is error


def test_click_s_own_exits_pass(failing):
    assert failing(click.exceptions.Exit(3)).exit_code == 3
    done = failing(click.UsageError("wrong"))
    assert (done.exit_code, done.output.splitlines()[-1]) == (2, "Error: wrong")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_says_so(failing, interrupt):
    done = failing(interrupt)
    assert (done.exit_code, done.output) == (130, "\nInterrupted.\n")


def test_models_are_listed_with_their_published_accuracy():
    done = run("models")
    assert done.exit_code == 0
    lines = [line.split() for line in done.output.splitlines()]
    assert ["mscan_b.in1k", "26.79M", "ImageNet-1k", "83.0", "mmsegmentation"] in lines
    assert ["segnext_b.mmseg_ade20k", "27.64M", "ADE20K", "48.03", "49.68", "16", "mmsegmentation"] in lines
    assert ["segnext_l.authors_coco_stuff164k", "48.95M", "COCO-Stuff", "164k", "64", "the", "authors"] in lines
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


@pytest.mark.parametrize("name", ["mscan_b", "segnext_l.authors_coco_stuff164k", "segnext_t.jseg_isaid"])
def test_info_states_the_terms_of_the_data_set(name):
    terms = (find_backbone(name) or get_segmenter_cfg(name)).terms
    assert json.loads(run("info", name, "--json").output)["terms"] == terms
    (row,) = [line for line in run("info", name).output.splitlines() if line.startswith("terms ")]
    assert all(term["says"] in row and term["source"] in row for term in terms)


def test_info_describes_published_segmenters_without_their_weights(empty_cache):
    info = json.loads(run("info", "segnext_b", "--json").output)
    assert {key: info[key] for key in ("name", "kind", "architecture", "encoder", "classes", "rank", "weights")} == {
        "name": "segnext_b.mmseg_ade20k",
        "kind": "segmenter",
        "architecture": "SegNeXt",
        "encoder": "tu-mscan_b",
        "classes": 150,
        "rank": 16,
        "weights": None,
    }
    assert info["class_names"][:2] == ["wall", "building"]
    assert (info["input_size"], info["mean"]) == ([512, 512], [0.485, 0.456, 0.406])
    assert [result["value"] for result in info["results"]] == [48.03, 49.68]
    assert not empty_cache.exists()
    file = empty_cache / "hub" / "checkpoints" / info["url"].rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.touch()
    text = run("info", "segnext_b").output
    assert str(file) in text
    assert "0 wall, 1 building" in text


@pytest.mark.parametrize("name", ["mscan_t", "mscan_t.in1k"])
def test_info_describes_published_backbones_without_their_weights(empty_cache, name):
    info = json.loads(run("info", name, "--json").output)
    cfg = timm.get_pretrained_cfg("mscan_t")
    assert (info["kind"], info["parameters"], info["classes"]) == ("backbone", 4_160_584, 1000)
    assert (info["mean"], info["license"], info["url"]) == (list(cfg.mean), cfg.license, cfg.url)
    assert info["results"][0]["value"] == 75.9
    assert not empty_cache.exists()


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_info_describes_folders_of_smp_and_timm(folder, tmp_path):
    info = json.loads(run("info", folder, "--json").output)
    assert info["parameters"] == parameters(smp.from_pretrained(folder))
    assert (info["class_names"], info["mean"], info["license"]) == (["a", "b", "c"], [0.5] * 3, None)
    assert "license           not stated" in run("info", folder).output
    unet = smp.Unet("resnet18", encoder_weights=None, classes=2)
    unet.save_pretrained(tmp_path / "unet")
    info = json.loads(run("info", tmp_path / "unet", "--json").output)
    assert (info["architecture"], info["encoder"], info["parameters"]) == ("Unet", "resnet18", parameters(unet))
    torch.save(timm.create_model("test_mscan").state_dict(), tmp_path / "y.pth")
    run("convert", tmp_path / "y.pth", tmp_path / "backbone")
    for name in (tmp_path / "backbone", f"local-dir:{tmp_path / 'backbone'}"):
        info = json.loads(run("info", name, "--json").output)
        assert (info["kind"], info["architecture"], info["classes"]) == ("backbone", "test_mscan", 1000)
        assert info["parameters"] == parameters(timm.create_model("test_mscan"))


def test_info_describes_repositories_on_the_hub_without_their_weights(folder, tmp_path):
    with hub_server.serve() as server:
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        server.repos["user/model"] = hub_server.Repo(branches={"main": files})
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

        def info(name):
            return subprocess.run([COMMAND, "info", name, "--json"], env=env, capture_output=True, text=True)

        found = json.loads(info("user/model").stdout)
        assert found == json.loads(run("info", folder, "--json").output) | {"name": "user/model", "weights": None}
        assert json.loads(info("hf-hub:user/model").stdout) == found
        assert not list((tmp_path / "hf").rglob("model.safetensors"))
        missing = info("user/none")
        assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
        assert "user/none: no such folder, and no such repository on the Hub" in missing.stderr


def test_convert_says_what_it_found_and_how_to_load_it(checkpoint, tmp_path):
    done = run("convert", checkpoint, tmp_path / "out", "--rank", 4)
    assert done.exit_code == 0
    assert (
        "SegNeXt on test_mscan, 3 classes, 3 input channels, 32 decoder channels, rank 4 (as specified)" in done.output
    )
    assert f'smp.from_pretrained("{tmp_path / "out"}")' in done.output
    assert smp.from_pretrained(tmp_path / "out").decoder.hamburger.nmf.rank == 4
    torch.save(timm.create_model("test_mscan").state_dict(), tmp_path / "y.pth")
    done = run("convert", tmp_path / "y.pth", tmp_path / "backbone")
    assert f'timm.create_model("local-dir:{tmp_path / "backbone"}", pretrained=True)' in done.output
    done = run("convert", tmp_path / "out", tmp_path / "mmseg.pth", "--to", "mmseg")
    assert done.output.endswith(f"Wrote {tmp_path / 'mmseg.pth'}.\n")


def test_convert_fills_an_empty_folder_and_replaces_no_other(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    assert run("convert", checkpoint, tmp_path / "out").exit_code == 0
    assert smp.from_pretrained(tmp_path / "out").segmentation_head[0].out_channels == 3
    assert run("convert", checkpoint, tmp_path / "out").exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.pth"]


@pytest.mark.parametrize(
    ("size", "shape"),
    [("64x32", (1, 3, 64, 32)), ("64X32", (1, 3, 64, 32)), ("64×32", (1, 3, 64, 32)), ("64", (1, 3, 64, 64))],
)
def test_sizes_are_height_by_width_or_one_number_for_a_square(folder, tmp_path, size, shape):
    done = run("export", folder, "--size", size, tmp_path / "model.pt2")
    assert f"Exporting for images {shape} ..." in done.output, done.output


def test_export_takes_the_size_that_the_model_knows(tmp_path):
    torch.manual_seed(0)  # without near ties
    cfg = {"input_size": [3, 64, 96], "label_names": ["a", "b", "c"]}
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, pretrained_cfg=cfg)
    model.save_pretrained(tmp_path / "model")
    done = run("export", tmp_path / "model", tmp_path / "model.pt2", "--argmax")
    assert done.exit_code == 0, done.output
    assert "Exporting for images (1, 3, 64, 96) ..." in done.output
    assert f"Wrote {tmp_path / 'model.pt2'}" in done.output
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(images), model.eval().predict_labels(images))


def test_mistakes_end_in_one_line(checkpoint, tmp_path):
    (tmp_path / "page.pth").write_text("<html>", encoding="utf-8")
    for arguments, message in (
        (("convert", tmp_path / "none.pth", tmp_path / "out"), "none.pth: no such file."),
        (("convert", tmp_path / "page.pth", tmp_path / "out"), "page.pth: a web page, not a checkpoint"),
        (("convert", checkpoint, tmp_path), "exists: choose another name, or replace it with --force"),
        (("convert", checkpoint, tmp_path / "out", "--rank", "0"), "0 is not in the range x>=1"),
        (("push", tmp_path / "none", "user/repo"), "no such folder"),
        (("export", tmp_path / "none", tmp_path / "x.onnx"), "not a folder, not a Hub repository"),
        (("export", "segnext_t", tmp_path / "x.onnx", "--size", "16x16"), "16 is not in the range x>=32"),
    ):
        done = run(*arguments)
        assert done.exit_code != 0
        assert isinstance(done.exception, SystemExit)
        assert message in done.output.splitlines()[-1], done.output
    assert not (tmp_path / "out").exists()
    assert isinstance(run("--traceback", "convert", tmp_path / "none.pth", tmp_path / "out").exception, OSError)


def test_arguments_are_checked_before_anything_is_downloaded_or_loaded(empty_cache, folder, checkpoint, tmp_path):
    (tmp_path / "empty.txt").touch()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    predict = ("predict", "segnext_t", tmp_path / "a.png", "-o", tmp_path / "out")
    for arguments, message in (
        (("export", "segnext_t", tmp_path / "x.txt"), "x.txt: the name of an exported model ends in .onnx, .pt2, "),
        (("export", "segnext_t", tmp_path), "is a directory."),
        (
            ("export", "segnext_t", tmp_path / "x.pt2", "--size", "512,512"),
            "'512,512' is not a size: give pixels, such as 512, or height by width, such as 512x1024.",
        ),
        ((*predict, "--window", "64 64"), "'64 64' is not a size: give pixels"),
        ((*predict, "--stride", "-8"), "'-8' is not a size: give pixels"),
        ((*predict, "--fit", "2048x"), "or long by short side, such as 2048x1024."),
        ((*predict, "--window", "64", "--stride", "99"), "stride must be from 1 to the window's side, got (99, 99)"),
        ((*predict, "--scales", "1,0"), "'1,0' is not a list of positive numbers, such as 0.5,1,1.5."),
        ((*predict, "--scales", "1,inf"), "is not a list of positive numbers"),
        ((*predict, "--device", "foo"), "'foo' is not a device: use cpu, cuda, cuda:1, mps, ..."),
        ((*predict, "--device", "meta"), "'meta' does not exist here. This machine has cpu"),
        ((*predict, "--device", "cuda:99"), "'cuda:99' does not exist here. This machine has cpu"),
        (("push", folder, "model"), "'model' is not a repository on the Hub: give user/name."),
        (("push", folder, "user/my model"), "'user/my model' is not a repository on the Hub, user/name"),
        (("convert", checkpoint, tmp_path / "out", "--classes", "ade"), "ade: no such file of class names, and not a"),
        (("convert", checkpoint, tmp_path / "out", "--classes", tmp_path / "empty.txt"), "not a text file with one cl"),
        (("convert", checkpoint, tmp_path / "out", "--classes", tmp_path / "a.png"), "not a text file with one class"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert message in done.output.splitlines()[-1], done.output
    assert not empty_cache.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["info", "predict", "export"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("segnext_c", "Did you mean 'segnext_"),
        ("segnext_b.mmseg_ade", "Did you mean 'segnext_b.mmseg_ade20k'?"),
        ("yolo", "`segnext-timm models` lists the published models."),
    ],
)
def test_an_unknown_model_suggests_the_nearest_name(empty_cache, tmp_path, command, name, hint):
    rest = {"info": (), "predict": (tmp_path, "-o", tmp_path / "out"), "export": (tmp_path / "x.pt2",)}[command]
    done = run(command, name, *rest)
    assert done.exit_code == (1 if command == "info" else 2)
    assert hint in done.output.splitlines()[-1]


def test_a_mistyped_folder_suggests_the_nearest_one(folder, tmp_path):
    done = run("export", folder.with_name("models"), tmp_path / "x.pt2")
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].endswith(f"Did you mean {str(folder)!r}?")
    shutil.copytree(folder, tmp_path / "run" / "best")
    done = run("export", tmp_path / "run", tmp_path / "x.pt2")
    assert done.output.splitlines()[-1].endswith(f"it has no config.json. Did you mean {str(tmp_path / 'run/best')!r}?")


@pytest.mark.parametrize("command", ["info", "predict", "export"])
def test_a_mistyped_model_in_a_folder_here_is_told_without_asking_the_hub(hub, folder, tmp_path, command):
    shutil.copytree(folder, tmp_path / "runs" / "best")
    rest = {"info": (), "predict": (folder, "-o", "out"), "export": ("x.pt2",)}[command]
    done = hub.run(command, "runs/bset", *rest)
    message = "runs/bset: the folder runs has no bset, so the Hub is not asked. Did you mean 'runs/best'?\n"
    assert done.stderr.endswith(message)
    assert done.returncode == (1 if command == "info" else 2)
    assert hub.requests == []


def test_info_asks_the_hub_if_the_prefix_says_so(hub, folder, tmp_path):
    (tmp_path / "user").mkdir()
    hub.repos["user/model"] = hub_server.Repo(branches={"main": contents(folder)})
    assert json.loads(hub.run("info", "hf-hub:user/model", "--json").stdout)["name"] == "user/model"


@pytest.mark.parametrize("fault", [(503, "", "overloaded"), None])
def test_info_reads_a_repository_in_the_cache_without_the_hub(hub, folder, fault):
    hub.repos["user/model"] = hub_server.Repo(branches={"main": contents(folder)})
    found = json.loads(hub.run("info", "user/model", "--json").stdout)
    hub.fault = fault
    asked = len(hub.requests)
    again = json.loads(hub.run("info", "user/model", "--json").stdout)
    assert again == found | {"parameters": None}
    assert [request for request in hub.requests[asked:] if "config.json" in request] == [CONFIG_REQUEST]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((503, "", ""), "user/model: the Hub cannot answer now (status 503). Try again later."),
        ((429, "", ""), "user/model: the Hub cannot answer now (status 429). Try again later."),
        (None, "user/model: no such folder, not in the Hub's cache, and the Hub cannot be reached."),
    ],
)
def test_a_hub_that_does_not_answer_is_asked_once_and_told_in_one_line(hub, fault, message):
    hub.fault = fault
    done = hub.run("info", "user/model")
    assert done.stderr == f"Error: {message}\n"
    assert done.returncode == 1
    assert [request for request in hub.requests if "/resolve/" in request] == [CONFIG_REQUEST]


def test_messages_are_printed_once_however_often_the_command_runs():
    log = logging.getLogger("segnext_timm.anywhere")

    @main.command("log")
    def command():
        log.info("a message")

    try:
        outputs = [run("log") for _ in range(3)]
    finally:
        del main.commands["log"]
    assert [done.stderr for done in outputs] == ["a message\n"] * 3


def test_the_command_leaves_the_loggers_of_others_alone():
    code = "import logging; from segnext_timm.cli import main; main(['models'], standalone_mode=False); "
    code += "assert not logging.getLogger().handlers; logging.getLogger('other').error('once')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "once\n"


def test_a_folder_named_as_a_number_is_predicted_after_a_size(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("123").mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("123/a.png")
    done = run("predict", folder, "--window", "512", "123", "-o", "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert Path("out/a.png").is_file()


def test_a_model_folder_goes_before_a_published_model_of_its_name(folder, tmp_path, monkeypatch, empty_cache):
    monkeypatch.chdir(tmp_path)
    folder.rename("segnext_t")
    assert json.loads(run("info", "segnext_t", "--json").output)["encoder"] == "tu-test_mscan"
    assert load_segmenter("segnext_t").config["encoder_name"] == "tu-test_mscan"
    assert load_segmenter(Path("segnext_t")).config["encoder_name"] == "tu-test_mscan"
    assert not empty_cache.exists()


def test_sizes_that_the_model_cannot_take_are_named(tmp_path):
    smp.Linknet("resnet18", encoder_weights=None, classes=2).save_pretrained(tmp_path / "linknet")
    done = run("export", tmp_path / "linknet", tmp_path / "x.pt2", "--size", "64x50")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].endswith("this model takes multiples of 32, got 64x50.")


def test_memory_that_does_not_suffice_is_said_with_what_to_do():
    def lacks(error):
        with out_of_memory():
            raise error

    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")):
        with pytest.raises(click.ClickException, match="a smaller --window or --tile"):
            lacks(error)
    with pytest.raises(RuntimeError, match="bug"):
        lacks(RuntimeError("bug"))


def test_models_that_give_no_labels_are_named(tmp_path):
    torch.save(timm.create_model("test_mscan").state_dict(), tmp_path / "y.pth")
    run("convert", tmp_path / "y.pth", tmp_path / "backbone")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    for name, message in (
        ("mscan_b", "mscan_b is a backbone, which does not predict labels. Did you mean 'segnext_b.mmseg_ade20k'?"),
        (tmp_path / "backbone", "backbone: holds test_mscan, not a segmentation model"),
        (tmp_path / "broken", "config.json: not JSON ("),
        (tmp_path / "y.pth", "y.pth: a file, not a model folder. Convert it to a folder with `segnext-timm convert`."),
    ):
        done = run("predict", name, tmp_path, "-o", tmp_path / "out")
        assert done.exit_code == 2
        assert message in done.output.splitlines()[-1]


def test_weights_that_are_damaged_or_do_not_fit_are_named(folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"classes": 3', '"classes": 4'), encoding="utf-8")
    message = r"model: the weights do not fit its config\.json\. .*segmentation_head\.0\.weight"
    with pytest.warns(UserWarning, match="Mismatched keys"), pytest.raises(CheckpointError, match=message):
        load_segmenter(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"its model\.safetensors is damaged"):
        load_segmenter(folder)
    assert "model.safetensors: a damaged safetensors file" in run("info", folder).output


@pytest.mark.skipif(not hasattr(torch.cpu, "_is_amx_tile_supported"), reason="this torch does not know the CPU")
def test_predict_tells_a_slow_precision_once_before_it_starts(monkeypatch, folder, tmp_path):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / name)
    images = (tmp_path / "a.png", tmp_path / "b.png")
    done = run("predict", folder, *images, "-o", tmp_path / "out", "--precision", "bf16", "--device", "cpu")
    assert done.exit_code == 0
    assert done.stderr.startswith("This CPU has no bf16 arithmetic")
    assert done.stderr.count("no bf16 arithmetic") == 1
