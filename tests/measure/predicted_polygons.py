"""Compare labels with what label tools make of their polygons, which `segnext-timm predict --save_as` writes.

    python tests/measure/predicted_polygons.py --labelme LABELME/bin/python --ultralytics ULTRALYTICS/bin/python

LABELME is an environment with labelme, ULTRALYTICS one with ultralytics; pycocotools is needed here. The labels are
those of drawn scenes. Prints the share of pixels that differ after reading by `prepare_labels.py` and by the tools'
own code, and how many of these are farther than a pixel from an outline.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

COUNT, SIZE = 20, 320


def write(folder: Path) -> None:
    """Write drawn scenes, their labels, and polygons of these in all forms."""
    from segmentation import scenes
    from segnext_timm.models.model_info import ModelInfo
    from segnext_timm.prediction.polygons import add_to_coco, write_names, write_polygons
    from small_models import narrow

    info = ModelInfo(narrow(classes=7, pretrained_cfg={"label_names": list(scenes.CLASSES)}))
    content = write_names(folder, "coco", info)
    for kind in ("images", "labels", "labelme", "yolo"):
        (folder / kind).mkdir()
    for number in range(COUNT):
        image, labels = scenes.draw(1, number, SIZE)
        picture, file = folder / f"images/{number:03d}.png", folder / f"labels/{number:03d}.png"
        Image.fromarray(image).save(picture)
        Image.fromarray(labels).save(file)
        write_polygons(file, folder / f"labelme/{file.stem}.json", info, image=picture)
        write_polygons(file, folder / f"yolo/{file.stem}.txt", info)
        add_to_coco(content, file, picture.name, info)
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in scenes.CLASSES))


def prepare(folder: Path, form: str) -> dict[str, np.ndarray]:
    """Labels that `prepare_labels.py` makes."""
    from label_sources import Made

    images, classes = folder / "images", folder / "classes.txt"
    paths = {"coco": [images, folder / "annotations.json"], "labelme": [folder / "labelme"], "yolo": [images]}[form]
    paths += [folder / "yolo"] if form == "yolo" else []
    return Made(form, *paths, folder / f"data_{form}", background="-", classes=classes).labels


# Run by the tools' own code


def pycocotools(folder: Path) -> dict[str, np.ndarray]:
    """Masks of the annotations."""
    from pycocotools.coco import COCO

    read, found = COCO(str(folder / "annotations.json")), {}
    for image in read.dataset["images"]:
        labels = np.full((SIZE, SIZE), 255, np.uint8)
        for annotation in read.imgToAnns[image["id"]]:
            labels[read.annToMask(annotation) > 0] = annotation["category_id"] - 1
        found[Path(image["file_name"]).stem] = labels
    return found


def labelme(folder: Path) -> dict[str, np.ndarray]:
    """LabelMe's reader, which opens the images too, and its labels of shapes."""
    from labelme._label_file import LabelFile
    from labelme.utils import shapes_to_label

    values = {name: value for value, name in enumerate((folder / "classes.txt").read_text().split("\n")[:-1], 1)}
    found = {}
    for path in sorted((folder / "labelme").glob("*.json")):
        file = LabelFile(str(path))
        found[path.stem] = (shapes_to_label((SIZE, SIZE), file.shapes, values)[0] - 1).astype(np.uint8)
    return found


def ultralytics(folder: Path) -> dict[str, np.ndarray]:
    """Ultralytics' reader, and its masks of segments, smaller ones on top."""
    from ultralytics.data.utils import polygons2masks_overlap, verify_image_label

    found = {}
    for path in sorted((folder / "yolo").glob("*.txt")):
        image = str(folder / f"images/{path.stem}.png")
        _, rows, shape, segments, *_, corrupt, message = verify_image_label(
            (image, str(path), "", False, 7, 0, 0, False)
        )
        assert not corrupt, message
        masks, order = polygons2masks_overlap(shape, [segment * (SIZE, SIZE) for segment in segments])
        kinds = np.array([255, *rows[order, 0]], np.uint8)
        found[path.stem] = kinds[masks]
    return found


def compare(name: str, folder: Path, found: dict[str, np.ndarray]) -> None:
    """Print the share of pixels that differ from the labels."""
    assert len(found) == COUNT
    differ = far = 0
    for stem, labels in found.items():
        truth = np.asarray(Image.open(folder / f"labels/{stem}.png"))
        padded = np.pad(truth, 1, mode="edge")
        near = np.zeros(truth.shape, bool)
        for down in range(3):
            for across in range(3):
                near |= padded[down : down + SIZE, across : across + SIZE] != truth
        differ += (labels != truth).sum()
        far += ((labels != truth) & ~near).sum()
    print(f"{name}: {100 * differ / (COUNT * SIZE**2):.3f}% differ, {far} of these pixels not on outlines", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--labelme", help="Python with labelme")
    parser.add_argument("--ultralytics", help="Python with ultralytics")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)  # in a tool's environment
    options = parser.parse_args()
    if options.read:
        np.savez(Path(options.read[1]) / "read.npz", **globals()[options.read[0]](Path(options.read[1])))
        return
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root), str(root / "examples"), str(root / "tests" / "helpers")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        for form in ("coco", "labelme", "yolo"):
            compare(f"{form} by prepare_labels.py", folder, prepare(folder, form))
        compare("coco by pycocotools", folder, pycocotools(folder))
        for tool in ("labelme", "ultralytics"):
            if python := getattr(options, tool):
                subprocess.run([python, __file__, "--read", tool, folder], check=True)
                with np.load(folder / "read.npz") as found:
                    compare(f"{tool}", folder, dict(found))


if __name__ == "__main__":
    main()
