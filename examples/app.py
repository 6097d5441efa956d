"""A web page that segments images: drop an image, choose a model, see the overlay and the areas of the classes.

    python examples/app.py                                    # the published models, downloaded when they are used
    python examples/app.py runs/quickstart segnext_b.mmseg_ade20k user/repo     # your own models
    python examples/app.py runs/quickstart --any-model        # visitors may also type another model
    python examples/app.py runs/quickstart --share            # also by a public link, for a week
    python examples/app.py --make-space my-space segnext_b    # a folder to push to a Space of the Hugging Face Hub

Install its requirements with `pip install -e ".[app]"`. Models are named as for `segnext-timm predict`. Images that are
too large to process whole are processed in sliding windows. One request is processed at a time, the others wait in a
queue, and a request ends when its visitor leaves. `--max-megapixels` and `--max-seconds` limit its work.

Programs use the endpoint /predict, which gives the files of the labels and the overlay, and the areas of the classes:

    gradio_client.Client("http://127.0.0.1:7860").predict(gradio_client.handle_file("street.jpg"), api_name="/predict")
"""

import argparse
import asyncio
import contextvars
import functools
import importlib.metadata
import inspect
import math
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import gradio as gr
import torch
from huggingface_hub import ModelCard
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn.modules.module import register_module_forward_pre_hook

import segnext_timm
from segmentation import scenes
from segmentation.page import CSS, comparison, legend, link, note, wrong
from segnext_timm import class_areas, overlay, predict
from segnext_timm.errors import ImageError
from segnext_timm.label_sets import VOC_PALETTE
from segnext_timm.prediction.images import loses_values

KEPT = 50  # results that can be downloaded, of the newest predictions
WAITING = 32  # requests in the queue; more are refused
MODES = {"automatic": "auto", "whole image": "whole", "sliding windows": "slide"}
SCALES = {"1": (1.0,), "0.5": (0.5,), "0.5, 1, 1.5": (0.5, 1.0, 1.5)}
EXAMPLES = ((8, 5), (2, 7), (6, 10), (4, 9))  # seeds and numbers of drawn scenes
SHOW_RESULT = "() => { document.querySelector('#slider').scrollIntoView({block: 'nearest'}) }"
START = "Drop an image, take a photo, or choose an example."
FRONT_MATTER = """---
title: SegNeXt
emoji: 🏙️
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: apache-2.0
short_description: Semantic segmentation of your images
---

SegNeXt ([paper](https://arxiv.org/abs/2209.08575)) segments the image that you drop. Made with segnext-timm.
"""


# Raises an error if the request that this thread works on has to stop
check_request: contextvars.ContextVar[Callable[[], None]] = contextvars.ContextVar("check", default=lambda: None)
# before each layer: an image that is processed whole has no other moments; hooks of modules would turn kernels off
register_module_forward_pre_hook(lambda *_: check_request.get()())


@functools.lru_cache(maxsize=4)
def load(name: str) -> torch.nn.Module:
    """Load a model, fuse it, and move it to an accelerator if there is one."""
    model = segnext_timm.fuse(segnext_timm.load_segmenter(name), inplace=True)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device, memory_format=torch.channels_last)


def one_line(error: Exception) -> str:
    """Format an error as `segnext-timm` prints it: in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def stated_facts(name: str) -> Mapping:
    """Read what is stated of a model: published ones are created without weights, others loaded, if there are such."""
    published = {each.partition(".")[0] for each in segnext_timm.list_segmenters()}
    is_published = name.partition(".")[0] in published and not Path(name).exists()
    model = segnext_timm.create_segmenter(name) if is_published else load(name)
    return getattr(model, "pretrained_cfg", {})


def trained_size(facts: Mapping) -> int:
    """Find the side of the square images that a model was trained on, in pixels, or that of their short sides."""
    return min(min(facts.get("fit_in") or facts.get("input_size", (3, 512, 512))[1:]), 1024)


def model_card(name: str) -> tuple[str, str]:
    """Find a model's card: HTML with its link, or an error; and a folder's text in Markdown."""
    try:
        stated_facts(name)
    except (segnext_timm.SegNeXtError, OSError) as error:
        return wrong(one_line(error)), ""
    readme = Path(name) / "README.md"
    if readme.is_file():
        return "", ModelCard(readme.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).text
    if Path(name).is_dir():
        return note("This folder holds no model card, README.md."), ""
    card = f'<div class="note">Model card: {link(f"https://huggingface.co/{name}", name)}</div>'
    return card if "/" in name else "", ""


def limited(file: str, most: float) -> str | Image.Image:
    """Reduce a photo to a number of pixels; a smaller one, and what Pillow cannot open, is returned as it is.

    Raises:
        ImageError: If the image is larger, and of a kind that loses values when Pillow resizes it.
    """
    try:
        opened = Image.open(file)
    except (UnidentifiedImageError, Image.DecompressionBombError):  # predict says what is wrong
        return file
    with opened as picture:
        pixels = picture.width * picture.height
        if pixels <= most:
            return file
        if picture.mode[0] in "IF" or loses_values(picture):
            raise ImageError(f"{file} has {pixels / 1e6:.3g} megapixels; this page takes {most / 1e6:.3g}.")
        scale = math.sqrt(most / pixels)
        picture.thumbnail((max(int(picture.width * scale), 1), max(int(picture.height * scale), 1)))
        return ImageOps.exif_transpose(picture).convert("RGB")


class Result(NamedTuple):
    """What the page shows of an image, as HTML, and what it gives: files of labels and overlay, and areas."""

    shown: str
    legend: str
    labels: str
    overlay: str
    areas: list[dict]


class App:
    """The page and its state: names of models, the requests in work, and the folder of the newest results.

    Args:
        models: Names to choose from.
        any_model: Let visitors type other names: published ones, repositories on the Hub, folders of this machine.
        max_megapixels: Larger images are reduced; scales and the mirrored image count, if the model states no scale.
        max_seconds: Time for one request, after which it is stopped. Loading the model does not count.
        size: Side of the example scenes, in pixels.
    """

    def __init__(
        self,
        models: list[str],
        any_model: bool = False,
        max_megapixels: float = 16,
        max_seconds: float = 60,
        size: int = 512,
    ) -> None:
        self.models = models
        self.any_model = any_model
        self.max_megapixels = max_megapixels
        self.max_seconds = max_seconds
        self.folder = tempfile.TemporaryDirectory(prefix="segnext-")
        self.newest: deque[Path] = deque()
        self.running: set[tuple[str | None, threading.Event]] = set()  # visitors, and what stops their requests
        self.scenes = {}
        for number, (seed, index) in enumerate(EXAMPLES, start=1):
            path = Path(self.folder.name) / f"scene_{number}.png"
            Image.fromarray(scenes.draw(seed, index, size)[0]).save(path)
            self.scenes[f"Street {number}"] = str(path)

    def work(
        self, file: str, name: str, mode: str, scales: str, flip: bool, stopped: threading.Event, progress: gr.Progress
    ) -> Result:
        """Segment an image, unless it is stopped."""
        progress(0, desc="loading the model")
        model = load(name.strip())
        start = time.monotonic()

        def check() -> None:
            if stopped.is_set():
                raise InterruptedError("The request was canceled.")
            if time.monotonic() > start + self.max_seconds:
                raise TimeoutError(
                    f"Stopped after {self.max_seconds:g} s, the limit of this page. Choose a smaller image, a smaller "
                    "model, scale 1, or no mirrored image."
                )

        def report(share: float) -> None:
            check()
            progress(share, desc="segmenting")

        check_request.set(check)
        report(0)
        facts = getattr(model, "pretrained_cfg", {})
        fit_in = facts.get("fit_in")  # of a model with a scale, the work does not depend on the image's size
        passes = 1 if fit_in else sum(scale**2 for scale in SCALES[scales]) * (1 + flip)
        image = limited(file, self.max_megapixels * 1e6 / passes)
        labels = predict(model, image, mode=MODES[mode], scales=SCALES[scales], flip=flip, progress=report)
        seconds = time.monotonic() - start
        names, palette = facts.get("label_names") or [], facts.get("palette") or VOC_PALETTE
        if len(names) == 1:  # labels of a binary model are 0 and 1
            names, palette = ["background", *names], [(0, 0, 0), *palette]
        areas = class_areas(labels, names)
        height, width = labels.shape
        said = f"{width} × {height} pixels " + ("" if image is file else "(reduced: this page has a limit) ")
        said += "at the model's scale, {} × {}, ".format(*fit_in) if fit_in else ""
        said = note(f"{said}in {seconds:.2f} s on {next(model.parameters()).device.type}, {name}")
        url = str(facts.get("origin_url"))
        origin = f'<div class="note">Weights: {link(url, url)}</div>' if url.startswith("https://") else ""
        drawings = []
        for alpha in (0, 0.6):
            check()  # drawing a large image takes seconds
            drawings.append(overlay(image, labels, names, palette, alpha, legend=False))
        check()
        picture, drawn = drawings
        folder = self.keep()
        indexed = Image.fromarray(labels)
        if indexed.mode == "L":  # more than 256 classes have no palette
            indexed.putpalette([value for color in palette for value in color])
        indexed.save(folder / "labels.png")
        drawn.save(folder / "overlay.jpg", quality=95)
        files = (str(folder / "labels.png"), str(folder / "overlay.jpg"))
        return Result(comparison(picture, drawn, areas), legend(areas, palette) + said + origin, *files, areas)

    async def run(self, visitor: str | None, progress: gr.Progress, *options: object) -> Result:
        """Work in a thread, which ends soon after this request is canceled or its visitor leaves."""
        stopped = threading.Event()
        self.running.add((visitor, stopped))
        try:
            return await asyncio.to_thread(self.work, *options, stopped, progress)
        finally:
            stopped.set()
            self.running.discard((visitor, stopped))

    def leave(self, request: gr.Request) -> None:
        """Stop the work of a visitor who closes the page."""
        for visitor, stopped in list(self.running):
            if visitor == request.session_hash:
                stopped.set()

    async def segment(
        self,
        image: str | None,
        model: str | None,
        mode: str,
        scales: str,
        flip: bool,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple:
        """Segment an image: the comparison, the legend, and the files of the labels and the overlay."""
        if image is None:
            return cleared()
        try:
            found = await self.run(request.session_hash, progress, image, model or "", mode, scales, flip)
        except Exception as error:  # the page shows every error
            return wrong(one_line(error).replace(str(Path(image)), "The file")), *cleared()[1:]
        files = (gr.DownloadButton(value=file, visible=True) for file in (found.labels, found.overlay))
        return found.shown, found.legend, *files

    async def predict(
        self,
        image: str,
        model: str,
        mode: str,
        scales: str,
        flip: bool,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[str, str, list[dict]]:
        """Segment an image for a program: the files of the labels and the overlay, and the areas of the classes."""
        try:
            found = await self.run(request.session_hash, progress, image, model, mode, scales, flip)
        except Exception as error:
            raise gr.Error(one_line(error).replace(str(Path(image)), "The file"), print_exception=False) from error
        return found.labels, found.overlay, found.areas

    def keep(self) -> Path:
        """Make a folder for the files of a result, and delete the oldest one."""
        folder = Path(tempfile.mkdtemp(dir=self.folder.name))
        self.newest.append(folder)
        if len(self.newest) > KEPT:
            shutil.rmtree(self.newest.popleft(), ignore_errors=True)
        return folder

    def show_card(self, name: str | None) -> tuple:
        """Link to the model card of a model, and its text in an accordion if there is any."""
        found, text = model_card((name or "").strip())
        return gr.HTML(found, visible=bool(found)), gr.Accordion(visible=bool(text)), text

    def inputs(self) -> tuple[gr.Image, dict[str, gr.Button]]:
        """Build the inputs: image and examples."""
        gr.Markdown("## Input")
        alt = {"alt_text": "The image to segment"}
        if "alt_text" not in inspect.signature(gr.Image).parameters:  # only new versions of gradio have it
            alt = {}
        webcam = gr.WebcamOptions(mirror=False, constraints={"video": {"facingMode": "environment"}})
        sources = ["upload", "webcam", "clipboard"]
        image = gr.Image(label="Image", sources=sources, webcam_options=webcam, height=260, elem_id="image", **alt)
        # pass the file on unchanged: `work` reports what is wrong with it
        image.preprocess = lambda payload: payload and payload.path
        gr.Markdown("Examples", elem_id="examples-label")
        with gr.Row(elem_id="examples"):
            return image, {
                path: gr.Button(name, icon=path, size="sm", min_width=70) for name, path in self.scenes.items()
            }

    def settings(self) -> tuple:
        """Build the settings: model, its card, and how it predicts; and the buttons."""
        gr.Markdown("## Settings")
        model = gr.Dropdown(
            self.models, value=self.models[0], label="Model", elem_id="model", allow_custom_value=self.any_model,
            info="Choose one, or type a published name, user/repo of the Hub, or a folder." if self.any_model else None,
        )  # fmt: skip
        found, text = model_card(self.models[0])
        card = gr.HTML(found, visible=bool(found), label="Model card", elem_id="card")
        with gr.Accordion("Model card", open=False, visible=bool(text), elem_id="card-text") as accordion:
            card_text = gr.Markdown(text, elem_classes="card")
        shown = [card, accordion, card_text]
        model.change(self.show_card, model, shown, show_progress="hidden", api_visibility="private")
        with gr.Row():
            mode = gr.Dropdown(list(MODES), value="automatic", label="Mode", elem_id="mode", min_width=130)
            scales = gr.Dropdown(list(SCALES), value="1", label="Scales", elem_id="scales", min_width=130)
        flip = gr.Checkbox(label="Average with the mirrored image", elem_id="flip")
        with gr.Row():
            run = gr.Button("Segment", variant="primary", elem_id="run", scale=3, min_width=160)
            stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
        return model, mode, scales, flip, run, stop

    def page(self) -> gr.Blocks:
        """Build the page."""
        with gr.Blocks(title="SegNeXt", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
            gr.Markdown(
                "# SegNeXt\nThis page segments images: it assigns a class to every pixel, draws the classes over the "
                "image, and lists their shares."
            )
            with gr.Row(elem_id="layout"):  # in the order of a narrow page
                with gr.Column(elem_id="inputs"):
                    image, examples = self.inputs()
                with gr.Column(elem_id="result"):
                    gr.Markdown("## Result")
                    shown = gr.HTML(note(START, "note empty"), elem_id="slider", label="Image and overlay")
                    areas = gr.HTML("", elem_id="areas", label="Classes")
                    with gr.Row():
                        labels = gr.DownloadButton("Labels (PNG)", visible=False, size="sm", elem_id="download")
                        drawn = gr.DownloadButton("Overlay (JPEG)", visible=False, size="sm", elem_id="overlay")
                with gr.Column(elem_id="settings"):
                    *options, run, stop = self.settings()
            inputs, outputs = [image, *options], [shown, areas, labels, drawn]
            private = {"api_visibility": "private"}
            one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
            events = [run.click, image.upload]
            for path, button in examples.items():
                chosen = button.click(functools.partial(str, path), None, image, show_progress="hidden", **private)
                events.append(chosen.then)
            requests = [
                event(self.segment, inputs, outputs, show_progress_on=[shown], **one_at_a_time, **private)
                for event in events
            ]
            for request in requests:
                request.then(js=SHOW_RESULT, **private)
            gr.on([image.clear, stop.click], cleared, None, outputs, cancels=requests, **private)
            page.unload(self.leave)
            given = [labels, drawn, gr.JSON(visible=False, label="Areas")]
            gr.Button(visible=False).click(self.predict, inputs, given, api_name="predict", **one_at_a_time)
        return page.queue(max_size=WAITING)


def cleared() -> tuple:
    """Return what the page shows without an image."""
    hidden = gr.DownloadButton(visible=False)
    return note(START, "note empty"), "", hidden, hidden


def make_space(folder: Path, models: list[str], requirement: str | None = None) -> None:
    """Write a Space of the Hugging Face Hub: the page, this package, model folders, requirements and README.

    Args:
        folder: Folder to write; it must be empty or not exist.
        models: Names of the models, as for :class:`App`; model folders are copied.
        requirement: Requirement line for this package, in pip's syntax. Default: copy the package.

    Raises:
        FileExistsError: If the folder is not empty, or two model folders have the same name.
        FileNotFoundError: If this package should be copied but is not installed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: choose another name.")
    declared: list[str] = []
    if requirement is None:
        try:
            declared = importlib.metadata.requires("segnext-timm") or []
        except importlib.metadata.PackageNotFoundError:
            raise FileNotFoundError(
                "segnext-timm is not installed, so its dependencies are unknown: install it first."
            ) from None
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).resolve().parent
    (folder / "segmentation").mkdir()
    for name in ("__init__.py", "page.py", "scenes.py"):
        shutil.copy(here / "segmentation" / name, folder / "segmentation")
    requirements = [requirement]
    if requirement is None:
        source = Path(segnext_timm.__file__).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        requirements = [line for line in declared if "extra ==" not in line]
    names = []
    for model in models:
        if Path(model).is_dir():
            place = folder / "models" / Path(model).resolve().name
            if place.exists():
                raise FileExistsError(f"Two models are named {place.name}: rename one of their folders.")
            shutil.copytree(model, place)
            model = place.relative_to(folder).as_posix()
        names.append(model)
    page = (here / "app.py").read_text(encoding="utf-8")
    (folder / "app.py").write_text(page.replace("\nMODELS = None", f"\nMODELS = {names!r}"), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(FRONT_MATTER.format(gradio=gr.__version__), encoding="utf-8")


MODELS = None  # names of the page's models; None for the published ones


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="published names, model folders, or repositories on the Hub")
    parser.add_argument(
        "--any-model",
        action="store_true",
        help="let visitors type other models, which may be downloads or folders of this machine: where you trust them",
    )
    parser.add_argument("--host", default=None, help="address to listen on; 0.0.0.0 for other machines")
    parser.add_argument("--port", type=int, default=None, help="port; without it, the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="also serve it by a public link of gradio, for a week")
    parser.add_argument(
        "--max-megapixels", type=float, default=16, help="larger images are reduced; all scales count, if they are work"
    )
    parser.add_argument("--max-seconds", type=float, default=60, help="time for one image, without loading its model")
    parser.add_argument("--make-space", type=Path, metavar="DIR", help="write a Space to DIR, and exit")
    parser.add_argument(
        "--requirement",
        help="requirement line for this package, such as git+https://...; without it, the package is copied",
    )
    args = parser.parse_args(argv)
    for option in ("max_megapixels", "max_seconds"):
        if not getattr(args, option) > 0:
            parser.error(f"--{option.replace('_', '-')} must be positive, got {getattr(args, option)}")
    given = args.models or MODELS
    models = given or segnext_timm.list_segmenters()
    facts = [stated_facts(name) for name in given or models[:1]]
    if args.make_space:
        make_space(args.make_space, models, args.requirement)
        print(
            f"Wrote {args.make_space}: push it to a Space, `hf upload --repo-type space user/name {args.make_space}`."
        )
        return
    app = App(models, args.any_model, args.max_megapixels, args.max_seconds, trained_size(facts[0]))
    app.page().launch(
        share=args.share,
        server_name=args.host,
        server_port=args.port,
        max_file_size="200mb",
        css=CSS,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        ssr_mode=False,
    )


if __name__ == "__main__":
    try:
        main()
    except (segnext_timm.SegNeXtError, OSError) as error:
        sys.exit(f"app: {one_line(error)}")
