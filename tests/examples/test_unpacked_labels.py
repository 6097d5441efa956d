"""Label maps in files of MATLAB and in data sets of Hugging Face."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

import prepare_labels
from label_sources import SIZE, draw_images
from segmentation.recipe import UserError
from segmentation.sources import SOURCES

LABELS = [np.random.default_rng(i).integers(0, 4, SIZE).astype(np.uint8) for i in range(3)]
CLASSES = "0 -\n1 road\n2 car\n3 sky\n"
EXPECTED = [np.array([255, 0, 1, 2])[labels] for labels in LABELS]


@pytest.fixture
def run(tmp_path):
    """Make a data folder; returns its labels by their names."""

    def make(*arguments):
        (tmp_path / "classes.txt").write_text(CLASSES)
        options = ["--classes", tmp_path / "classes.txt", "--workers", 1]
        prepare_labels.main(list(map(str, [*arguments, *options])))
        return {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "data/labels/train").glob("*.png")}

    return make


@pytest.fixture
def matlab(tmp_path):
    """Write files of MATLAB and their images; returns the arguments of the command."""
    scipy_io = pytest.importorskip("scipy.io")

    def make(*contents):
        draw_images(tmp_path / "images", *(f"{i}.jpg" for i in range(len(contents))))
        (tmp_path / "maps").mkdir(exist_ok=True)
        for number, content in enumerate(contents):
            scipy_io.savemat(tmp_path / f"maps/{number}.mat", content)
        return ["mat", tmp_path / "images", tmp_path / "maps", tmp_path / "data"]

    return make


def cell(*parts):
    values = np.empty(len(parts), object)
    values[:] = parts
    return values


@pytest.mark.parametrize(
    "form",
    [
        lambda labels: {"LabelMap": labels.astype(np.uint16)},
        lambda labels: {"anything": labels.astype(float)},
        lambda labels: {"S": labels, "other": np.zeros((3, 3)), "names": np.array(["road", "car"], object)},
        lambda labels: {"GTcls": {"Segmentation": labels, "Boundaries": np.ones((5, 4)), "CategoriesPresent": [1, 2]}},
        lambda labels: {"groundTruth": cell({"labels": labels, "Boundaries": labels > 1})},
    ],
)
def test_the_label_map_of_a_file_is_found_by_its_name(matlab, run, form):
    found = run(*matlab(*map(form, LABELS)))
    for number, expected in enumerate(EXPECTED):
        assert np.array_equal(found[str(number)], expected)


def test_a_field_tells_which_of_several_maps_counts(matlab, run):
    content = {"groundTruth": cell({"labels": LABELS[0]}, {"labels": LABELS[1]})}
    with pytest.raises(UserError, match=r"give one by --field: groundTruth\.1\.labels \(40×60\), groundTruth\.2\.lab"):
        run(*matlab(content))
    assert np.array_equal(run(*matlab(content), "--field", "groundTruth.2.labels")["0"], EXPECTED[1])
    with pytest.raises(UserError, match=r"it has no label map 'x'; it has groundTruth\.1\.labels"):
        run(*matlab(content), "--field", "x")


def test_what_cannot_be_read_of_matlab_is_named(matlab, run, tmp_path, capsys):
    arguments = matlab(*[{"labels": LABELS[0]}] * 11, {"labels": LABELS[0] + 0.5})
    assert len(run(*arguments)) == 11
    assert "11.mat: its label map holds 0.5 to 3.5, not whole numbers" in capsys.readouterr().out
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(400)
    for path in (tmp_path / "maps").iterdir():
        path.write_bytes(header)
    with pytest.raises(UserError, match=r"0\.mat: it is of MATLAB 7\.3: save it by save\(name, variables, '-v7'\)"):
        run(*arguments)
    with pytest.raises(UserError, match=r"holds no \.mat files"):
        run("mat", tmp_path / "images", tmp_path / "images", tmp_path / "data")


@pytest.mark.parametrize(("kind", "package"), [("mat", "scipy"), ("datasets", "datasets")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.io", None)
    (tmp_path / "0.mat").touch()
    paths = {"mat": [tmp_path, tmp_path, tmp_path], "datasets": ["user/name", tmp_path]}[kind]
    with pytest.raises(UserError, match=f"need {package}: pip install"):
        SOURCES[kind](*paths).unpack(tmp_path / "work")


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return {"bytes": content.getvalue(), "path": None}


@pytest.fixture
def hub_rows():
    """Rows of a data set of Hugging Face, with label maps as images or as lists."""
    datasets = pytest.importorskip("datasets")
    noise = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    images = [png(pixels) for pixels in noise]
    as_images = datasets.Features(pixel_values=datasets.Image(), id=datasets.Value("int64"), label=datasets.Image())
    as_lists = datasets.Features(image=datasets.Image(), segmentation_mask=datasets.Array2D(SIZE, "uint8"))
    return {
        "images": datasets.Dataset.from_dict(
            {"pixel_values": images, "id": [0, 1, 2], "label": [png(labels) for labels in LABELS]}, as_images
        ),
        "lists": datasets.Dataset.from_dict(
            {"image": images, "segmentation_mask": [labels.tolist() for labels in LABELS]}, as_lists
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", ["images", "lists"])
@pytest.mark.parametrize("stored", ["disk", "splits", "parquet", "parquet file"])
def test_data_sets_of_hugging_face_become_labels(hub_rows, run, tmp_path, form, stored):
    import datasets

    rows, source = hub_rows[form], tmp_path / "source"
    source.mkdir()
    if stored == "disk":
        rows.save_to_disk(source)
    elif stored == "splits":
        datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(source)
    else:
        rows.to_parquet(source / "train-00000-of-00001.parquet")
        rows.select([0]).to_parquet(source / "validation-00000-of-00001.parquet")
        source = source / "train-00000-of-00001.parquet" if stored == "parquet file" else source
    found = run("datasets", source, tmp_path / "data")
    assert len(found) == 3
    for number, expected in enumerate(EXPECTED):
        assert np.array_equal(found[f"{number:06d}"], expected)
    original = rows.cast_column(next(iter(rows.features)), datasets.Image(decode=False))[1]
    assert (tmp_path / "data/images/train/000001.png").read_bytes() == next(iter(original.values()))["bytes"]


@pytest.mark.slow
def test_columns_and_splits_that_are_not_known_are_named(hub_rows, run, tmp_path):
    import datasets

    rows = hub_rows["images"].rename_column("label", "two")
    datasets.DatasetDict(first=rows).save_to_disk(tmp_path / "source")
    command = ["datasets", tmp_path / "source", tmp_path / "data"]
    with pytest.raises(UserError, match="has no split 'train': give one by --rows, of first"):
        run(*command)
    with pytest.raises(UserError, match="Give the columns by --image and --label, of pixel_values, id, two"):
        run(*command, "--rows", "first")
    with pytest.raises(UserError, match="There is no column 'three'"):
        run(*command, "--rows", "first", "--label", "three")
    assert len(run(*command, "--rows", "first", "--label", "two")) == 3
    with pytest.raises(UserError, match="cannot be loaded"):
        run("datasets", tmp_path / "none", tmp_path / "data")
