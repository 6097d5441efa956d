import numpy as np
import pytest
from PIL import Image

import miniatures
import prepare_labels
from label_sources import Made
from segmentation.recipe import UserError

SIZE = (8, 8)
LABELS = np.zeros(SIZE, np.uint8)
LABELS[:3, :5], LABELS[5:, 3:] = 1, 2
CLASSES = "background\nroad\nhouse\n"


def write(path, mask, high=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * high).save(path)


def made(root, images="images", masks="masks", classes=CLASSES, **options):
    (root / "classes.txt").write_text(classes, encoding="utf-8")
    return Made("binary", root / images, root / masks, root / "data", classes=root / "classes.txt", **options)


@pytest.mark.parametrize("form", ["{}/{}.png", "{1}/{0}.png", "{}_{}.png", "{1}-{0}.png"])
@pytest.mark.parametrize("high", [1, 255])
def test_masks_of_one_class_each_become_labels(tmp_path, form, high):
    form = form.replace("{}", "{0}", 1).replace("{}", "{1}")
    for image in ("1", "b 2"):
        miniatures.picture(tmp_path / f"images/{image}.jpg", SIZE)
        for label, name in enumerate(("road", "house"), 1):
            write(tmp_path / "masks" / form.format(image, name), label == LABELS, high)
    found = made(tmp_path)
    assert found.classes == ("background", "road", "house")
    assert all(np.array_equal(found.labels[name], LABELS) for name in ("1", "b 2"))


def test_objects_of_one_class_become_labels(tmp_path):
    for image in ("a", "b"):
        miniatures.picture(tmp_path / f"{image}/images/{image}.png", SIZE)
        for label in (1, 2):
            write(tmp_path / f"{image}/masks/{label}f0{image}.png", label == LABELS)
    found = made(tmp_path, ".", ".", "background\nnucleus\n")
    assert np.array_equal(found.labels["a_images_a"], LABELS > 0)


@pytest.mark.parametrize("names", [("road", "tree"), ("tree", "house")])
def test_masks_of_classes_that_the_list_leaves_out_are_no_objects(tmp_path, names):
    miniatures.picture(tmp_path / "images/1.jpg", SIZE)
    for name in names:
        write(tmp_path / f"masks/1/{name}.png", LABELS > 0)
    with pytest.raises(UserError, match=r"is of no image and class: .* The classes are road\."):
        made(tmp_path, classes="background\nroad\n")


def test_the_later_class_lies_on_top(tmp_path):
    miniatures.picture(tmp_path / "images/1.jpg", SIZE)
    for name, mask in (("house", LABELS > 0), ("road", LABELS == 1)):
        write(tmp_path / f"masks/{name}/1.png", mask)
    assert np.array_equal(np.unique(made(tmp_path).labels["1"]), [0, 2])
    labels = made(tmp_path, classes="background\nhouse\nroad\n").labels["1"]
    assert np.array_equal(labels, np.array([0, 2, 1])[LABELS])


@pytest.mark.parametrize(
    ("name", "mask", "reason"),
    [("1/road", LABELS, "holds 2 values beside 0"), ("1/road", np.ones((4, 4)), r"has 4×4 pixels")],
)
def test_masks_that_do_not_fit_skip_their_image_by_name(tmp_path, name, mask, reason):
    miniatures.picture(tmp_path / "images/1.jpg", SIZE)
    write(tmp_path / f"masks/{name}.png", mask, 1)
    assert reason in made(tmp_path).skipped["1.jpg"]


@pytest.mark.parametrize("name", ["1/tree.png", "2/road.png", "1.png"])
def test_a_mask_of_no_image_and_class_is_refused_by_name(tmp_path, name):
    miniatures.picture(tmp_path / "images/1.jpg", SIZE)
    write(tmp_path / "masks" / name, LABELS > 0)
    with pytest.raises(UserError, match=rf"{name} is of no image and class: .*1_road.* The classes are road, house\."):
        made(tmp_path)


def test_images_without_masks_are_not_taken_for_background(tmp_path):
    for image in "12":
        miniatures.picture(tmp_path / f"images/{image}.jpg", SIZE)
    write(tmp_path / "masks/1/road.png", LABELS > 0)
    assert made(tmp_path).skipped["2.jpg"] == "it has no masks"


def test_the_refusal_of_several_masks_names_the_command(tmp_path):
    miniatures.picture(tmp_path / "images/1.jpg", SIZE)
    for name in ("road", "house"):
        write(tmp_path / f"masks/1_{name}.png", LABELS > 0)
    with pytest.raises(UserError, match=r"more than one label file: .*`prepare_labels\.py binary` merges"):
        prepare_labels.main(["masks", *(str(tmp_path / name) for name in ("images", "masks", "data"))])
