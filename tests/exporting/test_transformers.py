"""Folders for transformers and transformers.js, loaded and run by these libraries' own code, without a network."""

import base64
import copy
import functools
import http.server
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import hub_server
import segnext_timm
from lively_models import lively
from segmentation import scenes
from segnext_timm import export, predict
from segnext_timm.cli import main
from small_models import narrow

FACTS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "label_names": [*scenes.CLASSES], "dataset": "Scenes"}
SIZES = [(224, 224), (150, 203)]  # height and width


def trained(classes=7, **facts):
    """A narrow model, trained for a few steps on scenes: labels of random weights are decided by noise."""
    torch.manual_seed(0)
    names = [*scenes.CLASSES] if classes > 1 else ["road"]
    model = narrow(classes=classes, pretrained_cfg={**FACTS, "label_names": names, **facts})
    drawn = [scenes.draw(1, index, 96) for index in range(8)]
    images = torch.from_numpy(np.stack([pixels for pixels, _ in drawn])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(FACTS[key])[:, None, None] for key in ("mean", "std"))
    target = torch.from_numpy(np.stack([labels for _, labels in drawn])).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        logits = model((images - mean) / std)
        road = (target == scenes.ROAD).float()
        cross_entropy = torch.nn.functional.cross_entropy
        binary = torch.nn.functional.binary_cross_entropy_with_logits
        loss = cross_entropy(logits, target) if classes > 1 else binary(logits[:, 0], road)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def photos():
    return [Image.fromarray(scenes.draw(0, i, 224)[0]).resize(size[::-1]) for i, size in enumerate(SIZES)]


# The folders, without the libraries


def test_a_folder_for_transformers_is_written_without_transformers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = lively(narrow(pretrained_cfg={**FACTS, "label_names": list("abc"), "fit_in": [512, 256]}))
    assert export(model, tmp_path / "folder", target="transformers") == tmp_path / "folder"
    names = {path.name for path in (tmp_path / "folder").iterdir()}
    expected = {"README.md", "config.json", "handler.py", "model.safetensors", "modeling_segnext.py"}
    assert names == expected | {"preprocessor_config.json"}
    config, processor = (
        json.loads((tmp_path / "folder" / name).read_text()) for name in ("config.json", "preprocessor_config.json")
    )
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert config["label2id"] == {"a": 0, "b": 1, "c": 2}
    assert processor["image_mean"] == FACTS["mean"]
    assert processor["size"] == {"longest_edge": 512, "shortest_edge": 256}
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    assert weights.keys() == {f"model.{name}" for name in model.state_dict()}
    assert all(torch.equal(weights[f"model.{name}"], x) for name, x in model.state_dict().items())
    card = ModelCard.load(tmp_path / "folder" / "README.md")
    assert card.data.library_name == "transformers"
    assert 'pipeline("image-segmentation", ".", trust_remote_code=True)' in card.text


def test_a_folder_is_written_again_but_not_over_another_model(tmp_path):
    for _ in range(2):
        export(narrow(pretrained_cfg=FACTS, classes=7), tmp_path, target="transformers")
    with pytest.raises(ValueError, match="holds another model: choose a new folder"):
        export(narrow(pretrained_cfg={"mean": FACTS["mean"], "std": FACTS["std"]}), tmp_path, target="transformers")
    narrow().save_pretrained(tmp_path / "smp")
    before = (tmp_path / "smp" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="holds another model"):
        export(narrow(), tmp_path / "smp", target="transformers")
    assert (tmp_path / "smp" / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "model.onnx"}, "model.onnx: transformers reads a folder: choose the name of one"),
        ({"argmax": True}, "takes logits, of images of any size: leave argmax and dynamic out"),
        ({"dynamic": True}, "leave argmax and dynamic out"),
        ({"precision": "fp16"}, "transformers can be fp32, not 'fp16'"),
        ({"resolution": 10}, "Deepness, and no other target, needs a resolution"),
        ({"range": [0, 3000]}, "three channels of bytes, but this model takes 3 channels, .* of values from .0, 3000."),
        ({"bands": [3, 2, 1]}, r"this model takes 3 channels, bands \(3, 2, 1\)"),
        ({"model": lambda: smp.Unet("tu-test_mscan", encoder_weights=None)}, "gets SegNeXt, on any encoder, not Unet"),
        ({"model": lambda: narrow(in_channels=4)}, "this model takes 4 channels"),
        ({"model": lambda: segnext_timm.fuse(narrow().eval())}, "A fused model cannot be saved"),
    ],
)
def test_what_transformers_does_not_read_is_refused(options, message, tmp_path):
    model = options.pop("model", narrow)()
    facts = {key: options.pop(key) for key in ("range", "bands") if key in options}
    model.pretrained_cfg = {**{key: [0.5] * model.in_channels for key in ("mean", "std")}, **facts} if facts else {}
    path = tmp_path / options.pop("path", "folder")
    with pytest.raises(ValueError, match=message):
        export(model, path, target="transformers", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_goes_to_the_hub_with_its_card_and_nothing_else(tmp_path):
    folder = export(narrow(pretrained_cfg=FACTS, classes=7), tmp_path / "folder", target="transformers")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    with hub_server.serve() as server, hub_server.client(server.url, tmp_path / "hf", "hf_writer"):
        segnext_timm.push_to_hub(folder, "writer/streets", card={"license": "mit"})
    files = server.repos["writer/streets"].branches["main"]
    names = {"README.md", "config.json", "handler.py", "model.safetensors", "modeling_segnext.py"}
    assert set(files) == names | {"preprocessor_config.json"}
    card = ModelCard(files["README.md"].decode())
    assert 'pipeline("image-segmentation", "writer/streets", trust_remote_code=True)' in card.text
    assert card.data.license == "mit"
    assert json.loads(files["config.json"])["segmenter"]["pretrained_cfg"]["license"] == "mit"


def test_the_command_writes_a_folder(tmp_path):
    narrow(pretrained_cfg=FACTS, classes=7).save_pretrained(tmp_path / "mine")
    arguments = ["export", str(tmp_path / "mine"), str(tmp_path / "folder"), "--target", "transformers"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert f"Wrote {tmp_path / 'folder'} (" in done.output
    assert (tmp_path / "folder" / "handler.py").is_file()


# transformers


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """The library, without a network and with a cache of its own for the code of folders."""
    library = pytest.importorskip("transformers")
    from transformers import dynamic_module_utils

    cache = str(tmp_path_factory.mktemp("modules"))
    with (
        mock.patch.object(dynamic_module_utils, "HF_MODULES_CACHE", cache),
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
    ):
        yield library
    if cache in sys.path:  # once code of a folder was loaded
        sys.path.remove(cache)


def labels_of(found, names, size):
    """Labels (H, W) of masks; each pixel is in one."""
    masks = np.stack([np.array(one["mask"]) > 0 for one in found])
    assert (masks.sum(0) == 1).all()
    assert masks.shape[1:] == size
    return np.array([names[one["label"]] for one in found])[masks.argmax(0)]


@pytest.mark.slow
@pytest.mark.parametrize("classes", [7, 1], ids=["seven classes", "binary"])
def test_the_pipeline_gives_the_labels_of_predict(classes, transformers, photos, tmp_path):
    model = trained(classes)
    export(model, tmp_path, target="transformers")
    pipeline = transformers.pipeline("image-segmentation", str(tmp_path), trust_remote_code=True)
    names = {"background": 0, "road": 1} if classes == 1 else {name: i for i, name in enumerate(scenes.CLASSES)}
    assert pipeline.model.config.label2id == names
    for photo in photos * 2:  # the second call as the first
        right = predict(model, photo)
        assert len(np.unique(right)) > 1
        share = (labels_of(pipeline(photo), names, right.shape) == right).mean()
        print(f"{classes} classes, {photo.size}: {share:.4%} of the labels equal predict's")
        assert share > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("fit_in", [(192, 96), (160, 110)], ids=["whole pixels", "rounded down"])
def test_images_are_resized_to_fit_as_by_predict(fit_in, transformers, photos, tmp_path):
    model = trained(fit_in=list(fit_in))
    export(model, tmp_path, target="transformers")
    pipeline = transformers.pipeline("image-segmentation", str(tmp_path), trust_remote_code=True)
    photo = photos[1].resize((192, 144))
    right = predict(model, photo)
    found = labels_of(pipeline(photo), pipeline.model.config.label2id, right.shape)
    share = (found == right).mean()  # predict resizes the maps to the resized image, and then to the photo
    print(f"fit_in {fit_in}, {photo.size}: {share:.4%} of the labels equal predict's")
    assert share > 0.98


@pytest.mark.slow
def test_the_endpoint_answers_pictures_and_texts(model, transformers, photos, tmp_path):
    export(model, tmp_path, target="transformers")
    spec = importlib.util.spec_from_file_location("handler", tmp_path / "handler.py")
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    endpoint, file = handler.EndpointHandler(str(tmp_path)), io.BytesIO()
    photos[0].save(file, "PNG")
    for inputs in (photos[0], base64.b64encode(file.getvalue()).decode()):
        masks = endpoint({"inputs": inputs})
        names = {name: i for i, name in enumerate(scenes.CLASSES)}
        right = predict(model, photos[0])
        assert (labels_of(masks, names, right.shape) == right).mean() > 0.9999


@pytest.mark.slow
def test_trainer_fine_tunes_the_model_on_other_classes_and_saves_it_with_its_code(model, transformers, tmp_path):
    datasets = pytest.importorskip("datasets")
    export(model, tmp_path / "folder", target="transformers")
    names = {0: "road", 1: "else"}
    auto, options = transformers.AutoModelForSemanticSegmentation, {"trust_remote_code": True}
    tuned = auto.from_pretrained(
        tmp_path / "folder", id2label=names, label2id={"road": 0, "else": 1}, ignore_mismatched_sizes=True, **options
    )
    assert 0.005 < tuned.model.segmentation_head[0].weight.std() < 0.02
    assert torch.equal(tuned.model.encoder.model.stem.conv1.weight, model.encoder.model.stem.conv1.weight)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    drawn = [scenes.draw(2, index, 96) for index in range(8)]
    columns = {"image": [Image.fromarray(pixels) for pixels, _ in drawn]}
    columns["label"] = [Image.fromarray((labels != scenes.ROAD).astype(np.uint8)) for _, labels in drawn]
    scenes_set = datasets.Dataset.from_dict(columns).cast_column("label", datasets.Image())
    scenes_set = scenes_set.with_transform(lambda batch: processor(batch["image"], batch["label"]))
    arguments = transformers.TrainingArguments(
        tmp_path / "run", num_train_epochs=10, per_device_train_batch_size=4, learning_rate=3e-3, logging_steps=1,
        use_cpu=True, report_to=[], save_strategy="no", remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(tuned, arguments, train_dataset=scenes_set, processing_class=processor)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.75 * losses[0]
    trainer.save_model(tmp_path / "tuned")
    assert {"modeling_segnext.py", "preprocessor_config.json"} <= {path.name for path in (tmp_path / "tuned").iterdir()}
    loaded = auto.from_pretrained(tmp_path / "tuned", **options)
    assert loaded.config.id2label == names
    inputs = processor(drawn[0][0], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, tuned.eval()(**inputs).logits)
        assert loaded(**inputs, return_dict=False)[0].shape == (1, 2, 12, 12)
    # back to smp, with what is known of it
    loaded.model.save_pretrained(tmp_path / "smp")
    back = smp.from_pretrained(tmp_path / "smp").eval()
    assert back.pretrained_cfg["label_names"] == ["road", "else"]
    assert "dataset" not in back.pretrained_cfg
    labels = predict(back, drawn[0][0])
    logits = loaded(**inputs)
    assert (processor.post_process_semantic_segmentation(logits, [(96, 96)])[0].numpy() == labels).mean() > 0.9999


@pytest.mark.slow
def test_a_missing_package_is_named(transformers, tmp_path):
    export(narrow(pretrained_cfg=FACTS, classes=7), tmp_path, target="transformers")
    config = transformers.AutoConfig  # imported here
    absent = mock.Mock(find_spec=mock.Mock(side_effect=ModuleNotFoundError("No module named 'segnext_timm'")))
    with (
        mock.patch.dict(sys.modules),
        mock.patch.object(sys, "meta_path", [absent]),
        pytest.raises(ImportError, match=r"packages that were not found in your environment: segnext_timm") as caught,
    ):
        del sys.modules["segnext_timm"]
        config.from_pretrained(tmp_path, trust_remote_code=True)
    assert len(str(caught.value).splitlines()) == 1


# transformers.js


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A folder for transformers.js with files of all precisions."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("site") / "streets"
    calibration = [scenes.draw(2, index, 96)[0] for index in range(8)]
    for options in ({"precision": "int8", "calibration": calibration}, {"precision": "fp16"}, {}):
        export(model, folder, (1, 3, 96, 96), target="transformers.js", **options)
    export(fitted(model), folder.with_name("fitted"), (1, 3, 96, 96), target="transformers.js")
    return folder


def fitted(model):
    """A copy of a model that has its images resized."""
    model = copy.deepcopy(model)
    model.pretrained_cfg = {**model.pretrained_cfg, "fit_in": [160, 110]}
    return model


@pytest.fixture(scope="module")
def site(folder, photos):
    """The folder above, with npm's package; or a skip where npm is missing or has no registry."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed")
    site = folder.parent
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "@huggingface/transformers@4"]
    if subprocess.run(command, cwd=site, capture_output=True).returncode:
        pytest.skip("npm has no registry here")
    for index, photo in enumerate(photos):
        photo.save(site / f"{index}.png")
    (site / "segment.mjs").write_text(SEGMENT)
    return site


SEGMENT = """
export async function segment({ pipeline, env }, cases, images) {
  env.allowRemoteModels = false;
  const answers = [];
  for (const [folder, dtype] of cases) {
    const segmenter = await pipeline("image-segmentation", folder, dtype ? { dtype } : {});
    const answer = [];
    answers.push(answer);
    for (const image of images) {
      const found = await segmenter(image);
      const labels = new Array(found[0].mask.width * found[0].mask.height).fill("");
      found.forEach(({ label, mask }) => mask.data.forEach((value, pixel) => value && (labels[pixel] = label)));
      answer.push(labels);
    }
  }
  return answers;
}
"""
CASES = [("streets", ""), ("streets", "fp32"), ("streets", "fp16"), ("streets", "q8"), ("fitted", "fp32")]
LEAST = [0.9999, 0.9999, 0.99, 0.97, 0.8]  # shares of equal labels; the library shrinks photos without smoothing


def compare(answers, model, photos):
    for (folder, dtype), found, least in zip(CASES, answers, LEAST, strict=True):
        for labels, photo in zip(found, photos, strict=True):
            right = np.array(scenes.CLASSES)[predict(fitted(model) if folder == "fitted" else model, photo)]
            share = (np.array(labels).reshape(right.shape) == right).mean()
            print(f"{folder} {dtype or 'by default'}, {photo.size}: {share:.4%} of the labels equal predict's")
            assert share > least, (folder, dtype)


@pytest.mark.slow
def test_each_precision_is_a_file_by_the_name_of_transformers_js(folder):
    files = {path.name for path in (folder / "onnx").iterdir()}
    assert files == {"model.onnx", "model_fp16.onnx", "model_quantized.onnx"}
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "fp32"}
    onnxruntime = pytest.importorskip("onnxruntime")
    for file in (folder / "onnx").iterdir():
        session = onnxruntime.InferenceSession(file)
        assert ([x.name for x in session.get_inputs()], [x.name for x in session.get_outputs()]) == (
            ["pixel_values"],
            ["logits"],
        )
        assert session.run(None, {"pixel_values": np.zeros((1, 3, 75, 130), np.float32)})[0].shape == (1, 7, 10, 17)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers.js"
    assert 'pipeline("image-segmentation", ".")' in card.text
    assert "`config.json` says `segformer`" in card.text


@pytest.mark.slow
def test_a_folder_for_transformers_js_goes_to_the_hub(folder, tmp_path):
    with hub_server.serve() as server, hub_server.client(server.url, tmp_path / "hf", "hf_writer"):
        segnext_timm.push_to_hub(folder, "writer/streets")
    files = server.repos["writer/streets"].branches["main"]
    graphs = {f"onnx/{path.name}" for path in (folder / "onnx").iterdir()}
    assert set(files) == {"README.md", "config.json", "preprocessor_config.json"} | graphs


@pytest.mark.slow
def test_node_gives_the_labels_of_predict(site, model, photos):
    script = f"""
import * as transformers from "@huggingface/transformers";
import {{ segment }} from "./segment.mjs";
transformers.env.localModelPath = "./";
console.log(JSON.stringify(await segment(transformers, {json.dumps(CASES)}, ["0.png", "1.png"])));
"""
    (site / "run.mjs").write_text(script)
    done = subprocess.run(["node", "run.mjs"], cwd=site, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    compare(json.loads(done.stdout), model, photos)


@pytest.mark.slow
@pytest.mark.browser
def test_chromium_gives_the_labels_of_predict_without_a_request_elsewhere(site, model, photos):
    from playwright import sync_api

    page_text = """<!doctype html><script type="module">
import * as transformers from "./node_modules/@huggingface/transformers/dist/transformers.min.js";
import { segment } from "./segment.mjs";
transformers.env.allowLocalModels = true;
transformers.env.localModelPath = "/";
const runtime = new URL("./node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify", location.href).href;
transformers.env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` };
window.segment = (cases, images) => segment(transformers, cases, images);
</script>"""
    (site / "index.html").write_text(page_text)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_api.sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends within 10 ms
        address = f"http://127.0.0.1:{server.server_port}/"
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page, requests = browser.new_page(), []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_function("() => window.segment !== undefined")
        answers = page.evaluate(f"window.segment({json.dumps(CASES)}, ['0.png', '1.png'])")
        browser.close()
        server.shutdown()
    compare(answers, model, photos)
    assert all(url.startswith((address, "blob:", "data:")) for url in requests)
