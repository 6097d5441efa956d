"""Predict masks of brushes, or polygons, in Label Studio: a machine learning backend.

    python examples/tools/label_studio_backend.py runs/roads/best --port 9090

Add http://localhost:9090 to the project (Settings, Model). The labeling interface says what is predicted: its first
<BrushLabels> or <PolygonLabels> (needs rasterio and shapely) for an <Image>. A <Label> gets the class of its name, or
those that its attribute lists: predicted_values="car,truck".
"""

import argparse
import functools
import logging
import sys
import uuid
from typing import Any

try:
    from label_studio_ml.api import init_app
    from label_studio_ml.model import LabelStudioMLBase
    from label_studio_ml.response import ModelResponse
    from label_studio_sdk.converter.brush import mask2rle
    from label_studio_sdk.label_interface.objects import PredictionValue
except ImportError as error:
    command = "pip install git+https://github.com/HumanSignal/label-studio-ml-backend.git"
    sys.exit(f"label_studio_backend.py: {error}. Install version 2 of Label Studio's ML backend: {command}")

import numpy as np
import torch

import segnext_timm
from segnext_timm.errors import OptionError, SegNeXtError
from segnext_timm.models.model_info import ModelInfo
from segnext_timm.prediction.polygons import bridge_holes, check_options, trace

warn = functools.cache(logging.getLogger(__name__).warning)  # once, not for each request


class Backend(LabelStudioMLBase):
    """Predicts by one model. The server creates an object for each request, with the project's labeling interface."""

    name: str
    segmenter: torch.nn.Module
    simplify: float

    def setup(self) -> None:
        """Match the labeling interface with the model's classes."""
        self.set("model_version", self.name)
        kinds = ("BrushLabels", "PolygonLabels")
        try:
            control, self.image, self.key = self.get_first_tag_occurence(kinds, "Image")
        except ValueError:
            raise OptionError("The labeling interface needs <BrushLabels> or <PolygonLabels> for an <Image>.") from None
        self.tag, names = self.label_interface.get_control(control), ModelInfo(self.segmenter).label_names
        found = self.build_label_map(control, names)
        labels = [found.get(name) or found.get(name.lower()) for name in names]
        self.labels = list(dict.fromkeys(filter(None, labels)))
        self.numbers = np.array([self.labels.index(label) + 1 if label else -1 for label in labels], np.int32)
        if unknown := sorted(set(self.tag.labels) - set(self.labels)):
            message = f"No class of {self.name} for {', '.join(unknown)}: rename labels in the labeling interface, or "
            message += f'write <Label predicted_values="CLASS" .../>. The classes are {", ".join(names)}.'
            if not self.labels:
                raise OptionError(message)
            warn(message)
        if self.tag.tag == "PolygonLabels":
            check_options(self.simplify)  # also whether rasterio and shapely are there

    def predict(self, tasks: list[dict[str, Any]], context: dict | None = None, **kwargs: Any) -> ModelResponse:
        return ModelResponse(predictions=[PredictionValue(result=self.regions(task)) for task in tasks])

    def regions(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        file = self.get_local_path(task["data"][self.key], task_id=task.get("id"))
        found = self.numbers[segnext_timm.predict(self.segmenter, file)]
        (height, width), kind = found.shape, self.tag.tag.lower()
        if kind == "brushlabels":
            masks = ((label, (found == number) * np.uint8(255)) for number, label in enumerate(self.labels, 1))
            shapes = [(label, {"format": "rle", "rle": mask2rle(mask)}) for label, mask in masks if mask.any()]
        else:
            areas = trace(found, ModelInfo(self.segmenter), self.simplify)
            outlines = ((number, bridge_holes(area) / (width, height) * 100) for number, area in areas)  # in percent
            shapes = [(self.labels[number - 1], {"points": points.tolist()}) for number, points in outlines]
        common = {"from_name": self.tag.name, "to_name": self.image, "type": kind, "image_rotation": 0}
        common |= {"original_width": width, "original_height": height}
        return [common | {"id": uuid.uuid4().hex[:10], "value": value | {kind: [label]}} for label, value in shapes]


def create_app(model: str, device: str = "", simplify: float = 0.0) -> Any:
    """Create the server's application, also for gunicorn: `label_studio_backend:create_app("runs/roads/best")`."""
    segmenter = segnext_timm.fuse(segnext_timm.load_segmenter(model))
    Backend.segmenter = segmenter.to(device or torch.accelerator.current_accelerator(True) or "cpu")
    Backend.name, Backend.simplify = model, simplify
    return init_app(Backend)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a published name, a folder or a Hub repository")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines and containers")
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1, ...; by default a GPU if there is one")
    parser.add_argument("--simplify", type=float, default=0.0, help="tolerance of polygons, in pixels")
    options = parser.parse_args()
    try:
        app = create_app(options.model, options.device, options.simplify)
    except (SegNeXtError, OSError) as error:
        sys.exit(f"label_studio_backend.py: {error}")
    app.run(options.host, options.port)
