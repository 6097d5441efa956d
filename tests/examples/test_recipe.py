"""Settings out of their range are refused before anything is read."""

import re
from dataclasses import fields

import pytest
import yaml

import training
from segmentation import recipe
from segmentation.recipe import EvalSettings, SettingsError, TrainSettings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch_size 0", "--batch_size must be at least 1, got 0."),
        ("--iterations 0", "--iterations must be at least 1, got 0."),
        ("--lr -1", "--lr must be a positive number, got -1.0."),
        ("--lr nan", "--lr must be a positive number, got nan."),
        ("--clip_grad inf", "--clip_grad must be a positive number, got inf."),
        ("--weight_decay -0.1", "--weight_decay must be a number, at least 0, got -0.1."),
        ("--crop_size 20", "--crop_size must be at least 32, got 20."),
        ("--max_class_share 1.5", "--max_class_share must be above 0 and at most 1, got 1.5."),
        ("--ema_decay 2", "--ema_decay must be above 0 and below 1, got 2.0."),
        ("--drop_path_rate 1", "--drop_path_rate must be at least 0 and below 1, got 1.0."),
        ("--decoder_channels 100", "--decoder_channels must be a multiple of 32, such as 256, got 100."),
        ("--range 0 inf", "--range must be a number, got 0.0 inf."),
        ("--bands 0,1", "--bands must be at least 1, got 0 1."),
        ("--seed -1", "--seed must be from 0 to 4294967295, got -1."),
        ("--ignore_index 99999999999", "--ignore_index must be of 32 bits, such as 255, got 99999999999."),
        ("--label_smoothing 1", "--label_smoothing must be at least 0 and below 1, got 1.0."),
        ("--class_weights 1 nan", "--class_weights must be a number, at least 0, got 1.0 nan."),
        ("--rare_class_sampling 0", "--rare_class_sampling must be a positive number, got 0.0."),
        ("--base_scale 0 0", "--base_scale must be at least 1, got 0 0."),
        ("--base_scale 512 2048", "--base_scale must be the long side first, got 512 2048."),
        ("--resize_factors 2 0.5", "--resize_factors must be the lower one first, got 2.0 0.5."),
        (
            "--eval_mode slide --eval_window 512 --eval_stride 600",
            "--eval_stride must be at most --eval_window, or pixels between the windows would be left out, got 600 "
            "and 512.",
        ),
        (
            "--crop_size 256 --eval_stride 300",
            "--eval_stride must be at most --eval_window, or pixels between the windows would be left out, got 300 "
            "and 256.",
        ),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_the_name_of_its_option(words, message):
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        recipe.parse(TrainSettings, [str(training.RECIPES / "folder.yaml"), *words.split()], "")


def test_a_number_in_a_recipe_is_checked_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("scales: [0.5, -1]\n")
    with pytest.raises(SettingsError, match=r"^--scales must be a positive number, got 0.5 -1.0\.$"):
        recipe.parse(EvalSettings, [str(tmp_path / "mine.yaml")], "")


def test_every_number_has_a_range():
    listed = {name for _, _, names in recipe.RANGES for name in names}
    numbers = {
        f.name for cls in (TrainSettings, EvalSettings) for f in fields(cls) if re.search("int|float", str(f.type))
    }
    assert numbers == listed


def test_the_settings_of_all_recipes_are_in_their_ranges():
    for file in training.RECIPES.glob("*.yaml"):
        for cls in (TrainSettings, EvalSettings):
            recipe.parse(cls, [str(file)], "")


@pytest.mark.parametrize(
    ("name", "value", "none"),
    [
        ("class_weights", "auto", "none"),
        ("ema_decay", 0.9, None),
        ("early_stopping", 3, None),
        ("augment", "my_code:augment", None),
        ("base_scale", "96 64", None),
        ("tracker", "wandb", "none"),
    ],
)
def test_none_undoes_a_recipe_s_setting(tmp_path, name, value, none):
    value = value.split() if name == "base_scale" else value
    for content, words in ((value, [f"--{name}", "none"]), (value, [f"--{name}=none"]), ("none", [])):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({name: content}), encoding="utf-8")
        assert getattr(recipe.parse(TrainSettings, [str(tmp_path / "mine.yaml"), *words], ""), name) == none
