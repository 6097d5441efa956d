"""Count operators and bytes of a training step: `python tests/measure/step_operators.py [--variants t b]`.

Runs what `train.py` does with a batch on CUDA under bf16, forward pass to update, on tensors without data that pretend
to be there: 16 images of 512², 150 classes. Prints how many operators write memory, and the bytes that they read and
write, in total and by kind. Views and allocations do not count, nor do maps within an operator, such as the gradients
between Triton's strips. Needs no GPU.

An operator is one kernel or a few: layout transforms within cuDNN are not seen, for instance. `--strips` chooses the
form of MSCA's strip convolutions: cuDNN's, torch's own in NCHW, or Triton's.
"""

import argparse
import sys
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "tests/helpers")]

from pretended_cuda import OperatorCounter, backward, fake, fake_autocast
from segmentation.losses import build_loss
from segmentation.models import paper_parameter_groups
from segmentation.recipe import TrainSettings
from segmentation.stepping import GroupedCasts, RunningStatistics
from segnext_timm import create_segmenter
from segnext_timm.kernels import strips

CLASSES = 150


def count(variant: str, batch: int, side: int) -> OperatorCounter:
    """Count the operators of a training step of a published size."""
    settings = TrainSettings(precision="bf16")
    model = create_segmenter(f"segnext_{variant}", classes=CLASSES).to(memory_format=torch.channels_last).train()
    model.upsampling = 1
    loss_fn = build_loss(settings, ignore_index=255)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        casting = GroupedCasts(fake(model, mode))
        statistics = RunningStatistics(model)
        optimizer = torch.optim.AdamW(paper_parameter_groups(model, settings), fused=True)
        images = torch.empty(batch, 3, side, side, device="cuda").to(memory_format=torch.channels_last)
        labels = torch.zeros(batch, side, side, dtype=torch.long, device="cuda")
        for _ in range(2):  # the first step creates the optimizer's state
            with OperatorCounter() as counter:
                statistics.save()
                with fake_autocast(torch.bfloat16):
                    loss = loss_fn(casting(images), labels)
                backward(loss)
                gradients = [parameter.grad for parameter in model.parameters()]
                # as get_total_norm does on tensors with data
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
                finite = loss.isfinite() & norm.isfinite()
                optimizer.found_inf = (~finite).float()
                optimizer.step()
                statistics.restore_unless(finite)
                optimizer.zero_grad()
    return counter


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["t", "b"], choices=list("tsbl"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--strips", choices=("cudnn", "nchw", "triton"), default="triton")
    args = parser.parse_args()
    applies = strips.applies if args.strips != "cudnn" else lambda *arguments: False
    for variant in args.variants:
        with (
            mock.patch.object(strips, "applies", applies),
            mock.patch.object(strips.kernels, "triton_runs", lambda *tried: args.strips == "triton"),
        ):
            found = count(variant, args.batch, args.side)
        size = f"{found.counts.total()} operators, {found.bytes.total() / 1e9:.1f} GB"
        print(f"{variant.upper()}, {args.batch}×{args.side}², bf16: {size}")
        for name, number in found.counts.most_common():
            if found.bytes[name] >= 1e7:
                print(f"  {number:5} {found.bytes[name] / 1e9:7.2f} GB  {name}")


if __name__ == "__main__":
    main()
