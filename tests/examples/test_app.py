"""The page of examples/app.py, in a real browser."""

import asyncio
import importlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

import hub_server
import segnext_timm
from page_pictures import chromium, frames, legend_colors, served
from segnext_timm import cli

pytestmark = pytest.mark.slow
APP = Path(__file__).parents[2] / "examples" / "app.py"
NAMES = ["road", "car", "<b>sky</b>"]
PALETTE = [[128, 64, 128], [0, 0, 142], [70, 130, 180]]
README = (
    "---\nlicense: mit\n---\n\n# The card of a small model\n\n|" + " a long table |" * 30 + "\n|" + "---|" * 30 + "\n"
    "\n## Facts\n\n|  |  |\n|---|---|\n| classes | 3 |\n"
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


@pytest.fixture(scope="module", autouse=True)
def hub(model, tmp_path_factory):
    """A Hub that holds the model as user/repo, for this process and for those that it starts."""
    files = {name: (model / name).read_bytes() for name in ("config.json", "model.safetensors")}
    home = tmp_path_factory.mktemp("home")
    with hub_server.serve() as server, pytest.MonkeyPatch.context() as patch:
        server.repos["user/repo"] = hub_server.Repo(branches={"main": files})
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(home))
        with hub_server.client(server.url, home, "hf_reader"):
            yield server


@pytest.fixture(scope="module")
def address(model):
    pytest.importorskip("gradio")
    with served(model, "segnext_b.mmseg_ade20k", "user/repo", "--any-model") as server:
        yield server.address


@pytest.fixture(scope="module")
def patient(model):
    """A page without a limit that anyone reaches, whose requests may take minutes."""
    pytest.importorskip("gradio")
    with served(model, "--max-megapixels", "1000", "--max-seconds", "1000") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser, request):
    pages = []

    def make(width=1280, height=960, address=None, **options):
        page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
        page.set_default_timeout(60_000)
        page.goto(address or request.getfixturevalue("address"), wait_until="domcontentloaded")
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
    page.get_by_role("button", name="Street 1").click()
    page.get_by_text("64 × 64 pixels in").wait_for()
    with page.expect_download() as waiting:
        page.locator("#overlay").click()
    with Image.open(waiting.value.path()) as drawn:
        assert drawn.size == (64, 64)


@browser_test
def test_a_photo_of_the_camera_is_segmented(open_page):
    page = open_page(permissions=["camera"])
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#image video')?.videoWidth > 0")
    page.get_by_label("capture photo").click()
    page.get_by_text("640 × 480 pixels in").wait_for()
    assert len(rows(page)) > 0


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
    page.get_by_role("button", name="Street 1").click()
    page.get_by_text("pixels in").wait_for()
    for label in ("Model", "Mode", "Scales", "Average with the mirrored image", "Upload file", "Remove Image"):
        assert page.get_by_label(label, exact=True).count() == 1, label
    assert page.get_by_role("heading").all_inner_texts() == ["SegNeXt", "Input", "Result", "Settings"]
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
    page.get_by_role("button", name="Street 3").focus()
    page.keyboard.press("Enter")
    page.get_by_text("64 × 64 pixels in").wait_for()
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(".compare img.over").evaluate("e => getComputedStyle(e).clipPath") == "inset(0px 0px 0px 100%)"
    assert page.locator(".compare").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    order = []
    page.locator("#examples button").last.focus()
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText.trim()"))
    names = ["Labels (PNG)", "Model", "Mode", "Scales", "Segment"]
    assert [name for name in order if name in names] == names


@browser_test
def test_the_legend_has_the_palette_s_colors_and_the_slider_s_pictures_move(open_page):
    page = open_page(device_scale_factor=2)
    page.get_by_role("button", name="Street 1").click()
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
    lines = "e => { const all = document.createRange(); all.selectNodeContents(e); return all.getClientRects().length }"
    assert page.locator(".card th").first.evaluate(lines) == 3  # of a word each: the table scrolls in the card
    assert [head.is_visible() for head in page.locator(".card thead").all()] == [True, False]  # the other one is empty
    page.get_by_role("button", name="Street 1").click()
    page.get_by_text("pixels in").wait_for()
    page.wait_for_function("document.querySelector('#slider').getBoundingClientRect().top < innerHeight")
    assert fits(page)
    tops = [page.locator(f"#{name}").bounding_box()["y"] for name in ("inputs", "result", "settings")]
    assert tops == sorted(tops)
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


LARGE = """
import sys
from gradio_client import Client, handle_file
job = Client(sys.argv[1], verbose=False).submit(handle_file(sys.argv[2]), mode="sliding windows", api_name="/predict")
print(job.result() if sys.argv[3] == "wait" else input() or job.cancel(), flush=True)
input()
"""


@pytest.mark.parametrize("end", ["kill", "cancel"])
def test_the_work_of_a_client_that_is_killed_or_cancels_stops(patient, tmp_path, end):
    psutil = pytest.importorskip("psutil")
    path = picture(tmp_path / "large.png", 5000, 8000, seed=0)
    server = psutil.Process(patient.process.pid)
    spent = sum(server.cpu_times()[:2])
    command = [sys.executable, "-c", LARGE, patient.address, str(path), end]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while sum(server.cpu_times()[:2]) < spent + 5:  # it is at work
        time.sleep(0.2)
        assert client.poll() is None
    if end == "cancel":
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "True\n"
    else:
        client.kill()

    def is_at_work():
        spent = sum(server.cpu_times()[:2])
        time.sleep(3)
        return sum(server.cpu_times()[:2]) >= spent + 1

    assert not all(is_at_work() for _ in range(6))  # the whole image takes longer
    client.kill()


@browser_test
def test_a_visitor_sees_the_queue_and_one_who_leaves_makes_room(open_page, patient, model, tmp_path):
    first, second = (open_page(address=patient.address) for _ in range(2))
    first.set_input_files("#image input[type=file]", picture(tmp_path / "large.png", 5000, 8000, seed=0))
    first.get_by_text("segmenting").wait_for()
    path = picture(tmp_path / "small.png", 100, 120, seed=1)
    second.set_input_files("#image input[type=file]", path)
    second.get_by_text("queue: 1/1").wait_for()
    second.screenshot(path=tmp_path / "queue.png")
    first.close()
    second.get_by_text("120 × 100 pixels in").wait_for()
    assert rows(second) == expected(model, path)


@browser_test
def test_the_stop_button_ends_a_request(open_page, patient, tmp_path):
    page = open_page(address=patient.address)
    page.set_input_files("#image input[type=file]", picture(tmp_path / "large.png", 5000, 8000, seed=0))
    page.get_by_text("segmenting").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("segmenting").wait_for(state="detached")
    page.get_by_role("button", name="Street 2").click()
    page.get_by_text("64 × 64 pixels in").wait_for()


def test_programs_call_one_endpoint_by_its_name(address, model, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(address, verbose=False)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/predict"]
    path = picture(tmp_path / "a.png", 90, 120, seed=0)
    given = {"mode": "sliding windows", "flip": True}
    labels, drawn, areas = client.predict(gradio_client.handle_file(path), **given, api_name="/predict")
    loaded = segnext_timm.fuse(smp.from_pretrained(model).eval())
    found = segnext_timm.predict(loaded, path, mode="slide", flip=True)
    with Image.open(labels) as saved, Image.open(drawn) as overlaid:
        assert np.array_equal(saved, found)
        assert overlaid.size == (120, 90)
    assert areas == segnext_timm.class_areas(found, NAMES)
    (tmp_path / "broken.jpg").write_text("no image", encoding="utf-8")
    with pytest.raises(gradio_client.exceptions.AppError, match="The file cannot be read as an image"):
        client.predict(gradio_client.handle_file(tmp_path / "broken.jpg"), api_name="/predict")


@pytest.fixture
def app():
    pytest.importorskip("gradio")
    return importlib.import_module("app")


def segmented(app, page, path, mode="whole image", scales="1", flip=False):
    """What the page shows of an image: HTML of the result and of the legend."""
    request = app.gr.Request(session_hash="a visitor")
    work = page.segment(str(path), page.models[0], mode, scales, flip, request)
    with ThreadPoolExecutor(1) as threads:  # in this one, Playwright's loop is running
        return threads.submit(asyncio.run, work).result()[:2]


def test_a_request_that_takes_too_long_is_stopped(app, model, tmp_path):
    page = app.App([str(model)], max_seconds=0.01)
    shown, legend = segmented(app, page, picture(tmp_path / "a.png", 600, 800, seed=0))
    assert "Stopped after 0.01 s, the limit of this page." in shown
    assert legend == ""
    assert not page.running


def test_a_request_that_is_canceled_when_its_labels_are_there_is_not_drawn(app, model, tmp_path):
    page, stopped = app.App([str(model)]), threading.Event()
    options = (str(picture(tmp_path / "a.png", 64, 64, seed=0)), str(model), "automatic", "1", False)
    with ThreadPoolExecutor(1) as threads, pytest.raises(InterruptedError, match="canceled"):  # a context of its own
        threads.submit(page.work, *options, stopped, lambda share, desc: share == 1 and stopped.set()).result()
    assert not page.newest


@pytest.mark.parametrize(("scales", "flip", "size"), [("1", False, (200, 100)), ("0.5, 1, 1.5", True, (74, 37))])
def test_photos_beyond_the_limit_are_reduced_so_that_all_scales_are_within(app, model, tmp_path, scales, flip, size):
    page = app.App([str(model)], max_megapixels=0.02)
    path = picture(tmp_path / "a.png", 400, 800, seed=0)
    _, legend = segmented(app, page, path, scales=scales, flip=flip)
    assert f"{size[0]} × {size[1]} pixels (reduced: this page has a limit) in" in legend
    with Image.open(page.newest[-1] / "labels.png") as labels:
        assert labels.size == size


def test_images_beyond_the_limit_that_cannot_be_reduced_are_refused(app, model, tmp_path):
    page = app.App([str(model)], max_megapixels=0.02)
    Image.fromarray(np.zeros((400, 800), np.uint16)).save(tmp_path / "a.tif")
    shown, _ = segmented(app, page, tmp_path / "a.tif")
    assert "The file has 0.32 megapixels; this page takes 0.02." in shown


def test_limits_have_to_be_positive(app, model, capsys):
    with pytest.raises(SystemExit):
        app.main([str(model), "--max-seconds", "0"])
    assert "--max-seconds must be positive, got 0.0" in capsys.readouterr().err


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


def test_wrong_models_are_told_in_one_line_as_the_command_tells_them(app, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "timm").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "timm" / "config.json").write_text('{"architecture": "resnet18"}')
    picture(tmp_path / "x.jpg", 40, 40, seed=0)
    monkeypatch.chdir(tmp_path)
    here = (str(tmp_path / one) for one in ("file", "empty", "timm"))
    for name in ("none", "segnext_x", "mscan_b", "runs/quickstrat", "user/unknown", *here):
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
    _, legend = segmented(app, page, picture(tmp_path / "a.png", 60, 80, seed=0))
    assert 'href="https://example.org/weights"' in legend


@pytest.mark.parametrize(
    ("facts", "size"),
    [({"input_size": [3, 128, 128]}, 128), ({"input_size": [3, 512, 512], "fit_in": [2048, 1024]}, 1024), ({}, 512)],
)
def test_examples_have_the_size_that_the_model_was_trained_on(app, facts, size):
    page = app.App(["user/repo"], size=app.trained_size(facts))
    assert {Image.open(path).size for path in page.scenes.values()} == {(size, size)}
    assert app.trained_size(app.stated_facts("segnext_t.mmseg_ade20k")) == 512
    assert app.trained_size(app.stated_facts("user/repo")) == 64


def test_a_result_says_the_scale_of_the_model(app, model, tmp_path):
    loaded = smp.from_pretrained(model)
    loaded.pretrained_cfg["fit_in"] = [96, 80]
    loaded.save_pretrained(tmp_path / "model")
    page = app.App([str(tmp_path / "model")])
    path = picture(tmp_path / "a.png", 60, 80, seed=0)
    _, legend = segmented(app, page, path)
    assert "80 × 60 pixels at the model&#x27;s scale, 96 × 80, in" in legend
    with Image.open(page.newest[-1] / "labels.png") as labels:
        assert np.array_equal(
            labels, segnext_timm.predict(app.load(page.models[0]), path, mode="whole", fit_in=(96, 80))
        )
