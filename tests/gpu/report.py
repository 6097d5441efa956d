"""The page that `prove.py` writes: what holds, how fast it is beside its bounds, and what was not run."""

from collections.abc import Iterable, Sequence
from typing import Any

from harness import Section

TITLES = {
    "machine": "Machine",
    "tests": "CUDA tests",
    "agreement": "Agreement with the CPU",
    "training": "Training on scenes",
    "resume": "Kill and resume",
    "processes": "Two processes",
    "steps": "Training steps",
    "depthwise": "Depthwise convolutions",
    "inference": "Inference",
    "loader": "Data loading",
}
MAX_ROWS = 14  # of a table; prove.json has all
MAX_LISTED = 4  # cut parts of a section that are named

Row = dict[str, Any]


def page(sections: Sequence[Section], settings: dict[str, Any]) -> str:
    """Write the page.

    Args:
        sections: The sections so far.
        settings: Device, small, date.
    """
    named = {section.name: section for section in sections}
    machine = named["machine"].facts if "machine" in named else {}
    taken = sum(section.seconds for section in sections) / 60
    dry = " This is a dry run: its times say nothing about a GPU." if settings["small"] else ""
    lines = [
        f"# SegNeXt on {machine.get('gpu') or machine.get('cpu') or settings['device']}",
        "",
        f"{settings['date']}, {taken:.1f} minutes.{dry}",
        "",
        *machine_lines(machine),
        "## What holds",
        "",
        *table(("section", "result", "details"), [(title(s), s.status, details(s)) for s in sections]),
        *failure_lines(sections),
    ]
    if "steps" in named:
        lines += step_lines(named["steps"], machine, judged=not settings["small"] and settings["device"] == "cuda")
    if "inference" in named:
        lines += inference_lines(named["inference"], machine)
    if "depthwise" in named:
        lines += depthwise_lines(named["depthwise"], machine)
    if "loader" in named:
        lines += loader_lines(named["loader"])
    return "\n".join([*lines, *left_out_lines(sections)]) + "\n"


def title(section: Section) -> str:
    return TITLES.get(section.name, section.name)


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    columns = list(columns)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return [*lines, *(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows), ""]


def number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def machine_lines(machine: Row) -> list[str]:
    """Describe the machine in a few lines."""
    if not machine:
        return []
    lines = []
    if "gpu" in machine:
        lines.append(
            f"{machine['gpus']} × {machine['gpu']}, {machine['memory_gib']:.0f} GiB, compute capability "
            f"{machine['compute_capability']}; driver {machine['driver']}, CUDA {machine['cuda']}, "
            f"cuDNN {machine['cudnn']}."
        )
    lines.append(f"CPU: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads.")
    lines.append(", ".join(f"{name} {value}" for name, value in machine.get("versions", {}).items()) + ".")
    rates = [f"{value / 1e3:.3g} TFLOP/s in {name}" for name, value in machine.get("matmul_gflops", {}).items()]
    if machine.get("copy_gb_per_s"):
        rates.append(f"a copy {machine['copy_gb_per_s']:.0f} GB/s")
    if rates:
        lines.append(f"Measured peak rates: a matrix product {', '.join(rates)}.")
    return [f"- {line}" for line in lines] + [""]


def details(section: Section) -> str:
    """Summarize a section in a cell."""
    parts = []
    if section.checks:
        parts.append(f"{sum(check['holds'] for check in section.checks)} of {len(section.checks)} checks hold")
    if section.name in ("tests", "resume", "processes"):
        parts += [check["detail"] for check in section.checks[-1:] if check["holds"]]
    if section.rows and not section.checks:
        failed = sum("error" in row for row in section.rows)
        plural = "s" * (len(section.rows) > 1)
        parts.append(f"{len(section.rows)} measurement{plural}" + (f", {failed} without result" if failed else ""))
    if section.error:
        parts.append(section.error[-1][:160])
    if section.status == "not run":
        parts += section.not_run[:1]
    if section.cut:
        parts.append(f"{len(section.cut)} parts cut for time")
    return "; ".join(parts)


def failure_lines(sections: Sequence[Section]) -> list[str]:
    """List the checks that failed."""
    lines = []
    for section in sections:
        failed = [check for check in section.checks if not check["holds"]]
        lines += [f"- {title(section)}: {check['name']} **fails**. {check['detail']}" for check in failed[:6]]
        lines += [f"- {title(section)}: {len(failed) - 6} more fail."] if len(failed) > 6 else []
    return [*lines, ""] if lines else []


# Figures


def with_counts(row: Row, rows: Sequence[Row]) -> Row:
    """A row with the arithmetic and traffic of the same work in eager torch, where it has none itself."""
    if "gflops" in row:
        return row
    keys = ("model", "task", "variant", "batch", "size", "precision")
    for other in rows:
        if "gflops" in other and all(row.get(key) == other.get(key) for key in keys):
            return {**row, "gflops": other["gflops"], "gigabytes": other["gigabytes"]}
    return row


def bounds(row: Row, machine: Row) -> tuple[float | None, float | None]:
    """Milliseconds of a row's arithmetic at the rate of a matrix product, and of its traffic at that of a copy."""
    rate = machine.get("matmul_gflops", {}).get(row["precision"])
    copy = machine.get("copy_gb_per_s")
    arithmetic = 1e3 * row["gflops"] / rate if rate and "gflops" in row else None
    return arithmetic, 1e3 * row["gigabytes"] / copy if copy and "gigabytes" in row else None


def share_of_bound(row: Row, machine: Row) -> float | None:
    """The larger bound over the measured time."""
    found = [bound for bound in bounds(row, machine) if bound is not None]
    return max(found) / row["ms"] if found and row.get("ms") else None


def figure_cells(row: Row, rows: Sequence[Row], machine: Row) -> list[str]:
    """Time, speed, memory and bounds of a row."""
    if "error" in row:
        return [row["error"], "", "", "", "", ""]
    row = with_counts(row, rows)
    share = share_of_bound(row, machine)
    cells = [number(row["ms"], 2), number(row["images_per_s"]), number(row["peak_mb"], 0)]
    return [*cells, *(number(bound, 2) for bound in bounds(row, machine)), "" if share is None else f"{share:.0%}"]


FIGURES = ("ms", "images/s", "MB", "arithmetic, ms", "traffic, ms", "of the bound")


def step_lines(section: Section, machine: Row, judged: bool) -> list[str]:
    """Table of training steps, and the goals."""
    rows = section.rows
    cells = [
        [
            *(r["model"], r["variant"], f"{r['batch']}×{r['size']}²", r["precision"], r["layout"], r["mode"]),
            *figure_cells(r, rows, machine),
        ]
        for r in rows[:MAX_ROWS]
    ]
    lines = [
        "## Training steps",
        "",
        "`plain` is the reference's arithmetic in plain torch. Bounds: the arithmetic at ",
    ]
    lines[-1] += (
        "the rate of a matrix product of the precision, and the traffic of eager torch's operations at that of "
    )
    lines[-1] += "a copy; the larger one counts."
    lines += ["", *table(("model", "", "batch", "precision", "layout", "mode", *FIGURES), cells)]
    lines += more_lines(len(rows))
    goals = goal_rows(rows, machine)
    if goals:
        verdicts = [(*goal[:-1], ("met" if goal[-1] else "not met") if judged else "not judged") for goal in goals]
        lines += ["Goals:", "", *table(("configuration", "goal", "measured", ""), verdicts)]
    return lines


def more_lines(count: int) -> list[str]:
    return [f"{count - MAX_ROWS} more are in prove.json.", ""] if count > MAX_ROWS else []


def best(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The fastest row with the given values, one of several for tuples."""

    def fits(row: Row) -> bool:
        return "ms" in row and all(
            row.get(key) in value if isinstance(value, tuple) else row.get(key) == value
            for key, value in wanted.items()
        )

    return min(filter(fits, rows), key=lambda row: row["ms"], default=None)


def goal_rows(rows: Sequence[Row], machine: Row) -> list[tuple[str, str, str, bool]]:
    """Compare SegNeXt with the reference at the largest batch of each model and precision that both were measured at.

    Returns:
        Configuration, goal, what was measured, and whether the goal is met.
    """
    goals = []
    for variant, name in dict.fromkeys((row["variant"], row["precision"]) for row in rows):
        group = [row for row in rows if (row["variant"], row["precision"]) == (variant, name) and row["size"] <= 512]
        shapes = {(r["batch"], r["size"]) for r in group if r["model"] == "plain" and "ms" in r}
        shapes &= {(r["batch"], r["size"]) for r in group if r["model"] == "segnext" and "ms" in r}
        if not shapes:
            continue
        batch, size = max(shapes)
        group = [row for row in group if (row["batch"], row["size"]) == (batch, size)]
        reference = best(group, model="plain", layout="NCHW") or best(group, model="plain")
        eager = best(group, model="segnext", mode="eager")
        compiled = best(group, model="segnext", mode=("blocks", "encoder"))
        what = f"{variant}, {batch}×{size}², {name}"
        if eager:
            speed = reference["ms"] / eager["ms"]
            goals.append((what, "step 1.5× as fast as the reference's, eager", f"{speed:.2f}×", speed >= 1.5))
        if compiled:
            speed = reference["ms"] / compiled["ms"]
            goals.append((what, "step 2.5× as fast, compiled", f"{speed:.2f}×", speed >= 2.5))
        if eager and reference.get("peak_mb"):
            memory = eager["peak_mb"] / reference["peak_mb"]
            goals.append((what, "half the reference's memory", f"{memory:.2f}×", memory <= 0.5))
        share = share_of_bound(eager, machine) if eager else None
        if share is not None:
            goals.append((what, "60% of the bound, eager", f"{share:.0%}", share >= 0.6))
    return goals


def inference_lines(section: Section, machine: Row) -> list[str]:
    """Table of predictions."""
    rows = section.rows
    cells = [
        [
            *(r["task"], r["variant"], f"{r['batch']}×{r['size']}²", r["precision"], r["mode"]),
            *figure_cells(r, rows, machine),
        ]
        for r in rows[:MAX_ROWS]
    ]
    lines = ["## Inference", "", *table(("task", "", "batch", "precision", "mode", *FIGURES), cells)]
    return [*lines, *more_lines(len(rows))] if rows else []


def depthwise_lines(section: Section, machine: Row) -> list[str]:
    """Sums over all depthwise convolutions of a model, in both layouts."""
    copy, cells = machine.get("copy_gb_per_s"), []
    for name, s in section.facts.get("totals", {}).items():
        cell = [name]
        for direction in ("forward", "backward"):
            bound = 1e3 * s[f"{direction}_gb"] / copy if copy else None
            cell += [number(s[f"{direction}_ms_{layout}"], 2) for layout in ("NCHW", "channels_last")]
            cell.append(number(bound, 2))
        cells.append([*cell, f"{s['channels_last_faster']} of {s['of']}"])
    if not cells:
        return []
    columns = ("model", "forward: NCHW, ms", "channels_last, ms", "bound, ms")
    columns += ("backward: NCHW, ms", "channels_last, ms", "bound, ms", "channels_last is faster")
    heading = f"All of a model, {section.facts['batch']}×{section.facts['image_size']}²; the bound is the traffic's."
    return ["## Depthwise convolutions", "", heading, "", *table(columns, cells)]


def loader_lines(section: Section) -> list[str]:
    """Whether data come as fast as they are used."""
    speed, used = section.facts.get("loader_images_per_s"), section.facts.get("step_images_per_s")
    if not speed:
        return []
    row = section.rows[0]
    line = f"{speed:.0f} images/s of {row['crop']}² with {row['workers']} workers"
    if used:
        verdict = "the device waits for data" if section.facts["starved"] else "data come fast enough"
        line += f"; the fastest training step uses {used:.0f} images/s: {verdict}"
    return ["## Data loading", "", f"{line}.", ""]


def left_out_lines(sections: Sequence[Section]) -> list[str]:
    """What was not run, or cut, and why."""
    lines = []
    for section in sections:
        lines += [f"- {title(section)}: not run: {text}" for text in section.not_run[:MAX_LISTED]]
        if len(section.not_run) > MAX_LISTED:
            lines.append(f"- {title(section)}: {len(section.not_run) - MAX_LISTED} more not run, see prove.json")
        if section.cut:
            more = f" and {len(section.cut) - MAX_LISTED} more" if len(section.cut) > MAX_LISTED else ""
            lines.append(f"- {title(section)}: cut for time: {'; '.join(section.cut[:MAX_LISTED])}{more}")
    return ["## Not run", "", *(lines or ["Everything was run."])]
