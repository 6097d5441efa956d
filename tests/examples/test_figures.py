import json

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

from benchmarking.charts import contender_name
from figures import draw as figures
from figures.diagrams import draw_architecture


@pytest.fixture(autouse=True)
def _small_scenes(monkeypatch):
    draw = figures.scenes.draw
    monkeypatch.setattr(figures.scenes, "draw", lambda seed, index, size: draw(seed, index, 64))


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32).save_pretrained(folder)
    return folder


def drawn(path):
    """Whether a picture is 1600 pixels wide, with white corners, and shows more than paper."""
    with Image.open(path) as picture:
        assert picture.width == 1600
        assert {picture.convert("RGB").getpixel((x, y)) for x in (0, -1) for y in (0, -1)} == {(255, 255, 255)}
        return len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_the_cost_is_drawn(tmp_path):
    figures.main(["cost", "-o", str(tmp_path)])
    assert drawn(tmp_path / "accuracy.png")


def test_the_title_of_the_cost_agrees_with_its_numbers():
    ours, other = figures.PUBLISHED["SegNeXt"]["segnext_mscan-b"], figures.PUBLISHED["UPerNet on Swin"]["swin-base"]
    assert ours[1] == pytest.approx(other[1], abs=0.05)
    assert ours[0] / other[0] == pytest.approx(0.1, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("variant", "tsbl")
def test_the_architecture_is_drawn_of_every_size(variant, tmp_path):
    draw_architecture(tmp_path / "architecture.png", variant)
    assert drawn(tmp_path / "architecture.png")


def test_the_architecture_is_the_same_file_every_time(tmp_path):
    for name in ("a", "b"):
        figures.main(["architecture", "-o", str(tmp_path / name)])
    a, b = ((tmp_path / name / "architecture.svg").read_bytes() for name in ("a", "b"))
    assert b"<svg" in a
    assert a == b


@pytest.mark.slow
def test_the_hero_shows_scenes_or_images(model, photo, tmp_path):
    figures.main(["hero", str(model), "-o", str(tmp_path / "a")])
    figures.main(["hero", str(model), "--image", str(photo), str(photo), "-o", str(tmp_path / "b")])
    assert drawn(tmp_path / "a" / "hero.png")
    assert drawn(tmp_path / "b" / "hero.png")


@pytest.mark.parametrize("sizes", [(64,), (64, 128)])
def test_a_benchmark_is_drawn_from_its_file(sizes, tmp_path):
    speeds = {"mmseg_t@eager": 1.0, "segnext_t@onnx": 4.0, "segformer:mit_b0@eager": 0.9}
    results = [
        {"contender": name, "task": task, "height": side, "width": side, "batch": 1, "times_ms": [side / speed]}
        for task in ("logits", "labels")
        for side in sizes
        for name, speed in speeds.items()
    ]
    machine = {"device": "a CPU", "threads": 2, "torch": "2.9.0+cpu"}
    file = tmp_path / "benchmark.json"
    file.write_text(json.dumps({"machine": machine, "settings": {"classes": 5}, "results": results}))
    figures.main(["benchmark", str(file), "-o", str(tmp_path)])
    assert drawn(tmp_path / "benchmark.png")


@pytest.mark.parametrize(
    ("contender", "name"),
    [
        ("segnext_t@eager", "SegNeXt-T"),
        ("segnext_b@fused", "SegNeXt-B, fused"),
        ("segnext_t@onnx", "SegNeXt-T, ONNX Runtime"),
        ("segnext_t@onnx:int8", "SegNeXt-T, ONNX Runtime, INT8"),
        ("segnext_t@compile", "SegNeXt-T, torch.compile"),
        ("segnext_t@compile:max-autotune", "SegNeXt-T, torch.compile, max-autotune"),
        ("segnext_t@bf16", "SegNeXt-T, bfloat16 autocast"),
        ("segnext_t@openvino:fp16", "SegNeXt-T, OpenVINO, FP16"),
        ("segnext_t@litert", "SegNeXt-T, LiteRT"),
        ("segnext_t@aotinductor", "SegNeXt-T, AOTInductor"),
        ("segnext_t@ncnn", "SegNeXt-T, ncnn"),
        ("mmseg_t@eager", "mmsegmentation SegNeXt-T"),
        ("segformer:mit_b0@eager", "SegFormer MiT-B0"),
        ("segnext:tu-mscan_s@eager", "SegNeXt MSCAN-S"),
        ("deeplabv3plus:resnet50@eager", "DeepLabV3+ ResNet-50"),
        ("upernet:tu-convnext_tiny@eager", "UPerNet ConvNeXt-Tiny"),
        ("resnext50_32x4d@eager", "resnext50_32x4d"),
    ],
)
def test_contenders_have_names_for_people(contender, name):
    assert contender_name(contender) == name


@pytest.mark.slow
def test_a_model_s_pictures_are_drawn(model, photo, tmp_path):
    figures.main(["model", str(model), "-o", str(tmp_path / "a")])
    figures.main(["model", str(model), "--image", str(photo), "-o", str(tmp_path / "b")])
    figures.main(["model", str(model), "--image", str(photo), "-o", str(tmp_path / "again")])
    for name in ("attention", "receptive_field", "bases"):
        files = [tmp_path / folder / f"{name}.png" for folder in ("a", "b", "again")]
        assert all(map(drawn, files))
        scene, image, again = (file.read_bytes() for file in files)
        assert image == again
        assert image != scene  # drawn from the image


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
