"""Tell what holds on this machine, and how fast it is: `python tests/gpu/prove.py`.

    python tests/gpu/prove.py                                  # the GPU, in ten minutes
    python tests/gpu/prove.py --only machine steps             # some sections; keeps the results of the others
    python tests/gpu/prove.py --device cpu --small             # a dry run, in a minute and a half

Checks: the tests that need CUDA, agreement with the CPU, training in each precision, a killed and resumed run, two
processes. Measures: training steps beside the reference's arithmetic, depthwise convolutions, inference, the data.

Each section ends with a result: a failure is recorded, and the next section goes on. After each section, `prove.json`
in the output folder holds all results and `prove.md` one page on them. Needs no network. Where a package is missing,
the report says what was not run. The exit status is 1 if a check failed.
"""

import argparse
import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from harness import NotRunError, OutOfTimeError, Run, Section, last_lines, make_importable, require, say
from report import page

GRACE = 15  # seconds that a section may exceed its time before it is interrupted
PACKAGES = ("timm", "segmentation_models_pytorch")


@dataclass(frozen=True)
class Spec:
    """A section to run.

    Attributes:
        name: Name of the section.
        home: Module and function that run it.
        share: Share of the whole time. What a section leaves, the next ones have.
        is_check: Whether a failure makes the exit status 1.
        needs: Packages that it needs.
        call: The function, instead of `home`.
    """

    name: str
    home: str
    share: float
    is_check: bool = False
    needs: tuple[str, ...] = PACKAGES
    call: Callable[[Run, Section], None] | None = None

    def function(self) -> Callable[[Run, Section], None]:
        """The function that runs the section. Its module is imported only now, since a package may be missing."""
        if self.call:
            return self.call
        module, function = self.home.split(".")
        return getattr(importlib.import_module(module), function)


SPECS = (
    Spec("machine", "kernels.machine", 15, needs=()),
    Spec("tests", "checks.cuda_tests", 80, is_check=True),
    Spec("agreement", "checks.agreement", 35, is_check=True),
    Spec("training", "checks.training", 35, is_check=True),
    Spec("resume", "processes.resume", 70, is_check=True),
    Spec("processes", "processes.two_processes", 35, is_check=True),
    Spec("steps", "steps.training_steps", 200),
    Spec("depthwise", "kernels.depthwise", 30),
    Spec("inference", "inference.inference", 65),
    Spec("loader", "processes.loader", 25),
)


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise an OutOfTimeError after some seconds, where the system has such a clock."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise OutOfTimeError("the section did not end in time")

    handler = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def run_section(spec: Spec, run: Run) -> None:
    """Run a section and record how it ended. Only Ctrl-C is raised."""
    section = run.sections[spec.name] = Section(spec.name, spec.is_check)
    start, stopped = time.monotonic(), False
    say(f"{spec.name}, for at most {max(run.left(), 0):.0f} s")
    try:
        if run.left() <= 0:
            raise OutOfTimeError("no time was left")
        require(*spec.needs)
        with interrupted_after(run.left() + GRACE):
            spec.function()(run, section)
    except NotRunError as error:
        section.not_run.append(f"everything: {error}")
    except OutOfTimeError as error:
        stopped = True
        section.cut.append(f"the rest: {error}")
    except KeyboardInterrupt:
        stopped = True
        section.cut.append("the rest: interrupted")
        raise
    except Exception as error:
        section.error = last_lines(error)
        say("\n".join(section.error))
    finally:
        section.seconds = time.monotonic() - start
        section.finish(stopped)
        say(f"{spec.name}: {section.status}, {section.seconds:.0f} s")


def run_sections(specs: Sequence[Spec], run: Run, settings: dict[str, Any]) -> None:
    """Run sections one after another, and write the results after each."""
    start, total, spent = time.monotonic(), sum(spec.share for spec in specs), 0.0
    seconds = run.end - start
    for i, spec in enumerate(specs):
        spent += spec.share
        run.section_end = start + seconds * spent / total
        try:
            run_section(spec, run)
        finally:
            write(run, settings)
        remaining = [later.name for later in specs[i + 1 :]]
        if remaining and not device_works(run):
            say("CUDA does not answer any more: a new process continues.")
            continue_in_new_process(remaining, run)
            return


def device_works(run: Run) -> bool:
    """Whether the device still computes. Some errors of CUDA make every later call of the process fail."""
    if not run.cuda:
        return True
    try:
        return float(torch.ones(8, device=run.device).sum()) == 8
    except Exception:
        return False


def continue_in_new_process(names: list[str], run: Run) -> None:
    """Run the remaining sections in a new process, and take over its results."""
    minutes = max(run.end - time.monotonic(), 1) / 60
    command = [sys.executable, __file__, "--device", run.device.type, "--out", str(run.out)]
    command += ["--minutes", f"{minutes:.2f}", *["--small"] * run.small, "--only", *names]
    subprocess.run(command, check=False)
    run.sections = earlier_sections(run.out)


def earlier_sections(out: Path) -> dict[str, Section]:
    """Sections of the results in a folder."""
    path = out / "prove.json"
    if not path.is_file():
        return {}
    sections = json.loads(path.read_text(encoding="utf-8"))["sections"]
    return {fields["name"]: Section(**fields) for fields in sections}


def write(run: Run, settings: dict[str, Any]) -> None:
    """Write all results so far, replacing earlier files at once."""
    order = [spec.name for spec in SPECS]
    sections = sorted(run.sections.values(), key=lambda s: order.index(s.name) if s.name in order else len(order))
    results = {"settings": settings, "sections": [asdict(section) for section in sections]}
    replace(run.out / "prove.json", json.dumps(results, indent=1, default=str))
    try:
        text = page(sections, settings)
    except Exception as error:  # the results are safe in the other file, and the run must go on
        text = "\n".join(["The report could not be written; prove.json has the results.", *last_lines(error)])
        say(text)
    replace(run.out / "prove.md", text)


def replace(path: Path, text: str) -> None:
    """Write a file beside its place, then rename it."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def exit_status(run: Run) -> int:
    return int(any(section.is_check and section.status == "failed" for section in run.sections.values()))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        SystemExit: With one line, if the device is unknown or missing.
    """
    names = [spec.name for spec in SPECS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--small", action="store_true", help="a narrow model, small images and few steps")
    parser.add_argument("--out", type=Path, default=Path("runs/prove"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for everything")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device not in ("cuda", "cpu"):
        sys.exit(f"prove.py: unknown device {args.device!r}: choose cuda or cpu.")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("prove.py: torch finds no CUDA device here. For a dry run: --device cpu --small")
    if args.minutes <= 0:
        sys.exit(f"prove.py: --minutes must be positive, got {args.minutes:g}.")
    return args


def measure_in_child(request: str) -> None:
    """Measure what another process asks for; see `steps.in_children`."""
    import inference
    import steps

    measures = {"step": (steps.Step, steps.measure), "inference": (inference.Inference, inference.measure)}
    steps.child(request, measures)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    make_importable()
    if args.child:
        measure_in_child(args.child)
        return 0
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    run = Run(torch.device(args.device), args.small, out, time.monotonic() + 60 * args.minutes)
    specs = [spec for spec in SPECS if spec.name in args.only]
    if len(specs) < len(SPECS):
        run.sections = {name: s for name, s in earlier_sections(out).items() if name not in args.only}
    settings = {"device": args.device, "small": args.small, "minutes": args.minutes, "date": time.strftime("%Y-%m-%d")}
    try:
        run_sections(specs, run, settings)
    except KeyboardInterrupt:
        say(f"Interrupted; the results so far: {out / 'prove.md'}")
        return 130
    say(f"{out / 'prove.md'}, {out / 'prove.json'}")
    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
