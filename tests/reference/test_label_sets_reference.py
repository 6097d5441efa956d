"""Names, order and colors of the classes beside mmsegmentation's, which models trained there predict."""

import pytest

from publishing.reference import import_mmseg
from segnext_timm.label_sets import LABEL_SETS, VOC_PALETTE

DATASETS = {
    "ade20k": "ADE20KDataset",
    "cityscapes": "CityscapesDataset",
    "coco_stuff164k": "COCOStuffDataset",
    "voc2012": "PascalVOCDataset",
    "pascal_context": "PascalContextDataset59",
    "isaid": "iSAIDDataset",
}
WITHOUT_COLORS = ("coco_stuff164k", "pascal_context")  # mmsegmentation drew random ones


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("key", LABEL_SETS)
def test_all_classes_and_colors_agree_with_mmsegmentation(key):
    import_mmseg()
    import mmseg.datasets

    theirs, ours = getattr(mmseg.datasets, DATASETS[key]).METAINFO, LABEL_SETS[key]
    names = [name.strip().replace("_", " ").replace("store tank", "storage tank") for name in theirs["classes"]]
    if key == "isaid":
        names = [name.lower() for name in names]
    assert list(ours.classes) == names
    colors = VOC_PALETTE[: len(names)] if key in WITHOUT_COLORS else [tuple(color) for color in theirs["palette"]]
    assert tuple(ours.palette) == tuple(colors)
