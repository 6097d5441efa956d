"""What label tools write: dialects of COCO and LabelMe."""

import base64
import json
import math
import unicodedata

import numpy as np
import pytest

import prepare_labels
from label_sources import INSIDE, PAIRS, SIZE, SQUARE, Made, draw_images
from segmentation.recipe import UserError
from segmentation.sources.regions import decode_run_lengths, encode_run_lengths


def coco_file(path, annotations, names=("0.jpg",), categories=({"id": 1, "name": "car"},), **fields):
    content = {
        "images": [{"id": i, "file_name": name, "height": 40, "width": 60} | fields for i, name in enumerate(names)],
        "annotations": [{"image_id": 0, "category_id": 1, "id": 100 + i} | a for i, a in enumerate(annotations)],
        "categories": list(categories),
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def coco(tmp_path):
    """Make the labels of a COCO file of the image 0.jpg; returns those of that image and the names of the classes."""

    def make(annotations, **fields):
        draw_images(tmp_path / "images", "0.jpg")
        path = coco_file(tmp_path / "x.json", annotations, **fields)
        made = Made("coco", tmp_path / "images", path, tmp_path / "data")
        return made.labels["0"], list(made.classes)

    return make


# COCO


@pytest.mark.parametrize("root", ["cars-v2", "car"])
def test_the_project_that_roboflow_lists_first_is_no_class(coco, root):
    categories = [{"id": 0, "name": root, "supercategory": "none"}]
    categories += [{"id": i, "name": name, "supercategory": root} for i, name in ((1, "car"), (2, "bus"))]
    labels, classes = coco([{"segmentation": [SQUARE]}], categories=categories)
    assert classes == ["background", "car", "bus"]
    assert (labels[INSIDE] == 1).all()


def test_a_category_of_which_others_are_kinds_is_a_class_if_it_has_objects(coco):
    categories = [{"id": 0, "name": "car", "supercategory": "none"}, {"id": 1, "name": "bus", "supercategory": "car"}]
    labels, classes = coco([{"segmentation": [SQUARE], "category_id": 0}], categories=categories)
    assert classes == ["background", "car", "bus"]
    assert labels[10, 15] == 1


@pytest.mark.parametrize(
    ("spelled", "name"), [("_background_", "background"), ("Background", "Background"), ("BACKGROUND", "BACKGROUND")]
)
def test_a_category_for_the_background_is_the_background(coco, spelled, name):
    categories = [{"id": 0, "name": spelled}, {"id": 1, "name": "car"}]
    hole = [15, 10, 25, 10, 25, 20, 15, 20]
    objects = [{"segmentation": [hole], "category_id": 0}, {"segmentation": [SQUARE]}]
    labels, classes = coco(objects, categories=categories)
    assert classes == [name, "car"]
    expected = np.zeros(SIZE)
    expected[INSIDE] = 1
    expected[10:20, 15:25] = 0
    assert np.array_equal(labels, expected)


def test_categories_of_one_name_become_one_class(coco, capsys):
    categories = [{"id": 1, "name": "car"}, {"id": 5, "name": "car "}]
    labels, classes = coco([{"segmentation": [SQUARE], "category_id": 5}], categories=categories)
    assert classes == ["background", "car"]
    assert labels[10, 15] == 1
    assert "2 categories are called car: they become one class." in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "images\\0.jpg",
        "images/0.jpg",
        "/home/me/images/0.jpg",
        "C:\\Users\\me\\0.jpg",
        "../images/0.jpg",
        "https://host/data/images/0.jpg?key=1",
        "1f2e3d4c-0.jpg",
    ],
)
@pytest.mark.parametrize("given", [".", "images"])
def test_file_names_with_folders_of_another_computer_are_found(tmp_path, name, given):
    draw_images(tmp_path / "set/images", "0.jpg")
    annotations = coco_file(tmp_path / "x.json", [{"segmentation": [SQUARE]}], [name])
    ((_, labels),) = Made("coco", tmp_path / "set" / given, annotations, tmp_path / "set/data").labels.items()
    assert (labels[INSIDE] == 1).all()


def test_an_image_of_which_only_the_address_is_known_is_found(tmp_path):
    draw_images(tmp_path / "images", "0.jpg")
    fields = {"file_name": None, "coco_url": "http://images.cocodataset.org/val2017/0.jpg"}  # as in LVIS
    annotations = coco_file(tmp_path / "x.json", [{"segmentation": [SQUARE]}], **fields)
    assert (Made("coco", tmp_path / "images", annotations, tmp_path / "data").labels["0"][INSIDE] == 1).all()


def test_names_that_macos_spells_in_another_way_are_found(tmp_path):
    draw_images(tmp_path / "images", unicodedata.normalize("NFD", "grün.jpg"))
    annotations = coco_file(tmp_path / "x.json", [{"segmentation": [SQUARE]}], ["grün.jpg"])
    assert len(Made("coco", tmp_path / "images", annotations, tmp_path / "data").labels) == 1


def test_an_image_of_which_two_have_the_name_is_not_guessed(tmp_path):
    draw_images(tmp_path / "images", "a/0.jpg", "b/0.jpg")
    annotations = coco_file(tmp_path / "x.json", [{"segmentation": [SQUARE]}], ["c/0.jpg", "a/0.jpg", "old/b/0.jpg"])
    made = Made("coco", tmp_path / "images", annotations, tmp_path / "data")
    assert made.skipped == {"c/0.jpg": "a/0.jpg and b/0.jpg have its name: give the folder that it is in"}
    assert set(made.labels) == {"a_0", "b_0"}


def test_of_several_images_of_a_name_the_one_in_the_named_folder_is_taken(tmp_path):
    draw_images(tmp_path / "images", "0.jpg", "1f2e3d4c-0.jpg", "set/a/0.jpg")
    annotations = coco_file(tmp_path / "x.json", [{"segmentation": [SQUARE]}], ["old\\a\\0.jpg"])
    made = Made("coco", tmp_path / "images", annotations, tmp_path / "data")
    assert (made.labels["set_a_0"][INSIDE] == 1).all()


@pytest.mark.parametrize(("name", "other"), [("A.jpg", "a.jpg"), ("a b.jpg", "a_b.jpg")])
def test_of_several_spellings_of_a_name_the_same_one_is_taken(tmp_path, name, other):
    draw_images(tmp_path / "images", name)
    if (tmp_path / "images" / other).exists():
        pytest.skip("files of one name in other letters are one file here")
    draw_images(tmp_path / "images", other)
    annotations = coco_file(tmp_path / "x.json", [{"segmentation": [SQUARE]}], [f"images/{name}"])
    assert set(Made("coco", tmp_path / "images", annotations, tmp_path / "data").labels) == {name[:-4]}


def test_two_names_are_not_taken_for_one_file(tmp_path):
    draw_images(tmp_path / "images", "0.jpg", "1.jpg")
    annotations = coco_file(tmp_path / "x.json", [{"segmentation": [SQUARE]}], ["a/0.jpg", "b/0.jpg", "1.jpg"])
    made = Made("coco", tmp_path / "images", annotations, tmp_path / "data")
    assert made.skipped == {"0.jpg": "it is the only one that may be a/0.jpg and b/0.jpg"}
    assert set(made.labels) == {"1"}


@pytest.mark.parametrize("area", [None, 0, "", "600", -1])
def test_the_area_of_objects_is_that_of_their_outlines(coco, area):
    small = [15, 10, 25, 10, 25, 20, 15, 20]
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "door"}]
    objects = [{"segmentation": [small], "category_id": 2, "area": area}, {"segmentation": [SQUARE], "area": area}]
    labels, _ = coco(objects, categories=categories)
    assert (labels[10:20, 15:25] == 2).all()


def test_ids_may_be_text_in_one_place_and_numbers_in_another(coco):
    objects = [{"segmentation": [SQUARE], "image_id": "0", "category_id": 1.0}]
    labels, classes = coco(objects, categories=[{"id": "10", "name": "bus"}, {"id": "1", "name": "car"}])
    assert classes == ["background", "car", "bus"]
    assert (labels[INSIDE] == 1).all()


@pytest.mark.parametrize("shape", [SQUARE, PAIRS, [PAIRS], [list(map(str, SQUARE))]])
def test_outlines_are_read_in_every_spelling(coco, shape):
    labels, _ = coco([{"segmentation": shape}])
    assert (labels == 1).sum() == 400
    assert (labels[INSIDE] == 1).all()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ([[*SQUARE, 7]], "its outline has 9 numbers, which are not pairs"),
        ([[*SQUARE, math.nan, 3]], "its outline has a coordinate that is no number"),
        ([SQUARE, ["x"] * 6], "its outline is not a list of numbers"),
        ([[*SQUARE, None, 3]], "its outline has a coordinate that is no number"),
        ({"counts": [5, 6], "size": SIZE}, "the run lengths add up to 11 pixels, not 2400"),
        ({"counts": [0, 2400], "size": [60, 40]}, "its run lengths are of 40×60 pixels, the image of 60×40"),
        ({"counts": "~~~", "size": SIZE}, "the run lengths add up to"),
        ("none", "its outline is not a list of numbers"),
        (7, "it is not of the known form"),
    ],
)
def test_a_faulty_object_is_named_and_its_box_is_left_out(coco, shape, reason, capsys):
    corner = [50, 30, 60, 30, 60, 40, 50, 40]
    labels, _ = coco([{"segmentation": [corner]}, {"segmentation": shape, "bbox": [10, 5, 20, 20]}])
    assert (labels[INSIDE] == 255).all()
    assert (labels[30:, 50:] == 1).all()
    assert labels[0, 59] == 0
    said = capsys.readouterr().out
    assert f"0.jpg: annotation 101: {reason}" in said
    assert "1 annotations cannot be read" in said


def test_an_image_is_left_out_if_nobody_knows_where_a_faulty_object_lies(tmp_path, capsys):
    names = [f"{i}.jpg" for i in range(11)]
    draw_images(tmp_path / "images", *names)
    objects = [{"segmentation": [SQUARE]}, {"segmentation": [], "image_id": 7}]
    annotations = coco_file(tmp_path / "x.json", objects, names)
    prepare_labels.main([*map(str, ["coco", tmp_path / "images", annotations, tmp_path / "data", "--workers", 1])])
    assert {path.stem for path in tmp_path.glob("data/labels/train/*")} == {str(i) for i in range(11) if i != 7}
    said = capsys.readouterr().out
    assert "7.jpg: annotation 101: it has neither an outline nor a box; the image is left out" in said
    assert "skipped: 1 of 11" in said


@pytest.mark.parametrize("mark", [{"iscrowd": 1}, {"iscrowd": "1"}, {"ignore": True}])
def test_crowds_are_left_out_below_the_objects_in_them(coco, mark, capsys):
    crowd = {"segmentation": [[0, 0, 60, 0, 60, 40, 0, 40]], **mark}
    labels, _ = coco([{"segmentation": [SQUARE]}, crowd])
    assert (labels[INSIDE] == 1).all()
    assert (labels == 255).sum() == 2400 - 400
    assert "1 crowds of car (if CVAT or datumaro wrote them: --crowds paint): their" in capsys.readouterr().out


def test_masks_that_tools_call_crowds_can_be_painted(tmp_path):
    draw_images(tmp_path / "images", "0.jpg")
    annotations = coco_file(tmp_path / "x.json", [{"segmentation": {"counts": [0, 2400], "size": SIZE}, "iscrowd": 1}])
    paths = [tmp_path / "images", annotations, tmp_path / "data"]
    with pytest.raises(UserError, match=r"needs: 1 crowds of car .*--crowds paint"):
        Made("coco", *paths)
    assert (Made("coco", *paths, crowds="paint").labels["0"] == 1).all()


def test_objects_of_unknown_categories_and_outlines_without_an_area_are_left_out(coco, capsys):
    line = [[40, 5, 55, 5], [40, 5, 50, 5, 55, 5]]
    objects = [{"segmentation": [SQUARE]}, {"segmentation": [[0, 30, 9, 30, 9, 40, 0, 40]], "category_id": 9}]
    labels, _ = coco([*objects, {"segmentation": line}, {"segmentation": [SQUARE], "image_id": 3}])
    assert (labels[30:, :9] == 255).all()
    assert (labels[0:10, 40:55] == 255).all()
    assert (labels[INSIDE] == 1).all()
    said = capsys.readouterr().out
    assert "1 objects are of a category that the file does not list" in said
    assert "2 outlines of car have no area" in said
    assert "1 annotations are of images that the file does not list, the first has the id 103." in said


@pytest.mark.parametrize("shape", [[[]], [[10, 5, 30, 25]]])
def test_outlines_without_an_area_count_as_none_if_there_is_a_box(coco, shape, capsys):
    corner = [58, 38, 60, 38, 60, 40]
    labels, _ = coco([{"segmentation": [corner]}, {"segmentation": shape, "bbox": [10, 5, 20, 20]}])
    assert (labels[INSIDE] == 255).all()
    assert (labels == 255).sum() == 400
    assert "1 objects of car have a box, but no outline" in capsys.readouterr().out


def test_an_image_with_an_object_without_points_or_a_box_is_left_out(tmp_path):
    draw_images(tmp_path / "images", "0.jpg")
    annotations = coco_file(tmp_path / "x.json", [{"segmentation": [[]]}])
    made = Made("coco", tmp_path / "images", annotations, tmp_path / "data")
    assert made.skipped == {"0.jpg": "annotation 100 cannot be read: its outline has no points"}


def test_an_object_without_an_outline_whose_box_is_a_line_is_left_out(coco, capsys):
    labels, _ = coco(
        [{"segmentation": [], "bbox": [10, 15, 20, 0]}, {"segmentation": [[50, 30, 60, 30, 60, 40, 50, 40]]}]
    )
    assert (labels[12:18, 10:30] == 255).all()
    assert labels[35, 55] == 1
    assert "1 objects of car have a box, but no outline" in capsys.readouterr().out


def test_run_lengths_of_parts_are_one_object(coco):
    halves = [np.zeros(SIZE, bool), np.zeros(SIZE, bool)]
    halves[0][5:25, 10:20] = halves[1][5:25, 20:30] = True
    shape = [{"counts": encode_run_lengths(half), "size": SIZE} for half in halves]
    labels, _ = coco([{"segmentation": shape}])
    assert (labels[INSIDE] == 1).all()
    assert labels.sum() == 400


def test_categories_of_one_id_are_refused(coco):
    with pytest.raises(UserError, match=r"x\.json: two categories have the id 1, car and bus"):
        coco([{"segmentation": [SQUARE]}], categories=[{"id": 1, "name": "car"}, {"id": 1, "name": "bus"}])


def test_a_folder_in_place_of_a_json_file_is_told_what_it_holds(tmp_path):
    draw_images(tmp_path / "train", "0.jpg")
    coco_file(tmp_path / "train/_annotations.coco.json", [])
    with pytest.raises(UserError, match=r"train is a folder: give the JSON file in it, _annotations\.coco\.json\.$"):
        Made("coco", tmp_path / "train", tmp_path / "train", tmp_path / "data")


def test_a_file_of_boxes_alone_is_refused(coco):
    with pytest.raises(UserError, match=r"x\.json has no outlines, which segmentation needs: 1 objects of car have a"):
        coco([{"segmentation": [], "bbox": [10, 5, 20, 20]}])


def test_run_lengths_are_read_and_written_as_by_pycocotools():
    tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for share in (0, 0.001, 0.1, 0.5, 1):
        mask = rng.random(rng.integers(1, 300, 2)) < share
        encoded = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert np.array_equal(decode_run_lengths(encoded["counts"].decode(), mask.shape), mask)
        again = tools.frPyObjects({"counts": encode_run_lengths(mask), "size": list(mask.shape)}, *mask.shape)
        assert again["counts"] == encoded["counts"]


@pytest.mark.parametrize("size", [{"height": None, "width": None}, {"height": "40", "width": "60"}, {"height": 0}])
def test_sizes_of_images_may_be_missing_or_text(coco, size):
    labels, _ = coco([{"segmentation": [SQUARE]}], **size)
    assert (labels[INSIDE] == 1).all()


# LabelMe


def shape(kind, points, label="car", **fields):
    return {"shape_type": kind, "points": points, "label": label} | fields


RECTANGLE = shape("rectangle", [[10, 5], [30, 25]])


def labelme_file(path, *shapes, **fields):
    content = {"imagePath": f"{path.stem}.jpg", "imageData": None, "imageHeight": 40, "imageWidth": 60}
    content["shapes"] = shapes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | fields))


@pytest.fixture
def labelme(tmp_path):
    """Make the labels of a LabelMe file of an image; returns them."""

    def make(*shapes, **fields):
        draw_images(tmp_path / "set", "0.jpg")
        corner = {"label": "bus", "points": [[58, 38], [60, 38], [60, 40]]}
        labelme_file(tmp_path / "set/0.json", corner, *shapes, **fields)
        return Made("labelme", tmp_path / "set", tmp_path / "data").labels["0"]

    return make


@pytest.mark.parametrize("kind", ["rectangle", "rotation", "oriented_rectangle", "quadrilateral", "polygon", None])
def test_four_points_are_an_outline_whatever_the_shape_is_called(labelme, kind):
    labels = labelme(shape(kind, PAIRS))
    assert (labels[INSIDE] == 2).all()
    assert (labels == 2).sum() == 400


def test_turned_rectangles_keep_their_angle(labelme):
    labels = labelme(shape("rotation", [[20, 5], [30, 15], [20, 25], [10, 15]]))
    rows, columns = np.mgrid[:40, :60] + 0.5
    distance = abs(columns - 20) + abs(rows - 15)
    assert (labels[distance < 9.9] == 2).all()
    assert not labels[(distance > 10.1) & (columns < 50)].any()


@pytest.mark.parametrize(
    ("kind", "points", "covered"),
    [
        ("linestrip", [[10, 10], [30, 10], [30, 30]], (slice(6, 14), slice(10, 30))),
        ("line", [[10, 10], [30, 10]], (slice(6, 14), slice(10, 30))),
        ("point", [[20, 20]], (slice(17, 23), slice(17, 23))),
        ("points", [[20, 20], [30, 20]], (slice(17, 23), slice(27, 33))),
        ("polygon", [[10, 10], [30, 10]], (slice(6, 14), slice(10, 30))),
        ("rectangle", [[20, 20]], (slice(17, 23), slice(17, 23))),
        ("circle", [[20, 20]], (slice(17, 23), slice(17, 23))),
        ("cuboid", PAIRS, INSIDE),
    ],
)
def test_shapes_without_an_area_are_left_out_and_counted(labelme, kind, points, covered, capsys):
    labels = labelme(shape(kind, points, "road"))
    assert (labels[covered] == 255).all()
    assert set(np.unique(labels)) == {0, 1, 255}
    assert f"of the type {kind}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "faulty",
    [
        shape("polygon", [[10, 5], [30, 5, 30, 25]]),
        shape("polygon", [[10, 5], [30, math.nan], [30, 25]]),
        shape("mask", [[5, 5], [30, 30]], mask="no PNG"),
    ],
)
def test_a_faulty_shape_is_named_and_what_is_around_it_left_out(labelme, faulty, capsys):
    labels = labelme(faulty)
    assert (labels[INSIDE] == 255).all()
    assert labels[39, 59] == 1
    assert "0.json: shape 2 (car): " in capsys.readouterr().out


def test_the_number_0_is_a_label(tmp_path):
    draw_images(tmp_path, "0.jpg")
    labelme_file(tmp_path / "0.json", RECTANGLE | {"label": 0})
    assert Made("labelme", tmp_path, tmp_path / "data").classes == ("background", "0")


def test_an_image_of_two_labelme_files_is_left_out(tmp_path):
    draw_images(tmp_path, "0.jpg", "1.jpg")
    for name, label in (("0", "car"), ("0_anno2", "bus")):
        labelme_file(tmp_path / f"{name}.json", RECTANGLE | {"label": label}, imagePath="0.jpg")
    labelme_file(tmp_path / "1.json", RECTANGLE)
    made = Made("labelme", tmp_path, tmp_path / "data")
    assert made.skipped == dict.fromkeys(("0.json", "0_anno2.json"), "0.json and 0_anno2.json are of one image, 0.jpg")
    assert set(made.labels) == {"1"}


def test_shapes_without_a_label_are_left_out(labelme, capsys):
    assert (labelme(RECTANGLE | {"label": None})[INSIDE] == 255).all()
    assert "1 shapes have no label" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["..\\images\\0.jpg", "C:\\work\\images\\0.jpg", "/home/me/images/0.jpg", "0.jpg", "images/0.jpg"]
)
def test_images_elsewhere_are_found(tmp_path, name):
    draw_images(tmp_path / "images", "0.jpg")
    labelme_file(tmp_path / "annotations/0.json", RECTANGLE, imagePath=name)
    for options in ({"images": tmp_path / "images"}, {}) if "images" in name else ({"images": tmp_path / "images"},):
        made = Made("labelme", tmp_path / "annotations", tmp_path / "data", **options)
        assert (made.labels["0"][INSIDE] == 1).all()


def test_missing_images_of_labelme_ask_for_their_folder(tmp_path):
    labelme_file(tmp_path / "annotations/0.json", RECTANGLE, imagePath="C:\\work\\0.jpg")
    with pytest.raises(UserError, match=r"0\.json: 0\.jpg is not there: give the folder of the images by --images\.$"):
        Made("labelme", tmp_path / "annotations", tmp_path / "data")


def test_an_image_that_was_renamed_with_its_annotations_is_found(tmp_path):
    draw_images(tmp_path / "set", "new.jpg")
    labelme_file(tmp_path / "set/new.json", RECTANGLE, imagePath="IMG_1.JPG")
    assert (Made("labelme", tmp_path / "set", tmp_path / "data").labels["new"][INSIDE] == 1).all()


def test_an_embedded_image_goes_before_one_of_its_name_in_another_folder(tmp_path):
    draw_images(tmp_path / "set", "0.jpg", "a/0.jpg", "b/other.jpg")
    content = (tmp_path / "set/b/other.jpg").read_bytes()
    data = "data:image/jpeg;base64," + base64.b64encode(content).decode()
    labelme_file(tmp_path / "set/b/0.json", RECTANGLE, imageData=data)
    Made("labelme", tmp_path / "set", tmp_path / "data")
    assert (tmp_path / "data/images/train/b_0.jpg").read_bytes() == content
