"""Rotation, flips and the user's own augmentation: image and labels move together, as seed and number say."""

import importlib
import random

import numpy as np
import pytest
import torch
from PIL import Image

import show_data
import training
from segmentation.bands import ImageForm
from segmentation.data import training_samples
from segmentation.layouts import open_split
from segmentation.recipe import SettingsError, TrainSettings
from segmentation.transforms import PhotometricDistortion, RandomResizedCrop, TrainTransform, normalize_batch

SIZE = (240, 300)  # height, width of the images below
PLAIN = ((0.0,) * 3, (1.0,) * 3)


def places(form):
    """An image whose colors say where each pixel is, (x, y, 1) from 0 to 1, and labels that are 10 pixels wide."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.stack([(columns + 0.5) / SIZE[1], (rows + 0.5) / SIZE[0], np.ones(SIZE)], -1)
    labels = (columns // 10 + rows // 120 * 100).astype(np.uint8)  # 0 to 29 in the upper half, 100 to 129 in the lower
    if form == "float32":
        return image.astype(np.float32), labels
    image = (255 * image).round().astype(np.uint8)
    return (image if form == "uint8" else Image.fromarray(image)), labels


def label_of(x):
    """The labels that belong to what :func:`places` shows, and whether they are certain despite rounding."""
    column, row = x[0] * SIZE[1], x[1] * SIZE[0]
    inside = ((column % 10 - 5).abs() < 3) & ((row % 120 - 60).abs() < 58)
    return (column // 10 + row // 120 * 100).long(), inside


@pytest.mark.parametrize("form", ["photo", "uint8", "float32"])
def test_image_and_labels_are_rotated_and_flipped_together(form):
    image, labels = places(form)
    crop = RandomResizedCrop(96, (300, 240), (1, 1), 1, degrees=180, color=(0, 0, 0))
    transform = TrainTransform(crop, None, PLAIN, vertical_flip=True, rotate90=True)
    shown = 0
    for seed in range(20):
        torch.manual_seed(seed)
        x, found = transform(image, labels)
        assert (x[2][found == 255] == 0).all()
        expected, certain = label_of(x)
        certain &= (found != 255) & (x[2] > 0.99)
        assert (found == expected)[certain].all()
        shown += certain.float().mean()
    assert shown > 0.4 * 20


def test_a_rotated_crop_has_a_uniform_angle_and_the_center_of_the_crop_that_is_not_rotated():
    image, labels = places("float32")
    plain = RandomResizedCrop(60, (300, 240), (1, 1), 1)
    turned = RandomResizedCrop(60, (300, 240), (1, 1), 1, degrees=30)
    angles = []
    for seed in range(40):
        crops = []
        for crop in (plain, turned):
            torch.manual_seed(seed)
            crops.append(crop(image, labels)[0][25:35, 25:35, :2] * (SIZE[1], SIZE[0]))
        np.testing.assert_allclose(*(crop.mean((0, 1)) for crop in crops), atol=0.01)
        right = (crops[1][:, -1] - crops[1][:, 0]).mean(0)  # where a step to the right leads
        angles.append(np.degrees(np.arctan2(right[1], right[0])))
    assert -30 <= min(angles) < -20
    assert 20 < max(angles) <= 30


def test_corners_of_a_rotated_crop_are_filled_from_the_image():
    image, labels = places("float32")
    crop = RandomResizedCrop(60, (300, 240), (1, 1), 1, degrees=180, color=(0.25, 0.5, 0.75))
    whole = 0
    for seed in range(40):
        torch.manual_seed(seed)
        cropped, found = crop(image, labels)
        x, y = cropped[29:31, 29:31, :2].mean((0, 1)) * (SIZE[1], SIZE[0])
        reach = 30 * 2**0.5
        if reach <= x <= SIZE[1] - reach and reach <= y <= SIZE[0] - reach:
            assert (found != 255).all()
            whole += 1
        assert np.allclose(cropped[found == 255], (0.25, 0.5, 0.75))
    assert 10 < whole < 40


@pytest.mark.parametrize("ignore_index", [255, -1])
def test_what_lies_beyond_a_rotated_image_is_padding(ignore_index):
    photo, labels = places("photo")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    crop = RandomResizedCrop(320, (300, 240), (1, 1), 1, ignore_index, 45, mean)
    torch.manual_seed(0)
    x, found = TrainTransform(crop, None, (mean, std))(photo, labels)
    ignored = found == ignore_index
    assert 0.4 < ignored.float().mean() < 0.7
    assert x[:, ignored].abs().max() < 0.01


def test_quarter_turns_and_flips_give_all_eight_orientations():
    photo, labels = places("photo")
    crop = RandomResizedCrop(300, (300, 240), (1, 1), 1)

    def orientations(**options):
        transform = TrainTransform(crop, None, PLAIN, **options)
        samples = [transform(photo, labels)[1] for _ in range(50)]
        return {tuple(labels[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()) for labels in map(without_padding, samples)}

    def without_padding(labels):
        kept = labels != 255
        return labels[kept.any(1)][:, kept.any(0)]

    torch.manual_seed(0)
    assert [len(orientations(**o)) for o in ({}, {"vertical_flip": True}, {"rotate90": True})] == [2, 4, 8]


def test_steps_that_are_off_draw_no_numbers():
    photo, labels = places("photo")
    torch.manual_seed(0)
    TrainTransform(RandomResizedCrop(96, (300, 240), max_share=1), None)(photo, labels)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    for _ in range(4):  # factor, corner, flip
        torch.rand(())
    assert torch.equal(torch.get_rng_state(), state)


# Colors and normalization on the device


def both_ways(image, labels, seed, normalization=PLAIN, **options):
    """An augmented image and its labels: normalized by the transform, and by :func:`normalize_batch`."""
    crop = RandomResizedCrop(280, (300, 240), degrees=30, color=normalization[0])
    states, found = [], []
    for label_type in (None, torch.uint8):
        torch.manual_seed(seed)
        transform = TrainTransform(crop, PhotometricDistortion(), normalization, label_type=label_type, **options)
        found.append(transform(image, labels))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    batch = [part[None] for part in found[1]]
    assert (batch[0].dtype, batch[1].dtype) == (torch.uint8, torch.uint8)
    return found[0], (normalize_batch(batch[0], *batch[2:], normalization)[0], batch[1][0])


@pytest.mark.parametrize("form", ["photo", "uint8"])
def test_colors_on_the_device_are_those_of_the_transform_up_to_a_step_of_255(form):
    image, labels = places(form)
    normalization, unequal = ((0.5, 0.41, 0.3), (0.2, 0.25, 0.5)), []
    for seed in range(20):
        (x, expected), (found, given) = both_ways(image, labels, seed, normalization, rotate90=True)
        steps = (found - x).abs() * 255 * torch.tensor(normalization[1])[:, None, None]
        assert steps.max() < 1.01
        unequal.append((steps > 0.01).float().mean())
        assert torch.equal(given.long(), expected)
        assert torch.equal(found == 0, x == 0)  # where padding is
    assert max(unequal) < 0.01


def test_images_of_any_number_of_channels_are_normalized_on_the_device():
    image, labels = places("uint8")
    for channels in (1, 5):
        bands = np.resize(image, (*SIZE, channels))
        (x, _), (found, _) = both_ways(bands, labels, 0, ((0.5,) * channels, (0.25,) * channels))
        torch.testing.assert_close(found, x)


def test_an_image_of_more_bits_among_photos_travels_as_bytes():
    image, labels = places("float32")
    (x, _), (found, _) = both_ways(image, labels, 0)
    assert (found - x).abs().max() < 0.51 / 255


@pytest.mark.parametrize(
    ("ignore_index", "classes", "label_type"),
    [
        (255, 150, torch.uint8),
        (255, 256, torch.uint8),
        (255, 300, torch.int16),
        (-1, 19, torch.int16),
        (65535, 2, torch.int32),
    ],
)
def test_labels_travel_in_the_smallest_type_that_holds_them(folder, ignore_index, classes, label_type):
    split = open_split("folder", folder, "train")
    split.ignore_index, split.classes = ignore_index, tuple(map(str, range(classes)))
    settings = TrainSettings(crop_size=320, base_scale=(300, 240), resize_factors=(1, 1))
    samples = training_samples(split, settings, on_device=True)
    image, labels = places("photo")
    found = samples.transform(image, labels, 3)[1]
    assert found.dtype == label_type
    assert (found == ignore_index).any()
    assert (found == 3).any()


def test_images_of_more_than_8_bits_are_normalized_by_the_transform(folder):
    split = open_split("folder", folder, "train")
    split.form = ImageForm(3, value_range=(0.0, 200.0))
    settings = TrainSettings(crop_size=32, base_scale=(64, 48))
    found, expected = (training_samples(split, settings, on_device=given)[0] for given in (True, False))
    assert all(map(torch.equal, found, expected))
    assert found[0].dtype == torch.float32


# The user's own transform

OWN = """
import random

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


class Own(v2.Transform):
    def __init__(self):
        super().__init__()
        self.strength = torch.rand(())  # the same in each process, and no draw of any sample

    def make_params(self, flat_inputs):
        gain = self.strength + torch.rand(()) + random.random() + np.random.rand()
        return {"gain": gain, "shift": random.randrange(9)}

    def transform(self, given, params):
        rolled = given.roll(params["shift"], -1)
        return rolled if given.ndim == 2 else (rolled * (params["gain"] / 4)).to(given.dtype)


class Seen(v2.Transform):
    seen = []

    def forward(self, *inputs):
        self.seen.append([(type(x).__name__, x.dtype, tuple(x.shape)) for x in inputs])
        return inputs


smaller = lambda: v2.Resize((8, 8))
scaled = lambda: v2.ToDtype(torch.float32)
image_only = lambda: lambda image, mask: image
nothing = lambda: None
background = lambda: lambda image, mask: (image, mask.where(mask == 1, 7))
wrong_fill = lambda: v2.RandomAffine((40, 40), fill=200)
at_times = lambda: v2.RandomApply([v2.Resize((8, 8))], p=0.2)
filled = lambda: v2.RandomAffine((40, 40), fill={tv_tensors.Image: 0, tv_tensors.Mask: 255})
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module of the user's own code in the current folder."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


def samples_of(folder, augment, **options):
    settings = TrainSettings(crop_size=40, base_scale=(64, 48), augment=augment, **options)
    return training_samples(open_split("folder", folder, "train"), settings)


def test_a_sample_depends_on_its_number_with_all_steps_on(folder, own):
    options = {"vertical_flip": True, "rotate90": True, "rotate": 40.0}
    first, other = (samples_of(folder, f"{own}:Own", **options) for _ in range(2))
    expected = [first[k] for k in range(6)]
    for k in reversed(range(6)):
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(k)
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
        assert all(map(torch.equal, other[k], expected[k]))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.array_equal(np.random.get_state()[1], states[2])
    plain = samples_of(folder, None, **options)
    assert any(not torch.equal(plain[k][1], expected[k][1]) for k in range(6))


def test_an_own_transform_moves_image_and_mask_together(tmp_path, own):
    write = {"labels": np.arange(64, dtype=np.uint8)[None].repeat(48, 0)}
    write["images"] = (4 * write["labels"])[..., None].repeat(3, 2)
    for split in ("train", "val"):
        for kind, array in write.items():
            (tmp_path / "data" / kind / split).mkdir(parents=True)
            Image.fromarray(array).save(tmp_path / "data" / kind / split / "0.png")
    (tmp_path / "data/classes.txt").write_text("".join(f"c{i}\n" for i in range(64)), encoding="utf-8")
    settings = TrainSettings(
        crop_size=48, base_scale=(64, 48), resize_factors=(1, 1), color_distortion=False, augment=f"{own}:Own"
    )
    samples = training_samples(open_split("folder", tmp_path / "data", "train"), settings, PLAIN)
    x, labels = samples[3]
    gain = (x[0] / labels.clip(1)).max() * 255 / 4
    assert torch.allclose(x[0] * 255, 4 * gain * labels, atol=1.01)
    assert labels[0].tolist() != sorted(labels[0].tolist())  # rolled around the edge


def test_an_own_transform_gets_bytes_of_photos_and_bands_of_arrays(folder, tmp_path, own):
    samples = samples_of(folder, f"{own}:Seen")
    seen = importlib.import_module(own).Seen.seen
    assert [(kind, dtype) for kind, dtype, _ in seen[0]] == [("Image", torch.uint8), ("Mask", torch.uint8)]
    assert seen[0][0][2] == (3, *seen[0][1][2])
    image = np.random.default_rng(0).random((48, 64, 5)).astype(np.float32)
    samples.transform.normalization = ImageForm(5, normalization=((0.5,) * 5, (0.2,) * 5)).normalization
    x, _ = samples.transform(image, np.zeros((48, 64), np.uint8))
    assert x.shape == (5, 40, 40)
    assert seen[-1][0][:2] == ("Image", torch.float32)
    assert seen[-1][0][2][0] == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smaller", r"must return an image and a mask .* but returned torch.uint8 \[3, 8, 8\], torch.uint8"),
        ("scaled", r"must return .* it got, torch.uint8 \[3, .*, torch.uint8 .*, but returned torch.float32"),
        ("image_only", r"but returned torch.uint8 \[3, \d+, \d+\]\.$"),
        ("at_times", r"must return an image and a mask .* but returned torch.uint8 \[3, 8, 8\], torch.uint8"),
        ("background", r"added the labels 7 to a mask without them: .*tv_tensors.Mask: 255}, since 255 does not count"),
        ("wrong_fill", r"added the labels 200 to a mask without them"),
        ("nothing", r"the function must return a transform, but returned None\.$"),
        ("absent", r"has no function 'absent'"),
    ],
)
def test_an_own_transform_that_does_not_fit_ends_the_run_before_it_begins(folder, tmp_path, own, name, message):
    with pytest.raises(SettingsError, match=rf"^--augment {own}:{name}: .*{message}"):
        training.run("folder", "--data_root", folder, "--out", tmp_path / "run", "--augment", f"{own}:{name}")
    assert not (tmp_path / "run").exists()


def test_what_an_own_transform_fills_in_does_not_count(folder, own):
    samples, plain = samples_of(folder, f"{own}:filled"), samples_of(folder, None)
    more = [(samples[k][1] == 255).sum() - (plain[k][1] == 255).sum() for k in range(4)]
    assert min(more) > 50


def test_an_own_transform_gets_distorted_colors_with_normalization_on_the_device_too(folder, own):
    settings = TrainSettings(crop_size=40, base_scale=(64, 48), augment=f"{own}:Own")
    split = open_split("folder", folder, "train")
    expected, raw = (training_samples(split, settings, on_device=given)[3] for given in (False, True))
    images, labels, *rest = (part[None] for part in raw)
    torch.testing.assert_close(normalize_batch(images, *rest)[0], expected[0])
    assert torch.equal(labels[0].long(), expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_an_own_transform_gives_the_same_samples_in_other_processes(folder, own, how):
    samples = samples_of(folder, f"{own}:Own")
    here = [samples[k] for k in range(4)]
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": how}
    there = list(torch.utils.data.DataLoader(samples, sampler=range(4), **options))
    assert all(torch.equal(a, b) for one, other in zip(here, there) for a, b in zip(one, other))


def test_crops_with_all_steps_are_drawn(folder, tmp_path, own):
    data = ("--data_root", folder, "--workers", 0, "--picture", tmp_path / "shown.png")
    steps = ("--vertical_flip", "--rotate90", "--rotate", 30, "--augment", f"{own}:Own")
    show_data.main(list(map(str, (training.RECIPES / "folder.yaml", *data, *steps, "--crop_size", 48))))
    assert (tmp_path / "shown.png").is_file()
