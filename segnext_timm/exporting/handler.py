"""What an inference endpoint of Hugging Face runs, from a folder that `segnext_timm.export` wrote for transformers."""

from typing import Any

from transformers import pipeline


class EndpointHandler:
    """Answers requests as the endpoint's own handler, which loads a folder's code only with HF_TRUST_REMOTE_CODE=1."""

    def __init__(self, path: str = "") -> None:
        self.pipeline = pipeline("image-segmentation", path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Segment the image under `inputs`, Pillow's or base64: `label`, `score` (None) and `mask` of each class."""
        return self.pipeline(data["inputs"])  # the endpoint writes each mask as a PNG in base64
