"""SegNeXt with the losses and metrics of segmentation-models-pytorch.

    python examples/integrations/smp_training.py

Nothing is needed but `import segnext_timm`: SegNeXt gives logits at the images' size, as every model of smp does.
"""

import generated
import segmentation_models_pytorch as smp
import torch

import segnext_timm  # registers MSCAN with timm and SegNeXt with smp


def measure(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """IoU and F1 of the classes, averaged, by smp's counts of right and wrong pixels."""
    model.eval()
    with torch.no_grad():
        found = model.predict_labels(images)
    counts = smp.metrics.get_stats(found, labels, mode="multiclass", num_classes=len(generated.CLASSES))
    counts = [count.sum(0, keepdim=True) for count in counts]  # over images, so that absent classes do not count as 1
    return {
        "IoU": smp.metrics.iou_score(*counts, reduction="macro").item(),
        "F1": smp.metrics.f1_score(*counts, reduction="macro").item(),
    }


def main() -> None:
    generated.show_versions("segmentation-models-pytorch")
    torch.manual_seed(0)
    images, labels = generated.street_scenes(40)
    images = generated.normalize(images)
    model = smp.create_model("segnext", "tu-mscan_t", encoder_weights=None, classes=len(generated.CLASSES))
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
    focal = smp.losses.FocalLoss("multiclass", ignore_index=255)
    optimizer = torch.optim.AdamW(segnext_timm.parameter_groups(model, lr=2e-4))
    before = measure(model, images[32:], labels[32:])
    model.train()
    for x, y in generated.batches(images[:32], labels[:32], 4, 30):
        logits = model(x)
        loss = dice(logits, y) + focal(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = measure(model, images[32:], labels[32:])
    for name, value in after.items():
        print(f"{name} on held-out scenes {before[name]:.3f} -> {value:.3f}")
    assert after["IoU"] > before["IoU"]


if __name__ == "__main__":
    main()
