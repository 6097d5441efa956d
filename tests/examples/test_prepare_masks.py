import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import miniatures
import prepare_labels
from segmentation.checks import check_files
from segmentation.layouts import open_split
from segmentation.recipe import UserError

SIZE = (20, 30)  # height, width
BLOCK = np.zeros(SIZE, np.uint8)
BLOCK[4:14, 6:22] = 1
COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)


def write_raster(file, values, **profile):
    pytest.importorskip("rasterio")
    from small_rasters import write_raster

    write_raster(file, values[None], **profile)


def run(*arguments):
    prepare_labels.main([*map(str, arguments), "--workers", "1"])


@pytest.fixture
def source(tmp_path):
    """A folder of images, one of masks whose values are 0 and 1, and a list of their classes."""
    for number in range(3):
        miniatures.picture(tmp_path / "images" / f"{number}.png", SIZE, number)
        write_mask(tmp_path / "masks" / f"{number}.png", np.roll(BLOCK, number, axis=1))
    (tmp_path / "classes.txt").write_text("background\nroad\n", encoding="utf-8")
    return tmp_path


def write_mask(path, values, mode="L", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).convert(mode).save(path, **options)


def masks_to_labels(source, *options, classes=None, split="train"):
    """Labels by name; -1 where they are left out."""
    if classes:
        (source / "classes.txt").write_text(classes, encoding="utf-8")
    run("masks", source / "images", source / "masks", source / "data", "--classes", source / "classes.txt", *options)
    return labels_of(source / "data", split)


def labels_of(target, split="train"):
    found = open_split("folder", target, split)
    opened = {path.stem: found.open_labels(index).astype(int) for index, path in enumerate(found.images)}
    return {name: np.where(labels == found.ignore_index, -1, labels) for name, labels in opened.items()}


def files(target, kind, split):
    return sorted(path.stem for path in (target / kind / split).glob("*"))


# Masks of every kind


@pytest.mark.parametrize(
    ("write", "classes"),
    [
        (lambda path, v: write_mask(path, v), "background\nroad\n"),
        (lambda path, v: write_mask(path, v * 255), "0 background\n255 road\n"),
        (lambda path, v: write_mask(path, v * 255, "1"), "background\nroad\n"),
        (lambda path, v: Image.fromarray(v.astype(np.uint16) * 4000).save(path), "0 background\n4000 road\n"),
        (lambda path, v: write_mask(path, v * 128, "LA"), "0 background\n128 road\n"),
        (lambda path, v: write_mask(path, v * 128, "RGB"), "0 background\n128 road\n"),
        (lambda path, v: write_mask(path, v * 128, "RGBA"), "0 background\n128 road\n"),
        (lambda path, v: miniatures.labels(path, v, palette=True), "background\nroad\n"),
        (lambda path, v: write_mask(path, COLORS[v], "RGB"), "#000000 background\n#ff0000 road\n"),
        (lambda path, v: np.save(path.with_suffix(".npy"), v.astype(np.int64)), "background\nroad\n"),
        (lambda path, v: np.save(path.with_suffix(".npy"), v > 0), "background\nroad\n"),
        (lambda path, v: write_raster(path.with_suffix(".tif"), v.astype(np.float64)), "background\nroad\n"),
    ],
    ids=[
        *("names", "values", "one bit", "16 bits", "gray and alpha", "gray RGB", "gray RGBA", "palette", "colors"),
        *("array of integers", "array of truth values", "TIFF of 64 bits"),
    ],
)
def test_values_and_colors_become_labels(source, write, classes):
    for path in list((source / "masks").glob("*.png")):
        path.unlink()
        write(path, np.roll(BLOCK, int(path.stem), axis=1))
    found = masks_to_labels(source, classes=classes)
    for number in range(3):
        assert np.array_equal(found[str(number)], np.roll(BLOCK, number, axis=1))


def test_the_transparency_of_colors_does_not_matter(source):
    alpha = np.random.default_rng(0).integers(0, 256, (*SIZE, 1), np.uint8)
    for path in (source / "masks").glob("*.png"):
        Image.fromarray(np.concatenate([COLORS[BLOCK], alpha], axis=2)).save(path)
    assert np.array_equal(masks_to_labels(source, classes="#000000 a\n#ff0000 b\n")["0"], BLOCK)


def test_borders_of_palettes_are_left_out(source):
    values = BLOCK.copy()
    values[0] = 255
    for path in (source / "masks").glob("*.png"):
        miniatures.labels(path, values, palette=True)
    expected = BLOCK.astype(int)
    expected[0] = -1
    assert np.array_equal(masks_to_labels(source)["0"], expected)


def test_the_earlier_name_of_the_command_is_accepted(source):
    run("colors", source / "images", source / "masks", source / "data", "--classes", source / "classes.txt")
    assert np.array_equal(labels_of(source / "data")["0"], BLOCK)


def test_without_classes_the_values_of_masks_are_shown(source, capsys):
    with pytest.raises(UserError, match="--classes is missing"):
        run("masks", source / "images", source / "masks", source / "data")
    assert "0 NAME      (73.33%)\n1 NAME      (26.67%)" in capsys.readouterr().out


def indexed(values, *grays):
    """A mask with a palette, the gray of each value."""
    image = Image.fromarray(np.asarray(values))
    image.putpalette([channel for gray in grays for channel in (gray,) * 3])
    return image


def test_what_a_palette_shows_is_not_read_as_something_else(source):
    indexed(1 - BLOCK, 255, 0).save(source / "masks/1.png")
    with pytest.raises(UserError, match=r"1\.png has a palette of grays that descend: .*'#ffffff NAME'"):
        masks_to_labels(source)
    for path in (source / "masks").glob("*.png"):
        (indexed(1 - BLOCK, 255, 0) if path.stem == "1" else indexed(BLOCK, 0, 255)).save(path)
    found = masks_to_labels(source, classes="#000000 background\n#ffffff road\n")
    assert all(np.array_equal(labels, BLOCK) for labels in found.values())
    run(
        "masks",
        source / "data/images/train",
        source / "data/labels/train",
        source / "new",
        "--classes",
        source / "data/classes.txt",
    )
    assert np.array_equal(labels_of(source / "new")["1"], BLOCK)  # our own files have palettes of grays too


def test_masks_are_rotated_as_they_ask(source):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    Image.fromarray(np.rot90(BLOCK)).save(source / "masks/0.png", exif=exif)
    assert np.array_equal(masks_to_labels(source)["0"], BLOCK)


def test_masks_of_several_pages_are_skipped_by_name(source, capsys):
    (source / "masks/0.png").unlink()
    Image.fromarray(BLOCK).save(source / "masks/0.tif", save_all=True, append_images=[Image.fromarray(1 - BLOCK)])
    with pytest.raises(UserError, match="1 of 3 images were skipped"):
        masks_to_labels(source)
    assert "holds 2 pages: labels are one picture" in capsys.readouterr().out


def test_pixels_of_64_bits_without_data_are_left_out(source):
    (source / "masks/0.png").unlink()
    values = BLOCK.astype(float)
    values[0] = np.nan
    write_raster(source / "masks/0.tif", values, nodata=np.nan)
    assert (masks_to_labels(source)["0"][0] == -1).all()


def test_pixels_without_data_are_left_out_though_255_is_a_class(source):
    for number in range(3):
        (source / f"masks/{number}.png").unlink()
        values = BLOCK.astype(np.int16) * 255
        values[0] = -1
        write_raster(source / f"masks/{number}.tif", values, nodata=-1)
    expected = BLOCK.astype(int)
    expected[0] = -1
    assert np.array_equal(masks_to_labels(source, classes="0 background\n255 road\n")["0"], expected)
    for kind in ("images", "masks"):
        (source / "set" / kind).mkdir(parents=True)
        (source / kind).rename(source / "set" / kind / "train")
    shutil.copy(source / "classes.txt", source / "set/classes.txt")
    assert np.array_equal(labels_of(source / "set")["0"], expected)
    split = open_split("folder", source / "set", "train")
    left_out = check_files(split).by_class[:, -1]
    assert (left_out == SIZE[1]).all()


@pytest.mark.parametrize(
    ("array", "said"),
    [(np.dstack([BLOCK] * 3), "holds 3 bands"), (BLOCK - np.int64(1 << 40), "holds negative numbers")],
)
def test_arrays_that_are_no_labels_are_skipped_by_name(source, array, said, capsys):
    for number in range(3):
        (source / f"masks/{number}.png").unlink()
        np.save(source / f"masks/{number}.npy", array)
    with pytest.raises(UserError, match="3 of 3 images were skipped"):
        masks_to_labels(source)
    assert f"0.npy {said}" in capsys.readouterr().out.replace("cannot be read as an image: ", "")


def test_a_class_that_only_the_left_out_value_can_be_is_asked_for(source):
    for path in (source / "masks").glob("*.png"):
        write_mask(path, BLOCK * 255)
    with pytest.raises(UserError, match=r"no pixel is of the class road, and 27% have the value 255, .*'255 road'"):
        masks_to_labels(source)


# Masks that are not exact


@pytest.mark.parametrize(
    ("classes", "above"),
    [
        ("0 background\n255 road\n", 1),
        ("255 road\n0 background\n", 0),
        ("background\nroad\n", 1),
        ("#ffffff road\n#000000 background\n", 0),
    ],
)
def test_a_threshold_divides_masks_of_two_classes(source, classes, above):
    for path in (source / "masks").glob("*.png"):
        path.unlink()
        write_mask(path.with_suffix(".jpg"), BLOCK * 255, quality=60)
    found = masks_to_labels(source, "--threshold", 128, classes=classes)["0"]
    assert np.array_equal(found == above, BLOCK == 1)


def test_the_nearest_class_is_taken_within_a_distance(source, capsys):
    mask = COLORS[BLOCK].astype(int)
    mask[5, 7:12] -= (20, 0, 0)  # noise
    mask[0, :3] = (127, 127, 127)
    for path in (source / "masks").glob("*.png"):
        write_mask(path, mask.clip(0, 255).astype(np.uint8), "RGB")
    expected = BLOCK.astype(int)
    expected[0, :3] = -1
    found = masks_to_labels(source, "--nearest", 40, classes="#000000 a\n#ff0000 b\n#0000ff c\n")["0"]
    assert np.array_equal(found, expected)
    assert "0.5% of all pixels are farther than 40 from every class: left out" in capsys.readouterr().out


def test_a_threshold_that_divides_nothing_is_refused(source):
    with pytest.raises(UserError, match="--threshold 128 leaves no pixel for the class 'road'"):
        masks_to_labels(source, "--threshold", 128)


def test_a_threshold_compares_the_grays_of_a_picture(source):
    shown = BLOCK * 200 + 20
    shown[:2] = 100
    for path, write in zip(
        sorted((source / "masks").glob("*.png")),
        (
            lambda p: write_mask(p, shown),
            lambda p: write_mask(p, BLOCK * 255, "1"),
            lambda p: indexed(1 - BLOCK, 220, 20).save(p),
        ),
    ):
        write(path)
    found = masks_to_labels(source, "--threshold", 128)
    assert all(np.array_equal(labels, BLOCK) for labels in found.values())


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        (("--threshold", 128), "a\nb\nc\n", "--threshold needs two classes, but there are 3: use --nearest"),
        (("--threshold", 128, "--nearest", 9), "a\nb\n", "exclude each other"),
        (("--threshold", 128), "0 a\n1 b\n", "128 does not lie between the two classes, whose gray values are 0 and 1"),
        (("--nearest", -1), "a\nb\n", "nearest must be at least 0"),
        (("--nearest", 40), "a\nb\n", "--nearest 40 is more than the 1 between two values .*'255 b'"),
    ],
)
def test_options_that_do_not_fit_the_classes_are_refused(source, options, classes, message):
    with pytest.raises(UserError, match=message):
        masks_to_labels(source, *options, classes=classes)
    assert not (source / "data").exists()


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("jpg", r"masks are JPEG, with values between the values of the classes: add --threshold 128 \(from .* road\)"),
        ("png", "masks are smooth or resampled, with values between the values of the classes: add --threshold 128"),
    ],
)
def test_masks_with_values_between_the_classes_end_in_an_error_that_says_the_cause(source, capsys, ending, kind):
    for path in (source / "masks").glob("*.png"):
        path.unlink()
        soft = Image.fromarray(BLOCK * 255).rotate(15, Image.Resampling.BICUBIC)
        soft.save(path.with_suffix(f".{ending}"))
    with pytest.raises(UserError, match=f"3 of 3 images were skipped, more than a tenth .3 of 3: {kind}"):
        masks_to_labels(source, classes="0 background\n255 road\n")
    assert re.search(f"3 of 3: {kind}", capsys.readouterr().out)


def test_images_without_a_mask_count_as_skipped(source, capsys):
    (source / "masks" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images were skipped, .*1 of 3: images have no mask"):
        masks_to_labels(source)
    assert files(source / "data", "labels", "train") == ["0", "2"]
    assert "1 images without labels, the first: 1.png" in capsys.readouterr().out


def test_a_few_skipped_images_do_not_fail_the_command(source):
    for number in range(3, 12):
        miniatures.picture(source / "images" / f"{number}.png", SIZE, number)
        write_mask(source / "masks" / f"{number}.png", BLOCK)
    write_mask(source / "masks" / "5.png", BLOCK * 7)
    assert len(masks_to_labels(source)) == 11


# The run after the first


def test_images_move_to_the_split_they_belong_to_now(source, capsys):
    masks_to_labels(source)
    masks_to_labels(source, "--val_share", 0.5)
    splits = [files(source / "data", "images", split) for split in ("train", "val")]
    assert sorted(splits[0] + splits[1]) == ["0", "1", "2"]
    assert splits[0] and splits[1]
    assert splits == [files(source / "data", "labels", split) for split in ("train", "val")]
    assert f"{len(splits[1])} images moved from train to val" in capsys.readouterr().out
    masks_to_labels(source, "--split", "val", split="val")
    assert files(source / "data", "images", "val") == ["0", "1", "2"]
    assert "No images are in train yet" in capsys.readouterr().out


def test_images_of_one_content_move_from_another_folder_and_without_a_record(source):
    masks_to_labels(source)
    (source / "data" / ".prepared.json").unlink()
    (source / "images").rename(source / "elsewhere")
    (source / "elsewhere" / "0.png").rename(source / "elsewhere" / "new.png")
    (source / "masks" / "0.png").rename(source / "masks" / "new.png")
    classes = ("--classes", source / "classes.txt", "--split", "val")
    run("masks", source / "elsewhere", source / "masks", source / "data", *classes)
    assert not files(source / "data", "images", "train") + files(source / "data", "labels", "train")
    assert files(source / "data", "images", "val") == files(source / "data", "labels", "val") == ["1", "2", "new"]


def test_images_of_one_name_and_other_content_stay_in_both_splits(source):
    masks_to_labels(source)
    for number in range(3):
        miniatures.picture(source / "others" / f"{number}.png", SIZE, 10 + number)
    classes = ("--classes", source / "classes.txt")
    run("masks", source / "others", source / "masks", source / "data", *classes, "--split", "val")
    for split in ("train", "val"):
        assert files(source / "data", "images", split) == ["0", "1", "2"]


def test_another_image_of_one_name_in_one_split_is_not_replaced(source):
    masks_to_labels(source)
    before = (source / "data/images/train/0.png").read_bytes()
    miniatures.picture(source / "others" / "0.png", SIZE, 10)
    with pytest.raises(UserError, match="1 of 1: images have the name of another image in the data folder"):
        run("masks", source / "others", source / "masks", source / "data", "--classes", source / "classes.txt")
    assert (source / "data/images/train/0.png").read_bytes() == before


def test_labels_are_made_anew_when_a_mask_changes_even_with_its_old_time_and_size(source):
    path = source / "masks" / "0.png"
    write_mask(path, BLOCK, compress_level=0)
    masks_to_labels(source)
    before = path.stat()
    write_mask(path, 1 - BLOCK, compress_level=0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert np.array_equal(masks_to_labels(source)["0"], 1 - BLOCK)


def test_images_are_copied_anew_when_they_change(source):
    masks_to_labels(source)
    miniatures.picture(source / "images" / "0.png", SIZE, 99)
    masks_to_labels(source)
    assert (source / "data/images/train/0.png").read_bytes() == (source / "images/0.png").read_bytes()


def test_an_image_that_gets_another_format_does_not_stay_in_both(source):
    masks_to_labels(source)
    Image.open(source / "images" / "0.png").save(source / "images" / "0.jpg")
    (source / "images" / "0.png").unlink()
    masks_to_labels(source)
    assert [path.name for path in sorted((source / "data/images/train").glob("0.*"))] == ["0.jpg"]


def test_labels_are_made_anew_when_the_colors_or_the_threshold_change(source):
    mask = BLOCK * 100 + 50
    mask[0] = 100
    for path in (source / "masks").glob("*.png"):
        write_mask(path, mask)
    for threshold in (140, 80):
        assert np.array_equal(masks_to_labels(source, "--threshold", threshold)["0"], mask > threshold)
    values = masks_to_labels(source, classes="150 background\n50 road\n100 -\n")["0"]
    assert np.array_equal(values, np.where(mask == 100, -1, mask == 50))


def test_the_class_list_follows_as_long_as_nobody_edited_it(source):
    masks_to_labels(source)
    found = masks_to_labels(source, classes="1 road\n0 background\n")
    assert (source / "data/classes.txt").read_text() == "0 road\n1 background\n"
    assert np.array_equal(found["0"], 1 - BLOCK)
    (source / "data/classes.txt").write_text("0 street\n1 background\n")
    with pytest.raises(UserError, match=r"classes\.txt has other classes or values"):
        masks_to_labels(source, classes="background\nroad\n")


def test_the_class_list_does_not_follow_while_other_images_have_the_old_one(source):
    masks_to_labels(source)
    miniatures.picture(source / "others" / "9.png", SIZE, 10)
    write_mask(source / "masks" / "9.png", BLOCK)
    (source / "classes.txt").write_text("1 road\n0 background\n")
    with pytest.raises(UserError, match=r"classes\.txt has other classes or values"):
        run("masks", source / "others", source / "masks", source / "data", "--classes", source / "classes.txt")
    assert np.array_equal(labels_of(source / "data")["0"], BLOCK)


def test_labels_of_a_changed_annotation_and_background_are_made_anew(source):
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "road"}],
    }
    for width, background in ((10, "background"), (20, "background"), (20, "-")):
        outline = [0, 0, width, 0, width, SIZE[0], 0, SIZE[0]]
        objects = [{"id": 0, "image_id": 0, "category_id": 1, "segmentation": [outline], "area": 1}]
        names = content["categories"] + [{"id": 2, "name": "tree"}]
        (source / "a.json").write_text(json.dumps({**content, "categories": names, "annotations": objects}))
        run("coco", source / "images", source / "a.json", source / "data", "--background", background)
        labels = labels_of(source / "data")["0"]
        road = 0 if background == "-" else 1
        assert (labels == road)[:, :width].all()
        assert (labels[:, width:] == road - 1).all()


def test_a_folder_made_before_there_was_a_record_is_made_anew_once(source, capsys):
    masks_to_labels(source)
    (source / "data" / ".prepared.json").unlink()
    write_mask(source / "masks" / "0.png", 1 - BLOCK)
    assert np.array_equal(masks_to_labels(source)["0"], 1 - BLOCK)
    masks_to_labels(source)
    assert "3 of them were there already" in capsys.readouterr().out


def test_links_that_lead_nowhere_are_made_anew(source):
    masks_to_labels(source, "--link")
    (source / "images").rename(source / "moved")
    classes = ("--classes", source / "classes.txt", "--link")
    run("masks", source / "moved", source / "masks", source / "data", *classes)
    assert (source / "data/images/train/0.png").readlink() == source / "moved" / "0.png"
    assert len(labels_of(source / "data")) == 3


def test_a_data_folder_below_the_images_is_not_taken_in(source):
    for _ in range(2):
        target = source / "images" / "data"
        run("masks", source / "images", source / "masks", target, "--classes", source / "classes.txt")
        assert len(labels_of(target)) == 3


def test_masks_in_the_data_folder_are_not_overwritten(source):
    (source / "masks").rename(source / "labels")
    with pytest.raises(UserError, match="would be overwritten: use another TARGET"):
        run("masks", source / "images", source / "labels", source, "--classes", source / "classes.txt")


def test_a_dry_run_says_what_was_found_and_writes_nothing(source, capsys):
    classes = ("--classes", source / "classes.txt", "--dry_run")
    run("masks", source / "images", source / "masks", source / "data", *classes)
    said = capsys.readouterr().out
    assert f"3 images in {source / 'images'}, their labels in {source / 'masks'} (the same names)" in said
    assert "3 images for train in" in said
    assert not (source / "data").exists()


def test_what_an_earlier_run_made_of_files_that_are_gone_is_said(source, capsys):
    for number in range(10, 30):
        miniatures.picture(source / "images" / f"{number}.png", SIZE, number)
        write_mask(source / "masks" / f"{number}.png", BLOCK)
    masks_to_labels(source)
    (source / "masks/0.png").write_bytes(b"damaged")
    for kind in ("images", "masks"):
        (source / kind / "1.png").unlink()
    (source / "masks/2.png").unlink()
    capsys.readouterr()
    masks_to_labels(source, "--link")
    said = capsys.readouterr().out
    assert "keeps 3 images of an earlier run (the first: train/0)" in said
