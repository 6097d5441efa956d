"""Write checkpoints in every container."""

import pickle

import torch
from safetensors.torch import save_file

from random_checkpoints import save_jittor

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()}


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(protocol):
    return lambda content, path: path.write_bytes(pickle.dumps({k: v.numpy() for k, v in content.items()}, protocol))


WRITERS = {
    "zip": torch.save,
    "legacy": legacy,
    "safetensors": save_file,
    "jittor": lambda content, path: save_jittor(path, {k: v.numpy() for k, v in content.items()}),
    **{f"pickle {protocol}": pickled(protocol) for protocol in range(6)},
}
