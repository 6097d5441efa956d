"""Compare the losses of each recipe with another checkout's: `python tests/measure/recipe_losses.py ../before`.

Trains a narrow model on each data set in miniature by both checkouts, 50 iterations with the settings of the recipe but
smaller crops and batches, on a CPU, and prints whether losses and mIoU are equal to the bit.
Of the recipe for folders, the scale of the images is given, and may be another one in evaluations.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import miniatures

NARROW = "--encoder tu-test_mscan --decoder_channels 32 --decoder_rank 4 --init_from none --drop_path_rate 0.1"
SHORT = "--crop_size 96 --batch_size 2 --iterations 50 --warmup 10 --lr 1e-3 --eval_every 50 --workers 0 --tracker none"
# values of label files with a class, that is, of a few of each data set's
VALUES = {"cityscapes": [7, 11, 26, 0], "folder": [0, 1, 2], "isaid": [0, 1, 2]}
OPTIONS = {"folder": "--base_scale 128 64"}  # else the images decide


def train(checkout: Path, recipe: str, data: Path, out: Path) -> dict[str, list[float]]:
    """Train by the code of a checkout; losses, and evaluations as (iteration, mIoU)."""
    options = f"{NARROW} {SHORT} {OPTIONS.get(recipe, '')}".split()
    script, settings = checkout / "examples/train.py", checkout / f"examples/recipes/{recipe}.yaml"
    command = [sys.executable, script, settings, "--data_root", data, "--out", out, *options]
    env = {**os.environ, "PYTHONPATH": str(checkout), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    state = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
    return {name: state[name] for name in ("losses", "mious")}


def main() -> None:
    """Train by both checkouts, and print a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    other, own = parser.parse_args().before.resolve(), Path(__file__).parents[2]
    for recipe in sorted(file.stem for file in (own / "examples/recipes").glob("*.yaml")):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            data = root / "data"
            miniatures.make(recipe, data, VALUES.get(recipe, [1, 2, 3, 20]), sizes=[(96, 128)] * 4)
            before, after = train(other, recipe, data, root / "before"), train(own, recipe, data, root / "after")
        verdicts = [f"{name} {'equal to the bit' if before[name] == after[name] else 'DIFFERENT'}" for name in before]
        first, last = after["losses"][0], after["losses"][-1]
        print(f"{recipe}: {len(after['losses'])} losses from {first:.4f} to {last:.4f}; {', '.join(verdicts)}")


if __name__ == "__main__":
    main()
