"""Predict at other scales beside plain torch: `python tests/measure/predict_scales.py [--megapixels 0.6 2.5 12]`.

Prints, for each size, number of classes and option, the best time of three and the peak memory of `predict` and of the
same steps in plain torch: resize the image, run the model, resize its full-size output to the image, take the argmax.
Each way runs in a process of its own, the two in turn. Cases that need more memory than is free are left out. The model
is narrow, so that resizing is most of the work. Linux only.
"""

import argparse
import json
import math
import subprocess
import sys

CODE = """
import json, sys, time
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
import segmentation_models_pytorch as smp
from segnext_timm import predict
from segnext_timm.prediction.pipeline import fit

def held(name):
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name))) / 1024

way, height, width, classes, options, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
torch.manual_seed(0)
cfg = {"mean": [0.5] * 3, "std": [0.25] * 3}
model = smp.SegNeXt(
    "tu-test_mscan", encoder_weights=None, decoder_channels=32, decoder_rank=4, classes=classes, pretrained_cfg=cfg
).eval()
torch.nn.init.normal_(model.segmentation_head[0].weight)
image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
scale, fit_in = options.get("scales", [1])[0], options.get("fit_in", (max(height, width), min(height, width)))
size = fit((height, width), fit_in[0] * scale, fit_in[1] * scale)

@torch.inference_mode()
def plain():
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    x = x if size == (height, width) else F.interpolate(x, size, mode="bilinear", antialias=True)
    logits = model((x.float() / 255 - 0.5) / 0.25)
    if size != (height, width):
        logits = F.interpolate(logits, (height, width), mode="bilinear")
    return logits.argmax(1)[0].numpy().astype(np.uint8)

run = plain if way == "plain" else lambda: predict(model, image, mode="whole", **options)
predict(model, image[:64, :64])
Path("/proc/self/clear_refs").write_text("5")
before, times = held("VmRSS"), []
for _ in range(3):
    start = time.perf_counter()
    labels = run()
    times.append(time.perf_counter() - start)
np.save(sys.argv[2], labels)
print(json.dumps([min(times), held("VmHWM") - before]))
"""


def available_megabytes() -> float:
    """Memory that is free or can be freed."""
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("MemAvailable"))


def main() -> None:
    """Measure and print a row for each case."""
    import tempfile
    from pathlib import Path

    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.6, 2.5, 12])
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 150])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print("| megapixels | classes | option | predict | plain torch | ratio | predict, MB | plain, MB | equal labels |")
    print("|---|---|---|---|---|---|---|---|---|")
    for megapixels in args.megapixels:
        height = round(math.sqrt(megapixels * 1e6 / 1.6))
        width = round(1.6 * height)
        for classes in args.classes:
            for options in ({"scales": [0.5]}, {"scales": [1]}, {"scales": [1.5]}, {"fit_in": [2048, 512]}):
                scale = options.get("scales", [1])[0]
                area = scale**2 if "scales" in options else min(2048 / width, 512 / height) ** 2
                needed = height * width * classes * 4 * (1 + (area if area != 1 else 0)) / 1e6 + 100 * area * megapixels
                found, labels = {}, {}
                with tempfile.TemporaryDirectory() as folder:
                    for way in ("predict", "plain"):
                        if way == "plain" and needed > 0.9 * available_megabytes():
                            continue
                        file = str(Path(folder, f"{way}.npy"))
                        case = json.dumps([way, height, width, classes, options, args.threads])
                        command = [sys.executable, "-W", "ignore", "-c", CODE, case, file]
                        done = subprocess.run(command, capture_output=True, text=True)
                        if done.returncode:
                            continue
                        found[way], labels[way] = json.loads(done.stdout), np.load(file)
                name = " ".join(f"{key} {value}" for key, value in options.items())
                ours, plain = found["predict"], found.get("plain")
                beside = (
                    f"{plain[0]:.2f} s | {ours[0] / plain[0]:.2f} | {ours[1]:.0f} | {plain[1]:.0f} | "
                    f"{(labels['predict'] == labels['plain']).mean():.6f}"
                    if plain
                    else f"not run, it needs {needed / 1000:.0f} GB | | {ours[1]:.0f} | |"
                )
                print(f"| {megapixels} | {classes} | {name} | {ours[0]:.2f} s | {beside} |", flush=True)


if __name__ == "__main__":
    main()
