"""Convert a model to ncnn, a folder of three files, and compare its logits with the model's.

pip install pnnx ncnn
python examples/deployment/to_ncnn.py my-segnext model.ncnn --size 512 --precision fp16
python examples/deployment/run_ncnn.py model.ncnn photo.jpg labels.png

ncnn has no argmax. With fp16, the weights are stored in float16.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from converting import run

PACKAGES = ("pnnx", "ncnn")


def convert(graph: torch.nn.Module, images: torch.Tensor, folder: Path, metadata: dict[str, Any]) -> None:
    import pnnx

    with tempfile.TemporaryDirectory() as work:
        pnnx.export(graph, str(Path(work) / "model.pt"), (images,), fp16=metadata["precision"] == "fp16")
        folder.mkdir()
        for name in ("model.ncnn.param", "model.ncnn.bin"):
            shutil.copy(Path(work) / name, folder)
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


def execute(folder: Path, images: np.ndarray) -> np.ndarray:
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = False  # the matrix decomposition overflows in float16
    net.load_param(str(folder / "model.ncnn.param"))
    net.load_model(str(folder / "model.ncnn.bin"))
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(images[0]))
    return np.array(extractor.extract("out0")[1])[None]


if __name__ == "__main__":
    run(__doc__, ".ncnn", convert, execute, PACKAGES, argmax=False, precisions=("fp32", "fp16"))
