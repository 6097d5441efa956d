import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from segnext_timm.cli import main
from segnext_timm.errors import ImageError, OptionError
from segnext_timm.models.model_info import ModelInfo
from segnext_timm.prediction.files import find_images, outputs, predict_file, predict_files
from segnext_timm.prediction.polygons import check_place, write_polygons
from small_rasters import PLACE, labels_of, model_of, noise, write_raster

rasterio = pytest.importorskip("rasterio")
shapely = pytest.importorskip("shapely")
transform_geom = pytest.importorskip("rasterio.warp").transform_geom
pytest.importorskip("rasterio.features")


def test_a_missing_shapely_is_named_before_the_work(tmp_path, monkeypatch):
    file = write_raster(tmp_path / "a.tif", noise(3, 40, 60))
    monkeypatch.setattr("segnext_timm.prediction.polygons.find_spec", lambda name: name != "shapely")
    with pytest.raises(OptionError, match="Polygons need rasterio and shapely: pip install rasterio shapely"):
        predict_file(model_of(), file, tmp_path / "out" / "a", save_as="geojson")
    assert not (tmp_path / "out").exists()


def square_labels(file, crs="EPSG:32632", transform=PLACE):
    """Labels of a ring (1) around a square (2), in a field (0) with a column that has no data."""
    labels = np.zeros((1, 60, 80), np.uint8)
    labels[0, 10:40, 20:50], labels[0, 20:30, 30:40], labels[0, :, 79] = 1, 2, 255
    return write_raster(file, labels, nodata=255, crs=crs, transform=transform)


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:3857", "EPSG:4326"])
def test_polygons_lie_where_the_labels_lie_with_names_areas_and_holes(tmp_path, crs):
    transform = rasterio.Affine(1e-4, 0, 9, 0, -1e-4, 45) if crs == "EPSG:4326" else PLACE
    labels = square_labels(tmp_path / "a.tif", crs, transform)
    write_polygons(labels, tmp_path / "a.geojson", ModelInfo(model_of(label_names=["field", "ring", "square"])))
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    found = {feature["properties"]["name"]: feature for feature in features}
    assert sorted(found) == ["field", "ring", "square"]
    assert [len(found[name]["geometry"]["coordinates"]) for name in ("field", "ring", "square")] == [2, 2, 1]
    polygons = {name: shapely.geometry.shape(feature["geometry"]) for name, feature in found.items()}
    assert all(polygon.is_valid and polygon.exterior.is_ccw for polygon in polygons.values())
    # back on the image, they are the labels
    shapes = [(transform_geom("EPSG:4326", crs, f["geometry"]), f["properties"]["label"]) for f in features]
    drawn = rasterio.features.rasterize(shapes, (60, 80), fill=255, transform=transform)
    assert np.array_equal(drawn, labels_of(labels))
    area, geod = found["ring"]["properties"]["square_meters"], polygons["ring"].area
    meters = geod * 111_320**2 * np.cos(np.deg2rad(polygons["ring"].centroid.y))  # of a sphere, roughly
    assert area == pytest.approx(meters, rel=0.01)
    if crs == "EPSG:32632":
        assert area == pytest.approx(800 * 100, rel=2e-3)


def test_simplified_polygons_have_fewer_points_and_stay_valid(tmp_path):
    labels = (np.hypot(*np.mgrid[-50:50, -50:50]) < 40).astype(np.uint8)[None]
    file = write_raster(tmp_path / "a.tif", labels)
    info, counts = ModelInfo(model_of(classes=1)), []
    for tolerance in (0, 2):
        write_polygons(file, tmp_path / "a.geojson", info, tolerance)
        (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]  # no background
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid
        assert feature["properties"]["square_meters"] == pytest.approx(100 * labels.sum(), rel=0.05)
        counts.append(len(polygon.exterior.coords))
    assert counts[1] < counts[0] / 3


def test_polygons_of_images_that_lie_nowhere_are_refused_before_the_work(tmp_path):
    write_raster(tmp_path / "a.tif", noise(3, 40, 60), crs=None)
    Image.fromarray(noise(3, 40, 60).transpose(1, 2, 0)).save(tmp_path / "b.png")
    placed = write_raster(tmp_path / "c.tif", noise(3, 40, 60))
    local = rasterio.CRS.from_wkt('LOCAL_CS["Local coordinates",UNIT["metre",1]]')
    write_raster(tmp_path / "d.tif", noise(3, 40, 60), crs=local)
    write_raster(tmp_path / "e.tif", noise(3, 40, 60), crs="EPSG:4326", transform=PLACE)
    places = find_images([tmp_path / name for name in ("a.tif", "b.png", "c.tif", "d.tif", "e.tif")], tmp_path / "out")
    predictions = predict_files(model_of(), places, tmp_path / "out", save_as="geojson")
    assert predictions.predicted == 1
    assert len(predictions.failures) == 4
    for reason in predictions.failures.values():
        assert reason.startswith("does not state where on Earth it lies: ")
    assert set(outputs(places[placed])) == {"labels", "overlay", "polygons"}
    assert len(list((tmp_path / "out").iterdir())) == 3
    done = predict_files(model_of(), places, tmp_path / "out")
    assert done.predicted == 5


def test_polygons_are_made_of_labels_that_are_there(tmp_path):
    file = write_raster(tmp_path / "a.tif", noise(3, 40, 60))
    places, out = find_images([file], tmp_path / "out"), tmp_path / "out"
    predict_files(model_of(), places, out)
    before = (out / "a.tif").stat().st_mtime_ns
    done = predict_files(model_of(), places, out, resume=True, save_as="geojson", simplify=1.0)
    assert (done.predicted, (out / "a.tif").stat().st_mtime_ns) == (0, before)
    assert json.loads((out / "a.geojson").read_text())["features"]
    predict_files(model_of(), places, out)
    assert not (out / "a.geojson").exists()  # of other labels, perhaps


def test_the_command_writes_what_each_image_allows_and_says_so(tmp_path):
    model_of(label_names=["a", "b", "c"]).save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    write_raster(tmp_path / "in" / "a.tif", noise(3, 40, 60))
    command = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(main, [*command, "--areas", "--save_as", "geojson", "--simplify", "1"])
    assert done.exit_code == 0, done.output
    (image,) = json.loads((tmp_path / "out" / "areas.json").read_text())["images"]
    names = {"a.tif", "a_overlay.jpg", "a.geojson", "areas.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    names = {f["properties"]["name"] for f in json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]}
    assert names == {entry["name"] for entry in image["classes"]}
    assert "the labels of 1 were there" in CliRunner().invoke(main, [*command, "--resume"]).output
    done = CliRunner().invoke(main, [*command, "--simplify", "1"])
    assert (done.exit_code, "is for the polygons of --save_as" in done.output) == (2, True)


def place_beside(file):
    """Write a picture with a world file and a projection."""
    Image.fromarray(noise(3, 40, 60).transpose(1, 2, 0)).save(file)
    file.with_suffix(f"{file.suffix[:2]}{file.suffix[-1]}w").write_text("10\n0\n0\n-10\n500005\n4999995\n")
    file.with_suffix(".prj").write_text(rasterio.CRS.from_epsg(32632).to_wkt(version="WKT1_ESRI"))
    return file


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_picture_with_a_world_file_gets_polygons(tmp_path, name):
    places, out = find_images([place_beside(tmp_path / name)], tmp_path / "out"), tmp_path / "out"
    predict_files(model_of(), places, out, origin="m")
    assert predict_files(model_of(), places, out, resume=True, save_as="geojson", origin="m").predicted == 1
    assert json.loads((out / "a.geojson").read_text())["features"]
    assert outputs(out / "a")["labels"] == out / "a.tif"
    assert not (out / "a.png").exists()
    predict_files(model_of(), places, out, origin="m")
    assert outputs(out / "a") == {"labels": out / "a.png", "overlay": out / "a_overlay.jpg"}


def test_resuming_simplifies_polygons_that_are_there(tmp_path):
    places, out = find_images([write_raster(tmp_path / "a.tif", noise(3, 40, 60))], tmp_path / "out"), tmp_path / "out"
    predict_files(model_of(), places, out, save_as="geojson")
    before = (out / "a.geojson").stat().st_size
    assert predict_files(model_of(), places, out, resume=True, save_as="geojson", simplify=3).predicted == 0
    assert (out / "a.geojson").stat().st_size < before


@pytest.mark.parametrize(
    ("crs", "left", "top", "pixel", "allowed"),
    [
        ("EPSG:32760", 815_000, 8_000_000, 100, False),  # across longitude 180
        ("EPSG:4326", 179.98, 10, 0.001, False),
        ("EPSG:3031", -2500, 3500, 100, False),  # around the south pole
        ("EPSG:4326", -180, 90, 6, True),  # the whole Earth
        ("EPSG:3857", -20_037_508, 12_000_000, 40_075_016 / 60, True),
    ],
)
def test_polygons_of_images_across_longitude_180_or_around_a_pole_are_refused(tmp_path, crs, left, top, pixel, allowed):
    transform = rasterio.Affine(pixel, 0, left, 0, -pixel, top)
    file = write_raster(tmp_path / "a.tif", noise(3, 30 if allowed else 70, 60), crs=crs, transform=transform)
    if allowed:
        check_place(file)
    else:
        with pytest.raises(ImageError, match=r"a\.tif crosses longitude 180 or lies around a pole"):
            check_place(file)
