"""Take the pictures of the two pages that the guides show, at their default settings, on a scene of the trained size.

    python tests/measure/page_pictures.py MODEL        # needs the extras `app` and `export`, Chromium, playwright, npm

Writes app.png, of the page `examples/app.py`, in true color, slider.webp, an animation of its slider, and browser.png,
of the page `examples/deployment/browser`, to examples/images. MODEL is named as for `segnext-timm predict`; the page
shows the last two parts of a folder's path. Stops if the legend's colors are not the palette's.
"""

import argparse
import functools
import http.server
import io
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "helpers"))
from ports import free_port

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera of Chromium's own
WIDTH, FRAMES, LIMIT = 800, 16, 1_000_000  # of the animation: pixels, pictures, bytes


class Server(NamedTuple):
    address: str
    process: subprocess.Popen


@contextmanager
def served(model, *options):
    """Serve the page for a model on a free port."""
    folder, name, place = Path(model).absolute(), str(model), None
    if folder.is_dir():
        name, place = str(Path(*folder.parts[-2:])), folder.parents[1]
    port = free_port()
    command = [sys.executable, ROOT / "examples" / "app.py", name, *options, "--port", str(port)]
    server = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None:
                raise RuntimeError("The server ended.")
            time.sleep(0.5)
        yield Server(f"http://127.0.0.1:{port}", server)
    finally:
        server.terminate()
        server.wait(20)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def hosted(folder):
    """Serve the files of a folder on a free port, and yield the address."""
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends within 10 ms
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def chromium():
    """Start Chromium."""
    from playwright import sync_api

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def picture(screenshot):
    return Image.open(io.BytesIO(screenshot)).convert("RGB")


def segment_example(page):
    """Segment the first example."""
    for _ in range(2):  # the first run loads the model, and would show a longer time
        if page.get_by_label("Remove Image").is_visible():
            page.get_by_label("Remove Image").click()
            page.get_by_text("pixels in").wait_for(state="detached")
        page.locator("#examples button").first.click()
        page.get_by_text("pixels in").wait_for()
    page.locator("#overlay").wait_for()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1000)


def legend_colors(page):
    """Colors of the legend's swatches: as CSS states them, and as the screen shows them."""
    swatches = page.locator("#areas .swatch")
    stated = swatches.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    stated = [tuple(int(value) for value in text[4:-1].split(",")) for text in stated]
    shots = [picture(swatch.screenshot()) for swatch in swatches.all()]
    return stated, [shot.getpixel((shot.width // 2, shot.height // 2)) for shot in shots]


def frames(page):
    """Pictures of the comparison while its edge moves to one side, to the other, and back."""
    for step in range(FRAMES):
        at = 50 + 42 * math.sin(2 * math.pi * step / FRAMES)
        page.locator(".compare input").fill(f"{at:.2f}")
        page.evaluate("document.activeElement.blur()")
        shot = picture(page.locator(".compare").screenshot())
        yield shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS)


def save_animation(shots, path):
    for quality in range(90, 40, -5):
        shots[0].save(
            path, save_all=True, append_images=shots[1:], duration=110, loop=0, quality=quality, method=6,
            minimize_size=True,
        )  # fmt: skip
        if path.stat().st_size < LIMIT:
            return
    raise SystemExit(f"{path} has {path.stat().st_size} bytes, more than {LIMIT}.")


def whole_page(page, boxes, path):
    """Save a picture of a page from its top to the end of some elements, 1400 pixels wide: below a megabyte."""
    width = page.viewport_size["width"]
    found = [page.locator(name).bounding_box() for name in boxes]
    bottom = max(box["y"] + box["height"] for box in found) + 16
    shot = picture(page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": bottom}))
    shot.resize((1400, round(shot.height * 1400 / shot.width)), Image.Resampling.LANCZOS).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size} bytes")


def picture_of_browser_page(model, new_page, path):
    """Build the static page for a model at its trained size, segment a scene of that size, and take its picture."""
    sys.path.insert(0, str(ROOT / "examples"))
    import app
    import segnext_timm
    from segmentation import scenes

    loaded = segnext_timm.load_segmenter(model)
    side = app.trained_size(loaded.pretrained_cfg)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = segnext_timm.export(loaded, folder / "model.onnx", (1, 3, side, side), argmax=True, portable=True)
        build = ROOT / "examples" / "deployment" / "browser" / "build.py"
        subprocess.run([sys.executable, build, file, folder / "site"], check=True)
        Image.fromarray(scenes.draw(*app.EXAMPLES[0], side)[0]).save(folder / "street.png")
        with hosted(folder / "site") as address:
            page = new_page({"width": 900, "height": 900})
            page.goto(address)
            page.get_by_text("Ready. Drop a photo.").wait_for()
            for _ in range(2):  # the first run is slower
                page.set_input_files("#file", folder / "street.png")
                page.get_by_text("Segmented at").wait_for()
                page.wait_for_timeout(1000)
            whole_page(page, ["#compare", "#legend"], path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="model folder, published name, or repository on the Hub")
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "images", help="folder of the pictures")
    parser.add_argument("--color-scheme", choices=["light", "dark"], default="light")
    args = parser.parse_args()
    with served(args.model) as server, chromium() as browser:

        def new_page(size):
            return browser.new_page(viewport=size, device_scale_factor=2, color_scheme=args.color_scheme)

        page = new_page({"width": 1100, "height": 1200})
        page.goto(server.address, wait_until="domcontentloaded")
        page.wait_for_selector("#run")
        segment_example(page)
        stated, shown = legend_colors(page)
        if stated != shown:
            raise SystemExit(f"The legend shows {shown}, but its colors are {stated}.")
        whole_page(page, ["#overlay", "#run"], args.out / "app.png")
        save_animation(list(frames(page)), args.out / "slider.webp")
        print(f"slider.webp: {FRAMES} frames, {(args.out / 'slider.webp').stat().st_size} bytes")
        picture_of_browser_page(args.model, new_page, args.out / "browser.png")


if __name__ == "__main__":
    main()
