"""Fine-tuning a part: LoRA adapters in MSCAN's 1×1 convolutions by peft, and a frozen encoder.

    python examples/integrations/peft_lora.py

With LoRA the encoder's weights stay, and each chosen convolution learns a difference of low rank; the head is learned
whole. The adapter that is saved is a small file, and can be merged into the weights. Freezing the encoder needs no
library. Either way batch norms would go on to learn the images' statistics, which no adapter holds: they are told not
to.
"""

import copy
import tempfile
from pathlib import Path

import generated
import segmentation_models_pytorch as smp
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import segnext_timm  # noqa: F401  (registers MSCAN with timm and SegNeXt with smp)

STEPS = 12


def trainable(model: torch.nn.Module) -> str:
    """How many parameters are learned, of all."""
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{learned / 1e6:.2f}M of {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters"


def keep_statistics(encoder: torch.nn.Module) -> None:
    """Let batch norms keep the statistics they have; to be said again after every `model.train()`."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def train(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> str:
    """Train what may be trained; the loss before and after."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for x, y in generated.batches(images, labels, 4, STEPS):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {STEPS} steps"


def main() -> None:
    generated.show_versions("peft", "segmentation-models-pytorch")
    torch.manual_seed(0)
    images, labels = generated.street_scenes(16)
    images = generated.normalize(images)
    # with encoder_weights="imagenet", the published weights
    base = smp.create_model("segnext", "tu-mscan_t", encoder_weights=None, classes=len(generated.CLASSES))

    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=r"encoder\..*\.(proj_in|proj_out|fc1|fc2)",  # the dense convolutions
        modules_to_save=["decoder", "segmentation_head"],
    )
    lora = get_peft_model(copy.deepcopy(base), config)
    keep_statistics(lora.base_model.model.encoder)
    print(f"LoRA learns {trainable(lora)}")
    print(f"  {train(lora, images, labels)}")
    lora.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        lora.save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
        torch.testing.assert_close(loaded(images[:2]), lora(images[:2]))
        merged = lora.merge_and_unload()
        torch.testing.assert_close(merged(images[:2]), loaded(images[:2]), rtol=1e-3, atol=1e-4)
    print(f"  the adapter has {size / 1e6:.1f} MB; loaded and merged it predicts the same")

    frozen = copy.deepcopy(base).train()
    frozen.encoder.requires_grad_(False)
    keep_statistics(frozen.encoder)
    print(f"A frozen encoder learns {trainable(frozen)}")
    print(f"  {train(frozen, images, labels)}")
    weights = base.encoder.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in frozen.encoder.state_dict().items())


if __name__ == "__main__":
    main()
