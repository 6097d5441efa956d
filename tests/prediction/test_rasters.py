import builtins

import numpy as np
import pytest

from segnext_timm.errors import ImageError, OptionError
from segnext_timm.prediction.rasters import open_raster

rasterio = pytest.importorskip("rasterio")
PLACE = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)


def write_raster(file, values, **profile):
    """Write values (bands, H, W) as a GeoTIFF; in UTM zone 32 by default."""
    count, height, width = values.shape
    profile = {"crs": "EPSG:32632", "transform": PLACE, "dtype": values.dtype.name} | profile
    with rasterio.open(file, "w", driver="GTiff", count=count, height=height, width=width, **profile) as raster:
        raster.write(values)
    return file


def noise(bands, height, width, dtype="uint8", seed=0):
    return np.random.default_rng(seed).integers(0, 255, (bands, height, width)).astype(dtype)


def test_a_raster_is_read_in_its_own_type_by_bands_and_regions(tmp_path):
    values = noise(5, 40, 60, "uint16") * 16
    with open_raster(write_raster(tmp_path / "a.tif", values, nodata=16)) as raster:
        assert (raster.shape, raster.dtype, raster.nodata) == ((5, 40, 60), np.uint16, 16)
        assert (raster.crs.to_epsg(), raster.transform) == (32632, PLACE)
        assert np.array_equal(raster.read(), values)
        part = raster.read([4, 3, 2], slice(30, 40), slice(5, 8))
        assert np.array_equal(part, values[[3, 2, 1], 30:40, 5:8])
        assert part.dtype == np.uint16
        assert np.array_equal(raster.valid(slice(0, 9)), (values[:, :9] != 16).any(0))
        with pytest.raises(OptionError, match=r"a\.tif has bands 1 to 5, not all of 1, 6"):
            raster.read([1, 6])


def test_an_alpha_band_that_is_no_input_says_which_pixels_hold_data(tmp_path):
    values = noise(4, 20, 30)
    values[3] = 255
    values[3, :, :7] = 0
    with open_raster(write_raster(tmp_path / "a.tif", values)) as raster:
        assert raster.alpha == 4
        assert np.array_equal(raster.valid(), values[3] > 0)
        assert np.array_equal(raster.valid(slice(0, 2), slice(5, 9), [3, 2, 1]), values[3, :2, 5:9] > 0)
        assert raster.valid(slice(0, 2), slice(5, 9), [4, 3, 2]).tolist() == [[True] * 4] * 2  # near infrared


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


def test_a_missing_rasterio_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "rasterio":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    file = write_raster(tmp_path / "a.tif", noise(1, 8, 8))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImageError, match=r"a\.tif is read by rasterio, .*: pip install rasterio"), open_raster(file):
        pass
