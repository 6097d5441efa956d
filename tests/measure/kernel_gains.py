"""Measure each kernel of the CPU against its plain form: `python tests/measure/kernel_gains.py [--rounds 5]`.

Prints milliseconds of whole predictions (labels) and whole training steps (loss), with and without the kernel, in turn
in one process, the best of the rounds; and the peak memory of a process that does nothing else. A kernel stays if a
whole step or prediction needs 15% less time, or a third less memory, in one of the rows. Linux only, on a quiet
machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from segnext_timm import UpsampledCrossEntropyLoss, create_segmenter, fuse
from segnext_timm.kernels import bands, upsampling

# kernel, variant, height, width, classes, batch
CASES = [
    *(("labels", v, *size, classes, 1) for v in "tb" for size in ((512, 512), (1024, 2048)) for classes in (19, 150)),
    *(("MLP rows", variant, 512, 512, 19, 1) for variant in "tb"),
    ("MLP rows", "t", 1024, 2048, 19, 1),
    *(("loss", variant, 512, 512, classes, 2) for variant in "tb" for classes in (19, 150)),
    ("loss", "t", 256, 256, 150, 8),
]


def work(kernel: str, variant: str, height: int, width: int, classes: int, batch: int) -> Callable[[], object]:
    """Make the function to measure: a prediction of labels, or a training step for the loss."""
    torch.manual_seed(0)
    model = create_segmenter(f"segnext_{variant}", classes=classes).to(memory_format=torch.channels_last)
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    smooth = torch.randn(batch, 3, height // 32, width // 32)
    images = torch.nn.functional.interpolate(smooth, (height, width), mode="bicubic")
    images = images.contiguous(memory_format=torch.channels_last)
    if kernel != "loss":
        fused = fuse(model.eval())
        return lambda: fused.predict_labels(images)
    labels, criterion = torch.randint(0, classes, (batch, height, width)), UpsampledCrossEntropyLoss()
    model.train().upsampling = 1

    def step() -> None:
        criterion(model(images), labels).backward()
        model.zero_grad()

    return step


RULES = {"MLP rows": (bands, "applies_to_mlp"), "labels": (upsampling, "applies"), "loss": (upsampling, "applies")}
OWN_RULES = {kernel: getattr(*rule) for kernel, rule in RULES.items()}


def switch(kernel: str, on: bool) -> None:
    """Turn one kernel on or off; the others are on."""
    module, name = RULES[kernel]
    setattr(module, name, OWN_RULES[kernel] if on else lambda *args: False)


def measure(case: tuple, rounds: int) -> dict[bool, float]:
    """Best milliseconds with the kernel on and off."""
    run, times = work(*case), {True: [], False: []}
    for _ in range(rounds + 1):  # the first round warms up
        for on, found in times.items():
            switch(case[0], on)
            start = time.perf_counter()
            run()
            found.append(1e3 * (time.perf_counter() - start))
    return {on: min(found[1:]) for on, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # a case and a switch, in a process of its own
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        case, on = json.loads(args.memory[0]), args.memory[1] == "on"
        run = work(*case)
        switch(case[0], on)
        run()
        status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage counts the parent too
        print(int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024)
        return
    print("| kernel | model | image | classes | plain, ms | kernel, ms | kernel / plain | plain, MB | kernel, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        found, memory = measure(case, args.rounds), {}
        for on in ("off", "on"):
            command = [sys.executable, __file__, "--threads", str(args.threads), "--memory", json.dumps(case), on]
            done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
            memory[on] = float(done.stdout)
        kernel, variant, height, width, classes, batch = case
        print(
            f"| {kernel} | {variant.upper()} | {batch}×{height}×{width} | {classes} | {found[False]:.0f} | "
            f"{found[True]:.0f} | {found[True] / found[False]:.2f} | {memory['off']:.0f} | {memory['on']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
