import numpy as np
import pytest
from PIL import Image

import miniatures
import prepare_labels
from segmentation.layouts import open_split
from segmentation.recipe import DataError, UserError

SIZE = (8, 8)
NAMES = [f"2007_{number:06d}" for number in range(12)]
TRAIN, VAL = NAMES[:3], NAMES[3:5]


def write(root, image, mask, labeled):
    """Images of all names, and masks of some."""
    for name in NAMES:
        miniatures.picture(root / image.format(name), SIZE)
    for name in labeled:
        path = root / mask.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
    (root / "classes.txt").write_text("background\nroad\n", encoding="utf-8")


def lists(root, form="{}", **names):
    for path, listed in names.items():
        file = root / f"{path}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(form.format(name) + "\n" for name in listed), encoding="utf-8")


@pytest.fixture
def voc(tmp_path):
    """A folder as Pascal VOC's, of which few images have masks."""
    write(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", TRAIN + VAL)
    (tmp_path / "Annotations").mkdir()
    lists(tmp_path / "ImageSets/Main", train=NAMES[6:])
    lists(tmp_path / "ImageSets/Segmentation", train=TRAIN, val=VAL, trainval=TRAIN + VAL)
    return tmp_path


def prepare(root, *options, images="JPEGImages", masks="SegmentationClass"):
    arguments = ["masks", root / images, root / masks, root / "data", "--classes", root / "classes.txt", *options]
    prepare_labels.main([*map(str, arguments), "--workers", "1"])
    return {split: stems(root / "data/labels" / split) for split in ("train", "val")}


def stems(folder):
    return sorted(path.stem for path in folder.glob("*.png"))


def split_names(root, split):
    return [path.stem for path in open_split("folder", root, split).images]


@pytest.mark.parametrize("options", [(), ("--val_share", "0.5")])
def test_lists_of_voc_divide_the_images_that_have_masks(voc, capsys, options):
    assert prepare(voc, *options) == {"train": TRAIN, "val": VAL}
    note = "train.txt names 3 images, val.txt names 2 images; 7 in no list are left out"
    note += "; --val_share is not used" * bool(options)
    assert f"{voc / 'ImageSets/Segmentation'}: {note}" in capsys.readouterr().out.splitlines()


def test_lists_say_which_images_are_meant_where_all_are_for_one_split(voc):
    assert prepare(voc, "--split", "val") == {"train": [], "val": TRAIN + VAL}


def test_a_folder_of_lists_is_trained_on_as_it_is(voc):
    assert split_names(voc, "train") == TRAIN
    split = open_split("folder", voc, "val")
    assert [path.stem for path in split.images] == VAL
    assert "val.txt names 2 images" in split.notes[1]


def test_the_larger_training_set_goes_with_its_masks(voc):
    (voc / "SegmentationClass").rename(voc / "SegmentationClassAug")
    lists(voc / "ImageSets/Segmentation", trainaug=TRAIN[:1])
    assert prepare(voc, masks="SegmentationClassAug") == {"train": TRAIN[:1], "val": VAL}


def test_an_undivided_list_says_which_images_are_meant(tmp_path):
    write(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", TRAIN)
    lists(tmp_path / "ImageSets/Segmentation", default=TRAIN)
    assert prepare(tmp_path, "--val_share", "1") == {"train": [], "val": TRAIN}
    with pytest.raises(DataError, match="not divided"):
        open_split("folder", tmp_path, "train")


@pytest.mark.parametrize(
    ("place", "form"),
    [(".", "images/{}.jpg labels/{}.png"), (".", "/home/me/images/{}.jpg"), ("splits", "{}"), (".", "{}.jpg,x")],
)
def test_lists_of_every_form_are_read(tmp_path, place, form):
    write(tmp_path, "images/{}.jpg", "labels/{}.png", NAMES)
    lists(tmp_path / place, form.replace("{}", "{0}"), train=TRAIN, val=VAL)
    assert split_names(tmp_path, "train") == TRAIN
    assert prepare(tmp_path, images="images", masks="labels") == {"train": TRAIN, "val": VAL}


def test_a_list_of_the_validation_images_leaves_the_others_for_training(tmp_path):
    write(tmp_path, "images/{}.jpg", "labels/{}_P.png", NAMES)
    lists(tmp_path, valid=VAL, test=NAMES[5:])
    assert split_names(tmp_path, "train") == TRAIN
    assert split_names(tmp_path, "val") == VAL


def test_lists_divide_parts_that_hold_images_and_labels_each(tmp_path):
    write(tmp_path, "aachen/images/{}.tif", "aachen/labels/{}.tif", NAMES)
    lists(tmp_path, "{}.tif", train=TRAIN, val=VAL)
    assert split_names(tmp_path, "val") == VAL


def test_lists_beside_folders_of_splits_change_nothing(tmp_path):
    write(tmp_path, "images/train/{}.jpg", "labels/train/{}.png", NAMES)
    lists(tmp_path, train=TRAIN, val=VAL)
    assert split_names(tmp_path, "train") == NAMES


def test_lists_of_other_images_change_nothing(tmp_path):
    write(tmp_path, "images/{}.jpg", "labels/{}.png", NAMES)
    lists(tmp_path, train=["a", "b"], val=["c"])
    lists(tmp_path, "other/{}.jpg", train=TRAIN)
    assert prepare(tmp_path, images="images", masks="labels") == {"train": NAMES, "val": []}


def test_a_list_of_training_images_alone_changes_nothing_outside_of_imagesets(tmp_path):
    write(tmp_path, "images/{}.jpg", "labels/{}.png", NAMES)
    lists(tmp_path, train=[",", *TRAIN])
    assert prepare(tmp_path, images="images", masks="labels") == {"train": NAMES, "val": []}


def test_names_of_no_image_are_counted(voc, capsys):
    lists(voc / "ImageSets/Segmentation", train=[*TRAIN, "gone", "too"])
    prepare(voc)
    assert "val.txt names 2 images, and 2 that are not there, the first: gone; 7 in no list" in capsys.readouterr().out


def test_an_image_in_the_lists_of_both_splits_is_refused(voc):
    lists(voc / "ImageSets/Segmentation", train=TRAIN + VAL)
    with pytest.raises(DataError, match=rf"train\.txt and \S+val\.txt both name {VAL[0]}\.jpg"):
        prepare(voc)


def test_a_listed_image_without_mask_is_not_left_out_in_silence(voc):
    (voc / f"SegmentationClass/{TRAIN[0]}.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 5: images have no mask: if they are not labeled yet, add --labeled_only"
    ):
        prepare(voc)


def test_unlabeled_images_are_left_out_on_request(tmp_path):
    write(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", TRAIN)
    with pytest.raises(UserError, match=r"9 of 12 .* add --labeled_only"):
        prepare(tmp_path)
    assert prepare(tmp_path, "--labeled_only") == {"train": TRAIN, "val": []}
