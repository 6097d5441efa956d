"""Exports of CVAT, YOLO and Supervisely."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from label_sources import INSIDE, SIZE, SQUARE, Made, draw_images
from segmentation.recipe import UserError

ROWS, COLUMNS = np.mgrid[:40, :60] + 0.5
POINTS = "10,5;30,5;30,25;10,25"
DIAMOND = abs(COLUMNS - 20) + abs(ROWS - 15)  # from its center, on which all that is turned lies


# CVAT

LABELS = "".join(
    f"<label><name>{name}</name><type>{kind}</type>{parent}</label>"
    for name, kind, parent in (
        ("van", "any", ""),
        ("car", "polygon", ""),
        ("night", "tag", ""),
        ("hand", "skeleton", ""),
        ("1", "points", "<parent>hand</parent>"),
    )
)


def cvat_file(path, shapes, name="0.jpg", task="<task><labels>{}</labels></task>"):
    image = f'<image id="0" name="{name}" width="60" height="40">{shapes}</image>'
    path.write_text(f"<annotations><meta>{task.format(LABELS)}</meta>{image}</annotations>")
    return path


@pytest.fixture
def cvat(tmp_path):
    """Make the labels of shapes in CVAT's XML; returns those of the image."""

    def make(*shapes, **fields):
        draw_images(tmp_path / "images", "0.jpg")
        path = cvat_file(tmp_path / "annotations.xml", "".join(shapes), **fields)
        made = Made("cvat", tmp_path / "images", path, tmp_path / "data")
        assert made.classes == ("background", "van", "car")
        return made.labels["0"]

    return make


def polygon(label="car", points=POINTS, more=""):
    return f'<polygon label="{label}" points="{points}" occluded="1" {more}/>'


CORNER = polygon("van", "58,38;60,38;60,40")


@pytest.mark.parametrize("task", ["<task><labels>{}</labels></task>", "<project><labels>{}</labels></project>"])
def test_cvat_polygons_are_painted_by_their_layers(cvat, task):
    above = polygon("van", "15,10;25,10;25,20;15,20", 'z_order="2"')
    labels = cvat(above, polygon(more='z_order="1"'), '<tag label="night"/>', task=task, name="set\\0.jpg")
    expected = np.zeros(SIZE)
    expected[INSIDE] = 2
    expected[10:20, 15:25] = 1
    assert np.array_equal(labels, expected)


def test_frames_of_a_video_in_cvat_are_found_without_their_ending(tmp_path):
    draw_images(tmp_path / "images", "frame_000001.PNG", "a.jpg.png")
    for name, found in (("frame_000001", True), ("a.jpg", False)):
        made = Made("cvat", tmp_path / "images", cvat_file(tmp_path / "a.xml", polygon(), name), tmp_path / "data")
        assert ("frame_000001" in made.labels) == found == (not made.skipped)


def test_cvat_boxes_and_ellipses_are_turned_about_their_centers(cvat):
    half = 10 / np.sqrt(2)
    sides = f'xtl="{20 - half}" ytl="{15 - half}" xbr="{20 + half}" ybr="{15 + half}"'
    labels = cvat(f'<box label="car" {sides} rotation="45"/>')
    assert (labels[DIAMOND < 9.9] == 2).all()
    assert not labels[DIAMOND > 10.1].any()
    labels = cvat('<ellipse label="car" cx="30" cy="20" rx="20" ry="5" rotation="30"/>')
    along = np.cos(np.pi / 6) * (COLUMNS - 30) + np.sin(np.pi / 6) * (ROWS - 20)  # clockwise: down to the right
    across = -np.sin(np.pi / 6) * (COLUMNS - 30) + np.cos(np.pi / 6) * (ROWS - 20)
    distance = np.hypot(along / 20, across / 5)
    assert (labels[distance < 0.99] == 2).all()
    assert not labels[distance > 1.01].any()


def test_cvat_masks_are_painted(cvat):
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    flat = np.concatenate([[False], mask.ravel()])
    lengths = np.diff([0, *np.flatnonzero(flat[1:] != flat[:-1]), mask.size])
    text = ", ".join(map(str, lengths))
    labels = cvat(f'<mask label="car" rle="{text}" left="50" top="3" width="9" height="7" z_order="0"/>')
    assert np.array_equal(labels[3:10, 50:59] == 2, mask)
    assert (labels == 2).sum() == mask.sum()


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ('<polyline label="car" points="10,10;30,10"/>', "are drawn as polyline"),
        ('<points label="car" points="11,10;14,10;17,10;20,10;23,10;26,10;29,10"/>', "are drawn as points"),
        (
            '<skeleton label="hand"><points label="1" points="9,5"/><points label="1" points="31,15"/></skeleton>',
            "objects of hand are drawn as skeleton",
        ),
        (
            '<skeleton label="hand"><attribute name="side"/><points points="9,5"/><points points="31,15"/></skeleton>',
            "objects of hand are drawn as skeleton",
        ),
        ('<cuboid label="car" xtl1="9" ytl1="5" xbl1="9" ybl1="15" xtr1="31" ytr1="5"/>', "are drawn as cuboid"),
        (polygon(points="10,10;30,10;20,10"), "objects of car have no area"),
    ],
)
def test_what_has_no_area_in_cvat_is_left_out_and_counted(cvat, shape, kind, capsys):
    labels = cvat(CORNER, shape)
    assert (labels[9:11, 12:28] == 255).all()
    assert set(np.unique(labels)) == {0, 1, 255}
    assert kind in capsys.readouterr().out


def test_a_faulty_object_of_cvat_is_named_and_what_is_around_it_left_out(cvat, capsys):
    labels = cvat(CORNER, polygon(points="10,5;30,5;30"))
    assert (labels[5:30, 10:30] == 255).all()
    assert labels[39, 59] == 1
    assert "0.jpg: object 2 (polygon of car): its outline is not a list of numbers" in capsys.readouterr().out


def test_objects_of_one_image_in_two_tasks_of_cvat_are_put_together(cvat, capsys):
    labels = cvat(CORNER, '</image><image id="1" name="0.jpg" width="60" height="40">', polygon())
    assert labels[39, 59] == 1
    assert (labels[INSIDE] == 2).all()
    assert "1 images are annotated in several places: their objects are put together." in capsys.readouterr().out


def test_images_of_one_name_in_the_subsets_of_a_cvat_project_are_told_apart(tmp_path):
    draw_images(tmp_path / "images", "Train/0.jpg", "Validation/0.jpg")
    more = '</image><image id="1" name="0.jpg" subset="Validation" width="60" height="40">' + polygon("van")
    path = cvat_file(tmp_path / "a.xml", polygon() + more, name='0.jpg" subset="Train')
    made = Made("cvat", tmp_path / "images", path, tmp_path / "data")
    assert (made.labels["Train_0"][INSIDE] == 2).all()
    assert (made.labels["Validation_0"][INSIDE] == 1).all()


def test_an_image_of_several_sizes_in_cvat_is_left_out(cvat):
    with pytest.raises(KeyError):
        cvat(CORNER, '</image><image id="1" name="0.jpg" width="40" height="60">', polygon())


def test_objects_outside_the_frame_are_not_painted(cvat):
    assert not (cvat(CORNER, polygon(more='outside="1"')) == 2).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations><track id='0'/></annotations>", "holds tracks of a video: export the task as 'CVAT for images"),
        ("<annotations></annotations>", "is not a file of the form 'CVAT for images 1.1'"),
        ("<annotation><object/></annotation>", "is not a file of the form 'CVAT for images 1.1'"),
        ("<annotations>", "cannot be read as XML"),
    ],
)
def test_other_xml_files_are_refused(tmp_path, text, message):
    draw_images(tmp_path, "0.jpg")
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(UserError, match=message):
        Made("cvat", tmp_path, tmp_path / "x.xml", tmp_path / "data")


# YOLO

SHARES = " ".join(f"{value / side:.6f}" for value, side in zip(SQUARE, [60, 40] * 4))


@pytest.fixture
def yolo(tmp_path):
    """Make the labels of lines of YOLO; returns those of the image."""

    def make(*lines, names="names: [car, van]", **options):
        draw_images(tmp_path / "images/train", "0.jpg")
        (tmp_path / "labels/train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels/train/0.txt").write_text("\n".join(lines))
        (tmp_path / "data.yaml").write_text(names)
        made = Made("yolo", tmp_path / "images/train", tmp_path / "labels/train", tmp_path / "data", **options)
        assert made.classes == ("background", "car", "van")
        return made.labels["0"]

    return make


@pytest.mark.parametrize("names", ["names: [car, van]", "names:\n  0: car\n  1: van", "nc: 2\nnames: ['car', 'van']"])
def test_yolo_polygons_are_painted(yolo, names):
    labels = yolo(f"1 {SHARES}", "", names=names)
    assert (labels[INSIDE] == 2).all()
    assert (labels == 2).sum() == 400


def test_yolo_polygons_are_shares_of_the_image_as_shown(tmp_path):
    draw_images(tmp_path / "images", "0.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "images/0.jpg").save(tmp_path / "images/0.jpg", exif=exif)
    (tmp_path / "0.txt").write_text("0 0 0 0.5 0 0.5 0.5 0 0.5")
    (tmp_path / "classes.txt").write_text("car\n")
    labels = Made("yolo", tmp_path / "images", tmp_path, tmp_path / "data").labels["0"]
    assert labels.shape == (60, 40)
    assert (labels[:30, :20] == 1).all()
    assert labels.sum() == 600


@pytest.mark.parametrize("names", ["names: car, van", "names: \"['car', 'van']\""])
def test_names_of_yolo_may_be_one_text(yolo, names):
    assert (yolo(f"1 {SHARES}", names=names)[INSIDE] == 2).all()


def test_yolo_labels_of_arrays_are_painted(tmp_path):
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images/0.npy", np.zeros((*SIZE, 5), np.uint16))
    (tmp_path / "0.txt").write_text(f"0 {SHARES}")
    (tmp_path / "data.yaml").write_text("names: car")
    made = Made("yolo", tmp_path / "images", tmp_path, tmp_path / "data")
    assert made.classes == ("background", "car")
    assert (made.labels["0"][INSIDE] == 1).all()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 0.333333 0.375 0.333333 0.5", "1 objects of van are boxes, as of a detection set"),
        ("1 0.333333 0.375 0.333333 0.5 0.9", "1 objects of van are boxes, as of a detection set"),
        (f"7 {SHARES}", "1 objects have a class number without a name"),
        (f"1 {SHARES} 0.2", "0.jpg: line 2 of 0.txt: its outline has 9 numbers, which are not pairs"),
        ("car 0 0 0.9 0 0.9 0.9", "0.jpg: line 2 of 0.txt: could not convert string to float: 'car'"),
    ],
)
def test_yolo_lines_without_a_polygon_or_a_class_are_left_out(yolo, line, said, capsys):
    labels = yolo("0 0.95 0.9 1 0.9 1 1 0.95 1", line)
    assert (labels[INSIDE] == 255).all() or "'car'" in said
    assert not (labels == 2).any()
    assert said in capsys.readouterr().out


def test_an_image_with_yolo_coordinates_in_pixels_is_left_out(yolo, tmp_path, capsys):
    with pytest.raises(KeyError):
        yolo("0 10 5 30 5 30 25")
    said = capsys.readouterr().out
    assert "line 1 of 0.txt: coordinates are shares of the image from 0 to 1, got 30; the image is left out" in said


def test_images_without_a_text_file_are_said_to_be_empty(yolo, tmp_path, capsys):
    draw_images(tmp_path / "images/train", "1.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/train").mkdir()
    (tmp_path / "labels/train/9.txt").touch()
    yolo(f"0 {SHARES}")
    said = capsys.readouterr().out
    assert "1 images have no text file: nothing is in them" in said
    assert "1 text files have no image." in said
    assert "1 images have no objects." in said


def test_yolo_sets_that_are_no_segmentation_are_refused(yolo, tmp_path):
    with pytest.raises(UserError, match="has no outlines, which segmentation needs: 1 objects of car are boxes"):
        yolo("0 0.3 0.3 0.3 0.3")
    with pytest.raises(UserError, match="is of a set of poses"):
        yolo("0 0.3 0.3 0.3 0.3", names="names: [car, van]\nkpt_shape: [17, 3]")
    with pytest.raises(UserError, match="does not tell the names of the classes"):
        yolo("0 0.3 0.3 0.3 0.3", names="nc: 2")
    (tmp_path / "names.txt").write_text("car")
    with pytest.raises(UserError, match="holds no text file with the name of an image"):
        Made("yolo", tmp_path / "images", tmp_path / "images", tmp_path / "data", names=tmp_path / "names.txt")
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(UserError, match="give one by --names"):
        Made("yolo", tmp_path / "images/train", tmp_path / "labels/train", tmp_path / "data")


# Supervisely


@pytest.fixture
def supervisely(tmp_path):
    """Make the labels of objects of Supervisely; returns those of the image."""

    def make(*objects, folder="set"):
        draw_images(tmp_path / f"project/{folder}/img", "0.jpg")
        (tmp_path / f"project/{folder}/ann").mkdir(exist_ok=True)
        classes = [{"title": name, "shape": "any"} for name in ("van", "car")]
        (tmp_path / "project/meta.json").write_text(json.dumps({"classes": classes}))
        content = {"size": {"height": 40, "width": 60}, "objects": objects}
        (tmp_path / f"project/{folder}/ann/0.jpg.json").write_text(json.dumps(content))
        made = Made("supervisely", tmp_path / "project", tmp_path / "data")
        assert made.classes == ("background", "van", "car")
        return made.labels[f"{folder}_0"]

    return make


def drawn(kind, points, holes=(), name="car"):
    return {"id": 7, "classTitle": name, "geometryType": kind, "points": {"exterior": points, "interior": list(holes)}}


def test_polygons_of_supervisely_have_holes(supervisely):
    square = [[9.5, 4.5], [29.5, 4.5], [29.5, 24.5], [9.5, 24.5]]  # its points are centers of pixels
    hole = [[14.5, 9.5], [24.5, 9.5], [24.5, 19.5], [14.5, 19.5]]
    labels = supervisely(drawn("rectangle", [[0, 0], [19, 14]], name="van"), drawn("polygon", square, [hole]))
    expected = np.zeros(SIZE)
    expected[:15, :20] = 1
    expected[INSIDE] = 2
    expected[10:20, 15:25] = 0
    expected[10:15, 15:20] = 1
    assert np.array_equal(labels, expected)


def test_bitmaps_of_supervisely_are_painted(supervisely):
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    content = io.BytesIO()
    Image.fromarray(mask).save(content, format="PNG", transparency=0)
    data = base64.b64encode(zlib.compress(content.getvalue())).decode()
    one = {"id": 1, "classTitle": "car", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [50, 3]}}
    labels = supervisely(one)
    assert np.array_equal(labels[3:10, 50:59] == 2, mask)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (drawn("line", [[10, 10], [30, 10]]), "1 objects of car are drawn as line, without an area"),
        (drawn("point", [[20, 10]]), "1 objects of car are drawn as point, without an area"),
        (drawn("cuboid_2d", [[10, 5], [30, 15]]), "1 objects of car are drawn as cuboid_2d"),
        (drawn("polygon", [[0, 0], [60, 0], [60]]), "set/0.jpg: object 7: its outline is not a list of numbers"),
        (drawn("rectangle", [[0, 0], [60, 60]], name="bus"), "set/0.jpg: object 7: its class 'bus' is not in meta"),
    ],
)
def test_what_has_no_area_in_supervisely_is_left_out(supervisely, one, said, capsys):
    labels = supervisely(drawn("rectangle", [[58, 38], [59, 39]], name="van"), one)
    assert (labels[9:11, 18:22] == 255).all()
    assert said in capsys.readouterr().out


def test_other_folders_are_no_project_of_supervisely(tmp_path):
    with pytest.raises(UserError, match=r"is not a project of Supervisely: it has no meta\.json"):
        Made("supervisely", tmp_path, tmp_path / "data")
