"""Exports of Label Studio: JSON, and a PNG for each region."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from label_sources import INSIDE, SIZE, SQUARE, Made, draw_images
from segmentation.recipe import UserError
from segmentation.sources.label_studio import decode_brush

ROWS, COLUMNS = np.mgrid[:40, :60] + 0.5
DIAMOND = abs(COLUMNS - 20) + abs(ROWS - 15)  # from its center, on which all that is turned lies


def pack(values, sizes=(3, 4, 8, 16)):
    """Values by the package rle-pack: runs of one value, and in the longest size single ones."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    place = 0
    while place < len(values):
        same = 1
        while place + same < len(values) and values[place + same] == values[place] and same < 1 << sizes[3]:
            same += 1
        if same > 1:
            kind = next(k for k, size in enumerate(sizes) if same <= 1 << size)
            bits += f"1{kind:02b}{same - 1:0{sizes[kind]}b}{values[place]:08b}"
        else:
            same = min(5, len(values) - place)
            bits += f"000{same - 1:03b}" + "".join(f"{value:08b}" for value in values[place : place + same])
        place += same
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


MASK = np.random.default_rng(3).random(SIZE) < 0.02
MASK[30:38, 5:50] = True


def result(kind, labels=("car",), number=0, **value):
    labeled = {kind: list(labels)} if kind else {}
    return {"id": f"r{number}", "type": kind, "value": value | labeled, "original_width": 60, "original_height": 40}


def percent(points):
    return (np.reshape(points, (-1, 2)) / [60, 40] * 100).tolist()


def task(*results, name="/data/upload/1/0f1e2d3c-my%20photo.jpg", number=1, **annotation):
    annotations = [{"id": 2, "was_cancelled": False, "result": results} | annotation]
    return {"id": number, "data": {"image": name}, "annotations": annotations}


@pytest.fixture
def label_studio(tmp_path):
    """Make the labels of tasks of Label Studio; returns what was made of them."""

    def make(*tasks, **options):
        draw_images(tmp_path / "images", "my photo.jpg", "0.jpg")
        (tmp_path / "x.json").write_text(json.dumps(tasks))
        return Made("labelstudio", tmp_path / "images", tmp_path / "x.json", tmp_path / "data", **options)

    return make


def test_packed_values_are_unpacked():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.integers(0, 256, 300), rng.choice([1, 1, 1, 2, 7, 15, 200, 3000], 300))
    assert np.array_equal(decode_brush(pack(values)), values)
    many = np.full(200_000, 7)
    assert np.array_equal(decode_brush(pack(many)), many)


@pytest.mark.parametrize(
    "name",
    [
        "/data/upload/1/0f1e2d3c-my_photo.jpg",
        "/data/upload/1/0f1e2d3c-my%20photo.jpg",
        "/data/local-files/?d=set/my%20photo.jpg",
        "s3://bucket/set/my photo.jpg",
        "https://host/set/my%20photo.jpg?key=1.2",
        "C:\\set\\my photo.jpg",
    ],
)
def test_polygons_of_label_studio_are_painted_on_the_images_of_their_tasks(label_studio, name):
    made = label_studio(task(result("polygonlabels", points=percent(SQUARE)), name=name))
    assert (made.labels["my photo"][INSIDE] == 1).all()
    assert made.labels["my photo"].sum() == 400


def test_rectangles_turn_about_their_corner_and_ellipses_about_their_center(label_studio):
    side = 20 / np.sqrt(2)
    corner = {"x": 20 / 0.6, "y": 5 / 0.4, "width": side / 0.6, "height": side / 0.4, "rotation": 45}
    labels = label_studio(task(result("rectanglelabels", **corner))).labels["my photo"]
    assert (labels[DIAMOND < 9.9] == 1).all()
    assert not labels[DIAMOND > 10.1].any()
    turned = {"x": 50, "y": 50, "radiusX": 20 / 0.6, "radiusY": 5 / 0.4, "rotation": 90}
    labels = label_studio(task(result("ellipselabels", **turned))).labels["my photo"]
    distance = np.hypot((COLUMNS - 30) / 5, (ROWS - 20) / 20)
    assert (labels[distance < 0.99] == 1).all()
    assert not labels[distance > 1.01].any()


def test_brushes_and_bitmaps_of_label_studio_are_painted(label_studio):
    packed = pack(np.repeat(MASK.ravel() * 255, 4))
    brush = result("brushlabels", format="rle", rle=packed)
    content = io.BytesIO()
    Image.fromarray(MASK.astype(np.uint8) * 255).save(content, format="PNG")
    address = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    for one in (brush, result("bitmasklabels", imageDataURL=address)):
        assert np.array_equal(label_studio(task(one)).labels["my photo"] == 1, MASK)


def test_a_region_and_its_label_may_be_two_results(label_studio):
    shape = {"points": percent(SQUARE)}
    results = [result(None, **shape), result("labels", ["van"], **shape), result("choices", ["good"], number=1)]
    made = label_studio(task(*results))
    assert made.classes == ("background", "van")
    assert made.labels["my photo"].sum() == 400


def test_the_short_json_of_label_studio_is_read(label_studio):
    region = {"points": percent(SQUARE), "polygonlabels": ["car"], "original_width": 60, "original_height": 40}
    made = label_studio({"id": 1, "annotation_id": 2, "image": "/data/upload/1/0f1e2d3c-0.jpg", "label": [region]})
    assert made.labels["0"].sum() == 400


def test_of_several_rows_of_a_task_in_the_short_json_the_newest_counts(label_studio, capsys):
    rows = [
        {
            "id": 1,
            "annotation_id": number,
            "updated_at": date,
            "image": "0.jpg",
            "label": [
                {"points": percent(SQUARE), "polygonlabels": [name], "original_width": 60, "original_height": 40}
            ],
        }
        for number, (date, name) in enumerate([("2024-01-01", "old"), ("2024-03-01", "new"), ("2024-02-01", "older")])
    ]
    assert label_studio(*rows).classes == ("background", "new")
    assert "1 tasks have several annotations" in capsys.readouterr().out


def test_regions_of_two_tasks_of_one_image_are_put_together(label_studio):
    first, second = (
        task(result("polygonlabels", [name], points=percent(points)), name="0.jpg", number=number)
        for number, (name, points) in enumerate([("car", SQUARE), ("van", [58, 38, 60, 38, 60, 40])])
    )
    labels = label_studio(first, second).labels["0"]
    assert (labels[INSIDE] == 1).all()
    assert labels[39, 59] == 2


def test_one_annotation_of_a_task_counts_and_canceled_ones_do_not(label_studio, capsys):
    shapes = [result("polygonlabels", [name], points=percent(SQUARE)) for name in ("old", "new", "canceled", "truth")]
    dates = ["2024-01-01", "2024-03-01", "2024-05-01", "2024-02-01"]
    annotations = [
        {"id": i, "result": [shape], "updated_at": date, "was_cancelled": i == 2}
        for i, (shape, date) in enumerate(zip(shapes, dates))
    ]
    other = task(name="0.jpg", was_cancelled=True)
    made = label_studio(task() | {"annotations": annotations}, other)
    assert made.classes == ("background", "new")
    assert set(made.labels) == {"my photo"}
    said = capsys.readouterr().out
    assert "1 tasks have no annotation, or a canceled one: they are left out." in said
    assert "1 tasks have several annotations" in said
    annotations[3]["ground_truth"] = True
    assert label_studio(task() | {"annotations": annotations}).classes == ("background", "truth")


@pytest.mark.parametrize(
    ("region", "said"),
    [
        (result("keypointlabels", x=100 / 3, y=37.5, width=1), "1 regions of car are key points"),
        (
            result("vectorlabels", vertices=[{"x": 20, "y": 37.5}, {"x": 50, "y": 37.5}], closed=False),
            "1 regions of car are open lines",
        ),
        (result("polygonlabels", points=percent([10, 15, 30, 15])), "1 regions of car are without an area"),
        (result("polygonlabels", ["car", "red"], points=percent(SQUARE)), "1 regions have several labels"),
        (result("polygonlabels", [], points=percent(SQUARE)), "1 regions have no label"),
    ],
)
def test_regions_without_an_area_or_a_class_are_left_out(label_studio, region, said, capsys):
    corner = result("polygonlabels", ["van"], 1, points=percent([58, 38, 60, 38, 60, 40]))
    labels = label_studio(task(corner, region)).labels["my photo"]
    assert (labels[13:17, 18:22] == 255).all()
    assert set(np.unique(labels)) == {0, 1, 255}
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        (result("polygonlabels", points=[[1, 2], [3]]), "its outline is not a list of numbers"),
        (
            result("polygonlabels", points=percent(SQUARE)) | {"image_rotation": 90},
            "the image was turned by 90 degrees",
        ),
        (result("brushlabels", rle=[1, 2, 3]), "it is not of the known form|invalid literal"),
        (result("polygonlabels", points=percent(SQUARE)) | {"original_width": None}, "it is not of the known form"),
    ],
)
def test_a_faulty_region_of_label_studio_is_named_and_its_image_left_out(label_studio, faulty, reason, capsys):
    made = label_studio(task(faulty), task(result("polygonlabels", points=percent(SQUARE)), name="0.jpg", number=2))
    assert set(made.labels) == {"0"}
    assert set(made.skipped) == {"my photo.jpg"}
    said = capsys.readouterr().out
    assert any(f"my photo.jpg: region r0 of task 1: {text}" in said for text in reason.split("|"))


@pytest.mark.parametrize("given", ["tasks", "numbers"])
def test_a_png_for_each_region_is_read(tmp_path, given, capsys):
    draw_images(tmp_path / "images", "1.jpg", "photo.jpg")
    (tmp_path / "masks").mkdir()
    for name, mask in (
        ("1-by-1-tag-old-0", ~MASK),
        ("12-by-a@b.c-tag-car door-0", MASK),
        ("12-by-a@b.c-tag-van-1", MASK[::-1]),
    ):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"masks/task-1-annotation-{name}.png")
    (tmp_path / "x.json").write_text(json.dumps([task(name="photo.jpg")]))
    options = {"tasks": tmp_path / "x.json"} if given == "tasks" else {}
    made = Made("labelstudio", tmp_path / "images", tmp_path / "masks", tmp_path / "data", **options)
    ((name, labels),) = made.labels.items()
    assert name == {"tasks": "photo", "numbers": "1"}[given]
    assert made.classes == ("background", "car door", "van")
    expected = np.where(MASK[::-1], 2, np.where(MASK, 1, 0))
    assert np.array_equal(labels, expected)


def test_pngs_of_tasks_without_an_image_ask_for_the_json(tmp_path):
    draw_images(tmp_path / "images", "photo.jpg")
    Image.fromarray(MASK).save(tmp_path / "task-1-annotation-1-by-1-tag-car-0.png")
    message = "give the JSON export by --tasks; the first, task 1: no image is called 1"
    with pytest.raises(UserError, match=message):
        Made("labelstudio", tmp_path / "images", tmp_path, tmp_path / "data")


def test_tasks_without_a_region_are_refused(label_studio):
    for unlabeled in (task(), task(was_cancelled=True)):
        with pytest.raises(UserError, match="No image has an object of a class"):
            label_studio(unlabeled)


def test_other_json_files_are_no_export_of_label_studio(tmp_path):
    draw_images(tmp_path, "0.jpg")
    (tmp_path / "x.json").write_text("[{}]")
    with pytest.raises(UserError, match="is not a JSON export of Label Studio"):
        Made("labelstudio", tmp_path, tmp_path / "x.json", tmp_path / "data")
    with pytest.raises(UserError, match=r"holds no files such as task-1-annotation-2-by-1-tag-car-0\.png"):
        Made("labelstudio", tmp_path, tmp_path, tmp_path / "data")
