"""The published sizes of SegNeXt, once: T, S, B and L. Imports nothing heavy, so that a command answers at once."""

from dataclasses import dataclass

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Variant:
    """One published size of MSCAN and SegNeXt, from the paper (https://arxiv.org/abs/2209.08575) and its code.

    Attributes:
        key: "t", "s", "b" or "l".
        dims: Channels of the four stages (table 2).
        depths: Blocks of the four stages (table 2).
        decoder_channels: Width of the decoder in the code's configurations.
        decoder_rank: Rank of the matrix decomposition in the paper's code; mmsegmentation trained all sizes with 16.
        drop_path_rate: Stochastic depth rate of the last block in the code's ADE20K configurations.
        backbone_parameters: Parameters of the backbone without classifier.
        top1: The paper's ImageNet-1k top-1 accuracy in percent.
        miou: The paper's mIoU on ADE20K's validation set in percent: single scale, and multiple scales with flips.
    """

    key: str
    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    decoder_channels: int
    decoder_rank: int
    drop_path_rate: float
    backbone_parameters: int
    top1: float
    miou: tuple[float, float]

    @property
    def backbone(self) -> str:
        """Name of the backbone in timm."""
        return f"mscan_{self.key}"

    @property
    def classifier_parameters(self) -> int:
        """Parameters of the backbone with its ImageNet classifier."""
        return self.backbone_parameters + (self.dims[-1] + 1) * _IMAGENET_CLASSES

    def segmenter_parameters(self, classes: int, decoder_channels: int | None = None) -> int:
        """Parameters of SegNeXt on this backbone.

        Args:
            classes: Number of classes.
            decoder_channels: Width of the decoder, the paper's by default.
        """
        width = decoder_channels or self.decoder_channels
        squeeze = sum(self.dims[1:]) * width
        convolutions = 3 * width * width + width  # proj_in with its bias, proj_out, align
        norms = 3 * 2 * width
        return self.backbone_parameters + squeeze + convolutions + norms + (width + 1) * classes

    def segmenter_tensors(self, batch_counts: bool = True) -> int:
        """Tensors in a published checkpoint of SegNeXt on this backbone, which has no bases.

        Args:
            batch_counts: Whether the checkpoint contains `num_batches_tracked` of the batch norms.
        """
        blocks = sum(self.depths)
        batch_norms = 2 + 3 + 2 * blocks  # of the stem, the downsamplings and the blocks
        convolutions = 2 + 3 + 13 * blocks
        head = 3 * 2 + 4 + 3  # three group norms; conv_seg and ham_in with biases; the other three convolutions
        layer_scales, layer_norms = 2 * blocks, 4
        per_batch_norm = 5 if batch_counts else 4
        return 2 * convolutions + per_batch_norm * batch_norms + layer_scales + 2 * layer_norms + head


VARIANTS = {
    variant.key: variant
    for variant in (
        Variant("t", (32, 64, 160, 256), (3, 3, 5, 2), 256, 16, 0.1, 3_903_584, 75.9, (41.1, 42.2)),
        Variant("s", (64, 128, 320, 512), (2, 2, 4, 2), 256, 16, 0.1, 13_450_176, 81.2, (44.3, 45.8)),
        Variant("b", (64, 128, 320, 512), (3, 3, 12, 3), 512, 64, 0.1, 26_277_824, 83.0, (48.5, 49.9)),
        Variant("l", (64, 128, 320, 512), (3, 5, 27, 3), 1024, 64, 0.3, 44_636_864, 83.9, (51.0, 52.1)),
    )
}
