"""The page on a visit to a GPU, in Markdown: goals, rules that decide what stays, failures, and all results."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

Row = dict[str, Any]
Case = tuple[str, str, str, str, float]  # what, a result, the one it is divided by, and the limit
NO_TIME = "no time was left"
GOALS: list[Case] = [
    ("step of T, ms", "steps: t, all: ms", "", "≤", 45),
    ("step of B, ms", "steps: b, all: ms", "", "≤", 90),
    ("step of T, times as fast as plain torch", "steps: t, plain: ms", "steps: t, all: ms", "≥", 2.5),
    ("step of B, times as fast as plain torch", "steps: b, plain: ms", "steps: b, all: ms", "≥", 2.3),
    ("memory of T over that of plain torch", "steps: t, all: MB", "steps: t, plain: MB", "≤", 0.4),
    ("memory of B over that of plain torch", "steps: b, all: MB", "steps: b, plain: MB", "≤", 0.55),
    ("labels of T, batch 1, compiled, ms", "inference: labels, t, 1, compiled: ms", "", "≤", 4),
    ("labels of T, batch 1, CUDA graph, ms", "inference: labels, t, 1, CUDA graph: ms", "", "≤", 4),
]
STRIPS = "pieces: strips of *, stage ?, {}: ms"
RULES: list[Case] = [
    ("Triton's strips stay: time over NCHW, all stages", STRIPS.format("Triton"), STRIPS.format("NCHW"), "≤", 0.5),
    ("T's strips stay: step with over without", "steps: t, Triton strips*: ms", "steps: t, none: ms", "≤", 0.85),
    ("T's loss kernel stays: step with over without", "steps: t, loss kernel*: ms", "steps: t, none: ms", "≤", 0.85),
    ("or for a third of its memory", "steps: t, loss kernel*: MB", "steps: t, none: MB", "≤", 0.67),
    ("grouped casts stay: T without over with", "steps: t, without grouped*: ms", "steps: t, all: ms", "≥", 1.05),
    ("TF32 pays: T without over with", "steps: t, without TF32: ms", "steps: t, all: ms", "≥", 1.05),
    ("`--compile blocks` stays: T without over with", "compiled: t, all: ms", "compiled: t, compiled*: ms", "≥", 1.05),
    ("a CUDA graph is needed: step of 1 image / kernels of 16", "profile: t, 1: ms", "profile: t, all: ms", "≥", 0.8),
]  # fmt: skip


def value(rows: list[Row], key: str) -> float | None:
    """Sum of the values under a key, "part: what: value", whose `what` may have wildcards; None if one is missing."""
    part, what, name = key.split(": ")
    found = [row.get(name) for row in rows if row["part"] == part and fnmatchcase(row["what"], what)]
    return sum(found) if found and None not in found else None


def judged(cases: list[Case], rows: list[Row], yes: str, no: str) -> list[list[str]]:
    """Lines of a table: what, its limit, what was measured, and whether that is within the limit."""
    lines = []
    for what, key, over, sign, limit in cases:
        one, two = value(rows, key), value(rows, over) if over else 1.0
        measured = one / two if one is not None and two else None
        verdict = "not measured"
        if measured is not None:
            verdict = yes if (measured <= limit if sign == "≤" else measured >= limit) else no
        lines.append([what, f"{sign} {limit}", shown("" if measured is None else measured), verdict])
    return lines


def shown(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace("|", "\\|")


def table(columns: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)] + [""]


def page(title: str, parts: Iterable[str], rows: list[Row]) -> str:
    """Results of a visit in Markdown; `title` names card, date and commit."""
    failed = [row for row in rows if "error" in row or row.get("holds") is False]
    lines = [f"# SegNeXt on {title}", "", "## Goals", ""]
    lines += table(["goal", "limit", "measured", ""], judged(GOALS, rows, "reached", "not reached"))
    lines += ["## Rules, written before the numbers were seen", ""]
    lines += table(["rule", "limit", "measured", ""], judged(RULES, rows, "yes", "no"))
    lines += [f"## Failed: {len(failed)} of {len(rows)}", ""]
    lines += [f"- {row['part']}, {row['what']}: {row.get('error', 'does not hold')}" for row in failed] + [""]
    for part in parts:
        own = [row for row in rows if row["part"] == part]
        lines += [f"## {part.capitalize()}", "", *(() if own else ("Not run.", ""))]
        lists = [(row["what"], key, row[key]) for row in own for key in row if isinstance(row[key], list)]
        columns = list(
            dict.fromkeys(key for row in own for key in row if key != "part" and not isinstance(row[key], list))
        )
        if own:
            lines += table(columns, [[shown(row.get(column, "")) for column in columns] for row in own])
        for what, key, items in lists:
            lines += [
                f"{what}, {key}:",
                "",
                *table(["name", "ms", "calls"], [list(map(shown, item)) for item in items]),
            ]
    return "\n".join(lines)
