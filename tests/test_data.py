import miniatures
import numpy as np
import pytest
import torch
from PIL import Image

import data
from data import DataError, TrainSamples, open_split
from recipe import TrainSettings, read_recipe
from transforms import PhotometricDistortion, RandomResizedCrop, TrainTransform

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
            image, labels = split.targets(index)
            assert image.mode == "RGB"
            assert (image.height, image.width) == labels.shape == size
            expected = miniatures.stripes([*meaning.values()], size)
            assert np.array_equal(labels, expected)
    assert len(split.classes) == len(split.palette)


def test_coco_stuff_has_its_171_classes():
    mapping = data._only(i for i in range(182) if i not in data._COCO_GAPS)
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
            (lambda i: miniatures.picture(split.labels[i], (10, 10)), "is a colour image: labels are PNGs of one"),
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
            split.targets(0)
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
    crop = RandomResizedCrop(128, (300, 100), mapping=split.mapping)
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


def test_colours_are_distorted_as_published():
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

    grey = pixels @ (0.299, 0.587, 0.114)
    torch.testing.assert_close(distorted(contrast=(0.5, 0.5)), pixels / 2, atol=0.51, rtol=0)
    expected = (1.5 * pixels - 0.5 * grey[..., None]).clip(0, 255)
    torch.testing.assert_close(distorted(saturation=(1.5, 1.5)), expected, atol=0.51, rtol=0)
    shift = (distorted(brightness=32 / 255) - pixels)[(pixels > 40) & (pixels < 215)]
    assert len(np.unique(shift)) == 1
    assert 0 < abs(shift[0]) <= 32
    turned = distorted(hue=18)
    inside = ((turned > 0) & (turned < 255)).all(-1)
    torch.testing.assert_close(turned[inside].sum(-1), pixels[inside].sum(-1), atol=1.6, rtol=0)  # greys stay
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
    recipe = read_recipe(f"{data.__file__.rsplit('/', 1)[0]}/recipes/{name}.yaml")
    assert recipe["dataset"] == name
    assert (recipe["base_scale"], recipe["crop_size"]) == (base_scale, crop)
    assert (recipe["batch_size"], recipe["iterations"]) == (batch, iterations)
    defaults = TrainSettings()
    assert (defaults.lr, defaults.weight_decay, defaults.decoder_lr_factor, defaults.warmup) == (6e-5, 0.01, 10, 1500)


def test_what_is_fed_is_shown(tmp_path, monkeypatch, capsys):
    miniatures.make("cityscapes", tmp_path, [7, 8, 0])
    monkeypatch.chdir(tmp_path)
    recipe = f"{data.__file__.rsplit('/', 1)[0]}/recipes/cityscapes.yaml"
    data.main([recipe, "--data_root", str(tmp_path), "--crop_size", "64"])
    output = capsys.readouterr().out
    assert "train: 3 images of Cityscapes, 3" in output
    assert "0 road                      5" in output
    assert Image.open(tmp_path / "data.png").size == (960, 992)
