"""The user's own code on the command line."""

import pytest

import show_data
import training
from segmentation.hooks import load_function
from segmentation.recipe import SettingsError


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    (tmp_path / "own_hooks.py").write_text("VALUE = 1\n\ndef double(x):\n    return 2 * x\n")
    (tmp_path / "own_broken.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.chdir(tmp_path)


def test_a_function_of_a_module_in_the_current_folder_is_found(own_code):
    assert load_function("augment", "own_hooks:double")(2) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_hooks", "--augment own_hooks: name your own code as module:function"),
        ("own_hooks:triple", "own_hooks.py has no function 'triple'"),
        ("own_hooks:VALUE", "own_hooks.py has no function 'VALUE'"),
        ("own_code_elsewhere:f", "there is no module 'own_code_elsewhere'"),
    ],
)
def test_a_name_without_a_function_is_refused_by_its_option(own_code, name, message):
    with pytest.raises(SettingsError, match=message):
        load_function("augment", name)


@pytest.fixture
def damaged_data(folder):
    """A data folder that the check of its files refuses."""
    for image in (folder / "images" / "train").iterdir():
        image.write_bytes(b"damaged")
    return folder


@pytest.mark.parametrize("option", ["augment", "loss", "schedule", "tracker"])
def test_a_wrong_name_is_refused_before_the_data_are_checked(own_code, damaged_data, option):
    with pytest.raises(SettingsError, match=f"^--{option} own_hooks:triple: .*has no function 'triple'"):
        training.run("folder", "--data_root", damaged_data, f"--{option}", "own_hooks:triple")


def test_show_data_refuses_a_wrong_name_before_it_checks_the_data(own_code, damaged_data):
    options = ("--data_root", str(damaged_data), "--augment", "own_hooks:triple")
    with pytest.raises(SettingsError, match=r"^--augment own_hooks:triple: .*has no function 'triple'"):
        show_data.main([str(training.RECIPES / "folder.yaml"), *options])


def test_an_import_that_fails_in_the_users_module_is_no_wrong_name(own_code):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        load_function("augment", "own_broken:f")
