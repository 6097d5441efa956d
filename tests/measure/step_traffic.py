"""Count the operators and the memory traffic of a training step on a GPU, without a GPU.

    python tests/measure/step_traffic.py [t s b l] [--batch 16] [--plain]

The step is forward, loss and backward under bfloat16 autocast, on fake tensors of 512×512 images with 150 classes; its
operators are those that a GPU would run. `--plain` counts it as a user's own loop would run it: torch's group norms, no
`reduce_casts`, and the cross-entropy of resized logits. Milliseconds are bytes by an H100's bandwidth: a bound, not a
measurement.
"""

import argparse
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("examples", "tests/helpers")]
from pretended_cuda import Traffic, cuda_autocast_on_cpu, fake
from segmentation.autocasting import reduce_casts
from segnext_timm import UpsampledCrossEntropyLoss, create_segmenter
from segnext_timm.kernels import cells as triton_kernels
from segnext_timm.kernels import norms, resizing

BANDWIDTH = 3.35e12  # bytes per second, NVIDIA's data sheet of the H100 SXM
SIDE, CLASSES = 512, 150


def count(variant: str, batch: int, plain: bool = False) -> tuple[Traffic, Traffic, list[tuple[int, ...]]]:
    """Count a step: traffic of all, traffic of the loss's forward pass and gradient, strides of all features."""
    model = create_segmenter(f"segnext_{variant}", classes=CLASSES).to(memory_format=torch.channels_last).train()
    model.upsampling = 1
    if not plain:
        reduce_casts(model)
    loss_function = UpsampledCrossEntropyLoss(ignore_index=255, reduction="sum")
    norm = mock.patch.object(norms, "applies", lambda x: not plain)
    kernels = mock.patch.object(resizing, "_kernels", lambda logits: triton_kernels)
    step, loss_part = Traffic(), Traffic()
    with FakeTensorMode() as mode, norm, kernels:
        fake(model, mode, "cpu")
        images = torch.empty(batch, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        labels = torch.empty(batch, SIDE, SIDE, dtype=torch.long)
        with step, cuda_autocast_on_cpu(torch.bfloat16):
            logits = model(images)
        with step:
            leaf = logits.detach().requires_grad_()
            with loss_part:
                if plain:
                    maps = F.interpolate(leaf.float(), labels.shape[1:], mode="bilinear", align_corners=False)
                    loss = F.cross_entropy(maps, labels, ignore_index=255)
                else:
                    loss = loss_function(leaf, labels) / labels.numel()
                loss.backward()
            logits.backward(leaf.grad)
    return step, loss_part, [tuple(logits.stride()), tuple(leaf.grad.stride())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=["t", "b"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--operators", type=int, default=0, help="also list so many operators")
    options = parser.parse_args()
    print("| model | GB | operators | of the loss, GB | casts | casts, GB | bound, ms |\n|---|---|---|---|---|---|---|")
    for variant in options.variants:
        step, loss_part, _ = count(variant, options.batch, options.plain)
        total, of_loss = sum(step.bytes.values()) / 1e9, sum(loss_part.bytes.values()) / 1e9
        casts = [name for name in step.count if name in ("_to_copy", "_foreach_copy_")]
        number, moved = (sum(counter[name] for name in casts) for counter in (step.count, step.bytes))
        cells = (f"{total:.1f}", sum(step.count.values()), f"{of_loss:.2f} ({of_loss / total:.1%})", number)
        cells = (*cells, f"{moved / 1e9:.1f}", f"{total * 1e9 / BANDWIDTH * 1e3:.1f}")
        print(f"| {variant.upper()} | {' | '.join(map(str, cells))} |")
        for name, size in step.bytes.most_common(options.operators):
            print(f"    {name}: {size / 1e9:.2f} GB, {step.count[name]}")


if __name__ == "__main__":
    main()
