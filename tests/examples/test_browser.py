"""The page of examples/deployment/browser, in a real browser: Python's labels, no request elsewhere, offline."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmentation import scenes
from segnext_timm import export
from small_models import narrow

BUILD = Path(__file__).parents[2] / "examples" / "deployment" / "browser" / "build.py"
SIZE = (1, 3, 96, 128)
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    cfg = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "label_names": ["sky", "road", "car"]}
    model = narrow(pretrained_cfg=cfg | {"palette": [[10, 20, 30], [40, 50, 60], [70, 80, 90]]}).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    return model


@pytest.fixture(scope="module")
def site(model, tmp_path_factory):
    """The built site, or a skip where npm is missing or has no registry."""
    pytest.importorskip("onnxruntime")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("browser")
    file = export(model, folder / "model.onnx", SIZE, argmax=True, portable=True)
    done = subprocess.run([sys.executable, BUILD, file, folder / "site"], capture_output=True, text=True)
    if "npm cannot download" in done.stderr:
        pytest.skip("npm has no registry here")
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends within 10 ms
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page(address):
    from playwright import sync_api

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 900, "height": 900})
        page.set_default_timeout(60_000)
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(address)
        page.get_by_text("Ready. Drop a photo.").wait_for()
        yield page
        browser.close()


def expected_labels(model, picture):
    """Labels of a picture that is resized to fit, as the page does it."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    scale = min(SIZE[3] / picture.width, SIZE[2] / picture.height)
    width, height = (max(int(side * scale + 0.5), 1) for side in picture.size)
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    images = torch.zeros(SIZE)
    images[:, :, :height, :width] = (resized / 255 - mean) / std
    return model.predict_labels(images)[0, :height, :width].numpy()


@pytest.mark.parametrize("size", [(201, 133), (77, 150), (64, 63)])
def test_labels_equal_python_s_without_a_request_elsewhere_and_offline(page, model, address, tmp_path, size):
    scene = Image.fromarray(scenes.draw(3, size[0], 128)[0]).resize(size, Image.Resampling.BICUBIC)
    scene.save(tmp_path / "photo.png")
    page.context.set_offline(True)
    try:
        page.evaluate("window.result = null")
        page.set_input_files("#file", tmp_path / "photo.png")
        for _ in range(600):  # the page's policy forbids playwright's own wait, which evaluates a text
            if page.evaluate("window.result !== null"):
                break
            page.wait_for_timeout(100)
    finally:
        page.context.set_offline(False)
    found = page.evaluate("({labels: Array.from(window.result.labels), size: window.result.size})")
    labels = np.array(found["labels"]).reshape(found["size"][::-1])
    expected = expected_labels(model, scene)
    assert labels.shape == expected.shape
    assert (labels == expected).mean() > 0.999
    legend = page.locator("#legend li").all_inner_texts()
    shares = {name: (expected == i).mean() for i, name in enumerate(["sky", "road", "car"]) if (expected == i).any()}
    assert {line.rsplit(" ", 1)[0] for line in legend} == set(shares)
    assert all(url.startswith((address, "blob:", "data:")) for url in page.requests)
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_the_slider_uncovers_the_photo(page):
    page.locator("#slider").fill("25")
    assert "inset(0px 75% 0px 0px)" in page.locator("#overlay").evaluate("e => getComputedStyle(e).clipPath")


def test_a_file_that_is_no_image_is_named(page, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    page.set_input_files("#file", tmp_path / "notes.png")
    page.get_by_text("notes.png cannot be read as an image.").wait_for()


def test_graphs_that_do_not_fit_the_page_are_named(model, tmp_path):
    for options, message in (
        ({}, "must give labels for one size"),
        ({"argmax": True, "portable": True, "dynamic": True}, "must give labels for one size"),
    ):
        file = export(model, tmp_path / "x.onnx", SIZE, **options)
        done = subprocess.run([sys.executable, BUILD, file, tmp_path / "site"], capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr
    assert not (tmp_path / "site").exists()
