import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import miniatures
import show_data
from segmentation import data, layouts
from segmentation.class_list import distinct_colors, read_classes
from segmentation.data import TrainSamples, check_labels, training_samples
from segmentation.evaluation import Samples
from segmentation.layouts import open_split
from segmentation.recipe import DataError, SettingsError, TrainSettings, read_recipe
from segmentation.transforms import PhotometricDistortion, RandomResizedCrop, TrainTransform
from segnext_timm.label_sets import LABEL_SETS
from segnext_timm.prediction.images import read_image

# Values of the label files and the classes they stand for, from each data set's own documentation
CITYSCAPES = {0: 255, 7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12}
CITYSCAPES |= {26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18, 29: 255, 6: 255, 18: 255}
MEANINGS = {
    "ade20k": {0: 255, 1: 0, 2: 1, 150: 149},
    "cityscapes": CITYSCAPES,
    # person, street sign (absent), backpack, toothbrush, hair brush (absent), banner and wood, the last one
    "coco_stuff164k": {0: 0, 11: 255, 26: 24, 89: 79, 90: 255, 91: 80, 181: 170, 255: 255},
    "voc2012": {0: 0, 1: 1, 20: 20, 255: 255},
    "pascal_context": {0: 255, 1: 0, 59: 58},
    "isaid": {0: 0, 15: 15, 255: 255},
    "folder": {0: 0, 1: 1, 2: 2, 255: 255},
}


@pytest.mark.parametrize("dataset", MEANINGS)
def test_layouts_are_read_and_values_mean_what_the_data_set_says(tmp_path, dataset):
    meaning = MEANINGS[dataset]
    miniatures.make(dataset, tmp_path, list(meaning))
    for name in ("train", "val"):
        split = open_split(dataset, tmp_path, name)
        assert len(split) == len(miniatures.SIZES)
        for index, size in enumerate(miniatures.SIZES):
            image, labels = split.open(index)
            assert image.mode == "RGB"
            assert (image.height, image.width) == labels.shape == size
            expected = miniatures.stripes([*meaning.values()], size)
            assert np.array_equal(labels, expected)
    assert len(split.classes) == len(split.palette)


def test_every_data_set_whose_classes_are_known_has_a_layout():
    assert list(layouts.LAYOUTS) == list(LABEL_SETS)


def test_coco_stuff_has_its_171_classes():
    mapping = layouts.only(layouts.COCO_STUFF_IDS)
    assert sorted(set(mapping) - {255}) == list(range(171))


def test_voc_trains_on_the_augmented_set_if_it_is_there(tmp_path):
    miniatures.make("voc2012", tmp_path, [0, 1])
    root = tmp_path / "VOC2012"
    (root / "SegmentationClass").rename(root / "SegmentationClassAug")
    (root / "ImageSets" / "Segmentation" / "train.txt").rename(root / "ImageSets" / "Segmentation" / "trainaug.txt")
    assert open_split("voc2012", tmp_path, "train").labels[0].parent.name == "SegmentationClassAug"


@pytest.mark.parametrize("dataset", MEANINGS)
def test_missing_files_are_named(tmp_path, dataset):
    with pytest.raises(DataError, match="none does not exist: point --data_root"):
        open_split(dataset, tmp_path / "none", "train")
    with pytest.raises(DataError, match="does not exist"):
        open_split(dataset, tmp_path, "train")
    miniatures.make(dataset, tmp_path, [0, 1])
    split = open_split(dataset, tmp_path, "val")
    split.labels[1].unlink()
    with pytest.raises(DataError, match=rf"1 of 3 images have no labels: add .*{split.labels[1].name}"):
        open_split(dataset, tmp_path, "val")
    for image in split.images:
        image.unlink()
    with pytest.raises(DataError, match=r"holds no|are missing"):
        open_split(dataset, tmp_path, "val")


def test_bad_files_of_a_folder_are_named(tmp_path):
    miniatures.make("folder", tmp_path, [0, 1, 255])
    split = open_split("folder", tmp_path, "train")
    for index, (write, message) in enumerate(
        (
            (lambda i: split.images[i].write_bytes(b"x"), "cannot be read as an image"),
            (lambda i: split.labels[i].write_bytes(b"x"), "cannot be read as an image"),
            (
                lambda i: miniatures.picture(split.labels[i], (10, 10)),
                r"is a color image \(#.*\): labels are PNGs of one",
            ),
            (
                lambda i: miniatures.labels(split.labels[i], np.zeros((9, 8), np.uint8)),
                r"has 8×9 pixels \(width×height\)",
            ),
            (
                lambda i: miniatures.labels(split.labels[i], np.full((48, 64), 7, np.uint8)),
                "holds the labels 7, but there",
            ),
        )
    ):
        miniatures.make("folder", tmp_path, [0, 1, 255])
        write(0)
        with pytest.raises(DataError, match=message) as error:
            split.open(0)
        assert split.images[0].name.removesuffix(".png") in str(error.value), index
    (tmp_path / "classes.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(DataError, match="names 1 classes: at least two"):
        open_split("folder", tmp_path, "train")


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    miniatures.make("folder", tmp_path, [0, 1])
    split = open_split("folder", tmp_path, "train")
    image = Image.fromarray(np.zeros((64, 48, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(split.images[0], exif=exif)
    assert split.open(0)[0].size == (64, 48)


def write_folder(root, classes, masks, mode="L"):
    """A data folder with `classes.txt` and one image a mask, in both splits."""
    for split in ("train", "val"):
        for index, mask in enumerate(masks):
            mask = np.asarray(mask, np.uint8)
            miniatures.picture(root / "images" / split / f"{index}.png", mask.shape[:2], index)
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).convert(mode).save(root / "labels" / split / f"{index}.png")
    (root / "classes.txt").write_text(classes, encoding="utf-8")


BINARY = miniatures.stripes([0, 255], (48, 64))


def test_classes_may_have_values_of_their_own(tmp_path):
    write_folder(tmp_path, "0 background\n255 person\n", [miniatures.stripes([0, 255, 7], (48, 64))])
    split = open_split("folder", tmp_path, "train", ignore_index=7)
    assert split.classes == ("background", "person")
    expected = miniatures.stripes([0, 1, split.ignore_index], (48, 64))
    assert np.array_equal(split.open(0)[1], expected)
    assert split.ignore_index not in (0, 1)
    with pytest.raises(
        DataError, match=r"0\.png holds the labels 7, but there are 2 classes .*'7 NAME'.*--ignore_index 7"
    ):
        open_split("folder", tmp_path, "train").open(0)


def test_values_are_mapped_for_training_and_evaluation_alike(tmp_path):
    write_folder(tmp_path, "0 background\n255 person\n", [BINARY] * 2)
    split = open_split("folder", tmp_path, "train")
    trained = training_samples(split, TrainSettings(crop_size=32, base_scale=(64, 48), resize_factors=(1, 1)))
    assert {label for k in range(8) for label in trained[k][1].unique().tolist()} == {0, 1}
    assert Samples(split, range(1))[0][1].unique().tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_classes_may_have_colors(tmp_path, mode):
    colors = np.array([(255, 0, 0), (0, 0, 255), (255, 255, 255)], np.uint8)
    mask = colors[miniatures.stripes([0, 1, 2], (48, 64))]
    write_folder(tmp_path, "#0000FF sky\n#ff0000 road\n#ffffff -\n", [mask], mode)
    split = open_split("folder", tmp_path, "train")
    assert split.palette == ((0, 0, 255), (255, 0, 0))
    assert np.array_equal(split.open(0)[1], miniatures.stripes([1, 0, split.ignore_index], (48, 64)))


def test_classes_without_colors_get_distinct_ones_and_the_background_gray(tmp_path):
    write_folder(tmp_path, "Background\ncat\ndog\n", [np.zeros((8, 8))])
    palette = open_split("folder", tmp_path, "train").palette
    assert palette[0] == (90, 90, 90)
    assert len(set(palette)) == 3
    write_folder(tmp_path, "cat\ndog\n", [np.zeros((8, 8))])
    assert open_split("folder", tmp_path, "train").palette == palette[1:]


def test_classes_may_have_colors_for_pictures(tmp_path):
    write_folder(tmp_path, "traffic sign #ff0000\ncat\n#1 dog\n".replace("#1 ", ""), [np.zeros((8, 8))])
    split = open_split("folder", tmp_path, "train")
    assert split.classes == ("traffic sign", "cat", "dog")
    assert split.palette[0] == (255, 0, 0)
    assert len(set(split.palette)) == 3
    write_folder(tmp_path, "9 cat #010203\n4 -\n0 background #040506\n", [np.full((8, 8), 9)])
    split = open_split("folder", tmp_path, "train")
    assert (split.classes, split.palette) == (("cat", "background"), ((1, 2, 3), (4, 5, 6)))
    assert (split.open(0)[1] == 0).all()


def test_distinct_colors_differ_and_begin_alike():
    many = distinct_colors(300)
    assert len(set(many)) == 300
    assert distinct_colors(5) == many[:5]
    assert not set(distinct_colors(20, many[:20])) & set(many[:20])


def test_what_a_value_means_is_part_of_the_fingerprint(tmp_path):
    found = set()
    for classes in ("a\nb\n", "0 a\n1 b\n", "1 a\n0 b\n", "a\nc\n"):
        write_folder(tmp_path, classes, [np.zeros((8, 8))])
        found.add(open_split("folder", tmp_path, "train").fingerprint())
    assert len(found) == 4


def test_images_of_16_bits_are_scaled_as_for_predictions(tmp_path):
    write_folder(tmp_path, "a\nb\n", [np.zeros((8, 8))])
    split = open_split("folder", tmp_path, "train")
    ramp = np.linspace(0, 65_535, 64).reshape(8, 8).astype(np.uint16)
    split.images[0] = tmp_path / "ramp.png"
    Image.fromarray(ramp).save(split.images[0])
    image, _ = split.open(0)
    assert np.array_equal(np.asarray(image).transpose(2, 0, 1), read_image(split.images[0]).numpy())
    assert np.asarray(image).mean() == pytest.approx(0.5, abs=0.002)


def test_no_label_need_be_left_out(tmp_path):
    write_folder(tmp_path, "a\nb\n", [np.ones((8, 8))])
    split = open_split("folder", tmp_path, "train", ignore_index=-1)
    _, labels = training_samples(split, TrainSettings(crop_size=32, base_scale=(8, 8), resize_factors=(1, 1)))[0]
    assert labels.unique().tolist() == [-1, 1]


def test_a_folder_without_validation_says_how_to_get_it(tmp_path):
    write_folder(tmp_path, "a\nb\n", [np.zeros((8, 8))])
    shutil.rmtree(tmp_path / "images" / "val", ignore_errors=True)
    with pytest.raises(DataError, match=r"images/val does not exist.* `prepare_labels\.py masks .* 0\.1` does"):
        open_split("folder", tmp_path, "val")
    for name in ("ade20k", "cityscapes"):
        with pytest.raises(DataError, match="there is no split 'test': it is train or val"):
            open_split(name, tmp_path, "test")


def test_a_color_that_no_class_has_is_named(tmp_path):
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[3, 4] = (1, 2, 3)
    write_folder(tmp_path, "#000000 sky\n#ff0000 road\n", [mask], "RGB")
    with pytest.raises(DataError, match=r"0\.png holds the color #010203, which no class has\. Give .*'#010203 NAME'"):
        open_split("folder", tmp_path, "train").open(0)


def test_more_classes_than_a_byte_counts_are_mapped(tmp_path):
    write_folder(tmp_path, "".join(f"{1000 + i} class {i}\n" for i in range(300)), [np.zeros((8, 8))])
    label = tmp_path / "labels" / "train" / "0.png"
    Image.fromarray(np.full((8, 8), 1299, np.uint16)).save(label)
    split = open_split("folder", tmp_path, "train")
    assert (split.open(0)[1] == 299).all()
    assert (training_samples(split, TrainSettings(crop_size=32, base_scale=(8, 8)))[0][1][:8, :8] <= 299).any()


def test_masks_of_one_bit_are_read(tmp_path):
    write_folder(tmp_path, "background\nperson\n", [BINARY], "1")
    assert np.array_equal(open_split("folder", tmp_path, "train").open(0)[1], BINARY // 255)


@pytest.mark.parametrize(
    ("text", "classes", "mapped"),
    [
        ("car\nroad\n", ("car", "road"), {}),
        ("0\n1\n", ("0", "1"), {}),  # digits are names as long as no name follows them
        ("4x4\n2-wheeler\n", ("4x4", "2-wheeler"), {}),
        ("0 car\n1 3 doors\n", ("car", "3 doors"), {0: 0, 1: 1}),
        ("car\n-\nroad\n", ("car", "road"), {0: 0, 1: 255, 2: 1, 255: 255}),
        ("\ufeff7 car\r\n3 road\r\n", ("car", "road"), {7: 0, 3: 1, 255: 255}),
        ("255 car\n0 -\n1 road\n", ("car", "road"), {255: 0, 0: 255, 1: 1}),
    ],
)
def test_lists_of_classes_mean_one_thing(tmp_path, text, classes, mapped):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8", newline="")
    found = read_classes(tmp_path / "classes.txt")
    assert found.classes == classes
    assert (found.mapping is None) == (not mapped)
    assert {value: found.mapping[value] for value in mapped} == mapped


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car\n3 doors\n", "line 2: '3 doors' has another form than line 1: begin every line with a value"),
        ("0 car\n\n#ff0000 road\n", "line 3: '#ff0000 road' has another form than line 1: .* a color"),
        ("#00ff00 car\nroad\n", "line 2: 'road' has another form than line 1"),
        ("#00f car\n#ff0000 road\n", "line 1: '#00f car' does not give a color and a name"),
        ("1 car\n1 road\n", "line 2: '1 road' repeats the value of line 1"),
        ("#ff0000 car\n#FF0000 road\n", "line 2: '#FF0000 road' repeats the color of line 1"),
        ("car\nroad\ncar\n", "line 3: 'car' repeats the name of line 1"),
        ("0 car\n70000 road\n", "line 2: the value 70000 is larger than 65535"),
        ("0 car\n1 -\n", "names 1 classes: at least two are needed"),
        ("", "names 0 classes"),
    ],
)
def test_mistakes_in_lists_of_classes_are_named(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize("ignore_index", [255, 11])
def test_binary_masks_of_0_and_255_are_not_half_ignored(tmp_path, ignore_index):
    write_folder(tmp_path, "background\nperson\n", [BINARY, np.zeros((48, 64))])
    message = r"hold the values 0 and 255 only.*'person' never occurs\. If .*: '0 background' and '255 person', one per"
    with pytest.raises(DataError, match=message):
        check_labels(open_split("folder", tmp_path, "train", ignore_index))
    (tmp_path / "classes.txt").write_text("0 background\n255 person\n", encoding="utf-8")
    assert check_labels(open_split("folder", tmp_path, "train", ignore_index)) is None


def test_a_rare_second_class_makes_255_the_label_to_ignore(tmp_path):
    masks = [BINARY] * 9
    masks[1] = miniatures.stripes([0, 255, 1], (48, 64))
    write_folder(tmp_path, "background\nperson\n", masks)
    assert check_labels(open_split("folder", tmp_path, "train")) is None


def test_classes_that_never_occur_in_a_small_set_are_listed(tmp_path):
    write_folder(tmp_path, "a\nb\nc\nd\n", [miniatures.stripes([0, 2, 255], (48, 64))] * 3)
    split = open_split("folder", tmp_path, "train")
    assert "no pixel of the 3 label files" in check_labels(split)
    assert "of the class b, d. If" in check_labels(split)


def test_the_data_viewer_refuses_binary_masks(tmp_path, monkeypatch):
    write_folder(tmp_path, "background\nperson\n", [BINARY])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'person' never occurs"):
        show_data.main([f"{data.__file__.rsplit('/', 2)[0]}/recipes/folder.yaml", "--data_root", str(tmp_path)])


def test_hidden_files_are_not_images(tmp_path):
    miniatures.make("folder", tmp_path, [0, 1])
    (tmp_path / "images" / "train" / "._train_0.png").write_bytes(b"of a file system")
    assert len(open_split("folder", tmp_path, "train")) == 3


# Augmentation


def test_a_crop_is_what_resizing_all_and_then_cropping_gives():
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(values).resize((320, 240), Image.Resampling.BICUBIC)
    labels = miniatures.stripes(range(40), (240, 320))
    for factor in (0.5, 0.7, 2.0):
        crop = RandomResizedCrop(96, (2048, 512), factors=(factor, factor))
        torch.manual_seed(0)
        cropped, cropped_labels = crop(image, labels)
        size = [round(side * 512 * factor / 240) for side in (320, 240)]
        torch.manual_seed(0)
        torch.rand(())
        left, top = (int(torch.rand(()).item() * (side - 95)) for side in size)
        whole = np.asarray(image.resize(size, Image.Resampling.BILINEAR), int)
        part = whole[top : top + 96, left : left + 96]
        assert np.abs(part - np.asarray(cropped, int)).max() <= 2  # rounding
        columns = ((left + np.arange(96) + 0.5) * 320 / size[0]).astype(int)
        differing = (cropped_labels != labels[0, columns]).mean()
        assert differing < 0.03  # pixels that lie between two labels


def test_samples_have_one_size_and_are_padded_with_nothing(tmp_path):
    miniatures.make("ade20k", tmp_path, [0, 1, 2, 150], sizes=((480, 640), (20, 30), (600, 45), (1, 1)))
    split = open_split("ade20k", tmp_path, "train")
    crop = RandomResizedCrop(128, (300, 100))
    samples = TrainSamples(split, TrainTransform(crop, PhotometricDistortion()), seed=3)
    for k in range(16):
        image, labels = samples[k]
        assert (image.shape, image.dtype, labels.shape, labels.dtype) == (
            (3, 128, 128),
            torch.float32,
            (128, 128),
            torch.int64,
        )
        assert set(labels.unique().tolist()) <= {0, 1, 149, 255}
        assert image.isfinite().all()
        padded = (image == 0).all(0)
        assert (labels[padded] == 255).all()
        assert image.abs().max() < 3


def test_samples_of_one_seed_are_not_those_of_another_at_other_numbers(tmp_path):
    miniatures.make("folder", tmp_path, [0, 1])
    split = open_split("folder", tmp_path, "train")
    runs = [TrainSamples(split, lambda image, labels, label: (torch.rand(()), torch.rand(())), seed) for seed in (0, 1)]
    drawn = [{run[k][0].item() for k in (*range(30), *range(7_910, 7_940))} for run in runs]
    assert len(drawn[0] | drawn[1]) == 120


def test_a_sample_depends_on_seed_and_number_alone(tmp_path):
    miniatures.make("folder", tmp_path, [0, 1, 2])
    split = open_split("folder", tmp_path, "train")

    def samples(seed):
        transform = TrainTransform(RandomResizedCrop(64, (128, 64)), PhotometricDistortion())
        return TrainSamples(split, transform, seed)

    one, other, different = samples(0), samples(0), samples(1)
    first = [one[k] for k in range(6)]
    for k in reversed(range(6)):
        torch.manual_seed(k)
        state = torch.get_rng_state()
        again = other[k]
        assert torch.equal(again[0], first[k][0])
        assert torch.equal(again[1], first[k][1])
        assert torch.equal(torch.get_rng_state(), state)  # and the caller's generator is left alone
    assert any(not torch.equal(different[k][0], first[k][0]) for k in range(6))
    assert sorted(one.locate(k) for k in range(3)) == sorted(one.locate(k) for k in range(3, 6)) == [0, 1, 2]
    orders = {tuple(one.locate(3 * epoch + k) for k in range(3)) for epoch in range(20)}
    assert len(orders) > 1


def test_crops_that_one_class_fills_are_drawn_again():
    labels = miniatures.stripes([0, 1], (512, 2048))
    image = Image.fromarray(labels)
    crop = RandomResizedCrop(256, (2048, 512), factors=(1, 1))
    torch.manual_seed(0)
    shares = np.array([crop(image, labels)[1].mean() for _ in range(200)])
    # of single draws, 7% lie far enough over the border of the classes; of ten, one half
    assert 0.4 < ((shares > 0.25) & (shares < 0.75)).mean() < 0.6


def test_colors_are_distorted_as_published():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    pixels = np.asarray(image, float)

    def distorted(**ranges):
        """What one distortion at its largest does, and pixels that it left alone."""
        none = {"brightness": 0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0}
        torch.manual_seed(1)
        results = [np.asarray(PhotometricDistortion(**{**none, **ranges})(image), float) for _ in range(20)]
        changed = [r for r in results if not np.array_equal(r, pixels)]
        assert 4 <= len(changed) <= 16  # one half
        return changed[0]

    gray = pixels @ (0.299, 0.587, 0.114)
    torch.testing.assert_close(distorted(contrast=(0.5, 0.5)), pixels / 2, atol=0.51, rtol=0)
    expected = (1.5 * pixels - 0.5 * gray[..., None]).clip(0, 255)
    torch.testing.assert_close(distorted(saturation=(1.5, 1.5)), expected, atol=0.51, rtol=0)
    shift = (distorted(brightness=32 / 255) - pixels)[(pixels > 40) & (pixels < 215)]
    assert len(np.unique(shift)) == 1
    assert 0 < abs(shift[0]) <= 32
    turned = distorted(hue=18)
    inside = ((turned > 0) & (turned < 255)).all(-1)
    torch.testing.assert_close(turned[inside].sum(-1), pixels[inside].sum(-1), atol=1.6, rtol=0)  # grays stay
    hues = [np.asarray(Image.fromarray(p.astype(np.uint8)).convert("HSV"), int)[..., 0] for p in (pixels, turned)]
    angle = ((hues[1] - hues[0] + 128) % 256 - 128)[inside] * 360 / 256
    assert 0 < abs(np.median(angle)) <= 18


# Recipes


@pytest.mark.parametrize(
    ("name", "base_scale", "crop", "batch", "iterations"),
    [
        ("ade20k", [2048, 512], 512, 16, 160_000),
        ("cityscapes", [2048, 1024], 1024, 8, 160_000),
        ("coco_stuff164k", [2048, 512], 512, 16, 80_000),
        ("voc2012", [2048, 512], 512, 16, 80_000),
        ("pascal_context", [520, 520], 480, 16, 80_000),
        ("isaid", [896, 896], 896, 16, 160_000),
    ],
)
def test_recipes_are_the_paper_s(name, base_scale, crop, batch, iterations):
    recipe = read_recipe(f"{data.__file__.rsplit('/', 2)[0]}/recipes/{name}.yaml")
    assert recipe["dataset"] == name
    assert (recipe["base_scale"], recipe["crop_size"]) == (base_scale, crop)
    assert (recipe["batch_size"], recipe["iterations"]) == (batch, iterations)
    defaults = TrainSettings()
    assert (defaults.lr, defaults.weight_decay, defaults.decoder_lr_factor, defaults.warmup) == (6e-5, 0.01, 10, 1500)


def test_what_is_fed_is_shown(tmp_path, monkeypatch, capsys):
    miniatures.make("cityscapes", tmp_path, [7, 8, 0])
    monkeypatch.chdir(tmp_path)
    recipe = f"{data.__file__.rsplit('/', 2)[0]}/recipes/cityscapes.yaml"
    show_data.main([recipe, "--data_root", str(tmp_path), "--crop_size", "64"])
    output = capsys.readouterr().out
    assert "train: 3 images of Cityscapes, 3" in output
    assert "0 road                      5" in output
    assert Image.open(tmp_path / "data.png").width == 1600
    (tmp_path / "new").mkdir()
    for name in ("new", "new/crops.jpg"):
        with pytest.raises(SettingsError, match=r"--picture new.* is not the name of a PNG file"):
            show_data.main([recipe, "--data_root", str(tmp_path), "--picture", name])


def test_no_more_processes_read_images_than_there_are_cores():
    assert data.worker_count(TrainSettings(workers=0)) == 0
    assert data.worker_count(TrainSettings(workers=1)) == 1
    assert 1 <= data.worker_count(TrainSettings(workers=100_000)) <= os.cpu_count()


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    assert data.worker_count(TrainSettings()) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert data.worker_count(TrainSettings()) == 3
    assert data.worker_count(TrainSettings(workers=6)) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert data.worker_count(TrainSettings()) == 1
