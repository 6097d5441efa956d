"""Label Studio's ML backend serves `examples/tools/label_studio_backend.py`, and its converter reads the masks back."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from label_sources import Made
from ports import free_port
from segmentation import scenes
from segnext_timm import predict
from small_models import narrow

SCRIPT = Path(__file__).parents[2] / "examples" / "tools" / "label_studio_backend.py"
pytestmark = pytest.mark.slow


class Images(http.server.SimpleHTTPRequestHandler):
    """Serves the images, as Label Studio's server does."""

    def log_message(self, *arguments):
        pass


def interface(kind, *labels):
    """A labeling interface; labels are names, or names with further attributes."""
    labels = "".join(f'<Label value="{label}"/>' if '"' not in label else f"<Label value={label}/>" for label in labels)
    return f'<View><Image name="img" value="$photo"/><{kind} name="tag" toName="img">{labels}</{kind}></View>'


class Backend:
    """The script's server in a process; `post` and `get` speak with it as Label Studio does."""

    def __init__(self, folder, model, images):
        self.folder, self.images, port = folder, images, free_port()
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, SCRIPT, model, "--port", str(port), "--device", "cpu"]
        settings = {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "data")}
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log)
        while self.process.poll() is None:
            try:
                self.get("/health")
                return
            except urllib.error.URLError:
                time.sleep(0.1)
        raise AssertionError((folder / "log").read_text())

    def get(self, path):
        return json.load(urllib.request.urlopen(self.address + path, timeout=60))

    def post(self, path, **content):
        request = urllib.request.Request(self.address + path, json.dumps(content).encode())
        request.add_header("Content-Type", "application/json")
        return json.load(urllib.request.urlopen(request, timeout=60))

    def set_up(self, config):
        return self.post("/setup", project="1.1700000000", schema=config, hostname="http://x", extra_params=None)

    def predict(self, config, count=1):
        tasks = [{"id": n + 1, "data": {"photo": f"{self.images}/{n}.png"}} for n in range(count)]
        params = {"login": "", "password": "", "context": None}
        content = {"tasks": tasks, "project": "1.1700000000", "label_config": config, "params": params}
        return tasks, self.post("/predict", **content)["results"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A running backend and what its model predicts for two images of different sizes."""
    pytest.importorskip("label_studio_ml.response", reason="Label Studio's ML backend 2 is not installed")
    folder = tmp_path_factory.mktemp("backend")
    torch.manual_seed(0)
    cfg = {"mean": [0.4] * 3, "std": [0.25] * 3, "label_names": list(scenes.CLASSES)}
    model = narrow(classes=len(scenes.CLASSES), pretrained_cfg=cfg).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    model.save_pretrained(folder / "model")
    (folder / "images").mkdir()
    predicted = []
    for number in range(2):
        path = folder / f"images/{number}.png"
        Image.fromarray(scenes.draw(0, number, 96)[0][:, 16 * number :]).save(path)
        predicted.append(predict(model, path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Images, directory=folder / "images"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    backend = Backend(folder, "model", f"http://127.0.0.1:{server.server_port}")
    yield backend, predicted
    backend.process.terminate()
    backend.process.wait()
    server.shutdown()


def decode(result):
    from label_studio_sdk.converter import brush

    shape = (result["original_height"], result["original_width"], 4)
    return brush.decode_rle(result["value"]["rle"]).reshape(shape)[..., 3] > 0


def test_the_server_is_up_and_set_up(served):
    backend, _ = served
    assert backend.get("/health") == {"model_class": "Backend", "status": "UP"}
    assert backend.set_up(interface("BrushLabels", *scenes.CLASSES)) == {"model_version": "model"}


def test_brush_masks_are_the_labels_of_predict(served):
    from label_studio_sdk.label_interface import LabelInterface

    backend, predicted = served
    config = interface("BrushLabels", *scenes.CLASSES)
    _, predictions = backend.predict(config, 2)
    for expected, prediction in zip(predicted, predictions):
        assert prediction["model_version"] == "model"
        assert LabelInterface(config).validate_prediction(prediction)
        found = np.full(expected.shape, -1)
        for result in prediction["result"]:
            assert (result["from_name"], result["to_name"], result["type"]) == ("tag", "img", "brushlabels")
            found[decode(result)] = scenes.CLASSES.index(*result["value"]["brushlabels"])
        assert np.array_equal(found, expected)
        assert len(prediction["result"]) == len(np.unique(expected))


@pytest.mark.parametrize("form", ["JSON", "JSON_MIN", "BRUSH_TO_PNG", "polygons"])
def test_accepted_predictions_come_back_from_label_studios_exports(form, served, tmp_path):
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.converter.converter import Format

    backend, predicted = served
    config = interface("PolygonLabels" if form == "polygons" else "BrushLabels", *scenes.CLASSES)
    tasks, predictions = backend.predict(config, 2)
    for task, prediction in zip(tasks, predictions):  # as the server keeps them once an annotator has submitted them
        common = {"was_cancelled": False, "completed_by": {"email": "a@b.c"}, "id": 10 + task["id"]}
        task["annotations"] = [common | {"result": prediction["result"]}]
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    options = {"background": "-"}
    export = tmp_path / "project.json"
    if form != "polygons":
        (tmp_path / "export").mkdir()
        converter = Converter(config=config, project_dir=str(tmp_path), download_resources=False)
        converter.convert(str(export), str(tmp_path / "export"), Format.from_string(form), is_dir=False)
        if form == "BRUSH_TO_PNG":
            options["tasks"] = export
        export = tmp_path / "export" if form == "BRUSH_TO_PNG" else next((tmp_path / "export").glob("*.json"))
    made = Made("labelstudio", backend.folder / "images", export, tmp_path / "data", **options)
    order = np.array([scenes.CLASSES.index(name) for name in made.classes])
    assert not made.skipped
    for number, expected in enumerate(predicted):
        assert np.array_equal(order[made.labels[str(number)]], expected)


def test_labels_are_matched_by_the_rules_of_label_studio(served, capfd):
    backend, predicted = served
    config = interface("BrushLabels", "Road", '"Green" predicted_values="grass, tree"', "boat")
    _, (prediction,) = backend.predict(config)
    found = {result["value"]["brushlabels"][0]: decode(result) for result in prediction["result"]}
    road, grass, tree = (predicted[0] == scenes.CLASSES.index(name) for name in ("road", "grass", "tree"))
    assert {name: mask.sum() for name, mask in found.items()} == {"Road": road.sum(), "Green": (grass | tree).sum()}
    assert np.array_equal(found["Green"], grass | tree)
    backend.predict(config)
    said = [line for line in (backend.folder / "log").read_text().splitlines() if "boat" in line]
    assert len(said) == 1
    assert (
        "No class of model for boat: rename labels in the labeling interface, or write <Label predicted_va" in said[0]
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (interface("RectangleLabels", "car"), "needs <BrushLabels> or <PolygonLabels> for an <Image>."),
        (interface("BrushLabels", "ship"), "No class of model for ship: rename labels"),
    ],
)
def test_an_interface_that_does_not_fit_the_model_is_refused_in_one_line(config, reason, served):
    backend, _ = served
    with pytest.raises(urllib.error.HTTPError) as raised:
        backend.set_up(config)
    detail = json.load(raised.value)["detail"]
    assert raised.value.code == 500
    assert reason in detail
    assert "\n" not in detail


def test_an_unknown_model_is_one_line(tmp_path):
    pytest.importorskip("label_studio_ml.response", reason="Label Studio's ML backend 2 is not installed")
    done = subprocess.run([sys.executable, SCRIPT, "none"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("label_studio_backend.py: none")
