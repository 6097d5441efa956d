"""Small rasters, and models that take them."""

import builtins

import numpy as np
import pytest
import torch

from small_models import narrow

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


def model_of(channels=3, classes=3, **cfg):
    cfg = {"input_size": [channels, 64, 64], "mean": [0.4] * channels, "std": [0.25] * channels} | cfg
    torch.manual_seed(0)
    model = narrow(in_channels=channels, classes=classes, pretrained_cfg=cfg).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    return model


def labels_of(file):
    with rasterio.open(file) as raster:
        return raster.read(1)


def hide(monkeypatch, package):
    """Let imports of a package fail."""
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == package:
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
