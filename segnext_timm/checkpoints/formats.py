"""Read checkpoint files of PyTorch, Jittor, Paddle and safetensors without executing code from them.

Pickles are read by an unpickler that admits arrays, tensors, plain containers and what training checkpoints keep beside
them, by name. What the files hold is the job of :mod:`segnext_timm.checkpoints.dialects`.
"""

import hashlib
import io
import mmap
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.hub
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import CheckpointError
from .unpickler import PICKLE_MODULE, ForbiddenError, load_pickle


def _check_jittor_sum(path: Path) -> None:
    """Raise if the file carries Jittor's checksum (sha1 and a mark after the pickle) and does not match it."""
    mark = b"HCAJSLHD"
    size = path.stat().st_size - len(mark) - hashlib.sha1().digest_size
    if size < 0:
        return
    with path.open("rb") as file:
        file.seek(size)
        tail = file.read()
        if not tail.endswith(mark):
            return
        file.seek(0)
        digest = hashlib.sha1()
        while size > 0 and (chunk := file.read(min(size, 1 << 20))):
            digest.update(chunk)
            size -= len(chunk)
    if digest.digest() != tail[: -len(mark)]:
        raise pickle.UnpicklingError("its checksum does not match")


def _load_torch(path: Path, zipped: bool) -> Any:
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
        try:  # torch takes no other unpickler then
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path}: TORCH_FORCE_WEIGHTS_ONLY_LOAD is set, and torch refuses the file. Unset it: this package "
                f"executes no code either. ({' '.join(str(error).split())[:200]})"
            ) from None
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": False, "pickle_module": PICKLE_MODULE}
    # Without its descriptor, torch does not take a file for a tar, which it would unpack; without its name, not for
    # safetensors.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = cast(IO[bytes], mapped)
        # what torch.load itself asks, by the same reader, before it hands a file to torch.jit.load
        if zipped and "constants.pkl" in torch._C.PyTorchFileReader(content).get_all_records():
            raise CheckpointError(
                f"{path}: a TorchScript program, not a checkpoint: loading it could execute code. Ask for the weights "
                f"alone, which torch.save(module.state_dict(), 'weights.pth') saves."
            )
        if zipped and not path.name.endswith(".safetensors"):
            # memory-mapped, so that the optimizer state of a training checkpoint is never read
            return torch.load(path, mmap=True, **options)
        content.seek(0)
        return torch.load(content, mmap=False, **options)


_MAX_BYTES = 2 << 30  # of the contents of a smaller zip file; the largest published checkpoint has 0.2 GB
_PADDLE_SUFFIX = ".pdparams"
_ZIP_MAGIC = b"PK\x03\x04"


def check_whole(path: Path) -> None:
    """Raise a CheckpointError if what a checkpoint file is read for cannot be read, or its checksums do not match."""
    with path.open("rb") as file:
        zipped = file.read(4) == _ZIP_MAGIC
    if zipped:
        _check_zip(path)
    read_checkpoint(path)


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_contents(path, archive)
            # read_checkpoint compares the checksum of the one member that it reads of Paddle's zip files
            broken = archive.testzip() if _paddle_name(archive) is None else None
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and the decompressors raise many types of errors
        raise CheckpointError(f"{path}: damaged or cut short ({error}). Download it again.") from None
    if broken:
        raise CheckpointError(f"{path}: damaged (the checksum of {broken} does not match). Download it again.")


def _check_contents(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise a CheckpointError if a zip file is not of the kind that checkpoints are, which could fill the memory."""
    members = archive.infolist()
    size = sum(member.file_size for member in members)
    if size > max(_MAX_BYTES, path.stat().st_size):
        raise CheckpointError(
            f"{path}: refused, because its contents unpack to {size / 1e9:.1f} GB, more than any published "
            f"checkpoint. Check where it came from."
        )
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        # zipfile unpacks these beyond the size that their header states
        raise CheckpointError(
            f"{path}: refused, because its compression is neither of those of checkpoints, stored and deflated. "
            f"Unpack it, and give the file inside."
        )


def _read_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Read a member into memory, never more than its header states; zipfile compares the checksum at its end."""
    content = io.BytesIO()
    with archive.open(name) as file:
        shutil.copyfileobj(file, content, 1 << 20)
    content.seek(0)
    return content


def _paddle_name(archive: zipfile.ZipFile) -> str | None:
    """Name of the one .pdparams file in a zip file; None if there is none or more than one."""
    names = [name for name in archive.namelist() if name.endswith(_PADDLE_SUFFIX)]
    return names[0] if len(names) == 1 else None


_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number that PyTorch's files before the zip format begin with


def read_checkpoint(path: str | Path) -> Any:
    """Read a checkpoint file without executing code from it.

    Args:
        path: A file of PyTorch (.pth, .pt), Jittor (.pkl), Paddle (.pdparams, or a zip file of one) or safetensors. The
            contents decide, not the name.

    Returns:
        Nested dictionaries of tensors, arrays and plain values.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file has another format, is damaged, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path}: an empty file. Download it again.")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path}: a web page, not a checkpoint. The link leads to a page about the file: download the file itself."
        )
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the file itself. Run `git lfs pull` to download it.")
    try:
        if head.startswith(_ZIP_MAGIC):
            with zipfile.ZipFile(path) as archive:
                _check_contents(path, archive)
                if (name := _paddle_name(archive)) is None:
                    return _load_torch(path, zipped=True)
                content = _read_member(archive, name)
            return load_pickle(content)
        if _TORCH_MAGIC in head[:16]:
            return _load_torch(path, zipped=False)
        if head[8:9] == b"{":
            return load_file(path)
        _check_jittor_sum(path)
        with path.open("rb") as file:
            return load_pickle(file)
    except CheckpointError:
        raise
    except ForbiddenError as error:
        raise CheckpointError(
            f"{path}: refused, because loading it would {error}, which weights never need. No code was executed. "
            f"Get the file from its publisher, or ask them for safetensors."
        ) from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: a damaged safetensors file ({error}). Download it again.") from None
    except Exception as error:  # torch, pickle and numpy raise anything on damaged bytes
        if head.startswith((_ZIP_MAGIC, b"\x80")):
            reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
            raise CheckpointError(f"{path}: damaged or cut short ({reason}). Download it again.") from None
        raise CheckpointError(
            f"{path}: not a checkpoint of PyTorch, Jittor, Paddle or safetensors. Check where it came from."
        ) from None
