"""MSCAN under transformers: UperNet and Mask2Former on `TimmBackbone`, trained for a few steps, saved and loaded.

    python examples/integrations/transformers_backbone.py

The one line is `import segnext_timm`: it must come before a model is built or loaded, for transformers finds the
backbone among timm's models. `TimmBackbone.from_pretrained("mscan_t")` loads the ImageNet weights.
"""

import tempfile

import generated
import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import segnext_timm  # noqa: F401  (the one line: registers MSCAN with timm)


def backbone_config() -> TimmBackboneConfig:
    return TimmBackboneConfig(backbone="mscan_t", out_indices=[0, 1, 2, 3])


def train(model: torch.nn.Module, inputs: list[dict]) -> list[float]:
    """The loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    losses = []
    model.train()
    for batch in inputs:
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{type(model).__name__}: loss {losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps", flush=True)
    return losses


def save_and_load(model: torch.nn.Module, images: torch.Tensor, output: str) -> None:
    """Save a model, load it, and compare what the two make of images."""
    model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder).eval()
        torch.testing.assert_close(getattr(loaded(images), output), getattr(model(images), output))
    print("  saved and loaded: equal outputs")


def main() -> None:
    generated.show_versions("transformers")
    torch.manual_seed(0)
    images, labels = generated.street_scenes(8)
    images = generated.normalize(images)

    config = UperNetConfig(
        backbone_config=backbone_config(), hidden_size=64, use_auxiliary_head=False, num_labels=len(generated.CLASSES)
    )
    model = UperNetForSemanticSegmentation(config)
    losses = train(model, [{"pixel_values": x, "labels": y} for x, y in generated.batches(images, labels, 4, 8)])
    assert losses[-1] < losses[0]
    save_and_load(model, images[:2], "logits")

    # Mask2Former takes a mask and a class of each region
    config = Mask2FormerConfig(
        backbone_config=backbone_config(), num_labels=len(generated.CLASSES), num_queries=20, encoder_layers=2,
        decoder_layers=3, hidden_dim=64, feature_size=64, mask_feature_size=64, dim_feedforward=128,
        encoder_feedforward_dim=128, num_attention_heads=4, train_num_points=1024,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    inputs = []
    for x, y in generated.batches(images, labels, 2, 6):
        classes = [one.unique() for one in y]
        masks = [(one == present[:, None, None]).float() for one, present in zip(y, classes)]
        inputs.append({"pixel_values": x, "mask_labels": masks, "class_labels": classes})
    losses = train(model, inputs)
    assert losses[-1] < losses[0]
    save_and_load(model, images[:2], "masks_queries_logits")


if __name__ == "__main__":
    main()
