"""Folders for timm, smp and mmsegmentation, and their way to the Hub and back."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import convert_memory
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import segnext_timm
from segnext_timm import CheckpointError, NMF2d, convert, push_to_hub
from segnext_timm.checkpoints import backbone_to_native, segmenter_to_native
from segnext_timm.labels import LABEL_SETS

import hub_server
from published import backbone_shapes, random_state_dict, segmenter_shapes, write

DIALECTS = pytest.mark.parametrize("dialect", ["paper", "mmseg", "jittor"])


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_counts(state_dict):
    return {name: value for name, value in state_dict.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def backbone():
    return random_state_dict(backbone_shapes("t", classifier=True))


@pytest.fixture(scope="module")
def segmenter():
    return random_state_dict(segmenter_shapes("t", 5))


def narrow(**kwargs):
    """A narrow segmenter."""
    return smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=8, **kwargs)


# Converting


@DIALECTS
def test_a_backbone_becomes_a_folder_that_timm_loads(tmp_path, caplog, backbone, dialect):
    found = convert(write(tmp_path / "mscan_t", backbone, dialect), tmp_path / "out")
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert equal(without_counts(model.state_dict()), without_counts(backbone_to_native(backbone)))
    assert model.pretrained_cfg["mean"] == (0.5,) * 3 or list(model.pretrained_cfg["mean"]) == [0.5] * 3
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert (found.kind, found.architecture) == ("backbone", "mscan_t")
    features = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, features_only=True)
    assert torch.equal(features.stages_0.norm.weight, model.stages[0].norm.weight)


@DIALECTS
def test_a_segmenter_becomes_a_folder_that_smp_loads(tmp_path, segmenter, dialect):
    found = convert(write(tmp_path / "x", segmenter, dialect), tmp_path / "out")
    assert str(found).startswith("SegNeXt on mscan_t, 5 classes, 3 input channels, 256 decoder channels, rank 16 (that")
    model = smp.from_pretrained(tmp_path / "out")
    state_dict = dict(model.state_dict())
    assert torch.equal(state_dict.pop("decoder.hamburger.nmf.bases"), NMF2d(256, 16).bases)
    assert equal(without_counts(state_dict), without_counts(segmenter_to_native(segmenter)))
    assert model.pretrained_cfg["mean"] == [0.485, 0.456, 0.406]


def test_native_to_mmsegmentation_and_back_is_the_identity(tmp_path, segmenter, backbone):
    for name, state_dict in (("segmenter", segmenter), ("backbone", backbone)):
        convert(write(tmp_path / name, state_dict, "mmseg"), tmp_path / name, rank=24 if name == "segmenter" else None)
        convert(tmp_path / name, tmp_path / f"{name}_mmseg.pth", to="mmseg")
        assert equal(torch.load(tmp_path / f"{name}_mmseg.pth")["state_dict"], state_dict)
        convert(tmp_path / f"{name}_mmseg.pth", tmp_path / f"{name}_again")  # the rank is kept beside the weights
        for file in ("model.safetensors", "config.json", "README.md"):
            assert (tmp_path / f"{name}_again" / file).read_bytes() == (tmp_path / name / file).read_bytes()


def test_a_trained_model_goes_to_mmsegmentation_with_its_labels(tmp_path):
    names, palette = ["a", "b", "c"], [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    narrow(pretrained_cfg={"label_names": names, "palette": palette}).save_pretrained(tmp_path / "trained")
    convert(tmp_path / "trained", tmp_path / "mmseg.pth", to="mmseg")
    meta = torch.load(tmp_path / "mmseg.pth")["meta"]
    assert meta["dataset_meta"] == {"classes": tuple(names), "palette": palette}
    convert(tmp_path / "mmseg.pth", tmp_path / "back")
    back = smp.from_pretrained(tmp_path / "back")
    assert (back.pretrained_cfg["label_names"], back.pretrained_cfg["palette"]) == (names, palette)
    assert equal(back.state_dict(), smp.from_pretrained(tmp_path / "trained").state_dict())


def test_other_input_channels_and_no_classifier(tmp_path):
    for kwargs in ({"in_chans": 6, "num_classes": 7}, {"num_classes": 0}):
        source = timm.create_model("test_mscan", **kwargs)
        torch.save({"state_dict_ema": source.state_dict(), "state_dict": {}}, tmp_path / "checkpoint.pth")
        convert(tmp_path / "checkpoint.pth", tmp_path / "out", ema=True, force=True)
        model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        assert equal(model.state_dict(), source.state_dict())
    assert ModelCard.load(tmp_path / "out" / "README.md").data.pipeline_tag == "image-feature-extraction"
    source = narrow(in_channels=4)
    torch.save(source.state_dict(), tmp_path / "checkpoint.pth")
    convert(tmp_path / "checkpoint.pth", tmp_path / "four")
    assert equal(smp.from_pretrained(tmp_path / "four").state_dict(), source.state_dict())


def test_class_names_come_from_the_checkpoint_a_file_or_a_data_set(tmp_path):
    state_dict = narrow().state_dict()
    torch.save({"state_dict": state_dict, "meta": {"CLASSES": ("x", "y", "z")}}, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "own")
    assert smp.from_pretrained(tmp_path / "own").pretrained_cfg["label_names"] == ["x", "y", "z"]
    (tmp_path / "classes.txt").write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    convert(tmp_path / "x.pth", tmp_path / "file", classes=tmp_path / "classes.txt")
    assert smp.from_pretrained(tmp_path / "file").pretrained_cfg["label_names"] == ["one", "two", "three"]
    with pytest.raises(CheckpointError, match="has 3 classes, but 150 names were given"):
        convert(tmp_path / "x.pth", tmp_path / "ade", classes="ade20k")
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file of class names, nor one of ade20k"):
        convert(tmp_path / "x.pth", tmp_path / "ade", classes="none.txt")
    torch.save(random_state_dict(segmenter_shapes("t", 150)), tmp_path / "ade.pth")
    convert(tmp_path / "ade.pth", tmp_path / "ade", classes="ade20k")
    info = smp.from_pretrained(tmp_path / "ade").pretrained_cfg
    assert tuple(info["label_names"]) == LABEL_SETS["ade20k"].classes
    assert info["palette"][0] == [120, 120, 120]
    card = ModelCard.load(tmp_path / "ade" / "README.md")
    assert card.data.datasets == ["scene_parse_150"]
    assert "149 flag" in card.text


def test_nothing_is_overwritten_or_left_half_made(tmp_path):
    torch.save(narrow().state_dict(), tmp_path / "x.pth")
    (tmp_path / "bad.pth").write_text("<html>", encoding="utf-8")
    with pytest.raises(CheckpointError):
        convert(tmp_path / "bad.pth", tmp_path / "out")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bad.pth", "x.pth"]
    convert(tmp_path / "x.pth", tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("my words", encoding="utf-8")
    with pytest.raises(FileExistsError, match="exists: choose another name, or allow to replace it"):
        convert(tmp_path / "x.pth", tmp_path / "out")
    with pytest.raises(CheckpointError):
        convert(tmp_path / "bad.pth", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "my words"
    convert(tmp_path / "x.pth", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") != "my words"
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds more than a model \(thesis\.tex\): it is not replaced"):
        convert(tmp_path / "x.pth", tmp_path / "out", force=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bad.pth", "out", "x.pth"]


def test_mistakes_in_converting_are_named(tmp_path, segmenter):
    torch.save(narrow().state_dict(), tmp_path / "x.pth")
    for arguments, message in (
        ({"dst": tmp_path / "out", "to": "onnx"}, "to must be 'native' or 'mmseg', got 'onnx'"),
        ({"dst": tmp_path / "out", "to": "mmseg"}, r"mmsegmentation loads \.pth files: name one"),
        ({"dst": tmp_path / "out.safetensors"}, r"will be a folder: name it without \.safetensors"),
        ({"dst": tmp_path / "out", "rank": 4}, r"x\.pth: its bases are of rank 8, not 4: leave the rank out"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "x.pth", **arguments)
    incomplete = {name: value for name, value in segmenter.items() if "block3.1." not in name and "gn" not in name}
    incomplete["decode_head.extra"] = torch.zeros(1)
    torch.save(incomplete, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match=r"y\.pth: (an MSCAN of channels|lacks)") as error:
        convert(tmp_path / "y.pth", tmp_path / "out")
    assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: not a model folder, it has no config\.json and no model\.saf"):
        convert(tmp_path / "empty", tmp_path / "out")
    smp.SegNeXt("resnet18", encoder_weights=None, classes=2, decoder_channels=32).save_pretrained(tmp_path / "resnet")
    with pytest.raises(CheckpointError, match="not a checkpoint of MSCAN"):
        convert(tmp_path / "resnet", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_converting_the_large_segmenter_takes_little_memory():
    assert max(convert_memory.main().values()) < 2.5


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_conversion_leaves_nothing_under_the_name(tmp_path, stop):
    source = write(tmp_path / "b", random_state_dict(segmenter_shapes("b", 150)), "mmseg")
    command = [sys.executable, "-m", "segnext_timm.cli", "convert", source, tmp_path / "out"]
    process = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    while not list(tmp_path.glob(".out.*/new/model.safetensors*")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(stop)
    assert process.wait() != 0
    left = [f.name for f in tmp_path.iterdir() if f.name != "b.pth"]
    assert "out" not in left
    assert left == [] or stop != signal.SIGINT
    subprocess.run(command, check=True)
    assert smp.from_pretrained(tmp_path / "out").segmentation_head[0].out_channels == 150


# pretrained=True, and what its files can be


def test_weights_of_another_variant_are_named(tmp_path):
    for name, classes in (("s", 1000), ("s", 10)):  # with other classes, timm would load what fits
        torch.save(random_state_dict(backbone_shapes("s", classifier=True)), tmp_path / "s.pth")
        with pytest.raises(CheckpointError, match=r"s\.pth: weights of mscan_s, not of mscan_b: create mscan_s"):
            overlay = {"file": str(tmp_path / f"{name}.pth")}
            timm.create_model("mscan_b", pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", r"x\.pth: a web page, not a checkpoint"),
        (b"PK\x03\x04 and no more", r"x\.pth: damaged or cut short"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, r"x\.pth: not a checkpoint of MSCAN.*found conv1\.weight"),
    ],
)
def test_bad_files_given_to_timm_are_named(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as error:
        timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert "\n" not in str(error.value)


def test_a_jittor_file_given_to_timm_is_to_be_converted(tmp_path, backbone):
    path = write(tmp_path / "mscan_t", backbone, "jittor")
    with pytest.raises(CheckpointError, match=r"mscan_t\.pkl: timm reads no Jittor files\. Convert it"):
        timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay={"file": str(path)})


@pytest.mark.parametrize("dialect", ["paper", "mmseg"])
def test_checkpoint_path_takes_published_and_native_files(tmp_path, backbone, dialect):
    path = write(tmp_path / "mscan_t", backbone, dialect)
    native = backbone_to_native(backbone)
    assert equal(timm.create_model("mscan_t", checkpoint_path=path).state_dict(), native)
    convert(path, tmp_path / "out")
    model = timm.create_model("mscan_t", checkpoint_path=str(tmp_path / "out" / "model.safetensors"))
    assert equal(model.state_dict(), native)


# Pushing and pulling. The client reads where the Hub is when it is imported: it runs in a process of its own.

CLIENT = """
import sys, torch, timm, segmentation_models_pytorch as smp, segnext_timm
from huggingface_hub import HfApi, ModelCard
from pathlib import Path
folder = Path(sys.argv[1])

def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

def narrow(**kwargs):
    return smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, decoder_rank=8, **kwargs)
"""


@pytest.fixture
def hub(tmp_path):
    """A Hub on loopback, and a function that runs code as its client; gives (hub, run)."""
    with hub_server.serve() as server:
        env = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",  # a storage of the Hub's own; LFS is the protocol that is open
            "OMP_NUM_THREADS": "1",
        }

        def run(code, token="hf_writer", check=True):
            command = [sys.executable, "-c", CLIENT + code, str(tmp_path)]
            done = subprocess.run(command, env=env | {"HF_TOKEN": token}, capture_output=True, text=True)
            assert not check or done.returncode == 0, done.stderr
            return done

        yield server, run


def test_models_and_folders_come_back_bit_equal_from_the_hub(hub, tmp_path, backbone, segmenter):
    server, run = hub
    convert(write(tmp_path / "backbone", backbone, "mmseg"), tmp_path / "backbone")
    convert(write(tmp_path / "segmenter", segmenter, "jittor"), tmp_path / "segmenter")
    run("""
model = timm.create_model("test_mscan", num_classes=7)
commit = segnext_timm.push_to_hub(model, "writer/model", commit_message="Mine")
assert "/writer/model/commit/" in commit.commit_url
assert equal(model, timm.create_model("hf-hub:writer/model", pretrained=True))

model = narrow(pretrained_cfg={"label_names": ["a", "b", "c"], "dataset": "ADE20K"})
result = {"dataset": "ADE20K", "metric": "mIoU", "value": 41.5, "split": "validation", "source": "https://x.org"}
segnext_timm.push_to_hub(model, "writer/segmenter", private=True, card={"results": [result], "license": "mit"})
assert equal(model, smp.from_pretrained("writer/segmenter"))
assert smp.from_pretrained("writer/segmenter").pretrained_cfg["label_names"] == ["a", "b", "c"]

segnext_timm.push_to_hub(folder / "backbone", "writer/converted-backbone")
assert equal(timm.create_model(f"local-dir:{folder / 'backbone'}", pretrained=True),
             timm.create_model("hf-hub:writer/converted-backbone", pretrained=True))
segnext_timm.push_to_hub(folder / "segmenter", "writer/converted")
assert equal(smp.from_pretrained(folder / "segmenter"), smp.from_pretrained("writer/converted"))

encoder = smp.create_model("segnext", "tu-hf-hub:writer/model", encoder_weights=True).encoder.model
pulled = timm.create_model("hf-hub:writer/model", pretrained=True)
assert torch.equal(encoder.stem.conv1.weight, pulled.stem.conv1.weight)
assert HfApi().model_info("writer/segmenter").private
""")
    for name in ("model", "segmenter", "converted-backbone", "converted"):
        files = server.repos[f"writer/{name}"].branches["main"]
        assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
        card = ModelCard(files["README.md"].decode())
        assert card.data.library_name == (
            "timm" if name in ("model", "converted-backbone") else "segmentation-models-pytorch"
        )
        assert f"writer/{name}" in card.text and "USER/REPO" not in card.text
    assert server.repos["writer/model"].messages == ["Mine"]
    card = ModelCard(server.repos["writer/segmenter"].branches["main"]["README.md"].decode())
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("mean_iou", 41.5, "validation")
    assert (result.dataset_type, result.source_url) == ("scene_parse_150", "https://x.org")
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "image-segmentation")
    assert "0 a, 1 b, 2 c" in card.text
    sent = {r.split("/")[-1] for r in server.requests}
    assert {"create", "preupload", "batch", "verify"} <= sent | {r.split("/")[-2] for r in server.requests}


def test_branches_pull_requests_and_cards(hub):
    _, run = hub
    run("""
model = narrow()
segnext_timm.push_to_hub(model, "writer/x")
torch.nn.init.ones_(model.segmentation_head[0].bias)
commit = segnext_timm.push_to_hub(model, "writer/x", create_pr=True)
assert commit.pr_url.endswith("/writer/x/discussions/1")
assert not equal(model, smp.from_pretrained("writer/x"))
assert equal(model, smp.from_pretrained("writer/x", revision="refs/pr/1"))
segnext_timm.push_to_hub(model, "writer/x", revision="dev/two")
assert equal(model, smp.from_pretrained("writer/x", revision="dev/two"))
assert not equal(model, smp.from_pretrained("writer/x"))

card = ModelCard.load("writer/x")
card.text += "Edited by hand."
card.push_to_hub("writer/x")
segnext_timm.push_to_hub(model, "writer/x")
assert "Edited by hand" in ModelCard.load("writer/x").text
segnext_timm.push_to_hub(model, "writer/x", card=ModelCard("---\\nlicense: mit\\n---\\nLoad USER/REPO."))
assert ModelCard.load("writer/x").text.endswith("Load writer/x.")
""")


def test_smp_s_own_way_to_the_hub_names_the_repository(hub):
    server, run = hub
    run("""
model = narrow()
model.push_to_hub("writer/one")
model.push_to_hub("two")  # without a user: the token's
model.save_pretrained(folder / "three", push_to_hub=True, repo_id="writer/three", metrics={"mIoU": 0.5})
assert 'from_pretrained(".")' in (folder / "three" / "README.md").read_text()
model.push_to_hub("writer/one", commit_message="again")
assert equal(model, smp.from_pretrained("writer/three"))
""")
    for name in ("one", "two", "three"):
        card = server.repos[f"writer/{name}"].branches["main"]["README.md"].decode()
        assert f'smp.from_pretrained("writer/{name}")' in card
        assert 'from_pretrained(".")' not in card and "USER/REPO" not in card
    assert "| mIoU |  | 0.5 |" in server.repos["writer/three"].branches["main"]["README.md"].decode()


def test_an_edited_card_of_a_folder_keeps_its_words_and_gets_the_place(hub, tmp_path):
    server, run = hub
    narrow().save_pretrained(tmp_path / "run")
    path = tmp_path / "run" / "README.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nMy words on USER/REPO.\n", encoding="utf-8")
    before = path.read_bytes()
    run('segnext_timm.push_to_hub(folder / "run", "writer/x")')
    card = server.repos["writer/x"].branches["main"]["README.md"].decode()
    assert 'smp.from_pretrained("writer/x")' in card
    assert card.rstrip().endswith("My words on writer/x.")
    assert path.read_bytes() == before


def test_pushing_again_changes_only_what_is_new(hub):
    server, run = hub
    run("""
model = narrow()
one = segnext_timm.push_to_hub(model, "writer/x", commit_message="one")
two = segnext_timm.push_to_hub(model, "writer/x", commit_message="nothing new")
assert one.oid == two.oid
torch.nn.init.ones_(model.segmentation_head[0].bias)
license = {"license": "mit"}
segnext_timm.push_to_hub(model, "writer/x", revision="dev", commit_message="two")
segnext_timm.push_to_hub(model, "writer/x", revision="dev", create_pr=True, commit_message="pr", card=license)
assert ModelCard(HfApi().hf_hub_download("writer/x", "README.md", revision="refs/pr/1")).content
""")
    assert server.repos["writer/x"].messages == ["one", "two", "pr"]
    assert b"license: mit" in server.repos["writer/x"].branches["refs/pr/1"]["README.md"]
    assert b"license:" not in server.repos["writer/x"].branches["dev"]["README.md"]


def test_private_never_pushes_to_a_public_repository(hub):
    server, run = hub
    done = run(
        """
segnext_timm.push_to_hub(narrow(), "writer/x")
segnext_timm.push_to_hub(narrow(), "writer/x", private=True)
""",
        check=False,
    )
    assert "ValueError: writer/x exists and is public: make it private on the Hub, or choose" in done.stderr
    assert len(server.repos["writer/x"].messages) == 1


def test_fused_models_make_no_repository_and_break_no_folder(hub, tmp_path):
    server, run = hub
    narrow().save_pretrained(tmp_path / "kept")
    before = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    run("""
fused = segnext_timm.fuse(narrow().eval())
unet = segnext_timm.fuse(smp.Unet("tu-test_mscan", encoder_weights=None).eval())
backbone = segnext_timm.fuse(timm.create_model("test_mscan").eval())
tries = [lambda: fused.push_to_hub("writer/x"), lambda: fused.save_pretrained(folder / "kept")]
tries += [lambda m=m: segnext_timm.push_to_hub(m, "writer/x") for m in (fused, unet, backbone)]
for attempt in tries:
    try:
        attempt()
    except ValueError as error:
        assert str(error).startswith("A fused model cannot be") and "\\n" not in str(error)
    else:
        raise AssertionError("not refused")
""")
    assert server.repos == {}
    assert {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()} == before


def test_files_that_are_not_the_model_s_are_asked_about(hub, tmp_path):
    server, run = hub
    narrow().save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "curve.png").write_bytes(b"png")
    (tmp_path / "run" / "secrets.env").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds more than the model's files: curve\.png, secrets\.env"):
        push_to_hub(tmp_path / "run", "writer/x")
    run("""
segnext_timm.push_to_hub(folder / "run", "writer/x", extra_files=False)
files = [f.rfilename for f in HfApi().model_info("writer/x").siblings]
assert files == ["README.md", "config.json", "model.safetensors"]
asked = []
segnext_timm.push_to_hub(folder / "run", "writer/x", extra_files=lambda names: asked.extend(names) or True)
assert asked == ["curve.png", "secrets.env"]
""")
    assert "curve.png" in server.repos["writer/x"].branches["main"]
    (tmp_path / "run" / "last.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds pickles, which are not pushed: remove last\.pth"):
        push_to_hub(tmp_path / "run", "writer/x", extra_files=True)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN."),
        ("hf_old", "The Hub refused the token: log in with `hf auth login`, or set HF_TOKEN."),
        ("hf_reader", "The token may not write to writer/x: take one with write access to it."),
    ],
)
def test_a_missing_or_refused_token_is_one_clear_line(hub, tmp_path, token, message):
    server, run = hub
    narrow().save_pretrained(tmp_path / "run")
    code = "from segnext_timm.cli import main; main(['push', str(folder / 'run'), 'writer/x'])"
    done = run(code, token=token, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"Error: {message}"
    assert "Traceback" not in done.stderr
    assert server.repos == {}


def test_a_hub_that_is_away_is_named(tmp_path):
    narrow().save_pretrained(tmp_path / "run")
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_writer", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "segnext_timm.cli", "push", tmp_path / "run", "writer/x"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("Error: The Hub cannot be reached: ")


def test_what_cannot_be_pushed_is_named(tmp_path):
    (tmp_path / "x.pth").touch()
    for what, error, message in (
        (torch.nn.Linear(1, 1), TypeError, "A Linear cannot be pushed"),
        (timm.create_model("test_mscan", features_only=True), TypeError, "A FeatureListNet cannot be pushed: pass"),
        (tmp_path / "x.pth", FileNotFoundError, "a file: convert it to a folder first"),
        (tmp_path / "none", FileNotFoundError, "no such folder"),
        (tmp_path, CheckpointError, "not a model folder"),
    ):
        with pytest.raises(error, match=message):
            push_to_hub(what, "writer/x", token="hf_writer")


def test_converted_files_claim_no_license(tmp_path, backbone, segmenter):
    for name, state_dict in (("backbone", backbone), ("segmenter", segmenter)):
        convert(write(tmp_path / name, state_dict, "paper"), tmp_path / name)
        card = ModelCard.load(tmp_path / name / "README.md")
        assert card.data.license is None
        assert "Not stated" in card.text and "commercial users" not in card.text
        assert "license" not in (tmp_path / name / "config.json").read_text(encoding="utf-8")


def test_a_folder_with_smp_s_own_card_gets_one_that_claims_nothing(hub, tmp_path):
    server, run = hub
    model = smp.FPN("resnet18", encoder_weights=None, classes=3)
    model.save_pretrained(tmp_path / "fpn", dataset="scenes", metrics={"IoU": 0.5})
    assert ModelCard.load(tmp_path / "fpn" / "README.md").data.license == "mit"  # the license of smp
    run("""
segnext_timm.push_to_hub(folder / "fpn", "writer/x")
text = (folder / "fpn" / "README.md").read_text()
(folder / "fpn" / "README.md").write_text(text + "My words.")
segnext_timm.push_to_hub(folder / "fpn", "writer/edited")
""")
    card = ModelCard(server.repos["writer/x"].branches["main"]["README.md"].decode())
    assert card.data.license is None and card.data.datasets == ["scenes"]
    assert 'smp.from_pretrained("writer/x")' in card.text and "| IoU |  | 0.5 |" in card.text
    assert server.repos["writer/edited"].branches["main"]["README.md"].endswith(b"My words.")


def test_a_model_keeps_what_is_known_of_its_weights(tmp_path):
    model = narrow(pretrained_cfg={"label_names": ["a", "b", "c"]})
    model.pretrained_cfg["dataset"] = "scenes"  # later changes are saved too
    model.save_pretrained(tmp_path / "one")
    again = segnext_timm.SegNeXt.from_pretrained(tmp_path / "one")
    assert again.pretrained_cfg == {"label_names": ["a", "b", "c"], "dataset": "scenes"}
    assert json.loads((tmp_path / "one" / "config.json").read_text())["pretrained_cfg"] == again.pretrained_cfg
    assert narrow().pretrained_cfg == {}
    assert load_file(tmp_path / "one" / "model.safetensors").keys() == model.state_dict().keys()
