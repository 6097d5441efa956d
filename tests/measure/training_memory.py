"""What a training step of SegNeXt keeps for its backward pass: `python tests/measure/training_memory.py [VARIANT]`.

Prints megabytes by part of the model and by operation that keeps them, for a batch of 2 at 256², in the default
settings and with the options that save memory. A tensor that several operations keep counts for the first.
"""

import sys
from collections import Counter

import torch

from segnext_timm import UpsampledCrossEntropyLoss, create_segmenter


def kept(model: torch.nn.Module, size: int = 256) -> tuple[Counter, Counter]:
    """Bytes by part, and by the module that keeps them."""
    path: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, args, name=name: path.append((name, type(m).__name__)))
        module.register_forward_hook(lambda m, args, output: path.pop() and None)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: set[int] = set()
    parts, kinds = Counter(), Counter()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen | parameters:
            seen.add(storage.data_ptr())
            name, kind = path[-1] if path else ("loss", "loss")
            part = ".".join(name.split(".")[: 3 if name.startswith("encoder") else 1])
            parts[part or "head"] += storage.nbytes()
            kinds[kind] += storage.nbytes()
        return tensor

    classes = model.segmentation_head[0].out_channels
    images, labels = torch.randn(2, 3, size, size), torch.randint(0, classes, (2, size, size))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.upsampling = 1
        UpsampledCrossEntropyLoss()(model.train()(images), labels)
    return parts, kinds


def main() -> None:
    name = f"segnext_{sys.argv[1] if len(sys.argv) > 1 else 't'}"
    model = create_segmenter(name).to(memory_format=torch.channels_last)
    sparing = create_segmenter(name, decoder_one_step_gradient=True).to(memory_format=torch.channels_last)
    sparing.set_grad_checkpointing()
    for title, each in (("default", model), ("checkpointed blocks, one-step gradient", sparing)):
        parts, kinds = kept(each)
        print(f"{title}: {sum(parts.values()) / 2**20:.0f} MB")
        for counter in (parts, kinds):
            print("  " + ", ".join(f"{name} {size / 2**20:.1f}" for name, size in counter.most_common(8)))


if __name__ == "__main__":
    main()
