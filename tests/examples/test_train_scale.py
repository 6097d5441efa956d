import json
import shutil

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import evaluate
import miniatures
import show_data
import training
from segmentation import checks, layouts, models
from segmentation.bands import ImageForm
from segmentation.recipe import EvalSettings, SettingsError, TrainSettings, parse
from segmentation.scale import evaluation_scale, find_scale
from segmentation.transforms import RandomResizedCrop
from segnext_timm import predict
from small_models import narrow

FOLDER = str(training.RECIPES / "folder.yaml")


def split_of(folder, sizes, suffix=".png", form=None):
    """A split of gray images of these widths and heights."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}{suffix}" for i in range(len(sizes))]
    for path, size in zip(paths, sizes):
        Image.new("L", size).save(path)
    return layouts.Split("x", paths, paths, ("a", "b"), ((0, 0, 0),) * 2, form=form or ImageForm())


def found(split, root, **settings):
    """Scales of training and evaluation, and all that is said of them."""
    base, fit_in, lines = find_scale(split, TrainSettings(data_root=str(root), **{"crop_size": 32} | settings))
    return base, fit_in, "\n".join(lines)


@pytest.mark.parametrize(
    ("sizes", "expected", "said"),
    [
        ([(640, 480), (480, 640)], (640, 480), "images of 640×480 (2) are fitted in 640×480 for training, evaluation"),
        ([(4032, 3024)], (2048, 1536), "images of 4032×3024 (1) are fitted in 2048×1536 for training, evaluation"),
        ([(4000, 2000)], (2048, 1024), "images of 4000×2000 (1) are fitted in 2048×1024 for"),
        ([(3000, 3000)] * 2, (1536, 1536), "images of 3000×3000 (2) are fitted in 1536×1536 for"),
        (
            [(4000, 3000), (300, 200), (1200, 900)],
            (1200, 900),
            "images of 300×200 to 4000×3000 (3) are fitted in 1200×900, by the median of their sides, 1200×900, for",
        ),
        ([(300, 300), (200, 200)], (250, 250), "by the median of their sides, 250×250, for training"),
        ([(256, 256)] * 3, None, "256×256 (3) are square and of one size, as tiles are: they keep their own size"),
        ([(2048, 2048)], None, "as tiles are: they keep their own size in training, evaluation and prediction"),
    ],
)
def test_photos_are_fitted_in_their_median_size_and_tiles_keep_theirs(tmp_path, sizes, expected, said):
    base, fit_in, lines = found(split_of(tmp_path / "images", sizes), tmp_path)
    assert base == fit_in == expected
    assert f"Scale: {said}" in lines or said in lines
    assert "--base_scale LONG SHORT" in lines


def test_images_that_are_no_photos_keep_their_own_size(tmp_path):
    split = split_of(tmp_path / "images", [(64, 48), (48, 48)], form=ImageForm(1, None, (0, 4095)))
    base, fit_in, lines = found(split, tmp_path)
    assert base is fit_in is None
    assert "images of 48×48 to 64×48 (2) are no photos: they keep their own size" in lines


def test_images_with_a_world_file_keep_their_own_size(tmp_path):
    split = split_of(tmp_path / "images", [(64, 48)], ".jpg")
    assert found(split, tmp_path)[0] == (64, 48)
    split.images[0].with_suffix(".jgw").write_text("10\n0\n0\n-10\n500\n640\n", encoding="utf-8")
    base, fit_in, lines = found(split, tmp_path)
    assert base is fit_in is None
    assert "images of 64×48 (1) have a place on the ground: they keep their own size" in lines


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("photometric", ["RGB", "MINISBLACK"])  # Pillow does not read the second
@pytest.mark.parametrize("placed", [True, False])
def test_geotiffs_of_8_bits_keep_their_own_size(tmp_path, photometric, placed):
    rasterio = pytest.importorskip("rasterio")
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500, 0, -10, 640)} if placed else {}
    shape = {"width": 64, "height": 48, "count": 3, "dtype": "uint8", "photometric": photometric}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **shape, **place) as file:
        file.write(np.zeros((3, 48, 64), np.uint8))
    split = layouts.Split("x", [tmp_path / "a.tif"], [], ("a",), ((0, 0, 0),))
    base, _, lines = found(split, tmp_path)
    assert base == (None if placed else (64, 48))
    assert ("images of 64×48 (1) have a place on the ground" in lines) == placed


def test_images_that_cannot_be_read_do_not_count(tmp_path):
    split = split_of(tmp_path / "images", [(64, 48), (30, 20)])
    split.images[1].write_text("damaged", encoding="utf-8")
    assert found(split, tmp_path)[0] == (64, 48)
    split.images[0].unlink()
    assert found(split, tmp_path) == (
        *(None, None),
        "Scale: images that cannot be read keep their own size in training, evaluation and prediction.",
    )


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".npy"])
def test_sizes_are_those_of_the_check_of_files_and_of_headers_alike(tmp_path, suffix):
    turned = Image.Exif()
    turned[0x0112] = 6
    images, labels = [], []
    for number, (height, width) in enumerate(((40, 100), (80, 50), (60, 60))):
        images.append(tmp_path / f"{number}{suffix}")
        labels.append(tmp_path / f"{number}_labels.png")
        if suffix == ".npy":
            np.save(images[-1], np.zeros((height, width, 3), np.uint8))
        else:
            Image.new("RGB", (height, width)).save(images[-1], exif=turned)  # opened, it is upright
        miniatures.labels(labels[-1], miniatures.stripes([0, 1], (height, width)))
    split = layouts.Split("x", images, labels, ("a", "b"), ((0, 0, 0),) * 2)
    expected = found(split, tmp_path)
    assert expected[0] == (80, 50)
    assert not (tmp_path / ".checked.json").exists()
    checks.check_files(split, tmp_path)
    assert found(split, tmp_path) == expected


def test_sizes_that_are_given_need_no_images_and_may_differ_in_evaluation(tmp_path):
    split = layouts.Split("x", [tmp_path / "none.png"], [], ("a",), ((0, 0, 0),))
    assert found(split, tmp_path, base_scale=(48, 64)) == ((64, 48), (64, 48), "")
    assert found(split, tmp_path, base_scale=None) == (None, None, "")
    differs = "Scale: images are fitted in 64×48 in training, but images {} in evaluation and prediction."
    own, other = differs.format("keep their own size"), differs.format("are fitted in 40×30")
    assert found(split, tmp_path, base_scale=(64, 48), fit_in=None) == ((64, 48), None, own)
    assert found(split, tmp_path, base_scale=(64, 48), fit_in=(30, 40)) == ((64, 48), (40, 30), other)
    split = split_of(tmp_path / "images", [(640, 480)])
    base, fit_in, lines = found(split, tmp_path, fit_in=(40, 30), crop_size=256)
    assert (base, fit_in) == ((640, 480), (40, 30))
    assert lines == (
        "Scale: images of 640×480 (1) are fitted in 640×480 for training; --base_scale LONG SHORT sets another."
    )


@pytest.mark.parametrize(
    ("size", "settings", "said"),
    [
        ((256, 256), {}, "Warning: crops of 384 are larger than the images, which have short sides of up to 256: set"),
        ((320, 240), {}, "Warning: crops of 384 are larger than the images, which are fitted in 320×240: set a"),
        ((9, 9), {"base_scale": (320, 240)}, "Warning: crops of 384 are larger than the images, which are fitted in"),
        ((4032, 3024), {}, "  crops of 384 show 19% of the long side: a larger --crop_size, or a smaller --base_scale"),
        ((640, 480), {}, None),
        ((4000, 300), {}, "Warning: crops of 384 are larger than the images, which are fitted in 2048×154: set a"),
        ((9, 9), {"base_scale": (2048, 256)}, "Warning: crops of 384 are larger than the images, which are fitted in"),
        ((9, 9), {"base_scale": (4096, 2048)}, "  crops of 384 show 19% of the short side: a larger --crop_size"),
        ((9, 9), {"base_scale": (2048, 512)}, None),
    ],
)
def test_crops_that_do_not_fit_the_scale_are_pointed_out(tmp_path, size, settings, said):
    lines = found(split_of(tmp_path / "images", [size]), tmp_path, crop_size=384, **settings)[2]
    assert ("crops of" in lines) == bool(said)
    assert (said or "") in lines


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ade20k", ((2048, 512), (2048, 512))),
        ("cityscapes", ((2048, 1024), None)),
        ("coco_stuff164k", ((2048, 512), (2048, 512))),
        ("voc2012", ((2048, 512), (2048, 512))),
        ("pascal_context", ((520, 520), (520, 520))),
        ("isaid", ((896, 896), None)),
        ("folder", ("auto", "auto")),
    ],
)
def test_recipes_state_the_scales_of_the_paper(name, expected):
    settings = parse(TrainSettings, [str(training.RECIPES / f"{name}.yaml")], "")
    assert (settings.base_scale, settings.fit_in) == expected


def test_scales_are_read_from_recipes_and_the_command_line(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base_scale: none\nfit_in: [640, 480]\n", encoding="utf-8")
    settings = parse(TrainSettings, [str(recipe)], "")
    assert (settings.base_scale, settings.fit_in) == (None, (640, 480))
    settings = parse(TrainSettings, [str(recipe), "--base_scale", "96,64", "--fit_in", "none"], "")
    assert (settings.base_scale, settings.fit_in) == ((96, 64), None)
    assert parse(EvalSettings, [str(recipe), "--fit_in=auto"], "").fit_in == "auto"
    with pytest.raises(SettingsError, match="--fit_in must be at least 1, got 0 64"):
        parse(EvalSettings, [str(recipe), "--fit_in", "0", "64"], "")


def test_recipes_with_the_former_name_are_told_the_new_one(tmp_path):
    recipe = tmp_path / "old.yaml"
    recipe.write_text("eval_fit: [2048, 512]\n", encoding="utf-8")
    for cls in (TrainSettings, EvalSettings):
        with pytest.raises(SettingsError, match=r"there is no setting 'eval_fit'\. Did you mean fit_in\?"):
            parse(cls, [str(recipe)], "")


def test_crops_of_images_at_their_own_size_hold_their_pixels():
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (60, 90, 3), np.uint8), rng.integers(0, 5, (60, 90), np.uint8)
    crops = []
    for base_scale in (None, (90, 60)):
        torch.manual_seed(0)
        crop = RandomResizedCrop(32, base_scale, factors=(1, 1), max_share=1)
        crops.append([np.asarray(part) for part in crop(Image.fromarray(image), labels)])
    assert all(np.array_equal(*pair) for pair in zip(*crops))
    windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32, 3))
    assert (windows == crops[0][0]).all((-3, -2, -1)).sum() == 1


# Training


@pytest.mark.parametrize(
    ("sizes", "scale"),
    [(((48, 64), (96, 128), (100, 60)), [100, 60]), (((64, 64),) * 3, None)],
    ids=["photos", "tiles"],
)
def test_a_model_states_the_scale_that_it_was_trained_and_evaluated_at(tmp_path, capsys, sizes, scale):
    miniatures.make("folder", tmp_path / "data", [0, 1, 2], sizes)
    options = ("--data_root", tmp_path / "data", "--out", tmp_path / "run", "--iterations", 2, "--lr", 1e-2)
    training.run("folder", *options)
    assert capsys.readouterr().out.count("Scale: ") == 1
    model = smp.from_pretrained(tmp_path / "run/last")
    assert model.pretrained_cfg["fit_in"] == scale
    saved = training.checkpoint(tmp_path / "run")
    assert saved["settings"]["base_scale"] == saved["settings"]["fit_in"] == (scale and tuple(scale))
    split, right, total = layouts.open_split("folder", tmp_path / "data", "val"), 0, 0
    for index in range(len(split)):
        image, labels = split.open(index)
        right += (predict(model, image, fit_in=scale) == labels).sum()
        total += labels.size
    AcceleratorState._reset_state(True)
    arguments = (tmp_path / "run/last", FOLDER, "--data_root", tmp_path / "data", "--workers", 0)
    scores = evaluate.main([*map(str, arguments)])
    assert scores.aacc == pytest.approx(right / total)
    assert scores.miou == pytest.approx(saved["mious"][-1][1])
    assert ("Scale: images are fitted in 100×60, as the model states." in capsys.readouterr().out) == bool(scale)


@pytest.mark.parametrize("sizes", [((48, 64), (96, 128), (100, 60)), ((64, 64),) * 3], ids=["photos", "tiles"])
def test_a_resumed_run_goes_on_at_its_scale_to_the_same_weights(tmp_path, capsys, sizes):
    miniatures.make("folder", tmp_path / "data", [0, 1, 2], sizes)
    options = ("--data_root", tmp_path / "data", *training.EXACT, "--eval_every", 6, "--out")
    training.run("folder", *options, tmp_path / "whole")
    AcceleratorState._reset_state(True)
    with training.power_failure():
        training.run("folder", *options, tmp_path / "run")
    AcceleratorState._reset_state(True)
    capsys.readouterr()
    training.run("folder", *options, tmp_path / "run")
    said = capsys.readouterr().out
    assert "Resuming at iteration" in said and "Scale: " not in said and "Changed" not in said
    whole, resumed = (training.checkpoint(tmp_path / name) for name in ("whole", "run"))
    assert resumed["losses"] == whole["losses"] and resumed["mious"] == whole["mious"]
    assert all(torch.equal(value, whole["model"][name]) for name, value in resumed["model"].items())


def test_a_run_is_not_resumed_on_images_of_another_size(finished_run, tmp_path):
    for name in ("data", "run"):
        shutil.copytree(finished_run.data.parent / name, tmp_path / name)
    for split in ("train", "val"):
        for file in (tmp_path / "data").glob(f"*/{split}/*"):
            with Image.open(file) as image:
                image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(file)
    options = (*finished_run.options, "--data_root", tmp_path / "data", "--out", tmp_path / "run")
    with pytest.raises(SettingsError, match=r"was written with base_scale \(64, 48\), not \(128, 96\): choose another"):
        training.run("folder", *options)


def test_a_model_that_keeps_no_scale_is_said_to(folder):
    split, said = layouts.open_split("folder", folder, "train"), []
    model = smp.Unet("tu-test_mscan", encoder_weights=None, encoder_depth=4, decoder_channels=(32,) * 4, classes=3)
    model.save_pretrained(folder / "unet")
    models.build_model(TrainSettings(init_from=str(folder / "unet"), fit_in=(64, 48)), split, said.append)
    assert said[-1] == "  Unet does not keep the scale of its images: give predict fit_in=(64, 48)"
    models.build_model(TrainSettings(init_from=str(folder / "unet"), fit_in=None), split, said.append)
    assert "scale" not in said[-1]


def test_show_data_names_the_scale_and_the_picture_in_a_new_folder(folder, tmp_path, capsys):
    picture = tmp_path / "new" / "crops.png"
    show_data.main([FOLDER, "--data_root", str(folder), "--crop_size", "32", "--picture", str(picture)])
    said = capsys.readouterr().out
    assert "are fitted in 64×48, by the median of their sides, 64×48, for training" in said
    assert f"{picture}: 16 augmented crops" in said and Image.open(picture).width == 1600


# Evaluation


@pytest.mark.parametrize(
    ("facts", "fit_in", "expected", "said"),
    [
        ({"fit_in": [96, 64]}, "auto", (96, 64), "Scale: images are fitted in 96×64, as the model states."),
        ({"fit_in": None}, "auto", None, None),
        ({}, "auto", None, "The model states no scale of its images: they keep their own size, unless --fit_in is"),
        ({}, (96, 64), (96, 64), None),
        ({"fit_in": [96, 64]}, (96, 64), (96, 64), None),
        ({"fit_in": [96, 64]}, None, None, "Scale: images keep their own size, but the model states: images are"),
        ({"fit_in": None}, (96, 64), (96, 64), "images are fitted in 96×64, but the model states: images keep"),
    ],
)
def test_a_size_that_is_given_goes_before_the_model_s(facts, fit_in, expected, said):
    model = narrow()
    model.pretrained_cfg.update(facts)
    found, note = evaluation_scale(model, fit_in)
    assert found == expected
    assert (said in note) if said else note is None


def test_results_name_the_scale_that_they_were_computed_at(folder, tmp_path, capsys):
    model = narrow(pretrained_cfg={"mean": [0.5] * 3, "std": [0.5] * 3, "fit_in": [96, 64]})
    model.save_pretrained(tmp_path / "model")
    common = (tmp_path / "model", FOLDER, "--data_root", folder, "--workers", 0, "--json", tmp_path / "scores.json")
    for options, expected in (((), [96, 64]), (("--fit_in", "none"), None), (("--fit_in", 40, 30), [40, 30])):
        AcceleratorState._reset_state(True)
        evaluate.main([*map(str, (*common, *options))])
        assert json.loads((tmp_path / "scores.json").read_text())["fit_in"] == expected
    assert "images are fitted in 40×30, but the model states: images are fitted in 96×64" in capsys.readouterr().out
