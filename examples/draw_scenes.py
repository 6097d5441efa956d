"""Write a small data folder of drawn street scenes, to try the other scripts on.

python examples/draw_scenes.py data/streets                    # seven classes
python examples/draw_scenes.py data/roads --binary road        # masks of 0 and 255: roads, and the rest
python examples/draw_scenes.py data/fields --geotiff           # five bands of 16 bits, near infrared among them
"""

from dataclasses import dataclass
from pathlib import Path

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import numpy as np
import tyro
from PIL import Image

from segmentation import scenes
from segmentation.progress import progress_bar
from segmentation.recipe import SettingsError, run

MARK = ".drawn_scenes"  # in the folder: size in bytes and path of each picture that was drawn there


@dataclass
class Settings:
    """What to draw."""

    folder: tyro.conf.Positional[Path]
    """The data folder to write: a new or empty one, or one that was drawn before, which is replaced."""
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


def remove_drawn(folder: Path) -> None:
    """Remove the pictures that this script drew in a folder.

    Raises:
        SettingsError: If it holds any other file, or is one; nothing is removed then.
    """
    mark = folder / MARK
    drawn = set(mark.read_text(encoding="utf-8").splitlines()) if mark.is_file() else set()
    files = [folder] if folder.is_file() else (file for file in folder.rglob("[!.]*") if file.is_file())
    for file in files:
        own = _entry(file, folder) in drawn or (drawn and file == folder / "classes.txt")
        if not own:
            raise SettingsError(f"{file} was not drawn by this script: choose another folder, which is new or empty.")
    for line in drawn:
        (folder / line.split(" ", 1)[1]).unlink(missing_ok=True)
    mark.unlink(missing_ok=True)


def colored_names() -> list[str]:
    """Lines of classes.txt: each class and the color that pictures show it in."""
    return [f"{name} #{bytes(color).hex()}" for name, color in zip(scenes.CLASSES, scenes.PALETTE)]


def _entry(file: Path, folder: Path) -> str:
    return f"{file.stat().st_size} {file.relative_to(folder).as_posix()}"


def main(argv: list[str]) -> None:
    settings = tyro.cli(Settings, args=argv, description=__doc__.split("\n")[0], use_underscores=True)
    if settings.binary and settings.binary not in scenes.CLASSES:
        raise SettingsError(f"unknown class {settings.binary!r}: choose from {', '.join(scenes.CLASSES)}.")
    names = ["background", settings.binary] if settings.binary else colored_names()
    remove_drawn(settings.folder)
    for seed, (split, count) in enumerate((("train", settings.train), ("val", settings.val))):
        for kind in ("images", "labels"):
            (settings.folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in progress_bar(range(count), desc=split, leave=False):
            image, labels = scenes.draw(seed, index, settings.size)
            file = settings.folder / "images" / split / f"{index:03d}.jpg"
            if settings.geotiff:
                file = file.with_suffix(".tif")
                write_geotiff(file, scenes.to_bands(image, labels, seed, index))
            else:
                Image.fromarray(image).save(file, quality=95)
            if settings.binary:
                labels = np.where(labels == scenes.CLASSES.index(settings.binary), 255, 0).astype(np.uint8)
            label = settings.folder / "labels" / split / f"{index:03d}.png"
            Image.fromarray(labels).save(label)
            with (settings.folder / MARK).open("a", encoding="utf-8") as mark:
                mark.writelines(f"{_entry(path, settings.folder)}\n" for path in (file, label))
    (settings.folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{settings.folder}: {settings.train} training and {settings.val} validation images, {len(names)} classes")


if __name__ == "__main__":
    run(main)
