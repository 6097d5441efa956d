import numpy as np
import pytest
from PIL import Image

import prepare_isaid
from segmentation.layouts import open_split
from segmentation.recipe import UserError
from segnext_timm.label_sets import LABEL_SETS


@pytest.fixture
def source(tmp_path):
    """A downloaded data set of one image for each split, and its labels; gives (folder, labels by split)."""
    truth = {}
    rng = np.random.default_rng(0)
    for split, size in (("train", (150, 230)), ("val", (60, 100))):
        labels = np.kron(rng.integers(0, 16, (15, 23)), np.ones((10, 10), int))[: size[0], : size[1]]
        folder = tmp_path / "isaid" / split
        for kind in ("images/images", "Semantic_masks/images"):
            (folder / kind).mkdir(parents=True)
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(image).save(folder / "images/images/P0001.png")
        colors = np.asarray(LABEL_SETS["isaid"].palette, np.uint8)[labels]
        Image.fromarray(colors).save(folder / "Semantic_masks/images/P0001_instance_color_RGB.png")
        truth[split] = (image, labels)
    return tmp_path / "isaid", truth


def run(source, target, *arguments):
    prepare_isaid.main(list(map(str, [source, target, "--size", 64, "--overlap", 24, "--workers", 1, *arguments])))


def test_patches_cover_the_images_and_are_read_back(source, tmp_path, capsys):
    folder, truth = source
    run(folder, tmp_path / "patches")
    for name, (image, labels) in truth.items():
        split = open_split("isaid", tmp_path / "patches", name)
        seen = np.zeros(labels.shape, int)
        for index in range(len(split)):
            top, bottom, left, right = map(int, split.images[index].stem.split("_")[1:])
            patch, patch_labels = split.open(index)
            assert np.array_equal(np.asarray(patch), image[top:bottom, left:right])
            assert np.array_equal(patch_labels, labels[top:bottom, left:right])
            seen[top:bottom, left:right] += 1
        assert seen.min() >= 1
    assert "train: 24 patches of 1 images" in capsys.readouterr().out


def test_corners_overlap_and_end_with_the_side():
    assert prepare_isaid.corners(2000, 896, 384) == [0, 512, 1024, 1104]
    assert prepare_isaid.corners(896, 896, 384) == [0]
    assert prepare_isaid.corners(897, 896, 384) == [0, 1]
    assert prepare_isaid.corners(500, 896, 384) == [0]
    assert prepare_isaid.corners(100, 896, 384) == [0]


def test_a_second_run_makes_what_is_missing_only(source, tmp_path):
    folder, _ = source
    run(folder, tmp_path / "patches")
    files = sorted((tmp_path / "patches").rglob("*.png"))
    times = {file: file.stat().st_mtime_ns for file in files}
    missing = tmp_path / "patches" / "img_dir" / "train" / "P0001_0_64_40_104.png"
    missing.unlink()
    run(folder, tmp_path / "patches")
    assert sorted((tmp_path / "patches").rglob("*.png")) == files
    changed = {file.stem for file in files if file.stat().st_mtime_ns != times[file]}
    assert {stem.removesuffix(prepare_isaid.MASK) for stem in changed} == {missing.stem}


def test_unusable_sources_raise_errors_that_name_them(source, tmp_path):
    folder, _ = source
    with pytest.raises(UserError, match="overlap must be from 0 to 63, got 64"):
        run(folder, tmp_path / "patches", "--overlap", 64)
    with pytest.raises(UserError, match=r"holds no images P\*\.png"):
        run(tmp_path / "none", tmp_path / "patches")
    mask = folder / "train/Semantic_masks/images/P0001_instance_color_RGB.png"
    Image.fromarray(np.full((150, 230, 3), 7, np.uint8)).save(mask)
    with pytest.raises(UserError, match=r"P0001_instance_color_RGB\.png has the color \[7, 7, 7\] at row 0, column 0"):
        run(folder, tmp_path / "patches")
    mask.unlink()
    with pytest.raises(UserError, match=r"1 of 1 images have no mask: add P0001_instance_color_RGB\.png"):
        run(folder, tmp_path / "patches")
