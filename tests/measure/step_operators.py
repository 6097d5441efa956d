"""Count operators and bytes of a training step on a pretended GPU: `python tests/measure/step_operators.py [VARIANT]`.

A step is forward pass, loss and backward pass of SegNeXt under bfloat16, for a batch of 16 at 512² and 150 classes, by
three forms of MSCA's strips. Views and allocations are left out. The bytes are those of each operator's inputs and
outputs. A backward pass on fake tensors on "cuda" needs a driver, so they are on the CPU, and say that they are not.
"""

import sys
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path[:0] = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parents[2] / "examples")]
from pretended_cuda import fake
from segmentation.autocasting import reduce_casts
from segnext_timm import UpsampledCrossEntropyLoss, create_segmenter, kernels
from segnext_timm.kernels import strips


class Counter(TorchDispatchMode):
    operators = moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        computes = any(isinstance(value, torch.Tensor) for value in tree_leaves(result)) and not is_view
        if computes and not {"empty", "detach"}.intersection(func.name().replace("::", "_").split("_")):
            self.operators += 1
            tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def count(variant: str) -> tuple[int, float]:
    model = create_segmenter(f"segnext_{variant}", classes=150).to(memory_format=torch.channels_last).train()
    model.upsampling = 1
    reduce_casts(model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake(model, mode, "cpu")
    with mode, torch.autocast("cpu", torch.bfloat16), Counter() as counter:
        images = torch.empty(16, 3, 512, 512).contiguous(memory_format=torch.channels_last)
        UpsampledCrossEntropyLoss()(model(images), torch.zeros(16, 512, 512, dtype=torch.long)).backward()
    return counter.operators, counter.moved / 1e9


def main() -> None:
    applies = strips.applies
    forms = {"cuDNN in channels_last": (False, False), "torch in NCHW": (True, False), "Triton": (True, True)}
    for form, (own, triton) in forms.items():
        with (
            mock.patch.object(torch.Tensor, "is_cuda", property(lambda tensor: True)),
            mock.patch.object(strips, "applies", applies if own else lambda *args: False),
            mock.patch.object(kernels, "triton_runs", lambda device, runs=triton: runs),
        ):
            operators, gigabytes = count(sys.argv[1] if len(sys.argv) > 1 else "t")
        print(f"{form}: {operators} operators, {gigabytes:.1f} GB")


if __name__ == "__main__":
    main()
