"""Largest batches that GPUs of some sizes can train, estimated: `python tests/measure/memory_table.py`.

Prints the table of `examples/many_gpus.md`: images of 512² that a GPU takes at a time, with 150 classes in bf16, as
`train.py` estimates its memory. A tenth of the GPU's memory is left to CUDA and to gaps between tensors. Needs no GPU.
"""

import math
import sys
from pathlib import Path

import torch

from segnext_timm import create_segmenter

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from segmentation.losses import build_loss
from segmentation.memory import estimate_step
from segmentation.recipe import TrainSettings

GIGABYTES = (8, 12, 24, 80)
USABLE = 0.9


def largest_batches(variant: str, checkpointing: bool) -> list[int]:
    """Largest batch for each size of a GPU, from the estimates for two batches."""
    model = create_segmenter(f"segnext_{variant}").to(memory_format=torch.channels_last)
    model.upsampling = 1
    model.set_grad_checkpointing(checkpointing)
    loss_fn = build_loss(TrainSettings(), ignore_index=255)
    small, large = (estimate_step(model, loss_fn, TrainSettings(batch_size=n, precision="bf16")) for n in (8, 16))
    each = (large - small) / 8
    return [math.floor((USABLE * size * 2**30 - small) / each + 8) for size in GIGABYTES]


def main() -> None:
    print(f"| | {' | '.join(f'{size} GB' for size in GIGABYTES)} |")
    print("|---" * (1 + len(GIGABYTES)) + "|")
    for variant in "tsbl":
        for checkpointing in (False, True):
            name = f"{variant.upper()}, `--grad_checkpointing`" if checkpointing else variant.upper()
            print(f"| {name} | {' | '.join(map(str, largest_batches(variant, checkpointing)))} |")


if __name__ == "__main__":
    main()
