"""Annotations of label tools, one file per tool or format; `prepare_labels.py` makes label files of them.

A new source is a file here with a `Painted` that reads it, and a line in `SOURCES`.
"""

from .coco import Coco
from .labelme import LabelMe
from .reading import Painted

SOURCES: dict[str, type[Painted]] = {"coco": Coco, "labelme": LabelMe}
