"""Check and measure SegNeXt on this machine's GPU, in nine minutes at most: `python tests/gpu/visit.py`.

    python tests/gpu/visit.py                                  # the GPU
    python tests/gpu/visit.py --only steps inference           # some parts
    python tests/gpu/visit.py --device cpu --small             # a dry run, in two minutes
    python tests/gpu/visit.py --page REPORT.jsonl              # write the page of a report again

Each result is a line of `CARD-DATE-COMMIT.jsonl` in the output folder, written as soon as it is known; the page beside
it, in Markdown, is written after each part. The same command continues a visit that was ended, on the same card and
commit. Each part has a process of its own, which is killed when its time is over, since nothing else ends a kernel that
hangs; one that ends by a fault is started again for the rest. The exit status is 1 if something failed. Needs Linux and
the extra `test`, and no network.
"""

import time

BEGAN = time.monotonic()

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from ctypes import c_wchar
from itertools import groupby
from pathlib import Path

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # to import torch and others without a look for CUDA by CUDA itself
import measurements
import torch
from measurements import PROCESSES, ROOT, Visit, look, read, start
from visit_page import page

# Second at which a part ends at the latest. Parts that end together run at once.
PARTS = {
    "machine": 30, "tests": 105, "trainings": 105, "agreement": 105, "compiling": 105, "profile": 130, "pieces": 195,
    "steps": 310, "inference": 365, "resuming": 430, "precisions": 480, "throughput": 510, "compiled": 540,
}  # fmt: skip


def measure(visit: Visit, part: str) -> None:
    visit.part, visit.known = part, read(visit.log)
    getattr(measurements, part)(visit)


def run(visit: Visit, parts: list[str]) -> None:
    """Run parts at once until all have ended, or the visit's time for them is over."""
    processes = {}
    while parts or processes:
        for part in parts:
            visit.running[part] = PROCESSES.RawArray(c_wchar, 200)
            processes[part] = start(measure, visit, part)
        parts = []
        for part, process in list(processes.items()):
            process.join(0.1)
            late = time.monotonic() > visit.end
            if process.is_alive() and not late:
                continue
            process.kill()
            process.join()
            del processes[part]
            what = visit.running[part].value
            if process.exitcode and (part, what) not in read(visit.log):  # else it was written before the fault
                visit.part = part
                visit.write(what, error="not done in time" if late else f"the process ended with {process.exitcode}")
            if process.exitcode and what and not late:
                parts.append(part)


def write_page(log: Path) -> Path:
    path = log.with_suffix(".md")
    path.write_text(page(log.stem, PARTS, list(read(log).values())), encoding="utf-8")
    return path


def main() -> int:
    """Run the parts. Returns 1 if something failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="narrow models, small images and few steps")
    parser.add_argument("--out", type=Path, default=Path("runs/visit"), help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--commit", help="name of the code's state, where git does not tell")
    parser.add_argument("--page", type=Path, metavar="REPORT", help="only write the page of this report")
    args = parser.parse_args()
    if args.page:
        print(write_page(args.page))
        return 0
    card, half = "cpu", "bf16"
    if args.device == "cuda":
        try:
            with ProcessPoolExecutor(1, PROCESSES) as pool:
                card, half = pool.submit(look).result()
        except (RuntimeError, AssertionError) as error:
            parser.error(f"torch finds no CUDA device here: {error} For a dry run: --device cpu --small")
    card = re.sub(r"\W+", "-", f"{card} small" if args.small else card).lower()
    git = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"]
    commit = args.commit or subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    args.out.mkdir(parents=True, exist_ok=True)
    new = args.out / f"{card}-{time.strftime('%Y-%m-%d')}-{commit}.jsonl"
    log = next(args.out.glob(f"{card}-????-??-??-{commit}.jsonl"), new).resolve()
    visit = Visit(torch.device(args.device), args.small, log, half)
    for until, parts in groupby(filter(args.only.__contains__, PARTS), PARTS.get):
        visit.end = BEGAN + until * (4 if args.small else 1)  # a dry run is not in a hurry
        run(visit, list(parts))
        path = write_page(log)
    print(path)
    return int(any("error" in row or row.get("holds") is False for row in read(log).values()))


if __name__ == "__main__":
    sys.exit(main())
