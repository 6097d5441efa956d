"""Class names and palettes of the benchmark data sets, which label_sets.json lists.

Names and colors are the data sets' own, in the order of the training labels (ADE20K:
https://github.com/CSAILVision/sceneparsing, Cityscapes: https://github.com/mcordts/cityscapesScripts). Data sets
without colors use `VOC_PALETTE`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Color = tuple[int, int, int]  # red, green and blue from 0 to 255


@dataclass(frozen=True)
class LabelSet:
    """Classes of a data set."""

    key: str  # its name in code and file names
    name: str  # its usual name
    classes: tuple[str, ...]  # the index is the label
    palette: tuple[Color, ...]  # by class
    hub_id: str | None = None  # on the Hugging Face Hub; None if it has none


def name_list(names: Any) -> list[str]:
    """List class names, which timm and transformers keep by label, in the order of the labels."""
    return [names[label] for label in sorted(names, key=int)] if isinstance(names, Mapping) else list(names)


def _voc_color(label: int) -> Color:
    red, green, blue = (sum((label >> (3 * i + offset) & 1) << (7 - i) for i in range(3)) for offset in range(3))
    return red, green, blue


# Colors of the Pascal VOC development kit: black, then 255 distinct ones. The bits of a label go in turn to red, green
# and blue, from the highest bit of each color down.
VOC_PALETTE = tuple(map(_voc_color, range(256)))


def _read_label_sets() -> dict[str, LabelSet]:
    found = {}
    for key, facts in json.loads(Path(__file__).with_suffix(".json").read_text("utf-8")).items():
        names, colors = tuple(facts["classes"]), [bytes.fromhex(color) for color in facts.get("colors", ())]
        palette = tuple((red, green, blue) for red, green, blue in colors) or VOC_PALETTE[: len(names)]
        found[key] = LabelSet(key, facts["name"], names, palette, facts.get("hub_id"))
    return found


LABEL_SETS = _read_label_sets()
