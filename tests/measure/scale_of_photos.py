"""Compare the scale of photos that train.py chooses with the former default, on large images: mIoU of three seeds each.

    python examples/draw_scenes.py data/large --size 3000 --train 12 --val 4
    python tests/measure/scale_of_photos.py data/large
    python tests/measure/scale_of_photos.py DIR --ignore_index 11 --enlarge 3     # DIR of CamVid's images and labels

Trains a narrow model from random weights with examples/recipes/folder.yaml, with `base_scale` auto, which evaluates at
the same scale, and as before: fitted in 1024×512 in training, evaluated at their own size.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from accelerate.state import AcceleratorState
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / name) for name in ("examples", "tests/helpers")]
import training

WAYS = {"auto": (), "before": ("--base_scale", 1024, 512, "--fit_in", "none")}
RATES = ("--lr", 1e-3, "--decoder_lr_factor", 2, "--warmup", 20)


def enlarge(source: Path, root: Path, factor: int) -> None:
    """Copy a data folder with images and labels of `factor` times their size."""
    root.mkdir()
    shutil.copy(source / "classes.txt", root)
    ways = {"images": Image.Resampling.BICUBIC, "labels": Image.Resampling.NEAREST}
    for file in source.glob("*/*/*"):
        target = root / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.resize((image.width * factor, image.height * factor), ways[target.parts[-3]]).save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--enlarge", type=int, default=1)
    parser.add_argument("--ignore_index", type=int, default=255)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--crop_size", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        data = args.folder
        if args.enlarge > 1:
            data = Path(name) / "data"
            enlarge(args.folder, data, args.enlarge)
        given = [part for key in ("iterations", "batch_size", "crop_size") for part in (f"--{key}", vars(args)[key])]
        once = [part for key in ("eval_every", "save_every") for part in (f"--{key}", args.iterations)]
        common = ("--data_root", data, "--ignore_index", args.ignore_index, *RATES, *given, *once, "--log_every", 50)
        for seed in range(args.seeds):
            for way, options in WAYS.items():  # by turns
                start, out = time.monotonic(), Path(name) / f"{way}{seed}"
                training.run("folder", *common, *options, "--seed", seed, "--out", out)
                AcceleratorState._reset_state(True)
                found[way].append(100 * training.checkpoint(out)["mious"][-1][1])
                print(f"seed {seed}, {way}: mIoU {found[way][-1]:.1f}, {time.monotonic() - start:.0f} s", flush=True)
    for way, values in found.items():
        each, spread = ", ".join(f"{value:.1f}" for value in values), max(values) - min(values)
        print(f"{way}: mIoU {each}; mean {statistics.mean(values):.1f}, spread {spread:.1f}")


if __name__ == "__main__":
    main()
