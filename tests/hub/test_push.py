"""Folders and models on their way to the Hub and back."""

import json
import os
import re
import subprocess

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import hub_server
import segnext_timm
from command import COMMAND
from random_checkpoints import write
from segnext_timm import CheckpointError, convert, push_to_hub
from segnext_timm.cli import main
from segnext_timm.errors import OptionError
from small_models import narrow

# Pushing and pulling

CLIENT = """
import torch, timm, segmentation_models_pytorch as smp, segnext_timm
from pathlib import Path
from huggingface_hub import HfApi, ModelCard
from small_models import narrow

def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
"""


@pytest.fixture
def hub(tmp_path):
    """A Hub on loopback, and a function that runs code as its client; gives (hub, run)."""
    with hub_server.serve() as server:

        def run(code, token="hf_writer", check=True):
            with hub_server.client(server.url, tmp_path / "hf", token):
                return hub_server.run(CLIENT + code, {"folder": tmp_path}, check)

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
        assert f"writer/{name}" in card.text
    assert server.repos["writer/model"].messages == ["Mine"]
    card = ModelCard(server.repos["writer/segmenter"].branches["main"]["README.md"].decode())
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("mean_iou", 41.5, "validation")
    assert (result.dataset_type, result.source_url) == ("scene_parse_150", "https://x.org")
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "image-segmentation")
    assert "0 a, 1 b, 2 c" in card.text
    sent = {r.split("/")[-1] for r in server.requests}
    assert {"create", "preupload", "batch", "verify"} <= sent | {r.split("/")[-2] for r in server.requests}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["backbone", "segmenter"])
def test_the_command_pushes_the_card_that_is_in_the_folder(hub, tmp_path, kind, request):
    server, _ = hub
    convert(write(tmp_path / "weights", request.getfixturevalue(kind), "mmseg"), tmp_path / "model")
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_writer"}
    command = [COMMAND, "push", tmp_path / "model", "writer/model"]  # which loads less than `import segnext_timm`
    subprocess.run(command, env=environment | {"HF_HUB_DISABLE_XET": "1"}, check=True)
    pushed = server.repos["writer/model"].branches["main"]["README.md"].decode()
    assert "segnext_timm" in pushed
    ours = [(tmp_path / "model" / "README.md").read_text(encoding="utf-8"), pushed]
    plain = [re.sub("<!-- .*-->|local-dir:[.]|hf-hub:writer/model|from_pretrained.*", "", text) for text in ours]
    assert plain[0] == plain[1]


@pytest.mark.slow
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
HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="writer/x")
segnext_timm.push_to_hub(model, "writer/x")
assert "Edited by hand" in ModelCard.load("writer/x").text
result = {"dataset": "x", "metric": "mIoU", "value": 71.34}
given = model.generate_model_card(dataset="x", results=[result], repo_id="writer/x")
segnext_timm.push_to_hub(model, "writer/x", card=given)
assert str(ModelCard.load("writer/x")) == str(given) and given.data.eval_results
""")


@pytest.mark.slow
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
        assert 'from_pretrained(".")' not in card
    assert "| mIoU |  | 0.5 |" in server.repos["writer/three"].branches["main"]["README.md"].decode()


@pytest.mark.slow
def test_an_edited_card_of_a_folder_keeps_its_words_and_gets_the_place(hub, tmp_path):
    server, run = hub
    narrow().save_pretrained(tmp_path / "run")
    path = tmp_path / "run" / "README.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nMy words.\n", encoding="utf-8")
    before = path.read_bytes()
    run('segnext_timm.push_to_hub(folder / "run", "writer/x")')
    card = server.repos["writer/x"].branches["main"]["README.md"].decode()
    assert 'smp.from_pretrained("writer/x")' in card
    assert card.rstrip().endswith("My words.")
    assert path.read_bytes() == before


def test_a_card_edited_in_the_folder_that_a_model_is_saved_to_and_pushed_from_keeps_its_words(hub, tmp_path):
    server, run = hub
    narrow().save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text("---\nlicense: other\n---\nMy words.\n", encoding="utf-8")
    run('narrow().save_pretrained(folder / "run", push_to_hub=True, repo_id="writer/x")')
    assert server.repos["writer/x"].branches["main"]["README.md"] == b"---\nlicense: other\n---\nMy words.\n"


@pytest.mark.slow
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
segnext_timm.push_to_hub(model, "writer/x", create_pr=True, commit_message="pr", card=license)
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
    assert "OptionError: writer/x exists and is public: make it private, or choose another" in done.stderr
    assert len(server.repos["writer/x"].messages) == 1


@pytest.mark.slow
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


def test_files_that_are_not_the_model_s_are_not_pushed(hub, tmp_path):
    server, run = hub
    narrow().save_pretrained(tmp_path / "run")
    (tmp_path / "run" / ".git").mkdir()
    for name in (".env", ".git/config", "best.pth.tar", "curve.png"):
        (tmp_path / "run" / name).write_bytes(b"x")
    run('segnext_timm.push_to_hub(folder / "run", "writer/x")')
    assert sorted(server.repos["writer/x"].branches["main"]) == ["README.md", "config.json", "model.safetensors"]


LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN, to a token that may do this."
TOKENS = {
    "": "There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.",
    "hf_old": f"writer/x: the Hub refused access (Invalid credentials in Authorization header). {LOG_IN}",
    "hf_reader": f"writer/x: the Hub refused access (You don't have the rights to write here). {LOG_IN}",
}


def test_a_missing_or_refused_token_is_one_clear_line(hub, tmp_path):
    server, run = hub
    narrow().save_pretrained(tmp_path / "run")
    done = run(f"""
import os
from segnext_timm.cli import main
for token in {list(TOKENS)}:
    os.environ["HF_TOKEN"] = token
    try:
        main(["push", str(folder / "run"), "writer/x"])
    except SystemExit as end:
        assert end.code == 1
""")
    errors = [line for line in done.stderr.strip().splitlines() if line.startswith("Error: ")]
    assert errors == [f"Error: {message}" for message in TOKENS.values()]
    assert done.stderr.strip().splitlines()[-1] == errors[-1]
    assert "Traceback" not in done.stderr
    assert server.repos == {}


def test_a_hub_that_is_away_is_named(tmp_path):
    narrow().save_pretrained(tmp_path / "run")
    with hub_server.client("http://127.0.0.1:9", tmp_path / "hf", "hf_writer"):
        done = CliRunner().invoke(main, ["push", str(tmp_path / "run"), "writer/x"])
    assert done.exit_code == 1
    assert done.stderr.strip().splitlines()[-1].startswith("Error: writer/x: the Hub cannot be reached (")


def test_a_pull_request_from_a_branch_is_refused_before_the_hub_is_asked():
    with pytest.raises(OptionError, match="give revision or create_pr, not both"):
        push_to_hub(narrow(), "writer/x", revision="dev", create_pr=True, token="hf_writer")


def test_what_cannot_be_pushed_is_named(tmp_path):
    (tmp_path / "x.pth").touch()
    for what, error, message in (
        (torch.nn.Linear(1, 1), OptionError, "A Linear cannot be pushed"),
        (timm.create_model("test_mscan", features_only=True), OptionError, "A FeatureListNet cannot be pushed: pass"),
        (tmp_path / "x.pth", CheckpointError, "not a model folder.* Convert a checkpoint first"),
        (tmp_path / "none", FileNotFoundError, "no such folder"),
        (tmp_path, CheckpointError, "not a model folder"),
    ):
        with pytest.raises(error, match=message):
            push_to_hub(what, "writer/x", token="hf_writer")


def test_smp_s_own_card_which_claims_a_license_is_replaced_unless_it_states_something(hub, tmp_path):
    server, run = hub
    model = smp.FPN("tu-test_mscan", encoder_weights=None, classes=3)
    model.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "stated", dataset="scenes")
    model.save_pretrained(tmp_path / "edited")
    path = tmp_path / "edited" / "README.md"
    path.write_text(path.read_text().replace("## Dataset\n", "## Dataset\nMy words.\n"), encoding="utf-8")
    assert ModelCard.load(tmp_path / "plain" / "README.md").data.license == "mit"  # the license of smp
    run("""
for name in ("plain", "stated", "edited"):
    segnext_timm.push_to_hub(folder / name, f"writer/{name}", card={"dataset": "streets"})
""")
    cards = {name: pushed(server, f"writer/{name}")[1] for name in ("plain", "stated", "edited")}
    assert cards["plain"].data.license is None and cards["plain"].data.datasets == ["streets"]
    assert 'smp.from_pretrained("writer/plain")' in cards["plain"].text
    assert "Dataset name: scenes" in cards["stated"].text and "My words." in cards["edited"].text


def pushed(server, name):
    """Configuration, card and text of both, as they are on the Hub."""
    files = {path: content.decode("utf-8", "replace") for path, content in server.repos[name].branches["main"].items()}
    texts = files["config.json"], files["README.md"]
    return json.loads(texts[0]), ModelCard(texts[1]), "".join(texts)


def test_a_model_pushed_over_another_does_not_keep_its_card(hub):
    server, run = hub
    run("""
result = {"dataset": "x", "metric": "mIoU", "value": 71.34}
names = {"label_names": ["a", "b", "c"]}
one, two = narrow(pretrained_cfg=names | {"results": [result]}), narrow(pretrained_cfg={"label_names": ["d", "e", "f"]})
for name in ("generated", "edited"):
    segnext_timm.push_to_hub(one, f"writer/{name}")
card = ModelCard.load("writer/edited")
card.text = "My words."
HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="writer/edited")
for name in ("generated", "edited"):
    segnext_timm.push_to_hub(two, f"writer/{name}")
""")
    _, card, text = pushed(server, "writer/generated")
    assert "0 d, 1 e, 2 f" in text and "0 a" not in text and "71.34" not in text
    assert 'smp.from_pretrained("writer/generated")' in text
    _, card, text = pushed(server, "writer/edited")
    assert card.text == "My words."


def test_facts_given_for_a_card_stay_with_the_model_and_results_with_the_repository(hub):
    server, run = hub
    run("""
model = narrow()
result = {"dataset": "x", "metric": "mIoU", "value": 71.34}
segnext_timm.push_to_hub(model, "writer/x", card={"license": "mit", "dataset": "streets", "results": [result]})
model = smp.from_pretrained("writer/x")
facts = {"description": "A model that sees."}
segnext_timm.push_to_hub(model, "writer/other", card=facts)
segnext_timm.push_to_hub(Path(HfApi().snapshot_download("writer/x")), "writer/same", card=facts)
""")
    for name in ("same", "other"):
        config, card, text = pushed(server, f"writer/{name}")
        assert card.data.license == "mit" and card.data.datasets == ["streets"]
        assert "A model that sees." in card.text
        assert bool(card.data.eval_results) == ("| 71.34 |" in card.text) == ("71.34" in text) == (name == "same")
        assert config["pretrained_cfg"]["dataset"] == "streets"


def test_facts_given_for_a_backbone_stay_in_its_configuration_which_timm_loads(hub, tmp_path):
    server, run = hub
    run("""
facts = {"license": "apache-2.0", "dataset": "leaves", "label_names": ["a", "b", "c"]}
model = timm.create_model("mscan_t", num_classes=3)
segnext_timm.push_to_hub(model, "writer/one", card=facts)
assert equal(model, timm.create_model("hf-hub:writer/one", pretrained=True))
segnext_timm.push_to_hub(Path(HfApi().snapshot_download("writer/one")), "writer/two")
""")
    for name in ("one", "two"):
        _, card, _ = pushed(server, f"writer/{name}")
        assert card.data.license == "apache-2.0" and card.data.datasets == ["leaves"] and "0 a, 1 b, 2 c" in card.text


def test_a_card_edited_on_the_hub_keeps_its_text_whatever_is_pushed(hub, tmp_path):
    server, run = hub
    narrow().save_pretrained(tmp_path / "run")
    ways = ['segnext_timm.push_to_hub(narrow(), "writer/x", card=facts)', 'narrow().push_to_hub("writer/x")']
    ways += ['segnext_timm.push_to_hub(folder / "run", "writer/x", card=facts)']
    ways += ['narrow().save_pretrained(folder / "new", push_to_hub=True, repo_id="writer/x", dataset="streets")']
    run('segnext_timm.push_to_hub(folder / "run", "writer/x")')
    server.repos["writer/x"].branches["main"]["README.md"] = b"---\nlicense: other\n---\nMy words.\n"
    result = {"dataset": "x", "metric": "mIoU", "value": 71.34}
    done = run(f"facts = {{'results': [{result}], 'license': 'mit'}}\n" + "\n".join(ways))
    assert done.stderr.count("README.md was edited by hand: it stays as it is") == 2  # once for each `card`
    _, card, _ = pushed(server, "writer/x")
    assert card.text == "My words.\n" and card.data.license == "other"


def test_the_patterns_of_smp_s_push_choose_files(hub):
    server, run = hub
    run('narrow().push_to_hub("writer/x", ignore_patterns="*.md", branch="dev", private=True)')
    assert sorted(server.repos["writer/x"].branches["dev"]) == ["config.json", "model.safetensors"]
    assert server.repos["writer/x"].private


def test_a_push_in_smp_s_form_deletes_files_and_takes_a_configuration(hub):
    server, run = hub
    run("""
model = narrow()
model.push_to_hub("writer/x")
HfApi().upload_file(path_or_fileobj=b"old", path_in_repo="old.txt", repo_id="writer/x")
config = model.config | {"decoder_eval_steps": 9}
model.save_pretrained(folder / "x", push_to_hub=True, repo_id="writer/x", delete_patterns="*.txt", config=config)
assert smp.from_pretrained(folder / "x").config["decoder_eval_steps"] == 9
assert model.config["decoder_eval_steps"] == 7
""")
    config, _, _ = pushed(server, "writer/x")
    assert config["decoder_eval_steps"] == 9
    assert sorted(server.repos["writer/x"].branches["main"]) == ["README.md", "config.json", "model.safetensors"]


def test_a_model_keeps_what_is_known_of_its_weights(tmp_path):
    model = narrow(pretrained_cfg={"label_names": ["a", "b", "c"]})
    model.pretrained_cfg["dataset"] = "scenes"  # later changes are saved too
    model.save_pretrained(tmp_path / "one")
    again = segnext_timm.SegNeXt.from_pretrained(tmp_path / "one")
    assert again.pretrained_cfg == {"label_names": ["a", "b", "c"], "dataset": "scenes"}
    assert json.loads((tmp_path / "one" / "config.json").read_text())["pretrained_cfg"] == again.pretrained_cfg
    assert narrow().pretrained_cfg == {}
    assert load_file(tmp_path / "one" / "model.safetensors").keys() == model.state_dict().keys()


def test_facts_that_do_not_fit_are_refused_before_a_repository_is_made(hub, tmp_path):
    server, run = hub
    narrow().save_pretrained(tmp_path / "run")
    run("""
try:
    segnext_timm.push_to_hub(folder / "run", "writer/misfit", card={"label_names": ["a"]})
except segnext_timm.errors.OptionError as error:
    assert "label_names of 1 classes (the model has 3)" in str(error)
else:
    raise AssertionError
""")
    assert "writer/misfit" not in server.repos
