"""What examples/deployment/preprocessing.py gives to exported graphs."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def preprocessing(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "deployment")
    return importlib.import_module("preprocessing")


FIXED = {"input_size": [1, 3, 64, 96], "mean": [0.5] * 3, "std": [0.25] * 3, "size_divisor": 1}


@pytest.mark.parametrize(
    ("size", "facts", "shape"),
    [
        ((600, 400), {"dynamic": True, "fit_in": [2048, 512]}, (512, 768)),
        ((4000, 500), {"dynamic": True, "fit_in": [2048, 512]}, (256, 2048)),
        ((60, 80), {"dynamic": True, "fit_in": [160, 160], "size_divisor": 32}, (160, 128)),
        ((900, 90), {"dynamic": True, "fit_in": [90, 90]}, (33, 90)),
        ((600, 400), {"dynamic": False, "fit_in": [2048, 512]}, (64, 96)),
        ((600, 400), {"fit_in": [2048, 512]}, (64, 96)),
        ((600, 400), {"dynamic": True}, (64, 96)),
    ],
)
@pytest.mark.parametrize("more", [{}, {"range": [0, 200]}], ids=["photo", "range"])
def test_graphs_of_any_size_get_images_at_the_model_s_scale(preprocessing, tmp_path, size, facts, more, shape):
    Image.new("RGB", size).save(tmp_path / "a.png")
    images, found = preprocessing.read_image(tmp_path / "a.png", FIXED | facts | more)
    assert images.shape == (1, 3, *shape)
    assert found == size
    preprocessing.save_labels(np.zeros(shape, np.uint8), found, {}, tmp_path / "labels.png")
    assert Image.open(tmp_path / "labels.png").size == size
