"""Compare with another checkout: `python tests/measure/before_after.py ../before [--variant t] [--rounds 5]`.

Prints the time of labels, logits, predict in windows and a training step of SegNeXt with 150 classes in this checkout
and in the other one, and the peak memory of each process. The two run in turn, each round in new processes; the figure
is the median of the rounds' best times. Linux only, on a quiet machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

CODE = """
import json, resource, sys, time
import numpy as np, torch
import segnext_timm
from segnext_timm import UpsampledCrossEntropyLoss, create_segmenter, predict

torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[2]))
model = create_segmenter(f"segnext_{sys.argv[1]}", drop_path_rate=0.1).eval().to(memory_format=torch.channels_last)
torch.nn.init.normal_(model.segmentation_head[0].weight)
x = torch.randn(1, 3, 512, 512).contiguous(memory_format=torch.channels_last)
image = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
batch = torch.randn(2, 3, 256, 256).contiguous(memory_format=torch.channels_last)
target = torch.randint(0, 150, (2, 256, 256))
criterion = UpsampledCrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

def labels():
    model.predict_labels(x)

def logits():
    with torch.inference_mode():
        model(x)

def whole():
    predict(model, image, fit_in=None)

def windows():
    predict(model, image, mode="slide", fit_in=None)

def step():
    model.train()
    model.upsampling = 1
    criterion(model(batch), target).backward()
    optimizer.step()
    optimizer.zero_grad()
    model.upsampling = 8
    model.eval()

found = {}
for run in (labels, logits, whole, windows, step):
    run()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    found[run.__name__] = 1e3 * min(times)
found["peak memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(found))
"""


def main() -> None:
    """Measure both checkouts in turn, and print a row for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--variant", default="t")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    checkouts = {"before": args.before.resolve(), "after": Path(__file__).parents[2]}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(args.rounds):
        for name, checkout in checkouts.items():
            command = [sys.executable, "-W", "ignore", "-c", CODE, args.variant, str(args.threads)]
            env = {**os.environ, "PYTHONPATH": str(checkout)}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            rounds[name].append(json.loads(done.stdout))
    print("| milliseconds | before | after | after / before |\n|---|---|---|---|")
    for key in rounds["before"][0]:
        before, after = (statistics.median(found[key] for found in rounds[name]) for name in checkouts)
        print(f"| {key} | {before:.1f} | {after:.1f} | {after / before:.3f} |")


if __name__ == "__main__":
    main()
