"""Labels of a 2048×1024 image of 150 classes: `python tests/measure/label_memory.py`.

Prints time and peak memory of resizing the logits and taking the greatest, done plainly and by `resized_argmax`, each
in a process of its own. The logits are a random network's, of random images. Linux only.
"""

import json
import subprocess
import sys
from dataclasses import dataclass

CODE = """
import json, statistics, sys, time
from pathlib import Path
import torch
from segnext_timm import create_segmenter
from segnext_timm.models.losses import resized_argmax

def held(name):
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name))) / 1024

size = (1024, 2048)
def plain(logits):
    return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)

way = {"plain": plain, "resized_argmax": lambda logits: resized_argmax(logits, size)}[sys.argv[1]]
torch.manual_seed(0)
with torch.inference_mode():
    logits = create_segmenter("segnext_t", upsampling=1).eval()(torch.randn(1, 3, *size)).clone()
    Path("/proc/self/clear_refs").write_text("5")
    before, times = held("VmRSS"), []
    for _ in range(3):
        start = time.perf_counter()
        way(logits)
        times.append(time.perf_counter() - start)
print(json.dumps([held("VmHWM") - before, statistics.median(times) * 1e3]))
"""


@dataclass
class Figures:
    """What a way took."""

    megabytes: float
    milliseconds: float


def main() -> tuple[Figures, Figures]:
    """Measure and print; gives the figures of both ways."""
    figures = []
    for way in ("plain", "resized_argmax"):
        done = subprocess.run([sys.executable, "-c", CODE, way], capture_output=True, text=True, check=True)
        figures.append(Figures(*json.loads(done.stdout)))
        print(f"{way}: {figures[-1].megabytes:.0f} MB, {figures[-1].milliseconds:.0f} ms")
    plain, ours = figures
    less, faster = plain.megabytes / ours.megabytes, plain.milliseconds / ours.milliseconds
    print(f"{less:.1f} times less memory, {faster:.1f} times as fast")
    return plain, ours


if __name__ == "__main__":
    main()
