"""Error handling and argument types of the command.

Arguments are checked while the command line is parsed, before anything is downloaded or loaded. Wrong usage ends with
exit status 2.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .checkpoints.hub import check_segmenter, is_hub_id
from .errors import ExportError, HubError
from .exporting.formats import check_name
from .label_sets import LABEL_SETS

if TYPE_CHECKING:
    import torch


class StoppedError(click.ClickException):
    """Ctrl-C stopped a command; the message says what is kept."""

    exit_code = 130  # 128 + SIGINT, as shells have it

    def show(self, file: Any = None) -> None:
        click.echo(f"\n{self.message}", file=file, err=True)  # below the ^C


def _is_the_users(error: Exception) -> bool:
    """Whether a user can act on an error. Other errors are bugs of this package and show their traceback."""
    if isinstance(error, ImportError):
        return error.name is None  # raised by this package, about an extra; Python's own errors name the module
    return isinstance(error, ValueError | OSError | HubError | ExportError) and not isinstance(error, BrokenPipeError)


class Group(click.Group):
    """A command group that ends with one line on users' errors and on Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            raise StoppedError("Interrupted.") from None
        except Exception as error:
            if ctx.params.get("traceback") or not _is_the_users(error):
                raise
            raise click.ClickException(" ".join(str(error).split())) from None


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory error into one line that says what to do."""
    from .prediction.pipeline import is_out_of_memory

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            hint = "Out of memory: try --mode slide, a smaller --window or --tile, or --batch 1."
            raise click.ClickException(hint) from None
        raise


class SegmenterType(click.ParamType):
    """A published segmenter, a model folder, or a name on the Hub."""

    name = "model"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            check_segmenter(value)
        except (OSError, ValueError) as error:
            self.fail(str(error), param, ctx)
        return value


class SizeType(click.ParamType):
    """Two sides in pixels, such as 512x1024, or one number for both."""

    name = "size"

    def __init__(self, least: int, sides: str = "height by width", example: str = "512x1024") -> None:
        self.least, self.sides, self.example = least, sides, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch("([0-9]+)(?:[xX×]([0-9]+))?", value)
        if found is None:
            hint = f"give pixels, such as 512, or {self.sides}, such as {self.example}."
            self.fail(f"{value!r} is not a size: {hint}", param, ctx)
        limit = click.IntRange(min=self.least)
        first, second = int(found[1]), int(found[2] or found[1])
        return limit.convert(first, param, ctx), limit.convert(second, param, ctx)


class ScalesType(click.ParamType):
    """Positive numbers, separated by commas."""

    name = "scales"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            scales = tuple(float(part) for part in value.split(","))
        except ValueError:
            scales = ()
        if not scales or not all(0 < scale < math.inf for scale in scales):
            self.fail(f"{value!r} is not a list of positive numbers, such as 0.5,1,1.5.", param, ctx)
        return scales


class DeviceType(click.ParamType):
    """A torch device that exists on this machine."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "torch.device":
        import torch

        try:
            device = torch.device(value)
        except RuntimeError:
            self.fail(f"{value!r} is not a device: use cpu, cuda, cuda:1, mps, ...", param, ctx)
        try:
            torch.empty(1, device=device).cpu()
        except Exception:  # torch's backends raise RuntimeError, AssertionError, NotImplementedError, ...
            here = ["cpu"]
            accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            if accelerator is not None:
                here += [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
            self.fail(f"{value!r} does not exist here. This machine has {', '.join(here)}.", param, ctx)
        return device


class ClassesType(click.ParamType):
    """A data set whose class names are known, or a text file with one class name per line."""

    name = "classes"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in LABEL_SETS:
            return value
        known = ", ".join(LABEL_SETS)
        if not Path(value).is_file():
            self.fail(f"{value}: no such file of class names, and not a data set: {known}.", param, ctx)
        try:
            names = Path(value).read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError):
            names = []
        if not names:
            self.fail(f"{value}: not a text file with one class name per line.", param, ctx)
        return value


class RepoType(click.ParamType):
    """The name of a repository on the Hugging Face Hub, user/name."""

    name = "repo"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(value)
        except HFValidationError as error:
            self.fail(f"{value!r} is not a repository on the Hub, user/name: {error}", param, ctx)
        if not is_hub_id(value):
            self.fail(f"{value!r} is not a repository on the Hub: give user/name.", param, ctx)
        return value


class ExportPathType(click.Path):
    """A file whose ending names a format of graphs."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.is_dir():
            self.fail(f"{path} is a directory.", param, ctx)
        try:
            check_name(path)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return path
