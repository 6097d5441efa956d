from segnext_timm.label_sets import LABEL_SETS, VOC_PALETTE

COUNTS = {"ade20k": 150, "cityscapes": 19, "coco_stuff164k": 171, "voc2012": 21, "pascal_context": 59, "isaid": 16}


def test_every_class_has_a_name_of_its_own_and_a_color():
    assert {key: len(labels.classes) for key, labels in LABEL_SETS.items()} == COUNTS
    for labels in LABEL_SETS.values():
        assert len(set(labels.classes)) == len(labels.classes) == len(labels.palette)
        assert all(name == name.strip() != "" for name in labels.classes)
        assert all(len(color) == 3 and 0 <= min(color) <= max(color) <= 255 for color in labels.palette)


def test_names_and_colors_are_the_data_sets_own():
    ade, city = LABEL_SETS["ade20k"], LABEL_SETS["cityscapes"]
    assert (ade.classes[0], ade.classes[12], ade.classes[149]) == ("wall", "person", "flag")
    assert (ade.palette[0], ade.palette[12]) == ((120, 120, 120), (150, 5, 61))
    assert (city.classes[0], city.classes[18]) == ("road", "bicycle")
    assert (city.palette[0], city.palette[13]) == ((128, 64, 128), (0, 0, 142))


def test_the_palette_of_voc_is_computed():
    assert len(set(VOC_PALETTE)) == 256
    assert VOC_PALETTE[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert VOC_PALETTE[15] == (192, 128, 128)  # person
    assert VOC_PALETTE[255] == (224, 224, 192)  # the border
