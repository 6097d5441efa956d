"""Forms of a model that one tool reads: Deepness, whose files GeoDeep reads too; transformers and transformers.js."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from safetensors.torch import save_file
from segmentation_models_pytorch.base.modules import Activation

from .._atomic import fill_when_complete
from ..checkpoints.folder import CARD, CONFIG, WEIGHTS, read_config
from ..errors import OptionError
from ..hub.cards import write_card
from ..models.facts import plain_values
from ..models.model_info import ModelInfo
from ..models.resizing import resize
from ..models.segmenter import Segmenter
from ..models.segnext import SegNeXt

# transformers.js: its name of each precision, and its name of the file
_DTYPES = {"fp32": ("fp32", "model"), "fp16": ("fp16", "model_fp16"), "int8": ("q8", "model_quantized")}


class DeepnessGraph(nn.Module):
    """Wraps a segmentation model for tracing; raises an OptionError if its images are not bytes."""

    normalization: torch.Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.segmenter = Segmenter(model)
        self.model = model  # registers its parameters
        values = self.segmenter.info.value_range or (0, 255)
        if not np.all(np.reshape(values, (-1, 2)) == (0, 255)):
            raise OptionError(f"Deepness divides bytes by 255, but the model takes values from {values} as 0 to 1.")
        self.register_buffer("normalization", torch.tensor(self.segmenter.info.normalization)[..., None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) of values from 0 to 1 to probabilities (B, classes, H, W) of at least two classes."""
        mean, std = self.normalization
        maps = self.segmenter((images - mean) / std)
        shares = self.segmenter.probabilities(resize(maps, list(images.shape[-2:])), 1)
        return shares if shares.shape[1] > 1 else torch.cat([1 - shares, shares], 1)


def deepness_metadata(info: ModelInfo, input_size: tuple[int, int, int, int], resolution: float) -> dict[str, Any]:
    """Describe a DeepnessGraph in JSON; `mean` and `std` are those of its input, which it normalizes itself."""
    _, channels, side, _ = input_size
    return {
        "model_type": '"Segmentor"',
        "class_names": dict(enumerate(info.label_names)),
        "resolution": resolution,
        "tiles_size": side,  # as Deepness documents it
        "tile_size": side,  # as its code reads it
        "tiles_overlap": 25,  # percent, as windows of predict overlap
        "seg_thresh": 0,  # smaller probabilities become 0, and the largest is taken then
        "seg_small_segment": 0,
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
    }


def transformers_settings(model: nn.Module, folder: Path, target: str) -> dict[str, dict[str, Any]]:
    """Describe a SegNeXt as transformers or transformers.js reads it: contents of JSON files by name.

    A binary model becomes one of two classes, of which the first has logits of 0.

    Raises:
        OptionError: If they cannot describe the model, or the folder holds another one.
    """
    if not isinstance(model, SegNeXt):
        raise OptionError(f"{target} gets SegNeXt, on any encoder, not {type(model).__name__}: use .onnx for it.")
    facts, info = model._update_config({}), ModelInfo(model)
    values, bands, names = info.value_range or (0, 255), info.bands or (1, 2, 3), info.label_names
    if info.in_channels != 3 or bands != (1, 2, 3) or not np.all(np.reshape(values, (-1, 2)) == (0, 255)):
        what = f"this model takes {info.in_channels} channels, bands {bands}, of values from {values}"
        raise OptionError(f"{target} reads photos, three channels of bytes, but {what}: use .onnx for it.")
    lists = {"label_names": names, "palette": [list(color) for color in info.palette]}
    facts |= {key: value for key, value in lists.items() if facts.get(key)}
    segmenter = plain_values({**model.config, "classes": len(names), "aux_params": None, "pretrained_cfg": facts})
    if (folder / CONFIG).exists() and read_config(folder).get("segmenter") != segmenter:
        raise OptionError(f"{folder} holds another model: choose a new folder.")
    config: dict[str, Any] = {"segmenter": segmenter, "id2label": {str(i): name for i, name in enumerate(names)}}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    if target == "transformers":
        auto = {"AutoConfig": "SegNeXtConfig", "AutoModelForSemanticSegmentation": "SegNeXtForSemanticSegmentation"}
        config["auto_map"] = {name: f"modeling_segnext.{found}" for name, found in auto.items()}
        config |= {"model_type": "segnext", "architectures": ["SegNeXtForSemanticSegmentation"]}
    else:  # its class for SegFormer runs any graph from pixel_values to logits
        config |= {"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]}
    sides = info.fit_in or info.input_size
    mean, std = info.normalization
    processor = {
        "image_processor_type": "SegformerImageProcessor",
        "do_convert_rgb": True,
        "do_resize": info.fit_in is not None,
        "size": dict(zip(("longest_edge", "shortest_edge") if info.fit_in else ("height", "width"), sides)),
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_reduce_labels": False,
    }
    return {CONFIG: config, "preprocessor_config.json": processor}


def leave_logits(model: Any) -> None:
    """Change a SegNeXt in place to one that returns logits (B, classes, H / 8, W / 8), of at least two classes."""
    model.upsampling, model.classification_head = 1, None
    head = model.segmentation_head
    head[2] = Activation(None)
    if head[0].out_channels == 1:
        head[0].out_channels = 2
        for name, values in [*head[0].named_parameters()]:
            setattr(head[0], name, nn.Parameter(torch.cat([torch.zeros_like(values), values]).detach()))


def transformers_js_file(folder: Path, precision: str) -> Path:
    """Place of the graph of a precision, by the names of transformers.js."""
    return folder / "onnx" / f"{_DTYPES[precision][1]}.onnx"


def write_folder(folder: Path, settings: dict[str, dict[str, Any]], model: nn.Module | None = None) -> None:
    """Write JSON files and a card: beside graphs for transformers.js, or with weights and code for transformers."""
    if model is None:
        found = [dtype for precision, (dtype, _) in _DTYPES.items() if transformers_js_file(folder, precision).exists()]
        settings[CONFIG]["transformers.js_config"] = {"dtype": found[0]}  # to load unless a page asks for another
    with fill_when_complete(folder, last=CONFIG) as new:
        if (folder / CARD).is_file():
            shutil.copyfile(folder / CARD, new / CARD)
        if model is not None:
            weights = {f"model.{name}": x.contiguous() for name, x in model.state_dict().items()}
            save_file(weights, new / WEIGHTS, {"format": "pt"})
            for name in ("modeling_segnext.py", "handler.py"):
                shutil.copyfile(Path(__file__).with_name(name), new / name)
        for name, content in settings.items():
            (new / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
        write_card(new)
