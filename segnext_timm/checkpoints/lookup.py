"""Look up models by name: published models, model folders, and repositories on the Hugging Face Hub.

Imports nothing heavy and checks names without a network, so that a wrong name is reported at once.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import HubError
from .catalog import SegmenterCfg, find_backbone, find_segmenter, list_segmenters, published_name
from .folder import CONFIG, not_a_segmenter, read_config


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a Hub repository, user/repo."""
    return re.fullmatch(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/\w([\w.-]*\w)?(?<!\.git)", text) is not None


def names_repository(text: str) -> bool:
    """Whether a text that is no folder names a Hub repository: user/repo, unless a folder `user` is here."""
    return is_hub_id(text) and not Path(text).parent.is_dir()


def find_published(name: str | Path) -> SegmenterCfg | None:
    """Find the published segmenter of a name, unless a model folder of that name is here; None if there is none."""
    return None if (Path(name) / CONFIG).is_file() else find_segmenter(str(name))


def check_segmenter(name: str | Path) -> None:
    """Raise an error, without a network, unless `name` is a published segmenter, a segmenter's folder, or a Hub id."""
    text, path = str(name), Path(name)
    if find_published(name) is not None:
        return
    if path.is_dir():
        if "_model_class" not in (config := read_config(path)):
            raise not_a_segmenter(name, config)
    elif path.is_file() or not names_repository(text):
        if (backbone := find_backbone(text.partition(".")[0])) is not None:
            hint = f"Did you mean {published_name(f'segnext_{backbone.variant.key}')!r}?"
            raise FileNotFoundError(f"{name} is a backbone, which does not predict labels. {hint}")
        raise FileNotFoundError(unknown_model(text, list_segmenters()))


def unknown_model(text: str, names: Sequence[str]) -> str:
    """Error message for a name that is not one of the published `names`, not a folder, and not a Hub repository."""
    path = Path(text)
    if path.is_file() and (path.parent / CONFIG).is_file():
        return f"{text}: a file of a model folder. Give the folder, {str(path.parent)!r}."
    if path.is_file():
        return f"{text}: a file, not a model folder. Convert it to a folder with `segnext-timm convert`."
    beside = [folder.parent.name for folder in path.parent.glob(f"*/{CONFIG}")]
    similar = [str(path.parent / name) for name in difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)]
    what = "not a folder, not a Hub repository (user/repo), and not a published model."
    if is_hub_id(text):
        what = f"the folder {path.parent} has no {path.name}, so the Hub is not asked."
    elif not similar:
        similar = difflib.get_close_matches(text, [*names, *(name.split(".")[0] for name in names)], n=1, cutoff=0.5)
        what += "" if similar else " `segnext-timm models` lists the published models."
    return f"{text}: {what}" + "".join(f" Did you mean {name!r}?" for name in similar)


def hub_config(
    repo: str, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Get the config.json of a Hub repository, or that in the cache; the name of its folder is that of the commit."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    with hub_errors(repo, revision):
        cached = try_to_load_from_cache(repo, CONFIG, cache_dir, revision)
        try:
            if not isinstance(cached, str):
                # without a file in the cache, hf_hub_download asks a Hub that does not answer seven times
                get_hf_file_metadata(hf_hub_url(repo, CONFIG, revision=revision), token=token)
            return Path(hf_hub_download(repo, CONFIG, revision=revision, token=token, cache_dir=cache_dir))
        except Exception as error:
            if isinstance(cached, str) and _is_no_connection(error):
                return Path(cached)
            raise


def _is_no_connection(error: BaseException) -> bool:
    clients = ("httpx", "httpcore", "requests")  # libraries that huggingface_hub uses
    return isinstance(error, ConnectionError) or type(error).__module__.startswith(clients)


@contextmanager
def hub_errors(name: str | Path, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the Hub and of the connection into one-line errors: see :func:`load_segmenter`."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:
        # what is neither in the cache nor on the Hub has a cause: the connection, or the Hub's answer
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        reason = getattr(cause, "server_message", None) or str(cause or error).strip().split("\n")[-1]
        kind: type[OSError] = FileNotFoundError
        if isinstance(cause, errors.GatedRepoError):
            kind, what = PermissionError, "this repository is gated. Accept its terms at "
            what += f"https://huggingface.co/{name}, and log in: hf auth login."
        elif isinstance(cause, errors.RepositoryNotFoundError):
            what = "no such folder, and no such repository on the Hub. If it is private, log in: hf auth login."
        elif isinstance(cause, errors.RevisionNotFoundError):
            what = f"this repository on the Hub has no revision {revision!r}."
        elif isinstance(cause, errors.EntryNotFoundError):
            what = "this repository on the Hub holds no model of smp or timm."
        elif status in (401, 403):
            kind, what = PermissionError, f"the Hub refused access ({reason}). Log in with `hf auth login`, or set "
            what += "HF_TOKEN, to a token that may do this."
        elif status is not None and (status == 429 or status >= 500):
            kind, what = ConnectionError, f"the Hub cannot answer now (status {status}). Try again later."
        elif status is not None:
            kind, what = HubError, f"the Hub refused the request (status {status}): {reason}"
        elif cause is None or _is_no_connection(cause):
            kind, what = ConnectionError, f"the Hub cannot be reached ({reason})."
        else:
            raise
        raise kind(f"{name}: {what}") from None
