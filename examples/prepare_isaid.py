"""Cut iSAID's large aerial images into overlapping patches, as the paper trains and evaluates on.

    python examples/prepare_isaid.py DOWNLOADED data/isaid

DOWNLOADED holds `train` and `val`, each with images (`P0000.png`, from DOTA) and semantic masks
(`P0000_instance_color_RGB.png`, from iSAID), in any folders below. The patches go to `img_dir/{train,val}` and
`ann_dir/{train,val}`, the masks' colors turned into labels. A stopped run resumes where it was.
"""

from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import segmentation  # isort: skip  # noqa: F401  (tells which package is missing)
import numpy as np
import tyro
from PIL import Image

from segmentation.files import replace_when_complete
from segmentation.progress import progress_bar
from segmentation.recipe import UserError, run
from segnext_timm.label_sets import LABEL_SETS

Image.MAX_IMAGE_PIXELS = None  # DOTA's largest image has 13 thousand pixels a side
MASK = "_instance_color_RGB"
_PLACES = np.array([1 << 16, 1 << 8, 1])


@dataclass
class PatchSettings:
    """Where the data set is, and how it is cut."""

    source: tyro.conf.Positional[Path]
    """Folder of the downloaded data set."""
    target: tyro.conf.Positional[Path]
    """Folder of the patches."""
    size: int = 896
    """Side of the patches in pixels."""
    overlap: int = 384
    """Pixels that neighboring patches share."""
    workers: int = 4
    """Images that are cut at the same time."""


def corners(length: int, size: int, overlap: int) -> list[int]:
    """Where the patches of a side begin; the last one is moved back to end with the side."""
    step = size - overlap
    return [max(min(start, length - size), 0) for start in range(0, max(length - overlap, 1), step)]


def to_labels(mask: np.ndarray, path: Path) -> np.ndarray:
    """Colors (H, W, 3) of a mask to labels (H, W).

    Raises:
        UserError: If there is a color that no class has.
    """
    codes = np.asarray(LABEL_SETS["isaid"].palette) @ _PLACES
    order = codes.argsort()
    found = mask @ _PLACES
    places = np.searchsorted(codes, found, sorter=order).clip(max=len(codes) - 1)
    labels = order[places]
    if (codes[labels] != found).any():
        row, column = np.argwhere(codes[labels] != found)[0]
        raise UserError(
            f"{path} has the color {mask[row, column].tolist()} at row {row}, column {column}, which no class has."
        )
    return labels.astype(np.uint8)


def save(image: Image.Image, path: Path) -> None:
    """Write a file that is whole once it has its name."""
    with replace_when_complete(path) as new:
        image.save(new, format="PNG")


def cut(image_path: Path, mask_path: Path, image_folder: Path, label_folder: Path, settings: PatchSettings) -> int:
    """Cut an image and its mask; gives the number of patches. What is there already is left as it is."""
    try:
        image, mask = Image.open(image_path), Image.open(mask_path)
    except OSError as error:
        raise UserError(f"{image_path} or its mask cannot be read: {error}") from None
    if image.size != mask.size:
        raise UserError(f"{mask_path} is of {mask.size}, its image of {image.size} pixels (width, height).")
    patches = []
    for top in corners(image.height, settings.size, settings.overlap):
        for left in corners(image.width, settings.size, settings.overlap):
            bottom, right = min(top + settings.size, image.height), min(left + settings.size, image.width)
            stem = f"{image_path.stem}_{top}_{bottom}_{left}_{right}"
            targets = (image_folder / f"{stem}.png", label_folder / f"{stem}{MASK}.png")
            patches.append(((left, top, right, bottom), targets))
    missing = [patch for patch in patches if not all(target.is_file() for target in patch[1])]
    if missing:
        try:
            image, colors = image.convert("RGB"), np.asarray(mask.convert("RGB"))
        except OSError as error:
            raise UserError(f"{image_path} or its mask cannot be read: {error}") from None
        for box, (image_target, label_target) in missing:
            left, top, right, bottom = box
            save(image.crop(box), image_target)
            save(Image.fromarray(to_labels(colors[top:bottom, left:right], mask_path)), label_target)
    return len(patches)


def find(folder: Path) -> list[tuple[Path, Path]]:
    """Images below a folder with their masks.

    Raises:
        UserError: If there are none, or an image has no mask.
    """
    files = sorted(folder.rglob("P*.png"))
    masks = {file.stem.removesuffix(MASK): file for file in files if file.stem.endswith(MASK)}
    images = [file for file in files if "_instance_" not in file.stem]
    if not images:
        raise UserError(f"{folder} holds no images P*.png: give the folder that holds train and val.")
    missing = [image for image in images if image.stem not in masks]
    if missing:
        raise UserError(f"{len(missing)} of {len(images)} images have no mask: add {missing[0].stem}{MASK}.png.")
    return [(image, masks[image.stem]) for image in images]


def main(argv: list[str]) -> None:
    settings = tyro.cli(PatchSettings, args=argv, description=__doc__.split("\n")[0], use_underscores=True)
    if not 0 <= settings.overlap < settings.size:
        raise UserError(f"overlap must be from 0 to {settings.size - 1}, got {settings.overlap}.")
    found = {name: find(settings.source / name) for name in ("train", "val")}
    for name, pairs in found.items():
        folders = [settings.target / kind / name for kind in ("img_dir", "ann_dir")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(settings.workers) as pool:
            try:
                jobs = [pool.submit(cut, *pair, *folders, settings) for pair in pairs]
                done = progress_bar(as_completed(jobs), total=len(jobs), desc=f"cut {name}", unit="image")
                count = sum(job.result() for job in done)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        print(f"{name}: {count} patches of {len(pairs)} images in {folders[0]} and {folders[1]}")


if __name__ == "__main__":
    run(main)
