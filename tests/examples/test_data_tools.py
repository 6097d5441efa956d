"""The lines of examples/tools/README.md that connect other tools do what the page says, in the tools' own code."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lively_models import tiny
from run_blocks import blocks
from segmentation import scenes
from segnext_timm import load_segmenter, predict

PAGE = Path(__file__).parents[2] / "examples" / "tools" / "README.md"
NAMES, PALETTE = ["sky", "road", "car", "tree", "lamp"], [[10, 0, 0], [0, 20, 0], [0, 0, 30], [40, 40, 0], [0, 50, 50]]
pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The current folder, with a photo and a model of five classes."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scenes.draw(0, 0, 96)[0]).save("street.png")
    cfg = {"mean": [0.5] * 3, "std": [0.25] * 3, "label_names": NAMES, "palette": PALETTE}
    model = tiny(pretrained_cfg=cfg)
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    model.save_pretrained("my-segnext")
    return tmp_path


def run_lines(tool):
    """Run the page's lines of a tool: their variables."""
    (text,) = [b.text for b in blocks(PAGE) if b.language == "python" and b.needs == tool]
    namespace = {}
    exec(text, namespace)
    return namespace


def needs(module):
    """Import a tool; skip without it, or if it does not run beside the packages installed here."""
    pytest.importorskip(module, exc_type=ImportError)


def test_supervision_draws_each_class_in_its_color(work):
    needs("supervision")
    found = run_lines("supervision")
    labels = predict(load_segmenter("my-segnext"), "street.png")
    present = np.unique(labels)
    detections = found["detections"]
    assert detections.class_id.tolist() == present.tolist()
    assert detections["class_name"].tolist() == [NAMES[label] for label in present]
    for mask, label in zip(detections.mask, present):
        assert np.array_equal(mask, labels == label)
    photo, drawn = (np.asarray(one).astype(float) for one in (Image.open("street.png"), found["drawn"]))
    assert np.abs(drawn - (photo + np.array(PALETTE)[labels]) / 2).max() <= 1  # opacity 0.5


def test_fiftyone_gets_labels_from_1_on(work):
    needs("fiftyone")
    import fiftyone as fo

    found = run_lines("fiftyone")
    labels = predict(load_segmenter("my-segnext"), "street.png")
    segmentation = found["sample"]["prediction"]
    assert isinstance(segmentation, fo.Segmentation)
    assert np.array_equal(segmentation.get_mask(), labels + 1)
    objects = segmentation.to_detections(mask_targets=found["targets"]).detections
    assert {one.label for one in objects} == {NAMES[label] for label in np.unique(labels)}
    segmentation.export_mask("mask.png")
    assert np.array_equal(np.asarray(Image.open("mask.png")), labels + 1)


def test_monai_s_windows_give_the_labels_of_predict(work):
    needs("monai")
    found = run_lines("monai")
    labels = predict(load_segmenter("my-segnext"), "street.png", mode="slide", window=64, stride=48)
    assert (found["labels"] == labels).mean() > 0.999


def test_terratorch_trains_mscan_and_segnext(work):
    needs("terratorch")
    found = run_lines("terratorch")
    batch = {"image": torch.randn(2, 6, 64, 64), "mask": torch.randint(0, 4, (2, 64, 64))}
    for task in (found["mscan"], found["segnext"]):
        task.training_step(batch, 0).backward()
        assert task.model(batch["image"]).output.shape == (2, 4, 64, 64)
    assert type(found["segnext"].model.smp_model).__name__ == "SegNeXt"


def test_torchgeo_trains_mscan_and_segnext(work):
    needs("torchgeo")
    script = PAGE.parents[1] / "integrations" / "torchgeo_six_bands.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SegNeXt: loss" in done.stdout


def test_geoai_trains_segnext_and_predict_agrees_with_its_labels(work):
    needs("geoai")
    rasterio = importlib.import_module("rasterio")
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.1, 0, 500_000, 0, -0.1, 5_400_000)}
    for index in range(8):
        for folder, bands in zip(("images", "labels"), scenes.draw(0, index, 64)):
            bands = np.atleast_3d(bands).transpose(2, 0, 1)
            path = Path(folder, f"{index}.tif")
            path.parent.mkdir(exist_ok=True)
            with rasterio.open(path, "w", "GTiff", 64, 64, len(bands), dtype="uint8", **place) as raster:
                raster.write(bands)
    run_lines("geoai-py")
    from geoai.train import get_smp_model

    model = get_smp_model("segnext", "tu-mscan_t", None, 3, 7)
    model.load_state_dict(torch.load("trained/best_model.pth"))
    model.pretrained_cfg = {"mean": [0] * 3, "std": [1] * 3}
    with rasterio.open("mask.tif") as raster:
        assert np.array_equal(raster.read(1), predict(model, "images/0.tif", mode="whole"))
