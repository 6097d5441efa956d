"""Peak memory of one case, measured in a process of its own."""

import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from publishing.reference import import_mmseg
from segmentation.recipe import UserError

from .cases import Case
from .runtimes import RUNTIMES, prepare

SCRIPT = Path(__file__).parents[1] / "benchmark.py"


def resident_mb(peak: bool) -> float:
    """Resident memory of this process in MB: now, or its peak since :func:`reset_peak`."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    name = "VmHWM:" if peak else "VmRSS:"
    return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1]) / 1024


def reset_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def measure_memory(case: Case) -> tuple[float, float | None]:
    """Megabytes that a case needs in a process of its own: of the process, and of torch's tensors."""
    call = [sys.executable, str(SCRIPT), "--child", json.dumps(asdict(case))]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{case.contender}: {done.stderr.strip().splitlines()[-1]}")
    return tuple(json.loads(done.stdout.strip().splitlines()[-1]))


def child(case: Case) -> None:
    """Run a case in this process, and print its memory as JSON."""
    torch.set_num_threads(case.threads)
    if case.model.startswith("mmseg"):
        import_mmseg()
    if case.way in RUNTIMES:
        for package in RUNTIMES[case.way].packages:
            __import__(package)
    before = resident_mb(peak=False)
    reset_peak()
    prepare_and_run(case)
    held = resident_mb(peak=True) - before
    if case.way in RUNTIMES:
        tensors = None
    elif "cuda" in case.device:
        tensors = torch.cuda.max_memory_allocated() / 2**20
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            prepare_and_run(case)
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        tensors = max(e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]") / 2**20
    print(json.dumps([held, tensors]))


def prepare_and_run(case: Case) -> None:
    once = prepare(case)
    for _ in range(3):
        once()
