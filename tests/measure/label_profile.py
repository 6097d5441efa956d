"""Profile the label graph by kernel in ONNX Runtime and OpenVINO, beside the arithmetic's lower bound.

    python tests/measure/label_profile.py [segnext_t] [512] [--portable]

Prints, for each runtime, milliseconds and calls per kernel and image, and the time that the graph's multiplications
take at the speed of a large matrix product.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from benchmarking.cases import Case
from benchmarking.ceilings import ceilings, count, machine
from benchmarking.peers import build
from segnext_timm import export

WARMUP, RUNS, SHOWN = 3, 10, 8


def profile_onnxruntime(file: Path, images: np.ndarray, threads: int, folder: Path) -> Counter[str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = threads, True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    for _ in range(WARMUP + RUNS):
        session.run(None, {"images": images})
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time") and event["ts"] >= starts[WARMUP]:
            times[event["args"]["op_name"]] += event["dur"] / 1e3 / RUNS
    return times


def profile_openvino(file: Path, images: np.ndarray, threads: int) -> Counter[str]:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    times: Counter[str] = Counter()
    for i in range(WARMUP + RUNS):
        request.infer({"images": images})
        for node in request.profiling_info if i >= WARMUP else ():
            times[f"{node.node_type} ({node.exec_type})"] += node.real_time.total_seconds() * 1e3 / RUNS
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="segnext_t")
    parser.add_argument("side", nargs="?", type=int, default=512)
    parser.add_argument("--portable", action="store_true")
    options = parser.parse_args()
    threads, ceiling = torch.get_num_threads(), ceilings("cpu")
    shape = (1, 3, options.side, options.side)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        case = Case(f"{options.model}@fused", "labels", options.side, options.side, 1, 150, "cpu", threads, folder)
        file = Path(folder) / "model.onnx"
        export(build(options.model, 150), file, shape, argmax=True, portable=options.portable)
        host = ", ".join(f"{name} {value}" for name, value in machine("cpu", ceiling).items())
        print(f"{host}\narithmetic alone: {count(case)[0] / ceiling[0] * 1e3:.1f} ms\n")
        profiles = {
            "ONNX Runtime": profile_onnxruntime(file, images, threads, Path(folder)),
            "OpenVINO": profile_openvino(file, images, threads),
        }
    for runtime, times in profiles.items():
        print(f"| {runtime} kernel | ms |\n|---|---|")
        for name, ms in times.most_common(SHOWN):
            print(f"| {name} | {ms:.1f} |")
        print(f"| others | {sum(times.values()) - sum(ms for _, ms in times.most_common(SHOWN)):.1f} |")
        print(f"| all | {sum(times.values()):.1f} |\n")


if __name__ == "__main__":
    main()
