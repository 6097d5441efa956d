"""The command `segnext-timm`.

This module imports only light modules. Each command imports what it needs, so that help and tables appear at once.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import __version__
from ._cli_info import describe_model, list_models, model_text, models_text
from ._cli_types import (
    ClassesType,
    DeviceType,
    ExportPathType,
    Group,
    RepoType,
    ScalesType,
    SegmenterType,
    SizeType,
    StoppedError,
    out_of_memory,
)
from .checkpoints.catalog import ORIGINS
from .exporting.formats import check_installed
from .label_sets import LABEL_SETS
from .variants import MIN_SIDE

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])

_DIRECTORY = click.Path(path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_FUSE_HELP = "Fold norms and layer scales into convolutions first: faster, same output."


class _LogHandler(logging.Handler):
    """Print messages to what is standard error at the time, which changes in tests."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


_LOG_HANDLER = _LogHandler()  # for this package alone: other libraries print their own messages


def _examples(*lines: str) -> str:
    """Format the examples at the end of a command's help, one per line."""
    return "\n".join(["\b", "Examples:", *(f"  segnext-timm {line}" for line in lines)])


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s", help="Show the version.")
@click.option("--traceback", is_flag=True, help="Show the traceback of errors.")
def main(traceback: bool) -> None:
    """SegNeXt for timm, segmentation-models-pytorch and the Hugging Face Hub."""
    logger = logging.getLogger("segnext_timm")
    logger.addHandler(_LOG_HANDLER)  # once, however often the command is called
    logger.setLevel(logging.INFO)


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
    """Describe MODEL: architecture, classes, preprocessing, license, results.

    MODEL is a name that `segnext-timm models` lists, a model folder, or a repository on the Hugging Face Hub. Weights
    are neither downloaded nor loaded.
    """
    info = describe_model(model)
    click.echo(json.dumps(info, indent=1) if as_json else model_text(info))


@main.command(
    "convert",
    epilog=_examples(
        "convert mscan_b.pth mscan_b",
        "convert segnext_base_512x512_ade_160k.pkl my-segnext --classes ade20k",
        "convert my-segnext segnext_b.pth --to mmseg",
    ),
)
@click.argument("src", type=_DIRECTORY)
@click.argument("dst", type=_DIRECTORY)
@click.option("--rank", type=click.IntRange(min=1), help="Rank of a segmenter's matrix decomposition.")
@click.option(
    "--to",
    type=click.Choice(["native", "mmseg"]),
    default="native",
    show_default=True,
    help="Write a folder for timm or smp, or a file for mmsegmentation.",
)
@click.option("--classes", type=ClassesType(), help="File with one class name per line, or a data set: ade20k, ...")
@click.option("--num-classes", type=click.IntRange(min=1), help="Keep only the first outputs.")
@click.option("--ema", is_flag=True, help="Use the moving average of the weights.")
@click.option("--force", is_flag=True, help="Replace DST.")
def convert_command(src: Path, dst: Path, force: bool, **options: Any) -> None:
    """Convert the checkpoint SRC to a folder DST that timm or smp loads.

    SRC is a .pth, .pt, .pkl, .pdparams, .zip or .safetensors file of any origin, or such a folder. DST does not exist,
    or is an empty folder. With --to mmseg, DST is a .pth file for mmsegmentation.
    """
    from . import convert

    click.echo(str(convert(src, dst, force=force, **options)))
    if options["to"] == "mmseg":
        click.echo(f"Wrote {dst}.")
        return
    config = (dst / "config.json").read_text(encoding="utf-8")
    load = (
        f'smp.from_pretrained("{dst}")'
        if '"encoder_name"' in config
        else f'timm.create_model("local-dir:{dst}", pretrained=True)'
    )
    click.echo(f"Wrote {dst}. Load it, after `import segnext_timm`, by {load}.")


@main.command("push", epilog=_examples("push my-segnext user/my-segnext", "push my-segnext user/my-segnext --private"))
@click.argument("src", type=_DIRECTORY)
@click.argument("repo", type=RepoType())
@click.option("--private", is_flag=True, help="Make a private repository.")
@click.option("--revision", help="Branch to push to.")
@click.option("--create-pr", is_flag=True, help="Open a pull request.")
@click.option("-m", "--message", "commit_message", help="Message of the commit.")
@click.option("--extra-files", is_flag=True, help="Push other files in SRC, too, but no pickles.")
def push_command(src: Path, repo: str, **options: Any) -> None:
    """Push the model folder SRC to REPO (user/name) on the Hugging Face Hub."""
    from . import push_to_hub

    commit = push_to_hub(src, repo, **options)
    click.echo(f"Pushed: {commit.pr_url or commit.commit_url}")


@main.command(
    "export",
    epilog=_examples(
        "export segnext_b segnext_b.onnx --argmax",
        "export my-segnext model.onnx --size 512x1024",
        "export my-segnext model.pt2 --dynamic",
        "export my-segnext model.onnx --precision int8 --calibration photos/",
    ),
)
@click.argument("model", type=SegmenterType())
@click.argument("file", type=ExportPathType())
@click.option(
    "--size",
    type=SizeType(MIN_SIDE),
    metavar="HEIGHT[xWIDTH]",
    help="Size of the images in pixels; one number for a square.  [default: as trained, or 512]",
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images per batch.")
@click.option("--dynamic", is_flag=True, help="Accept other batch and image sizes.")
@click.option("--argmax", is_flag=True, help="Output labels instead of logits.")
@click.option("--portable", is_flag=True, help="Labels by static shapes only, for TensorRT and others.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Precision: int8 for ONNX; fp16 for ONNX, ncnn and Core ML.",
)
@click.option("--calibration", type=_DIRECTORY, help="Folder of images for int8; `images` and `labels` in it for mIoU.")
@click.option("--fuse/--no-fuse", default=True, show_default=True, help=_FUSE_HELP)
def export_command(model: str, file: Path, size: tuple[int, int] | None, batch: int, **options: Any) -> None:
    """Export MODEL to FILE, which runs without this package: .onnx, .pt2, .tflite, .ncnn or .mlpackage.

    MODEL is a name that `segnext-timm models` lists, a model folder, or a repository on the Hugging Face Hub. The graph
    takes images normalized with the mean and standard deviation in the file's metadata.
    """
    if options["precision"] == "int8" and options["calibration"] is None:
        raise click.UsageError("int8 needs calibration images: --calibration DIR.")
    if options["precision"] == "int8" and file.suffix != ".onnx":
        raise click.UsageError("Only ONNX files can be int8: choose a FILE that ends in .onnx.")
    if options["portable"] and not options["argmax"]:
        raise click.UsageError("--portable applies to graphs of labels: add --argmax.")
    if options["calibration"] is not None and not options["calibration"].is_dir():
        raise click.BadParameter(f"{options['calibration']} is not a folder.", param_hint="'--calibration'")
    try:
        check_installed(file.suffix)
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    from . import export, load_segmenter
    from .models.model_info import ModelInfo

    with redirect_stdout(sys.stderr):  # libraries print warnings
        segmenter = load_segmenter(model)
    info = ModelInfo(segmenter)
    shape = (batch, info.in_channels, *(size or info.input_size))
    step = info.size_divisor
    if shape[2] % step or shape[3] % step:
        raise click.BadParameter(
            f"this model takes multiples of {step}, got {shape[2]}x{shape[3]}.", param_hint="--size"
        )
    click.echo(f"Exporting for images {'like ' if options['dynamic'] else ''}{shape} ...")
    export(segmenter, file, shape, **options)
    parts = [part for part in file.rglob("*") if part.is_file()] if file.is_dir() else [file]
    size_mb = sum(part.stat().st_size for part in parts) / 1e6
    click.echo(f"Wrote {file} ({size_mb:.1f} MB){', checked in ONNX Runtime' if file.suffix == '.onnx' else ''}.")


_PREDICT_OPTIONS = (
    click.option("-o", "--out", required=True, type=_DIRECTORY, help="Folder of the results."),
    click.option(
        "--mode",
        type=click.Choice(["auto", "whole", "slide"]),
        default="auto",
        show_default=True,
        help="Process images whole or in sliding windows; auto decides by size.",
    ),
    click.option(
        "--window",
        type=SizeType(MIN_SIDE),
        metavar="HEIGHT[xWIDTH]",
        help="Size of the windows in pixels, for images processed in windows.  [default: as trained, or 512]",
    ),
    click.option(
        "--stride",
        type=SizeType(1),
        metavar="HEIGHT[xWIDTH]",
        help="Distance of the windows in pixels.  [default: 3/4 of their size]",
    ),
    click.option(
        "--scales",
        type=ScalesType(),
        default="1",
        show_default=True,
        metavar="NUMBERS",
        help="Average over scales: 0.5,1,1.5",
    ),
    click.option("--flip", is_flag=True, help="Average over mirrored images too."),
    click.option(
        "--fit",
        "fit_in",
        type=SizeType(1, "long by short side", "2048x1024"),
        metavar="LONG[xSHORT]",
        help="First resize images to fit maximum side lengths in pixels; one number for both.",
    ),
    click.option(
        "--device",
        type=DeviceType(),
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, mps, ...  [default: a GPU if there is one]",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
        show_default=True,
        help="Precision of the model; bf16 and fp16 use autocast.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        help="Windows per batch.  [default: what takes less than about 2 GB, up to 16, on a GPU; 1 elsewhere]",
    ),
    click.option(
        "--tile",
        type=click.IntRange(min=1),
        metavar="PIXELS",
        help="Side of the tiles whose scores are computed at once; smaller needs less memory.",
    ),
    click.option("--overlay/--no-overlay", "overlays", default=True, show_default=True, help="Write overlays."),
    click.option("--probabilities", is_flag=True, help="Write probabilities: 2 bytes per class and pixel."),
    click.option("--areas", is_flag=True, help="Write the area of each class to OUT/areas.json."),
    click.option("--fuse/--no-fuse", "fused", default=True, show_default=True, help=_FUSE_HELP),
    click.option("--resume", is_flag=True, help="Skip images whose labels are in OUT."),
    click.option(
        "--json", "as_json", is_flag=True, help="Print a summary as JSON; other output goes to standard error."
    ),
)


_DECIDING = ("mode", "window", "stride", "scales", "flip", "fit_in")  # options that decide what is predicted


def _predict_options(function: F) -> F:
    """Add the options of `segnext-timm predict` to a command, in the order of its help."""
    for option in reversed(_PREDICT_OPTIONS):
        function = option(function)
    return function


@contextmanager
def _progress(count: int) -> Iterator[Callable[[Path, float], None]]:
    """Show a bar on standard error; yields the function that moves it, called with a file and its completed share."""
    done = 0.0
    bar: Any
    with click.progressbar(
        length=100 * count,
        label="Predicting",
        width=24,
        item_show_func=lambda file: file and file.name,
        file=sys.stderr,
    ) as bar:

        def report(file: Path, share: float) -> None:
            nonlocal done
            bar.update(round(100 * (done + share)) - bar.pos, file)
            done += share == 1

        yield report


def _default_device() -> "torch.device":
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


@main.command(
    "predict",
    epilog=_examples(
        "predict segnext_b photos/ -o predictions --areas",
        'predict my-segnext "photos/**/*.jpg" large.tif -o out --mode slide --window 1024',
        "predict user/repo street.jpg -o out --scales 0.5,1,1.5 --flip --device cuda:0 --precision bf16",
        "predict my-segnext photos/ -o out --json > summary.json",
    ),
)
@click.argument("model", type=SegmenterType())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|DIR|PATTERN...")
@_predict_options
def predict_command(
    model: str, images: tuple[str, ...], out: Path, device: Any, fused: bool, as_json: bool, **options: Any
) -> None:
    """Predict the class of every pixel of images with MODEL.

    MODEL is a name that `segnext-timm models` lists, a model folder, or a repository on the Hugging Face Hub. Labels
    are written to OUT as indexed PNG, IMAGE.png, and drawn over the image in IMAGE_overlay.jpg. Images that cannot be
    read are listed at the end, and the exit status is 1. Ctrl-C keeps what is done, and --resume continues.
    """
    window, stride = options["window"], options["stride"]
    if window and stride and (stride[0] > window[0] or stride[1] > window[1]):
        message = f"stride must be from 1 to the window's side, got {stride} of {window}"
        raise click.BadParameter(message, param_hint="'--stride'")
    import torch

    from . import fuse, load_segmenter
    from .prediction.files import find_images, outputs, predict_files
    from .prediction.pipeline import slow_precision

    places, target = find_images(images, out), device or _default_device()
    if warning := slow_precision(target, options["precision"]):
        click.echo(warning, err=True)
    try:
        with redirect_stdout(sys.stderr), out_of_memory():  # libraries print warnings
            segmenter = load_segmenter(model)
            segmenter = fuse(segmenter, inplace=True) if fused else segmenter
            segmenter = segmenter.to(target).to(memory_format=torch.channels_last)
        with out_of_memory(), _progress(len(places)) as report:
            words = [f"{name} {options[name]}" for name in _DECIDING if options[name]]
            origin = ", ".join([str(Path(model)), *words])
            found = predict_files(segmenter, places, out, report=report, measure_all=as_json, origin=origin, **options)
    except KeyboardInterrupt:
        kept = sum("labels" in outputs(result) for result in places.values())
        raise StoppedError(
            f"Interrupted. Labels of {kept} of {len(places)} images are in {out}; run the same command with --resume "
            f"to go on."
        ) from None
    kept = len(places) - found.predicted - len(found.failures)
    there = f"; the labels of {kept} were there" if kept else ""
    click.echo(f"Predicted {found.predicted} of {len(places)} images to {out}{there}.", err=as_json)
    for file, reason in found.failures.items():
        click.echo(f"{file}: {reason}", err=True)
    if as_json:
        entries = {Path(entry["file"]): entry for entry in found.images}
        done = [{**entries[file], "outputs": outputs(places[file])} for file in places if file in entries]
        failures = [{"file": str(file), "reason": reason} for file, reason in found.failures.items()]
        summary = {"model": model, "out": str(out), "images": done, "failures": failures}
        click.echo(json.dumps(summary, indent=1))
    if found.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
