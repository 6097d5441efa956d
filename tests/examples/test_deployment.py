"""The scripts of examples/deployment give the model's labels; all but AOTInductor's in a process without torch."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segnext_timm import export
from segnext_timm.prediction.pipeline import predict
from small_models import narrow

FOLDER = Path(__file__).parents[2] / "examples" / "deployment"
pytestmark = pytest.mark.slow
START = "import sys, runpy; del sys.argv[0]; sys.path.insert(0, {folder!r}); "
WITHOUT_TORCH = START + "sys.modules['torch'] = None; "
CASES = [
    ("run_onnxruntime.py", "model.onnx", ("onnx", "onnxruntime"), {"argmax": True}),
    ("run_onnxruntime.py", "model.onnx", ("onnx", "onnxruntime"), {}),
    ("run_openvino.py", "model.onnx", ("openvino",), {"argmax": True}),
    ("run_litert.py", "model.tflite", ("litert_torch",), {"argmax": True}),
    ("run_ncnn.py", "model.ncnn", ("pnnx", "ncnn"), {}),
    ("run_aotinductor.py", "model.pt2", (), {"argmax": True, "portable": True}),
]


@pytest.mark.parametrize(("script", "file", "needs", "options"), CASES)
def test_the_script_gives_the_model_s_labels(script, file, needs, options, tmp_path, monkeypatch):
    for package in needs:
        pytest.importorskip(package)
    torch.manual_seed(0)
    cfg = {"mean": [0.5] * 3, "std": [0.25] * 3, "label_names": ["sky", "road", "car"]}
    cfg |= {"palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
    model = narrow(pretrained_cfg=cfg).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).resize((96, 64), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.png")
    if file.endswith((".tflite", ".ncnn")):
        monkeypatch.syspath_prepend(FOLDER)  # its scripts import each other by name
        converter, converting = map(importlib.import_module, (script[:-3].replace("run", "to"), "converting"))
        converting.write(model, tmp_path / file, (64, 96), converter.convert, converter.execute, **options)
    else:
        export(model, tmp_path / file, (1, 3, 64, 96), **options)
    start = START if script == "run_aotinductor.py" else WITHOUT_TORCH
    code = start.format(folder=str(FOLDER)) + f"runpy.run_path({str(FOLDER / script)!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, script, file, "photo.png", "labels.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with Image.open(tmp_path / "labels.png") as labels:
        assert labels.size == (96, 64)
        assert labels.getpalette()[3:6] == [4, 5, 6]
        found = np.asarray(labels)
    expected = predict(model, tmp_path / "photo.png", mode="whole")
    assert (found == expected).mean() > 0.999
    assert {line.split(":")[0] for line in done.stdout.splitlines() if "%" in line} <= {"sky", "road", "car"}


def test_a_graph_of_any_size_labels_a_photo_at_the_model_s_scale(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = narrow(pretrained_cfg={"mean": [0.5] * 3, "std": [0.25] * 3, "fit_in": [160, 120]}).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    export(model, tmp_path / "model.onnx", (1, 3, 64, 96), dynamic=True, argmax=True)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    command = [sys.executable, FOLDER / "run_onnxruntime.py", "model.onnx", "photo.png", "labels.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    larger = photo.resize((160, 96), Image.Resampling.BILINEAR)
    expected = Image.fromarray(predict(model, larger, fit_in=None)).resize((80, 48), Image.Resampling.NEAREST)
    assert (np.asarray(Image.open(tmp_path / "labels.png")) == np.asarray(expected)).mean() > 0.999


def test_a_mistake_is_one_line(tmp_path):
    pytest.importorskip("onnxruntime")
    model = narrow(pretrained_cfg={"mean": [0.5] * 3, "std": [0.25] * 3}).eval()
    export(model, tmp_path / "model.onnx", (1, 3, 64, 96))
    (tmp_path / "photo.png").write_bytes(b"broken")
    for words, code, message in (
        (("model.onnx",), 2, "error: the following arguments are required: image, result"),
        (("model.onnx", "none.jpg", "labels.png"), 2, "error: none.jpg does not exist"),
        (("model.onnx", "photo.png", "labels.jpg"), 2, "error: labels.jpg: labels are written as PNG"),
        (("model.onnx", "photo.png", "labels.png"), 1, "run_onnxruntime.py: cannot identify image file"),
    ):
        command = [sys.executable, FOLDER / "run_onnxruntime.py", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == code
        assert message in done.stderr.splitlines()[-1]


def test_the_operators_of_graphs_are_listed_side_by_side(tmp_path):
    onnx = pytest.importorskip("onnx")
    files = [export(narrow().eval(), tmp_path / f"{argmax}.onnx", (1, 3, 64, 64), argmax=argmax) for argmax in (0, 1)]
    done = subprocess.run([sys.executable, FOLDER / "list_operators.py", *files], capture_output=True, text=True)
    rows = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in done.stdout.splitlines()}
    graph = onnx.load(files[0]).graph
    assert int(rows["Conv"][0]) == sum(node.op_type == "Conv" for node in graph.node)
    assert sum(int(row[0]) for name, row in rows.items() if row and row[0].strip().isdigit()) == len(graph.node)
    done = subprocess.run([sys.executable, FOLDER / "list_operators.py", "none.onnx"], capture_output=True, text=True)
    assert done.stderr == "list_operators.py: none.onnx: give .onnx files or .mlpackage folders that exist\n"
