"""Memory that converting the large segmenter takes: `python tests/measure/convert_memory.py`.

Prints the peak of the process's memory during the conversion, above what it was after importing the package, as a
multiple of the checkpoint's size, for each way the weights are published. Linux only.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "helpers"))
from random_checkpoints import random_state_dict, segmenter_shapes, write


def measure(source: Path, target: Path) -> float:
    """Peak memory of converting, over the file's size, in a process of its own."""
    code = """
import sys
from pathlib import Path
import segnext_timm

def peak():
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024

before = peak()
segnext_timm.convert(sys.argv[1], sys.argv[2])
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""
    done = subprocess.run([sys.executable, "-c", code, source, target], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> dict[str, float]:
    """Measure and print; gives the multiples by dialect."""
    state_dict = random_state_dict(segmenter_shapes("l", 150))
    multiples = {}
    with tempfile.TemporaryDirectory() as folder:
        for dialect in ("paper", "mmseg", "jittor"):
            source = write(Path(folder) / dialect, state_dict, dialect)
            multiples[dialect] = measure(source, Path(folder) / f"{dialect}_out")
            print(f"{dialect}: {multiples[dialect]:.2f} times the {source.stat().st_size / 2**20:.0f} MiB of the file")
    return multiples


if __name__ == "__main__":
    main()
