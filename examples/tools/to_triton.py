"""Write a model repository for the Triton Inference Server: config.pbtxt and an ONNX graph of labels.

    pip install "onnx>=1.16" onnxruntime onnxscript
    python examples/tools/to_triton.py my-segnext models/segnext --size 512 --batch 8
    tritonserver --model-repository models

The graph takes normalized images of the size and gives labels, up to `--batch` at once. The configuration's
parameters hold the graph's metadata, such as mean, std and label_names: texts, as `parse_metadata` of
examples/deployment/preprocessing.py takes them.
"""

import argparse
import json
import re
import sys
from pathlib import Path

try:
    import onnx
except ModuleNotFoundError as error:
    sys.exit(f'to_triton.py: {error.name} is not installed: pip install "segnext-timm[export]"')

import segnext_timm
from segnext_timm.errors import SegNeXtError


def config(name: str, graph: onnx.ModelProto, batch: int, size: tuple[int, int]) -> str:
    """Format the configuration of a graph in the text form of Triton's ModelConfig.

    Triton puts requests that wait together into one batch; dimensions are listed without that of the batch.
    """
    metadata = {one.key: one.value for one in graph.metadata_props}
    channels = json.loads(metadata["input_size"])[1]
    dims = ", ".join(map(str, size))
    parameters = "".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}\n"
        for key, value in metadata.items()
    )
    return (
        f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {batch}\n'
        f'input [ {{ name: "images" data_type: TYPE_FP32 dims: [ {channels}, {dims} ] }} ]\n'
        f'output [ {{ name: "labels" data_type: TYPE_INT64 dims: [ {dims} ] }} ]\n'
        f"dynamic_batching {{ }}\n{parameters}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="published name, model folder, or repository on the Hub")
    parser.add_argument("folder", type=Path, help="what to write; its name is the model's in Triton")
    parser.add_argument("--size", default="512", help="of the images, 512 or 512x1024 [default: 512]")
    parser.add_argument("--batch", type=int, default=8, help="most images of a batch [default: 8]")
    args = parser.parse_args()
    found = re.fullmatch("([0-9]+)(?:x([0-9]+))?", args.size)
    if not found or args.batch < 1:
        parser.error("--size is pixels, such as 512 or 512x1024, and --batch 1 or more")
    if args.folder.exists():
        parser.error(f"{args.folder} exists: choose another name, or delete it")
    size = int(found[1]), int(found[2] or found[1])
    try:
        model = segnext_timm.load_segmenter(args.model)
        shape = (1, model.config["in_channels"], *size)
        file = args.folder / "1" / "model.onnx"  # 1 is the version
        segnext_timm.export(model, file, shape, dynamic=True, argmax=True, portable=True)
    except (SegNeXtError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    text = config(args.folder.name, onnx.load(file), args.batch, size)
    (args.folder / "config.pbtxt").write_text(text, encoding="utf-8")
    print(f"Wrote {args.folder}.")


if __name__ == "__main__":
    main()
