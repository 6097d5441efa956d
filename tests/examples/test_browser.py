"""The page of examples/deployment/browser, in a real browser: Python's labels, no request elsewhere, offline."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from page_pictures import chromium, hosted
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
    with hosted(site) as found:
        yield found


@pytest.fixture(scope="module")
def open_page(address):
    """Opens the page in a browser of its own."""
    with chromium() as browser:

        def make(width=900, height=900, **options):
            page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
            page.set_default_timeout(60_000)
            page.requests = []
            page.on("request", lambda request: page.requests.append(request.url))
            page.goto(address)
            page.get_by_text("Ready. Drop a photo.").wait_for()
            return page

        yield make


@pytest.fixture(scope="module")
def page(open_page):
    return open_page()


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
    legend = dict(line.split("\n") for line in page.locator("#legend li").all_inner_texts())
    shares = {name: (expected == i).mean() for i, name in enumerate(["sky", "road", "car"]) if (expected == i).any()}
    assert {name: float(share.removesuffix("%")) for name, share in legend.items()} == pytest.approx(
        {name: 100 * share for name, share in shares.items()}, abs=0.2
    )
    assert all(url.startswith((address, "blob:", "data:")) for url in page.requests)
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def show_scene(page, tmp_path):
    scene = Image.fromarray(scenes.draw(3, 0, 96)[0])
    scene.save(tmp_path / "photo.png")
    page.set_input_files("#file", tmp_path / "photo.png")
    page.get_by_text("Segmented at 96 × 96 pixels").wait_for()
    return np.array(scene)


def test_the_slider_shows_the_photo_on_its_left_and_the_classes_on_its_right_as_their_labels_say(open_page, tmp_path):
    page = open_page()
    photo = show_scene(page, tmp_path)
    page.locator("#slider").fill("25")
    assert page.locator("#overlay").evaluate("e => getComputedStyle(e).clipPath") == "inset(0px 0px 0px 25%)"
    left, right = (page.locator(".tag", has_text=text).bounding_box()["x"] for text in ("Photo", "Classes"))
    assert left < right
    with Image.open(io.BytesIO(page.locator("#compare").screenshot())) as shot:
        shown = np.array(shot.convert("RGB").resize((96, 96), Image.Resampling.BOX)).astype(int)
    difference = abs(shown - photo)[20:90].mean((0, 2))
    assert 3 * difference[:20].mean() < difference[30:90].mean()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_phones_and_screens_show_all_in_light_and_dark(open_page, tmp_path, scheme, width):
    page = open_page(width, 844, color_scheme=scheme)
    show_scene(page, tmp_path)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    color = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (min(int(value) for value in color[4:-1].split(",")) > 128) == (scheme == "light")
    stage, legend = (page.locator(name).bounding_box() for name in ("#compare", "#legend"))
    assert (legend["y"] >= stage["y"] + stage["height"]) == (width == 390)
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_the_page_opens_again_without_a_network(open_page, tmp_path):
    page = open_page()
    page.context.set_offline(True)
    page.reload()
    page.get_by_text("Ready. Drop a photo.").wait_for()
    show_scene(page, tmp_path)


def test_the_camera_s_picture_is_segmented_until_it_is_stopped(open_page):
    page = open_page(permissions=["camera"])
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_text("Segmented at 128 × 96 pixels").wait_for()
    page.get_by_role("button", name="Stop the camera").click()
    page.get_by_role("button", name="Use the camera").wait_for()


def test_a_file_that_is_no_image_is_named(page, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    page.set_input_files("#file", tmp_path / "notes.png")
    page.get_by_text("notes.png cannot be read as an image").wait_for()
    assert page.locator("#result").is_hidden()


def test_a_model_that_is_not_there_is_told(open_page, address):
    page = open_page()
    page.context.route("**/model.onnx", lambda route: route.fulfill(status=404))
    page.reload()
    page.get_by_text("The model cannot be loaded: model.onnx: 404").wait_for()


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
