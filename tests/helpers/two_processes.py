"""Gradients of a batch that several processes share: `accelerate launch --cpu --num_processes 2 two_processes.py FILE`.

Batch norms use their running statistics, since torch synchronizes them on GPUs only.
"""

import sys

import segmentation_models_pytorch as smp
import torch
from accelerate import Accelerator

from segnext_timm import UpsampledCrossEntropyLoss

sys.path.insert(0, sys.argv[2])
import train


def main() -> None:
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=4).eval()
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(0, 3, (4, 64, 64))
    labels[0] = 255  # shared unevenly: the mean is over all pixels, so it does not matter
    share = slice(accelerator.process_index * 4 // accelerator.num_processes, None)
    share = slice(share.start, share.start + 4 // accelerator.num_processes)
    model.upsampling = 1
    prepared, loss_fn = accelerator.prepare(model), UpsampledCrossEntropyLoss(ignore_index=255, reduction="sum")
    accelerator.backward(train.mean_over_pixels(loss_fn, prepared(images[share]), labels[share]))
    if accelerator.is_main_process:
        torch.save({name: p.grad for name, p in model.named_parameters()}, sys.argv[1])
    accelerator.end_training()


if __name__ == "__main__":
    main()
