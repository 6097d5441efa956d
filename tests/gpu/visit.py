"""What the sections of `prove.py` share: their results, models, data and clocks."""

import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
import segnext_timm

CLASSES, IGNORED = 150, 255
Row = dict[str, Any]
Call = Callable[[], Any]


@dataclass
class Visit:
    """Settings and results of a run.

    Attributes:
        device: "cuda" or "cpu".
        small: Measure narrow models, small images and few steps.
        out: Folder of the results.
        end: When the running section must end, on the clock of time.monotonic.
        rows: Results so far, each with the name of its section.
    """

    device: torch.device
    small: bool
    out: Path
    end: float = math.inf
    section: str = ""
    rows: list[Row] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def variants(self) -> tuple[str, ...]:
        return ("narrow",) if self.small else ("t", "b")

    @property
    def half(self) -> torch.dtype:
        has_bf16 = not self.cuda or torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16

    def add(self, what: str, **values: Any) -> None:
        """Record and print a result."""
        self.rows.append({"section": self.section, "what": what, **values})
        line = json.dumps(self.rows[-1], default=str)
        print(line, flush=True)
        with (self.out / "prove.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def measure(self, what: str, call: Callable[..., Row], *arguments: Any) -> None:
        """Record what a call returns, or how it failed; nothing but its name once the section's time is over."""
        if time.monotonic() > self.end:
            self.add(what, note="no time was left")
            return
        try:
            values = call(*arguments)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            values = {"error": f"{type(error).__name__}: {lines[0]}"[:200]}
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
        self.add(what, **values)


def page(rows: list[Row]) -> str:
    """Results in Markdown, a table a section."""
    lines = ["# SegNeXt on a GPU", "", time.strftime("%Y-%m-%d"), ""]
    for section in dict.fromkeys(row["section"] for row in rows):
        own = [row for row in rows if row["section"] == section]
        columns = list(dict.fromkeys(key for row in own for key in row if key != "section"))
        cells = [[row.get(column, "") for column in columns] for row in own]
        shown = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in line] for line in cells]
        table = [columns, ["---"] * len(columns), *shown]
        lines += [f"## {section}", "", *(f"| {' | '.join(line)} |" for line in table), ""]
    return "\n".join(lines)


def median_ms(call: Call, device: torch.device, seconds: float = 1.0, most: int = 20) -> float:
    """Median time of a call, of 3 to `most` measurements in about `seconds`, after three calls to warm up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < 3 or (len(times) < most and time.monotonic() < end):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def create(variant: str) -> torch.nn.Module:
    """SegNeXt of 150 classes with random weights, the same every time: of the paper's size, or "narrow"."""
    torch.manual_seed(0)
    if variant != "narrow":
        return segnext_timm.create_segmenter(f"segnext_{variant}", classes=CLASSES)
    options: Row = {"encoder_weights": None, "classes": CLASSES, "decoder_channels": 32, "decoder_rank": 8}
    return segnext_timm.SegNeXt("tu-test_mscan", **options)


def batch_of(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images (B, 3, H, W) and labels (B, H, W), some of them ignored."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, height, width, generator=generator)
    labels = torch.randint(0, CLASSES, (batch, height, width), generator=generator)
    labels[:, : height // 8] = IGNORED
    return images, labels


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def resized(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def captured(call: Call) -> Call:
    """Capture a call in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
