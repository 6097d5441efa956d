import csv
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import evaluate
import miniatures
import show_data
import train
from segmentation import data, evaluation, layouts, pictures
from segmentation.metrics import Scores, add_to_confusion
from segmentation.recipe import DataError, EvalSettings, SettingsError, TrainSettings, parse
from segnext_timm import predict

EXAMPLES = Path(data.__file__).parents[1]
FOLDER = str(EXAMPLES / "recipes" / "folder.yaml")


@pytest.fixture
def root(tmp_path):
    """A data folder of three classes, and the folder of a model for it; gives (data, model)."""
    miniatures.make(
        "folder", tmp_path / "data", [0, 1, 2, 255], sizes=((48, 64), (64, 48), (33, 97), (40, 40), (32, 50))
    )
    torch.manual_seed(0)
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=4)
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "data", tmp_path / "model"


def test_scores_are_what_their_definitions_say():
    # truth: 4 pixels of a, 2 of b, none of c and d; c is predicted once
    scores = Scores("abcd", torch.tensor([[3, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert scores.iou.tolist()[:3] == [3 / 5, 1 / 2, 0]
    assert math.isnan(scores.iou[3])  # in neither: left out of the mean
    assert scores.miou == pytest.approx((3 / 5 + 1 / 2) / 3)
    assert scores.recall.tolist()[:2] == [3 / 4, 1 / 2]
    assert scores.macc == pytest.approx(5 / 8)  # classes in the truth
    assert scores.aacc == pytest.approx(4 / 6)
    assert scores.most_common_class_miou == pytest.approx(4 / 6 / 2)
    content = scores.as_dict()
    assert content["miou"] == pytest.approx(100 * scores.miou, abs=1e-5)
    assert content["iou"]["d"] is None
    assert content["pixels"]["a"] == {"intersection": 3, "union": 5, "truth": 4, "predicted": 4}
    assert "absent" in scores.table()


def run(*arguments):
    return evaluate.main(list(map(str, arguments)))


def test_every_pixel_of_every_image_is_counted_once(root, tmp_path, capsys):
    folder, model = root
    scores = run(model, FOLDER, "--data_root", folder, "--workers", 0, "--json", tmp_path / "scores.json")
    split = layouts.open_split("folder", folder, "val")
    labels = np.concatenate([split.open(i)[1].ravel() for i in range(len(split))])
    assert scores.confusion.sum(1).tolist() == [int((labels == i).sum()) for i in range(3)]
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["images"] == 5
    assert set(content["iou"]) == {"class 0", "class 1", "class 2"}
    assert {"miou", "macc", "aacc", "pixels"} <= set(content)
    assert "class 1" in capsys.readouterr().out


def test_all_metrics_of_each_class_go_into_table_json_and_csv(root, tmp_path, capsys):
    folder, model = root
    files = ("--json", tmp_path / "new" / "scores.json", "--csv", tmp_path / "scores.csv")
    scores = run(model, FOLDER, "--data_root", folder, "--workers", 0, "--boundary_iou", *files)
    content = json.loads((tmp_path / "new" / "scores.json").read_text())
    metrics = ("iou", "dice", "precision", "recall", "boundary_iou")
    for metric in metrics:
        values = [None if value.isnan() else round(100 * value.item(), 6) for value in getattr(scores, metric)]
        assert [*content[metric].values()] == values
        assert f"m{metric}" in content
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as opened:
        rows = [*csv.DictReader(opened)]
    assert [row["class"] for row in rows] == ["class 0", "class 1", "class 2"]
    assert [float(row["iou"]) for row in rows] == [*content["iou"].values()]
    assert "boundary IoU" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_a_folder_in_place_of_a_results_file_is_refused_before_the_work(root, tmp_path, option):
    with pytest.raises(SettingsError, match=rf"{option} {tmp_path} is a folder: name a file"):
        run(root[1], FOLDER, "--data_root", "no data", option, tmp_path)


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(root, tmp_path):
    folder, model = root
    common = ("--data_root", folder, "--flip", "--boundary_iou")
    run(model, FOLDER, *common, "--workers", 0, "--json", tmp_path / "one.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    options = [*common, "--workers", "1", "--json", tmp_path / "two.json"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    command = [*command, EXAMPLES / "evaluate.py", model, FOLDER, *options]
    subprocess.run(command, check=True, capture_output=True, env=env)
    assert json.loads((tmp_path / "one.json").read_text()) == json.loads((tmp_path / "two.json").read_text())


def test_results_go_into_card_and_configuration(root):
    folder, model = root
    for scales in ((), ("--scales", 0.5, 1.0, "--flip")):
        scores = run(model, FOLDER, "--data_root", folder, "--workers", 0, "--write_card", *scales)
    results = json.loads((model / "config.json").read_text())["pretrained_cfg"]["results"]
    assert [(r["metric"], r["setting"]) for r in results] == [
        (metric, setting) for setting in ("single scale", "multi-scale + flip") for metric in ("mIoU", "mAcc", "aAcc")
    ]
    card = ModelCard.load(model / "README.md")
    (found,) = [r for r in card.data.eval_results if r.metric_name == "mIoU multi-scale + flip"]
    assert found.metric_value == round(100 * scores.miou, 2)
    assert (found.dataset_name, found.dataset_split) == ("data", "val")
    assert f"| mIoU | multi-scale + flip | {round(100 * scores.miou, 2)} |" in card.text
    card.text += "\nMy own words.\n"
    card.save(model / "README.md")
    run(model, FOLDER, "--data_root", folder, "--workers", 0, "--write_card")
    assert "My own words." in ModelCard.load(model / "README.md").text
    assert len(ModelCard.load(model / "README.md").data.eval_results) == 6


@pytest.mark.parametrize("scales", [("0.5,1,1.5",), ("0.5", "1", "1.5"), ("0.5,", "1", "1.5"), ("=0.5,1,1.5",)])
def test_lists_of_numbers_are_given_with_commas_or_spaces(scales):
    words = ["--scales" + scales[0]] if scales[0].startswith("=") else ["--scales", *scales]
    settings = parse(EvalSettings, [FOLDER, *words, "--data_root", "a,b"], "")
    assert settings.scales == (0.5, 1.0, 1.5)
    assert settings.data_root == "a,b"


@pytest.mark.parametrize(("script", "names"), [("train", "RECIPE"), ("data", "RECIPE"), ("evaluate", "MODEL RECIPE")])
def test_help_and_errors_name_the_positional_arguments(script, names, monkeypatch, capsys):
    main = {"train": train.main, "data": show_data.main, "evaluate": evaluate.main}[script]
    monkeypatch.setattr(sys, "argv", [f"{script}.py"])
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert f"usage: {script}.py {names} [-h]" in shown
    assert "RECIPE is a file of settings" in shown
    with pytest.raises(SettingsError, match=rf"{names.split()[0]} is missing: .* Usage: {script}\.py {names} \["):
        main([])


def test_help_shows_the_recipe_s_values(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("lr: 0.123\nresize_factors: [0.25, 4]\nsync_batchnorm: false\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit):
        train.main([str(recipe), "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())  # without the frame and its line breaks
    assert "--lr FLOAT Highest learning rate of the encoder. (default: 0.123)" in shown
    assert "(default: 0.25 4.0) --max_class_share" in shown
    assert "(default: False) --compile" in shown
    settings = parse(TrainSettings, [str(recipe), "--resize-factors", "1,2", "--sync_batchnorm"], "")
    assert (settings.lr, settings.resize_factors, settings.sync_batchnorm) == (0.123, (1.0, 2.0), True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_slow_here_is_pointed_out(root, capsys, precision):
    folder, model = root
    run(model, FOLDER, "--data_root", folder, "--workers", 0, "--precision", precision)
    said = "On most CPUs, bf16 is about ten times slower than fp32."
    assert capsys.readouterr().out.count(said) == (precision == "bf16")


def test_masks_with_values_of_their_own_are_evaluated(root):
    folder, model = root
    (folder / "classes.txt").write_text("2 a\n0 b\n1 c\n", encoding="utf-8")
    moved = run(model, FOLDER, "--data_root", folder, "--workers", 0).confusion.sum(1).tolist()
    (folder / "classes.txt").write_text("a\nb\nc\n", encoding="utf-8")
    plain = run(model, FOLDER, "--data_root", folder, "--workers", 0).confusion.sum(1).tolist()
    assert moved == [plain[2], plain[0], plain[1]]
    assert len(set(plain)) == 3


def name_classes(model, names):
    """Write names of the classes into the configuration of a model folder."""
    config = json.loads((model / "config.json").read_text())
    config["pretrained_cfg"] = {**(config.get("pretrained_cfg") or {}), "label_names": names}
    (model / "config.json").write_text(json.dumps(config))


def test_classes_in_another_order_are_matched_by_name(root, capsys):
    folder, model = root
    (folder / "classes.txt").write_text("a\nb\nc\n", encoding="utf-8")
    name_classes(model, ["a", "b", "c"])
    plain = run(model, FOLDER, "--data_root", folder, "--workers", 0)
    assert "order" not in capsys.readouterr().out
    (folder / "classes.txt").write_text("2 c\n0 a\n1 b\n", encoding="utf-8")
    moved = run(model, FOLDER, "--data_root", folder, "--workers", 0)
    assert "The model has the classes in another order: matched by name." in capsys.readouterr().out
    assert moved.classes == ("c", "a", "b") and torch.equal(moved.confusion, plain.confusion[[2, 0, 1]][:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b", "d"], "only the model has d; only the data set has c. .* or compare by number with --by_position"),
        (["A", "b", "c"], "by upper and lower case alone: only the model has A"),
        (["a", "b", "b"], "only the data set has c"),
    ],
)
def test_classes_of_other_names_are_refused_before_the_work_unless_by_position(root, capsys, names, said):
    folder, model = root
    (folder / "classes.txt").write_text("a\nb\nc\n", encoding="utf-8")
    name_classes(model, names)
    with pytest.raises(DataError, match=said):
        run(model, FOLDER, "--data_root", folder, "--workers", 0)
    assert not (folder / ".checked.json").exists()
    assert run(model, FOLDER, "--data_root", folder, "--workers", 0, "--by_position").confusion.sum() > 0


def test_a_model_without_names_is_compared_by_number_and_says_so(root, capsys):
    folder, model = root
    run(model, FOLDER, "--data_root", folder, "--workers", 0)
    assert "The model does not name its classes: compared by number." in capsys.readouterr().out


def test_a_binary_model_is_evaluated_on_two_classes(root, tmp_path):
    folder, _ = root
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=1, decoder_channels=32, decoder_rank=4)
    model.pretrained_cfg = {"label_names": ["road"]}
    model.save_pretrained(tmp_path / "binary")
    (folder / "classes.txt").write_text("1 road\n0 background\n2 -\n", encoding="utf-8")
    scores = run(tmp_path / "binary", FOLDER, "--data_root", folder, "--workers", 0)
    assert scores.confusion.shape == (2, 2) and scores.confusion.sum() > 0


def test_the_model_is_asked_for_its_channels(root, tmp_path):
    folder, _ = root
    model = smp.SegNeXt(
        "tu-test_mscan", encoder_weights=None, in_channels=1, classes=3, decoder_channels=32, decoder_rank=4
    )
    model.pretrained_cfg = {"mean": [0.5], "std": [0.25]}
    model.save_pretrained(tmp_path / "gray")
    assert run(tmp_path / "gray", FOLDER, "--data_root", folder, "--workers", 0).confusion.sum() > 0


def test_pictures_are_drawn(root, tmp_path):
    folder, model = root
    run(model, FOLDER, "--data_root", folder, "--workers", 0, "--plots", tmp_path / "plots")
    assert sorted(f.name for f in (tmp_path / "plots").iterdir()) == ["confusion.png", "iou.png"]
    for file in (tmp_path / "plots").iterdir():
        with Image.open(file) as picture:
            assert picture.width == 1600


@pytest.mark.parametrize("count", [1, 2, 21])
def test_pictures_of_scores_are_drawn_without_pixels_and_of_many_classes(tmp_path, count):
    confusion = torch.zeros(count, count, dtype=torch.int64)
    for fill in (0, 1):
        scores = Scores([f"class {i}" for i in range(count)], confusion + fill)
        pictures.draw_iou(scores, tmp_path / f"iou{fill}.png")
        pictures.draw_confusion(scores, tmp_path / f"confusion{fill}.png")
    assert len(list(tmp_path.iterdir())) == 4


def test_invalid_arguments_raise_errors_that_name_them(root, tmp_path, monkeypatch):
    folder, model = root
    common = ("--data_root", folder, "--workers", 0)
    with pytest.raises(SettingsError, match=r"MODEL is missing: .* Usage: evaluate\.py MODEL RECIPE"):
        run(FOLDER, *common)
    with pytest.raises(SettingsError, match=r"RECIPE is missing: .* Usage: .* MODEL RECIPE"):
        run(model)
    with pytest.raises(FileNotFoundError, match="nomodel: not a folder, not a Hub repository"):
        run("nomodel", FOLDER, *common)
    with pytest.raises(SettingsError, match="--write_card needs a model folder"):
        run("segnext_t", FOLDER, "--write_card", *common)
    (folder / "classes.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    with pytest.raises(DataError, match="the model has 3 classes, but the data set has 4"):
        run(model, FOLDER, *common)
    recipe = tmp_path / "x.yaml"
    recipe.write_text("crop_sise: 3\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"there is no setting 'crop_sise'\. Did you mean crop_size"):
        run(model, recipe)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(model), FOLDER, "--data_root", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"^evaluate\.py: .*none.*$"):
        runpy.run_path(evaluate.__file__, run_name="__main__")


def test_a_mistyped_recipe_suggests_the_nearest_one():
    with pytest.raises(SettingsError, match=r"floder\.yaml does not exist: did you mean .*recipes/folder\.yaml\?"):
        parse(TrainSettings, [str(Path(FOLDER).with_name("floder.yaml"))], "")


@pytest.mark.parametrize("count", [1, 2, 8, 11, 40])
def test_legends_are_not_wider_than_the_picture(count):
    figure, _ = pictures.new_figure(8.0)
    pictures.add_legend(figure, range(count), ["a rather long name"] * count, [(0, 0, 0)] * count)
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width


def test_titles_name_the_best_result_and_ties(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(pictures, "set_title", lambda figure, title, note="": titles.append(title))
    pictures.draw_training([1.0] * 60, [(20, 0.1), (40, 0.225), (60, 0.179)], tmp_path / "a.png", "loss")
    pictures.draw_training([1.0] * 60, [(20, 0.1), (60, 0.179)], tmp_path / "a.png", "loss")
    scores = Scores(["a", "b", "c"], torch.tensor([[9, 0, 0], [9, 0, 0], [9, 0, 0]]))
    pictures.draw_iou(scores, tmp_path / "a.png")
    pictures.draw_confusion(scores, tmp_path / "a.png")
    assert titles == [
        "mIoU 0.225 after 40 steps, 0.179 after 60",
        "mIoU 0.179 after 60 steps",
        "mIoU 11.1: from 0.0 for 2 classes to 33.3 for a",
        "Most frequent confusion: 100.0% of b is taken for a",
    ]


def test_a_data_set_of_ones_own_class_is_evaluated(root):
    class Drawn(data.Split):
        def __init__(self):
            paths = [Path("drawn")] * 2
            super().__init__("drawn", paths, paths, ("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (1, 1, 1)))

        def open(self, index):
            return Image.new("RGB", (40, 32)), np.full((32, 40), index, np.uint8)

    model = smp.from_pretrained(root[1])
    assert evaluation.evaluate(model, Drawn(), EvalSettings(workers=0), Accelerator()).confusion.sum() == 2 * 32 * 40
    assert len(evaluation.some_predictions(model, Drawn(), 2, EvalSettings())) == 2


@pytest.mark.parametrize(
    ("given", "window", "stride"),
    [({}, 32, 24), ({"eval_window": 40}, 40, 30), ({"eval_window": 40, "eval_stride": 8}, 40, 8)],
)
def test_windows_are_those_of_predict_in_scores_and_pictures(root, given, window, stride):
    model = smp.from_pretrained(root[1])
    model.pretrained_cfg["input_size"] = [3, 32, 32]
    split = layouts.open_split("folder", root[0], "val")
    settings = EvalSettings(workers=0, eval_mode="slide", **given)
    shown = evaluation.some_predictions(model, split, len(split), settings)
    confusion, differ = torch.zeros(3, 3, dtype=torch.int64), False
    for i, (_, _, predicted) in enumerate(shown):
        image, labels = split.open(i)
        np.testing.assert_array_equal(predicted, predict(model, image, mode="slide", window=window, stride=stride))
        differ |= bool((predicted != predict(model, image, mode="whole")).any())
        add_to_confusion(confusion, *(torch.from_numpy(x.astype("int64")) for x in (labels, predicted)), 255)
    assert differ
    assert torch.equal(evaluation.evaluate(model, split, settings, Accelerator()).confusion, confusion)


class Largest(TorchDispatchMode):
    """Finds the number of elements of the largest tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *(tensor.numel() for tensor in tensors), 0)
        return result


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_an_evaluation_holds_no_scores_of_all_classes_at_the_size_of_an_image(tmp_path, mode):
    miniatures.make("folder", tmp_path, [0, 1, 2], sizes=((300, 400),))
    classes = 150
    (tmp_path / "classes.txt").write_text("".join(f"class {label}\n" for label in range(classes)), encoding="utf-8")
    arguments = {"encoder_weights": None, "classes": classes, "decoder_channels": 32, "decoder_rank": 4}
    model, split = smp.SegNeXt("tu-test_mscan", **arguments), layouts.open_split("folder", tmp_path, "val")
    with Largest() as found:
        evaluation.evaluate(model, split, EvalSettings(workers=0, eval_mode=mode, eval_window=128), Accelerator())
    assert 300 * 400 * 3 <= found.elements < classes * 300 * 400 / 4


def test_a_split_whose_pixels_are_all_left_out_is_refused_even_without_the_check(root):
    for file in (root[0] / "labels/val").iterdir():
        with Image.open(file) as opened:
            miniatures.labels(file, np.full(opened.size[::-1], 255, np.uint8))
    with pytest.raises(DataError, match=r"The 5 label files in .*val hold no pixel of any class"):
        run(root[1], FOLDER, "--data_root", root[0], "--workers", 0, "--no-check_data")
