"""Models by the name of a repository on the Hub: what is asked, and what is said if it is not given."""

import re
from pathlib import Path

import pytest
from huggingface_hub import get_hf_file_metadata
from huggingface_hub.utils import HFValidationError, validate_repo_id

import hub_server
from segnext_timm import load_segmenter
from segnext_timm.checkpoints.lookup import hub_errors, is_hub_id
from segnext_timm.errors import HubError


@pytest.fixture
def hub():
    with hub_server.serve() as server:
        yield server


def test_names_that_the_hub_takes_are_names_of_repositories():
    good = ["user/model", "user/a", "a/b-c.d_1", "user-1/x.y"]
    bad = [
        "model",
        "a/b/c",
        "user/",
        "-u/x",
        "user/my model",
        "user/a--b",
        "u--v/x",
        "user/a..b",
        "user/x-",
        "user/x.git",
    ]
    for name in good:
        validate_repo_id(name)
        assert is_hub_id(name)
    assert not any(map(is_hub_id, bad))
    for name in bad[1:]:
        with pytest.raises(HFValidationError):
            validate_repo_id(name)


def test_load_segmenter_does_not_ask_the_hub_for_a_model_in_a_folder_here(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", None)
    with pytest.raises(FileNotFoundError, match=r"^runs/bset: the folder runs has no bset, so the Hub is not asked\.$"):
        load_segmenter(Path("runs/bset"))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            (403, "GatedRepo", "Access to model user/model is restricted"),
            PermissionError,
            "this repository is gated. Accept its terms at https://huggingface.co/user/model, and log in",
        ),
        ((401, "GatedRepo", "You must be authenticated"), PermissionError, "this repository is gated. Accept"),
        (
            (403, "", "Access to this resource is disabled."),
            PermissionError,
            "the Hub refused access (Access to this resource is disabled.).",
        ),
        ((404, "RevisionNotFound", "Invalid rev id: v9"), FileNotFoundError, "on the Hub has no revision 'v9'."),
        (
            (401, "", "Invalid credentials in Authorization header"),
            PermissionError,
            "the Hub refused access (Invalid credentials in Authorization header). Log in with `hf auth login`",
        ),
        ((403, "", "Forbidden"), PermissionError, "the Hub refused access (Forbidden). Log in"),
        ((404, "RepoNotFound", "Repository not found"), FileNotFoundError, "no such repository on the Hub."),
        ((404, "EntryNotFound", "Entry not found"), FileNotFoundError, "holds no model of smp or timm."),
        ((400, "", "what?"), HubError, "the Hub refused the request (status 400): "),
    ],
)
def test_what_the_hub_refuses_is_told_as_what_it_is(hub, fault, error, message):
    hub.fault = fault
    url = f"{hub.url}/user/model/resolve/v9/config.json"
    with pytest.raises(error, match=f"^user/model: .*{re.escape(message)}") as caught, hub_errors("user/model", "v9"):
        get_hf_file_metadata(url)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
