"""The command `segnext-timm`: what the package does, from a shell."""

import sys
from pathlib import Path

import click
import timm
import torch

from . import __version__
from .checkpoints import CheckpointError
from .deploy import export, fuse
from .files import AREAS, find_images, predict_files
from .hub import convert, push_to_hub
from .segnext import SegNeXt
from .zoo import get_segmenter_cfg, list_segmenters, load_segmenter


class _OneLineErrors(click.Group):
    """Ends with a line on the user's errors, not with a traceback."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (CheckpointError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            if ctx.params.get("traceback"):
                raise
            raise click.ClickException(" ".join(str(error).split())) from None


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--traceback", is_flag=True, help="On an error, show where it arose.")
def main(traceback: bool) -> None:
    """SegNeXt for timm, segmentation-models-pytorch and the Hugging Face Hub."""


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _parameters(model: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M"


# ImageNet-1k top-1 of the paper's table 2 (https://arxiv.org/abs/2209.08575)
_TOP1 = {"mscan_t": "75.9", "mscan_s": "81.2", "mscan_b": "83.0", "mscan_l": "83.9"}


@main.command()
def models() -> None:
    """List backbones and segmenters."""
    rows = [("backbone", "parameters", "weights", "top-1")]
    for name, top1 in _TOP1.items():
        cfg = timm.get_pretrained_cfg(name)
        with torch.device("meta"):
            model = timm.create_model(name)
        rows.append((f"{name}.{cfg.tag}", _parameters(model), "ImageNet-1k", top1))
    click.echo(_table(rows) + "\n")
    rows = [("segmenter", "parameters", "weights", "mIoU", "multi-scale", "rank")]
    for name in list_segmenters():
        cfg = get_segmenter_cfg(name)
        with torch.device("meta"):
            model = SegNeXt(
                cfg.encoder_name, encoder_weights=None, decoder_channels=cfg.decoder_channels, classes=cfg.num_classes
            )
        miou = tuple(f"{value:.2f}" for value in cfg.miou)
        rows.append((name, _parameters(model), cfg.dataset, *miou, str(cfg.decoder_rank)))
    click.echo(_table(rows))
    click.echo(
        "\nAccuracies are published ones: top-1 from the paper, mIoU on the validation set from mmsegmentation.\n"
        "The weights are under Apache-2.0; their authors ask commercial users to contact them."
    )


@main.command("convert")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--rank", type=click.IntRange(min=1), help="Rank of a segmenter's matrix decomposition.")
@click.option("--to", type=click.Choice(["native", "mmseg"]), default="native", show_default=True)
@click.option("--classes", help="File with a class name a line, or a data set: ade20k, cityscapes, ...")
@click.option("--ema", is_flag=True, help="Take the moving average of the weights.")
@click.option("--force", is_flag=True, help="Replace DST.")
def convert_command(src: Path, dst: Path, force: bool, **options) -> None:
    """Make of the checkpoint SRC a folder DST that timm or smp loads.

    SRC is a .pth, .pt, .pkl or .safetensors file of any origin, or such a folder. With --to mmseg, DST is a .pth file
    for mmsegmentation.
    """
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


@main.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make a private repository.")
@click.option("--revision", help="Branch to push to.")
@click.option("--create-pr", is_flag=True, help="Open a pull request.")
@click.option("-m", "--message", "commit_message", help="Message of the commit.")
@click.option("--extra-files/--no-extra-files", default=None, help="Push what else lies in SRC; asked if not given.")
def push(src: Path, repo: str, extra_files: bool | None, **options) -> None:
    """Push the model folder SRC to REPO (user/name) on the Hugging Face Hub."""

    def ask(names: list[str]) -> bool:
        listed = "\n".join(f"  {name}" for name in names)
        return click.confirm(f"{src} also holds\n{listed}\nPush these too?")

    wanted = ask if extra_files is None and sys.stdin.isatty() else extra_files
    commit = push_to_hub(src, repo, extra_files=wanted, **options)
    click.echo(f"Pushed: {commit.pr_url or commit.commit_url}")


@main.command("export")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--size", type=click.IntRange(min=32), nargs=2, metavar="HEIGHT WIDTH", help="[default: as trained, or 512 512]"
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images at once.")
@click.option("--dynamic", is_flag=True, help="Take other batches and sizes too.")
@click.option("--argmax", is_flag=True, help="Give labels, not logits.")
@click.option("--fuse/--no-fuse", default=True, show_default=True, help="Fold norms and layer scales first.")
def export_command(model: str, file: Path, size: tuple[int, int] | None, batch: int, **options) -> None:
    """Write MODEL as a graph that runs without this package: FILE ends in .onnx or .pt2.

    MODEL is a name that `segnext-timm models` lists, a model folder, or a repository on the Hugging Face Hub. The graph
    takes images normalised by the mean and standard deviation in the file's metadata.
    """
    segmenter = load_segmenter(model)
    known = getattr(segmenter, "pretrained_cfg", {}).get("input_size") or (0, 512, 512)
    shape = (batch, segmenter.config.get("in_channels", 3), *(size or known[1:]))
    click.echo(f"Exporting for images {'like ' if options['dynamic'] else ''}{shape} ...")
    export(segmenter, file, shape, **options)
    click.echo(f"Wrote {file} ({file.stat().st_size / 1e6:.1f} MB).")


def _scales(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers, such as 0.5,1,1.5.") from None


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return torch.device(name)


@main.command("predict")
@click.argument("model")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|DIR|PATTERN...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the results.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "whole", "slide"]),
    default="auto",
    show_default=True,
    help="See images whole, or in sliding windows; by size and memory if not told.",
)
@click.option("--window", type=click.IntRange(min=32), help="Side of the windows.  [default: as trained, or 512]")
@click.option("--stride", type=click.IntRange(min=1), help="Distance of the windows.  [default: 3/4 of their side]")
@click.option("--scales", default="1", show_default=True, callback=_scales, help="Average over sizes: 0.5,1,1.5")
@click.option("--flip", is_flag=True, help="Average over mirrored images too.")
@click.option(
    "--fit", "fit_in", type=click.IntRange(min=1), nargs=2, metavar="LONG SHORT", help="Resize images to fit first."
)
@click.option("--device", help="cpu, cuda, cuda:1, mps, ...  [default: a GPU if there is one]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Windows at once.")
@click.option("--tile", type=click.IntRange(min=1), help="Side of the pieces whose scores are held at once: memory.")
@click.option("--overlay/--no-overlay", "overlays", default=True, show_default=True, help="Write overlays.")
@click.option("--probabilities", is_flag=True, help="Write probabilities: 2 bytes a class and pixel.")
@click.option("--areas", is_flag=True, help=f"Write how much each class covers to OUT/{AREAS}.")
@click.option("--fuse/--no-fuse", "fused", default=True, show_default=True, help="Fold norms and layer scales first.")
@click.option("--resume", is_flag=True, help="Leave out images whose labels are in OUT.")
def predict_command(model: str, images: tuple[str, ...], out: Path, device: str | None, fused: bool, **options) -> None:
    """Label every pixel of images by MODEL.

    MODEL is a name that `segnext-timm models` lists, a model folder, or a repository on the Hugging Face Hub. Labels
    are written to OUT as indexed PNG, IMAGE.png, and drawn over the image in IMAGE_overlay.jpg. Images that cannot be
    read are listed at the end, and the exit status is 1. Ctrl-C keeps what is done, and --resume goes on.
    """
    places, target = find_images(images, out), _device(device)
    segmenter = load_segmenter(model)
    segmenter = fuse(segmenter, inplace=True) if fused else segmenter
    segmenter = segmenter.to(target, memory_format=torch.channels_last)
    done = 0.0
    shown = {"label": "Predicting", "width": 24, "item_show_func": lambda file: file and file.name}
    with click.progressbar(length=100 * len(places), **shown) as bar:

        def report(file: Path, share: float) -> None:
            nonlocal done
            bar.update(round(100 * (done + share)) - bar.pos, file)
            done += share == 1

        failures = predict_files(segmenter, places, out, report=report, **options)
    click.echo(f"Predicted {len(places) - len(failures)} of {len(places)} images to {out}.")
    for file, reason in failures.items():
        click.echo(f"{file}: {reason}", err=True)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
