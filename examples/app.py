"""A web page that segments images: drop an image, choose a model, see the overlay and the areas of the classes.

    python examples/app.py                                    # the published models, downloaded when they are chosen
    python examples/app.py runs/quickstart segnext_b.mmseg_ade20k user/repo     # your own models
    python examples/app.py --make-space my-space segnext_b    # a folder to push to a Space of the Hugging Face Hub

Install its requirements with `pip install -e ".[app]"`. Images that are too large to process whole are processed in
sliding windows.
"""

import argparse
import functools
import html
import importlib.metadata
import shutil
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import gradio as gr
import torch
from PIL import Image

import segnext_timm
from segmentation import scenes
from segnext_timm.checkpoints.segmenters import load_segmenter
from segnext_timm.models.model_info import ModelInfo
from segnext_timm.prediction.drawing import class_areas, label_picture, overlay, share_text
from segnext_timm.prediction.images import read_image
from segnext_timm.prediction.pipeline import predict

SHOWN = 1600  # longest side of the pictures on the page
KEPT = 50  # label pictures that can be downloaded, of the newest predictions
MODES = {"automatic": "auto", "whole image": "whole", "sliding windows": "slide"}
CSS = """
.legend { width: 100%; border-collapse: collapse; }
.legend, .legend tbody, .legend tr, .legend td { border: none !important; }
.legend td { padding: 3px 8px; }
.legend .swatch { width: 18px; height: 18px; border-radius: 4px; border: 1px solid #0003; }
.legend .bar { height: 10px; border-radius: 5px; min-width: 2px; }
.legend .share { text-align: right; font-variant-numeric: tabular-nums; }
.note { color: var(--body-text-color-subdued); padding: 4px 8px; }
.wrong { color: #b42318; background: #fef3f2; border: 1px solid #fda29b; border-radius: 8px; padding: 10px 14px; }
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
    model = segnext_timm.fuse(load_segmenter(name), inplace=True)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device, memory_format=torch.channels_last)


def legend(areas: list[dict], palette: list, note: str) -> str:
    """Format the classes in an image as HTML, largest first, with a note below."""
    rows = []
    for area in areas:
        color = "rgb({}, {}, {})".format(*(palette[area["label"]] if area["label"] < len(palette) else (0, 0, 0)))
        rows.append(
            f'<tr><td style="width: 34px"><div class="swatch" style="background: {color}"></div></td>'
            f"<td>{html.escape(str(area['name']))}</td>"
            f'<td style="width: 45%"><div class="bar" style="width: {100 * area["share"]:.1f}%; background: {color}">'
            f'</div></td><td class="share">{html.escape(share_text(area["share"]))}</td></tr>'
        )
    return f'<table class="legend">{"".join(rows)}</table><div class="note">{html.escape(note)}</div>'


def wrong(message: str) -> str:
    """Format an error as HTML."""
    return f'<div class="wrong" role="alert">{html.escape(message)}</div>'


class App:
    """The page and its state: names of models, and the folder of the newest label pictures."""

    def __init__(self, models: list[str]) -> None:
        self.models = models
        self.folder = tempfile.TemporaryDirectory(prefix="segnext-")
        self.newest: deque[Path] = deque()

    def segment(
        self,
        file: str | None,
        name: str,
        mode: str,
        flip: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple:
        """Segment an image: the pictures of the slider, the legend, and the file of the labels."""
        if file is None:
            return None, '<div class="note">Drop an image, or take an example.</div>', gr.DownloadButton(visible=False)
        try:
            progress(0, desc="loading the model")
            model = load(name)
            info = ModelInfo(model)
            image = read_image(file, info.in_channels)
            start = time.monotonic()
            labels = predict(
                model, image, mode=MODES[mode], flip=flip, progress=lambda share: progress(share, desc="segmenting")
            )
            seconds = time.monotonic() - start
        except Exception as error:  # the page shows every error
            message = str(error).replace(str(Path(file)), "The file") or type(error).__name__
            return None, wrong(message), gr.DownloadButton(visible=False)
        names, palette = info.label_names, info.palette
        height, width = labels.shape
        note = f"{width} × {height} pixels in {seconds:.1f} s on {next(model.parameters()).device.type}, {name}"
        picture = Image.fromarray(read_image(file).permute(1, 2, 0).numpy())
        drawn = overlay(picture, labels, names, palette, alpha=0.6, legend=False)
        scale = min(SHOWN / max(width, height), 1)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        shown = tuple(one.resize(size, Image.Resampling.LANCZOS) if scale < 1 else one for one in (picture, drawn))
        areas = class_areas(labels, names)
        return shown, legend(areas, palette, note), gr.DownloadButton(value=self.keep(labels, palette), visible=True)

    def keep(self, labels, palette) -> str:
        """Write labels to a new file, and delete the oldest one."""
        path = Path(tempfile.mkdtemp(dir=self.folder.name)) / "labels.png"
        label_picture(labels, palette).save(path)
        self.newest.append(path)
        if len(self.newest) > KEPT:
            shutil.rmtree(self.newest.popleft().parent, ignore_errors=True)
        return str(path)

    def examples(self) -> list[list[str]]:
        """Draw example scenes, and return their files."""
        paths = []
        for index in range(4):
            path = Path(self.folder.name) / f"scene_{index}.png"
            Image.fromarray(scenes.draw(2, index, 256)[0]).save(path)
            paths.append([str(path)])
        return paths

    def page(self) -> gr.Blocks:
        """Build the page."""
        with gr.Blocks(title="SegNeXt", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
            gr.Markdown("# SegNeXt\nSemantic segmentation: every pixel of an image gets a class.")
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    image = gr.Image(label="Image", sources=["upload", "clipboard"], height=280, elem_id="image")
                    # pass the file on unchanged: `segment` reports what is wrong with it
                    image.preprocess = lambda payload: payload and payload.path
                    model = gr.Dropdown(self.models, value=self.models[0], label="Model", elem_id="model")
                    mode = gr.Radio(list(MODES), value="automatic", label="Inference", elem_id="mode")
                    flip = gr.Checkbox(label="Average with the mirrored image", elem_id="flip")
                    run = gr.Button("Segment", variant="primary", elem_id="run")
                    examples = gr.Examples(self.examples(), [image], label="Examples")
                with gr.Column(scale=3, min_width=320):
                    slider = gr.ImageSlider(
                        label="Image | overlay", interactive=False, max_height=640, elem_id="slider", format="jpeg"
                    )
                    areas = gr.HTML(
                        '<div class="note">Drop an image, or take an example.</div>', elem_id="areas", label="Classes"
                    )
                    download = gr.DownloadButton("Labels as PNG", visible=False, size="sm", elem_id="download")
            inputs, outputs = [image, model, mode, flip], [slider, areas, download]
            for event in (run.click, image.upload, examples.load_input_event.then):
                event(self.segment, inputs, outputs, show_progress_on=[slider])
            image.clear(lambda: (None, "", gr.DownloadButton(visible=False)), None, outputs)
        return page


def make_space(folder: Path, models: list[str], requirement: str | None = None) -> None:
    """Write a Space of the Hugging Face Hub: the page, this package, model folders, requirements and README.

    Args:
        folder: Folder to write; it must be empty or not exist.
        models: Names of the models, as for :class:`App`; model folders are copied.
        requirement: Requirement line for this package, in pip's syntax. Default: copy the package.

    Raises:
        FileExistsError: If the folder is not empty, or two model folders have the same name.
        ValueError: If this package should be copied but is not installed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: choose another name.")
    declared: list[str] = []
    if requirement is None:
        try:
            declared = importlib.metadata.requires("segnext-timm") or []
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
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


def check_model(name: str) -> None:
    """Raise a FileNotFoundError unless `name` is a published model, a folder, or has the form of a Hub repository.

    Published names may omit the tag after the dot.
    """
    published = segnext_timm.list_segmenters()
    known = {*published, *(name.split(".")[0] for name in published)}
    if "/" not in name and name not in known and not Path(name).is_dir():
        raise FileNotFoundError(f"{name}: not a folder, and not one of {', '.join(published)}.")


MODELS = None  # names of the page's models; None for the published ones


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="published names, model folders, or repositories on the Hub")
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
        check_model(name)
    if args.make_space:
        make_space(args.make_space, models, args.requirement)
        print(
            f"Wrote {args.make_space}: push it to a Space, `hf upload --repo-type space user/name {args.make_space}`."
        )
        return
    App(models).page().launch(
        server_name=args.host, server_port=args.port, max_file_size="200mb", css=CSS, theme=gr.themes.Soft(),
        ssr_mode=False,
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"app: {error}")
