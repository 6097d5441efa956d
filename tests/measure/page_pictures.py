"""Take the pictures of the page `examples/app.py` that README.md shows: the page, and its slider in motion.

    python tests/measure/page_pictures.py MODEL        # needs the extra `app`, Chromium and playwright

Writes app.png, in true color at twice the page's size, and slider.webp, an animation, to examples/images. MODEL is
named as for `segnext-timm predict`; the page shows the last two parts of a folder's path. Stops if the legend's colors
are not the palette's.
"""

import argparse
import io
import math
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WIDTH, FRAMES, LIMIT = 800, 16, 1_000_000  # of the animation: pixels, pictures, bytes


@contextmanager
def served(model, *options):
    """Serve the page for a model on a free port, and yield its address."""
    folder, name, place = Path(model).absolute(), str(model), None
    if folder.is_dir():
        name, place = str(Path(*folder.parts[-2:])), folder.parents[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


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


def segment_example(page, scales="0.5"):
    """Segment the first example, at half its size: the drawn scenes to train on are smaller."""
    page.get_by_label("Scales").click()
    page.get_by_role("option", name=scales, exact=True).click()
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="model folder, published name, or repository on the Hub")
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "images", help="folder of the pictures")
    parser.add_argument("--color-scheme", choices=["light", "dark"], default="light")
    args = parser.parse_args()
    with served(args.model) as address, chromium() as browser:
        page = browser.new_page(
            viewport={"width": 1100, "height": 1200}, device_scale_factor=2, color_scheme=args.color_scheme
        )
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector("#run")
        segment_example(page)
        stated, shown = legend_colors(page)
        if stated != shown:
            raise SystemExit(f"The legend shows {shown}, but its colors are {stated}.")
        boxes = [page.locator(name).bounding_box() for name in ("#overlay", "#run")]
        bottom = max(box["y"] + box["height"] for box in boxes)
        whole = picture(page.screenshot(clip={"x": 0, "y": 0, "width": 1100, "height": bottom + 16}))
        size = (1400, round(whole.height * 1400 / whole.width))  # below a megabyte without fewer colors
        whole.resize(size, Image.Resampling.LANCZOS).save(args.out / "app.png", optimize=True)
        save_animation(list(frames(page)), args.out / "slider.webp")
    colors = len(np.unique(np.asarray(whole).reshape(-1, 3), axis=0))
    print(f"app.png: {whole.size}, {colors} colors, {(args.out / 'app.png').stat().st_size} bytes")
    print(f"slider.webp: {FRAMES} frames, {(args.out / 'slider.webp').stat().st_size} bytes")


if __name__ == "__main__":
    main()
