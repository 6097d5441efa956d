import argparse
import pickle
import sys
import threading
import types
import zipfile
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

from checkpoint_writers import ARRAYS, WEIGHTS, WRITERS, legacy
from random_checkpoints import save_jittor
from segnext_timm.checkpoints.formats import read_checkpoint
from segnext_timm.errors import CheckpointError
from segnext_timm.models.state_dicts import take_state_dict


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("writer", WRITERS)
def test_files_are_read_by_what_they_are_whatever_their_name(tmp_path, writer, suffix):
    path = tmp_path / f"weights{suffix}"
    WRITERS[writer](WEIGHTS, path)
    read = read_checkpoint(path)
    assert read.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert torch.equal(torch.as_tensor(np.array(read[name].tolist())).to(value.dtype), value)


def test_numpy_s_scalars_and_ordered_dictionaries_are_read(tmp_path):
    content = {"state_dict": OrderedDict(ARRAYS), "best": np.float32(0.5), "step": np.int64(7), "name": b"x"}
    for protocol in (2, 4):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        read = read_checkpoint(tmp_path / "x.pkl")
        assert (read["best"], read["step"], read["name"]) == (0.5, 7, b"x")
    torch.save(content, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth")["step"] == 7


def training_checkpoint(history_buffer, path):
    """Write what mmengine's runner does."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "meta": {"iter": 2, "seed": np.int64(3)},
        "message_hub": {"log_scalars": OrderedDict({"train/loss": history_buffer}), "runtime_info": {"lr": 1e-4}},
        "state_dict": WEIGHTS,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, path)


@pytest.fixture
def mmengine_checkpoint(tmp_path, monkeypatch):
    class HistoryBuffer:  # pickled as mmengine's is, with references to its own methods
        def __init__(self):
            self._log_history, self._count_history = np.array([0.5, 0.25]), np.array([1, 1])
            self._statistics_methods = {"min": HistoryBuffer.min}

        def min(self):
            pass

    HistoryBuffer.__module__ = HistoryBuffer.min.__module__ = "mmengine.logging.history_buffer"
    HistoryBuffer.__qualname__, HistoryBuffer.min.__qualname__ = "HistoryBuffer", "HistoryBuffer.min"
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[HistoryBuffer.__module__].HistoryBuffer = HistoryBuffer
    training_checkpoint(HistoryBuffer(), tmp_path / "iter_2.pth")
    monkeypatch.undo()
    return tmp_path / "iter_2.pth"


def test_training_checkpoints_of_mmengine_are_read(mmengine_checkpoint):
    assert torch.equal(read_checkpoint(mmengine_checkpoint)["state_dict"]["a.weight"], WEIGHTS["a.weight"])


@pytest.mark.slow
def test_training_checkpoints_of_mmengine_itself_are_read(tmp_path):
    from mmengine.logging import HistoryBuffer

    training_checkpoint(HistoryBuffer([0.5, 0.25], [1, 1]), tmp_path / "iter_2.pth")
    assert torch.equal(read_checkpoint(tmp_path / "iter_2.pth")["state_dict"]["a.weight"], WEIGHTS["a.weight"])


@pytest.mark.parametrize("writer", ["zip", "legacy", "safetensors", "jittor", "pickle 4"])
def test_files_cut_short_are_named(tmp_path, writer):
    path = tmp_path / "x.pth"
    WRITERS[writer]({"w": torch.rand(1000)}, path)
    content = path.read_bytes()
    for length in (len(content) // 2, len(content) - 200):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"x\.pth: .*Download it again") as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)


def test_a_changed_byte_breaks_jittor_s_checksum(tmp_path):
    path = tmp_path / "x.pkl"
    save_jittor(path, ARRAYS)
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS["a.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checksum does not match.*Download it again"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file. Download it again"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page, not a checkpoint"),
        (b"\n<html>", "a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"some notes about the weights", "not a checkpoint of PyTorch"),
        (bytes(range(255, 0, -1)), "not a checkpoint of PyTorch"),
    ],
)
def test_what_is_not_a_checkpoint_is_told(tmp_path, content, message):
    path = tmp_path / "mscan_t.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"mscan_t\.pth: {message}") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        read_checkpoint(tmp_path / "none.pth")


# Paddle and new Jittor


def jittor_module(monkeypatch):
    """A module `jittor` whose variables are pickled as Jittor's are."""

    class Var:
        def __init__(self, array):
            self.array = array

        def __reduce__(self):
            return Var, (self.array,)

    Var.__module__, Var.__qualname__ = "jittor", "Var"
    module = types.ModuleType("jittor")
    module.Var = Var
    monkeypatch.setitem(sys.modules, "jittor", module)
    return Var


def test_variables_of_new_jittor_are_read_as_arrays(tmp_path, monkeypatch):
    var = jittor_module(monkeypatch)
    save_jittor(tmp_path / "x.pkl", {name: var(array) for name, array in ARRAYS.items()})
    monkeypatch.undo()
    read = read_checkpoint(tmp_path / "x.pkl")
    assert all(np.array_equal(read[name], array) for name, array in ARRAYS.items())


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("zipped", [False, True])
def test_paddle_files_and_zips_of_them_are_read(tmp_path, protocol, zipped):
    data = pickle.dumps({**ARRAYS, "StructuredToParameterName@@": {"b": "b_0"}}, protocol)
    path = tmp_path / ("x.zip" if zipped else "x.pdparams")
    if zipped:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("mscan/model.pdparams", data)
    else:
        path.write_bytes(data)
    read = read_checkpoint(path)
    assert all(np.array_equal(read[name], array) for name, array in ARRAYS.items())


def test_a_wrong_checksum_in_a_zip_file_is_damage(tmp_path):
    data = pickle.dumps(ARRAYS, 4)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("mscan/model.pdparams", data)
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[content.index(ARRAYS["a.weight"].tobytes())] ^= 1
    (tmp_path / "x.zip").write_bytes(content)
    for checksums in (False, True):
        with pytest.raises(CheckpointError, match=r"x\.zip: damaged or cut short \(Bad CRC-32"):
            read_checkpoint(tmp_path / "x.zip", checksums)


# Torch's other formats, and its allow-list


class Later:
    """A class that a user admits while files are read."""


@pytest.fixture
def allow_list():
    """The user's entries in torch's allow-list, as they were before and will be afterwards."""
    before = torch.serialization.get_safe_globals()
    yield before
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_threads_read_files_at_once_and_leave_torch_s_allow_list_alone(tmp_path, mmengine_checkpoint, allow_list):
    files = [mmengine_checkpoint, tmp_path / "zip.pth", tmp_path / "legacy.pth", tmp_path / "x.pkl"]
    content = {**ARRAYS, "args": argparse.Namespace(lr=0.1), "step": np.int64(3)}
    torch.save(content, files[1])
    legacy(content, files[2])
    save_jittor(files[3], ARRAYS)
    start = threading.Barrier(9)

    def read(path):
        start.wait()
        for _ in range(20):
            read_checkpoint(path)

    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(read, path) for path in files * 2]
        start.wait()
        torch.serialization.add_safe_globals([Later])
        for result in results:
            result.result()
    assert set(torch.serialization.get_safe_globals()) == {*allow_list, Later}


@pytest.mark.parametrize("writer", [torch.save, legacy])
def test_what_torch_reads_as_weights_is_read(tmp_path, writer):
    content = {
        "dtype": torch.bfloat16,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "layout": torch.strided,
        "counter": Counter("aab"),
        "set": {1, 2},
        "bytes": b"\xff",
        "bytearray": bytearray(b"x"),
        "complex": 1j,
    }
    tensors = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "view": torch.arange(6)[::2],
    }
    if writer is torch.save:
        tensors["uint16"] = torch.ones(2, dtype=torch.uint16)  # torch writes older files of it that it cannot read
    writer({**content, **tensors}, tmp_path / "x.pth")
    read = read_checkpoint(tmp_path / "x.pth")
    assert {name: read[name] for name in content} == content
    for name, tensor in tensors.items():
        assert type(read[name]) is type(tensor)
        assert torch.equal(read[name], tensor)


def test_a_pytorch_file_named_as_safetensors_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "x.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "x.safetensors")["b"], WEIGHTS["b"])


def test_what_lies_in_training_arguments_is_named_if_it_is_refused(tmp_path):
    torch.save({"state_dict": WEIGHTS, "args": argparse.Namespace(out=PurePosixPath("x"))}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: refused, because loading it would execute pathlib.*PosixPath"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: a TorchScript program, not a checkpoint: .*state_dict\(\)"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_setting_of_torch_that_rules_out_other_unpicklers_leaves_weights_readable(tmp_path, monkeypatch):
    torch.save(WEIGHTS, tmp_path / "x.pth")
    torch.save({"args": argparse.Namespace(lr=0.1)}, tmp_path / "args.pth")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    assert torch.equal(read_checkpoint(tmp_path / "x.pth")["b"], WEIGHTS["b"])
    with pytest.raises(CheckpointError, match=r"args\.pth: damaged or cut short \(Weights only load failed"):
        read_checkpoint(tmp_path / "args.pth")


def test_arrays_of_another_byte_order_and_of_text_are_read(tmp_path):
    content = {"big": np.arange(6, dtype=">f4").reshape(2, 3), "text": np.array(["a", "bcd"]), "step": np.float32(2.5)}
    for protocol in (2, 4, 5):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        found = read_checkpoint(tmp_path / "x.pkl")
        assert all(np.array_equal(found[name], value) for name, value in content.items())
        assert torch.equal(take_state_dict(found)["big"], torch.arange(6.0).reshape(2, 3))
        assert take_state_dict(found).keys() == {"big"}
