"""What an inference endpoint of Hugging Face runs, from a folder that `segnext_timm.export` wrote for transformers."""

import base64
import io
from typing import Any

from PIL import Image
from transformers import pipeline


class EndpointHandler:
    """Answers requests with the mask of each class that an image has."""

    def __init__(self, path: str = "") -> None:
        self.pipeline = pipeline("image-segmentation", path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Segment an image.

        Args:
            data: The image under `inputs`: Pillow's, or a file in base64.

        Returns:
            `label`, `score` (None) and `mask` of each class, the mask as a PNG in base64.
        """
        image = data["inputs"]
        if isinstance(image, str):
            image = Image.open(io.BytesIO(base64.b64decode(image)))
        answer = []
        for found in self.pipeline(image):
            file = io.BytesIO()
            found["mask"].save(file, "PNG")
            answer.append({**found, "mask": base64.b64encode(file.getvalue()).decode()})
        return answer
