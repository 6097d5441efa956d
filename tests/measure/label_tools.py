"""Compare the labels made of exports of label tools with the tools' own rasterization.

    python tests/measure/label_tools.py --tools TOOLS/bin/python --datumaro DATUMARO/bin/python [--supervisely ...]

TOOLS is an environment with labelme, pycocotools, label-studio-sdk and cvat-sdk; DATUMARO one with `datumaro[cli]`,
which wants another Pillow; a third one has supervisely. In them, this file writes images, an export by the tool's code,
and its rasterization; here, `prepare_labels.py` reads the export. Prints the share of pixels that differ, and how many
of these are not on outlines.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 240, 320
CLASSES = ("car", "road", "tree")
DATUMARO = ("cvat", "voc", "datumaro_coco")


def draw(folder: Path, count: int = 4) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Write images; returns objects of each: the number of the class and the corners, later ones on top."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    found = {}
    for number in range(count):
        noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"images/{number}.png")
        objects = []
        for _ in range(6):
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
            radii = rng.uniform(10, 70, len(angles))
            center = rng.uniform((40, 40), (WIDTH - 40, HEIGHT - 40))
            points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            objects.append((int(rng.integers(3)), points.clip(0, (WIDTH - 1, HEIGHT - 1)).round(2)))
        found[f"{number}.png"] = objects
    return found


def save_truth(folder: Path, name: str, layers: list[tuple[int, np.ndarray]]) -> None:
    """Write the labels of masks by the number of their class, later ones on top."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for kind, mask in layers:
        labels[mask > 0] = kind + 1
    (folder / "truth").mkdir(exist_ok=True)
    Image.fromarray(labels).save(folder / "truth" / name)


# Written by the tools' code, in their environments


def coco(folder: Path, runs: str = "") -> list[str]:
    """COCO of polygons, or of pycocotools' run lengths, compressed or not."""
    from pycocotools import mask as tools
    from pycocotools.coco import COCO

    images, annotations = [], []
    drawn = draw(folder)
    for image, (name, objects) in enumerate(drawn.items()):
        images.append({"id": image, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for kind, points in objects:
            shape = [points.ravel().tolist()]
            area = float(tools.area(tools.merge(tools.frPyObjects(shape, HEIGHT, WIDTH))))
            if runs:
                compressed = tools.merge(tools.frPyObjects(shape, HEIGHT, WIDTH))
                shape = {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}
            if runs == "counts":
                flat = tools.decode(compressed).T.ravel()
                edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
                shape["counts"] = np.diff([0, *edges, flat.size]).tolist()
            common = {"image_id": image, "category_id": kind + 1, "iscrowd": 0, "area": area}
            annotations.append({"id": len(annotations) + 1, "segmentation": shape, **common})
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
    path = folder / "x.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    read = COCO(str(path))
    for image, name in enumerate(drawn):
        # by areas, as prepare_labels.py does it
        mine = sorted(read.imgToAnns[image], key=lambda a: -_area(a) if not runs else -int(read.annToMask(a).sum()))
        save_truth(folder, name, [(a["category_id"] - 1, read.annToMask(a)) for a in mine])
    return ["coco", "images", "x.json"]


def _area(annotation: dict) -> float:
    x, y = np.reshape(annotation["segmentation"][0], (-1, 2)).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def coco_rle(folder: Path) -> list[str]:
    """Compressed run lengths."""
    return coco(folder, "compressed")


def coco_counts(folder: Path) -> list[str]:
    """Run lengths as numbers."""
    return coco(folder, "counts")


def labelme(folder: Path) -> list[str]:
    """LabelMe's files, of polygons, rectangles, oriented rectangles, circles and masks."""
    from labelme._label_file import LabelFile
    from labelme.utils import shapes_to_label

    for name, objects in draw(folder).items():
        shapes = []
        for place, (kind, points) in enumerate(objects):
            shape_type, mask = "polygon", None
            if place == 1:
                shape_type, points = "rectangle", np.stack([points.min(0), points.max(0)])
            if place == 2:
                shape_type, points = "circle", points[:2]
            if place == 3:
                corner, side = points[0], points[1] - points[0]
                across = np.array([-side[1], side[0]]) / 3
                corners = np.stack([corner, corner + side, corner + side + across, corner + across])
                shape_type, points = "oriented_rectangle", corners
            if place == 4:
                shape_type, points = "mask", np.array([[50.0, 60.0], [69.0, 89.0]])
                mask = np.random.default_rng(place).random((30, 20)) < 0.5
            shapes.append(
                {"label": CLASSES[kind], "points": points.tolist(), "shape_type": shape_type, "group_id": None}
                | {"flags": {}, "description": "", "mask": mask, "other_data": {}}
            )
        LabelFile().save(str(folder / f"images/{Path(name).stem}.json"), _encoded(shapes), name, HEIGHT, WIDTH)
        values = {label: number for number, label in enumerate(CLASSES)}
        layers = [shapes_to_label((HEIGHT, WIDTH), [shape], dict.fromkeys(CLASSES, 1))[0] for shape in shapes]
        save_truth(folder, name, [(values[shape["label"]], mask) for shape, mask in zip(shapes, layers)])
    return ["labelme", "images"]


def _encoded(shapes: list[dict]) -> list[dict]:
    """Shapes as LabelMe's window hands them over: masks as PNGs in text."""
    from labelme import utils

    return [
        {**{k: v for k, v in shape.items() if k != "other_data"}}
        | {"mask": None if shape["mask"] is None else utils.img_arr_to_b64(shape["mask"].astype(np.uint8))}
        for shape in shapes
    ]


def _studio_tasks(folder: Path, kind: str, by_area: bool = False) -> list[dict]:
    """Tasks of Label Studio with polygons or brushes; writes the truth of the latter, in their order or by area."""
    from label_studio_sdk.converter import brush

    tasks = []
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for number, (name, objects) in enumerate(draw(folder).items()):
        results, layers = [], []
        for place, (label, points) in enumerate(objects):
            common = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "id": f"r{place}"}
            common |= {"from_name": "tag", "to_name": "image", "type": f"{kind}labels"}
            if kind == "brush":
                low, high = points.min(0), points.max(0)
                center, radii = (low + high) / 2, (high - low) / 2 + 1
                mask = ((columns - center[0]) / radii[0]) ** 2 + ((rows - center[1]) / radii[1]) ** 2 < 1
                layers.append((label, mask))
                value = {"format": "rle", "rle": brush.mask2rle(mask.astype(np.uint8) * 255)}
                decoded = brush.decode_rle(value["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0
                assert np.array_equal(decoded, mask)
            else:
                value = {"points": (points / (WIDTH, HEIGHT) * 100).tolist()}
            results.append(common | {"value": value | {f"{kind}labels": [CLASSES[label]]}})
        if layers:
            save_truth(folder, name, sorted(layers, key=lambda layer: -layer[1].sum()) if by_area else layers)
        annotation = {"id": 10 + number, "result": results, "was_cancelled": False, "completed_by": {"email": "a@b.c"}}
        data = {"image": f"/data/upload/1/0f1e2d3c-{name}"}
        tasks.append({"id": number, "data": data, "annotations": [annotation], "file_upload": f"0f1e2d3c-{name}"})
    (folder / "x.json").write_text(json.dumps(tasks))
    return tasks


def studio_brush(folder: Path) -> list[str]:
    """Label Studio's JSON with brushes."""
    _studio_tasks(folder, "brush")
    return ["labelstudio", "images", "x.json"]


def _convert(folder: Path, form: str, tag: str) -> None:
    """Export the tasks by Label Studio's converter."""
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.converter.converter import Format

    labels = "".join(f'<Label value="{name}"/>' for name in CLASSES)
    view = f'<View><Image name="image" value="$image"/><{tag} name="tag" toName="image">{labels}</{tag}></View>'
    (folder / "export").mkdir()
    converter = Converter(
        config=view, project_dir=str(folder), upload_dir=str(folder / "images"), download_resources=False
    )
    converter.convert(str(folder / "x.json"), str(folder / "export"), Format.from_string(form), is_dir=False)


def studio_pngs(folder: Path) -> list[str]:
    """Label Studio's PNGs of regions."""
    _studio_tasks(folder, "brush", by_area=True)
    _convert(folder, "BRUSH_TO_PNG", "BrushLabels")
    return ["labelstudio", "images", "export", "--tasks", "x.json"]


def _polygon_truth(folder: Path) -> None:
    """Label Studio does not rasterize polygons: the truth is pycocotools'."""
    from pycocotools import mask as tools

    with tempfile.TemporaryDirectory() as name:
        for image, objects in draw(Path(name)).items():
            shapes = [tools.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH) for _, points in objects]
            save_truth(folder, image, [(k, tools.decode(tools.merge(s))) for (k, _), s in zip(objects, shapes)])


def studio_polygons(folder: Path) -> list[str]:
    """Label Studio's JSON with polygons."""
    _studio_tasks(folder, "polygon")
    _polygon_truth(folder)
    return ["labelstudio", "images", "x.json"]


def studio_yolo(folder: Path) -> list[str]:
    """Label Studio's export for YOLO."""
    _studio_tasks(folder, "polygon")
    _polygon_truth(folder)
    _convert(folder, "YOLO", "PolygonLabels")
    for path in (folder / "images").iterdir():  # which its server puts beside the labels
        path.rename(path.with_name(f"0f1e2d3c-{path.name}"))
    return ["yolo", "images", "export/labels"]


def studio_coco(folder: Path) -> list[str]:
    """Label Studio's export for COCO, with its own order of areas."""
    _studio_tasks(folder, "polygon")
    _convert(folder, "COCO", "PolygonLabels")
    from pycocotools.coco import COCO

    read = COCO(str(next((folder / "export").glob("*.json"))))
    names = {category["id"]: category["name"] for category in read.dataset["categories"]}
    for image in read.dataset["images"]:
        mine = sorted(read.imgToAnns[image["id"]], key=lambda a: -_area(a))
        layers = [(CLASSES.index(names[a["category_id"]]), read.annToMask(a)) for a in mine]
        save_truth(folder, image["file_name"].replace("\\", "/").split("-")[-1], layers)
    return ["coco", "images", "export/result.json"]


def cvat_sdk(folder: Path) -> list[str]:
    """CVAT's masks, encoded by its SDK, which has no writer of the XML."""
    from cvat_sdk.masks import decode_mask, encode_mask

    images = []
    rng = np.random.default_rng(1)
    for number, (name, objects) in enumerate(draw(folder).items()):
        shapes, layers = [], []
        for kind, points in objects:
            left, top = points.min(0).astype(int)
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[top : top + 50, left : left + 60] = rng.random(mask[top : top + 50, left : left + 60].shape) < 0.6
            *runs, x1, y1, x2, y2 = encoded = encode_mask(mask)
            layers.append((kind, decode_mask(encoded, image_width=WIDTH, image_height=HEIGHT)))
            place = f'left="{x1}" top="{y1}" width="{x2 - x1 + 1}" height="{y2 - y1 + 1}"'
            shapes.append(f'<mask label="{CLASSES[kind]}" rle="{", ".join(map(str, runs))}" {place} z_order="0"/>')
        save_truth(folder, name, layers)
        images.append(f'<image id="{number}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image>')
    (folder / "annotations.xml").write_text(f"<annotations>{''.join(images)}</annotations>")
    return ["cvat", "images", "annotations.xml"]


def _datumaro_set(folder: Path, masks: bool, by_area: bool = False) -> object:
    """A data set of datumaro with polygons or masks; writes its rasterization, by z_order or by area."""
    from datumaro import Dataset, DatasetItem
    from datumaro.components.annotation import Mask, Polygon, RotatedBbox
    from datumaro.components.media import Image as Media
    from datumaro.util.mask_tools import rles_to_mask

    items = []
    for name, objects in draw(folder).items():
        annotations, layers = [], []
        for place, (kind, points) in enumerate(objects):
            corners = points
            if place == 5 and not masks:
                turned = RotatedBbox(*points.mean(0).round(2).tolist(), 60.0, 25.0, 35.0, label=kind, z_order=place)
                corners = np.reshape(turned.as_polygon(), (-1, 2))
                annotations.append(turned)
            mask = rles_to_mask([corners.ravel().tolist()], WIDTH, HEIGHT)
            layers.append((kind, mask))
            if masks:
                annotations.append(Mask(image=mask.astype(bool), label=kind, z_order=place))
            elif place != 5:
                annotations.append(Polygon(points.ravel().tolist(), label=kind, z_order=place))
        save_truth(folder, name, sorted(layers, key=lambda layer: -layer[1].sum()) if by_area else layers)
        media = Media.from_file(path=str(folder / "images" / name))
        items.append(DatasetItem(id=Path(name).stem, subset="train", media=media, annotations=annotations[::-1]))
    return Dataset.from_iterable(items, categories=list(CLASSES))


def cvat(folder: Path) -> list[str]:
    """CVAT's XML by datumaro: polygons and a rotated box."""
    _datumaro_set(folder, masks=False).export(str(folder / "export"), "cvat", save_media=True)
    return ["cvat", "images", "export/train.xml"]


def voc(folder: Path) -> list[str]:
    """VOC's index masks by datumaro."""
    export = _datumaro_set(folder, masks=True)
    export.export(str(folder / "export"), "voc_segmentation", save_media=True, apply_colormap=False)
    return ["masks", "export/JPEGImages", "export/SegmentationClass", "--classes", "export/labelmap.txt"]


def datumaro_coco(folder: Path) -> list[str]:
    """COCO by datumaro, from masks: run lengths."""
    export = _datumaro_set(folder, masks=True, by_area=True)
    export.export(str(folder / "export"), "coco_instances", save_media=True)
    return ["coco", "export/images/train", "export/annotations/instances_train.json", "--crowds", "paint"]


def supervisely(folder: Path) -> list[str]:
    """A project of Supervisely: polygons with a hole, bitmaps and rectangles."""
    import supervisely as sly

    drawn = draw(folder)
    kinds = [sly.ObjClass(name, sly.AnyGeometry) for name in CLASSES]
    project = sly.Project(str(folder / "project"), sly.OpenMode.CREATE)
    project.set_meta(sly.ProjectMeta(obj_classes=sly.ObjClassCollection(kinds)))
    dataset = project.create_dataset("ds0")
    for name, objects in drawn.items():
        labels, layers = [], []
        for place, (kind, points) in enumerate(objects):
            corners = [sly.PointLocation(round(y), round(x)) for x, y in points]
            middle = points.mean(0)
            inner = [sly.PointLocation(round(y), round(x)) for x, y in middle + (points - middle) / 3]
            if place == 1:
                (left, top), (right, bottom) = points.min(0).round().astype(int), points.max(0).round().astype(int)
                shape = sly.Rectangle(int(top), int(left), int(bottom), int(right))
            elif place == 2:
                mask = np.random.default_rng(place).random((30, 20)) < 0.5
                shape = sly.Bitmap(mask, sly.PointLocation(60, 50))
            else:
                shape = sly.Polygon(corners, [inner] if place == 0 else [])
            labels.append(sly.Label(shape, kinds[kind]))
            canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
            shape.draw(canvas, 1)
            layers.append((kind, canvas))
        annotation = sly.Annotation((HEIGHT, WIDTH), labels)
        dataset.add_item_file(name, str(folder / "images" / name), ann=annotation)
        save_truth(folder, name, layers)
    return ["supervisely", "project"]


# Read here


def compare(folder: Path, command: list[str]) -> str:
    """Make labels of an export, and compare them with the truth by the names of the classes."""
    import prepare_labels
    from segmentation.class_list import read_classes

    kind, *arguments = command
    paths = [str(folder / a) if not a.startswith("--") and (folder / a).exists() else a for a in arguments]
    place = next((k for k, a in enumerate(paths) if a.startswith("--")), len(paths))
    target = folder / "made"
    prepare_labels.main([kind, *paths[:place], str(target), *paths[place:], "--workers", "1"])
    names = read_classes(target / "classes.txt").classes
    numbers = np.array(
        [CLASSES.index(name) + 1 if name in CLASSES else 0 for name in names] + [255] * (256 - len(names))
    )
    different = inner = total = 0
    for path in sorted((folder / "truth").iterdir()):
        made = target / "labels/train" / path.name
        made = made if made.is_file() else next(made.parent.glob(f"*{path.stem}.png"))
        found, truth = numbers[np.asarray(Image.open(made))], np.asarray(Image.open(path)).astype(int)
        wrong = found != truth
        different, total = different + wrong.sum(), total + wrong.size
        inner += (wrong & ~(edges(found) | edges(truth))).sum()
    return f"{different} of {total} pixels differ ({100 * different / total:.3f}%), {inner} of them not on outlines"


def edges(labels: np.ndarray) -> np.ndarray:
    """Pixels that have another label among their eight neighbors."""
    near = np.lib.stride_tricks.sliding_window_view(np.pad(labels, 1, mode="edge"), (3, 3))
    return near.min((2, 3)) != near.max((2, 3))


KINDS = {
    writer.__name__: writer
    for writer in (
        *(coco, coco_rle, coco_counts, labelme, studio_brush, studio_pngs, studio_polygons, studio_yolo, studio_coco),
        *(cvat_sdk, cvat, voc, datumaro_coco, supervisely),
    )
}


def main() -> None:
    if sys.argv[1:2] == ["write"]:
        folder = Path(sys.argv[3])
        (folder / "command.json").write_text(json.dumps(KINDS[sys.argv[2]](folder)))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tools", help="Python with labelme, pycocotools, label-studio-sdk and cvat-sdk")
    parser.add_argument("--datumaro", help="Python with datumaro[cli]")
    parser.add_argument("--supervisely", help="Python with supervisely")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    for kind in args.kinds:
        python = args.datumaro if kind in DATUMARO else args.supervisely if kind == "supervisely" else args.tools
        if python is None:
            print(f"{kind}: not tried")
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "set"
            folder.mkdir()
            subprocess.run([python, __file__, "write", kind, str(folder)], check=True, stdout=subprocess.DEVNULL)
            result = compare(folder, json.loads((folder / "command.json").read_text()))
        print(f"{kind}: {result}", flush=True)


if __name__ == "__main__":
    main()
