"""LitServe's server and Triton's model repository give the labels of predict."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from lively_models import tiny
from ports import free_port
from segmentation import scenes
from segnext_timm import load_segmenter, predict

TOOLS = Path(__file__).parents[2] / "examples" / "tools"
CFG = {"mean": [0.5] * 3, "std": [0.25] * 3, "label_names": list("abcde"), "palette": [[i, 0, 9] for i in range(5)]}
pytestmark = pytest.mark.slow


def save_model(folder):
    model = tiny(pretrained_cfg=CFG)
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    model.save_pretrained(folder)
    return folder


def upload(index, size=96, kind="png"):
    file = io.BytesIO()
    Image.fromarray(scenes.draw(0, index, size)[0]).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a running server of two images at once, and its model's folder."""
    pytest.importorskip("litserve")
    pytest.importorskip("requests")
    folder = save_model(tmp_path_factory.mktemp("served") / "model")
    process, url = start(folder, "--batch", 2, "--max_pixels", 40_000, "--max_bytes", 1_000_000)
    try:
        wait_until_ready(url, process)
        yield f"{url}/predict", folder
    finally:
        process.terminate()
        assert process.wait(30) == 0


def start(*arguments):
    """Start a server in a group of its own; returns its process and its address."""
    port = free_port()
    command = [sys.executable, TOOLS / "serve_litserve.py", *arguments, "--port", port]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(list(map(str, command)), **options), f"http://127.0.0.1:{port}"


def wait_until_ready(url, process, seconds=120):
    import requests

    for _ in range(seconds * 4):
        assert process.poll() is None, process.stderr.read()
        try:
            if requests.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except (requests.ConnectionError, requests.Timeout):
            pass
        time.sleep(0.25)
    raise TimeoutError(url)


def post(server, content, **parameters):
    import requests

    return requests.post(server[0], files={"image": content}, params=parameters, timeout=60)


def test_the_server_s_labels_are_those_of_predict_for_images_of_several_sizes_at_once(server):
    uploads = [upload(index, (96, 128)[index % 2], ("png", "jpeg")[index % 2]) for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda content: post(server, content), uploads))
    model = load_segmenter(server[1])
    for content, answer in zip(uploads, answers):
        assert answer.headers["content-type"] == "image/png"
        labels = Image.open(io.BytesIO(answer.content))
        assert labels.getpalette()[3:6] == [1, 0, 9]
        assert np.array_equal(np.asarray(labels), predict(model, Image.open(io.BytesIO(content))))


def test_the_server_answers_areas_as_json(server):
    areas = post(server, upload(0), answer="areas").json()
    assert sum(area["pixels"] for area in areas) == 96 * 96
    assert {area["name"] for area in areas} <= set("abcde")


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"no image", 422, "The upload is no whole image (UnidentifiedImageError): send a JPEG, PNG or the like."),
        (upload(0, kind="jpeg")[:2000], 422, "The upload is no whole image (OSError): send a JPEG, PNG or the like."),
        (upload(0, 201), 422, "The image has 40401 pixels; at most 40000 are allowed."),
        (bytes(1_100_000), 413, "Payload too large"),
        (b"", 422, "The upload is no whole image (UnidentifiedImageError): send a JPEG, PNG or the like."),
    ],
    ids=["text", "cut", "too many pixels", "too many bytes", "empty"],
)
def test_a_bad_upload_is_answered_in_one_line_and_does_not_fail_the_others(server, content, status, detail):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: post(server, one), [upload(1), content, upload(2), content]))
    assert [answer.status_code for answer in answers] == [200, status, 200, status]
    assert answers[1].json() == {"detail": detail}


def test_a_batch_of_one_size_gives_the_labels_of_predict(tmp_path, monkeypatch):
    pytest.importorskip("litserve")
    monkeypatch.syspath_prepend(TOOLS)
    from serve_litserve import Server

    served = Server(str(save_model(tmp_path)), batch=4, max_pixels=1 << 20)
    served.setup("cpu")
    images = [served.decode_request((upload(index), "labels"), {}) for index in range(3)]
    for image, labels in zip(images, served.label(images)):  # as on a GPU
        assert np.array_equal(labels, predict(served.model, image, scaled=True))


@pytest.mark.parametrize(("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)])
def test_sigterm_and_ctrl_c_end_the_server_and_its_processes_in_one_line(tmp_path, send, number):
    pytest.importorskip("litserve")
    pytest.importorskip("requests")
    process, url = start(save_model(tmp_path / "model"))
    try:
        wait_until_ready(url, process)
        others = psutil.Process(process.pid).children(recursive=True)
        send(process.pid, number)
        assert process.wait(60) == 0
        said = process.stderr.read()
    finally:
        process.kill()
    assert said.splitlines()[-1] == "serve_litserve.py: stopped"
    assert "Traceback" not in said
    assert len(others) >= 3
    assert psutil.wait_procs(others, 30)[1] == []


def test_an_unknown_model_is_told_before_the_server_starts(tmp_path):
    pytest.importorskip("litserve")
    command = [sys.executable, TOOLS / "serve_litserve.py", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("serve_litserve.py: ")


def test_triton_s_repository_fits_its_schema_and_its_graph(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    folder = save_model(tmp_path / "model")
    command = [sys.executable, TOOLS / "to_triton.py", folder, tmp_path / "segnext", "--size", "64x96", "--batch", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "segnext" / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config.ModelConfig())
    assert (config.name, config.platform, config.max_batch_size) == ("segnext", "onnxruntime_onnx", 4)
    assert config.HasField("dynamic_batching")
    session = onnxruntime.InferenceSession(tmp_path / "segnext" / "1" / "model.onnx")
    types = {"tensor(float)": model_config.TYPE_FP32, "tensor(int64)": model_config.TYPE_INT64}
    for configured, known in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        (one,), (other,) = configured, known
        assert (one.name, one.data_type) == (other.name, types[other.type])
        assert isinstance(other.shape[0], str)  # any number of images
        assert len(one.dims) == len(other.shape) - 1
        assert all(isinstance(side, str) or side == dim for side, dim in zip(other.shape[1:], one.dims))
    assert list(config.input[0].dims) == [3, 64, 96]
    assert json.loads(config.parameters["label_names"].string_value) == list("abcde")

    images = torch.randint(0, 256, (4, 3, 64, 96), generator=torch.Generator().manual_seed(0)) / 255
    (labels,) = session.run(None, {"images": ((images - 0.5) / 0.25).numpy()})
    model = load_segmenter(folder)
    assert (labels == np.stack([predict(model, image) for image in images])).mean() > 0.9999
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stderr.splitlines()[-1].endswith("exists: choose another name, or delete it")
