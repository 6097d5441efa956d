"""The scale of a model: the size to which images are resized before it sees them."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from segnext_timm import create_segmenter, fuse, load_segmenter, predict, predict_file
from segnext_timm.cli import main
from segnext_timm.errors import OptionError
from segnext_timm.models.model_info import ModelInfo
from small_models import narrow

SIDES = [96, 80]
SAID = "Images are resized to fit 96x80, the model's scale, unless they are georeferenced; --fit own keeps their size."


def model_of(**cfg):
    cfg = {"input_size": [3, 64, 64], "mean": [0.4] * 3, "std": [0.25] * 3} | cfg
    torch.manual_seed(0)
    model = narrow(pretrained_cfg=cfg).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    return model


def noise(height=50, width=60):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    model_of(fit_in=SIDES).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def run(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def labels_of(file):
    return np.asarray(Image.open(file))


def test_images_are_resized_to_the_model_s_scale():
    model, image = model_of(fit_in=SIDES), noise()
    labels = predict(model, image)
    assert labels.shape == (50, 60)
    assert np.array_equal(labels, predict(model, image, fit_in=(96, 80)))
    assert not np.array_equal(labels, predict(model, image, fit_in=None))


@pytest.mark.parametrize("cfg", [{}, {"fit_in": None}], ids=["unknown", "own size"])
def test_images_keep_their_size_if_the_model_states_no_scale(cfg):
    model, image = model_of(**cfg), noise()
    assert ModelInfo(model).fit_in is None
    assert np.array_equal(predict(model, image), predict(model, image, fit_in=None))
    assert not np.array_equal(predict(model, image), predict(model, image, fit_in=(96, 80)))


@pytest.mark.parametrize("fit_in", [512, [512], [512.0, 512], [512, 0], [True, 512], "2048x512", [[2048, 512]]])
def test_a_scale_that_is_not_two_sides_is_refused(fit_in):
    with pytest.raises(OptionError, match=r'pretrained_cfg\["fit_in"\] is the long and the short side in pixels'):
        predict(model_of(fit_in=fit_in), noise())


def test_a_saved_model_and_one_with_other_classes_keep_the_scale(folder):
    for classes in (None, 5):
        model = load_segmenter(folder, classes=classes)
        assert ModelInfo(model).fit_in == (96, 80)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": list("abcde")}
    assert model.pretrained_cfg["fit_in"] == SIDES


def test_published_segmenters_state_their_scale():
    for name, sides in (
        ("segnext_t.mmseg_ade20k", [2048, 512]),
        ("segnext_t.jseg_isaid", [896, 896]),
        ("segnext_t.jseg_cityscapes", None),
        ("segnext_t.paddleseg_cityscapes", None),
    ):
        assert create_segmenter(name).pretrained_cfg["fit_in"] == sides
    assert create_segmenter("segnext_t.mmseg_ade20k", classes=2).pretrained_cfg["fit_in"] == [2048, 512]


def test_the_command_resizes_to_the_model_s_scale_and_says_so_once(folder, photo, tmp_path):
    Image.fromarray(noise()).save(tmp_path / "b.png")
    done = run(folder, photo, tmp_path / "b.png", "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert done.stderr.count(SAID) == 1
    model = fuse(load_segmenter(folder))
    for sides, options in ((SIDES, ()), (None, ("--fit", "own")), ((70, 60), ("--fit", "70x60"))):
        done = run(folder, photo, "-o", tmp_path / "new", *options)
        assert (SAID in done.stderr) == (not options)
        expected = predict(model.to(memory_format=torch.channels_last), photo, fit_in=sides)
        assert np.array_equal(labels_of(tmp_path / "new" / "a.png"), expected)


def test_the_command_says_nothing_of_a_scale_that_no_model_states(photo, tmp_path):
    model_of().save_pretrained(tmp_path / "plain")
    assert "resized" not in run(tmp_path / "plain", photo, "-o", tmp_path / "out").stderr


def test_the_command_refuses_a_scale_that_is_not_two_sides_before_it_predicts(folder, photo, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["fit_in"] = [96]
    (folder / "config.json").write_text(json.dumps(config))
    done = run(folder, photo, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {folder / 'config.json'}: SegNeXt cannot be created.")
    assert 'pretrained_cfg["fit_in"] is the long and the short side' in done.stderr
    assert not (tmp_path / "out").exists()


def test_labels_of_another_scale_are_not_resumed_from(folder, photo, tmp_path):
    command = (folder, photo, "-o", tmp_path / "out")
    run(*command)
    done = run(*command, "--resume")
    assert done.exit_code == 0
    assert "Predicted 0 of 1 images" in done.stdout
    done = run(*command, "--resume", "--fit", "own")
    assert done.exit_code == 1
    assert "scales (1.0,), fit_in auto (96, 80), not with" in done.stderr


def test_labels_of_a_model_without_a_scale_are_those_of_the_own_size(photo, tmp_path):
    model_of().save_pretrained(tmp_path / "plain")
    run(tmp_path / "plain", photo, "-o", tmp_path / "out")
    done = run(tmp_path / "plain", photo, "-o", tmp_path / "out", "--resume", "--fit", "own")
    assert "Predicted 0 of 1 images" in done.stdout


def test_georeferenced_images_keep_their_size(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    model, image = model_of(fit_in=SIDES), noise()
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)}
    profile = {"driver": "GTiff", "count": 3, "height": 50, "width": 60, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, **place) as file:
        file.write(image.transpose(2, 0, 1))
    for options, expected in (({}, None), ({"fit_in": (96, 80)}, (96, 80))):
        predict_file(model, tmp_path / "a.tif", tmp_path / "out", **options)
        with rasterio.open(tmp_path / "out.tif") as labels:
            assert np.array_equal(labels.read(1), predict(model, image, fit_in=expected))
        assert np.array_equal(predict(model, tmp_path / "a.tif", **options), predict(model, image, fit_in=expected))
