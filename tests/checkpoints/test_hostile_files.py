"""Files that would run code, forge memory or fill the disk are refused."""

import argparse
import multiprocessing
import os
import pickle
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from checkpoint_writers import ARRAYS, WEIGHTS, WRITERS, legacy
from segnext_timm.checkpoints import unpickler
from segnext_timm.checkpoints.formats import read_checkpoint
from segnext_timm.errors import CheckpointError


def test_getattr_of_anything_else_is_refused(tmp_path):
    class Getattr:
        def __reduce__(self):
            return getattr, (np.ndarray, "tofile")

    for writer in (torch.save, legacy, lambda content, path: path.write_bytes(pickle.dumps(content))):
        writer({"x": Getattr()}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"refused, because loading it would execute (builtins\.)?getattr"):
            read_checkpoint(tmp_path / "x.pth")


class Attack:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("writer", ["zip", "legacy", 0, 2, 4])
def test_pickles_that_would_run_code_are_refused_and_do_not_run_it(tmp_path, writer):
    canary = tmp_path / "ran"
    content = {"state_dict": dict(ARRAYS), "meta": Attack(f"touch {canary}")}
    path = tmp_path / ("x.pkl" if isinstance(writer, int) else "x.pth")
    if isinstance(writer, int):
        path.write_bytes(pickle.dumps(content, writer))
    else:
        WRITERS[writer](content, path)
    with pytest.raises(
        CheckpointError, match=r"x\.p.*: refused, because loading it would execute (posix|nt)\.system"
    ) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not canary.exists()


def test_other_ways_to_run_code_are_refused_too(tmp_path):
    path = tmp_path / "x.pkl"
    for code in (
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c_codecs\ndecode\n(S'x'\nS'zip'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
    ):
        path.write_bytes(code)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def hostile_zip(path, name, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def test_a_hostile_pdparams_runs_nothing(tmp_path):
    canary = tmp_path / "ran"
    attack = pickle.dumps({**ARRAYS, "x": Attack(f"touch {canary}")}, 4)
    (tmp_path / "x.pdparams").write_bytes(attack)
    hostile_zip(tmp_path / "x.zip", "mscan/model.pdparams", attack)
    for name in ("x.pdparams", "x.zip"):
        with pytest.raises(
            CheckpointError, match=r"refused, because loading it would execute (posix|nt)\.system"
        ) as error:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not canary.exists()


def test_a_zip_with_paths_outside_writes_nothing(tmp_path):
    folder = tmp_path / "inner" / "deeper"
    folder.mkdir(parents=True)
    hostile_zip(folder / "x.zip", "../../model.pdparams", pickle.dumps(ARRAYS, 4))
    before = sorted(tmp_path.rglob("*"))
    read_checkpoint(folder / "x.zip")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["mscan/model.pdparams", "archive/data.pkl"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, name):
    """A zip file that admits 4 GB, and one whose header states 10 bytes instead of 100 MB."""
    path = tmp_path / "bomb.zip"
    hostile_zip(path, name, bytes(100 << 20))
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    (tmp_path / "large.zip").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"large\.zip: refused, because its contents unpack to 4\.3 GB"):
        read_checkpoint(tmp_path / "large.zip")
    content[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    (tmp_path / "lying.zip").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"lying\.zip: damaged"):
        read_checkpoint(tmp_path / "lying.zip")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_files_whose_compression_has_no_bound_are_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("mscan/model.pdparams", bytes(1 << 20))
    with pytest.raises(CheckpointError, match=r"x\.zip: refused, because its compression is neither .* stored and"):
        read_checkpoint(tmp_path / "x.zip")


@pytest.mark.slow
def test_a_zip_bomb_of_10_gb_takes_little_memory_and_time(tmp_path):
    """A member of 10 GB of zeros, compressed to 10 MB."""
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("mscan/model.pdparams", "w", force_zip64=True) as member,
    ):
        for _ in range(10 << 4):
            member.write(bytes(1 << 26))
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"bomb\.zip: refused, because its contents unpack to 10\.7 GB"):
        read_checkpoint(path)
    assert time.monotonic() - start < 5


def test_a_tar_that_passes_for_a_checkpoint_is_not_unpacked(tmp_path, monkeypatch):
    """PyTorch's oldest files are tars; this one has the mark of later ones in the name of its first member."""
    mark = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19".decode("latin1")
    with tarfile.open(tmp_path / "x.pth", "w", format=tarfile.GNU_FORMAT, encoding="latin1") as archive:
        for name in (mark, "storages"):
            archive.addfile(tarfile.TarInfo(name))
    unpacked = []
    monkeypatch.setattr(tarfile.TarFile, "extract", lambda self, name, **kwargs: unpacked.append(name))
    with pytest.raises(CheckpointError, match=r"x\.pth: not a checkpoint"):
        read_checkpoint(tmp_path / "x.pth")
    assert unpacked == []


@pytest.mark.parametrize(
    ("target", "attribute"),
    [
        ("collections\nCounter", "most_common"),
        ("argparse\nNamespace", "__eq__"),
        ("torch._utils\n_rebuild_parameter", "__doc__"),
        ("torch.storage\nUntypedStorage", "cpu"),
        ("numpy\nndarray", "x"),
        ("mmengine.logging.history_buffer\nHistoryBuffer", "x"),
    ],
)
@pytest.mark.parametrize("writer", ["pickle", "zip"])
def test_a_pickle_cannot_change_what_it_may_use(tmp_path, target, attribute, writer):
    """A state of attributes for a class or a function itself would outlive the reading."""
    code = b"c" + target.encode() + b"\n(N" + pickle.dumps({attribute: 1}, 0)[:-1] + b"tb."
    if writer == "pickle":
        (tmp_path / "x.pth").write_bytes(b"\x80\x02" + code)
    else:
        torch.save({}, tmp_path / "good.pth")
        with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "x.pth", "w") as bad:
            for name in good.namelist():
                bad.writestr(name, b"\x80\x02" + code if name.endswith("data.pkl") else good.read(name))
    with pytest.raises(CheckpointError, match=r"x\.pth: refused, because loading it would change [\w.]+, which"):
        read_checkpoint(tmp_path / "x.pth")


class Patched(torch.nn.Module):
    """A module for which torch writes a patch where its source code differs from that in a file."""

    dump_patches = True


def test_a_whole_module_is_refused_and_its_source_code_is_not_compared(tmp_path, monkeypatch):
    legacy(Patched(), tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content.replace(b"dump_patches = True", b"dump_patches = 1   "))
    monkeypatch.chdir(tmp_path)
    with (
        torch.serialization.safe_globals([Patched]),
        pytest.raises(CheckpointError, match=r"x\.pth: refused, because loading it would execute [\w.]*Patched"),
    ):
        read_checkpoint(tmp_path / "x.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


# Pickles that would make torch or numpy read memory that is not theirs. Each is read in a process of its own.


def word(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def number(value):
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


DTYPE_OF_POINTERS = (
    b"cnumpy\ndtype\n(" + word("V8") + b"\x89\x88tRq\x00("  # a copy of V8, then its state: a field of objects
    b"K\x03" + word("|") + b"N(" + word("a") + b"t}" + word("a") + b"(cnumpy\ndtype\n" + word("O") + b"\x85RK\x00ts"
    b"K\x08K\x01K\x00tb"
)
HOSTILE = {
    "a tensor of an address": b"ctorch\nTensor\n)}" + word("cdata") + number(0x4141414141) + b"s\x92.",
    "a float tensor of an address": b"ctorch\nFloatTensor\n)}" + word("cdata") + number(0x4141414141) + b"s\x92.",
    "a storage with an allocator": b"ctorch.storage\nUntypedStorage\n("
    + number(16)
    + b"t}"
    + word("allocator")
    + number(0x4141414141)
    + b"s\x92.",
    "an array of forged pointers": b"cbuiltins\nset\n(cnumpy.core.numeric\n_frombuffer\n(C\x08@AAAAAAA"
    + DTYPE_OF_POINTERS
    + b"K\x01\x85"
    + word("C")
    + b"tRtR.",
    "an array larger than its data": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01"
    + number(1 << 40)
    + b"\x85cnumpy\ndtype\n("
    + word("f4")
    + b"\x89\x88tR\x89C\x04AAAAtb.",
    "a tensor larger than nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(M\xe8\x03t(K\x01t\x89NtR.",
}


def test_pickles_that_forge_memory_are_refused(tmp_path):
    files = []
    for name, hostile in HOSTILE.items():
        files += [tmp_path / f"{name}.pkl", tmp_path / f"{name}.pth"]
        files[-2].write_bytes(b"\x80\x04" + hostile)
        write_zip(files[-1], b"\x80\x04" + hostile)
    # in a process of its own, since one that is read may end the process
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
        assert all(process.map(is_refused, files))


def is_refused(path):
    try:
        read_checkpoint(path)
    except CheckpointError:
        return True
    return False


class MadeOf:
    """Pickled as what `function` makes of `arguments`."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("memory", [torch.arange(8.0), argparse.Namespace(dtype=torch.float32, _untyped_storage=3)])
def test_a_tensor_is_made_of_a_storage_only(tmp_path, memory):
    hostile = MadeOf(torch._utils._rebuild_tensor_v2, memory, 0, (2,), (1,), False, OrderedDict())
    torch.save({"a": hostile}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"refused, because loading it would make a tensor of a \w+"):
        read_checkpoint(tmp_path / "x.pth")


def test_an_array_is_made_of_a_type_only(tmp_path):
    scalar = np.float64(0).__reduce__()[0]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": MadeOf(scalar, argparse.Namespace(order="="), b"12345678")}, 2))
    with pytest.raises(CheckpointError, match="refused, because loading it would make an array of a Namespace"):
        read_checkpoint(tmp_path / "x.pkl")


def write_zip(path, content):
    """Write a file of torch whose pickle has another content."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as good:
        members = {name: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(path, "w") as bad:
        for name, data in members.items():
            bad.writestr(name, content if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    "step", [b"N}" + word("x") + b"K\x01s\x86b.", b"}" + word("_dtype") + b"K\x01sb.", b")\x81.", b")}\x92."]
)
def test_nothing_that_is_admitted_can_be_changed_or_made_otherwise(tmp_path, step):
    def state():
        return {name: (type(value), getattr(value, "__dict__", None)) for name, value in unpickler._ADMITTED.items()}

    before = state()
    for name in unpickler._ADMITTED:
        module, _, attribute = name.rpartition(".")
        (tmp_path / "x.pkl").write_bytes(b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + step)
        made = step == b")\x81." and name.rpartition(".")[2] in ("Namespace", "HistoryBuffer")
        with nullcontext() if made else pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "x.pkl")
    assert {
        name: (type(value), getattr(value, "__dict__", None)) for name, value in unpickler._ADMITTED.items()
    } == before


def test_reading_does_not_change_what_torch_itself_reads(tmp_path):
    torch.save(WEIGHTS, tmp_path / "good.pth")
    step = b"ctorch\nFloatStorage\n}" + word("_dtype") + b"ctorch\nfloat64\nsb."
    for write in (lambda path: path.write_bytes(b"\x80\x02" + step), lambda path: write_zip(path, b"\x80\x02" + step)):
        write(tmp_path / "x.pkl")
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "x.pkl")
    assert torch.equal(torch.load(tmp_path / "good.pth", weights_only=True)["b"], WEIGHTS["b"])
