"""Label the images of a CVAT task by a model: a function for `cvat-cli`, of masks or of polygons.

    cvat-cli --server-host https://cvat.example.com task auto-annotate 7 --allow-unmatched-labels \
        --function-file examples/tools/cvat_function.py -p model=str:runs/roads/best

`model` is a published name, a folder or a Hub repository; `-p device=str:cuda:1` chooses a device. Each class that is
found becomes a mask; with `--conv-mask-to-poly` (needs rasterio and shapely), each connected area becomes a polygon, of
fewer corners by `-p simplify=float:1`. With `--conf-threshold 0.8`, pixels of a smaller probability stay unlabeled.
"""

import sys
from functools import cached_property

try:
    import cvat_sdk.auto_annotation as cvataa
    import PIL.Image
    from cvat_sdk.masks import encode_mask
except ImportError:
    sys.exit("cvat_function.py: this is a function for CVAT's command line: pip install cvat-cli")
try:
    import numpy as np
    import torch

    import segnext_timm
    from segnext_timm.errors import SegNeXtError
    from segnext_timm.models.model_info import ModelInfo
    from segnext_timm.prediction.polygons import bridge_holes, check_options, trace
except ImportError as error:
    sys.exit(f"cvat_function.py: {error}. Install segnext-timm for {sys.executable}, which runs cvat-cli.")


class Function:
    def __init__(self, model: str, device: str, simplify: float) -> None:
        segmenter = segnext_timm.load_segmenter(model)
        self.info, self.simplify = ModelInfo(segmenter), simplify
        self.model = segnext_timm.fuse(segmenter).to(device or torch.accelerator.current_accelerator(True) or "cpu")

    @cached_property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        background = self.info.num_classes == 1  # has a name, but is no object
        names = list(enumerate(self.info.label_names))[background:]
        return cvataa.DetectionFunctionSpec(labels=[cvataa.label_spec(name, id, type="mask") for id, name in names])

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image
    ) -> list[cvataa.DetectionAnnotation]:
        if context.conv_mask_to_poly:
            check_options(self.simplify)  # also whether rasterio and shapely are there
        if context.conf_threshold:
            labels, probabilities = segnext_timm.predict(self.model, image, probabilities=True)
            labels = np.where(probabilities.max(0) < context.conf_threshold, -1, labels.astype(np.int32))
        else:
            labels = segnext_timm.predict(self.model, image)
        if context.conv_mask_to_poly:
            areas = trace(labels, self.info, self.simplify)
            return [cvataa.polygon(label, bridge_holes(area).ravel().tolist()) for label, area in areas]
        found = [label.id for label in self.spec.labels if (labels == label.id).any()]
        return [cvataa.mask(label, encode_mask(labels == label)) for label in found]


def create(model: str, device: str = "", simplify: float = 0.0) -> Function:
    try:
        return Function(model, device, simplify)
    except (SegNeXtError, OSError) as error:
        sys.exit(f"cvat_function.py: {error}")
