"""Polygons of predictions in the forms of label tools, read back by `prepare_labels.py` and by the tools' own code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from label_sources import Made
from segmentation import scenes
from segnext_timm.cli import main
from segnext_timm.errors import ImageError, OptionError
from segnext_timm.models.model_info import ModelInfo
from segnext_timm.prediction.files import find_images, outputs, predict_file, predict_files
from segnext_timm.prediction.polygons import add_to_coco, write_names, write_polygons
from small_models import narrow

pytest.importorskip("rasterio.features")
pytest.importorskip("shapely")
FORMS = ("coco", "labelme", "yolo")


def model_of(names, **options):
    cfg = {"mean": [0.4] * 3, "std": [0.25] * 3, "label_names": list(names)}
    torch.manual_seed(0)
    model = narrow(classes=len(names), pretrained_cfg=cfg, **options).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    return model


def draw(folder, *names, size=96):
    """Draw scenes; returns their labels."""
    truth = []
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image, labels = scenes.draw(0, number, size)
        Image.fromarray(image[:, : size - 7 * number]).save(folder / name)
        truth.append(labels[:, : size - 7 * number])
    return truth


def read_back(form, images, out, target, **options):
    """Labels that `prepare_labels.py` makes of polygons, and the classes."""
    paths = {"coco": [images, out / "annotations.json"], "labelme": [out], "yolo": [images, out]}[form]
    options |= {"classes": out / "classes.txt"} if form == "labelme" else {}
    made = Made(form, *paths, target, **options)
    assert not made.skipped
    return made.labels, made.classes


@pytest.mark.parametrize("form", FORMS)
def test_predictions_come_back_from_label_tools_pixel_by_pixel(tmp_path, form):
    draw(tmp_path / "photos", "a.jpg", "b/c.png")
    out = tmp_path / "out"
    places = find_images([tmp_path / "photos"], out)
    predict_files(model_of(scenes.CLASSES), places, out, areas=True, save_as=form)
    labels, classes = read_back(form, tmp_path / "photos", out, tmp_path / "data", background="-")
    assert classes == scenes.CLASSES
    assert sorted(labels) == ["a", "b_c"]
    for name, found in labels.items():
        assert np.array_equal(found, np.asarray(Image.open(out / f"{name.replace('_', '/')}.png")))


def holes():
    """Labels of a binary model: two rings in each other with islands, one that touches a corner, and lone pixels."""
    labels = np.zeros((60, 80), np.uint8)
    labels[5:50, 5:60] = 1
    labels[10:45, 10:50] = 0
    labels[15:40, 15:40] = 1
    labels[20:30, 20:30] = labels[30:35, 30:35] = labels[17, 17] = labels[47, 20] = 0
    labels[24, 24] = labels[0, 0] = labels[59, 79] = 1
    return labels


def picture(folder, labels):
    folder.mkdir()
    Image.fromarray(np.repeat(labels[..., None], 3, 2) * 255).save(folder / "a.png")
    Image.fromarray(labels).save(folder / "labels.png")
    return folder / "a.png", folder / "labels.png"


@pytest.mark.parametrize("form", FORMS)
def test_holes_come_back_and_the_background_of_a_binary_model_is_no_object(tmp_path, form):
    image, labels = picture(tmp_path / "photos", holes())
    out, info = tmp_path / "out", ModelInfo(model_of(["road"]))
    out.mkdir()
    if form == "coco":
        content = write_names(out, form, info)
        add_to_coco(content, labels, "a.png", info)
        (out / "annotations.json").write_text(json.dumps(content))
    else:
        write_polygons(labels, out / f"a{'.json' if form == 'labelme' else '.txt'}", info, image=image)
        (out / "classes.txt").write_text("background\nroad\n")
    labels.unlink()
    found, classes = read_back(form, tmp_path / "photos", out, tmp_path / "data")
    assert classes == ("background", "road")
    assert np.array_equal(found["a"], holes())


def test_pycocotools_reads_the_file_and_its_masks_areas_and_boxes_are_those_of_the_labels(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    model = ModelInfo(model_of(scenes.CLASSES))
    content = write_names(tmp_path, "coco", model)
    truth = [*draw(tmp_path / "photos", "a.jpg", "b.jpg"), holes()]
    for number, labels in enumerate(truth):
        Image.fromarray(labels).save(tmp_path / f"{number}.png")
        add_to_coco(content, tmp_path / f"{number}.png", f"{number}.jpg", model)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    read = coco.COCO(str(tmp_path / "annotations.json"))
    for image, labels in zip(read.getImgIds(), truth):
        painted = np.full(labels.shape, 255, np.uint8)
        for annotation in read.imgToAnns[image]:
            mask = read.annToMask(annotation) > 0
            assert not (painted[mask] != 255).any()
            painted[mask] = annotation["category_id"] - 1
            rows, columns = np.nonzero(mask)
            corner, size = [columns.min(), rows.min()], [np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (annotation["bbox"], annotation["area"]) == ([*corner, *size], mask.sum())
        assert np.array_equal(painted, labels)
    assert [category["name"] for category in read.loadCats(read.getCatIds())] == list(scenes.CLASSES)


def test_an_interrupted_call_keeps_coco_of_what_is_done_and_resuming_completes_it(tmp_path):
    draw(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg", size=64)
    places, out = find_images([tmp_path / "photos"], tmp_path / "out"), tmp_path / "out"

    def interrupt(file, share):
        if file.name == "c.jpg":
            raise KeyboardInterrupt

    model = model_of(["x", "y"])
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, places, out, save_as="coco", report=interrupt)
    content = json.loads((out / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg"]
    assert predict_files(model, places, out, save_as="coco", resume=True).predicted == 1
    content = json.loads((out / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg", "c.jpg"]
    numbers = [annotation["id"] for annotation in content["annotations"]]
    assert numbers == [*range(1, len(numbers) + 1)]


def test_a_labelme_file_that_was_corrected_is_not_written_over(tmp_path):
    draw(tmp_path / "photos", "a.jpg", "b.jpg", size=64)
    places, out = find_images([tmp_path / "photos"], tmp_path / "out"), tmp_path / "out"
    model = model_of(["x", "y"])
    predict_files(model, places, out, save_as="labelme")
    predict_files(model, places, out, save_as="labelme")  # its own are
    content = json.loads((out / "a.json").read_text())
    corrected = json.dumps(content | {"version": "5.5.0", "shapes": content["shapes"][:1]}, indent=2)  # as LabelMe does
    (out / "a.json").write_text(corrected)
    done = predict_files(model, places, out, save_as="labelme", resume=True)
    assert not done.failures
    done = predict_files(model, places, out, save_as="labelme")
    assert "a.json was corrected, or is another file: move it" in done.failures[tmp_path / "photos/a.jpg"]
    predict_files(model, places, out)
    assert (out / "a.json").read_text() == corrected
    assert not (out / "b.json").exists()  # of other labels, perhaps
    assert outputs(out / "a").keys() == {"labels", "overlay"}


def test_resuming_makes_missing_polygons_of_labels_and_keeps_those_of_yolo(tmp_path):
    draw(tmp_path / "photos", "a.jpg", "b.jpg", size=64)
    places, out = find_images([tmp_path / "photos"], tmp_path / "out"), tmp_path / "out"
    model = model_of(["x", "y"])
    predict_files(model, places, out)
    (out / "a.txt").write_text("0 0 0 1 0 1 1\n")
    assert predict_files(model, places, out, save_as="yolo", resume=True).predicted == 0
    assert (out / "a.txt").read_text() == "0 0 0 1 0 1 1\n"
    assert (out / "b.txt").read_text()
    assert (out / "data.yaml").read_text() == 'names: ["x", "y"]\n'


@pytest.mark.parametrize(
    ("form", "name", "text"),
    [
        ("yolo", "data.yaml", "train: images\nnames: [x, y]\n"),
        ("labelme", "classes.txt", "a\nb\n"),
        ("coco", "annotations.json", '{"images": [], "categories": [{"id": 1, "name": "x"}], "annotations": []}'),
    ],
)
def test_names_of_other_classes_and_annotations_of_others_are_not_written_over(tmp_path, form, name, text):
    draw(tmp_path / "photos", "a.jpg", size=64)
    places, out = find_images([tmp_path / "photos"], tmp_path / "out"), tmp_path / "out"
    out.mkdir()
    (out / name).write_text(text)
    with pytest.raises(OptionError, match=f"{name} is not of these classes, x, y: choose another folder"):
        predict_files(model_of(["x", "y"]), places, out, save_as=form)
    assert [file.read_text() for file in out.iterdir()] == [text]


def test_coco_is_not_a_form_of_one_image(tmp_path):
    draw(tmp_path, "a.jpg", size=64)
    with pytest.raises(OptionError, match="save_as must be geojson, labelme, yolo or None for one image, got 'coco'"):
        predict_file(model_of(["x", "y"]), tmp_path / "a.jpg", tmp_path / "out/a", save_as="coco")


def test_polygons_of_a_georeferenced_image_are_in_pixels_and_leave_out_pixels_without_data(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(0).integers(1, 255, (3, 40, 60)).astype(np.uint8)
    values[:, :, 50:] = 0
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000), "nodata": 0}
    with rasterio.open(tmp_path / "a.tif", "w", count=3, height=40, width=60, dtype="uint8", **place) as raster:
        raster.write(values)
    predict_file(model_of(["x", "y"]), tmp_path / "a.tif", tmp_path / "out/a", save_as="labelme")
    (tmp_path / "out/classes.txt").write_text("x\ny\n")
    found, _ = read_back("labelme", tmp_path, tmp_path / "out", tmp_path / "data", background="-")
    with rasterio.open(tmp_path / "out/a.tif") as labels:
        assert np.array_equal(found["a"], labels.read(1))
    assert (found["a"][:, 50:] == 255).all()


def test_simplified_polygons_have_fewer_corners(tmp_path):
    labels = (np.hypot(*np.mgrid[-50:50, -50:50]) < 40).astype(np.uint8)
    labels[40:60, 40:60] = 0
    image, file = picture(tmp_path / "photos", labels)
    found = []
    for tolerance in (0, 2):
        write_polygons(file, tmp_path / "a.json", ModelInfo(model_of(["road"])), tolerance, image)
        content = json.loads((tmp_path / "a.json").read_text())
        assert (tmp_path / content["imagePath"]).samefile(image)
        (shape,) = content["shapes"]
        found.append(len(shape["points"]))
    assert found[1] < found[0] / 3


def test_the_command_writes_files_of_label_tools_and_names_a_missing_package_first(tmp_path, monkeypatch):
    model_of(["x", "y"]).save_pretrained(tmp_path / "model")
    draw(tmp_path / "photos", "a.jpg", size=64)
    command = ["predict", str(tmp_path / "model"), str(tmp_path / "photos"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, "--device", "cpu", "--save_as", "labelme"])
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in Path(tmp_path / "out").iterdir()) == [
        *("a.json", "a.png", "a_overlay.jpg", "classes.txt")
    ]
    monkeypatch.setattr("segnext_timm.prediction.polygons.find_spec", lambda name: None)
    done = CliRunner().invoke(main, [*command, "--save_as", "coco"])
    assert (done.exit_code, done.output) == (
        1, "Error: Polygons need rasterio and shapely: pip install rasterio shapely\n"
    )  # fmt: skip


def test_an_image_without_a_place_gets_polygons_in_pixels_only(tmp_path):
    draw(tmp_path / "photos", "a.jpg", size=64)
    with pytest.raises(ImageError, match="does not state where on Earth it lies"):
        predict_file(model_of(["x", "y"]), tmp_path / "photos/a.jpg", tmp_path / "out/a", save_as="geojson")
