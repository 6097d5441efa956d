"""Settings of training and evaluation: a recipe file, then the command line.

A recipe is a YAML file of the names below. Whatever it leaves out has the value given here; whatever the command line
says (`--lr 1e-4`, `--variant b`, `--flip`) goes before both. `python examples/train.py --help` lists all. Lists of
numbers are written `0.5 1 1.5` or `0.5,1,1.5`; `none` undoes a setting that need not be given.
"""

import difflib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
import tyro
import yaml

from segnext_timm import SegNeXtError
from segnext_timm.label_sets import LABEL_SETS
from segnext_timm.variants import MIN_SIDE

Precision = Literal["fp32", "bf16", "fp16"]
Compile = Literal["off", "blocks", "model", "graphs"]
Scale = tuple[int, int] | Literal["auto"] | None


def mixed_precision(precision: Precision) -> str:
    """Accelerate's name of a precision."""
    return "no" if precision == "fp32" else precision


def slow_precision(device: torch.device, precision: Precision) -> str | None:
    """Warn, in one line, if a device may compute slower in a precision than in float32."""
    if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "This GPU has no bf16 arithmetic, which it emulates slowly: use fp16."
    if device.type == "cpu" and precision != "fp32":
        return f"On most CPUs, {precision} is about ten times slower than fp32."
    return None


@dataclass
class DataSettings:
    """Settings of the data, for training and evaluation."""

    dataset: Literal[(*LABEL_SETS, "folder")] = "folder"
    """Layout of the data set on the disk, and its classes."""
    data_root: str = "data"
    """Folder of the data set."""
    ignore_index: int = 255
    """In a data folder: value of pixels to leave out, unless classes.txt gives it to a class."""
    check_data: bool = True
    """Read all files before the work begins, once for each that is new or changed: damaged ones would end it later."""
    workers: int | None = None
    """Processes that read images, for each process that trains or evaluates; at most as many as there are cores. If not
    given, its share of the cores, up to 8."""

    # Evaluation
    fit_in: Scale = "auto"
    """Longest sides (long, short) that images are fitted in, keeping their aspect; none: their own size. auto: what the
    model states; in training, base_scale, which the model will state."""
    eval_divisor: int = 1
    """Sides of fitted images are rounded up to multiples of it."""
    eval_mode: Literal["auto", "whole", "slide"] = "whole"
    """Process images whole, or in sliding windows. auto: whole unless that takes more than about 2 GB, else in windows
    of the size of the training's crops, as `predict` does."""
    eval_window: int | None = None
    """Side of the windows in pixels; that of the training's crops if not given, as `predict` does."""
    eval_stride: int | None = None
    """Distance of the windows in pixels; three quarters of their side if not given."""


@dataclass
class EvalSettings(DataSettings):
    """Settings of an evaluation."""

    split: str = "val"
    """Split of the data set."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the recipe's image size, one pass each. The published tables use 0.5 0.75 1.0 1.25 1.5 1.75."""
    flip: bool = False
    """Add a pass on the mirrored image for each scale."""
    by_position: bool = False
    """Compare the classes of model and data set by number, whatever their names."""
    precision: Precision = "fp32"
    """fp32, or autocast to bf16 or fp16."""
    boundary_iou: bool = False
    """Also compute boundary IoU, the IoU of each class within 2% of the image's diagonal inside its outlines."""
    json: str | None = None
    """File for the results."""
    csv: str | None = None
    """File for a table of the results, a row for each class."""
    plots: str | None = None
    """Folder for pictures of the IoU of each class and of the confusion matrix."""
    write_card: bool = False
    """Write the results into the card and configuration of the model folder."""


@dataclass
class TrainSettings(DataSettings):
    """What is trained, and how. The defaults are those of the paper's code for ADE20K."""

    # Model
    variant: Literal["t", "s", "b", "l"] | None = None
    """Size of the model, t unless init_from names one: sets encoder, decoder_channels, decoder_rank and drop_path_rate
    where these are not given."""
    encoder: str | None = None
    """Any encoder of smp, in its spelling."""
    decoder_channels: int | None = None
    """Width of the decoder."""
    decoder_rank: int | None = None
    """Rank of the matrix decomposition."""
    drop_path_rate: float | None = None
    """Stochastic depth rate of the encoder's last block."""
    init_from: str = "imagenet"
    """Weights to begin with: imagenet (the encoder's), none, a published segmenter, a folder, or a name on the Hub."""
    freeze_encoder: bool = False
    """Train the decoder only; the encoder's batch norms keep their statistics."""
    one_step_gradient: bool = False
    """Back-propagate through the last update of the matrix decomposition only: less memory and time."""
    grad_checkpointing: bool = False
    """Compute the encoder's activations again in the backward pass: less memory, more time."""

    # Images
    in_channels: int | None = None
    """Channels of the images: 3 for photos, in gray too, and the number of bands for other files."""
    bands: tuple[int, ...] | None = None
    """Bands of the files to take, from 1, in this order, such as 4 3 2."""
    range: tuple[float, ...] | None = None
    """Values of the files, low and high, that become black and white, or such a pair for each band. They are measured
    on the training images if these have more than 8 bits: all but 0.5% of the values at each end."""

    # Augmentation
    base_scale: Scale = "auto"
    """Longest sides (long, short) that images are fitted in, keeping their aspect, before the random resizing; none:
    their own size. auto: by the sizes of the training images, as segmentation/scale.py says."""
    crop_size: int = 512
    """Side of the training images in pixels."""
    resize_factors: tuple[float, float] = (0.5, 2.0)
    """Range of the factor by which images are resized, beyond fitting them in base_scale."""
    max_class_share: float = 0.75
    """A crop is drawn again while one class fills more than this share of it."""
    color_distortion: bool = True
    """Distort brightness, contrast, saturation and hue; of images that are not of 3 bands with 8 bits, brightness and
    contrast, of all bands alike."""
    vertical_flip: bool = False
    """Also flip images upside down, with probability one half, as they are flipped left to right."""
    rotate90: bool = False
    """Rotate images by 0, 90, 180 or 270 degrees."""
    rotate: float = 0.0
    """Rotate crops by up to so many degrees, either way."""
    augment: str | None = None
    """Your own code, module:function: a function without arguments that returns a transform of image and mask, as those
    of torchvision.transforms.v2; it is applied after the steps above."""
    rare_class_sampling: float | None = None
    """Draw each sample for a class, rare ones more often: an image that holds it, and a crop around one of its pixels.
    The number is the temperature of DAFormer's formula, which was published with 0.01; higher ones are more even."""

    # Loss
    loss: str = "ce"
    """ce (cross-entropy), ce+dice (their sum), dice, focal, lovasz, ohem (cross-entropy of the hardest pixels), or your
    own as module:function, of logits (B, classes, H, W) and labels (B, H, W), with -100 for ignored pixels."""
    class_weights: Literal["none", "auto"] | tuple[float, ...] = "none"
    """Weight of each class, in their order. auto: the median of the classes' frequencies over its own, from 0.1 to 10,
    where a class's frequency is its share of the pixels in images that hold it. For ce, ce+dice, dice and focal."""
    label_smoothing: float = 0.0
    """Share of the target that is distributed evenly over all classes. For ce and ce+dice."""

    # Optimization
    iterations: int = 160_000
    """Number of updates of the weights."""
    batch_size: int = 16
    """Images per update of the weights, all processes and accumulated batches together."""
    accumulate: int = 1
    """Batches that an update accumulates: less memory for the same batch size."""
    lr: float = 6e-5
    """Highest learning rate of the encoder."""
    decoder_lr_factor: float = 10.0
    """Learning rate of the decoder over that of the encoder."""
    weight_decay: float = 0.01
    """Of AdamW; the encoder's norms between and in its blocks are exempt."""
    warmup: int = 1_500
    """Iterations in which the learning rate rises from a millionth of `lr`."""
    schedule: str = "poly"
    """How the learning rate falls after that: poly, (1 - share of the iterations) ** poly_power; cosine; or your own
    code, module:function, which takes the iteration and the number of iterations and returns a factor of `lr`."""
    poly_power: float = 1.0
    """With poly, the exponent; 1 falls linearly to 0."""
    clip_grad: float | None = None
    """Largest norm of the gradient."""
    ema_decay: float | None = None
    """Keep a moving average of the weights, such as 0.9998; it is what is evaluated and saved. The average of the first
    iterations is shorter: at iteration k the decay is at most 1 - k ** (-2 / 3)."""

    # Machine
    precision: Precision = "fp32"
    """fp32, or autocast to fp16, or to bf16 where the GPU has it."""
    channels_last: bool = True
    """Layout of images and weights in memory; the faster one on most machines."""
    sync_batchnorm: bool = True
    """Compute the statistics of batch norms over all GPUs; without effect on one GPU or on CPUs. Reports differ: the
    results of mmsegmentation's port fell with it in PyTorch 1.9, mainly because of the patch embeddings' norms, so its
    weights were trained with 16 images on one GPU; another user there got mIoU 26.4 with it on 2 GPUs, and 26.7 without
    it on one, after 8000 iterations (https://github.com/open-mmlab/mmsegmentation/pull/2247)."""
    compile: Compile = "off"
    """Use torch.compile for the encoder's blocks, which starts fastest, for the model, or with CUDA graphs too."""
    deterministic: bool = False
    """Use deterministic kernels only: on a GPU, the same seed then gives the same run, more slowly."""
    seed: int = 0
    """Of weights, data and order. The same seed gives the same run; on a GPU with `deterministic` only."""

    # Output
    out: str = "runs/train"
    """Folder of the run: best, last, the checkpoint to resume from, logs and pictures."""
    resume: bool = True
    """Go on from the checkpoint in the run's folder, if there is one."""
    eval_every: int = 16_000
    """Iterations between evaluations."""
    early_stopping: int | None = None
    """End the run after so many evaluations in a row without a better mIoU."""
    save_every: int = 1_000
    """Iterations between checkpoints; each evaluation writes one too."""
    log_every: int = 50
    """Iterations between log entries."""
    tracker: str = "tensorboard"
    """Where the log goes: tensorboard, wandb, mlflow, comet_ml, trackio, none, or your own accelerate.GeneralTracker as
    module:Class."""
    project: str = "segnext"
    """Project, or experiment, of the tracker."""
    run_name: str | None = None
    """Name of the run in the tracker; the last part of `out` if not given. TensorBoard has the folder's."""
    push_to_hub: str | None = None
    """Repository on the Hugging Face Hub for the best model, in the end."""


S = TypeVar("S")
RECIPE = {"RECIPE": "a file of settings, such as examples/recipes/folder.yaml"}


class UserError(Exception):
    """A request cannot be fulfilled; the one-line message says why and what to do."""


class DataError(UserError):
    """Data cannot be trained on or evaluated; the message says which file, why, and what to do."""


class SettingsError(UserError):
    """Settings cannot be used; the message says which, and what is allowed."""


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Settings in a recipe file, of training and evaluation.

    Args:
        path: A YAML file.

    Raises:
        SettingsError: If the file does not exist, is not a recipe, or has an unknown name; the message names the
            nearest one.
    """
    path = Path(path)
    names = list({f.name: None for cls in (TrainSettings, EvalSettings) for f in fields(cls)})
    if not path.is_file():
        recipes = [str(path.parent / file.name) for file in path.parent.glob("*.yaml")]
        near = difflib.get_close_matches(str(path), recipes, n=1, cutoff=0.8)
        hint = f"did you mean {near[0]}?" if near else "give a recipe first, such as examples/recipes/folder.yaml."
        raise SettingsError(f"{path} does not exist: {hint}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} holds no settings by name.")
    for name in content:
        if name not in names:
            similar = difflib.get_close_matches(str(name), names, n=1) or [", ".join(names)]
            near = ["fit_in"] if name == "eval_fit" else similar  # its name in older recipes
            raise SettingsError(f"{path}: there is no setting {name!r}. Did you mean {near[0]}?")
    return content


def parse(cls: type[S], argv: list[str], description: str, positionals: Mapping[str, str] = RECIPE) -> S:
    """Settings from `RECIPE.yaml --name value ...`.

    Args:
        cls: A dataclass, whose fields are the names.
        argv: The recipe and what follows it.
        description: What the program does.
        positionals: Names of all positional arguments and what they are; the recipe is the last one.

    Raises:
        SettingsError: If there is no recipe, and as :func:`read_recipe`.
        SystemExit: If a value is of the wrong type, the command line names something unknown, or asks for help.
    """
    own = [f.name for f in fields(cls)]
    told = []
    usage = f"{Path(sys.argv[0]).name} {' '.join(positionals)}"
    helping = bool({"-h", "--help"} & set(argv))
    if argv and not argv[0].startswith("-"):
        # its values go the way of the command line's, which checks their types
        for name, value in ({} if helping and not Path(argv[0]).is_file() else read_recipe(argv[0])).items():
            if name in own:
                values = value if isinstance(value, list) else [value]
                told += [f"--{name}" if value is not False else f"--no-{name}"]
                told += [] if isinstance(value, bool) else map(str, values)
        argv = argv[1:]
    elif not helping:
        raise SettingsError(f"RECIPE is missing: it is {RECIPE['RECIPE']}. Usage: {usage} [--name value ...]")
    description = "\n\n".join([description, *(f"{name} is {meaning}." for name, meaning in positionals.items())])
    recipe = tyro.cli(cls, args=_as_tyro(cls, told), prog=usage, use_underscores=True)
    words = _as_tyro(cls, argv)
    settings = tyro.cli(cls, args=words, default=recipe, description=description, prog=usage, use_underscores=True)
    _check(settings)
    return settings


# What every number of these settings must be: in words, as a test, and the settings
RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("at least 1", lambda x: x >= 1, ("accumulate", "base_scale", "batch_size", "iterations", "bands", "in_channels")),
    ("at least 1", lambda x: x >= 1, ("decoder_rank", "fit_in", "eval_divisor", "eval_stride")),
    ("at least 1", lambda x: x >= 1, ("eval_every", "save_every", "log_every", "early_stopping")),
    ("a multiple of 32, such as 256", lambda x: x > 0 and x % 32 == 0, ("decoder_channels",)),  # for its group norms
    (f"at least {MIN_SIDE}", lambda x: x >= MIN_SIDE, ("crop_size", "eval_window")),
    ("at least 0", lambda x: x >= 0, ("warmup", "workers")),
    ("a positive number", lambda x: 0 < x < math.inf, ("lr", "clip_grad", "resize_factors", "scales")),
    ("a positive number", lambda x: 0 < x < math.inf, ("poly_power", "rare_class_sampling")),
    ("a number, at least 0", lambda x: 0 <= x < math.inf, ("weight_decay", "decoder_lr_factor", "rotate")),
    ("a number, at least 0", lambda x: 0 <= x < math.inf, ("class_weights",)),
    ("a number", math.isfinite, ("range",)),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, ("max_class_share",)),
    ("above 0 and below 1", lambda x: 0 < x < 1, ("ema_decay",)),
    ("at least 0 and below 1", lambda x: 0 <= x < 1, ("drop_path_rate", "label_smoothing")),
    ("from 0 to 4294967295", lambda x: 0 <= x < 2**32, ("seed",)),  # 2**64 divided by the largest factor of the seed
    ("of 32 bits, such as 255", lambda x: -(2**31) <= x < 2**31, ("ignore_index",)),  # as labels are
)


def _check(settings: Any) -> None:
    """Raise a SettingsError for a number that is out of its range, or for settings that make no sense together."""
    values = {name: value for name, value in vars(settings).items() if not (value is None or isinstance(value, str))}
    for words, fits, names in RANGES:
        for name in names:
            value = values.get(name, 1)
            numbers = value if isinstance(value, tuple) else (value,)
            if name in values and not (numbers and all(map(fits, numbers))):
                raise SettingsError(f"--{name} must be {words}, got {_words(value)}.")
    low, high = values.get("resize_factors", (1, 1))
    if low > high:
        raise SettingsError(f"--resize_factors must be the lower one first, got {_words((low, high))}.")
    for name in ("base_scale", "fit_in"):
        long, short = values.get(name, (1, 1))
        if long < short:
            raise SettingsError(f"--{name} must be the long side first, got {_words((long, short))}.")
    stride, window = values.get("eval_stride", 1), values.get("eval_window", values.get("crop_size", math.inf))
    if stride > window:
        raise SettingsError(
            f"--eval_stride must be at most --eval_window, or pixels between the windows would be left out, got "
            f"{stride} and {window}."
        )
    repository = getattr(settings, "push_to_hub", None)
    if repository and repository.count("/") != 1:
        raise SettingsError(f"--push_to_hub {repository} is not a repository on the Hub: give user/name.")


def _words(value: Any) -> str:
    """Value as it is written on a command line."""
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _as_tyro(cls: type, words: list[str]) -> list[str]:
    """Words of a command line as tyro takes them: `1,2` of lists as `1 2`; `none` of settings that may be as `None`."""
    types, name, result = {f.name: f.type for f in fields(cls)}, "", []
    apart = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for word in apart:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
        values = word.replace(",", " ").split() if "tuple" in str(types.get(name)) else [word]
        optional = type(None) in get_args(types.get(name))
        result += ["None" if value == "none" and optional else value for value in values]
    return result


def run(main: Callable[[list[str]], None]) -> None:
    """Run a program; a user's mistake ends it with one line, and a bug shows its traceback."""
    sys.stdout.reconfigure(line_buffering=True)  # so that a log file is up to date
    try:
        main(sys.argv[1:])
    except (UserError, SegNeXtError, OSError) as error:
        # torch adds the traceback of a worker process to its error; the last line begins with the error's name
        kind = type(error)
        line = str(error).strip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__name__}: ")
        sys.exit(f"{Path(sys.argv[0]).name}: {line}")
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, as shells have it
