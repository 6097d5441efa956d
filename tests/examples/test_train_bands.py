"""Trainings on images of more than eight bits, or of other bands than a photo's."""

import importlib
import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from click.testing import CliRunner
from PIL import Image
from timm.models import adapt_input_conv

import draw_scenes
import evaluate
import show_data
import training
from segmentation import models
from segmentation.bands import ImageForm, measure_form
from segmentation.checks import check_files, check_splits
from segmentation.data import training_samples
from segmentation.layouts import open_split
from segmentation.recipe import DataError, SettingsError, TrainSettings
from segmentation.transforms import MEAN, STD, PhotometricDistortion, RandomResizedCrop, TrainTransform
from segnext_timm import predict, read_image
from segnext_timm.cli import main


def write(root, arrays, suffix=".npy", labels=None):
    """Write a data folder of two classes: arrays (H, W) or (H, W, C) for both splits."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for place, array in enumerate(arrays):
            path = root / "images" / split / f"{split}{place}{suffix}"
            array = array + array.dtype.type(split == "val")  # no copies
            np.save(path, array) if suffix == ".npy" else Image.fromarray(array).save(path)
            shown = array.reshape(*array.shape[:2], -1)[..., 0]
            bright = (shown > np.median(shown)).astype(np.uint8) if labels is None else labels
            Image.fromarray(bright).save(root / "labels" / split / f"{split}{place}.png")
    (root / "classes.txt").write_text("dark\nbright\n", encoding="utf-8")
    return root


def scene(bands, dtype="uint16", most=4000, seed=0, size=(48, 64)):
    rng = np.random.default_rng(seed)
    array = rng.random((*size, bands)) * np.linspace(0.3, 1, bands) * most
    return array.astype(dtype) if bands > 1 else array[..., 0].astype(dtype)


def scenes(bands, dtype="uint16", most=4000, count=3):
    return [scene(bands, dtype, most, seed) for seed in range(count)]


def form_of(root, **settings):
    return measure_form(open_split("folder", root, "train"), TrainSettings(**settings))


def test_photos_are_read_as_they_are(tmp_path):
    write(tmp_path, scenes(3, "uint8", 255), ".png")
    assert form_of(tmp_path) == (ImageForm(), None)
    assert form_of(tmp_path, bands=(3, 2, 1)) == (ImageForm(3, (3, 2, 1)), None)
    split = open_split("folder", tmp_path, "train")
    plain = np.asarray(split.open(0)[0])
    split.form = ImageForm(3, (3, 2, 1))
    assert np.array_equal(np.asarray(split.open(0)[0]), plain[..., ::-1])


def test_the_fourth_channel_of_photos_is_a_band_if_it_is_asked_for(tmp_path):
    write(tmp_path, scenes(4, "uint8", 255), ".png")
    assert form_of(tmp_path)[0] == ImageForm()  # alpha
    form, note = form_of(tmp_path, bands=(1, 2, 3, 4))
    assert (form.channels, form.value_range, len(form.normalization[0])) == (4, None, 4)
    assert note.startswith("images: 4 channels of uint8, bands 1 2 3 4; mean ")
    assert form_of(tmp_path, in_channels=4)[0] == ImageForm(4, None, None, form.normalization)
    gray = form_of(tmp_path, in_channels=1)[0]
    assert (gray.channels, len(gray.normalization[0])) == (1, 1)


def test_a_fourth_band_of_a_tiff_that_is_left_out_is_pointed_out(tmp_path):
    write(tmp_path, scenes(4, "uint8", 255), ".tif")
    form, note = form_of(tmp_path)
    assert form == ImageForm()
    assert note == "images: the fourth band of train0.tif is taken for opacity; --bands 1 2 3 4 trains on it"


def test_range_and_statistics_are_those_of_the_training_images(tmp_path):
    write(tmp_path, scenes(5))
    form, note = form_of(tmp_path)
    assert form.channels == len(form.value_range) == 5
    assert form == form_of(tmp_path)[0]
    values = np.concatenate([scene(5, seed=seed).reshape(-1, 5) for seed in range(3)])
    assert np.allclose(form.value_range, np.percentile(values, (0.5, 99.5), axis=0).T, rtol=1e-4)
    scaled = read_image(open_split("folder", tmp_path, "train").images[0], 5, form.value_range)
    assert torch.allclose(scaled.mean((1, 2)), torch.tensor(form.normalization[0]), atol=0.02)
    assert torch.allclose(scaled.std((1, 2)), torch.tensor(form.normalization[1]), atol=0.02)
    assert note.startswith("images: 5 channels of uint16; black and white at ")
    assert "(measured on 3 files); mean" in note


def test_a_value_far_from_all_others_does_not_stretch_the_range(tmp_path):
    arrays = scenes(2, "float32", 0.5)
    for array in arrays:
        array[:10] = -9999
    form, note = form_of(write(tmp_path, arrays, labels=np.eye(48, 64, dtype=np.uint8)))
    assert np.min(form.value_range) >= 0 and np.max(form.value_range) < 0.51
    assert note.endswith("; without -9999, far from all other values")
    array = read_image(tmp_path / "images/train/train0.npy", 2, form.value_range)
    assert not array[:, :10].any()


@pytest.mark.parametrize(("fill", "is_left_out"), [(-9999, True), (-32768, True), (-2000, False)])
def test_fill_values_of_gis_programs_do_not_stretch_the_range(tmp_path, fill, is_left_out):
    arrays = scenes(2, "int16", 9000)
    for array in arrays:
        array[:10] = fill
    form, note = form_of(write(tmp_path, arrays, labels=np.eye(48, 64, dtype=np.uint8)))
    assert (np.min(form.value_range) >= 0) == is_left_out
    assert note.endswith(f"; without {fill}, far from all other values") == is_left_out


def test_gray_of_signed_integers_has_its_type_with_and_without_a_value_for_no_data(tmp_path):
    pytest.importorskip("rasterio")
    from small_rasters import write_raster

    root = write(tmp_path, scenes(1, "int16"), labels=np.eye(48, 64, dtype=np.uint8))
    for place, path in enumerate(sorted((root / "images").rglob("*.npy"))):
        values = np.load(path)[None]
        write_raster(path.with_suffix(".tif"), values, **({"nodata": -9999} if place % 2 else {}))
        path.unlink()
    assert form_of(root)[1].startswith("images: 3 channels of int16;")
    check_files(open_split("folder", root, "train"))


def test_an_array_of_other_axes_is_told_the_right_ones(tmp_path):
    arrays = [array.transpose(2, 0, 1) for array in scenes(5)]
    split = open_split("folder", write(tmp_path, arrays, labels=np.eye(48, 64, dtype=np.uint8)), "train")
    with pytest.raises(DataError, match=r"train0\.npy 48×5: make them equal, and the array \(height, width, bands\)"):
        check_files(split)


def test_gray_of_12_bits_keeps_its_levels_in_three_channels(tmp_path):
    ramp = np.tile(np.linspace(0, 4095, 256).astype(np.uint16), (64, 1))
    write(tmp_path, [ramp, ramp + np.uint16(0)], ".png")
    split = open_split("folder", tmp_path, "train")
    form, _ = measure_form(split, TrainSettings())
    assert form.channels == 3
    assert np.allclose(form.value_range, np.percentile(ramp, (0.5, 99.5)), atol=1)
    split.form = form
    assert split.open(0)[0].shape == (64, 256, 3)
    assert len(np.unique(split.open(0)[0])) > 250
    settings = TrainSettings(crop_size=64, base_scale=(256, 64), resize_factors=(1, 1), max_class_share=1)
    x, _ = training_samples(split, settings, form.normalization)[0]
    assert x.shape == (3, 64, 64)
    assert abs(x.mean()) < 2


@pytest.mark.parametrize(
    ("array", "settings", "value_range"),
    [
        (scene(2, "float32", 1), {}, None),
        (scene(2, "float32", 10000), {"range": (0.0, 10000.0)}, (0, 10000)),
        (scene(2, "int16", 100) - np.int16(50), {"range": (-50.0, 50.0, -40.0, 40.0)}, ((-50, 50), (-40, 40))),
        (scene(3, "uint8", 255), {"range": (0.0, 200.0)}, (0, 200)),
    ],
)
def test_other_types_have_a_range_measured_or_given(tmp_path, array, settings, value_range):
    write(tmp_path, [array], labels=np.eye(48, 64, dtype=np.uint8))
    form, _ = form_of(tmp_path, **settings)
    if value_range is None:
        assert np.allclose(form.value_range, np.percentile(array.reshape(-1, 2), (0.5, 99.5), axis=0).T, rtol=1e-3)
    else:
        assert form.value_range == value_range
    split = open_split("folder", tmp_path, "train")
    split.form = form
    image = split.open(0)[0]
    assert image.dtype == np.float32
    assert 0 <= image.min() <= image.max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"range": (1.0,)}, "--range is a low and a high value, such as 0 4095, or such a pair for each band, got 1"),
        ({"range": (5.0, 1.0)}, "--range is a low and a high value"),
        ({"range": (0.0, 1.0) * 2}, "--range has 2 pairs of low and high: give one, or 5 for the bands"),
        ({"in_channels": 3}, "--in_channels 3 does not fit images of 5 bands.*: .* --bands 1 2 3"),
        ({"in_channels": 3, "bands": (1, 2)}, "--in_channels 3 does not fit images of 2 bands"),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(tmp_path, settings, message):
    write(tmp_path, scenes(5, count=1))
    with pytest.raises(SettingsError, match=message):
        form_of(tmp_path, **settings)


def test_crops_of_bands_lie_where_their_labels_do(tmp_path):
    labels = (np.random.default_rng(0).random((12, 16)) > 0.5).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    image = np.stack([labels, 1 - labels, labels, labels], -1).astype(np.float32)
    crop = RandomResizedCrop(64, (256, 192), max_share=1)
    means = ((0.0,) * 4, (1.0,) * 4)
    for k in range(4):
        torch.manual_seed(k)
        x, found = TrainTransform(crop, None, means)(image, labels)
        kept = found != 255
        assert ((x[0] > 0.5) == found)[kept].float().mean() > 0.95
        assert torch.allclose(x[0][kept] + x[1][kept], torch.ones(()), atol=1e-5)
        torch.manual_seed(k)
        in_bytes, _ = TrainTransform(crop, None, means)((255 * image).astype(np.uint8), labels)
        assert torch.allclose(in_bytes, x, atol=0.01)


def test_bands_are_brightened_all_alike_and_stay_in_their_range():
    image = np.random.default_rng(0).random((8, 8, 5)).astype(np.float32)
    changed = 0
    for k in range(20):
        torch.manual_seed(k)
        found = PhotometricDistortion()(image)
        assert found.dtype == np.float32
        assert 0 <= found.min() <= found.max() <= 1
        inner = (found > 0) & (found < 1)
        slope, offset = np.polyfit(image[inner], found[inner], 1)
        assert np.allclose(slope * image[inner] + offset, found[inner], atol=1e-4)
        changed += not np.allclose(found, image)
    assert 10 <= changed <= 19


def train_run(root, out, *options):
    training.run("folder", "--data_root", root, "--out", out, "--iterations", 2, "--crop_size", 32, *options)
    return smp.from_pretrained(out / "last")


def test_a_run_on_five_bands_is_evaluated_and_predicts_files_without_options(tmp_path, capsys):
    data = write(tmp_path / "data", scenes(5))
    model = train_run(data, tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count("images: 5 channels of uint16; black and white at") == 1
    cfg = model.pretrained_cfg
    assert model.config["in_channels"] == len(cfg["range"]) == len(cfg["mean"]) == len(cfg["std"]) == 5
    assert cfg["input_size"][0] == 5
    arguments = [str(tmp_path / "run/last"), str(training.RECIPES / "folder.yaml"), "--data_root", str(data)]
    scores = evaluate.main([*arguments, "--workers", "0", "--json", str(tmp_path / "scores.json")])
    split = open_split("folder", data, "val")
    right = [predict(model, image) == split.open_labels(i) for i, image in enumerate(split.images)]
    assert scores.aacc == pytest.approx(np.mean(right))
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 3
    # a resumed run goes on with the range that it began with
    capsys.readouterr()
    options = ("--data_root", data, "--out", tmp_path / "run", "--iterations", 2, "--crop_size", 32)
    state = training.checkpoint(tmp_path / "run")
    state |= {"iteration": 1, "images": state["images"] | {"value_range": (0.0, 5000.0)}}
    torch.save(state, tmp_path / "run/checkpoint.pt")
    training.run("folder", *options)
    assert "images: " not in capsys.readouterr().out
    assert smp.from_pretrained(tmp_path / "run/last").pretrained_cfg["range"] == [0, 5000]
    with pytest.raises(SettingsError, match=r"was written with bands None, not \(1, 2\); range None"):
        training.run("folder", *options, "--bands", 1, 2, "--range", 0, 1)


@pytest.mark.slow
def test_geotiffs_are_trained_on_evaluated_and_predicted_where_they_lie(tmp_path):
    for package in ("rasterio.features", "rasterio.warp", "shapely"):
        pytest.importorskip(package)
    import rasterio

    data = tmp_path / "data"
    draw_scenes.main([str(data), "--geotiff", "--train", "4", "--val", "2", "--size", "64"])
    model = train_run(data, tmp_path / "run", "--iterations", 6)
    arguments = [str(tmp_path / "run/last"), str(training.RECIPES / "folder.yaml"), "--data_root", str(data)]
    scores = evaluate.main([*arguments, "--workers", "0"])
    images, maps = data / "images/val", tmp_path / "maps"
    options = ["predict", arguments[0], str(images), "-o", str(maps), "--save_as", "geojson"]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    split, right = open_split("folder", data, "val"), []
    for index, path in enumerate(split.images):
        with rasterio.open(path) as image, rasterio.open(maps / path.name) as found:
            assert (found.crs, found.transform, found.shape) == (image.crs, image.transform, image.shape)
            labels, place = found.read(1), {"transform": found.transform, "out_shape": found.shape}
        assert np.array_equal(labels, predict(model, path))
        right.append(labels == split.open_labels(index))
        features = json.loads((maps / path.name).with_suffix(".geojson").read_text())["features"]
        outlines = [rasterio.warp.transform_geom("EPSG:4326", found.crs, feature["geometry"]) for feature in features]
        numbers = [feature["properties"]["label"] for feature in features]
        drawn = rasterio.features.rasterize(zip(outlines, numbers), fill=255, **place)
        assert np.array_equal(drawn, labels)  # polygons lie on top of the labels
    assert scores.aacc == pytest.approx(np.mean(right))


def test_bands_in_another_order_and_a_range_are_kept_by_the_model(tmp_path):
    data = write(tmp_path / "data", scenes(5, "int16"))
    model = train_run(data, tmp_path / "run", "--bands", 4, 3, 2, "--range", -50, 4000.5)
    assert model.pretrained_cfg["bands"] == [4, 3, 2]
    assert model.pretrained_cfg["range"] == [-50, 4000.5]
    assert model.pretrained_cfg["input_size"][0] == model.config["in_channels"] == 3
    assert model.pretrained_cfg["mean"] != list(MEAN)
    file = open_split("folder", data, "val").images[0]
    taken = (np.load(file)[..., [3, 2, 1]] + 50) / 4050.5
    assert np.array_equal(predict(model, file), predict(model, np.float32(taken), scaled=True))
    options = ("--data_root", data, "--bands", 4, "--crop_size", 32, "--picture", tmp_path / "shown.png")
    show_data.main([str(training.RECIPES / "folder.yaml"), *map(str, options), "--workers", "0"])
    assert (tmp_path / "shown.png").is_file()


def test_a_stem_of_three_channels_is_adapted_as_timm_does(tmp_path, finished_run):
    split = open_split("folder", finished_run.data, "train")
    split.form = ImageForm(5, None, (0, 4000), ((0.5,) * 5, (0.2,) * 5))
    said = []
    settings = TrainSettings(init_from=str(finished_run.out / "best"))
    model = models.build_model(settings, split, said.append)
    saved = smp.from_pretrained(finished_run.out / "best").state_dict()
    name = models.first_layer(model)
    assert torch.allclose(model.state_dict()[name], adapt_input_conv(5, saved[name]))
    assert torch.equal(model.state_dict()["decoder.align.weight"], saved["decoder.align.weight"])
    assert "  encoder: all " in said[0]
    assert said[1] == "  of these, the first convolution of 3 channels was adapted to 5, as timm does"
    assert model.pretrained_cfg["range"] == [0, 4000]
    split.form = ImageForm()
    said.clear()
    models.build_model(settings, split, said.append)
    assert len(said) == 1


def test_models_that_keep_no_range_are_refused(tmp_path):
    smp.Unet("tu-test_mscan", encoder_weights=None, classes=2).save_pretrained(tmp_path / "unet")
    split = open_split("folder", write(tmp_path / "data", scenes(5)), "train")
    split.form = ImageForm(5, None, (0, 4000), ((0.5,) * 5, (0.2,) * 5))
    with pytest.raises(SettingsError, match=r"Unet of .* keeps no range and no bands .* train SegNeXt"):
        models.build_model(TrainSettings(init_from=str(tmp_path / "unet")), split)


# The check


@pytest.mark.parametrize(
    ("change", "form", "message"),
    [
        (
            scene(4),
            ImageForm(),
            r"train2\.npy holds 4 bands of uint16, but most images hold 5 bands of uint16: save all",
        ),
        (
            scene(5, "float32"),
            ImageForm(),
            r"train2\.npy holds 5 bands of float32, but most images hold 5 bands of uint16",
        ),
        (scene(5), ImageForm(3, (6, 2, 1)), r"train0\.npy has 5 bands, but the bands 6, 2, 1 are to be taken"),
        (scene(5), ImageForm(3), r"train0\.npy has 5 bands, but the model takes 3 channels: name the bands"),
        (scene(5)[:40], ImageForm(), r"train2\.png has 64×48 pixels .* its image train2\.npy 64×40"),
        (b"no array", ImageForm(), r"train2\.npy cannot be read as an image: "),
    ],
)
def test_images_that_do_not_fit_the_others_or_the_model_are_refused_by_name(tmp_path, change, form, message):
    write(tmp_path, scenes(5))
    path = tmp_path / "images/train/train2.npy"
    path.write_bytes(change) if isinstance(change, bytes) else np.save(path, change)
    split = open_split("folder", tmp_path, "train")
    split.form = form
    with pytest.raises(DataError, match=message):
        check_files(split, tmp_path)


@pytest.mark.parametrize(
    ("array", "form", "message"),
    [
        (scene(2, "float32", 5), ImageForm(2), r"holds values from .* to .*: say which are black and white"),
        (scene(2, "float32", 1) * np.nan, ImageForm(2), "holds pixels without a number: say which"),
        (scene(2, "int16", 50) - np.int16(60), ImageForm(2), "holds values from -60 to -11: say which"),
        (
            scene(2, "uint8", 50),
            ImageForm(2, None, (0, 4000)),
            r"holds 8 bits, but the range is \(0, 4000\): give files",
        ),
    ],
)
def test_values_that_a_model_cannot_scale_are_refused_by_name(tmp_path, array, form, message):
    write(tmp_path, [array], labels=np.eye(48, 64, dtype=np.uint8))
    split = open_split("folder", tmp_path, "train")
    split.form = form
    with pytest.raises(DataError, match=rf"train0\.npy {message}"):
        check_files(split)


def test_a_range_that_nothing_reaches_is_refused(tmp_path):
    split = open_split("folder", write(tmp_path, scenes(1)), "train")
    split.form = ImageForm(3, None, (100_000.0, 200_000.0))
    with pytest.raises(
        DataError, match=r"hold values from .* but the range is 100000 to 200000: give images in its units"
    ):
        check_files(split)


def test_splits_of_different_types_are_refused(tmp_path):
    write(tmp_path, scenes(2))
    for path in (tmp_path / "images/val").glob("*.npy"):
        np.save(path, np.load(path).astype(np.float32))
    splits = [open_split("folder", tmp_path, split) for split in ("train", "val")]
    for split in splits:
        split.form = ImageForm(2, None, (0.0, 4000.0))
    with pytest.raises(
        DataError, match=r"Training images hold 2 bands of uint16, but those in .*val 2 bands of float32"
    ):
        check_splits(*splits)


def test_a_band_without_numbers_is_refused(tmp_path):
    arrays = scenes(2, "float32")
    for array in arrays:
        array[..., 1] = np.nan
    with pytest.raises(SettingsError, match="Band 2 of the images holds no numbers"):
        form_of(write(tmp_path, arrays))


def test_images_of_which_every_pixel_lacks_a_band_are_refused(tmp_path):
    pytest.importorskip("rasterio")
    from small_rasters import write_raster

    root = write(tmp_path, scenes(2, "float32"))
    for path in (root / "images").rglob("*.npy"):
        values = np.load(path).transpose(2, 0, 1)
        values[1] = np.nan  # and a raster's pixels are valid with all bands alone
        write_raster(path.with_suffix(".tif"), values)
        path.unlink()
    with pytest.raises(SettingsError, match="No pixel of the images holds a number in every band"):
        form_of(root)


def test_sixteen_bits_without_a_range_are_said_to_be_dark(tmp_path):
    write(tmp_path, scenes(1), ".png")
    split = open_split("folder", tmp_path, "train")
    assert any("of 65535: they are nearly black" in line for line in check_files(split).warnings)
    split.form = ImageForm(3, None, (0, 4000))
    assert not check_files(split).warnings


def test_what_is_known_of_bands_is_remembered(tmp_path):
    split = open_split("folder", write(tmp_path, scenes(5)), "train")
    first = check_files(split, tmp_path)
    assert check_files(split, tmp_path).images == first.images
    assert (first.images[0].kind, first.images[0].bands) == ("uint16", 5)


def test_arrays_beside_photos_are_not_taken_for_images(tmp_path):
    write(tmp_path, scenes(3, "uint8", 255), ".png")
    np.save(tmp_path / "images/train/train0.npy", np.zeros(7))
    assert all(path.suffix == ".png" for path in open_split("folder", tmp_path, "train").images)


def test_scenes_are_drawn_as_geotiffs_that_train(tmp_path):
    pytest.importorskip("rasterio")
    draw_scenes.main([str(tmp_path / "data"), "--geotiff", "--train", "2", "--val", "1", "--size", "48"])
    split = open_split("folder", tmp_path / "data", "train")
    form, _ = measure_form(split, TrainSettings(bands=(4, 3, 2)))
    assert form.channels == 3
    assert form.normalization != (MEAN, STD)
    split.form = form
    check_files(split, tmp_path / "data")
    assert split.open(0)[0].shape == (48, 48, 3)


def test_deployed_graphs_read_bands_as_predictions_do(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(training.EXAMPLES / "deployment")
    preprocessing = importlib.import_module("preprocessing")
    array = scene(5)
    np.save(tmp_path / "a.npy", array)
    metadata = {"input_size": [1, 2, 48, 64], "mean": [0.5, 0.25], "std": [0.2, 0.1]}
    metadata |= {"range": [[0, 3000], [10, 4000]], "bands": [4, 2]}
    found, size = preprocessing.read_image(tmp_path / "a.npy", metadata)
    expected = read_image(tmp_path / "a.npy", 2, metadata["range"], metadata["bands"])
    assert size == (64, 48)
    assert np.allclose(found[0], (expected.numpy() - [[[0.5]], [[0.25]]]) / [[[0.2]], [[0.1]]], atol=1e-5)
    with pytest.raises(OSError, match=r"a\.npy has 5 bands, and the graph takes bands \[6, 2\]"):
        preprocessing.read_image(tmp_path / "a.npy", metadata | {"bands": [6, 2]})
    Image.fromarray(scene(1)).save(tmp_path / "gray.png")
    gray = {"input_size": [1, 3, 24, 32], "mean": [0] * 3, "std": [1] * 3, "range": [0, 4000]}
    found, _ = preprocessing.read_image(tmp_path / "gray.png", gray)
    assert np.allclose(found.mean(), read_image(tmp_path / "gray.png", 3, (0, 4000)).mean(), atol=0.01)
