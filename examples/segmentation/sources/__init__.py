"""Annotations of label tools, one file per tool or format; `prepare_labels.py` makes label files of them.

A new source is a file here with a `Painted` that reads it, and a line in `SOURCES`.
"""

from .coco import Coco
from .cvat import Cvat
from .label_studio import LabelStudio
from .labelme import LabelMe
from .reading import Painted
from .yolo import Yolo

SOURCES: dict[str, type[Painted]] = {
    "coco": Coco,
    "cvat": Cvat,
    "labelme": LabelMe,
    "labelstudio": LabelStudio,
    "yolo": Yolo,
}
