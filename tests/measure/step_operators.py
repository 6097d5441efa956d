"""Count operators and bytes of a training step: `python tests/measure/step_operators.py [--variants t b]`.

Runs what `train.py` does with a batch on CUDA under bf16, forward pass to update, on tensors without data that pretend
to be there: 16 images of 512², 150 classes. Prints how many operators write memory, and the bytes that they read and
write, in total and by kind. Views and allocations do not count. Needs no GPU.

An operator is one kernel or a few: layout transforms within cuDNN are not seen, for instance.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "tests/helpers")]

from pretended_cuda import backward, fake, fake_autocast
from segmentation.autocasting import reduce_casts
from segmentation.losses import build_loss
from segmentation.models import paper_parameter_groups
from segmentation.recipe import TrainSettings
from segmentation.stepping import RunningStatistics
from segnext_timm import create_segmenter

CLASSES = 150
NO_WORK = ("aten::empty", "aten::new_empty", "aten::detach", "aten::_unsafe_view")


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that write memory, and the bytes that they read and write, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name, written = func._schema.name, size_of(result)
        if (written or func._schema.is_mutable) and not func.is_view and not name.startswith(NO_WORK):
            name = name.removeprefix("aten::")
            self.counts[name] += 1
            self.bytes[name] += written + size_of((args, kwargs))
        return result


def size_of(tree: object) -> int:
    """Bytes of all tensors in nested containers; what a stride of 0 repeats counts once."""
    total = 0
    for tensor in tree_leaves(tree):
        if isinstance(tensor, torch.Tensor):
            sides = [side for side, stride in zip(tensor.shape, tensor.stride()) if stride]
            total += torch.Size(sides).numel() * tensor.element_size()
    return total


def count(variant: str, batch: int, side: int) -> OperatorCounter:
    """Count the operators of a training step of a published size."""
    settings = TrainSettings(precision="bf16")
    model = create_segmenter(f"segnext_{variant}", classes=CLASSES).to(memory_format=torch.channels_last).train()
    model.upsampling = 1
    reduce_casts(model)
    loss_fn = build_loss(settings, ignore_index=255)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake(model, mode)
        statistics = RunningStatistics(model)
        optimizer = torch.optim.AdamW(paper_parameter_groups(model, settings), fused=True)
        images = torch.empty(batch, 3, side, side, device="cuda").to(memory_format=torch.channels_last)
        labels = torch.zeros(batch, side, side, dtype=torch.long, device="cuda")
        for _ in range(2):  # the first step creates the optimizer's state
            with OperatorCounter() as counter:
                statistics.save()
                with fake_autocast(torch.bfloat16):
                    loss = loss_fn(model(images), labels)
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
    args = parser.parse_args()
    for variant in args.variants:
        found = count(variant, args.batch, args.side)
        size = f"{found.counts.total()} operators, {found.bytes.total() / 1e9:.1f} GB"
        print(f"{variant.upper()}, {args.batch}×{args.side}², bf16: {size}")
        for name, number in found.counts.most_common():
            if found.bytes[name] >= 1e7:
                print(f"  {number:5} {found.bytes[name] / 1e9:7.2f} GB  {name}")


if __name__ == "__main__":
    main()
