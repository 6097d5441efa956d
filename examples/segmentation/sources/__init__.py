"""Annotations of label tools, one file per tool or format; `prepare_labels.py` makes label files of them.

A new source is a file here, with a `Painted` that reads regions or an `Unpacked` that writes masks, and a line in
`SOURCES`.
"""

from .binary import Binary
from .coco import Coco
from .cvat import Cvat
from .hub_datasets import HubDatasets
from .label_studio import LabelStudio
from .labelme import LabelMe
from .mat import Mat
from .reading import Painted
from .supervisely import Supervisely
from .unpacking import Unpacked
from .yolo import Yolo

SOURCES: dict[str, type[Painted] | type[Unpacked]] = {
    "coco": Coco,
    "cvat": Cvat,
    "labelme": LabelMe,
    "labelstudio": LabelStudio,
    "supervisely": Supervisely,
    "yolo": Yolo,
    "binary": Binary,
    "mat": Mat,
    "datasets": HubDatasets,
}
