"""The command: what it prints, in how many lines it fails, and what it checks before the long work."""

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
from PIL import Image

from command import COMMAND, NARROW, last_line, run, save_segmenter
from segnext_timm import __version__, load_segmenter
from segnext_timm.cli import main
from segnext_timm.errors import CheckpointError, ExportError, HubError, OptionError

QUICK = [("--help",), ("--version",), ("models",), ("info", "segnext_b"), ("info", "mscan_t"), ("predict", "--help")]
HEAVY = {"torch", "torchvision", "timm", "segmentation_models_pytorch", "numpy", "PIL", "huggingface_hub"}


@pytest.fixture
def checkpoint(tmp_path):
    model = smp.SegNeXt("tu-test_mscan", **NARROW)
    state_dict = {name: v for name, v in model.state_dict().items() if not name.endswith("bases")}
    torch.save(state_dict, tmp_path / "x.pth")
    return tmp_path / "x.pth"


@pytest.fixture
def folder(tmp_path):
    """A segmenter's folder."""
    return save_segmenter(tmp_path / "model")


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty place for downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Its processes


def imported(command):
    """Packages that a command imports, and what it prints."""
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 20
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}, done.stdout


@pytest.mark.parametrize("arguments", QUICK)
def test_quick_answers_import_nothing_heavy(arguments):
    packages, output = imported([COMMAND, *arguments])
    assert packages & HEAVY == set()
    assert packages >= {"click", "segnext_timm"}
    assert output.startswith(
        {"--help": "Usage: segnext-timm [OPTIONS] COMMAND", "--version": "segnext-timm"}.get(arguments[0], "")
    )
    assert len(output) > len(__version__)


@pytest.mark.timed
@pytest.mark.parametrize("arguments", QUICK)
def test_quick_answers_take_less_than_half_a_second(arguments):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([COMMAND, *arguments], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.5


def test_the_command_predicts_with_every_model_on_mscan_and_registers_the_others_in_its_own_process(image, tmp_path):
    smp.Unet(
        "tu-test_mscan", encoder_weights=None, classes=2, encoder_depth=4, decoder_channels=(32, 16, 16, 16)
    ).save_pretrained(tmp_path / "unet")
    code = """if True:
        import runpy, sys
        del sys.argv[0]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            assert not ended.code
        import timm, segmentation_models_pytorch as smp
        print(timm.is_model("mscan_t"), smp.MODEL_ARCHITECTURES_MAPPING["segnext"].__name__)
    """
    command = [COMMAND, "predict", tmp_path / "unet", image, "-o", tmp_path / "out", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
    assert (tmp_path / "out" / "a.png").is_file()
    assert done.stdout.splitlines()[-1] == "True SegNeXt"


def test_a_closed_pipe_ends_the_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([COMMAND, "models"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""


def test_the_command_leaves_the_loggers_of_others_alone():
    code = "import logging, sys; sys.argv = ['segnext-timm']  # or the import loads torch\n"
    code += "from segnext_timm.cli import main; main(['models'], standalone_mode=False); "
    code += "assert not logging.getLogger().handlers; logging.getLogger('other').error('once')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "once\n"


# Help, messages and errors


@pytest.mark.parametrize("name", main.commands)
def test_every_command_helps_with_an_example_and_a_text_for_each_option(name):
    done = run(name, "--help")
    assert (done.exit_code, run(name, "-h").output) == (0, done.output)
    assert f"\n    segnext-timm {name}" in done.output.partition("Examples:")[2]
    assert all(option.help for option in main.commands[name].params if isinstance(option, click.Option))


@pytest.fixture
def failing():
    """A command of this name that raises what it is given."""

    def run_failing(error, *options):
        @main.command("fail")
        def fail():
            raise error

        return run(*options, "fail")

    yield run_failing
    main.commands.pop("fail", None)


@pytest.mark.parametrize(
    "kind", [OptionError, CheckpointError, HubError, ExportError, FileNotFoundError, PermissionError, ConnectionError]
)
def test_errors_that_users_can_act_on_are_one_line(failing, kind):
    error = kind("wrong\nvalue")
    done = failing(error)
    assert (done.exit_code, done.output) == (1, "Error: wrong value\n")


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, TypeError, KeyError, ImportError])
def test_bugs_show_their_traceback(failing, kind):
    error = kind("bug")
    assert failing(error).exception is error


def test_wrong_usage_has_the_exit_status_2(failing):
    done = failing(click.UsageError("wrong"))
    assert (done.exit_code, last_line(done)) == (2, "Error: wrong")


@pytest.mark.parametrize(("interrupt", "message"), [((), "Interrupted."), (("Go on.",), "Interrupted. Go on.")])
def test_ctrl_c_has_the_exit_status_130(failing, interrupt, message):
    done = failing(KeyboardInterrupt(*interrupt))
    assert (done.exit_code, done.output) == (130, f"\n{message}\n")


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


# convert


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


def test_convert_fills_an_empty_folder_and_replaces_no_other(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    assert run("convert", checkpoint, tmp_path / "out").exit_code == 0
    assert smp.from_pretrained(tmp_path / "out").segmentation_head[0].out_channels == 3
    assert run("convert", checkpoint, tmp_path / "out").exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.pth"]


# export


@pytest.mark.parametrize(
    ("size", "expected"), [("64x32", (64, 32)), ("64X32", (64, 32)), ("64×32", (64, 32)), ("64", (64, 64))]
)
def test_sizes_are_height_by_width_or_one_number_for_a_square(size, expected):
    context = main.commands["export"].make_context("export", ["model", "x.pt2", "--size", size])
    assert context.params["size"] == expected


def test_export_takes_the_size_that_the_model_knows(folder, tmp_path):
    done = run("export", folder, tmp_path / "model.pt2", "--argmax")
    assert done.exit_code == 0, done.output
    assert "Exporting for images (1, 3, 64, 96) ..." in done.output
    assert f"Wrote {tmp_path / 'model.pt2'}" in done.output
    images, model = torch.randn(1, 3, 64, 96), load_segmenter(folder)
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(images), model.predict_labels(images))


def test_export_names_a_size_that_the_model_cannot_take(tmp_path):
    smp.Linknet("resnet18", encoder_weights=None, classes=2).save_pretrained(tmp_path / "linknet")
    done = run("export", tmp_path / "linknet", tmp_path / "x.pt2", "--size", "64x50")
    assert done.output == f"Error: {tmp_path / 'linknet'} takes sizes that are multiples of 32, got 64x50.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x.onnx", "--precision", "int8"), "takes them: pass a folder (--calibration DIR)."),
        (("x.onnx", "--calibration", "."), "takes them: pass a folder (--calibration DIR)."),
        (("x.onnx", "--precision", "int8", "--calibration", "none"), "Directory 'none' does not exist."),
        (("x.pt2", "--precision", "fp16"), "x.pt2: .pt2 can be fp32, not 'fp16'."),
        (("x.onnx", "--target", "deepness"), "(--resolution 10), got 'deepness' with None."),
        (("x.onnx", "--target", "deepness", "--resolution", "5", "--size", "64x96"), "not a size of (64, 96)."),
        (("x.onnx", "--portable"), "portable applies to graphs of labels: set argmax (--argmax) too."),
    ],
)
def test_export_refuses_options_before_a_download(empty_cache, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = run("export", "segnext_t", *arguments)
    assert done.exit_code == (2 if "Directory" in message else 1)
    assert last_line(done).endswith(message)
    assert not empty_cache.exists()


def test_export_names_a_missing_package_before_a_download(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = run("export", "segnext_t", tmp_path / "x.onnx")
    assert done.exit_code == 1
    assert done.output.startswith("Error: Exporting to .onnx needs onnx")
    assert done.output.count("\n") == 1
    assert not empty_cache.exists()


# Arguments


def test_mistakes_end_in_one_line(checkpoint, tmp_path):
    (tmp_path / "page.pth").write_text("<html>", encoding="utf-8")
    (tmp_path / "photos").mkdir()
    for arguments, message in (
        (("convert", tmp_path / "none.pth", tmp_path / "out"), "none.pth: no such file."),
        (("convert", tmp_path / "page.pth", tmp_path / "out"), "page.pth: a web page, not a checkpoint"),
        (("convert", checkpoint, tmp_path), "exists: choose another name, or replace a model folder with --force"),
        (("convert", checkpoint, tmp_path / "out", "--classes", "ade"), "ade: no such file of class names, and not a"),
        (("push", tmp_path / "none", "user/repo"), "no such folder"),
        (("export", tmp_path / "none", tmp_path / "x.onnx"), "not a folder, not a Hub repository"),
    ):
        done = run(*arguments)
        assert done.exit_code == 1, done.output
        assert message in done.output
        assert done.output.startswith("Error: ")
        assert done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "foo"), "There is no device 'foo' here. This machine has cpu"),
        (("--device", "meta"), "There is no device 'meta' here. This machine has cpu"),
        (("--device", "cuda:99"), "There is no device 'cuda:99' here. This machine has cpu"),
        (("--window", "64 64"), "'64 64' is not a size: give pixels, such as 512, or two sides, such as 512x1024."),
        (("--stride", "-8"), "'-8' is not a size: give pixels"),
        (("--fit", "2048x"), "give pixels, such as 512, or two sides, such as 512x1024, or auto, or own."),
        (("--window", "16x64"), "16 is not in the range x>=32."),
        (("--window", "64", "--stride", "99"), "stride must be from 1 to the window's side, got (99, 99)"),
        (("--scales", "1,0"), "1,0 are not positive numbers, such as 0.5,1,1.5."),
        (("--scales", "1,inf"), "1,inf are not positive numbers, such as 0.5,1,1.5."),
        (("--scales", "1,a"), "'a' is not a valid float."),
    ],
)
def test_predict_checks_its_options_before_a_download(empty_cache, image, tmp_path, arguments, message):
    done = run("predict", "segnext_t", image, "-o", tmp_path / "out", *arguments)
    assert done.exit_code == (1 if "--device" in arguments else 2)
    assert message in last_line(done)
    assert not empty_cache.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("export", "segnext_t", "x.txt"), 1, "x.txt: the name of an exported model ends in .onnx"),
        (("export", "segnext_t", "."), 1, ".: the name of an exported model ends in .onnx"),
        (("export", "segnext_t", "x.pt2", "--size", "512,512"), 2, "'512,512' is not a size: give pixels"),
        (("convert", "x.pth", "out", "--rank", "0"), 2, "0 is not in the range x>=1."),
        (("push", "folder", "model"), 2, "'model' is not a repository on the Hub: give user/name."),
        (("push", "folder", "user/my model"), 2, "'user/my model' is not a repository on the Hub: give user/name."),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(
    empty_cache, tmp_path, monkeypatch, arguments, status, message
):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == status
    assert message in last_line(done)
    assert not list(tmp_path.iterdir())


# predict; tests/prediction/test_files.py has what it writes


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_predict_says_what_to_do_if_memory_does_not_suffice(folder, image, tmp_path, monkeypatch, error):
    def lack(*arguments, **options):
        raise error

    monkeypatch.setattr(torch.nn.Module, "to", lack)
    done = run("predict", folder, image, "-o", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 1
    assert done.output == "Error: Out of memory: try --mode slide, or a smaller --window.\n"


def test_a_folder_named_as_a_number_is_predicted_after_a_size(folder, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("123").mkdir()
    image.rename("123/a.png")
    done = run("predict", folder, "--window", "512", "123", "-o", "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert Path("out/a.png").is_file()


def test_predict_tells_a_slow_precision_once_before_it_starts(folder, image, tmp_path):
    shutil.copy(image, tmp_path / "b.png")
    images = (image, tmp_path / "b.png")
    done = run("predict", folder, *images, "-o", tmp_path / "out", "--precision", "bf16", "--device", "cpu")
    assert done.exit_code == 0
    assert done.stderr.startswith("On most CPUs, bf16 is about ten times slower than fp32.\n")
    assert done.stderr.count("times slower") == 1


def test_examples_are_copied_to_a_new_or_empty_folder_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new", tmp_path / "empty"):
        done = run("examples", folder)
        assert done.exit_code == 0, done.output
        assert f"Wrote the examples of segnext-timm {__version__} to {folder}" in done.output
        assert (folder / "recipes" / "folder.yaml").is_file()
        assert not list(folder.rglob("__pycache__"))
    before = (tmp_path / "new" / "train.py").read_bytes()
    for folder in (tmp_path / "new", tmp_path / "new" / "train.py"):
        done = run("examples", folder)
        assert done.exit_code == 1
        assert last_line(done) == f"Error: {folder} is not a new or empty folder: choose another."
    assert (tmp_path / "new" / "train.py").read_bytes() == before


def test_copying_examples_imports_nothing_heavy(tmp_path):
    assert imported([COMMAND, "examples", str(tmp_path / "examples")])[0] & HEAVY == set()
