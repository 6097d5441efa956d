"""The sizes of SegNeXt (T, S, B and L of the paper, and a narrow one for tests), and where models are on the Hub.

Imports nothing heavy.
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Variant:
    """One size of MSCAN and SegNeXt, from the paper (https://arxiv.org/abs/2209.08575, table 2) and its code."""

    key: str  # "t", "s", "b", "l" or "narrow"
    backbone: str  # name in timm
    dims: tuple[int, int, int, int]  # channels of the stages
    depths: tuple[int, int, int, int]  # blocks of the stages
    decoder_channels: int
    decoder_rank: int  # of the matrix decomposition
    drop_path_rate: float  # of the last block, in the code's ADE20K configurations


VARIANTS = {
    "t": Variant("t", "mscan_t", (32, 64, 160, 256), (3, 3, 5, 2), 256, 16, 0.1),
    "s": Variant("s", "mscan_s", (64, 128, 320, 512), (2, 2, 4, 2), 256, 16, 0.1),
    "b": Variant("b", "mscan_b", (64, 128, 320, 512), (3, 3, 12, 3), 512, 64, 0.1),
    "l": Variant("l", "mscan_l", (64, 128, 320, 512), (3, 5, 27, 3), 1024, 64, 0.3),
}
NARROW = Variant("narrow", "test_mscan", (16, 24, 32, 48), (1, 1, 2, 1), 32, 16, 0.0)
MIN_SIDE = 32  # of an image in pixels: the stride of the last stage

# Hub repository of each published model that has one, by its name; `examples/publishing/publish.py` writes the file
HUB_IDS: dict[str, str] = json.loads(Path(__file__).with_name("hub_ids.json").read_text(encoding="utf-8"))
