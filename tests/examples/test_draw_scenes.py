"""Drawn data folders, and what draw_scenes.py never touches."""

import shutil

import pytest
from PIL import Image

import draw_scenes
from segmentation.recipe import SettingsError

SMALL = ("--train", "2", "--val", "1", "--size", "32")


def draw(folder, *options):
    draw_scenes.main([str(folder), *SMALL, *options])
    return {file.relative_to(folder).as_posix() for file in folder.rglob("[!.]*") if file.is_file()}


def test_a_folder_that_was_drawn_is_replaced_by_what_is_drawn_now(tmp_path):
    assert len(draw(tmp_path / "new")) == 7
    (tmp_path / "new" / "classes.txt").write_text("edited\n")
    assert draw(tmp_path / "new", "--binary", "road", "--train", "1") == {
        *("images/train/000.jpg", "images/val/000.jpg", "labels/train/000.png", "labels/val/000.png", "classes.txt")
    }
    assert (tmp_path / "new" / "classes.txt").read_text(encoding="utf-8") == "background\nroad\n"


def test_an_empty_folder_is_drawn_in(tmp_path):
    assert len(draw(tmp_path)) == 7


@pytest.mark.parametrize("place", ["photo.jpg", "images/train/000.jpg", "classes.txt"])
def test_a_folder_that_holds_files_of_others_stays_as_it_is(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(SettingsError, match=rf"{place} was not drawn by this script: choose another folder, which is"):
        draw(tmp_path)
    assert file.read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_a_photo_in_the_place_of_a_drawn_one_is_kept(tmp_path):
    names = draw(tmp_path)
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "train" / "001.jpg")
    with pytest.raises(SettingsError, match=r"images/train/001\.jpg was not drawn by this script"):
        draw(tmp_path)
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("[!.]*") if file.is_file()} == names
    shutil.rmtree(tmp_path / "images")
    assert draw(tmp_path) == names


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "notes").write_text("")
    with pytest.raises(SettingsError, match="notes was not drawn by this script: choose another folder"):
        draw(tmp_path / "notes")
