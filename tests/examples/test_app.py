"""The page of examples/app.py, in a real browser."""

import importlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from PIL import Image

import segnext_timm
from segnext_timm.prediction.drawing import class_areas, share_text

pytestmark = pytest.mark.slow
APP = Path(__file__).parents[2] / "examples" / "app.py"
NAMES = ["road", "car", "<b>sky</b>"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    cfg = {"label_names": NAMES, "input_size": [3, 64, 64]}
    model = smp.SegNeXt(
        "tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=4, pretrained_cfg=cfg
    )
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    folder = tmp_path_factory.mktemp("app") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(model):
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, APP, model, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    from playwright import sync_api

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser, address):
    pages = []

    def make():
        page = browser.new_context(viewport={"width": 1280, "height": 960}).new_page()
        page.set_default_timeout(60_000)
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector("#run")
        page.wait_for_selector("#image input[type=file]", state="attached")
        pages.append(page)
        return page

    yield make
    for page in pages:
        page.context.close()


def picture(path, height, width, seed):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def rows(page):
    return [
        [cell.strip() for cell in row.split("\t") if cell.strip()]
        for row in page.locator("#areas tr").all_inner_texts()
    ]


def expected(model, path, **options):
    loaded = segnext_timm.fuse(smp.from_pretrained(model).eval())
    areas = class_areas(segnext_timm.predict(loaded, path, **options), NAMES)
    return [[area["name"], share_text(area["share"])] for area in areas]


def drop(page, path, size):
    """Upload a file, and wait for what the page says of an image of that size."""
    page.set_input_files("#image input[type=file]", path)
    page.get_by_text(f"{size[1]} × {size[0]} pixels in").wait_for()


def test_upload_predict_read_the_legend(open_page, model, tmp_path):
    page = open_page()
    path = picture(tmp_path / "a.png", 150, 200, seed=0)
    drop(page, path, (150, 200))
    assert rows(page) == expected(model, path)
    assert len(rows(page)) > 1
    assert page.locator("#slider img").count() == 2
    with page.expect_download() as waiting:
        page.locator("#download").click()
    with Image.open(waiting.value.path()) as labels:
        assert labels.mode == "P"
        assert labels.size == (200, 150)

    # other options
    page.get_by_label("sliding windows").check()
    page.get_by_label("Average with the mirrored image").check()
    slid = expected(model, path, mode="slide", flip=True)
    assert slid != rows(page)
    page.locator("#run").click()
    page.get_by_text(slid[0][1], exact=True).wait_for()
    assert rows(page) == slid
    page.screenshot(path=tmp_path / "page.png", full_page=True)

    # an example
    page.locator(".gallery-item").first.click()
    page.get_by_text("256 × 256 pixels in").wait_for()


def test_broken_files_are_told_on_the_page_and_the_next_is_segmented(open_page, model, tmp_path):
    page = open_page()
    (tmp_path / "broken.jpg").write_text("no image", encoding="utf-8")
    page.set_input_files("#image input[type=file]", tmp_path / "broken.jpg")
    page.get_by_role("alert").filter(has_text="The file cannot be read as an image").first.wait_for()
    page.screenshot(path=tmp_path / "broken.png", full_page=True)
    page.get_by_label("Remove Image").click()
    path = picture(tmp_path / "b.png", 120, 90, seed=1)
    drop(page, path, (120, 90))
    assert rows(page) == expected(model, path)


def test_two_users_at_once_get_their_own(open_page, model, tmp_path):
    pages = [open_page(), open_page()]
    sizes = [(140, 180), (160, 100)]
    paths = [picture(tmp_path / f"{i}.png", *size, seed=2 + i) for i, size in enumerate(sizes)]
    for page, path in zip(pages, paths):
        page.set_input_files("#image input[type=file]", path)
    for page, path, size in zip(pages, paths, sizes):
        page.get_by_text(f"{size[1]} × {size[0]} pixels in").wait_for()
        assert rows(page) == expected(model, path)


@pytest.fixture
def app():
    pytest.importorskip("gradio")
    return importlib.import_module("app")


def test_a_space_has_all_that_the_hub_wants(app, model, tmp_path):
    command = ["--make-space", str(tmp_path / "space"), "user/repo", "segnext_b", str(model)]
    app.main(command)
    files = {"README.md", "app.py", "models", "requirements.txt", "segmentation", "segnext_timm"}
    assert {f.name for f in (tmp_path / "space").iterdir()} == files
    _, front, _ = (tmp_path / "space" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["sdk"], front["app_file"]) == ("gradio", "app.py")
    assert len(front["short_description"]) <= 60
    source = (tmp_path / "space" / "app.py").read_text(encoding="utf-8")
    assert "MODELS = ['user/repo', 'segnext_b', 'models/model']" in source
    compile(source, "app.py", "exec")
    with pytest.raises(FileExistsError, match="is not empty"):
        app.main(command)


def test_a_space_installs_from_what_exists(app, model, tmp_path):
    app.main(["--make-space", str(tmp_path / "space"), str(model)])
    requirements = (tmp_path / "space" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("torch") for line in requirements)
    assert not any("segnext" in line or "extra" in line for line in requirements)
    # in a folder of its own the page imports the package beside it, and loads the model beside it
    code = "import app, segnext_timm as s; m = app.load(app.MODELS[0]); print(s.__file__); print(type(m).__name__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shutil.move(tmp_path / "space", tmp_path / "moved")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "moved", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    place, kind = done.stdout.splitlines()[-2:]
    assert Path(place).is_relative_to(tmp_path / "moved")
    assert kind == "SegNeXt"


def test_a_space_installs_as_it_is_told(app, tmp_path):
    app.main(
        ["--make-space", str(tmp_path / "space"), "user/repo", "--requirement", "segnext-timm @ git+https://x.org/y"]
    )
    assert (tmp_path / "space" / "requirements.txt").read_text() == "segnext-timm @ git+https://x.org/y\n"
    assert not (tmp_path / "space" / "segnext_timm").exists()


@pytest.mark.parametrize("name", ["segnext_b", "segnext_b.mmseg_ade20k", "user/repo"])
def test_the_page_takes_the_names_that_the_command_takes(app, name):
    app.check_model(name)


def test_models_that_do_not_exist_are_told_at_the_start(app, tmp_path):
    for command in (["none"], ["none", "--make-space", str(tmp_path / "space")]):
        with pytest.raises(FileNotFoundError, match=r"none: not a folder, and not one of segnext_t\.mmseg_ade20k"):
            app.main(command)
    assert not (tmp_path / "space").exists()
