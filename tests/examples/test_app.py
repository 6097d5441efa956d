"""The page of examples/app.py, in a real browser."""

import importlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

import segnext_timm
from page_pictures import chromium, frames, legend_colors, served
from segnext_timm import cli

pytestmark = pytest.mark.slow
APP = Path(__file__).parents[2] / "examples" / "app.py"
NAMES = ["road", "car", "<b>sky</b>"]
PALETTE = [[128, 64, 128], [0, 0, 142], [70, 130, 180]]
README = (
    "---\nlicense: mit\n---\n\n# The card of a small model\n\n" + "| a long table |" * 30 + "\n" + "|---|" * 30 + "\n"
)
browser_test = pytest.mark.browser


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    cfg = {"label_names": NAMES, "palette": PALETTE, "input_size": [3, 64, 64]}
    model = smp.SegNeXt(
        "tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=4, pretrained_cfg=cfg
    )
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    folder = tmp_path_factory.mktemp("app") / "model"
    model.save_pretrained(folder)
    (folder / "README.md").write_text(README, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(model):
    pytest.importorskip("gradio")
    with served(model, "segnext_b.mmseg_ade20k", "user/repo", "--any-model") as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser, address):
    pages = []

    def make(width=1280, height=960, **options):
        page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
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
        for row in page.locator("#areas tbody tr").all_inner_texts()
    ]


def expected(model, path, **options):
    loaded = segnext_timm.fuse(smp.from_pretrained(model).eval())
    areas = segnext_timm.class_areas(segnext_timm.predict(loaded, path, **options), NAMES)
    return [[area["name"], f"{area['share']:.1%}"] for area in areas]


def choose(page, label, option):
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def card(page):
    return page.locator("#card").get_by_role("link")


def fits(page):
    """Whether the page does not overflow sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def drop(page, path, size):
    """Upload a file, and wait for what the page says of an image of that size."""
    page.set_input_files("#image input[type=file]", path)
    page.get_by_text(f"{size[1]} × {size[0]} pixels in").wait_for()


@browser_test
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
    choose(page, "Mode", "sliding windows")
    page.get_by_label("Average with the mirrored image").check()
    slid = expected(model, path, mode="slide", flip=True)
    assert slid != rows(page)
    page.locator("#run").click()
    page.get_by_text(slid[0][1], exact=True).wait_for()
    assert rows(page) == slid
    page.screenshot(path=tmp_path / "page.png", full_page=True)

    # an example
    page.get_by_role("button", name="Two cars").click()
    page.get_by_text("512 × 512 pixels in").wait_for()
    with page.expect_download() as waiting:
        page.locator("#overlay").click()
    with Image.open(waiting.value.path()) as drawn:
        assert drawn.size == (512, 512)


@browser_test
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


@browser_test
def test_every_input_has_a_name_and_every_picture_a_text(open_page):
    page = open_page()
    page.get_by_role("button", name="Two cars").click()
    page.get_by_text("pixels in").wait_for()
    for label in ("Model", "Mode", "Scales", "Average with the mirrored image", "Upload file", "Remove Image"):
        assert page.get_by_label(label, exact=True).count() == 1, label
    assert page.get_by_role("heading").all_inner_texts() == ["SegNeXt", "Input", "Inference", "Result"]
    images = page.locator("img:visible").evaluate_all("all => all.map(one => one.alt)")
    assert len(images) == 1 + 4 + 2
    assert all(images)
    assert "road" in images[-1]
    unnamed = page.locator("button:visible, input:visible, a:visible").evaluate_all(
        "all => all.filter(e => !(e.ariaLabel || e.innerText || e.labels && e.labels[0]?.innerText.trim()))"
        ".map(e => e.outerHTML)"
    )
    assert unnamed == []


@browser_test
def test_the_keyboard_moves_the_slider_and_chooses_an_example(open_page):
    page = open_page()
    page.get_by_role("button", name="Evening").focus()
    page.keyboard.press("Enter")
    page.get_by_text("512 × 512 pixels in").wait_for()
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(".compare img.over").evaluate("e => getComputedStyle(e).clipPath") == "inset(0px 0px 0px 100%)"
    assert page.locator(".compare").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    order = []
    page.locator("#examples button").last.focus()
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText.trim()"))
    assert [name for name in order if name in ("Model", "Mode", "Scales", "Segment")] == [
        "Model",
        "Mode",
        "Scales",
        "Segment",
    ]


@browser_test
def test_the_legend_has_the_palette_s_colors_and_the_slider_s_pictures_move(open_page):
    page = open_page(device_scale_factor=2)
    page.get_by_role("button", name="Two cars").click()
    page.get_by_text("pixels in").wait_for()
    stated, shown = legend_colors(page)
    names = [name for name, _ in rows(page)]
    assert stated == shown == [tuple(PALETTE[NAMES.index(name)]) for name in names]
    shots = [np.asarray(shot) for shot in frames(page)]
    assert shots[0].shape == (800, 800, 3)
    assert all((one != other).any() for one, other in itertools.pairwise(shots))


@browser_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_on_a_phone(open_page, tmp_path, scheme):
    page = open_page(390, 844, color_scheme=scheme)
    assert fits(page)
    page.get_by_role("button", name="Model card").click()
    page.get_by_role("heading", name="The card of a small model").wait_for()
    assert fits(page)
    page.get_by_role("button", name="Two cars").click()
    page.get_by_text("pixels in").wait_for()
    page.wait_for_function("document.querySelector('#slider').getBoundingClientRect().top < innerHeight")
    assert fits(page)
    choose(page, "Model", "user/repo")
    card(page).wait_for()
    assert fits(page)
    page.screenshot(path=tmp_path / "phone.png", full_page=True)


@browser_test
def test_the_model_card_follows_the_model(open_page):
    page = open_page()
    assert card(page).count() == 0
    assert page.get_by_role("button", name="Model card").count() == 1
    choose(page, "Model", "user/repo")
    page.locator('#card a[href="https://huggingface.co/user/repo"]').wait_for()
    assert page.get_by_role("button", name="Model card").count() == 0
    choose(page, "Model", "segnext_b.mmseg_ade20k")
    card(page).wait_for(state="detached")


@browser_test
def test_a_visitor_types_a_model_and_reads_why_it_is_unknown(open_page, model, tmp_path):
    page = open_page()
    path = picture(tmp_path / "c.png", 100, 110, seed=5)
    drop(page, path, (100, 110))
    message = "segnext_x: not a folder, not a Hub repository (user/repo), and not a published model. Did you mean"
    page.get_by_label("Model", exact=True).fill("segnext_x")
    page.get_by_label("Model", exact=True).press("Enter")
    page.locator("#card").get_by_role("alert").filter(has_text=message).wait_for()
    page.locator("#run").click()
    page.locator("#slider").get_by_role("alert").filter(has_text=message).wait_for()
    assert rows(page) == []
    page.get_by_label("Model", exact=True).fill(str(model))
    page.get_by_label("Model", exact=True).press("Enter")
    page.locator("#run").click()
    page.get_by_text("110 × 100 pixels in").wait_for()
    assert rows(page) == expected(model, path)


@browser_test
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
def test_the_page_takes_the_names_that_the_command_takes(app, tmp_path, name):
    app.main([name, "--make-space", str(tmp_path / "space"), "--requirement", "segnext-timm"])
    assert f"MODELS = ['{name}']" in (tmp_path / "space" / "app.py").read_text(encoding="utf-8")


def test_wrong_models_are_told_in_one_line_as_the_command_tells_them(app, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text('{"architecture": "resnet18"}')
    for name in ("none", "segnext_x", "mscan_b", *(str(tmp_path / one) for one in ("file", "empty", "timm"))):
        told = CliRunner().invoke(cli.main, ["predict", name, "x.jpg", "-o", str(tmp_path / "out")]).output
        for options in ([], ["--make-space", str(tmp_path / "space")]):
            with pytest.raises((FileNotFoundError, ValueError)) as raised:
                app.main([name, *options])
            assert told.endswith(f"{app.one_line(raised.value)}\n")
        link, text = app.model_card(name)
        assert (app.wrong(app.one_line(raised.value)), "") == (link, text)
    assert not (tmp_path / "space").exists()


def test_the_command_line_ends_with_one_line_for_an_unknown_model():
    pytest.importorskip("gradio")
    done = subprocess.run([sys.executable, APP, "segnext_x"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "app: segnext_x: not a folder, not a Hub repository (user/repo), and not a published model. "
        "Did you mean 'segnext_t'?\n"
    )


def test_model_cards_are_found_without_weights(app, model, tmp_path):
    link, text = app.model_card(str(model))
    assert link == ""
    assert text.strip().startswith("# The card of a small model")
    assert "license" not in text
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, tmp_path)
    assert "holds no model card" in app.model_card(str(tmp_path))[0]
    assert 'href="https://huggingface.co/user/repo"' in app.model_card("user/repo")[0]


def test_a_result_names_the_page_of_the_weights(app, model, tmp_path):
    loaded = smp.from_pretrained(model)
    loaded.pretrained_cfg["origin_url"] = "https://example.org/weights"
    loaded.save_pretrained(tmp_path / "model")
    page = app.App([str(tmp_path / "model")])
    path = str(picture(tmp_path / "a.png", 60, 80, seed=0))
    _, legend, *_ = page.segment(path, page.models[0], "whole image", "1", False)
    assert 'href="https://example.org/weights"' in legend


def test_examples_are_larger_than_the_scenes_to_train_on(app):
    page = app.App(["user/repo"])
    sizes = [Image.open(path).size for path in page.scenes.values()]
    assert len(sizes) >= 3
    assert all(min(size) >= 512 for size in sizes)


def test_a_result_says_the_scale_of_the_model(app, model, tmp_path):
    loaded = smp.from_pretrained(model)
    loaded.pretrained_cfg["fit_in"] = [96, 80]
    loaded.save_pretrained(tmp_path / "model")
    page = app.App([str(tmp_path / "model")])
    path = str(picture(tmp_path / "a.png", 60, 80, seed=0))
    _, legend, *_ = page.segment(path, page.models[0], "whole image", "1", False)
    assert "80 × 60 pixels at the model&#x27;s scale, 96 × 80, in" in legend
    with Image.open(page.newest[-1] / "labels.png") as labels:
        assert np.array_equal(
            labels, segnext_timm.predict(app.load(page.models[0]), path, mode="whole", fit_in=(96, 80))
        )
