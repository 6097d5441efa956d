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
from typing import Any

import torch
from safetensors.torch import load_file

from ..errors import CheckpointError
from . import unpickler

_ZIP_MAGIC = b"PK\x03\x04"
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number that PyTorch's files before the zip format begin with
_JITTOR_MARK = b"HCAJSLHD"  # the end of Jittor's files, after the sha1 of the pickle
_MAX_BYTES = 2 << 30  # limit for the contents of a smaller zip file; the largest published checkpoint has 0.2 GB


def read_checkpoint(path: str | Path, checksums: bool = False) -> Any:
    """Read a checkpoint file without executing code from it: tensors, arrays and plain values in dictionaries.

    Args:
        path: A file of PyTorch (.pth, .pt), Jittor (.pkl), Paddle (.pdparams, or a zip file of one) or safetensors. The
            contents decide, not the name.
        checksums: Compare all checksums of a zip file. `torch.save` can be set to write none.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file has another format, is damaged, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        raise CheckpointError(f"{path}: an empty file. Download it again.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        hint = "The link leads to a page about the file: download the file itself."
        raise CheckpointError(f"{path}: a web page, not a checkpoint. {hint}")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the file itself. Run `git lfs pull` to download it.")
    try:
        if head.startswith(_ZIP_MAGIC):
            return _read_zip(path, checksums)
        if _TORCH_MAGIC in head[:16]:
            return _load_torch(path, zipped=False)
        if head[8:9] == b"{":
            return load_file(path)
        return _read_pickle(path)
    except CheckpointError:
        raise
    except unpickler.ForbiddenError as error:
        raise CheckpointError(
            f"{path}: refused, because loading it would {error}, which weights never need. No code was executed. "
            f"Ask for the weights alone: safetensors, or torch.save(module.state_dict(), 'weights.pth')."
        ) from None
    except Exception as error:  # torch, pickle, zipfile, safetensors and numpy raise anything on damaged bytes
        if not (head.startswith((_ZIP_MAGIC, b"\x80")) or head[8:9] == b"{"):
            what = "not a checkpoint of PyTorch, Jittor, Paddle or safetensors"
            raise CheckpointError(f"{path}: {what}. Check where it came from.") from None
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged or cut short ({reason}). Download it again.") from None


def _read_pickle(path: Path) -> Any:
    """Read a pickle of Jittor or Paddle; Jittor's checksum is compared if the file has it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[-8:] == _JITTOR_MARK:
            with memoryview(content)[:-28] as body:
                digest = hashlib.sha1(body).digest()
            if digest != content[-28:-8]:
                raise pickle.UnpicklingError("its checksum does not match")
        return unpickler.load(content)  # type: ignore[arg-type]  # has what the unpickler calls


def _read_zip(path: Path, checksums: bool) -> Any:
    """Read a zip file of PyTorch, or of one file of Paddle; refuse a file that could fill the memory."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        reason = ""
        if size > max(_MAX_BYTES, path.stat().st_size):
            reason = f"its contents unpack to {size / 1e9:.1f} GB, more than any published checkpoint"
        elif any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            # zipfile unpacks these beyond the size that their header states
            reason = "its compression is neither of those of checkpoints, stored and deflated"
        if reason:
            raise CheckpointError(f"{path}: refused, because {reason}. Check where it came from.")
        if checksums and (broken := archive.testzip()):
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {broken!r}")
        paddle = [member for member in members if member.filename.endswith(".pdparams")]
        if len(paddle) != 1:
            return _load_torch(path, zipped=True)
        content = io.BytesIO()
        with archive.open(paddle[0]) as member:  # read in parts, since zipfile unpacks as much as is asked for
            shutil.copyfileobj(member, content, 1 << 20)
    content.seek(0)
    return unpickler.load(content)


def _load_torch(path: Path, zipped: bool) -> Any:
    if zipped:
        with path.open("rb") as file:  # what torch.load itself asks before it hands a file to torch.jit.load
            names = torch._C.PyTorchFileReader(file).get_all_records()
        if "constants.pkl" in names:
            hint = "Ask for the weights alone, which torch.save(module.state_dict(), 'weights.pth') saves."
            raise CheckpointError(f"{path}: a TorchScript program, not a checkpoint: it could execute code. {hint}")
    # Memory-mapped, so that the optimizer state of a training checkpoint is never read. Others are given as bytes: from
    # a path, torch would unpack what looks like a tar, and read as safetensors whatever is named so.
    mapped = zipped and not path.name.endswith(".safetensors")
    source: Any = path if mapped else io.BytesIO(path.read_bytes())
    forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true")
    options: dict[str, Any] = {} if forced else {"pickle_module": unpickler}  # torch takes no other then
    return torch.load(source, map_location="cpu", weights_only=forced, mmap=mapped, **options)
