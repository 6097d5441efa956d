"""MSCAN in mmsegmentation through its timm wrapper, and this package's decoder beside mmsegmentation's.

    python examples/integrations/mmsegmentation_head.py

The one line is `import segnext_timm` where the configuration is read: in a configuration file,
`custom_imports = dict(imports=["segnext_timm"])`. A head of twenty lines makes this package's decoder one of
mmsegmentation's: its predictions are the same at every call, theirs are drawn anew.
"""

import warnings

import generated
import torch

import segnext_timm
from publishing.reference import import_mmseg  # `generated` makes the other examples importable

warnings.simplefilter("ignore")
import_mmseg()  # `import mmseg` is enough where mmcv is installed whole
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample


@MODELS.register_module()
class DeterministicHamHead(BaseDecodeHead):
    """This package's light Hamburger decoder as a head of mmsegmentation.

    Args:
        rank: Of the matrix decomposition.
        kwargs: Of mmsegmentation's `BaseDecodeHead`.
    """

    def __init__(self, rank: int = 16, **kwargs) -> None:
        super().__init__(input_transform="multiple_select", **kwargs)
        encoder_channels = (3, 0, 64, *self.in_channels)  # of strides 1 to 32; the decoder takes the last three
        self.decoder = segnext_timm.LightHamDecoder(encoder_channels, channels=self.channels, rank=rank)

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        features = self._transform_inputs(inputs)
        return self.cls_seg(self.decoder([None, None, None, *features]))


def config(head: dict) -> dict:
    """What a configuration file of mmsegmentation holds under `model`."""
    common = {
        "in_channels": [64, 160, 256], "in_index": [1, 2, 3], "channels": 128, "num_classes": len(generated.CLASSES),
        "align_corners": False, "loss_decode": {"type": "CrossEntropyLoss"},
    }  # fmt: skip
    backbone = {"type": "TIMMBackbone", "model_name": "mscan_t", "pretrained": False, "out_indices": (0, 1, 2, 3)}
    model = {"type": "EncoderDecoder", "backbone": backbone, "decode_head": {**common, **head}}
    return {**model, "train_cfg": {}, "test_cfg": {"mode": "whole"}}


def main() -> None:
    generated.show_versions("mmsegmentation", "mmengine")
    init_default_scope("mmseg")
    images, labels = generated.street_scenes(8)
    images = generated.normalize(images)
    theirs = {"type": "LightHamHead", "ham_channels": 128, "norm_cfg": {"type": "GN", "num_groups": 32}}
    theirs["ham_kwargs"] = {"MD_R": 16}
    for head, steady in (({"type": "DeterministicHamHead", "rank": 16}, True), (theirs, False)):
        torch.manual_seed(0)
        model = MODELS.build(config(head))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for x, y in generated.batches(images, labels, 4, 6):
            samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in y]
            loss = model.loss(x, samples)["decode.loss_ce"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        model.eval()
        size = tuple(images.shape[-2:])
        metas = [{"img_shape": size, "ori_shape": size, "pad_shape": size}]
        with torch.no_grad():
            first, second = (model.encode_decode(images[:1], metas) for _ in range(2))
        print(
            f"{head['type']}: loss {losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps; two predictions "
            f"differ by {(first - second).abs().max():.1e}",
            flush=True,
        )
        assert torch.equal(first, second) == steady


if __name__ == "__main__":
    main()
