import unicodedata

import numpy as np
import pytest
from PIL import Image

import miniatures
from segmentation.layouts import open_split
from segmentation.pairs import pair
from segmentation.recipe import DataError

NUMBERS = ("1", "2", "3", "10", "11")
SIZE = (8, 8)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def each(pattern):
    return [pattern.format(number) for number in NUMBERS]


def names(pairs):
    return {image.name: label.name for image, label in zip(pairs.images, pairs.labels)}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}.jpg", "{}.png"),
        ("{}.JPG", "{}_mask.PNG"),
        ("{}.jpg", "{}.jpg.png"),
        ("{}_sat.jpg", "{}_mask.png"),
        ("{}_image.png", "{}_annotation.png"),
        ("{}.png", "{}_L.png"),
        ("bonn/{}_leftImg8bit.png", "bonn/{}_gtFine_labelIds.png"),
        ("img_{}.jpg", "mask_{}.png"),
        ("image-00{}.jpg", "label-00{}.png"),
        ("{}_training.tif", "{}_manual1.gif"),
        ("photo{}.jpg", "photo{}Mask.png"),
        ("ISIC_{}.jpg", "ISIC_{}_segmentation.png"),
    ],
)
@pytest.mark.parametrize("numbers", [NUMBERS, NUMBERS[:1]])
def test_one_affix_of_all_names_is_found_in_two_folders_and_in_one(tmp_path, image, mask, numbers):
    images, masks = ([pattern.format(number) for number in numbers] for pattern in (image, mask))
    expected = {i.split("/")[-1]: m.split("/")[-1] for i, m in zip(images, masks)}
    two = pair(touch(tmp_path / "i", *images), touch(tmp_path / "m", *masks))
    one = pair(touch(tmp_path / "both", *images, *masks), tmp_path / "both")
    assert names(two) == names(one) == expected
    assert not two.unlabeled + two.unused + one.unlabeled + one.unused


@pytest.mark.parametrize(
    ("image", "mask"),
    [("case_{}_0000.png", "case_{}.png"), ("image_{}_rgb.png", "label_{}_gt.png"), ("uu_0{}.png", "uu_road_0{}.png")],
)
def test_ends_that_go_both_ends_and_insertions_are_found_in_two_folders(tmp_path, image, mask):
    found = pair(touch(tmp_path / "i", *each(image)), touch(tmp_path / "m", *each(mask)))
    assert names(found) == dict(zip(each(image), each(mask)))


def test_an_insertion_into_most_names_goes_before_one_into_few(tmp_path):
    images = [f"{kind}_{number:06d}.png" for kind in ("uu", "um", "umm") for number in range(3)]
    masks = [name.replace("_", "_road_") for name in images] + [f"um_lane_{number:06d}.png" for number in range(3)]
    found = pair(touch(tmp_path / "i", *images), touch(tmp_path / "m", *masks))
    assert names(found) == {name: name.replace("_", "_road_") for name in images}
    assert len(found.unused) == 3
    assert "'road_' in the name" in str(found)


def test_equal_names_go_before_an_affix(tmp_path):
    masks = touch(tmp_path / "m", *each("{}.png"), *each("{}_color.png"))
    found = pair(touch(tmp_path / "i", *each("{}.jpg")), masks)
    assert names(found) == dict(zip(each("{}.jpg"), each("{}.png")))
    assert str(found).endswith("(the same names), 5 masks without image, the first: 10_color.png")


def test_what_has_no_partner_is_counted_and_the_first_is_named(tmp_path):
    images = touch(tmp_path / "i", *each("{}.jpg"))
    found = pair(images, touch(tmp_path / "m", *each("{}_mask.png")[1:], "8_mask.png", "9_mask.png"))
    line = (
        f"4 images in {images}, their labels in {tmp_path / 'm'} (name + '_mask'), 1 images without labels, the first: "
        "1.jpg, 2 masks without image, the first: 8_mask.png"
    )
    assert str(found) == line


def test_a_second_mask_of_an_image_is_refused(tmp_path):
    names_of = [f"benign ({number})" for number in NUMBERS]
    files = [name + ending for name in names_of for ending in (".png", "_mask.png")]
    with pytest.raises(DataError, match=r"'benign \(2\)' has more than one label file: .*_mask' and .*_mask_1'"):
        pair(touch(tmp_path, *files, "benign (2)_mask_1.png"), tmp_path)


@pytest.mark.parametrize("more", ["2_mask_1.png", "2_second.png", "other_2.png", "2_HE.png", "2_1_mask_b.png"])
def test_a_second_mask_in_a_folder_of_masks_is_refused(tmp_path, more):
    images = touch(tmp_path / "i", *each("{}.jpg"))
    with pytest.raises(DataError, match="'2' has more than one label file"):
        pair(images, touch(tmp_path / "m", *each("{}_mask.png"), more))


@pytest.mark.parametrize(
    ("image", "mask"),
    [("train_{}.jpg", "val_{}.png"), ("austin{}.jpg", "chicago{}.png"), ("cam_left_{}.jpg", "cam_right_{}.png")],
)
def test_names_that_differ_by_a_word_of_content_are_no_pairs(tmp_path, image, mask):
    with pytest.raises(DataError, match="no image and label file belong together"):
        pair(touch(tmp_path / "i", *each(image)), touch(tmp_path / "m", *each(mask)))


def test_other_pictures_of_what_is_labeled_are_images_without_labels(tmp_path):
    images = touch(tmp_path / "i", *each("ISIC_{}.jpg"), *each("ISIC_{}_superpixels.png"))
    found = pair(images, touch(tmp_path / "m", *each("ISIC_{}_segmentation.png")))
    assert names(found) == dict(zip(each("ISIC_{}.jpg"), each("ISIC_{}_segmentation.png")))
    assert len(found.unlabeled) == len(NUMBERS)


def test_names_are_equal_in_every_form_of_unicode(tmp_path):
    composed, decomposed = (
        unicodedata.normalize(form, "H\N{LATIN SMALL LETTER O WITH DIAERESIS}he") for form in ("NFC", "NFD")
    )
    found = pair(touch(tmp_path / "i", f"{composed}.jpg"), touch(tmp_path / "m", f"{decomposed}.png"))
    assert len(found.images) == 1


def test_masks_in_one_folder_below_are_found(tmp_path):
    found = pair(touch(tmp_path / "i", *each("{}.jpg")), touch(tmp_path / "m/trimaps", *each("{}.png")).parent)
    assert names(found) == dict(zip(each("{}.jpg"), each("{}.png")))


def test_a_preview_of_labels_is_no_mask(tmp_path):
    with pytest.raises(DataError, match="names do not tell which are masks"):
        pair(touch(tmp_path, "label.png", "label_viz.png"), tmp_path)


def test_kinds_of_masks_are_refused_however_few_images_have_them(tmp_path):
    images = touch(tmp_path / "i", *each("IDRiD_{}.jpg"))
    masks = touch(tmp_path / "m", *each("IDRiD_{}_EX.tif"), "IDRiD_1_MA.tif", "IDRiD_3_SE.tif")
    with pytest.raises(DataError, match="has more than one label file"):
        pair(images, masks)


@pytest.mark.parametrize("masks", [("frame.png", "frame_1.png", "frame_2.png"), ("a.png", "frame.png", "frame_9.png")])
def test_masks_of_images_that_are_gone_are_counted_where_names_of_images_go_on_so_too(tmp_path, masks):
    images = touch(tmp_path / "i", "a.jpg", "frame.jpg", "frame_1.jpg")
    assert len(pair(images, touch(tmp_path / "m", *masks)).unused) == 1


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["a.jpg", "a.png"], ["a.png"], r"a\.jpg and a\.png in .* are images of one name"),
        (["a.jpg"], ["a.png", "a.tif"], r"a\.png and a\.tif in .* are label files of one name"),
        (each("{}.jpg"), each("{}_ids.png") + each("{}_color.png"), "has more than one label file: '1?0?_color' and"),
        (each("{}.jpg"), ["1.png", "2.png", "3_mask.png", "10_mask.png"], "label files have two kinds of names"),
        (["cat.jpg"], ["car.png"], "no image and label file belong together .* 'cat' and 'car'"),
        (["f_1.jpg", "f_2.jpg"], ["f_3.png", "f_4.png"], "no image and label file belong together"),
        (["a.jpg"], ["a.txt"], r"m holds no images\. There are: 1 \.txt"),
    ],
)
def test_names_that_tell_two_things_or_nothing_are_refused(tmp_path, images, masks, message):
    touch(tmp_path / "m", *masks)
    with pytest.raises(DataError, match=message):
        pair(touch(tmp_path / "i", *images), tmp_path / "m")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (each("{}.jpg"), "their names do not tell which are masks"),
        (each("{}.tif") + each("{}.png"), r"1\.png and 1\.tif in .* are files of one name"),
        (each("{}.jpg") + each("{}.png") + each("{}_mask.png"), "has more than one label file"),
    ],
)
def test_one_folder_whose_names_do_not_tell_the_masks_is_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        pair(touch(tmp_path, *files), tmp_path)


def test_parts_hold_a_folder_of_images_and_one_of_masks_each(tmp_path):
    files = [f"Tile {part}/{kind}" for part in (1, 2) for kind in ("images/a.jpg", "masks/a.png", "depth/a.png")]
    found = pair(touch(tmp_path, *files), tmp_path)
    assert [path.parent.parent.name for path in found.images] == ["Tile 1", "Tile 2"]
    assert [(i.parent.parent, i.stem) for i in found.images] == [(m.parent.parent, m.stem) for m in found.labels]
    assert str(found).endswith("(the same names), 2 pictures in other folders, the first: a.png")


def test_an_image_of_a_part_without_mask_is_told_where_it_belongs(tmp_path):
    files = ["Tile 1/images/a.jpg", "Tile 1/masks/a.png", "Tile 2/images/b.jpg"]
    found = pair(touch(tmp_path, *files), tmp_path)
    assert found.expected(found.unlabeled[0]) == tmp_path / "Tile 2/masks/b.png"


def test_two_files_of_one_name_in_a_part_are_named_with_their_folders(tmp_path):
    touch(tmp_path, "Tile 1/images/a.jpg", "Tile 1/rgb/a.jpg", "Tile 1/masks/a.png")
    with pytest.raises(DataError, match=r"Tile 1/images/a\.jpg and \S+Tile 1/rgb/a\.jpg are images of one name"):
        pair(tmp_path, tmp_path)


@pytest.mark.parametrize("folders", [("i", "m"), ("both", "both")])
def test_one_of_several_kinds_of_masks_is_chosen_by_a_pattern(tmp_path, folders):
    images, masks = (tmp_path / folder for folder in folders)
    touch(masks, *each("{}_color.png"), *each("{}_labelIds.png"))
    found = pair(touch(images, *each("{}.jpg")), masks, label_names="*_labelIds.png")
    assert names(found) == dict(zip(each("{}.jpg"), each("{}_labelIds.png")))
    with pytest.raises(DataError, match=r"holds no masks named '\*_ids\.png'"):
        pair(images, masks, label_names="*_ids.png")


def test_folders_whose_names_tell_nothing_are_listed(tmp_path):
    touch(tmp_path, *each("camera/{}.png"), *each("semantics/{}.png"))
    with pytest.raises(DataError, match=r"holds 10 images in camera, semantics, but .*masks IMAGES MASKS NEW_FOLDER"):
        pair(tmp_path, tmp_path)


# Data folders


def write(path, value=None):
    """An image of noise, or a label file of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    miniatures.picture(path, SIZE) if value is None else Image.fromarray(np.full(SIZE, value, np.uint8)).save(path)


def write_split(folder, image, mask, count=3):
    for number in range(count):
        write(folder / image.format(number))
        write(folder / mask.format(number), number % 2)
    (folder / "classes.txt").write_text("background\nroad\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/train/{}.jpg", "labels/train/{}.png"),
        ("images/train/{}_sat.jpg", "masks/train/{}_mask.png"),
        ("images/training/city/{}.jpg", "annotations/training/city/{}.png"),
        ("train/images/{}.jpg", "train/masks/{}.png"),
        ("Train/Images/{}.jpg", "Train/GT/{}.png"),
        ("train/JPEGImages/{}.jpg", "train/SegmentationClass/{}.png"),
        ("train/{}.jpg", "train/{}_mask.png"),
        ("train/{}.jpg", "train/{}.png"),
        ("train/{}.jpg", "train_labels/{}_L.png"),
        ("train/{}.png", "trainannot/{}.png"),
        ("train_images/{}.jpg", "masks-train/{}.png"),
        ("training/images/{}_training.tif", "training/1st_manual/{}_manual1.gif"),
        ("Train/images_png/{}.png", "Train/masks_png/{}.png"),
    ],
)
def test_arrangements_of_a_data_folder_are_found(tmp_path, image, mask):
    write_split(tmp_path, image, mask)
    split = open_split("folder", tmp_path, "train")
    assert [int(split.open(index)[1].max()) for index in range(3)] == [0, 1, 0]
    assert split.notes[0].startswith("train: 3 images in ")


def test_other_names_of_the_validation_split_are_accepted(tmp_path):
    write_split(tmp_path, "train/{}.jpg", "train/{}_mask.png")
    write_split(tmp_path, "valid/{}.jpg", "valid/{}_mask.png", 2)
    assert len(open_split("folder", tmp_path, "val")) == 2


@pytest.mark.parametrize("ending", ["png", "PNG", "tif", "tiff", "bmp", "gif", "webp"])
def test_labels_of_every_lossless_format_are_read(tmp_path, ending):
    write_split(tmp_path, "images/train/{}.jpg", "labels/train/{}.png", 1)
    path = tmp_path / "labels/train/0.png"
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
    kwargs = {"lossless": True} if ending == "webp" else {}
    labels = np.asarray(Image.open(path))
    path.unlink()
    Image.fromarray(labels).save(path.with_suffix(f".{ending}"), **kwargs)
    split = open_split("folder", tmp_path, "train")
    assert split.labels == [path.with_suffix(f".{ending}")]
    if ending != "webp":  # which has three channels
        assert np.array_equal(split.open(0)[1], labels)


@pytest.mark.parametrize(
    ("ending", "options", "message"),
    [
        ("jpg", {}, r"0\.jpg is a JPEG, which changes the values of labels"),
        ("webp", {"quality": 50}, r"0\.webp is a lossy WebP"),
        ("tif", {"compression": "jpeg"}, r"0\.tif is a TIFF with JPEG compression"),
    ],
)
def test_labels_of_a_lossy_format_are_refused_by_name(tmp_path, ending, options, message):
    write_split(tmp_path, "images/train/{}.jpg", "labels/train/{}.png", 1)
    (tmp_path / "labels/train/0.png").unlink()
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / f"labels/train/0.{ending}", **options)
    with pytest.raises(DataError, match=message):
        open_split("folder", tmp_path, "train")


def test_the_standard_folders_go_before_others(tmp_path):
    write_split(tmp_path, "images/train/{}.jpg", "labels/train/{}.png")
    write_split(tmp_path, "images/train/{}.jpg", "masks/train/{}.png")
    assert open_split("folder", tmp_path, "train").labels[0].parent == tmp_path / "labels" / "train"


def test_two_arrangements_at_once_are_refused(tmp_path):
    write_split(tmp_path, "train/images/{}.jpg", "train/masks/{}.png")
    write_split(tmp_path, "train/images/{}.jpg", "train/annotations/{}.png")
    with pytest.raises(DataError, match=r"could be .*masks or .*annotations: leave one"):
        open_split("folder", tmp_path, "train")


def test_another_folder_of_images_beside_the_labels_is_pointed_out(tmp_path):
    write_split(tmp_path, "train/images/{}.jpg", "train/masks/{}.png")
    write(tmp_path / "train/depth/0.png")
    notes = open_split("folder", tmp_path, "train").notes
    assert f"Warning: {tmp_path / 'train/depth'} holds images too, and is not used." in notes
    write_split(tmp_path / "b", "images/train/{}.jpg", "labels/train/{}.png")
    write(tmp_path / "b/depth/train/0.png")
    assert "depth/train holds images too" in "".join(open_split("folder", tmp_path / "b", "train").notes)
    write_split(tmp_path / "c", "images/train/{}.jpg", "labels/train/{}.png")
    write_split(tmp_path / "c", "images/val/{}.jpg", "labels/val/{}.png")
    assert len(open_split("folder", tmp_path / "c", "train").notes) == 1


def test_masks_of_what_counts_at_all_do_not_pass_for_labels(tmp_path):
    write_split(tmp_path, "training/images/{}_training.tif", "training/1st_manual/{}_manual1.gif")
    for number in range(3):
        write(tmp_path / f"training/mask/{number}_training_mask.gif")
    with pytest.raises(DataError, match=r"could be .*/mask or .*/1st_manual: leave one"):
        open_split("folder", tmp_path, "train")


def test_folders_without_splits_are_told_the_command_that_divides_them(tmp_path):
    write_split(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png")
    with pytest.raises(
        DataError, match=r"not divided .*masks \S+JPEGImages \S+SegmentationClass NEW_FOLDER .*--val_share"
    ):
        open_split("folder", tmp_path, "train")


def test_label_folders_that_hold_no_images_give_way_to_others(tmp_path):
    write_split(tmp_path, "images/train/{}.jpg", "masks/train/{}.png")
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/0.txt").write_text("0 0.5 0.5 1 1")
    assert open_split("folder", tmp_path, "train").labels[0].parent == tmp_path / "masks/train"


@pytest.mark.parametrize(
    "form", ["Train/{}/images_png/0.png Train/{}/masks_png/0.png", "train/{}/Images/0.jpg train/{}/GT/0_mask.png"]
)
def test_parts_that_hold_images_and_labels_each_are_read(tmp_path, form):
    for part in ("Rural", "Tile 1", "Tile 2"):
        image, mask = (name.format(part) for name in form.rsplit(" ", 1))
        write(tmp_path / image)
        write(tmp_path / mask, int(part == "Tile 1"))
    (tmp_path / "classes.txt").write_text("background\nroad\n")
    split = open_split("folder", tmp_path, "train")
    assert [int(split.open_labels(index).max()) for index in range(3)] == [0, 1, 0]


def test_parts_without_splits_are_told_the_command_that_divides_them(tmp_path):
    for part in ("Tile 1", "Tile 2"):
        write_split(tmp_path / "my data", f"{part}/images/{{}}.jpg", f"{part}/masks/{{}}.png")
    folder = f"'{tmp_path / 'my data'}'"
    with pytest.raises(DataError, match=f"not divided .*masks {folder} {folder} NEW_FOLDER --classes .*--val_share"):
        open_split("folder", tmp_path / "my data", "train")


def test_the_only_folder_in_a_folder_is_meant_by_it(tmp_path):
    write_split(tmp_path, "archive/set/train/images/{}.jpg", "archive/set/train/masks/{}.png")
    assert len(open_split("folder", tmp_path, "train")) == 3


def test_images_without_any_masks_are_named_as_that(tmp_path):
    write_split(tmp_path, "train/{}_sat.jpg", "train/{}_mask.png")
    write(tmp_path / "valid/1_sat.jpg")
    write(tmp_path / "valid/2_sat.jpg")
    with pytest.raises(DataError, match=r"valid holds 2 images, but their names do not tell which are masks, if any"):
        open_split("folder", tmp_path, "val")


def test_a_validation_split_without_labels_is_told_how_to_divide_the_training_images(tmp_path):
    write_split(tmp_path, "train/{}_sat.jpg", "train/{}_mask.png")
    train = tmp_path / "train"
    command = (
        rf"masks {train} {train} NEW_FOLDER --classes {tmp_path}/classes\.txt --val_share 0\.1` takes some of train"
    )
    for number in range(2):
        write(tmp_path / f"valid/{number}_sat.jpg")
    with pytest.raises(DataError, match=command):
        open_split("folder", tmp_path, "val")


@pytest.mark.parametrize("form", ["uavid_{}", "{} Set", "My-{}-data"])
def test_folders_may_end_with_the_name_of_a_split(tmp_path, form):
    for split in ("train", "val"):
        folder = form.format(split)
        write_split(tmp_path, f"{folder}/seq1/Images/{{}}.png", f"{folder}/seq1/Labels/{{}}.png")
    write(tmp_path / form.format("test") / "seq2/Images/0.png")
    write_split(tmp_path, "train_val/images/{}.png", "train_val/masks/{}.png")  # which is no validation split
    assert [len(open_split("folder", tmp_path, split)) for split in ("train", "val")] == [3, 3]


def test_an_unknown_arrangement_says_what_was_looked_for_and_what_is_there(tmp_path):
    write_split(tmp_path, "pictures/train/{}.jpg", "truth/{}.png")
    message = (
        r"images/train does not exist\. Looked for images/train with labels/train .* holds: classes\.txt, pictures/"
    )
    with pytest.raises(DataError, match=message.replace(r"\. Looked", r".* Looked")):
        open_split("folder", tmp_path, "train")


def test_labels_that_are_no_images_are_named_by_their_ending(tmp_path):
    write_split(tmp_path, "images/train/{}.jpg", "labels/train/{}.png")
    for path in (tmp_path / "labels/train").glob("*.png"):
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(DataError, match=r"labels/train holds no images\. There are: 3 \.txt"):
        open_split("folder", tmp_path, "train")


def test_subfolders_without_labels_do_not_stop_images_above_them(tmp_path):
    write_split(tmp_path, "images/train/{}.jpg", "labels/train/{}.png")
    write(tmp_path / "images/train/more/x.jpg")
    split = open_split("folder", tmp_path, "train")
    assert len(split) == 3
    assert "1 images without labels, the first: x.jpg" in split.notes[0]
