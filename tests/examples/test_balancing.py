"""What train.py does about rare classes: weights of the loss, samples that hold them."""

import shutil

import numpy as np
import pytest
import torch

import miniatures
import training
from segmentation.balancing import RareClassSampler, balance_classes, count_pixels, median_frequency_weights
from segmentation.data import read_labels, training_samples
from segmentation.layouts import open_split
from segmentation.recipe import DataError, SettingsError, TrainSettings
from segmentation.transforms import RandomResizedCrop

BOTH = ("--loss", "ce+dice", "--class_weights", "auto", "--rare_class_sampling", 0.5)


def test_pixels_are_counted_by_class_and_image(tmp_path):
    miniatures.make("ade20k", tmp_path, [0, 1, 2, 150])
    split = open_split("ade20k", tmp_path, "train")
    pixels = count_pixels(split)
    assert pixels.shape == (3, 150)
    for index, counted in enumerate(pixels):
        labels = split.open_labels(index)
        assert counted.tolist() == np.bincount(labels[labels != split.ignore_index], minlength=150).tolist()
    split.labels[1].write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read"):
        count_pixels(split)


def test_automatic_weights_are_the_median_frequency_over_that_of_each_class():
    # image 0 holds classes 0 and 1, image 1 classes 0, 1 and 2; no image holds class 3
    pixels = np.array([[60, 40, 0, 0], [50, 40, 10, 0]])
    frequencies = np.array([110 / 200, 80 / 200, 10 / 100])
    assert median_frequency_weights(pixels).tolist() == pytest.approx([*0.4 / frequencies, 1])
    rare = median_frequency_weights(np.array([[9999, 9999, 1]]))
    assert rare.tolist() == pytest.approx([1, 1, 10])
    frequent = median_frequency_weights(np.array([[99980, 10, 10]]))
    assert frequent.tolist() == pytest.approx([0.1, 1, 1])


def test_classes_are_drawn_by_the_formula_of_daformer():
    pixels = np.array([[90, 5, 0, 0], [90, 0, 15, 0]])
    sampler = RareClassSampler(pixels, 0.1)
    shares = np.array([0.9, 0.025, 0.075])
    expected = np.exp((1 - shares) / 0.1) / np.exp((1 - shares) / 0.1).sum()
    assert sampler.probabilities.tolist() == pytest.approx([*expected, 0])
    drawn = [sampler.draw(seed) for seed in range(4000)]
    counts = np.bincount([label for _, label in drawn], minlength=4) / 4000
    assert np.abs(counts - [*expected, 0]).max() < 0.03
    assert all(pixels[image, label] for image, label in drawn)
    assert {image for image, label in drawn if label == 1} == {0}


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_a_crop_for_a_class_holds_it(factor):
    labels = np.zeros((200, 300), np.uint8)
    labels[150:154, 20:24] = 1  # 16 of 60,000 pixels
    labels[:, 299] = 2
    image = np.random.default_rng(0).random((200, 300, 1)).astype(np.float32)
    crop = RandomResizedCrop(64, (300, 200), (factor, factor))
    for label in (1, 2):
        places = set()
        for seed in range(30):
            torch.manual_seed(seed)
            cropped, values = crop(image, labels, label)
            assert values.shape == cropped.shape[:2] == (64, 64)
            assert (values == label).any()
            places.add(tuple(np.argwhere(values == label)[0]))
        assert label == 2 or len(places) > 10  # anywhere in the crop, unless it lies at the edge of the image
    torch.manual_seed(0)
    assert sum((crop(image, labels)[1] == 1).any() for _ in range(30)) < 25


@pytest.mark.parametrize("degrees", [45, 180])
def test_a_rotated_crop_for_a_class_holds_it(degrees):
    labels = np.zeros((200, 300), np.uint8)
    labels[100:103, 140:143] = 1
    labels[197:, 297:] = 2  # in the corner of the image
    image = np.random.default_rng(0).random((200, 300, 1)).astype(np.float32)
    crop, plain = (RandomResizedCrop(96, (300, 200), (0.8, 1.5), degrees=d) for d in (degrees, 0))
    for label in (1, 2):
        rotated = 0
        for seed in range(60):
            torch.manual_seed(seed)
            _, values = crop(image, labels, label)
            assert values.shape == (96, 96)
            assert (values == label).any()
            torch.manual_seed(seed)
            rotated += not np.array_equal(values, plain(image, labels, label)[1])
        assert label == 2 or rotated > 50


def test_samples_of_rare_classes_depend_on_seed_and_number_alone(tmp_path):
    miniatures.make("folder", tmp_path, [0, 1, 2])
    split = open_split("folder", tmp_path, "train")
    labels = np.zeros((64, 48), np.uint8)
    labels[5, 7] = 3
    miniatures.labels(split.labels[1], labels)
    split.classes += ("rare",)
    sizes = {"crop_size": 32, "base_scale": (97, 48), "resize_factors": (1, 1)}

    def samples(temperature, seed=0):
        settings = TrainSettings(data_root=str(tmp_path), rare_class_sampling=temperature, seed=seed, **sizes)
        return training_samples(split, settings, sampler=balance_classes(split, settings).sampler)

    one, other = samples(0.01), samples(0.01)
    first = [one[k] for k in range(20)]
    for k in reversed(range(20)):
        again = other[k]
        assert torch.equal(again[0], first[k][0])
        assert torch.equal(again[1], first[k][1])
    assert any(not torch.equal(samples(0.01, seed=1)[k][1], first[k][1]) for k in range(20))
    # a class of one pixel is drawn like that of a third: 1 - f is close to 1, over a temperature of 1
    holding = [k for k in range(200) if (samples(0.001)[k][1] == 3).any()]
    assert len(holding) == 200
    assert {samples(0.001).locate(k) for k in range(200)} == {1}
    images = [samples(1.0).locate(k) for k in range(200)]
    assert set(images) == {0, 1, 2}


@pytest.mark.parametrize("options", [{"rare_class_sampling": 0.01}, {"class_weights": "auto"}])
def test_labels_without_any_class_are_refused(tmp_path, options):
    miniatures.make("folder", tmp_path, [0, 1])
    split = open_split("folder", tmp_path, "train")
    for path in split.labels:
        miniatures.labels(path, np.full((48, 64), 255, np.uint8))
    with pytest.raises(DataError, match="no pixel of the training labels has a class"):
        balance_classes(split, TrainSettings(data_root=str(tmp_path), **options))


@pytest.mark.parametrize(("temperature", "warned"), [(0.01, True), (0.2, False)])
def test_a_class_that_is_hardly_drawn_is_named(tmp_path, temperature, warned):
    miniatures.make("folder", tmp_path, [0, 1])
    split = open_split("folder", tmp_path, "train")
    split.classes = ("ground", "pole")
    for path in split.labels:
        labels = np.zeros((48, 64), np.uint8)
        labels[:3, :10] = 1
        miniatures.labels(path, labels)
    settings = TrainSettings(data_root=str(tmp_path), rare_class_sampling=temperature, iterations=1000, batch_size=8)
    notes = balance_classes(split, settings).notes
    assert notes[0].startswith("Samples drawn for each class: ground 0.")
    warning = "Warning: of 8000 samples, none may be drawn for ground: images without other classes are not seen."
    assert [note.startswith(warning) for note in notes[1:]] == [True] * warned


def test_without_rare_class_sampling_each_epoch_is_a_permutation(tmp_path):
    miniatures.make("folder", tmp_path, [0, 1, 2])
    split = open_split("folder", tmp_path, "train")
    settings = TrainSettings(data_root=str(tmp_path), crop_size=32, base_scale=(97, 48))
    balance = balance_classes(split, settings)
    assert (balance.weights, balance.sampler, balance.notes) == (None, None, [])
    samples = training_samples(split, settings, sampler=balance.sampler)
    for epoch in range(3):
        order = torch.randperm(3, generator=torch.Generator().manual_seed(epoch)).tolist()
        assert [samples.locate(3 * epoch + place) for place in range(3)] == order


def test_weights_and_probabilities_are_said_and_the_weights_saved(folder, tmp_path, capsys):
    training.run("folder", "--data_root", folder, "--out", tmp_path / "run", "--iterations", 2, *BOTH)
    said = capsys.readouterr().out
    assert "Class weights: class 0 0.986, class 1 1, class 2 1\n" in said
    assert "Samples drawn for each class: class 0 33.1%, class 1 33.4%, class 2 33.4%\n" in said
    assert training.checkpoint(tmp_path / "run")["class_weights"] == pytest.approx((0.986, 1, 1), abs=0.001)


def test_given_weights_are_used_in_the_order_of_the_classes(folder, tmp_path, capsys):
    options = ("--data_root", folder, "--iterations", 2)
    training.run("folder", *options, "--out", tmp_path / "run", "--class_weights", "1,2.5,0")
    assert "Class weights: class 0 1, class 1 2.5, class 2 0\n" in capsys.readouterr().out
    assert training.checkpoint(tmp_path / "run")["class_weights"] == (1, 2.5, 0)
    with pytest.raises(
        SettingsError, match=r"was written with class_weights \(1.0, 2.5, 0.0\), not auto: choose another"
    ):
        training.run("folder", *options, "--out", tmp_path / "run", "--class_weights", "auto")


def test_a_resumed_run_with_balanced_classes_ends_as_one_that_was_not_stopped(folder, tmp_path):
    options = ("--data_root", folder, *BOTH, *training.EXACT, "--eval_every", 6)
    training.run("folder", *options, "--out", tmp_path / "whole")
    with training.power_failure():
        training.run("folder", *options, "--out", tmp_path / "parts")
    assert training.checkpoint(tmp_path / "parts")["iteration"] == 4
    shutil.copytree(tmp_path / "parts", tmp_path / "other")
    training.run("folder", *options, "--out", tmp_path / "parts")
    one, two = (training.checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert one["losses"] == two["losses"]
    assert all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())
    # labels that have changed do not change the weights in the middle of a run
    label = open_split("folder", folder, "train").labels[0]
    miniatures.labels(label, np.zeros_like(read_labels(label)))
    trainer = training.set_up("folder", *options, "--out", tmp_path / "other")
    assert trainer.balance.weights == one["class_weights"]


def test_a_run_from_before_there_were_other_losses_is_resumed(finished_run, tmp_path):
    shutil.copytree(finished_run.out, tmp_path / "run")
    state = training.checkpoint(tmp_path / "run") | {"iteration": 1}
    del state["class_weights"]
    for name in ("loss", "class_weights", "label_smoothing", "rare_class_sampling"):
        del state["settings"][name]
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    training.run("folder", *finished_run.options, "--out", tmp_path / "run")
    assert training.checkpoint(tmp_path / "run")["iteration"] == 2
