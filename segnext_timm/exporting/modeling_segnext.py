"""SegNeXt for transformers, from a folder that `segnext_timm.export` wrote: load it with `trust_remote_code=True`.

It needs the package segnext-timm. `model.model` is the SegNeXt itself: `segnext_timm.predict` takes it, and its
`save_pretrained` writes a folder for smp.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from segnext_timm import SegNeXt, UpsampledCrossEntropyLoss


class SegNeXtConfig(PreTrainedConfig):
    """Configuration; `segmenter` holds the arguments of `SegNeXt`."""

    model_type = "segnext"
    segmenter: Any = None
    semantic_loss_ignore_index: int = 255


class SegNeXtForSemanticSegmentation(PreTrainedModel):
    """SegNeXt with the loss and the output of transformers."""

    config_class = SegNeXtConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # the loss is a mean over the pixels of a batch

    def __init__(self, config: SegNeXtConfig) -> None:
        super().__init__(config)
        names = [config.id2label[label] for label in range(config.num_labels)]
        facts = config.segmenter["pretrained_cfg"]
        if names != facts.get("label_names", names):  # to be trained on other classes
            facts = {key: facts[key] for key in ("mean", "std", "fit_in", "input_size") if key in facts}
            facts["label_names"] = names
        config.segmenter = {**config.segmenter, "classes": len(names), "pretrained_cfg": facts}
        self.model = SegNeXt(**{**config.segmenter, "encoder_weights": None})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.model.segmentation_head[0]:  # the layer that other classes have anew
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SemanticSegmenterOutput:
        """Segment images.

        Args:
            pixel_values: Normalized images (B, C, H, W).
            labels: Class of each pixel (B, H, W), for a loss; `config.semantic_loss_ignore_index` is left out.

        Returns:
            The loss, if there are labels, and `logits` (B, classes, H / 8, W / 8), rounded up.
        """
        logits = self.model(pixel_values, upsampling=1, activated=False)
        loss = None
        if labels is not None:
            loss = UpsampledCrossEntropyLoss(ignore_index=self.config.semantic_loss_ignore_index)(logits, labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits)
