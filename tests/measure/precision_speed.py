"""Export a trained model in every precision, and measure labels, mIoU, size and speed in ONNX Runtime and OpenVINO.

    python examples/quickstart.py --steps 320 --out runs/t
    python examples/quickstart.py --encoder tu-mscan_b --steps 240 --out runs/b
    python tests/measure/precision_speed.py runs/b 256            # sides of the graph's images

Images are the quickstart's street scenes; those that are compared were seen neither in training nor in calibration. All
graphs take turns. "naive" is what ONNX Runtime's quantizer does by default: all operators, weights per tensor.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from tqdm import tqdm

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from benchmarking.ceilings import machine
from segmentation import scenes
from segmentation.metrics import Scores, add_to_confusion
from segnext_timm import export
from segnext_timm.exporting.calibration import read_calibration
from segnext_timm.exporting.quantization import Reader, agreement
from segnext_timm.models.model_info import ModelInfo

ROUNDS = 15


def naive(source: Path, target: Path, images: list[np.ndarray]) -> Path:
    from onnxruntime.quantization import quantize_static

    quantize_static(source, target, Reader(images))
    return target


def runners(files: dict[str, Path]) -> dict:
    """A function of images for each file in each runtime."""
    import onnxruntime
    import openvino

    core, found = openvino.Core(), {}
    for name, file in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        found["ONNX Runtime", name] = lambda x, session=session: session.run(None, {"images": x})[0]
        if name != "naive":
            settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
            request = core.compile_model(file, "CPU", settings).create_infer_request()
            found["OpenVINO", name] = lambda x, request=request: request.infer({"images": x})[0].copy()
    return found


def main(folder: str, side: int) -> None:
    model = smp.from_pretrained(folder)
    info, size = ModelInfo(model), (1, 3, side, side)
    photos = [scenes.draw(7, index, 128)[0] for index in tqdm(range(64), desc="draw", leave=False)]
    held = [scenes.draw(8, index, 128) for index in tqdm(range(40), desc="draw", leave=False)]
    large = [torch.nn.functional.interpolate(torch.from_numpy(t)[None, None].float(), (side, side)) for _, t in held]
    truth = [t[0, 0].numpy().astype(np.int64) for t in large]
    tests = [read_calibration([image, image], info, size)[0][0] for image, _ in held]
    with tempfile.TemporaryDirectory() as work:
        files = {"fp32": export(model, Path(work) / "fp32.onnx", size)}
        for precision in ("fp16", "int8"):
            options = {"calibration": photos} if precision == "int8" else {}
            files[precision] = export(model, Path(work) / f"{precision}.onnx", size, precision=precision, **options)
        files["naive"] = naive(files["fp32"], Path(work) / "naive.onnx", read_calibration(photos, info, size)[0])
        found, expected, times = runners(files), [], {}
        host = ", ".join(f"{k} {v}" for k, v in machine("cpu", (0, 0)).items() if v)
        print(f"{host}; {folder}, {side}²")
        print("| runtime | precision | equal labels | mIoU | MB | ms | speed |\n|---|---|---|---|---|---|---|")
        for _ in range(ROUNDS):
            for key, run in found.items():
                start = time.perf_counter()
                run(tests[0])
                times.setdefault(key, []).append(time.perf_counter() - start)
        for (runtime, name), run in found.items():
            labels = [run(x).argmax(1) for x in tests]
            expected = expected or labels
            confusion = torch.zeros(info.num_classes, info.num_classes, dtype=torch.int64)
            for t, p in zip(truth, labels):
                add_to_confusion(confusion, torch.from_numpy(t), torch.from_numpy(p[0]), ignore_index=255)
            miou = 100 * Scores(scenes.CLASSES, confusion).miou
            ms = {key: 1e3 * statistics.median(values[3:]) for key, values in times.items()}
            mb = files[name].stat().st_size / 1e6
            speed = ms[runtime, "fp32"] / ms[runtime, name]
            cells = (f"{agreement(expected, labels):.2%}", f"{miou:.2f}", f"{mb:.1f}", f"{ms[runtime, name]:.1f}")
            print(f"| {runtime} | {name} | {' | '.join(cells)} | {speed:.2f}× |")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
