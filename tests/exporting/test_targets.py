import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from lively_models import assert_same, lively
from segmentation import scenes
from segnext_timm import export, predict
from segnext_timm.exporting.targets import DeepnessGraph

# deepness


def drawn_model(architecture="segnext", **kwargs):
    """A model that finds each of its classes in drawn scenes."""
    torch.manual_seed(0)
    model = lively(smp.create_model(architecture, "tu-test_mscan", encoder_weights=None, **kwargs))
    model.pretrained_cfg = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    head = model.segmentation_head[0]
    torch.nn.init.normal_(head.weight)
    with torch.no_grad():
        activation, model.segmentation_head[-1].activation = model.segmentation_head[-1].activation, torch.nn.Identity()
        head.bias -= model(torch.randn(1, 3, 64, 64)).mean((0, 2, 3))
        model.segmentation_head[-1].activation = activation
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "classes", "activation"),
    [("segnext", 5, None), ("segnext", 1, "sigmoid"), ("unet", 5, "softmax2d"), ("unet", 1, None)],
)
def test_deepness_gets_the_probabilities_that_predict_gives(architecture, classes, activation):
    model = drawn_model(architecture, classes=classes, activation=activation)
    pixels, _ = scenes.draw(0, 0, 64)
    output = DeepnessGraph(model)(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)
    assert output.shape == (1, max(classes, 2), 64, 64)
    assert_same(output.sum(1), torch.ones(1, 64, 64))
    _, probabilities = predict(model, pixels, mode="whole", probabilities=True)
    assert_same(output[0, -classes:], torch.tensor(probabilities), tolerance=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "qgis", "resolution": 10}, "target is deepness, .* or nothing, got 'qgis'"),
        ({"resolution": None}, r"\(--resolution 10\), got 'deepness' with None"),
        ({"resolution": 0}, "got 'deepness' with 0"),
        ({"target": None}, "got None with 10"),
        ({"dynamic": True, "argmax": True}, "probabilities of one square image, not dynamic, argmax"),
        ({"precision": "int8", "calibration": "photos"}, "one square image, not int8"),
        ({"input_size": (2, 3, 64, 96)}, r"one square image, not batches of 2, a size of \(64, 96\)"),
        ({"path": "model.pt2"}, r"deepness reads .onnx files .*, not .pt2"),
        ({"range": [0, 3000]}, "divides bytes by 255, but the model takes values from .0, 3000. as 0 to 1"),
    ],
)
def test_what_a_target_does_not_read_is_refused_before_the_graph_is_built(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr("torch.export.export", None)
    model = drawn_model(classes=2)
    model.pretrained_cfg["range"] = options.pop("range", None)
    path = tmp_path / options.pop("path", "model.onnx")
    with pytest.raises(ValueError, match=message):
        export(model, path, **{"input_size": (1, 3, 64, 64), "target": "deepness", "resolution": 10, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "options"),
    [(5, {}), (1, {}), (5, {"precision": "fp16"}), (1, {"fuse": False})],
    ids=["five classes", "binary", "fp16", "not fused"],
)
def test_geodeep_gives_the_labels_of_predict(classes, options, tmp_path):
    geodeep, rasterio = pytest.importorskip("geodeep"), pytest.importorskip("rasterio")
    model, (pixels, _) = drawn_model(classes=classes), scenes.draw(0, 0, 224)
    model.pretrained_cfg["label_names"] = names = list("abcde")[:classes]
    path = export(model, tmp_path / "model.onnx", (1, 3, 128, 128), target="deepness", resolution=10, **options)
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.1, 0, 500_000, 0, -0.1, 5_400_000)}
    shape = {"driver": "GTiff", "count": 3, "height": 224, "width": 224, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(tmp_path / "map.tif", "w", **shape, **place) as raster:
        raster.write(pixels.transpose(2, 0, 1))
    right = np.empty((224, 224), np.uint8)  # four tiles of 128, which overlap by 32: each gives what is nearer to it
    parts = ((0, slice(0, 112)), (96, slice(16, 128)))
    for top, rows in parts:
        for left, columns in parts:
            tile = predict(model, pixels[top : top + 128, left : left + 128], mode="whole")
            right[top:, left:][rows, columns] = tile[rows, columns]
    right = geodeep.utils.median_filter(right, 5)  # which geodeep takes of each mask
    assert set(np.unique(right)) == set(range(max(classes, 2)))
    mask = geodeep.segment(str(tmp_path / "map.tif"), str(path))
    assert (mask == right).mean() > (0.99 if options.get("precision") else 0.9999)  # of noisy labels
    polygons = json.loads(geodeep.segment(str(tmp_path / "map.tif"), str(path), "geojson"))["features"]
    assert {polygon["properties"]["class"] for polygon in polygons} == set(
        names if classes > 1 else ["background", "a"]
    )
