"""The command `segnext-timm`.

This module imports nothing heavy, and each command imports what it needs, so that help and tables appear at once. A
command checks its arguments before it loads or downloads anything.
"""

import json
import logging
import math
import re
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from ._atomic import fill_when_complete
from ._cli_info import describe_model, list_models, model_text, models_text
from .checkpoints.catalog import ORIGINS
from .checkpoints.lookup import check_segmenter, is_hub_id
from .errors import OptionError, SegNeXtError
from .exporting.options import FORMATS, TARGETS, check_export
from .label_sets import LABEL_SETS
from .variants import MIN_SIDE

if TYPE_CHECKING:
    import torch

    from .prediction.files import Predictions

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FIT_HELP = "Resize images to fit: as the model states (auto), not at all (own), long side or LONGxSHORT."
_DECIDING = ("mode", "window", "stride", "scales", "flip", "fit_in")  # options of predict that decide the labels


class _Group(click.Group):
    """Ends with one line on errors that users can act on, and on Ctrl-C; other errors show their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            click.echo(" ".join(["\nInterrupted.", *interrupt.args]), err=True)  # below the ^C
            ctx.exit(130)  # 128 + SIGINT, as shells have it
        except (SegNeXtError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # click ends quietly on a closed pipe
                raise
            raise click.ClickException(" ".join(str(error).split())) from None


class _Size(click.ParamType):
    """One or two sides in pixels, such as 512 or 512x1024, as a pair."""

    name = "size"

    def __init__(self, least: int = 1, **words: Any) -> None:
        self._side, self._words = click.IntRange(least), words  # words that stand for another value

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self._words:
            return self._words[value]
        found = re.fullmatch("([0-9]+)(?:[xX×]([0-9]+))?", value)
        if found is None:
            sizes = ", or ".join(["pixels, such as 512", "two sides, such as 512x1024", *self._words])
            self.fail(f"{value!r} is not a size: give {sizes}.", param, ctx)
        return self._side(found[1], param, ctx), self._side(found[2] or found[1], param, ctx)


def _read_scales(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    """Read positive numbers that are separated by commas."""
    scales = tuple(click.FLOAT(scale, param, ctx) for scale in value.split(","))
    if not all(0 < scale < math.inf for scale in scales):
        raise click.BadParameter(f"{value} are not positive numbers, such as 0.5,1,1.5.", ctx, param)
    return scales


def _find_device(name: str | None) -> "torch.device":
    """Find a device of this machine; an accelerator, if there is one, or the CPU by default."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    try:
        device = torch.device(name or accelerator or "cpu")
        torch.empty(1, device=device).cpu()
        return device
    except Exception:  # torch's backends raise RuntimeError, AssertionError, NotImplementedError, ...
        here = f"cpu and {accelerator}, of which there are {torch.accelerator.device_count()}" if accelerator else "cpu"
        raise OptionError(f"There is no device {name!r} here. This machine has {here}.") from None


def _examples(*lines: str) -> str:
    """Format the examples at the end of a command's help, one per line."""
    return "\n".join(["\b", "Examples:", *(f"  segnext-timm {line}" for line in lines)])


_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
_SETTINGS["token_normalize_func"] = lambda name: name.replace("_", "-")  # both spellings of each option


@click.group(cls=_Group, context_settings=_SETTINGS)
@click.version_option(__version__, message="%(prog)s %(version)s", help="Show the version.")
def main() -> None:
    """SegNeXt for timm, segmentation-models-pytorch and the Hugging Face Hub.

    MODEL is a name that `segnext-timm models` lists, a model folder, or a repository on the Hub. SIZE is in pixels: 512
    for a square, or 512x1024 for height and width.
    """
    logger = logging.getLogger("segnext_timm")  # of this package alone: other libraries print their own messages
    logger.handlers = [logging.StreamHandler()]  # to standard error
    logger.setLevel(logging.INFO)
    logger.propagate = False  # ONNX Runtime's quantizer gives the root logger a handler

    @click.get_current_context().call_on_close
    def restore() -> None:
        logger.handlers.clear()
        logger.propagate = True


@main.command("models", epilog=_examples("models", "models --dataset cityscapes --origin paddleseg", "models --json"))
@click.option("--dataset", type=click.Choice(sorted(LABEL_SETS)), help="Only segmenters of this data set.")
@click.option("--origin", type=click.Choice(sorted(ORIGINS)), help="Only models of this publisher.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models_command(dataset: str | None, origin: str | None, as_json: bool) -> None:
    """List published backbones and segmenters, with caveats to licenses and terms of data sets."""
    models = list_models(dataset, origin)
    click.echo(json.dumps(models, indent=1) if as_json else models_text(models))


@main.command("info", epilog=_examples("info segnext_b", "info mscan_t", "info my-segnext --json", "info user/repo"))
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info_command(model: str, as_json: bool) -> None:
    """Describe MODEL (a published name, a folder or a Hub repository): architecture, preprocessing, license, results.

    Weights are neither downloaded nor loaded.
    """
    info = describe_model(model)
    click.echo(json.dumps(info, indent=1) if as_json else model_text(info))


@main.command(
    "convert",
    epilog=_examples(
        "convert mscan_b.pth mscan_b", "convert segnext_base_512x512_ade_160k.pkl my-segnext --classes ade20k"
    ),
)
@click.argument("src", type=_PATH)
@click.argument("dst", type=_PATH)
@click.option("--rank", type=click.IntRange(1), help="Rank of a segmenter's matrix decomposition.")
@click.option("--classes", help="File with one class name per line, or a data set: ade20k, ...")
@click.option("--num-classes", type=click.IntRange(1), help="Keep only the first outputs.")
@click.option("--ema", is_flag=True, help="Use the moving average of the weights.")
@click.option("--force", is_flag=True, help="Replace DST.")
def convert_command(src: Path, dst: Path, **options: Any) -> None:
    """Convert the checkpoint SRC to a folder DST that timm or smp loads.

    SRC is a .pth, .pt, .pkl, .pdparams, .zip or .safetensors file of any origin, or such a folder. DST does not exist,
    or is an empty folder.
    """
    from .checkpoints.conversion import convert

    checkpoint = convert(src, dst, **options)
    click.echo(str(checkpoint))
    load = f'timm.create_model("local-dir:{dst}", pretrained=True)'
    if checkpoint.kind == "segmenter":
        load = f'smp.from_pretrained("{dst}")'
    click.echo(f"Wrote {dst}. Load it, after `import segnext_timm`, by {load}.")


@main.command("push", epilog=_examples("push my-segnext user/my-segnext", "push my-segnext user/my-segnext --private"))
@click.argument("src", type=_PATH)
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make a private repository.")
@click.option("--revision", help="Branch to push to.")
@click.option("--create-pr", is_flag=True, help="Open a pull request.")
@click.option("-m", "--message", "commit_message", help="Message of the commit.")
def push_command(src: Path, repo: str, **options: Any) -> None:
    """Push the model in the folder SRC to REPO (user/name) on the Hugging Face Hub, without other files."""
    if not is_hub_id(repo):
        raise click.BadParameter(f"{repo!r} is not a repository on the Hub: give user/name.", param_hint="'REPO'")
    from .hub.push import push_to_hub

    commit = push_to_hub(src, repo, **options)
    click.echo(f"Pushed: {commit.pr_url or commit.commit_url}")


@main.command(
    "export",
    epilog=_examples(
        "export segnext_b segnext_b.onnx --argmax",
        "export my-segnext model.onnx --size 512x1024",
        "export my-segnext model.pt2 --dynamic",
        "export my-segnext model.onnx --precision int8 --calibration photos/",
        "export my-segnext model.onnx --target deepness --resolution 10",
        "export my-segnext for-transformers --target transformers",
    ),
)
@click.argument("model")
@click.argument("file", type=_PATH)
@click.option("--size", type=_Size(MIN_SIDE), help="Size of the images.  [default: as trained, or 512]")
@click.option("--batch", type=click.IntRange(1), default=1, help="Images per batch.")
@click.option("--dynamic", is_flag=True, help="Accept other batch and image sizes.")
@click.option("--argmax", is_flag=True, help="Output labels instead of logits.")
@click.option("--portable", is_flag=True, help="Labels by static shapes only, for TensorRT and others.")
@click.option("--precision", type=click.Choice(FORMATS[".onnx"]), default="fp32", help="16 or 8 bits: ONNX.")
@click.option("--calibration", type=_FOLDER, help="Folder of images for int8.")
@click.option("--target", type=click.Choice(TARGETS), help="For a tool: QGIS and GeoDeep (deepness), or a folder.")
@click.option("--resolution", type=float, help="For deepness: centimeters per pixel of the maps.")
def export_command(model: str, file: Path, size: tuple[int, int] | None, batch: int, **options: Any) -> None:
    """Export MODEL (a published name, a folder or a Hub repository) to FILE: .onnx or .pt2.

    FILE runs without this package. It takes images normalized with the mean and standard deviation in its metadata.
    With --target transformers or transformers.js, FILE is a folder that these libraries load.
    """
    check_segmenter(model)
    check_export(file, batch, size, **options)
    from .checkpoints.loading import load_segmenter
    from .exporting.exporters import export
    from .models.model_info import ModelInfo

    with redirect_stdout(sys.stderr):  # libraries print warnings
        segmenter = load_segmenter(model)
    info = ModelInfo(segmenter)
    height, width = size or info.input_size
    if height % info.size_divisor or width % info.size_divisor:
        raise OptionError(f"{model} takes sizes that are multiples of {info.size_divisor}, got {height}x{width}.")
    shape = (batch, info.in_channels, height, width)
    replaced = f", replacing {file}" if file.exists() else ""
    click.echo(f"Exporting for images {'like ' if options['dynamic'] else ''}{shape}{replaced} ...")
    export(segmenter, file, shape, **options)
    size_on_disk = sum(path.stat().st_size for path in ([*file.rglob("*")] if file.is_dir() else [file]))
    click.echo(f"Wrote {file} ({size_on_disk / 1e6:.1f} MB).")


@main.command(
    "predict",
    epilog=_examples(
        "predict segnext_b photos/ -o predictions --areas",
        'predict my-segnext "photos/**/*.jpg" large.tif -o out --mode slide --window 1024',
        "predict user/repo street.jpg -o out --scales 0.5,1,1.5 --flip --device cuda:0 --precision bf16",
        "predict my-segnext orthomosaic.tif -o out --save_as geojson --simplify 1",
        "predict my-segnext street.mp4 -o out --frame_labels",
    ),
)
@click.argument("model")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|VIDEO|DIR|PATTERN...")
@click.option("-o", "--out", required=True, type=_PATH, help="Folder of the results.")
@click.option("--mode", type=click.Choice(["auto", "whole", "slide"]), default="auto", help="Whole images, or windows.")
@click.option("--window", type=_Size(MIN_SIDE), help="Size of the windows.  [default: as trained, or 512]")
@click.option("--stride", type=_Size(), help="Distance of the windows.  [default: 3/4 of their size]")
@click.option("--scales", metavar="NUMBERS", callback=_read_scales, default="1", help="Average over scales: 0.5,1,1.5")
@click.option("--flip", is_flag=True, help="Average over mirrored images too.")
@click.option("--fit", "fit_in", type=_Size(auto="auto", own=None), default="auto", help=_FIT_HELP)
@click.option("--device", help="cpu, cuda, cuda:1, mps, ...  [default: a GPU if there is one]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", help="16 bits by autocast.")
@click.option("--batch", type=click.IntRange(1), help="Windows per batch.  [default: by their size on a GPU; else 1]")
@click.option("--overlay/--no-overlay", "overlays", default=True, help="Write overlays.")
@click.option("--probabilities", is_flag=True, help="Write probabilities: 2 bytes per class and pixel.")
@click.option("--frame_labels", is_flag=True, help="Write the labels of every frame of a video, too.")
@click.option("--areas", is_flag=True, help="Write the area of each class to OUT/areas.json.")
@click.option("--save_as", type=click.Choice(["geojson", "coco", "labelme", "yolo"]), help="Write polygons, too.")
@click.option("--simplify", type=click.FloatRange(0), default=0, help="Tolerance of the polygons, in pixels.")
@click.option("--resume", is_flag=True, help="Skip images whose labels are in OUT.")
def predict_command(model: str, images: tuple[str, ...], out: Path, device: str | None, **options: Any) -> None:
    """Predict the class of every pixel of images or videos with MODEL (a published name, a folder or a Hub repository).

    Labels are written to OUT as indexed PNG, IMAGE.png, and drawn over the image in IMAGE_overlay.jpg. Those of a
    georeferenced image, or of a TIFF past 179 megapixels, are a GeoTIFF, IMAGE.tif, that lies where IMAGE lies (needs
    rasterio). --save_as adds polygons (needs rasterio and shapely): IMAGE.geojson, in WGS 84, of georeferenced images;
    or for label tools, in pixels, OUT/annotations.json (coco), IMAGE.json (labelme) or IMAGE.txt (yolo). Images that
    cannot be read are listed at the end, and the exit status is 1. Ctrl-C keeps what is done, and --resume continues.

    Labels of a video (needs the extra video) are drawn over it in VIDEO_overlay.mp4, and over its first frame, with a
    legend, in VIDEO_overlay.jpg; --frame_labels adds VIDEO_labels.npz. Ctrl-C keeps the frames that are done; --resume
    predicts such a video from its start. Videos in a folder of images are left out unless they are named.
    """
    if options["simplify"] and not options["save_as"]:
        raise click.BadParameter("is for the polygons of --save_as.", param_hint="'--simplify'")
    check_segmenter(model)
    window, stride = options["window"], options["stride"]
    if window and stride and (stride[0] > window[0] or stride[1] > window[1]):
        message = f"stride must be from 1 to the window's side, got {stride} of {window}"
        raise click.BadParameter(message, param_hint="'--stride'")
    target = _find_device(device)
    from .prediction.files import check_video, find_images, is_video, outputs
    from .prediction.polygons import check_options

    if options["save_as"]:
        check_options()
    places = find_images(images, out)
    videos = [file for file in places if is_video(file)]
    for file in videos:
        check_video(file, options["save_as"], options["probabilities"], options["overlays"])
    if not options["resume"] and (earlier := sum("labels" in outputs(result) for result in places.values())):
        click.echo(f"The labels of {earlier} images in {out} will be replaced; --resume keeps them.", err=True)
    if target.type == "cpu" and options["precision"] != "fp32":
        click.echo(f"On most CPUs, {options['precision']} is about ten times slower than fp32.", err=True)
    found = _predict(model, places, target, out=out, **options)
    kept = len(places) - found.predicted - len(found.failures)
    there, kind = f"; the labels of {kept} were there" if kept else "", "files" if videos else "images"
    click.echo(f"Predicted {found.predicted} of {len(places)} {kind} to {out}{there}.")
    for file, reason in found.failures.items():
        click.echo(f"{file}: {reason}", err=True)
    if found.failures:
        sys.exit(1)


@main.command("examples", epilog=_examples("examples examples"))
@click.argument("folder", metavar="DIR", type=_PATH)
def examples_command(folder: Path) -> None:
    """Copy scripts that train, evaluate and deploy, their recipes and guides to DIR, a new or empty folder.

    They are those of the installed version. With `examples` as DIR, the commands of the guides run as they are.
    """
    package = Path(__file__).parent
    source = package / "_examples"  # of an installed wheel
    source = source if source.is_dir() else package.parent / "examples"
    if not source.is_dir():
        raise OptionError(f"{package} was installed without its examples: install a wheel, or clone the repository.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OptionError(f"{folder} is not a new or empty folder: choose another.")
    with fill_when_complete(folder) as new:
        shutil.copytree(source, new, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    click.echo(f"Wrote the examples of segnext-timm {__version__} to {folder}; its README.md lists them. To begin:")
    click.echo('  pip install "segnext-timm[train]"')
    click.echo(f"  python {folder / 'draw_scenes.py'} data/streets")
    click.echo(f"  python {folder / 'train.py'} {folder / 'recipes' / 'folder.yaml'} --data_root data/streets")


def _predict(name: str, places: dict[Path, Path], device: "torch.device", **options: Any) -> "Predictions":
    """Load a model and predict images, with a bar on standard error."""
    import torch

    from .checkpoints.loading import load_segmenter
    from .models.fusion import fuse
    from .models.model_info import ModelInfo
    from .prediction.files import predict_files
    from .prediction.pipeline import is_out_of_memory

    position = {file: number for number, file in enumerate(places)}
    try:
        with redirect_stdout(sys.stderr):  # libraries print warnings
            model = load_segmenter(name)
        deciding = options
        if options["fit_in"] == "auto":
            sides = ModelInfo(model).fit_in
            deciding = options | {"fit_in": sides and f"auto {sides}"}  # not these sides for every image
            if sides:
                scale = "{}x{}, the model's scale, unless they are georeferenced".format(*sides)
                click.echo(f"Images are resized to fit {scale}; --fit own keeps their size.", err=True)
        words = [f"{option} {deciding[option]}" for option in _DECIDING if deciding[option]]
        origin = ", ".join([str(Path(name)), *words])
        model = fuse(model, inplace=True).to(device).to(memory_format=torch.channels_last)
        with click.progressbar(length=100 * len(places), label="Predicting", file=sys.stderr) as bar:

            def report(file: Path, share: float) -> None:
                bar.update(round(100 * (position[file] + share)) - bar.pos)

            return predict_files(model, places, report=report, origin=origin, **options)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise click.ClickException("Out of memory: try --mode slide, or a smaller --window.") from None
