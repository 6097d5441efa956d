"""Write a small data folder of drawn street scenes, to try the other scripts on.

python examples/draw_scenes.py data/streets                    # seven classes
python examples/draw_scenes.py data/roads --binary road        # masks of 0 and 255: roads, and the rest
python examples/draw_scenes.py data/fields --geotiff           # five bands of 16 bits, near infrared among them
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from segmentation import scenes
from segmentation.progress import progress_bar
from segmentation.recipe import SettingsError, run


@dataclass
class Settings:
    """What to draw."""

    folder: tyro.conf.Positional[Path]
    """The data folder to write."""
    train: int = 40
    """Number of training images."""
    val: int = 8
    """Number of validation images."""
    size: int = 160
    """Side of the images in pixels."""
    binary: str | None = None
    """Draw masks of one class: its pixels are 255, the others 0."""
    geotiff: bool = False
    """Write GeoTIFFs of five bands of uint16, as satellites take them, instead of photos; this needs rasterio."""


def write_geotiff(file: Path, bands: np.ndarray) -> None:
    """Write bands (C, H, W) as a GeoTIFF, with pixels of 10 m somewhere in UTM zone 32."""
    try:
        import rasterio
    except ImportError:
        raise SettingsError("--geotiff needs rasterio: pip install rasterio") from None
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype, "compress": "deflate"}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_400_000)}
    with rasterio.open(file, "w", driver="GTiff", **shape, **place) as raster:
        raster.write(bands)


def main(argv: list[str]) -> None:
    settings = tyro.cli(Settings, args=argv, description=__doc__.split("\n")[0], use_underscores=True)
    if settings.binary and settings.binary not in scenes.CLASSES:
        raise SettingsError(f"unknown class {settings.binary!r}: choose from {', '.join(scenes.CLASSES)}.")
    names = ("background", settings.binary) if settings.binary else scenes.CLASSES
    classes = settings.folder / "classes.txt"
    lines = classes.read_text(encoding="utf-8").splitlines() if classes.is_file() else []
    if settings.folder.is_dir() and any(settings.folder.iterdir()) and [line.split()[-1] for line in lines] != [*names]:
        raise SettingsError(f"{settings.folder} holds other data: choose another folder, or remove it.")
    for seed, (split, count) in enumerate((("train", settings.train), ("val", settings.val))):
        for kind in ("images", "labels"):
            (settings.folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in progress_bar(range(count), desc=split, leave=False):
            image, labels = scenes.draw(seed, index, settings.size)
            file = settings.folder / "images" / split / f"{index:03d}.jpg"
            if settings.geotiff:
                write_geotiff(file.with_suffix(".tif"), scenes.to_bands(image, labels, seed, index))
            else:
                Image.fromarray(image).save(file, quality=95)
            if settings.binary:
                labels = np.where(labels == scenes.CLASSES.index(settings.binary), 255, 0).astype(np.uint8)
            Image.fromarray(labels).save(settings.folder / "labels" / split / f"{index:03d}.png")
    classes.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{settings.folder}: {settings.train} training and {settings.val} validation images, {len(names)} classes")


if __name__ == "__main__":
    run(main)
