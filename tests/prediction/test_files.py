import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from click.testing import CliRunner
from PIL import Image

import segnext_timm.prediction.files
from segnext_timm import fuse, predict
from segnext_timm.cli import main
from segnext_timm.errors import OptionError
from segnext_timm.prediction.files import find_images, outputs, predict_files

NAMES, PALETTE = ["road", "car", "sky"], [[90, 90, 100], [200, 20, 20], [130, 190, 240]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder."""
    torch.manual_seed(0)
    cfg = {"label_names": NAMES, "palette": PALETTE, "input_size": [3, 64, 64]}
    model = smp.SegNeXt(
        "tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=4, pretrained_cfg=cfg
    )
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(50, 70)).save(folder / name)


def run(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def test_results_lie_as_the_images_do(tmp_path):
    write(tmp_path / "in", "a.jpg", "b/c.png", "b/c.webp", "D.PNG")
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / "paper.pdf").touch()  # which Pillow writes, but does not read
    out = tmp_path / "in" / "out"
    write(out, "old.png")
    places = find_images([tmp_path / "in"], out)
    expected = {"a.jpg": "a", "b/c.png": "b/c.png", "b/c.webp": "b/c.webp", "D.PNG": "D"}
    assert places == {tmp_path / "in" / file: out / place for file, place in expected.items()}
    assert find_images([tmp_path / "in" / "*" / "*.webp"], out) == {tmp_path / "in" / "b" / "c.webp": out / "b" / "c"}
    assert find_images([tmp_path / "in" / "b" / "c.png"], out) == {tmp_path / "in" / "b" / "c.png": out / "c"}
    assert out / "old.png" in find_images([tmp_path / "in"], tmp_path)  # results go beside the folder


def test_no_image_is_written_over(tmp_path):
    write(tmp_path, "a.png", "b/a.png")
    for paths, out, error, message in (
        ([tmp_path / "a.png"], tmp_path, OptionError, r"contains a\.png, a file to predict: choose another folder"),
        ([tmp_path / "a.png", tmp_path / "b" / "a.png"], tmp_path / "o", OptionError, "results would share a name"),
        ([tmp_path], tmp_path, OptionError, "is the folder of the images: choose another for the results"),
        ([tmp_path / "a.png"], tmp_path / "a.png", OptionError, r"a\.png is a file, but the results need a folder"),
        ([tmp_path / "none.png"], tmp_path / "o", FileNotFoundError, r"none\.png: no such file or folder"),
        ([tmp_path / "*.jpg"], tmp_path / "o", FileNotFoundError, r"no images in .*\*\.jpg"),
    ):
        with pytest.raises(error, match=message):
            find_images(paths, out)


def test_predict_writes_labels_overlay_probabilities_and_areas(model, tmp_path):
    write(tmp_path / "in", "a.jpg", "b/c.png")
    done = run(model, tmp_path / "in", "-o", tmp_path / "out", "--areas", "--probabilities", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert f"Predicted 2 of 2 images to {tmp_path / 'out'}." in done.output
    files = sorted(str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file())
    each = (".png", "_overlay.jpg", "_probabilities.npy")
    assert files == sorted([*(f"a{e}" for e in each), *(f"b/c{e}" for e in each), "areas.json"])
    loaded = fuse(smp.from_pretrained(model).eval()).to(memory_format=torch.channels_last)
    expected = predict(loaded, tmp_path / "in" / "b" / "c.png")
    assert len(np.unique(expected)) > 1
    with Image.open(tmp_path / "out" / "b" / "c.png") as picture:
        assert np.array_equal(np.asarray(picture), expected)
        assert picture.getpalette()[:9] == [value for color in PALETTE for value in color]
    shares = np.load(tmp_path / "out" / "b" / "c_probabilities.npy")
    assert (shares.shape, shares.dtype) == ((3, 50, 70), np.float16)
    assert (shares.argmax(0) == expected).mean() > 0.99
    with Image.open(tmp_path / "out" / "b" / "c_overlay.jpg") as picture:
        assert picture.width >= 70
        assert picture.height > 50
    (entry,) = (
        entry
        for entry in json.loads((tmp_path / "out" / "areas.json").read_text())["images"]
        if entry["file"].endswith("c.png")
    )
    assert (entry["height"], entry["width"]) == (50, 70)
    assert {c["name"]: c["pixels"] for c in entry["classes"]} == {
        NAMES[label]: (expected == label).sum() for label in np.unique(expected)
    }


def test_broken_images_are_listed_and_the_others_predicted(model, tmp_path):
    write(tmp_path / "in", "a.png", "z.jpg")
    content = (tmp_path / "in" / "z.jpg").read_bytes()
    (tmp_path / "in" / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "in" / "text.jpg").write_text("no image", encoding="utf-8")
    (tmp_path / "in" / "empty.png").touch()
    done = run(model, tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "Predicted 2 of 5 images" in done.output
    for name in ("cut.jpg", "text.jpg", "empty.png"):
        (line,) = (line for line in done.stderr.splitlines() if name in line)
        assert line.startswith(f"{tmp_path / 'in' / name}: cannot be read as an image")
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == {"a.png", "a_overlay.jpg", "z.png", "z_overlay.jpg"}


def test_models_of_four_channels_get_their_overlay(tmp_path):
    cfg = {"mean": [0.5] * 4, "std": [0.25] * 4}
    model = smp.SegNeXt(
        "tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, in_channels=4, pretrained_cfg=cfg
    )
    Image.fromarray(np.dstack([noise(50, 70), noise(50, 70)[..., 0]])).save(tmp_path / "four.png")
    segnext_timm.prediction.files.predict_file(model, tmp_path / "four.png", tmp_path / "out" / "four")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"four.png", "four_overlay.jpg"}


def test_panoramas_longer_than_jpeg_allows_get_their_overlay(model, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(2, 66_000)).save(tmp_path / "in" / "long.png")
    done = run(model, tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "out" / "long_overlay.png") as picture:
        assert picture.width == 66_000
    assert (tmp_path / "out" / "long.png").is_file()


def test_resume_leaves_out_what_is_there(model, tmp_path):
    write(tmp_path / "in", "a.png", "b.png")
    run(model, tmp_path / "in" / "a.png", "-o", tmp_path / "out", "--areas", "--no-overlay")
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    done = run(model, tmp_path / "in", "-o", tmp_path / "out", "--areas", "--no-overlay", "--resume")
    assert done.exit_code == 0
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before
    listed = json.loads((tmp_path / "out" / "areas.json").read_text())["images"]
    assert [entry["file"] for entry in listed] == [str(tmp_path / "in" / name) for name in ("a.png", "b.png")]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["a.png", "areas.json", "b.png"]


def test_labels_that_will_be_replaced_are_counted_before(model, tmp_path):
    write(tmp_path / "in", "a.png", "b.png")
    said = "The labels of 1 images in"
    assert said not in run(model, tmp_path / "in" / "a.png", "-o", tmp_path / "out").output
    assert run(model, tmp_path / "in", "-o", tmp_path / "out").output.startswith(said)
    assert said not in run(model, tmp_path / "in", "-o", tmp_path / "out", "--resume").output


def test_an_image_of_several_pages_is_named(model, tmp_path):
    pages = [Image.fromarray(noise(50, 70, seed)) for seed in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    done = run(model, tmp_path / "a.tif", "-o", tmp_path / "out", "--no_overlay")  # or --no-overlay
    assert "a.tif holds 3 pages: only the first one is predicted." in done.output
    assert done.exit_code == 0


def test_resume_predicts_again_what_is_damaged_or_lacks_probabilities(model, tmp_path):
    write(tmp_path / "in", "a.png", "b.png")
    command = (model, tmp_path / "in", "-o", tmp_path / "out", "--no-overlay", "--resume")
    assert "Predicted 2 of 2" in run(*command).output
    assert "Predicted 2 of 2" in run(*command, "--probabilities").output
    assert np.load(tmp_path / "out" / "a_probabilities.npy").shape == (3, 50, 70)
    (tmp_path / "out" / "a.png").write_bytes(b"cut short")
    assert "Predicted 1 of 2" in run(*command, "--probabilities").output
    assert Image.open(tmp_path / "out" / "a.png").size == (70, 50)


def test_resume_lists_the_areas_of_what_is_there(model, tmp_path):
    write(tmp_path / "in", "a.png")
    run(model, tmp_path / "in", "-o", tmp_path / "out", "--areas")
    listed = (tmp_path / "out" / "areas.json").read_text()
    (tmp_path / "out" / "areas.json").unlink()
    run(model, tmp_path / "in", "-o", tmp_path / "out", "--areas", "--resume")
    assert (tmp_path / "out" / "areas.json").read_text() == listed


def test_an_interrupt_keeps_what_is_done_and_leaves_nothing_half_written(model, tmp_path):
    write(tmp_path / "in", "a.png", "b.png")
    loaded = smp.from_pretrained(model).eval()
    places = find_images([tmp_path / "in"], tmp_path / "out")

    def interrupt(file, share):
        if file.name == "b.png" and share > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(loaded, places, tmp_path / "out", areas=True, report=interrupt)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["a.png", "a_overlay.jpg", "areas.json"]
    assert len(json.loads((tmp_path / "out" / "areas.json").read_text())["images"]) == 1


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(model, tmp_path):
    write(tmp_path / "in", *(f"{i}.png" for i in range(30)))
    command = [sys.executable, "-m", "segnext_timm", "predict", model, tmp_path / "in", "-o", tmp_path / "out"]
    views = ["--mode", "slide", "--window", "32", "--scales", "1,2,3,4", "--flip"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background processes ignore it
    running = subprocess.Popen([*command, *views], stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while not (tmp_path / "out" / "0.png").exists():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate()
    assert running.returncode == 130
    kept = len(list((tmp_path / "out").glob("*.png")))
    assert 0 < kept < 30
    message = f"Interrupted. Labels of {kept} of 30 files are in {tmp_path / 'out'}; run the same command with"
    assert stderr.splitlines()[-1] == f"{message} --resume to go on."
    other = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    made = f"{model}, mode slide, window (32, 32), scales (1.0, 2.0, 3.0, 4.0), flip True"
    assert f"was predicted with {made}, not with {model}, mode auto, scales (1.0,): choose another" in other.stderr
    assert (other.returncode, len(list((tmp_path / "out").glob("*.png")))) == (1, kept)
    missing = [file for file in (tmp_path / "in").iterdir() if not (tmp_path / "out" / file.name).exists()]
    for file in missing[1:]:  # one is enough
        file.unlink()
    done = subprocess.run([*command, *views, "--resume"], capture_output=True, text=True)
    said = f"Predicted 1 of {kept + 1} images to {tmp_path / 'out'}; the labels of {kept} were there.\n"
    assert (done.returncode, done.stdout) == (0, said)


def test_labels_of_another_model_are_not_resumed_from(model, tmp_path):
    write(tmp_path / "in", "a.png")
    other = tmp_path / "other"
    shutil.copytree(model, other)
    run(model, tmp_path / "in", "-o", tmp_path / "out")
    before = (tmp_path / "out" / "a.png").read_bytes()
    done = run(other, tmp_path / "in", "-o", tmp_path / "out", "--resume")
    assert done.exit_code == 1
    assert f"a.png was predicted with {model}, mode auto, scales (1.0,), not with {other}" in done.output
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    with Image.open(tmp_path / "out" / "a.png") as picture:
        picture.save(tmp_path / "out" / "a.png")  # an editor may drop the metadata
    done = run(other, tmp_path / "in", "-o", tmp_path / "out", "--resume")
    assert done.output.endswith(
        "Predicted 0 of 1 images to " + str(tmp_path / "out") + "; the labels of 1 were there.\n"
    )


def test_hidden_files_are_not_images(model, tmp_path):
    write(tmp_path / "in", "a.png")
    (tmp_path / "in" / "._a.jpg").write_bytes(b"what macOS writes")
    assert run(model, tmp_path / "in", "-o", tmp_path / "out").exit_code == 0


def test_images_in_hidden_folders_are_left_out(tmp_path):
    root = tmp_path / ".hidden" / "in"  # above the folder given, this does not matter
    write(root, "a.png", ".ipynb_checkpoints/b-checkpoint.png", "c/.cache/d/e.png", "c/f.png")
    assert [*find_images([root], tmp_path / "out")] == [root / "a.png", root / "c" / "f.png"]


@pytest.mark.parametrize("names", [("a_overlay.jpg", "a.jpg"), ("a.jpg", "a_overlay.jpg")])
def test_labels_named_as_an_overlay_are_kept(model, tmp_path, names):
    write(tmp_path / "in", *names)
    run(model, *(tmp_path / "in" / name for name in names), "-o", tmp_path / "out", "--no-overlay")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"a.png", "a_overlay.png"}


def test_files_that_no_prediction_wrote_stay_however_often_is_predicted(model, tmp_path):
    write(tmp_path / "in", "a.jpg")
    write(tmp_path / "out", "a_overlay.png", "a_overlay.jpg")
    (tmp_path / "out" / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}', encoding="utf-8")
    np.save(tmp_path / "out" / "a_probabilities.npy", np.zeros((3, 50, 70), np.float16))
    (tmp_path / "out" / "a.tif").write_text("of the owner", encoding="utf-8")
    before = {f: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    loaded = smp.from_pretrained(model).eval()
    for _ in range(2):
        segnext_timm.prediction.files.predict_file(
            loaded, tmp_path / "in" / "a.jpg", tmp_path / "out" / "a", overlays=False
        )
    assert {f: f.read_bytes() for f in before} == before
    assert outputs(tmp_path / "out" / "a") == {"labels": tmp_path / "out" / "a.png"}


def test_areas_are_those_of_every_image_and_unreadable_ones_are_listed(model, tmp_path):
    write(tmp_path / "in", "a.png", "b.jpg")
    (tmp_path / "in" / "text.jpg").write_text("no image", encoding="utf-8")
    run(model, tmp_path / "in" / "a.png", "-o", tmp_path / "out")
    done = run(model, tmp_path / "in", "-o", tmp_path / "out", "--areas", "--resume")
    assert done.exit_code == 1
    entries = json.loads((tmp_path / "out" / "areas.json").read_text(encoding="utf-8"))["images"]
    assert [Path(entry["file"]).name for entry in entries] == ["a.png", "b.jpg"]
    for entry in entries:
        with Image.open(tmp_path / "out" / f"{Path(entry['file']).stem}.png") as picture:
            labels = np.asarray(picture)
        assert (entry["height"], entry["width"]) == labels.shape == (50, 70)
        pixels = {int(label): int((labels == label).sum()) for label in np.unique(labels)}
        assert {c["label"]: c["pixels"] for c in entry["classes"]} == pixels
    assert f"{tmp_path / 'in' / 'text.jpg'}: cannot be read as an image" in done.stderr
    assert f"Predicted 1 of 3 images to {tmp_path / 'out'}; the labels of 1 were there." in done.stdout


def test_options_reach_the_prediction(model, tmp_path, monkeypatch):
    write(tmp_path, "a.png")
    given = {}

    def noted(model, file, result, **options):
        given.update(options)
        return {}

    monkeypatch.setattr(segnext_timm.prediction.files, "predict_file", noted)
    options = "--mode slide --window 64 --stride 32x48 --scales 0.5,1 --flip --fit 80x60 --precision bf16 --batch 2"
    done = run(model, tmp_path / "a.png", "-o", tmp_path / "out", "--device", "cpu", "--no-overlay", *options.split())
    assert done.exit_code == 0, done.output
    del given["progress"], given["origin"]
    assert given == {
        "mode": "slide",
        "window": (64, 64),
        "stride": (32, 48),
        "scales": (0.5, 1.0),
        "flip": True,
        "fit_in": (80, 60),
        "precision": "bf16",
        "batch": 2,
        "overlays": False,
        "probabilities": False,
        "save_as": None,
        "simplify": 0,
        "frame_labels": False,
    }


def test_videos_in_a_folder_are_left_out_beside_images_but_not_without(model, tmp_path):
    write(tmp_path / "both", "a.png")
    videos = [tmp_path / "both" / "b.mp4", tmp_path / "videos" / "b.mp4", tmp_path / "videos" / "b.MOV"]
    (tmp_path / "videos").mkdir()
    for video in (*videos, tmp_path / "videos" / "._b.mp4"):
        video.touch()
    done = run(model, tmp_path / "both", "-o", tmp_path / "out")
    assert f"Left out 1 videos beside images, such as {videos[0]}: name the ones to predict." in done.output
    assert "Predicted 1 of 1 images" in done.output
    assert [*find_images([tmp_path / "both", videos[0]], tmp_path / "out")] == [tmp_path / "both" / "a.png", videos[0]]
    found = find_images([tmp_path / "videos"], tmp_path / "out")
    assert found == {videos[2]: tmp_path / "out" / "b.MOV", videos[1]: tmp_path / "out" / "b.mp4"}


def test_what_videos_do_not_have_is_told_before_anything_is_done(model, tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    for option, message in (
        ((), 'a.mp4 is a video, which PyAV reads: pip install "segnext-timm[video]"'),
        (("--save_as", "coco"), "a.mp4 is a video, but --save_as is for images: leave one of them out."),
        (("--probabilities",), "a.mp4 is a video, but --probabilities is for images: leave one of them out."),
        (("--no-overlay",), "a.mp4 is a video, but --no-overlay is for images: leave one of them out."),
    ):
        done = run(model, tmp_path / "a.mp4", "-o", tmp_path / "out", *option)
        assert (done.exit_code, done.output) == (1, f"Error: {tmp_path}/{message}\n")
    assert not (tmp_path / "out").exists()


def test_mistakes_end_in_one_line_before_anything_is_done(model, tmp_path):
    write(tmp_path, "a.png")
    for arguments, message in (
        ((model, tmp_path / "none.png", "-o", tmp_path / "out"), "no such file or folder"),
        ((tmp_path / "none", tmp_path / "a.png", "-o", tmp_path / "out"), "not a folder, not a Hub repository"),
        ((model, tmp_path / "a.png", "-o", tmp_path), "contains a.png, a file to predict"),
        (
            (model, tmp_path / "a.png", "-o", tmp_path / "a.png" / "out"),
            "a.png is a file, but the results need a folder",
        ),
        ((model, tmp_path / "a.png", "-o", tmp_path / "out", "--scales", "a"), "'a' is not a valid float."),
        ((model, tmp_path / "a.png", "-o", tmp_path / "out", "--device", "gpu"), "device"),
        (
            (model, tmp_path / "a.png", tmp_path / "a.png", "-o", tmp_path / "out", "--window", 64, "--stride", 99),
            "Error: Invalid value for '--stride': stride must be from 1 to the window's side, got (99, 99) of (64, 64)",
        ),
        ((model, tmp_path / "a.png"), "Missing option '-o'"),
        ((model, "https://x.org/a.png", "-o", tmp_path / "out"), "https://x.org/a.png is an address, not a file"),
    ):
        done = run(*arguments)
        assert done.exit_code not in (0, None)
        assert isinstance(done.exception, SystemExit)
        assert message in done.output
        assert "Traceback" not in done.output
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.slow
def test_a_folder_of_all_kinds_and_a_hundred_megapixels_take_little_memory(model, tmp_path):
    write(tmp_path / "in", "plain.png")
    array = noise(50, 70)
    gray = np.asarray(Image.fromarray(array).convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "in" / "turned.jpg", exif=exif)
    Image.fromarray(gray).save(tmp_path / "in" / "gray.png")
    Image.fromarray(array).convert("RGBA").save(tmp_path / "in" / "rgba.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "in" / "sixteen.png")
    content = (tmp_path / "in" / "turned.jpg").read_bytes()
    (tmp_path / "in" / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "in" / "text.jpg").write_text("no image", encoding="utf-8")
    (tmp_path / "in" / "empty.png").touch()
    Image.fromarray(noise(90, 120)).resize((12_000, 9_000), Image.Resampling.NEAREST).save(
        tmp_path / "in" / "large.jpg"
    )
    command = [sys.executable, "-m", "segnext_timm", "predict", model, tmp_path / "in", "-o", tmp_path / "out"]
    # in a process of its own, whose only child is the command
    measure = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
    measure += "print('KiB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    command = [sys.executable, "-c", measure, *command, "--window", "512"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Predicted 6 of 9 images" in done.stdout
    assert len([line for line in done.stderr.splitlines() if "cannot be read as an image" in line]) == 3
    loaded = smp.from_pretrained(model).eval()
    for name, image in (
        ("plain", array),
        ("turned", tmp_path / "in" / "turned.jpg"),
        ("gray", gray),
        ("rgba", array),
        ("sixteen", gray),
    ):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.size == ((50, 70) if name == "turned" else (70, 50))
            assert (np.asarray(picture) == predict(loaded, image)).mean() > 0.999, name  # fused: up to rounding
    with Image.open(tmp_path / "out" / "large.png") as picture:
        assert picture.size == (12_000, 9_000)
    assert int(done.stdout.split("KiB")[1]) < 4 << 20


def test_results_of_earlier_predictions_are_no_images(model, tmp_path):
    write(tmp_path / "in", "a.jpg", "b.png", "own_overlay.jpg")
    images, earlier = sorted((tmp_path / "in").iterdir()), tmp_path / "in" / "out"
    run(model, tmp_path / "in", "-o", earlier)
    assert len(list(earlier.iterdir())) == 6
    done = run(model, tmp_path / "in", "-o", tmp_path / "again")
    assert f"Left out 6 results of earlier predictions, such as {earlier / 'a.png'}." in done.output
    assert "Predicted 3 of 3 images" in done.output
    assert list(find_images([str(tmp_path / "in" / "**" / "*.jpg")], tmp_path / "more")) == [images[0], images[2]]
    assert list(find_images([earlier / "a.png"], tmp_path / "more")) == [earlier / "a.png"]  # named
    with pytest.raises(FileNotFoundError, match="no images in"):
        find_images([earlier], tmp_path / "more")
