"""Data sets of Hugging Face `datasets` with a column of images and one of labels."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated as Named
from typing import Any

import tyro
from PIL import Image

from ..pairs import MASK_WORDS
from ..progress import progress_bar
from ..recipe import UserError
from .reading import FAULTS, Target
from .unpacking import Unpacked, write_mask

_SPLITS = {"train": ("train", "training"), "val": ("validation", "val", "valid", "test")}


@dataclass
class HubDatasets(Unpacked):
    """A data set of Hugging Face `datasets` with images and label maps, local or on the Hub. Needs datasets."""

    source: tyro.conf.Positional[Named[str, tyro.conf.arg(metavar="SOURCE")]]
    """A folder that `save_to_disk` wrote, a Parquet file or a folder of those, or an id on the Hub."""
    target: Target
    """Data folder to make."""
    image: str | None = None
    """Column of the images; else found by the types and names of the columns."""
    label: str | None = None
    """Column of the label maps: images, or lists of rows."""
    rows: str | None = None
    """Split of the data set; else that of the name of --split."""
    config: str | None = None
    """Configuration of the data set on the Hub."""

    def unpack(self, work: Path) -> tuple[Path, Path]:
        try:
            import datasets
        except ImportError:
            raise UserError("data sets of Hugging Face need datasets: pip install datasets") from None
        rows = self._load(datasets)
        image, label = _columns(rows.features, self.image, self.label)
        for column in (image, label):
            if isinstance(rows.features[column], datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        faults = 0
        for number, row in enumerate(progress_bar(rows, desc="unpack", unit="row", leave=False)):
            try:
                content = _file(row[image])
                ending = Image.open(io.BytesIO(content)).format.lower().replace("jpeg", "jpg")
                _write(content, work / f"images/{number:06d}.{ending}")
                if isinstance(row[label], dict):
                    _write(_file(row[label]), work / f"masks/{number:06d}.png")
                else:
                    write_mask(row[label], work / f"masks/{number:06d}.png")
            except (*FAULTS, Image.UnidentifiedImageError) as error:
                faults += 1
                if faults <= 10:
                    print(f"row {number}: {error}")
        if faults == len(rows):
            raise UserError(f"{self.source} has no rows of which image and label map can be read.")
        return work / "images", work / "masks"

    def _load(self, datasets: Any) -> Any:
        """The rows of the split.

        Raises:
            UserError: If the data set cannot be loaded, or does not have the split.
        """
        path = Path(self.source)
        try:
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                found = datasets.load_from_disk(self.source)
            elif path.exists() and (files := [path] if path.is_file() else sorted(path.rglob("*.parquet"))):
                found = datasets.load_dataset("parquet", data_files=_by_split(files))
            else:
                found = datasets.load_dataset(self.source, self.config)
        except Exception as error:  # datasets raises anything
            raise UserError(f"{self.source} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
        if not isinstance(found, dict):
            return found
        names = [self.rows] if self.rows else _SPLITS[self.split]
        name = next((name for name in names if name in found), None)
        if name is None:
            raise UserError(f"{self.source} has no split {names[0]!r}: give one by --rows, of {', '.join(found)}.")
        return found[name]


def _by_split(files: list[Path]) -> dict[str, list[str]]:
    """Parquet files by the splits that their names begin with, as on the Hub: train-00000-of-00002.parquet."""
    found: dict[str, list[str]] = {}
    for path in files:
        name = path.stem.split("-")[0]
        known = name in {name for names in _SPLITS.values() for name in names}
        found.setdefault(name if known else "train", []).append(str(path))
    return found


def _columns(features: dict[str, Any], image: str | None, label: str | None) -> tuple[str, str]:
    """The columns of images and label maps.

    Raises:
        UserError: If the names and types do not tell.
    """
    for name in (image, label):
        if name and name not in features:
            raise UserError(f"There is no column {name!r}: there are {', '.join(features)}.")
    maps = [name for name in features if set(name.lower().split("_")) & MASK_WORDS and name != image]
    label = label or (maps[0] if len(maps) == 1 else None)
    pictures = [name for name, kind in features.items() if type(kind).__name__ == "Image" and name != label]
    image = image or (pictures[0] if len(pictures) == 1 else None)
    if label is None and len(pictures) == 2 and image in pictures:
        label = next(name for name in pictures if name != image)
    if image is None or label is None:
        raise UserError(f"Give the columns by --image and --label, of {', '.join(features)}.")
    return image, label


def _file(value: dict[str, Any]) -> bytes:
    """The file of an image."""
    return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()


def _write(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
