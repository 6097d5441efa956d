"""CVAT's command line, driver and masks run `examples/tools/cvat_function.py`, against a CVAT server on loopback."""

import contextlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from label_sources import Made
from segmentation import scenes
from segnext_timm import predict
from small_models import narrow

FUNCTION = Path(__file__).parents[2] / "examples" / "tools" / "cvat_function.py"
SIZES = ((96, 96), (80, 96))  # width and height of the task's images
pytestmark = pytest.mark.slow


class Server(http.server.BaseHTTPRequestHandler):
    """The answers that CVAT's client needs to annotate task 7; `uploaded` are the shapes that it sends."""

    labels: tuple[tuple[str, str], ...]  # names and types
    chunk: bytes
    uploaded: list[dict]

    def do_GET(self):
        labels = [
            {"id": 10 + n, "name": name, "type": kind, "color": "#ff0000", "attributes": [], "sublabels": []}
            for n, (name, kind) in enumerate(self.labels)
        ]
        task = {"id": 7, "size": 2, "data_chunk_size": 2, "data_original_chunk_type": "imageset", "organization": None}
        task |= {"jobs": {"completed": 0, "validation": 0}, "labels": {}, "updated_date": "2026-01-01T00:00:00Z"}
        frames = [{"name": f"{n}.png", "width": w, "height": h, "related_files": 0} for n, (w, h) in enumerate(SIZES)]
        meta = {"chunks_updated_date": "2026-01-01T00:00:00Z", "frames": frames, "deleted_frames": []}
        about = dict.fromkeys(("name", "description", "logo_url", "subtitle"), "") | {"version": "2.80.0"}
        answers = {"server/about": about, "tasks/7": task, "tasks/7/data/meta": meta, "tasks/7/data": self.chunk}
        answers["labels"] = {"count": len(labels), "results": labels, "next": None, "previous": None}
        self.answer(answers.get(self.path.split("?")[0].removeprefix("/api/").rstrip("/")))

    def do_PATCH(self):
        self.uploaded += json.loads(self.rfile.read(int(self.headers["Content-Length"])))["shapes"]
        self.answer({"version": 1, "tags": [], "shapes": [], "tracks": []})

    def answer(self, content):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Type", "application/zip" if body is content else "application/vnd.cvat+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def cvat(images, labels):
    """A CVAT server with task 7; yields its address and a list of the shapes that are uploaded."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as chunk:
        for path in images:
            chunk.write(path, path.name)
    state = {"labels": labels, "chunk": content.getvalue(), "uploaded": []}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Cvat", (Server,), state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", state["uploaded"]
    server.shutdown()


def annotate(address, home, *options, model):
    """Run `cvat-cli task auto-annotate`; its cache is in `home`."""
    command = [sys.executable, "-m", "cvat_cli", "--server-host", address, "task", "auto-annotate", "7"]
    command += ["--function-file", FUNCTION, "-p", f"model=str:{model}", "-p", "device=str:cpu", *options]
    environment = os.environ | {"CVAT_ACCESS_TOKEN": "token", "XDG_CACHE_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def model(tmp_path):
    """Save a model that finds several of its classes; returns it and its folder."""

    def save(*names):
        torch.manual_seed(0)
        cfg = {"mean": [0.4] * 3, "std": [0.25] * 3, "label_names": list(names)}
        made = narrow(classes=len(names), pretrained_cfg=cfg).eval()
        torch.nn.init.normal_(made.segmentation_head[0].weight)
        made.save_pretrained(tmp_path / "model")
        return made

    return save


@pytest.fixture
def images(tmp_path):
    """Draw the images of the task."""
    (tmp_path / "images").mkdir()
    paths = [tmp_path / f"images/{number}.png" for number in range(len(SIZES))]
    for number, (path, (width, _)) in enumerate(zip(paths, SIZES)):
        Image.fromarray(scenes.draw(0, number, 96)[0][:, :width]).save(path)
    return paths


def exported(folder, shapes, labels):
    """Write shapes as CVAT's server exports them ("CVAT for images 1.1"), as far as `prepare_labels.py` reads it."""
    parts = dict.fromkeys(range(len(SIZES)), "")
    for shape in shapes:
        common = f'label="{labels[shape["label_id"] - 10][0]}" source="{shape["source"]}" occluded="0" z_order="0"'
        if shape["type"] == "mask":
            *runs, left, top, right, bottom = map(int, shape["points"])
            box = f'left="{left}" top="{top}" width="{right - left + 1}" height="{bottom - top + 1}"'
            parts[shape["frame"]] += f'<mask {common} rle="{str(runs)[1:-1]}" {box}></mask>'
        else:
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in np.reshape(shape["points"], (-1, 2)))
            parts[shape["frame"]] += f'<polygon {common} points="{points}"></polygon>'
    named = "".join(f"<label><name>{name}</name><type>{kind}</type></label>" for name, kind in labels)
    pictures = (
        f'<image id="{n}" name="{n}.png" width="{w}" height="{h}">{parts[n]}</image>' for n, (w, h) in enumerate(SIZES)
    )
    meta = f"<meta><task><labels>{named}</labels></task></meta>"
    (folder / "annotations.xml").write_text(f"<annotations>{meta}{''.join(pictures)}</annotations>")
    return folder / "annotations.xml"


@pytest.mark.parametrize("kind", ["mask", "polygon"])
def test_cvats_command_line_uploads_the_labels_of_predict_and_they_come_back(kind, model, images, tmp_path):
    pytest.importorskip("cvat_cli")
    masks = pytest.importorskip("cvat_sdk.masks")
    predicted = [predict(model(*scenes.CLASSES), path) for path in images]
    labels = tuple((name, kind) for name in scenes.CLASSES)
    with cvat(images, labels) as (address, shapes):
        options = ["--conv-mask-to-poly"] if kind == "polygon" else []
        done = annotate(address, tmp_path / "cache", *options, model=tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert {shape["type"] for shape in shapes} == {kind}
    if kind == "mask":  # one for each class that is found
        for frame, expected in enumerate(predicted):
            mine = [shape for shape in shapes if shape["frame"] == frame]
            assert sorted(shape["label_id"] - 10 for shape in mine) == np.unique(expected).tolist()
            for shape in mine:
                width, height = SIZES[frame]
                mask = masks.decode_mask(shape["points"], image_width=width, image_height=height)
                assert np.array_equal(mask, expected == shape["label_id"] - 10)
    xml = exported(tmp_path, shapes, labels)
    made = Made("cvat", tmp_path / "images", xml, tmp_path / "data", background="-")
    assert made.classes == scenes.CLASSES
    for frame, expected in enumerate(predicted):
        assert np.array_equal(made.labels[str(frame)], expected)


def test_labels_that_the_task_lacks_are_named_and_left_out_on_request(model, images, tmp_path):
    pytest.importorskip("cvat_cli")
    expected = predict(model("background", "road"), images[0])
    with cvat(images, (("road", "any"), ("car", "any"))) as (address, shapes):
        done = annotate(address, tmp_path / "cache", model=tmp_path / "model")
        assert done.returncode != 0
        assert done.stderr.splitlines()[-1].endswith("label 'background' is not in dataset")
        done = annotate(address, tmp_path / "cache", "--allow-unmatched-labels", model=tmp_path / "model")
        assert done.returncode == 0, done.stderr
    assert [shape["label_id"] for shape in shapes] == [10, 10]
    assert sum(map(int, shapes[0]["points"][1:-4:2])) == (expected == 1).sum()


def test_an_unknown_model_is_one_line(images, tmp_path):
    pytest.importorskip("cvat_cli")
    with cvat(images, ()) as (address, _):
        done = annotate(address, tmp_path / "cache", model=tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr.startswith(f"cvat_function.py: {tmp_path / 'none'}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("names", [scenes.CLASSES, ("road",)], ids=["classes", "binary"])
@pytest.mark.parametrize("polygons", [False, True], ids=["masks", "polygons"])
def test_pixels_below_the_threshold_stay_unlabeled(names, polygons, model, images, tmp_path, monkeypatch):
    masks = pytest.importorskip("cvat_sdk.masks")
    tools = pytest.importorskip("pycocotools.mask")
    monkeypatch.syspath_prepend(str(FUNCTION.parent))
    import cvat_function

    labels, probabilities = predict(model(*names), images[0], probabilities=True)
    threshold = float(np.median(probabilities.max(0)[labels == labels.max()]))
    function = cvat_function.create(str(tmp_path / "model"), "cpu")
    context = SimpleNamespace(frame_name="0.png", conf_threshold=threshold, conv_mask_to_poly=polygons)
    image = Image.open(images[0])
    found = np.full(labels.shape, -1)
    for shape in function.detect(context, image):
        if polygons:
            mask = tools.decode(tools.merge(tools.frPyObjects([shape.points], *labels.shape))) > 0
        else:
            mask = masks.decode_mask(shape.points, image_width=image.width, image_height=image.height)
        assert (found[mask] == -1).all()
        found[mask] = shape.label_id
    sure = probabilities.max(0) >= threshold
    expected = np.where(sure & (labels >= (len(names) == 1)), labels.astype(int), -1)
    assert np.array_equal(found, expected)
    assert sure.any()
    assert not sure.all()
