import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_labels
from segmentation.class_list import read_classes
from segmentation.data import check_files
from segmentation.layouts import open_split
from segmentation.prepared import Made, Record
from segmentation.preparing import Job
from segmentation.recipe import UserError
from segmentation.sources import regions

SCRIPT = Path(prepare_labels.__file__)
SIZE = (40, 60)  # height, width
SQUARE = [[10, 5], [30, 5], [30, 25], [10, 25]]
INSIDE = (slice(5, 25), slice(10, 30))


@pytest.fixture
def images(tmp_path):
    """A folder of three images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.jpg")
    return folder


def run(*arguments):
    prepare_labels.main([*map(str, arguments), "--workers", "1"])


def labels_of(target, split="train"):
    """Labels by the name of the image, as training reads them; -1 where they are left out."""
    found = open_split("folder", target, split)
    check_files(found)
    opened = {path.name: found.open(index)[1].astype(int) for index, path in enumerate(found.images)}
    return {name: np.where(labels == found.ignore_index, -1, labels) for name, labels in opened.items()}


def run_lengths(mask):
    """COCO's run lengths of a mask, outside first."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [-1]])
    starts = np.flatnonzero(np.diff(flat))
    return np.diff([0, *starts]).tolist()


def compressed(lengths):
    """COCO's compressed form of run lengths: groups of 5 bits, the sixth says that more follow."""
    text = ""
    for index, length in enumerate(lengths):
        value = length - lengths[index - 2] if index > 2 else length
        while True:
            bits, value = value & 31, value >> 5
            ends = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if ends else 32))
            if ends:
                break
    return text


def write_coco(path, annotations, images=3):
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(images)],
        "categories": [{"id": 7, "name": "square"}, {"id": 3, "name": "3 doors"}],
        "annotations": [{"id": i, "iscrowd": 0, **annotation} for i, annotation in enumerate(annotations)],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def polygon(image, category, points, area=400):
    flat = [[coordinate for point in points for coordinate in point]]
    return {"image_id": image, "category_id": category, "segmentation": flat, "area": area}


# COCO


def test_coco_objects_become_labels_with_small_ones_on_top(images, tmp_path, capsys):
    small = [[20, 10], [26, 10], [26, 16], [20, 16]]
    box = {**polygon(1, 3, SQUARE), "segmentation": [], "bbox": [10, 5, 20, 20]}
    objects = [polygon(0, 3, small, 36), polygon(0, 7, SQUARE), box]
    annotations = write_coco(tmp_path / "train.json", objects)
    run("coco", images, annotations, tmp_path / "data")
    expected = np.zeros(SIZE, int)
    expected[INSIDE] = 2
    expected[10:16, 20:26] = 1
    found = labels_of(tmp_path / "data")
    assert np.array_equal(found["0.jpg"], expected)
    assert (found["1.jpg"][INSIDE] == -1).all()
    assert (found["1.jpg"] == -1).sum() == 400
    assert (tmp_path / "data" / "classes.txt").read_text() == "0 background\n1 3 doors\n2 square\n"
    assert (tmp_path / "data/images/train/2.jpg").read_bytes() == (images / "2.jpg").read_bytes()
    said = capsys.readouterr().out
    assert "1 objects of 3 doors have a box, but no outline (the first: 1.jpg): their pixels are left out" in said
    assert "train: 3 images" in said
    assert "1 3 doors                    0.53%  in 1 images" in said


@pytest.mark.parametrize("form", [list, compressed])
def test_coco_run_lengths_become_labels(images, tmp_path, form):
    masks = [np.random.default_rng(seed).random(SIZE) < share for seed, share in ((0, 0.5), (1, 0.02))]
    masks[1][:, 20:50] = True
    objects = [
        {"image_id": i, "category_id": 7, "segmentation": {"counts": form(run_lengths(mask)), "size": SIZE}}
        for i, mask in enumerate(masks)
    ]
    run("coco", images, write_coco(tmp_path / "train.json", objects), tmp_path / "data", "--background", "-")
    found = labels_of(tmp_path / "data")
    for index, mask in enumerate(masks):
        assert np.array_equal(found[f"{index}.jpg"], np.where(mask, 1, -1))


def test_images_are_shared_between_training_and_validation_by_their_names(images, tmp_path):
    annotations = write_coco(tmp_path / "all.json", [polygon(0, 7, SQUARE)])
    for _ in range(2):
        run("coco", images, annotations, tmp_path / "data", "--val_share", 0.5)
    made = sorted(path.name for path in (tmp_path / "data" / "images").rglob("*.jpg"))
    assert made == ["0.jpg", "1.jpg", "2.jpg"]
    run("coco", images, annotations, tmp_path / "val", "--split", "val")
    assert len(labels_of(tmp_path / "val", "val")) == 3


def test_polygons_hold_the_pixels_whose_centers_they_hold():
    from matplotlib.path import Path as Outline

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:80, :90] + 0.5
    for _ in range(30):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
        radii = rng.uniform(5, 70, len(angles))  # some reach beyond the image
        points = np.stack([45 + radii * np.cos(angles), 40 + radii * np.sin(angles)], axis=1)
        labels = np.zeros((80, 90), np.uint8)
        regions.fill_polygon(labels, points, 3)
        expected = Outline(points).contains_points(np.stack([columns.ravel(), rows.ravel()], axis=1))
        assert np.array_equal(labels == 3, expected.reshape(80, 90))


def test_polygons_outside_the_image_and_without_an_area_change_nothing():
    labels = np.zeros((8, 8), np.uint8)
    for points in ([[20, 1], [30, 1], [30, 6]], [[-9, 1], [-3, 1], [-3, 6]], [[1, 1], [6, 1], [3, 1]]):
        regions.fill_polygon(labels, np.array(points, float), 1)
    assert not labels.any()


# Color masks


def test_color_masks_become_labels(images, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    colors = np.array([(0, 0, 0), (255, 0, 0), (255, 255, 255)], np.uint8)
    truth = [np.random.default_rng(i).integers(0, 3, SIZE) for i in range(3)]
    for index, labels in enumerate(truth):
        Image.fromarray(colors[labels]).save(masks / f"{index}.png")
    listed = tmp_path / "colors.txt"
    listed.write_text("#ff0000 road\n#000000 sky\n#ffffff -\n", encoding="utf-8")
    run("colors", images, masks, tmp_path / "data", "--classes", listed)
    found = labels_of(tmp_path / "data")
    for index, labels in enumerate(truth):
        assert np.array_equal(found[f"{index}.jpg"], np.array([1, 0, -1])[labels])
    assert (tmp_path / "data" / "classes.txt").read_text() == "0 road #ff0000\n1 sky #000000\n"
    # programs that show pictures show the given colors
    picture = Image.open(tmp_path / "data/labels/train/0.png").convert("RGB")
    assert np.array_equal(np.asarray(picture), colors[truth[0]])


@pytest.mark.parametrize("ending", [".npy", ".tif"])
def test_images_that_pillow_does_not_know_are_copied_as_they_are(tmp_path, ending):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    values = np.random.default_rng(0).integers(0, 9999, (5, *SIZE)).astype(np.uint16)
    image = tmp_path / f"images/0{ending}"
    if ending == ".npy":
        np.save(image, values.transpose(1, 2, 0))
    else:
        rasterio = pytest.importorskip("rasterio")
        shape = {
            "count": 5,
            "height": 40,
            "width": 60,
            "dtype": "uint16",
            "transform": rasterio.Affine(1, 0, 9, 0, -1, 9),
        }
        with rasterio.open(image, "w", driver="GTiff", **shape) as file:
            file.write(values)
    truth = np.random.default_rng(1).integers(0, 2, SIZE).astype(np.uint8)
    Image.fromarray(truth).save(tmp_path / "masks/0.png")
    (tmp_path / "classes.txt").write_text("0 field\n1 road\n")
    run("masks", tmp_path / "images", tmp_path / "masks", tmp_path / "data", "--classes", tmp_path / "classes.txt")
    assert (tmp_path / f"data/images/train/0{ending}").read_bytes() == image.read_bytes()
    assert np.array_equal(Image.open(tmp_path / "data/labels/train/0.png"), truth)


def test_without_classes_the_colors_of_masks_are_shown(images, tmp_path, capsys):
    mask = np.zeros((*SIZE, 3), np.uint8)
    mask[:10] = (255, 0, 1)
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "0.png")
    with pytest.raises(UserError, match="--classes is missing"):
        run("colors", images, tmp_path / "masks", tmp_path / "data")
    assert "#000000 NAME      (75.00%)\n#ff0001 NAME      (25.00%)" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


# LabelMe


def write_labelme(path, shapes, **fields):
    content = {"imagePath": f"{path.stem}.jpg", "imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    content["shapes"] = [
        {"label": label, "shape_type": kind, "points": points} | more
        for label, kind, points, *rest in shapes
        for more in [rest[0] if rest else {}]
    ]
    path.write_text(json.dumps(content | fields), encoding="utf-8")


def png_text(mask):
    content = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_labelme_shapes_become_labels_in_their_order(images, tmp_path, capsys):
    mask = np.eye(6, dtype=bool)
    shapes = [
        ("square", "polygon", SQUARE),
        ("box", "rectangle", [[30, 30], [20, 20]]),
        ("__ignore__", "rectangle", [[0, 0], [5, 5]]),
        ("dots", "mask", [[57, 37], [62, 42]], {"mask": png_text(mask)}),
        ("ball", "circle", [[50, 10], [50, 14]]),
        ("path", "linestrip", [[5, 34], [15, 34]]),
    ]
    write_labelme(images / "0.json", shapes)
    run("labelme", images, tmp_path / "data")
    expected = np.zeros(SIZE, int)
    expected[INSIDE] = 4
    expected[20:30, 20:30] = 2
    expected[:5, :5] = -1
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    expected[np.hypot(columns - columns.clip(5, 15), rows - 34) < 5] = -1
    expected[37:, 57:][mask[:3, :3]] = 3
    expected[np.hypot(columns - 50, rows - 10) < 3.99] = 1
    assert np.array_equal(labels_of(tmp_path / "data")["0.jpg"], expected)
    assert (tmp_path / "data" / "classes.txt").read_text() == "0 background\n1 ball\n2 box\n3 dots\n4 square\n"
    assert "1 shapes of the type linestrip have no area" in capsys.readouterr().out


@pytest.mark.parametrize("points", [[[99, 5], [120, 5], [120, 25]], [[0.2, 0.1], [0.9, 0.1], [0.9, 0.8]]])
def test_objects_outside_the_image_or_in_shares_are_counted_each_time(images, tmp_path, points, capsys):
    annotations = write_coco(tmp_path / "train.json", [polygon(0, 7, SQUARE), polygon(1, 7, points)])
    for _ in range(2):
        run("coco", images, annotations, tmp_path / "data")
        said = capsys.readouterr().out
        assert "Warning: 1 objects in 1 images are lost (the first: 1.jpg)" in said
        assert "in shares of the image from 0 to 1 instead of pixels" in said


def test_a_small_object_about_the_center_of_a_pixel_is_not_lost():
    assert not regions.Region("car", [regions.box(7.4, 5.4, 7.6, 5.6)]).is_lost(SIZE)
    assert regions.Region("car", [regions.box(7.6, 5.6, 8.2, 6.2)]).is_lost(SIZE)


def test_images_made_now_are_not_of_an_earlier_run(tmp_path, capsys):
    made = Made("0.jpg", (tmp_path / "0").as_posix(), [], None, "")
    job = Job(regions.Annotated("0.jpg", tmp_path / "0.jpg"), "train", "0")
    settings = prepare_labels.Output()
    for known, warns in ((None, False), (made, True)):
        job.made = known
        prepare_labels.warn_of_old([job], Record(tmp_path, made={"train/0": made}), ["0.jpg"], settings)
        assert ("keeps 1 image of an earlier run (the first: train/0)" in capsys.readouterr().out) == warns


def test_an_image_without_its_labels_of_an_earlier_run_is_named(images, tmp_path, capsys):
    for number in (0, 1):
        write_labelme(images / f"{number}.json", [("a", "polygon", SQUARE)])
    run("labelme", images, tmp_path / "data")
    (images / "1.json").unlink()
    capsys.readouterr()
    run("labelme", images, tmp_path / "data")
    said = capsys.readouterr().out
    assert re.search(r"keeps 1 image of an earlier run \(the first: (train|val)/1\)", said)
    run("labelme", images, tmp_path / "other")
    assert "earlier run" not in capsys.readouterr().out


def test_a_folder_that_does_not_exist_is_said_to_be_none(tmp_path):
    with pytest.raises(UserError, match="fotos is not a folder: name the one of LabelMe's JSON files"):
        run("labelme", tmp_path / "fotos", tmp_path / "data")


def test_images_inside_labelme_files_are_taken(images, tmp_path):
    content = (images / "1.jpg").read_bytes()
    (images / "1.jpg").unlink()
    write_labelme(images / "1.json", [("a", "polygon", SQUARE)], imageData=base64.b64encode(content).decode())
    run("labelme", images, tmp_path / "data")
    assert (tmp_path / "data/images/train/1.jpg").read_bytes() == content


def test_a_second_split_keeps_the_classes_of_the_first(images, tmp_path):
    (tmp_path / "val").mkdir()
    write_labelme(images / "0.json", [("a", "polygon", SQUARE), ("b", "rectangle", [[0, 0], [4, 4]])])
    run("labelme", images, tmp_path / "data")
    (images / "1.jpg").rename(tmp_path / "val" / "1.jpg")
    write_labelme(tmp_path / "val" / "1.json", [("b", "polygon", SQUARE)])
    run("labelme", tmp_path / "val", tmp_path / "data", "--split", "val")
    assert set(np.unique(labels_of(tmp_path / "data", "val")["1.jpg"])) == {0, 2}
    write_labelme(tmp_path / "val" / "1.json", [("new", "polygon", SQUARE)])
    with pytest.raises(UserError, match=r"1\.json labels 'new', which .*classes\.txt does not name: add it there"):
        run("labelme", tmp_path / "val", tmp_path / "data", "--split", "val")


def test_a_second_file_with_other_classes_is_matched_by_their_names(images, tmp_path):
    first, second = (tmp_path / f"{name}.json" for name in ("first", "second"))
    run("coco", images, write_coco(first, [polygon(0, 7, SQUARE), polygon(1, 3, SQUARE)]), tmp_path / "data")
    content = json.loads(write_coco(second, [polygon(0, 1, SQUARE)], images=1).read_text())
    content |= {"categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "unused"}]}
    second.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "val").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "val/0.jpg")
    run("coco", tmp_path / "val", second, tmp_path / "data", "--split", "val")
    assert read_classes(tmp_path / "data/classes.txt").classes == ("background", "3 doors", "square")
    assert set(np.unique(labels_of(tmp_path / "data", "val")["0.jpg"])) == {0, 2}


# All kinds


def test_finished_files_are_left_as_they_are(images, tmp_path, capsys):
    annotations = write_coco(tmp_path / "train.json", [polygon(0, 7, SQUARE)])
    run("coco", images, annotations, tmp_path / "data")
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.name != ".prepared.json"]
    times = {path: path.stat().st_mtime_ns for path in files}
    missing = tmp_path / "data" / "labels" / "train" / "1.png"
    missing.unlink()
    first = capsys.readouterr().out
    run("coco", images, annotations, tmp_path / "data")
    changed = {path.name for path in files if path.stat().st_mtime_ns != times[path]}
    assert changed == {"1.png", "1.jpg"}
    second = capsys.readouterr().out
    assert "2 of them were there already" in second
    assert first.splitlines()[2:] == second.splitlines()[2:]  # shares of the whole set


def test_what_cannot_be_used_is_skipped_and_listed(images, tmp_path, capsys):
    (images / "0.jpg").write_bytes((images / "0.jpg").read_bytes()[:700])
    Image.new("RGB", (50, 50)).save(images / "1.jpg")
    bad_runs = {"image_id": 2, "category_id": 7, "segmentation": {"counts": [5, 6], "size": SIZE}}
    annotations = write_coco(tmp_path / "train.json", [bad_runs], images=5)
    Image.new("RGB", SIZE[::-1]).save(images / "3.jpg")
    with pytest.raises(UserError, match=r"4 of 5 images were skipped, more than a tenth .* What was made stays in"):
        run("coco", images, annotations, tmp_path / "data")
    said = capsys.readouterr().out
    for line in (
        "skipped: 4",
        "0.jpg: the image cannot be read",
        "1.jpg: it is annotated at 60×40 pixels, but has 50×50",
        "2.jpg: annotation 0 cannot be read: the run lengths add up to 11 pixels, not 2400",
        f"4.jpg: {images / '4.jpg'} does not exist",
    ):
        assert line in said
    assert list(labels_of(tmp_path / "data")) == ["3.jpg"]


def test_images_labeled_as_stored_lose_the_note_that_turns_them(images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / "0.jpg").save(images / "0.jpg", exif=exif)
    run("coco", images, write_coco(tmp_path / "train.json", [polygon(0, 7, SQUARE)], images=1), tmp_path / "data")
    assert labels_of(tmp_path / "data")["0.jpg"].shape == SIZE


def test_images_can_be_linked(images, tmp_path):
    annotations = write_coco(tmp_path / "train.json", [polygon(0, 7, SQUARE)])
    run("coco", images, annotations, tmp_path / "data", "--link")
    assert (tmp_path / "data/images/train/0.jpg").readlink() == images / "0.jpg"
    assert len(labels_of(tmp_path / "data")) == 3


@pytest.mark.slow
def test_ctrl_c_ends_in_a_line_and_leaves_whole_files(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    Image.fromarray(noise).save(folder / "0.png")
    for index in range(1, 300):
        (folder / f"{index}.png").symlink_to(folder / "0.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 600, "width": 800} for i in range(300)],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [{"id": i} | polygon(i, 1, SQUARE) for i in range(300)],
    }
    (tmp_path / "x.json").write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, SCRIPT, "coco", folder, tmp_path / "x.json", tmp_path / "data", "--workers", "2"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    made = tmp_path / "data" / "labels" / "train"
    while not (made.is_dir() and len(list(made.glob("[0-9]*.png"))) > 3):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "prepare_labels.py: interrupted"
    assert "Traceback" not in stderr
    finished = sorted(made.glob("[0-9]*.png"))
    assert 3 < len(finished) < 300
    for path in finished:
        assert np.asarray(Image.open(path)).sum() == 400
    assert [path.name for path in (tmp_path / "data").rglob(".*")] == [".prepared.json"]
    assert set(json.loads((tmp_path / "data/.prepared.json").read_text())["made"]) == {
        f"train/{path.stem}" for path in finished
    }


@pytest.mark.parametrize("name", ["-", "a\nb", "road #ff0000", "room # 3"])
def test_a_class_that_the_list_cannot_hold_is_refused(images, tmp_path, name):
    annotations = write_coco(tmp_path / "train.json", [])
    annotations.write_text(annotations.read_text().replace('"square"', json.dumps(name)))
    with pytest.raises(UserError, match=rf"classes\.txt cannot hold the class {re.escape(repr(name))}"):
        run("coco", images, annotations, tmp_path / "data")
    assert not (tmp_path / "data/classes.txt").exists()


def test_classes_that_differ_in_case_only_are_pointed_out(images, tmp_path, capsys):
    write_labelme(images / "0.json", [("square", "polygon", SQUARE), ("Square ", "polygon", SQUARE)])
    run("labelme", images, tmp_path / "data")
    assert "Warning: 2 classes differ in the case of letters only: 'square'." in capsys.readouterr().out


def test_mistakes_are_named(images, tmp_path):
    target = tmp_path / "data"
    annotations = write_coco(tmp_path / "train.json", [])
    masks = tmp_path / "masks.txt"
    masks.write_text("0 a\n1 b\n", encoding="utf-8")
    broken = tmp_path / "broken.json"
    broken.write_text("{", encoding="utf-8")
    panoptic = tmp_path / "panoptic.json"
    panoptic.write_text(json.dumps({"images": [], "categories": [], "annotations": [{"segments_info": []}]}))
    for arguments, message in (
        (("coco", tmp_path / "none", annotations, target), "none does not exist: give the folder of the images"),
        (("coco", images, tmp_path / "none.json", target), r"none\.json cannot be read as JSON"),
        (("coco", images, broken, target), r"broken\.json cannot be read as JSON"),
        (("coco", images, panoptic, target), r"panoptic\.json is a panoptic COCO file"),
        (("coco", images, annotations, target, "--val_share", 2), "val_share must be from 0 to 1"),
        (("coco", images, annotations, broken), r"broken\.json is a file: give a folder as TARGET"),
        (("labelme", images, target), "holds no JSON files of LabelMe"),
        (("colors", images, images, target, "--classes", masks), "names do not tell which are masks"),
        (("colors", images, tmp_path / "none", target), "none does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            run(*arguments)
        assert not target.exists()
    run("coco", images, annotations, target)
    for text in ("0 background\n2 3 doors\n1 square\n", "0 background\n255 3 doors\n1 square\n", "x\ny\n"):
        (target / "classes.txt").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"classes\.txt has other classes or values"):
            run("coco", images, annotations, target)
