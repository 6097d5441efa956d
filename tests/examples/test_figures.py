import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

import figures


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32).save_pretrained(folder)
    return folder


def drawn(path):
    """Whether a picture shows more than paper."""
    with Image.open(path) as picture:
        return len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_the_cost_is_drawn(tmp_path):
    figures.main(["cost", "-o", str(tmp_path)])
    assert drawn(tmp_path / "accuracy.png")


def test_a_model_s_pictures_are_drawn(model, tmp_path, monkeypatch):
    draw = figures.scenes.draw
    monkeypatch.setattr(figures.scenes, "draw", lambda seed, index, size: draw(seed, index, 64))
    figures.main(["model", str(model), "-o", str(tmp_path / "a")])
    photo = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    figures.main(["model", str(model), "--image", str(tmp_path / "photo.png"), "-o", str(tmp_path / "b")])
    figures.main(["model", str(model), "--image", str(tmp_path / "photo.png"), "-o", str(tmp_path / "again")])
    for name in ("attention", "receptive_field", "bases"):
        files = [tmp_path / folder / f"{name}.png" for folder in ("a", "b", "again")]
        assert all(map(drawn, files))
        scene, photo, again = (file.read_bytes() for file in files)
        assert photo == again
        assert photo != scene  # drawn from the image


def test_other_models_are_refused(tmp_path):
    smp.Unet("resnet18", encoder_weights=None).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="these pictures are of a SegNeXt on MSCAN"):
        figures.main(["model", str(tmp_path / "unet")])


@pytest.mark.reference
@pytest.mark.slow
def test_the_counts_in_the_plot_are_what_count_gives():
    published = {name: gmacs for family in figures.PUBLISHED.values() for name, (gmacs, _) in family.items()}
    names = ["segnext_mscan-t", "segnext_mscan-s", "segformer_mit-b0", "segformer_mit-b1", "deeplabv3plus_r50"]
    assert figures.count(names) == {name: published[name] for name in names}
