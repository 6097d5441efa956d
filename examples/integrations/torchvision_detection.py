"""MSCAN under torchvision's detectors: Faster R-CNN and Mask R-CNN with a feature pyramid.

    python examples/integrations/torchvision_detection.py

torchvision's own `BackboneWithFPN` takes features from named children of a model; timm's `features_only` gives them as
a list, so a module of ten lines puts the pyramid on it. It fits any timm model.
"""

import time
from collections import OrderedDict

import generated
import timm
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.ops import FeaturePyramidNetwork, masks_to_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import segnext_timm  # noqa: F401  (registers MSCAN with timm)


class TimmWithFPN(nn.Module):
    """A timm model with a feature pyramid: strides 4 to 32, and a pooled level on top."""

    def __init__(self, name: str, out_channels: int = 256, **kwargs) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, **kwargs)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(OrderedDict((str(i), feature) for i, feature in enumerate(self.body(x))))


def discs(count: int, size: int, seed: int) -> tuple[list[torch.Tensor], list[dict]]:
    """Images (3, size, size) with one to three bright discs on noise, and what detectors learn from."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images, targets = [], []
    for _ in range(count):
        image = 0.3 * torch.rand(3, size, size, generator=generator)
        masks = []
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            radius = int(torch.randint(8, 18, (), generator=generator))
            row, column = torch.randint(radius, size - radius, (2,), generator=generator)
            mask = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
            image[:, mask] = 0.6 + 0.4 * torch.rand(3, 1, generator=generator)
            masks.append(mask)
        masks = torch.stack(masks)
        labels = torch.ones(len(masks), dtype=torch.int64)
        images.append(image)
        targets.append({"boxes": masks_to_boxes(masks), "labels": labels, "masks": masks.to(torch.uint8)})
    return images, targets


def main() -> None:
    generated.show_versions("torchvision")
    size = 128
    for detector in (FasterRCNN, MaskRCNN):
        start = time.monotonic()
        torch.manual_seed(0)
        # with pretrained=True, the ImageNet weights; the statistics are those of segmentation, torchvision's default
        backbone = TimmWithFPN("mscan_t", out_channels=64, pretrained=False)
        model = detector(
            backbone, num_classes=2, min_size=size, max_size=size,
            rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=100, rpn_post_nms_top_n_test=50,
            box_batch_size_per_image=64,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        images, targets = discs(4, size, seed=0)
        for _ in range(8):
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        model.eval()
        with torch.no_grad():
            found = model(discs(1, size, seed=1)[0])[0]
        print(
            f"{detector.__name__}: loss {losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps; of an image: "
            f"{', '.join(f'{name} {tuple(value.shape)}' for name, value in found.items())}; "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
