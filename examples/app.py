"""A web page that segments images: drop an image, choose a model, see the overlay and the areas of the classes.

    python examples/app.py                                    # the published models, downloaded when they are used
    python examples/app.py runs/quickstart segnext_b.mmseg_ade20k user/repo     # your own models
    python examples/app.py runs/quickstart --any-model        # visitors may also type another model
    python examples/app.py --make-space my-space segnext_b    # a folder to push to a Space of the Hugging Face Hub

Install its requirements with `pip install -e ".[app]"`. Models are named as for `segnext-timm predict`. Images that are
too large to process whole are processed in sliding windows.
"""

import argparse
import base64
import functools
import html
import importlib.metadata
import inspect
import io
import shutil
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image

import segnext_timm
from segmentation import scenes
from segnext_timm import class_areas, overlay, predict
from segnext_timm.label_sets import VOC_PALETTE

SHOWN = 1600  # longest side of the pictures on the page
KEPT = 50  # results that can be downloaded, of the newest predictions
MODES = {"automatic": "auto", "whole image": "whole", "sliding windows": "slide"}
SCALES = {"1": (1.0,), "0.5": (0.5,), "0.5, 1, 1.5": (0.5, 1.0, 1.5)}
# name, seed and index of drawn scenes
EXAMPLES = {"Two cars": (6, 5), "Two lamps": (7, 1), "Evening": (2, 4), "Trees": (2, 5)}
SIDE = 512  # of the example scenes, in pixels
SHOW_RESULT = "() => { document.querySelector('#slider').scrollIntoView({block: 'nearest'}) }"
START = "Drop an image, or choose an example."
CSS = """
.gradio-container .main { max-width: 1180px !important; padding: 16px !important; }
.gradio-container .prose p { margin-bottom: 0; }
.html-container { padding: 0 !important; }
#examples { gap: 8px; flex-wrap: nowrap; }
#examples button { flex-direction: column; gap: 4px; padding: 6px; font-weight: 400; white-space: nowrap; }
#examples button img { width: 100%; height: auto; aspect-ratio: 1; max-width: 96px; margin: 0; border-radius: 6px; }
.prose h2 { margin: 4px 0 0 !important; }
:focus-visible, .compare:has(input:focus-visible) { outline: 3px solid var(--color-accent) !important;
    outline-offset: 2px; }
.wrap:has(> .wrap-inner input:focus-visible) { outline: 3px solid var(--color-accent); border-radius: 4px; }
.wrap-inner input:focus-visible { outline: none !important; }
.compare { --at: 50%; position: relative; width: min(100%, 480px * var(--ratio)); aspect-ratio: var(--ratio);
    margin: 0 auto !important; border-radius: 8px; overflow: hidden; }
.compare img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0 !important; border-radius: 0; }
.compare img.over { clip-path: inset(0 0 0 var(--at)); }
.compare span { position: absolute; pointer-events: none; }
.compare .tag { top: 10px; padding: 2px 10px; border-radius: 6px; background: #fffffff0; color: #1f2937;
    font-weight: 600; font-size: 14px; }
.compare .edge { left: var(--at); inset-block: 0; width: 3px; margin-left: -1.5px; background: #fff;
    box-shadow: 0 0 4px #0009; }
.compare .edge::after { content: "◂ ▸"; position: absolute; top: 50%; left: 50%; translate: -50% -50%; width: 44px;
    height: 44px; line-height: 42px; text-align: center; border-radius: 50%; background: #fff; color: #1f2937;
    box-shadow: 0 1px 6px #0008; white-space: pre; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize;
    appearance: none; touch-action: pan-y; }
.compare input::-webkit-slider-thumb { appearance: none; width: 1px; height: 100%; }
.compare input::-moz-range-thumb { width: 1px; height: 100%; border: none; }
.legend { width: 100%; border-collapse: collapse; margin: 8px 0 0 !important; table-layout: fixed; }
.legend, .legend tbody, .legend thead, .legend tr, .legend th, .legend td { border: none !important;
    background: none !important; }
.legend th, .legend td { padding: 4px 8px !important; text-align: left; font-weight: 400; overflow-wrap: anywhere; }
.legend thead th { font-weight: 600; font-size: 14px; }
.legend .swatch { width: 18px; height: 18px; border-radius: 4px; box-shadow: 0 0 0 1px #8888; }
.legend .bar { height: 10px; border-radius: 5px; min-width: 2px; box-shadow: 0 0 0 1px #8886; }
.legend .share { text-align: right !important; font-variant-numeric: tabular-nums; white-space: nowrap; }
.note { padding: 4px 8px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.dark .prose a { color: var(--primary-300) !important; }
.note.empty { border: 2px dashed #8888; border-radius: 8px; padding: 96px 16px; text-align: center; }
.wrong { color: #b42318; background: #fef3f2; border: 1px solid #fda29b; border-radius: 8px; padding: 10px 14px;
    overflow-wrap: anywhere; }
.dark .wrong { color: #fecdca; background: #55160c; border-color: #b42318; }
.card { overflow-x: auto; overflow-wrap: anywhere; }
body:not(.dark) { --block-label-text-color: var(--primary-700); --block-title-text-color: var(--primary-700);
    --block-info-text-color: var(--neutral-600); --body-text-color-subdued: var(--neutral-600);
    --button-primary-background-fill: var(--primary-600); --button-primary-background-fill-hover: var(--primary-700); }
footer { display: none !important; }
"""
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


@functools.lru_cache(maxsize=4)
def load(name: str) -> torch.nn.Module:
    """Load a model, fuse it, and move it to an accelerator if there is one."""
    model = segnext_timm.fuse(segnext_timm.load_segmenter(name), inplace=True)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device, memory_format=torch.channels_last)


def one_line(error: Exception) -> str:
    """Format an error as `segnext-timm` prints it: in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def wrong(message: str) -> str:
    """Format an error as HTML."""
    return f'<div class="wrong" role="alert">{html.escape(message)}</div>'


def note(message: str, kind: str = "note") -> str:
    """Format a remark as HTML, which screen readers announce."""
    return f'<div class="{kind}" role="status">{html.escape(message)}</div>'


def legend(areas: list[dict], palette: list) -> str:
    """Format the classes in an image as an HTML table, largest first."""
    rows = []
    for area in areas:
        color = "rgb({}, {}, {})".format(*(palette[area["label"]] if area["label"] < len(palette) else (0, 0, 0)))
        rows.append(
            f'<tr><td><div class="swatch" style="background: {color}"></div></td>'
            f'<th scope="row">{html.escape(str(area["name"]))}</th>'
            f'<td><div class="bar" style="width: {100 * area["share"]:.1f}%; background: {color}">'
            f'</div></td><td class="share">{area["share"]:.1%}</td></tr>'
        )
    widths = "".join(f'<col style="width: {width}">' for width in ("36px", "auto", "38%", "64px"))
    head = '<th scope="col" colspan="2">Class</th><th scope="col" colspan="2" class="share">Share of the pixels</th>'
    return (
        f'<table class="legend"><colgroup>{widths}</colgroup><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def data_url(picture: Image.Image) -> str:
    """Encode a picture for an HTML page."""
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def comparison(picture: Image.Image, drawn: Image.Image, areas: list[dict]) -> str:
    """Format an image and its overlay as HTML, with a slider between them.

    The slider is a range input, which the keyboard and screen readers can operate; gradio's ImageSlider needs a mouse.
    """
    scale = min(SHOWN / max(picture.size), 1)
    size = tuple(max(round(side * scale), 1) for side in picture.size)
    before, after = (
        data_url(one.resize(size, Image.Resampling.LANCZOS) if scale < 1 else one) for one in (picture, drawn)
    )
    shares = ", ".join(f"{area['name']} {area['share']:.1%}" for area in areas)
    return (
        f'<div class="compare" style="--ratio: {size[0] / size[1]:.4f}"><img src="{before}" alt="The image">'
        f'<img class="over" src="{after}" alt="The image with its classes drawn over it: {html.escape(shares)}">'
        '<span class="edge"></span><span class="tag" style="left: 10px">Image</span>'
        '<span class="tag" style="right: 10px">Overlay</span><input type="range" min="0" max="100" step="any" '
        'value="50" aria-label="Compare: percentage of the image without overlay" '
        "oninput=\"this.parentElement.style.setProperty('--at', this.value + '%')\"></div>"
    )


def check(name: str) -> None:
    """Load a model that needs no download, so that what is wrong with a folder or a name is told at once."""
    published = {each.partition(".")[0] for each in segnext_timm.list_segmenters()}
    if Path(name).exists() or (name.count("/") != 1 and name.partition(".")[0] not in published):
        load(name)


def link(url: str, text: str) -> str:
    """Format a link as HTML."""
    return f'<a href="{html.escape(url)}" target="_blank" rel="noopener">{html.escape(text)}</a>'


def model_card(name: str) -> tuple[str, str]:
    """Find a model's card without a download: HTML with its link, or an error; and a folder's text in Markdown."""
    try:
        check(name)
    except (segnext_timm.SegNeXtError, OSError) as error:
        return wrong(one_line(error)), ""
    readme = Path(name) / "README.md"
    if readme.is_file():
        return "", ModelCard(readme.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).text
    if Path(name).is_dir():
        return note("This folder holds no model card, README.md."), ""
    card = f'<div class="note">Model card: {link(f"https://huggingface.co/{name}", name)}</div>'
    return card if "/" in name else "", ""


class App:
    """The page and its state: names of models, and the folder of the newest results.

    Args:
        models: Names to choose from.
        any_model: Let visitors type other names: published ones, repositories on the Hub, folders of this machine.
    """

    def __init__(self, models: list[str], any_model: bool = False) -> None:
        self.models = models
        self.any_model = any_model
        self.folder = tempfile.TemporaryDirectory(prefix="segnext-")
        self.newest: deque[Path] = deque()
        self.scenes = {}
        for name, (seed, index) in EXAMPLES.items():
            path = Path(self.folder.name) / f"scene_{seed}_{index}.png"
            Image.fromarray(scenes.draw(seed, index, SIDE)[0]).save(path)
            self.scenes[name] = str(path)

    def segment(
        self,
        file: str | None,
        name: str | None,
        mode: str,
        scales: str,
        flip: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple:
        """Segment an image: the comparison, the legend, and the files of the labels and the overlay."""
        hidden = gr.DownloadButton(visible=False)
        if file is None:
            return note(START, "note empty"), "", hidden, hidden
        name = (name or "").strip()
        try:
            progress(0, desc="loading the model")
            model = load(name)
            start = time.monotonic()
            report = functools.partial(progress, desc="segmenting")
            labels = predict(model, file, mode=MODES[mode], scales=SCALES[scales], flip=flip, progress=report)
            seconds = time.monotonic() - start
        except Exception as error:  # the page shows every error
            return wrong(one_line(error).replace(str(Path(file)), "The file")), "", hidden, hidden
        facts = getattr(model, "pretrained_cfg", {})
        names, palette = facts.get("label_names") or [], facts.get("palette") or VOC_PALETTE
        if len(names) == 1:  # labels of a binary model are 0 and 1
            names, palette = ["background", *names], [(0, 0, 0), *palette]
        areas = class_areas(labels, names)
        height, width = labels.shape
        device = next(model.parameters()).device.type
        scale = "at the model's scale, {} × {}, ".format(*facts["fit_in"]) if facts.get("fit_in") else ""
        said = note(f"{width} × {height} pixels {scale}in {seconds:.1f} s on {device}, {name}")
        url = str(facts.get("origin_url"))
        origin = f'<div class="note">Weights: {link(url, url)}</div>' if url.startswith("https://") else ""
        picture, drawn = (overlay(file, labels, names, palette, alpha, legend=False) for alpha in (0, 0.6))
        folder = self.keep()
        indexed = Image.fromarray(labels)
        if labels.dtype == np.uint8:  # more than 256 classes have no palette
            indexed.putpalette([value for color in palette for value in color])
        indexed.save(folder / "labels.png")
        drawn.save(folder / "overlay.jpg", quality=95)
        files = (gr.DownloadButton(value=str(folder / one), visible=True) for one in ("labels.png", "overlay.jpg"))
        return comparison(picture, drawn, areas), legend(areas, palette) + said + origin, *files

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

    def inputs(self) -> tuple:
        """Build the column of the inputs: image, examples, model, its card, settings, and button."""
        gr.Markdown("## Input")
        alt = {"alt_text": "The image to segment"}
        if "alt_text" not in inspect.signature(gr.Image).parameters:  # only new versions of gradio have it
            alt = {}
        image = gr.Image(label="Image", sources=["upload", "clipboard"], height=260, elem_id="image", **alt)
        # pass the file on unchanged: `segment` reports what is wrong with it
        image.preprocess = lambda payload: payload and payload.path
        gr.Markdown("Examples", elem_id="examples-label")
        with gr.Row(elem_id="examples"):
            examples = {path: gr.Button(name, icon=path, size="sm", min_width=70) for name, path in self.scenes.items()}
        model = gr.Dropdown(
            self.models, value=self.models[0], label="Model", elem_id="model", allow_custom_value=self.any_model,
            info="Choose one, or type a published name, user/repo of the Hub, or a folder." if self.any_model else None,
        )  # fmt: skip
        found, text = model_card(self.models[0])
        card = gr.HTML(found, visible=bool(found), label="Model card", elem_id="card")
        with gr.Accordion("Model card", open=False, visible=bool(text), elem_id="card-text") as accordion:
            card_text = gr.Markdown(text, elem_classes="card")
        model.change(self.show_card, model, [card, accordion, card_text], show_progress="hidden")
        gr.Markdown("## Inference")
        with gr.Row():
            mode = gr.Dropdown(list(MODES), value="automatic", label="Mode", elem_id="mode", min_width=130)
            scales = gr.Dropdown(list(SCALES), value="1", label="Scales", elem_id="scales", min_width=130)
        flip = gr.Checkbox(label="Average with the mirrored image", elem_id="flip")
        run = gr.Button("Segment", variant="primary", elem_id="run")
        return image, examples, model, mode, scales, flip, run

    def page(self) -> gr.Blocks:
        """Build the page."""
        with gr.Blocks(title="SegNeXt", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
            gr.Markdown(
                "# SegNeXt\nThis page segments images: it assigns a class to every pixel, draws the classes over the "
                "image, and lists their shares."
            )
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    image, examples, model, mode, scales, flip, run = self.inputs()
                with gr.Column(scale=3, min_width=320):
                    gr.Markdown("## Result")
                    shown = gr.HTML(note(START, "note empty"), elem_id="slider", label="Image and overlay")
                    areas = gr.HTML("", elem_id="areas", label="Classes")
                    with gr.Row():
                        labels = gr.DownloadButton("Labels (PNG)", visible=False, size="sm", elem_id="download")
                        drawn = gr.DownloadButton("Overlay (JPEG)", visible=False, size="sm", elem_id="overlay")
            inputs, outputs = [image, model, mode, scales, flip], [shown, areas, labels, drawn]
            events = [run.click, image.upload]
            for path, button in examples.items():
                chosen = button.click(functools.partial(str, path), None, image, show_progress="hidden")
                events.append(chosen.then)
            for event in events:
                event(self.segment, inputs, outputs, show_progress_on=[shown]).then(js=SHOW_RESULT)
            hidden = gr.DownloadButton(visible=False)
            image.clear(lambda: (note(START, "note empty"), "", hidden, hidden), None, outputs)
        return page


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
    for name in ("__init__.py", "scenes.py"):
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
    parser.add_argument("--make-space", type=Path, metavar="DIR", help="write a Space to DIR, and exit")
    parser.add_argument(
        "--requirement",
        help="requirement line for this package, such as git+https://...; without it, the package is copied",
    )
    args = parser.parse_args(argv)
    models = args.models or MODELS or segnext_timm.list_segmenters()
    for name in models:
        check(name)
    if args.make_space:
        make_space(args.make_space, models, args.requirement)
        print(
            f"Wrote {args.make_space}: push it to a Space, `hf upload --repo-type space user/name {args.make_space}`."
        )
        return
    App(models, args.any_model).page().launch(
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
