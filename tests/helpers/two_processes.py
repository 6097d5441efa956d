"""Gradients of a batch that several processes share: `torchrun --nproc-per-node 2 two_processes.py FILE EXAMPLES LOSS`.

Batch norms use their running statistics, since torch synchronizes them on GPUs only.
"""

import sys

import segmentation_models_pytorch as smp
import torch
from accelerate import Accelerator

sys.path.insert(0, sys.argv[2])
from segmentation.losses import build_loss
from segmentation.recipe import TrainSettings


def main() -> None:
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=4).eval()
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(0, 3, (4, 64, 64))
    labels[:2] = 255  # the first of two processes has nothing to learn from
    share = slice(accelerator.process_index * 4 // accelerator.num_processes, None)
    share = slice(share.start, share.start + 4 // accelerator.num_processes)
    model.upsampling = 1
    prepared, loss_fn = accelerator.prepare(model), build_loss(TrainSettings(loss=sys.argv[3]), 255)
    accelerator.backward(loss_fn(prepared(images[share]), labels[share]))
    if accelerator.is_main_process:
        torch.save({name: p.grad for name, p in model.named_parameters()}, sys.argv[1])
    accelerator.end_training()


if __name__ == "__main__":
    main()
