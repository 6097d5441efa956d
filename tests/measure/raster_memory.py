"""Peak memory and time of `segnext-timm predict` on a GeoTIFF of five bands of uint16.

    OMP_NUM_THREADS=1 python tests/measure/raster_memory.py [SIDE] [--polygons]

The side is 20,000 pixels by default. A narrow model, in windows of 512 pixels. The file is written block by block. The
labels are opened again by rasterio, and compared with those of a part of the image predicted in memory. Needs rasterio.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import segmentation_models_pytorch as smp
import torch

from segnext_timm import fuse, predict

BANDS, WINDOW, STRIDE = 5, 512, 384
RANGE = (0, 10_000)
PLACE = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.1, 0, 500_000, 0, -0.1, 5_000_000)}


def write_model(folder: Path) -> torch.nn.Module:
    cfg = {"input_size": [BANDS, WINDOW, WINDOW], "mean": [0.4] * BANDS, "std": [0.2] * BANDS, "range": RANGE}
    torch.manual_seed(0)
    arguments = {"encoder_weights": None, "in_channels": BANDS, "classes": 4, "decoder_channels": 32}
    model = smp.SegNeXt("tu-test_mscan", **arguments, pretrained_cfg=cfg).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight, std=0.1)
    model.save_pretrained(folder)
    return model


def write_image(file: Path, side: int) -> None:
    """Smooth fields with noise, a different one in each block; the western tenth holds no data."""
    random = np.random.default_rng(0)
    profile = {"driver": "GTiff", "count": BANDS, "height": side, "width": side, "dtype": "uint16", "nodata": 0}
    blocks = {"tiled": True, "blockxsize": WINDOW, "blockysize": WINDOW, "compress": "deflate", "zlevel": 1}
    with rasterio.open(file, "w", **profile, **blocks, **PLACE, bigtiff="if_safer") as raster:
        for _, window in raster.block_windows(1):
            field = torch.from_numpy(random.random((1, BANDS, 9, 9), np.float32))
            field = torch.nn.functional.interpolate(field, (WINDOW, WINDOW), mode="bicubic")[0].numpy()
            values = (8000 * field.clip(0, 1) + random.integers(1, 200, field.shape)).astype(np.uint16)
            values[:, :, : max(side // 10 - window.col_off, 0)] = 0
            raster.write(values[:, : window.height, : window.width], window=window)


def compare(model: torch.nn.Module, image: Path, labels: Path, side: int) -> float:
    """Share of equal labels where the windows of a part of the image are those of the whole one."""
    start, length = side // 4 // STRIDE * STRIDE, WINDOW + 4 * STRIDE
    window = ((start, start + length),) * 2
    inner = (slice(WINDOW - STRIDE, STRIDE - WINDOW),) * 2
    with rasterio.open(image) as source, rasterio.open(labels) as found:
        assert (source.crs, source.transform) == (found.crs, found.transform)
        print(f"Opened again: {found.crs}, {found.transform.to_gdal()}, {found.width}×{found.height}, {found.dtypes}")
        part, expected = source.read(window=window), found.read(1, window=window)
        assert (found.read(1, window=((0, side), (0, side // 10))) == found.nodata).all()
    model = fuse(model).to(memory_format=torch.channels_last)  # as the command does
    there = predict(model, torch.from_numpy(part), mode="slide")
    print(f"Labels of the part: {np.unique(there[inner], return_counts=True)}")
    return float((there[inner] == expected[inner]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("side", nargs="?", type=int, default=20_000)
    parser.add_argument("--polygons", action="store_true", help="Write polygons, too.")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, image = write_model(folder / "model"), folder / "image.tif"
        start = time.monotonic()
        write_image(image, settings.side)
        print(f"Wrote {image.stat().st_size / 1e9:.1f} GB in {time.monotonic() - start:.0f} s", flush=True)
        command = [sys.executable, "-m", "segnext_timm", "predict", folder / "model", image, "-o", folder / "out"]
        command += ["--areas", *(["--save_as", "geojson"] if settings.polygons else [])]
        start = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - start
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in (folder / "out").iterdir())
        if settings.polygons:
            with (folder / "out" / "image.geojson").open(encoding="utf-8") as file:
                sizes += f", {sum(1 for _ in file) - 2} polygons"
        print(sizes)
        equal = compare(model, image, folder / "out" / "image.tif", settings.side)
    print(f"{settings.side}×{settings.side}, {BANDS} bands of uint16: {seconds:.0f} s, {memory:.2f} GB; equal: {equal}")


if __name__ == "__main__":
    main()
