"""Look up models by name: published models, model folders, and repositories on the Hugging Face Hub.

Imports nothing heavy and checks names without a network, so that a wrong name is reported at once.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, HubError
from .catalog import SegmenterCfg, find_backbone, find_segmenter, list_segmenters
from .folder import CONFIG, read_config


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a Hub repository, user/repo."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text) is not None


def names_repository(text: str) -> bool:
    """Whether a text that is no folder names a Hub repository: user/repo, unless a folder `user` is here."""
    return is_hub_id(text) and not Path(text).parent.is_dir()


def find_published(name: str | Path) -> SegmenterCfg | None:
    """Find the published segmenter of a name, unless a model folder of that name is here; None if there is none."""
    return None if (Path(name) / CONFIG).is_file() else find_segmenter(str(name))


def check_segmenter(name: str | Path) -> None:
    """Check, without a network, that `name` is a published segmenter, a segmenter's folder, or names a Hub repository.

    Raises:
        FileNotFoundError: If `name` is none of these. The message suggests the nearest published name.
        CheckpointError: If it is a folder without a segmentation model.
    """
    text, path = str(name), Path(name)
    if find_published(name) is not None:
        return
    if path.is_dir():
        config = read_config(path)
        if "_model_class" not in config:
            what = config.get("architecture", "something else")
            raise CheckpointError(f"{name}: holds {what}, not a segmentation model saved by smp or this package.")
    elif path.is_file() or not names_repository(text):
        if (backbone := find_backbone(text.partition(".")[0])) is not None:
            near = find_segmenter(f"segnext_{backbone.variant.key}")
            hint = f" Did you mean {near.name!r}?" if near else ""
            raise FileNotFoundError(f"{name} is a backbone, which does not predict labels.{hint}")
        raise FileNotFoundError(unknown_model(text, list_segmenters()))


def unknown_model(text: str, names: Sequence[str]) -> str:
    """Error message for a name that is not one of the published `names`, not a folder, and not a Hub repository."""
    path = Path(text)
    if path.is_file():
        return f"{text}: a file, not a model folder. Convert it to a folder with `segnext-timm convert`."
    beside = [folder.parent.name for folder in path.parent.glob(f"*/{CONFIG}")]
    similar = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)
    hint = f" Did you mean {str(path.parent / similar[0])!r}?" if similar else ""
    if is_hub_id(text):
        return f"{text}: the folder {path.parent} has no {path.name}, so the Hub is not asked.{hint}"
    near = difflib.get_close_matches(text, [*names, *(name.split(".")[0] for name in names)], n=1, cutoff=0.5)
    hint = hint or (f" Did you mean {near[0]!r}?" if near else " `segnext-timm models` lists the published models.")
    return f"{text}: not a folder, not a Hub repository (user/repo), and not a published model.{hint}"


def hub_config(
    repo: str, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Get the config.json of a Hub repository: from the Hub, or from the cache if the Hub does not answer.

    The folder is that of a commit, which is the folder's name: with it as revision, other files are of the same commit.

    Args:
        repo: "user/repo".
        revision: Branch, tag or commit. Default: main.
        token: Token of the Hub. Default: the token of `hf auth login` or HF_TOKEN.
        cache_dir: Folder to use instead of the Hub's cache.

    Returns:
        Path of the file in the cache.

    Raises:
        OSError: As of :func:`hub_errors`.
        HubError: As of :func:`hub_errors`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    with hub_errors(repo, revision):
        cached = try_to_load_from_cache(repo, CONFIG, cache_dir, revision)
        if not isinstance(cached, str):
            # without a file in the cache, hf_hub_download asks a Hub that does not answer seven times
            get_hf_file_metadata(hf_hub_url(repo, CONFIG, revision=revision), token=token)
        try:
            return Path(hf_hub_download(repo, CONFIG, revision=revision, token=token, cache_dir=cache_dir))
        except Exception as error:
            if isinstance(cached, str) and is_no_connection(error):  # a broken one, which huggingface_hub raises
                return Path(cached)
            raise


def is_no_connection(error: BaseException) -> bool:
    """Whether an error says that a server cannot be reached, in any of the libraries that huggingface_hub uses."""
    return isinstance(error, ConnectionError) or type(error).__module__.startswith(("httpx", "httpcore", "requests"))


@contextmanager
def hub_errors(name: str | Path, revision: str | None = None, write: bool = False) -> Iterator[None]:
    """Turn errors of the Hub and of the connection into one-line errors.

    Args:
        name: "user/repo".
        revision: Branch, tag or commit, for the message.
        write: Whether the request writes to the Hub.

    Raises:
        FileNotFoundError: If there is no such repository, no such revision of it, or no such file in it.
        PermissionError: If the repository is gated or disabled, or the Hub refuses the token.
        ConnectionError: If the Hub cannot be reached, or is overloaded.
        HubError: If the Hub refuses the request for another reason.
    """
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:
        if not (isinstance(error, errors.HfHubHTTPError | errors.LocalEntryNotFoundError) or is_no_connection(error)):
            raise
        kind, what = _explain(error, name, revision, write)
        raise kind(f"{name}: {what}") from None


def _explain(error: BaseException, name: str | Path, revision: str | None, write: bool) -> tuple[type[OSError], str]:
    """Choose the type and the message of an error of the Hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{name}"
        return PermissionError, f"this repository is gated. Accept its terms at {page}, and log in: hf auth login."
    if isinstance(error, errors.DisabledRepoError):
        return PermissionError, "this repository on the Hub is disabled. Choose another one."
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError, f"this repository on the Hub has no revision {revision or 'main'!r}."
    if isinstance(error, errors.LocalEntryNotFoundError):  # neither in the cache nor from the Hub
        error = error.__cause__ or error
    elif isinstance(error, errors.EntryNotFoundError) and not write:
        return FileNotFoundError, "this repository on the Hub holds no model of smp or timm."
    elif isinstance(error, errors.RepositoryNotFoundError) and not write:
        hint = "If it is private, log in: hf auth login."
        return FileNotFoundError, f"no such folder, and no such repository on the Hub. {hint}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and write:
        return ConnectionError, f"the Hub cannot be reached ({error})."
    if status is None:
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
        return ConnectionError, f"no such folder, not in the Hub's cache, and {why}."
    if status == 401:
        return PermissionError, "the Hub refused the token. Log in with `hf auth login`, or set HF_TOKEN."
    if status == 403:
        verb, access = ("write to", "write") if write else ("read", "read")
        what = f"the token may not {verb} this repository on the Hub. Use a token with {access} access."
        return PermissionError, what
    if status == 429 or status >= 500:
        return ConnectionError, f"the Hub cannot answer now (status {status}). Try again later."
    reason = getattr(error, "server_message", None) or str(error).strip().splitlines()[-1]
    return HubError, f"the Hub refused the request (status {status}): {reason}"
