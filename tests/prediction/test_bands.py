"""Images of any number of bands and any type, and the range of values that a model states."""

import importlib
import logging
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

from segnext_timm import overlay, predict, read_image
from segnext_timm.errors import ImageError, OptionError
from segnext_timm.exporting.exporters import describe_graph
from segnext_timm.models.model_info import ModelInfo
from segnext_timm.prediction.files import find_images
from segnext_timm.prediction.images import read_values, scale_values


def stating(channels=3, **facts):
    model = nn.Identity()
    model.config, model.pretrained_cfg = {"in_channels": channels}, facts
    return ModelInfo(model)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float16", "float32", "float64"])
def test_values_of_every_type_are_scaled_by_a_range_and_clipped(dtype):
    values = torch.from_numpy(np.array([0, 50, 100, 120], dtype)).view(1, 2, 2)
    scaled = scale_values(values, (20, 100))
    assert scaled.dtype == torch.float32
    assert torch.allclose(scaled.flatten(), torch.tensor([0, 0.375, 1, 1]))


def test_each_band_may_have_a_range_of_its_own():
    values = torch.tensor([[[0, 5]], [[-10, 10]]], dtype=torch.int16)
    assert scale_values(values, ((0, 10), (-10, 10))).tolist() == [[[0, 0.5]], [[0, 1]]]
    with pytest.raises(ImageError, match="3 pairs of low and high, and the image 2 bands"):
        scale_values(values, ((0, 1), (0, 1), (0, 1)))


def test_pixels_without_a_number_become_zero_and_infinite_ones_an_end():
    values = torch.tensor([[[float("nan"), float("inf"), -float("inf"), 1e300]]], dtype=torch.float64)
    assert scale_values(values, (100, 200)).flatten().tolist() == [0, 1, 0, 1]


def test_without_a_range_bytes_stay_and_sixteen_bits_keep_their_levels():
    byte = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert scale_values(byte) is byte
    for dtype in (np.uint16, np.int32):
        values = torch.from_numpy(np.arange(65536).astype(dtype)).view(1, 256, 256)
        assert torch.allclose(scale_values(values), torch.arange(65536).view(1, 256, 256) / 65535)
    values = torch.rand(2, 3, 3)
    assert torch.equal(scale_values(values), values)


@pytest.mark.parametrize("values", [[-1, 5], [0, 70000], [0.0, 1.5], [float("nan"), 0.5]])
def test_without_a_range_values_without_a_meaning_are_refused(values):
    with pytest.raises(ImageError, match=r'State which values are black and white: pretrained_cfg\["range"\]'):
        scale_values(torch.tensor([[values]]))


def test_a_model_states_the_range_and_the_bands_of_its_images():
    info = stating(range=[0, 4095], bands=[4, 3, 2])
    assert info.value_range == (0, 4095)
    assert info.bands == (4, 3, 2)
    assert stating(2, range=((0, 1), (-1, 1))).value_range == ((0, 1), (-1, 1))
    assert stating(2, range=torch.tensor([[0, 1], [-1, 1]])).value_range == ((0, 1), (-1, 1))
    assert stating(3, bands=[4]).bands == (4,)  # gray, repeated
    assert stating().value_range is stating().bands is None


@pytest.mark.parametrize(
    "stated", [[1, 0], [0, 0], [0], [[0, 1]] * 2, [0, float("inf")], "0 1", 5, [None, 1], [[0, 1], [0]], {"low": 0}]
)
def test_an_invalid_range_is_refused_with_what_is_allowed(stated):
    with pytest.raises(OptionError, match=r'^pretrained_cfg\["range"\] is \[low, high\], or such a pair for each of'):
        stating(range=stated).value_range  # noqa: B018


@pytest.mark.parametrize("stated", [[0, 1, 2], [1, 2], [1.0, 2.0, 3.0], "123", 3, [True, 2, 3], [-1, 2, 3]])
def test_invalid_bands_are_refused_with_what_is_allowed(stated):
    with pytest.raises(OptionError, match=rf"from 1, such as \[1, 2, 3\], got {re.escape(repr(stated))}"):
        stating(bands=stated).bands  # noqa: B018


# Files


def noise(bands, dtype="uint16", most=4000, seed=0, size=(40, 50)):
    return (np.random.default_rng(seed).random((bands, *size)) * most).astype(dtype)


def tiff(path, array, **options):
    rasterio = pytest.importorskip("rasterio")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files without coordinates
        count, height, width = array.shape
        known = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype.name}
        with rasterio.open(path, "w", **known | options) as file:
            file.write(array)
    return path


TILES = {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "band", "compress": "deflate"}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5])
def test_tiffs_of_every_number_of_bands_and_type_keep_their_values(tmp_path, bands, dtype):
    array = noise(bands, dtype, 200)
    options = [{}, TILES, {"photometric": "RGB"} if bands > 2 else {}]
    options += [{"ENDIANNESS": "BIG"}, {"compress": "lzw", "BIGTIFF": "YES"}]
    for place, some in enumerate(options):
        values = read_values(tiff(tmp_path / f"{place}.tif", array, **some), bands).values
        assert np.array_equal(values.numpy(), array), some


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_pngs_of_16_bits_keep_them_in_color_and_with_alpha(tmp_path, bands):
    array = noise(bands) + np.uint16(1)  # nothing is transparent
    path = tiff(tmp_path / "a.png", array, driver="PNG")
    assert np.array_equal(read_values(path, bands).values.numpy(), array)
    scaled = read_image(path, 3, (0, 4000))  # without alpha
    expected = (array[:3] if bands > 2 else np.repeat(array[:1], 3, 0)).clip(0, 4000)
    assert np.allclose(scaled.numpy(), expected / 4000, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 5), (40, 50, 1)])
def test_npy_files_hold_rows_columns_and_bands(tmp_path, shape):
    array = noise(5)
    array = array[0] if len(shape) == 2 else array.transpose(1, 2, 0)[..., : shape[2]]
    np.save(tmp_path / "a.npy", array.astype(">u2"))
    values = read_values(tmp_path / "a.npy").values.numpy()
    assert np.array_equal(values, noise(5)[: len(values)])
    assert len(values) == (5 if 5 in shape else 1)
    assert read_image(tmp_path / "a.npy", len(values), (0, 4000)).max() > 0.9


def test_what_is_no_image_in_a_npy_file_is_named(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    np.save(tmp_path / "line.npy", np.zeros(5))
    np.save(tmp_path / "complex.npy", np.zeros((4, 5), complex))
    (tmp_path / "text.npy").write_text("no array", encoding="utf-8")
    for name in ("objects", "line", "complex", "text"):
        with pytest.raises(ImageError, match=rf"^\S+{name}\.npy(: | cannot be read as an image: ).+$"):
            read_image(tmp_path / f"{name}.npy")
    with pytest.raises(ImageError, match=r"text\.npy .*magic string"):  # not that pickles may be allowed
        read_image(tmp_path / "text.npy")
    np.save(tmp_path / "axes.npy", np.zeros((3, 40, 60), np.uint8))
    with pytest.raises(ImageError, match=r"axes\.npy: .* got 60: .*; an array is \(H, W, C\)"):
        read_image(tmp_path / "axes.npy")
    with pytest.raises(FileNotFoundError, match=r"none\.npy"):
        read_image(tmp_path / "none.npy")


def test_bands_are_taken_by_number_in_their_order(tmp_path):
    array = noise(5)
    np.save(tmp_path / "a.npy", array.transpose(1, 2, 0))
    for image in (
        tiff(tmp_path / "a.tif", array),
        tmp_path / "a.npy",
        array.transpose(1, 2, 0),
        torch.from_numpy(array),
    ):
        found = read_image(image, 3, ((0, 4000), (0, 2000), (0, 1000)), (4, 3, 2)).numpy()
        expected = array[[3, 2, 1]] / np.array([4000, 2000, 1000])[:, None, None]
        assert np.allclose(found, expected.clip(0, 1), atol=1e-6)
        with pytest.raises(ImageError, match=r'has 5 bands, and pretrained_cfg\["bands"\] names the bands 4, 6, 2'):
            read_image(image, 3, (0, 4000), (4, 6, 2))
    eight = noise(4, "uint8", 255)
    Image.fromarray(eight.transpose(1, 2, 0)).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 3, None, (4, 1, 2)).numpy(), eight[[3, 0, 1]])
    assert np.array_equal(read_image(tmp_path / "a.png", 3).numpy(), eight[:3])


def test_more_bands_than_the_model_takes_are_refused_with_the_key_that_names_them(tmp_path):
    for name, dtype in (("a", "uint16"), ("b", "uint8")):
        path = tiff(tmp_path / f"{name}.tif", noise(5, dtype, 200))
        message = rf'{name}\.tif: .*takes images of 3 channels, got 5: state .*\["bands"\]\.$'
        with pytest.raises(ImageError, match=message):
            read_image(path)


def test_a_tiff_of_four_bytes_is_a_photo_with_alpha_or_an_image_of_four_bands(tmp_path):
    array = noise(4, "uint8", 255)
    for options in ({}, {"photometric": "RGB", "ALPHA": "NO"}):
        path = tiff(tmp_path / "a.tif", array, **options)
        assert np.array_equal(read_image(path, 4).numpy(), array)
        assert np.array_equal(read_image(path, 3).numpy(), array[:3])


@pytest.mark.parametrize("bands", [1, 3])
def test_pixels_without_data_become_zero(tmp_path, bands):
    for dtype, nodata in (("uint16", 65535), ("int16", -9999), ("float32", -9999), ("float32", float("nan"))):
        array = noise(bands, dtype, 100)
        array[:, :10] = nodata
        path = tiff(tmp_path / "a.tif", array, nodata=nodata)
        found = read_image(path, 3, (-100, 100))
        assert (found[:, :10] == 0).all()
        assert found[:, 10:].min() >= 0.5
    with pytest.raises(ImageError, match=r"a\.tif: Images of floating point have values from 0 to 1"):
        read_image(path)
    assert read_image(tiff(path, array / 100, nodata=nodata)).max() <= 1  # NaN that the file states is no data


def test_sixteen_bits_that_are_little_used_are_pointed_out_once():
    array = noise(1)[0]
    with pytest.warns(UserWarning, match=r'An image of 16 bits uses .* pretrained_cfg\["range"\]') as caught:
        assert len(np.unique(read_image(array))) > 1000
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(array, 3, (0, 4000))
        read_image(array * 15)
        read_image(np.zeros((4, 5), np.uint16))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            read_image(array)
    assert len(caught) == 1


def test_bytes_for_a_model_of_more_bits_are_refused():
    with pytest.raises(ImageError, match=r"has 8 bits, but its range is \(0, 4000\)"):
        read_image(np.zeros((4, 5), np.uint8), 3, (0, 4000))
    assert read_image(np.full((4, 5), 50, np.uint8), 3, (0, 200)).unique().tolist() == [0.25]


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("tiles", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_a_band_that_lies_by_itself_keeps_its_values(tmp_path, dtype, tiles):
    array = noise(1, dtype, 100)
    path = tiff(tmp_path / "a.tif", array, interleave="band", **tiles)
    assert np.array_equal(read_values(path).values.numpy(), array)


@pytest.mark.parametrize("options", [{}, {"NBITS": 12}])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_jpegs_2000_of_more_than_8_bits_keep_them(tmp_path, bands, options):
    array = noise(bands)
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    source, copy = tiff(tmp_path / "a.tif", array), pytest.importorskip("rasterio.shutil").copy
    copy(source, tmp_path / "a.jp2", **lossless, **options)
    assert np.array_equal(read_values(tmp_path / "a.jp2", bands).values.numpy(), array)


@pytest.mark.parametrize("bands", [2, 4])
def test_jpegs_2000_of_8_bits_and_other_bands_than_colors_keep_all(tmp_path, bands):
    array = noise(bands, "uint8", 255)
    source, copy = tiff(tmp_path / "a.tif", array, ALPHA="NO"), pytest.importorskip("rasterio.shutil").copy
    copy(source, tmp_path / "a.jp2", driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    assert np.array_equal(read_values(tmp_path / "a.jp2").values.numpy(), array)


def test_pillow_prints_nothing_of_many_bands(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    assert len(read_values(tiff(tmp_path / "a.tif", noise(13))).values) == 13
    assert capsys.readouterr().err == ""


def test_deployed_graphs_refuse_what_pillow_reads_in_fewer_bits(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "deployment")
    preprocessing = importlib.import_module("preprocessing")
    path = tiff(tmp_path / "a.png", noise(3), driver="PNG")
    metadata = {"input_size": [1, 3, 40, 50], "mean": [0] * 3, "std": [1] * 3, "range": [0, 4000]}
    with pytest.raises(OSError, match=r"a\.png has colors of 16 bits, .*: convert it to TIFF"):
        preprocessing.read_image(path, metadata)
    Image.fromarray(noise(1)[0]).save(tmp_path / "gray.png")
    assert preprocessing.read_image(tmp_path / "gray.png", metadata)[0].max() > 0.9


# Predictions


class Bright(nn.Module):
    """Labels the pixels that are bright in the first channel."""

    def __init__(self, channels, **facts):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = {"in_channels": channels}
        self.pretrained_cfg = {"mean": [0.5] * channels, "std": [1.0] * channels, **facts}

    def forward(self, x):
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, :1] + self.weight], 1)


def test_a_model_predicts_files_and_arrays_by_its_range_and_bands(tmp_path):
    array = noise(5, size=(64, 64))
    model = Bright(2, range=[[0, 3000], [0, 4000]], bands=[4, 1])
    expected = array[3] > 1500
    for image in (tiff(tmp_path / "a.tif", array), array.transpose(1, 2, 0), torch.from_numpy(array)):
        assert np.array_equal(predict(model, image), expected)
    scaled = read_image(array.transpose(1, 2, 0), 2, *(model.pretrained_cfg[name] for name in ("range", "bands")))
    assert np.array_equal(predict(model, scaled, scaled=True), expected)
    assert np.array_equal(predict(model, scaled.to(torch.float32), scaled=True, mode="slide", window=32), expected)


def test_overlays_show_images_of_any_bands_and_values(tmp_path):
    labels = np.zeros((40, 50), np.uint8)
    array = noise(5)
    path = tiff(tmp_path / "a.tif", array)
    for image in (
        path,
        array.transpose(1, 2, 0),
        torch.from_numpy(array[:2]),
        noise(5, "float32", 1).transpose(1, 2, 0),
    ):
        shown = np.asarray(overlay(image, labels, alpha=0, legend=False)).astype(int)
        assert shown.min() < 10
        assert shown.max() > 245
    photo = noise(3, "uint16", 65535)
    plain = np.asarray(overlay(photo.transpose(1, 2, 0), labels, alpha=0, legend=False))
    assert np.array_equal(plain, np.rint(photo / 257).transpose(1, 2, 0))
    array = np.full((40, 50), -9999, np.float32)
    array[10:] = noise(1, "float32", 300)[0, 10:] + 50
    shown = np.asarray(overlay(tiff(tmp_path / "b.tif", array[None], nodata=-9999), labels, alpha=0, legend=False))
    assert not shown[:10].any()
    assert np.ptp(shown[10:]) > 200


def test_an_exported_graph_states_range_and_bands():
    model = Bright(2, range=[[0, 3000], [0, 4000]], bands=[4, 1])
    metadata = describe_graph(model, (1, 2, 64, 64), ("logits",))
    assert (metadata["range"], metadata["bands"]) == ([[0, 3000], [0, 4000]], [4, 1])
    assert not {"range", "bands"} & set(describe_graph(Bright(3), (1, 3, 64, 64), ("logits",)))


def test_arrays_of_a_folder_are_images_if_there_are_no_others(tmp_path):
    np.save(tmp_path / "a.npy", noise(2))
    assert [*find_images([tmp_path], tmp_path / "out")] == [tmp_path / "a.npy"]
    Image.fromarray(noise(1, "uint8", 255)[0]).save(tmp_path / "b.png")
    assert [*find_images([tmp_path], tmp_path / "out")] == [tmp_path / "b.png"]
    assert [*find_images([tmp_path / "a.npy"], tmp_path / "out")] == [tmp_path / "a.npy"]
