import json

import numpy as np
import pytest
from PIL import Image

import segnext_timm.prediction.raster_labels
import segnext_timm.prediction.rasters
from scores import shrink_tiles
from segnext_timm import predict
from segnext_timm.errors import ImageError, OptionError
from segnext_timm.prediction.files import find_images, outputs, predict_file, predict_files
from segnext_timm.prediction.rasters import open_raster
from small_rasters import PLACE, hide, labels_of, model_of, noise, write_raster

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("rasterio.shutil")


def test_a_raster_is_read_in_its_own_type_by_bands_and_regions(tmp_path):
    values = noise(5, 40, 60, "uint16") * 16
    with open_raster(write_raster(tmp_path / "a.tif", values, nodata=16)) as raster:
        assert (raster.shape, raster.dtype, raster.nodata) == ((5, 40, 60), np.uint16, 16)
        assert (raster.crs.to_epsg(), raster.transform) == (32632, PLACE)
        assert np.array_equal(raster.read(), values)
        raster.bands = [4, 3, 2]
        part = raster.read(slice(30, 40), slice(5, 8))
        assert np.array_equal(part, values[[3, 2, 1], 30:40, 5:8])
        assert part.dtype == np.uint16
        assert np.array_equal(raster.valid(slice(0, 9)), (values[:, :9] != 16).any(0))


def test_an_alpha_band_that_is_no_input_says_which_pixels_hold_data(tmp_path):
    values = noise(4, 20, 30)
    values[3] = 255
    values[3, :, :7] = 0
    with open_raster(write_raster(tmp_path / "a.tif", values)) as raster:
        assert raster.kinds[3] == "alpha"
        raster.bands = [3, 2, 1]
        assert np.array_equal(raster.valid(), values[3] > 0)
        assert np.array_equal(raster.valid(slice(0, 2), slice(5, 9)), values[3, :2, 5:9] > 0)
        raster.bands = [4, 3, 2]
        assert raster.valid(slice(0, 2), slice(5, 9)).tolist() == [[True] * 4] * 2  # near infrared
    values[:, 2:4] = 9
    with open_raster(write_raster(tmp_path / "b.tif", values, nodata=9)) as raster:
        assert np.array_equal(raster.valid(), (values != 9).any(0))


def test_files_that_are_no_rasters_are_refused_by_name(tmp_path):
    (tmp_path / "text.tif").write_text("no image")
    with (
        pytest.raises(ImageError, match=r"text\.tif cannot be read as an image: .*not recognized"),
        open_raster(tmp_path / "text.tif"),
    ):
        pass
    with pytest.raises(FileNotFoundError, match=r"none\.tif: no such file"), open_raster(tmp_path / "none.tif"):
        pass
    file = write_raster(tmp_path / "cut.tif", noise(3, 200, 200))
    file.write_bytes(file.read_bytes()[:50_000])
    with open_raster(file) as raster, pytest.raises(ImageError, match=r"cut\.tif cannot be read as an image"):
        raster.read()


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "slide"},
        {"mode": "slide", "window": 64, "stride": 41, "scales": (1.0, 1.5), "flip": True},
        {"fit_in": 100},
        {"divisor": 32},
        {},
    ],
)
def test_labels_of_a_raster_are_those_of_the_image_in_memory_and_lie_where_it_lies(tmp_path, options, monkeypatch):
    shrink_tiles(monkeypatch, 50)
    model, values = model_of(5, range=[0, 4000]), noise(5, 90, 120, "uint16") * 16
    file = write_raster(tmp_path / "a.tif", values, tiled=True, blockxsize=64, blockysize=64)
    entry = predict_file(model, file, tmp_path / "out" / "a", **options)
    with rasterio.open(tmp_path / "out" / "a.tif") as raster:
        assert (raster.crs.to_epsg(), raster.transform, raster.nodata) == (32632, PLACE, 255)
        assert (raster.dtypes, raster.count, raster.block_shapes) == (("uint8",), 1, [(512, 512)])
        labels = raster.read(1)
    expected = predict(model, file, **options)
    assert np.array_equal(expected, predict(model, values.transpose(1, 2, 0), **options))
    assert np.array_equal(labels, expected)
    assert len(np.unique(labels)) > 1
    assert {c["label"]: c["pixels"] for c in entry["classes"]} == {c: (labels == c).sum() for c in np.unique(labels)}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("nodata", [None, 7])
def test_rasters_of_any_type_have_the_labels_that_python_returns(tmp_path, dtype, nodata):
    model, values = model_of(range=[0, 254]) if dtype == "int16" else model_of(), noise(3, 70, 90)
    values = (
        values * np.float32(1 / 255) if dtype == "float32" else values.astype(dtype) * (200 if dtype == "uint16" else 1)
    )
    values[:, 10:50, 20:60] = nodata or 0
    file = write_raster(tmp_path / "a.tif", values, compress="deflate", nodata=nodata)
    predict_file(model, file, tmp_path / "out" / "a")
    labels, expected = labels_of(tmp_path / "out" / "a.tif"), predict(model, file)
    assert np.array_equal(labels[labels != 255], expected[labels != 255])
    assert (labels == 255).any() == (nodata is not None)


PLACES = {
    "rotated": {"transform": rasterio.Affine(8, 4, 500_000, 4, -8, 5_000_000)},
    "without a CRS": {"crs": None},
    "by control points": {
        "transform": None,
        "crs": None,
        "gcps": [
            rasterio.control.GroundControlPoint(r, c, 8 + c / 1e4, 50 - r / 1e4) for r, c in ((0, 0), (0, 60), (40, 0))
        ],
    },
    "upside down": {"transform": rasterio.Affine(0.1, 0, 8, 0, 0.1, 50), "crs": "EPSG:4326"},
}


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # of the test's own file
@pytest.mark.parametrize("place", PLACES)
def test_labels_keep_every_kind_of_place(tmp_path, place):
    file, profile = tmp_path / "a.tif", dict(PLACES[place])
    gcps = profile.pop("gcps", None)
    write_raster(file, noise(3, 40, 60), **profile)
    if gcps:
        with rasterio.open(file, "r+") as raster:
            raster.gcps = gcps, rasterio.CRS.from_epsg(4326)
    predict_file(model_of(), file, tmp_path / "out" / "a")
    with rasterio.open(file) as image, rasterio.open(tmp_path / "out" / "a.tif") as labels:
        assert (labels.crs, labels.transform, labels.rpcs) == (image.crs, image.transform, image.rpcs)
        points, crs = labels.gcps
        assert crs == image.gcps[1]
        assert [(p.row, p.col, p.x, p.y) for p in points] == [(p.row, p.col, p.x, p.y) for p in image.gcps[0]]
        assert bool(points) == bool(gcps)


def test_pixels_without_data_get_no_label_and_count_for_nothing(tmp_path):
    values = noise(3, 60, 80, "float32") / 255
    values[:, :, :20] = -9999
    values[1, 5, 50] = np.nan
    file = write_raster(tmp_path / "a.tif", values, nodata=-9999)
    entry = predict_file(model_of(), file, tmp_path / "out" / "a")
    labels = labels_of(tmp_path / "out" / "a.tif")
    assert (labels[:, :20] == 255).all()
    assert labels[5, 50] == 255
    assert (labels == 255).sum() == 60 * 20 + 1
    assert sum(c["pixels"] for c in entry["classes"]) == 60 * 60 - 1
    assert sum(c["share"] for c in entry["classes"]) == pytest.approx(1)


def test_alpha_masks_a_model_of_three_channels_and_is_data_for_one_of_four(tmp_path):
    values = noise(4, 40, 60)
    values[3], values[3, :, :30] = 255, 0
    file = write_raster(tmp_path / "a.tif", values)
    predict_file(model_of(), file, tmp_path / "out" / "three")
    predict_file(model_of(4), file, tmp_path / "out" / "four")
    labels = labels_of(tmp_path / "out" / "three.tif")
    assert np.array_equal(labels == 255, values[3] == 0)
    assert np.array_equal(labels[values[3] > 0], predict(model_of(), file)[values[3] > 0])
    assert np.array_equal(labels_of(tmp_path / "out" / "four.tif"), predict(model_of(4), values.transpose(1, 2, 0)))


def test_a_model_takes_the_bands_that_it_states(tmp_path):
    values = noise(5, 40, 60)
    file = write_raster(tmp_path / "a.tif", values)
    predict_file(model_of(bands=[4, 3, 2]), file, tmp_path / "out" / "a")
    expected = predict(model_of(), values[[3, 2, 1]].transpose(1, 2, 0))
    assert np.array_equal(labels_of(tmp_path / "out" / "a.tif"), expected)
    for model, message in (
        (model_of(), r"a\.tif: The model takes images of 3 channels, got 5: state which"),
        (model_of(bands=[1, 2, 6]), r"a\.tif: The image has 5 bands, and .* names the bands 1, 2, 6"),
    ):
        with pytest.raises(ImageError, match=message):
            predict_file(model, file, tmp_path / "out" / "b")


def test_a_huge_raster_takes_the_time_of_its_data(tmp_path):
    file = tmp_path / "a.tif"
    profile = {"count": 3, "height": 16_000, "width": 15_000, "dtype": "uint8", "nodata": 0, "crs": "EPSG:32632"}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True, "transform": PLACE}
    values = noise(3, 100, 200) // 2 + 1
    with rasterio.open(file, "w", driver="GTiff", **profile, **blocks) as raster:
        raster.write(values, window=((9_000, 9_100), (2_000, 2_200)))
    entry = predict_file(model_of(classes=2), file, tmp_path / "out" / "a", window=512, overlays=False)
    assert (entry["height"], entry["width"]) == (16_000, 15_000)
    assert sum(c["pixels"] for c in entry["classes"]) == 20_000
    with rasterio.open(tmp_path / "out" / "a.tif") as raster:
        assert (raster.read(1, window=((9_000, 9_100), (2_000, 2_200))) < 2).all()
        assert (raster.read(1, window=((0, 512), (0, 3000))) == 255).all()


def test_overlays_of_rasters_are_of_bounded_size_and_show_the_image_where_it_holds_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(segnext_timm.prediction.raster_labels, "_PICTURE_SIDE", 100)
    values = noise(3, 100, 200)
    values[:, :, :100] = 200
    file = write_raster(tmp_path / "a.tif", values, nodata=200)
    predict_file(model_of(palette=[[255, 0, 0]] * 3), file, tmp_path / "out" / "a")
    with Image.open(tmp_path / "out" / "a_overlay.jpg") as picture:
        assert picture.width >= 100
        colors = np.asarray(picture)[:50, :100].astype(int)
    assert (colors[:, :40] < 20).all()
    assert (colors[:, 60:, 0] > 120).all()


def test_a_raster_that_fits_no_memory_is_neither_resized_nor_taken_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(segnext_timm.prediction.raster_labels, "LARGE", 1000)
    file = write_raster(tmp_path / "a.tif", noise(3, 40, 60), crs=None)
    for options in ({"fit_in": 30}, {"scales": (1, 2)}, {"mode": "whole"}):
        with pytest.raises(ImageError, match=r"a\.tif: 40×60 pixels are too many to be read at once"):
            predict_file(model_of(), file, tmp_path / "out" / "a", **options)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_a_tiff_that_lies_nowhere_but_is_larger_than_pillow_opens_is_read_by_regions(tmp_path, monkeypatch):
    values = noise(3, 100, 80).transpose(1, 2, 0)
    Image.fromarray(values).save(tmp_path / "a.tif")
    monkeypatch.setattr(segnext_timm.prediction.rasters, "LARGE", 5000)
    entry = predict_file(model_of(), tmp_path / "a.tif", tmp_path / "out" / "a", mode="slide")
    with open_raster(tmp_path / "out" / "a.tif") as labels:
        assert not labels.placed
        assert np.array_equal(labels.dataset.read(1), predict(model_of(), values, mode="slide"))
    assert sum(area["pixels"] for area in entry["classes"]) == 100 * 80


def test_labels_of_many_classes_have_16_bits(tmp_path):
    file = write_raster(tmp_path / "a.tif", noise(3, 40, 60), nodata=7)
    for classes, dtype, nodata in ((255, "uint8", 255), (256, "uint16", 65535), (300, "uint16", 65535)):
        entry = predict_file(model_of(classes=classes), file, tmp_path / "out" / "a", overlays=False)
        with rasterio.open(tmp_path / "out" / "a.tif") as raster:
            assert (raster.dtypes[0], raster.nodata) == (dtype, nodata)
            assert raster.read(1)[raster.read(1) != nodata].max() < classes
        assert entry["classes"]


def test_colors_and_names_of_the_classes_are_in_the_file(tmp_path):
    file = write_raster(tmp_path / "a.tif", noise(3, 40, 60))
    model = model_of(label_names=["road", "trees & shrubs", "sky"], palette=[[90, 90, 100], [200, 20, 20], [1, 2, 3]])
    predict_file(model, file, tmp_path / "out" / "a")
    with rasterio.open(tmp_path / "out" / "a.tif") as raster:
        assert [raster.colormap(1)[label][:3] for label in range(3)] == [(90, 90, 100), (200, 20, 20), (1, 2, 3)]
        assert raster.tags(1) == {"LABEL_0": "road", "LABEL_1": "trees & shrubs", "LABEL_2": "sky"}


def test_damage_is_told_in_one_line_and_leaves_nothing(tmp_path):
    file = write_raster(tmp_path / "a.tif", noise(3, 300, 300), blockysize=8)
    file.write_bytes(file.read_bytes()[:200_000])
    places = find_images([file], tmp_path / "out")
    predictions = predict_files(model_of(), places, tmp_path / "out")
    assert "cannot be read as an image" in predictions.failures[file]
    assert list((tmp_path / "out").iterdir()) == []


def test_rasters_are_interrupted_and_resumed_as_other_images(tmp_path):
    for name in "ab":
        (tmp_path / "in").mkdir(exist_ok=True)
        write_raster(tmp_path / "in" / f"{name}.tif", noise(3, 100, 100))
    places, out = find_images([tmp_path / "in"], tmp_path / "out"), tmp_path / "out"

    def interrupt(file, share):
        if file.name == "b.tif" and share > 0:
            raise KeyboardInterrupt

    options = {"areas": True, "origin": "m, mode slide", "mode": "slide"}
    with pytest.raises(KeyboardInterrupt):
        predict_files(model_of(), places, out, report=interrupt, **options)
    assert sorted(f.name for f in out.iterdir()) == ["a.tif", "a_overlay.jpg", "areas.json"]
    (out / "areas.json").unlink()
    done = predict_files(model_of(), places, out, resume=True, **options)
    assert done.predicted == 1
    first, second = json.loads((out / "areas.json").read_text())["images"]
    assert first["classes"] == second["classes"]
    assert outputs(out / "a") == {"labels": out / "a.tif", "overlay": out / "a_overlay.jpg"}
    with pytest.raises(OptionError, match=r"a\.tif was predicted with m, mode slide, not with another"):
        predict_files(model_of(), places, out, resume=True, **options | {"origin": "another"})


def test_without_rasterio_only_images_that_need_it_are_refused(tmp_path, monkeypatch):
    placed = write_raster(tmp_path / "placed.tif", noise(3, 40, 60))
    Image.fromarray(noise(3, 40, 60).transpose(1, 2, 0)).save(tmp_path / "plain.tif")
    hide(monkeypatch, "rasterio")
    monkeypatch.setattr(segnext_timm.prediction.rasters, "find_spec", lambda name: None)
    with pytest.raises(
        ImageError, match=r"placed\.tif is read by rasterio, which is not installed: pip install rasterio"
    ):
        predict_file(model_of(), placed, tmp_path / "out" / "placed")
    predict_file(model_of(), tmp_path / "plain.tif", tmp_path / "out" / "plain")
    assert set(outputs(tmp_path / "out" / "plain")) == {"labels", "overlay"}


def test_a_world_file_goes_with_the_labels(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = Image.fromarray(noise(3, 40, 60).transpose(1, 2, 0))
    for name, world in {"a.jpg": "a.jgw", "b.PNG": "b.PGW", "c.png": "c.wld", "d.jpeg": "d.jpegw"}.items():
        pixels.save(tmp_path / "in" / name)
        (tmp_path / "in" / world).write_text("10\n0\n0\n-10\n500005\n4999995\n")
    (tmp_path / "in" / "a.prj").write_text(rasterio.CRS.from_epsg(32632).to_wkt())
    pixels.save(tmp_path / "in" / "unplaced.png")
    places = find_images([tmp_path / "in"], tmp_path / "out")
    assert not predict_files(model_of(), places, tmp_path / "out", overlays=False).failures
    names = ["a.pgw", "a.png", "a.prj", *(f"{n}.{e}" for n in "bcd" for e in ("pgw", "png"))]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == sorted([*names, "unplaced.png"])
    assert (tmp_path / "out" / "a.prj").read_bytes() == (tmp_path / "in" / "a.prj").read_bytes()
    for name in "abcd":
        with rasterio.open(tmp_path / "out" / f"{name}.png") as labels:
            assert labels.transform == PLACE


def test_a_tiff_with_a_world_file_and_a_projection_is_georeferenced(tmp_path):
    Image.fromarray(noise(3, 40, 60).transpose(1, 2, 0)).save(tmp_path / "a.tif")
    (tmp_path / "a.tfw").write_text("10\n0\n0\n-10\n500005\n4999995\n")
    (tmp_path / "a.prj").write_text(rasterio.CRS.from_epsg(32632).to_wkt(version="WKT1_ESRI"))
    predict_file(model_of(), tmp_path / "a.tif", tmp_path / "out" / "a")
    with rasterio.open(tmp_path / "out" / "a.tif") as labels:
        assert (labels.transform, labels.crs.to_epsg()) == (PLACE, 32632)


def test_a_palette_is_read_as_colors(tmp_path):
    values, colors = noise(1, 40, 60), {value: (value, 255 - value, 7 * value % 256) for value in range(256)}
    file = write_raster(tmp_path / "a.tif", values, photometric="palette")
    with rasterio.open(file, "r+") as raster:
        raster.write_colormap(1, colors)
    predict_file(model_of(), file, tmp_path / "out" / "a")
    picture = np.array([colors[value][:3] for value in range(256)], np.uint8)[values[0]]
    assert np.array_equal(labels_of(tmp_path / "out" / "a.tif"), predict(model_of(), picture))
    assert np.array_equal(labels_of(tmp_path / "out" / "a.tif"), predict(model_of(), file))


def test_labels_of_the_other_kind_that_are_not_of_a_prediction_stay(tmp_path):
    other = write_raster(tmp_path / "a.tif", noise(1, 40, 60))
    with rasterio.open(other, "r+") as raster:
        raster.update_tags(TIFFTAG_IMAGEDESCRIPTION="heights of trees")
    Image.fromarray(noise(3, 40, 60).transpose(1, 2, 0)).save(tmp_path / "b.png")
    predict_file(model_of(), tmp_path / "b.png", tmp_path / "a")
    assert other.exists()
    other.write_text("damaged")
    predict_file(model_of(), tmp_path / "b.png", tmp_path / "a")
    assert other.exists()


def test_results_of_an_earlier_run_that_are_not_made_anew_are_removed(tmp_path):
    file = write_raster(tmp_path / "a.tif", noise(3, 40, 60))
    Image.fromarray(noise(3, 40, 60).transpose(1, 2, 0)).save(tmp_path / "b.png")
    for image in (file, tmp_path / "b.png"):
        predict_file(model_of(), image, tmp_path / "out" / "a", probabilities=True)
        assert {"overlay", "probabilities"} <= set(outputs(tmp_path / "out" / "a"))
        predict_file(model_of(), image, tmp_path / "out" / "a", overlays=False)
        assert set(outputs(tmp_path / "out" / "a")) == {"labels"}


def mosaic(file, *parts):
    """Write a VRT whose bands are the first ones of files beside it."""
    bands = ""
    for number, part in enumerate(parts, 1):
        with rasterio.open(part) as raster:
            kind, (height, width) = {"uint8": "Byte", "uint16": "UInt16"}[raster.dtypes[0]], raster.shape
        source = f'<SourceFilename relativeToVRT="1">{part.name}</SourceFilename><SourceBand>1</SourceBand>'
        bands += (
            f'<VRTRasterBand dataType="{kind}" band="{number}"><SimpleSource>{source}</SimpleSource></VRTRasterBand>'
        )
    file.write_text(f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{bands}</VRTDataset>')
    return file


def test_bands_of_different_types_are_read_in_their_common_one_and_mosaics_of_a_folder_are_found(tmp_path):
    wide, narrow_ones = noise(1, 40, 60, "uint16") * 200, noise(1, 40, 60)
    parts = write_raster(tmp_path / "wide.tif", wide), write_raster(tmp_path / "narrow.tif", narrow_ones)
    with open_raster(mosaic(tmp_path / "a.vrt", *parts)) as raster:
        assert raster.read().dtype == np.uint16
        assert np.array_equal(raster.read(), np.concatenate([wide, narrow_ones]))
        raster.bands = [2, 1]
        assert raster.read(size=(20, 30)).shape == (2, 20, 30)
    for part in parts:
        part.rename(part.with_suffix(".part"))
    text = (tmp_path / "a.vrt").read_text()
    (tmp_path / "a.vrt").write_text(text.replace(".tif", ".part"))
    places = find_images([tmp_path], tmp_path / "out")
    assert [*places] == [tmp_path / "a.vrt"]
    predictions = predict_files(model_of(2, range=[0, 60_000]), places, tmp_path / "out")
    assert (predictions.predicted, predictions.failures) == (1, {})


def test_signed_integers_without_a_range_are_drawn_too(tmp_path):
    file = write_raster(tmp_path / "a.tif", noise(3, 40, 60, "int16") * 100)
    predict_file(model_of(), file, tmp_path / "out" / "a")
    assert {"labels", "overlay"} == set(outputs(tmp_path / "out" / "a"))
    assert np.array_equal(labels_of(tmp_path / "out" / "a.tif"), predict(model_of(), file))


def test_a_mosaic_that_lies_nowhere_is_an_image(tmp_path):
    part = write_raster(tmp_path / "a.tif", noise(1, 40, 60))
    assert np.array_equal(predict(model_of(), mosaic(tmp_path / "a.vrt", part, part, part)), predict(model_of(), part))


def test_a_model_of_gray_reads_rasters_in_color(tmp_path):
    file = write_raster(tmp_path / "a.tif", noise(3, 40, 60))
    predict_file(model_of(1), file, tmp_path / "out" / "a")
    assert np.array_equal(labels_of(tmp_path / "out" / "a.tif"), predict(model_of(1), file))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_model_of_colors_takes_those_of_a_raster_with_near_infrared(tmp_path, dtype):
    values = noise(4, 40, 60, dtype) * (1 if dtype == "uint8" else 200)
    file = write_raster(tmp_path / "a.tif", values, photometric="RGB", ALPHA="NO")
    predict_file(model_of(), file, tmp_path / "out" / "a")
    expected = predict(model_of(), values[:3].transpose(1, 2, 0))
    assert np.array_equal(labels_of(tmp_path / "out" / "a.tif"), expected)
    assert np.array_equal(predict(model_of(), file), expected)


@pytest.mark.parametrize(
    ("channels", "options", "bands"),
    [
        (4, {"count": 5, "ALPHA": "YES"}, [0, 1, 2, 4]),
        (3, {"count": 5, "ALPHA": "YES"}, [0, 1, 2]),
        (5, {"count": 5, "ALPHA": "YES"}, [0, 1, 2, 3, 4]),
        (4, {"count": 4, "ALPHA": "YES"}, [0, 1, 2, 3]),
        (1, {"count": 4, "ALPHA": "NO"}, [0, 1, 2]),
    ],
)
def test_bands_beside_colors_and_alpha_are_the_same_by_regions_and_in_memory(tmp_path, channels, options, bands):
    values = noise(options.pop("count"), 40, 60)
    file = write_raster(tmp_path / "a.tif", values, photometric="RGB", **options)
    predict_file(model_of(channels), file, tmp_path / "out" / "a")
    expected = predict(model_of(channels), values[bands].transpose(1, 2, 0))
    assert np.array_equal(labels_of(tmp_path / "out" / "a.tif"), expected)
    assert np.array_equal(predict(model_of(channels), file), expected)


def test_the_first_of_two_bands_is_not_taken_for_gray(tmp_path):
    file = write_raster(tmp_path / "a.tif", noise(2, 40, 60), ALPHA="NO")
    for predicted in (lambda: predict(model_of(1), file), lambda: predict_file(model_of(1), file, tmp_path / "b")):
        with pytest.raises(ImageError, match=r"takes images of 1 channels, got 2: state which bands"):
            predicted()


@pytest.mark.parametrize("options", [{"nbits": 2}, {"nbits": 4}, {"photometric": "MINISWHITE"}])
def test_gray_of_few_bits_or_inverted_is_the_same_by_regions_and_in_memory(tmp_path, options):
    file = write_raster(tmp_path / "a.tif", noise(1, 40, 60) >> (8 - options.get("nbits", 8)), **options)
    predict_file(model_of(), file, tmp_path / "out" / "a")
    assert np.array_equal(labels_of(tmp_path / "out" / "a.tif"), predict(model_of(), file))
