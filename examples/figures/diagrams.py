"""The diagram of SegNeXt: its encoder, its decoder, and the block and attention of its encoder."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from segmentation.pictures import BLUE, GRAY, INK, LIGHT, save
from segnext_timm.variants import VARIANTS, Variant

SIZE = (800, 748)  # units of the drawing, about the pixels of a page
PLAIN, ENCODER, ATTENTION, DECODER, MATRIX = "#ffffff", "#dbeafe", "#93c5fd", "#dcfce7", "#fcd34d"


class Diagram:
    """A sheet of boxes and arrows, whose rows count from the top."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), facecolor="white")
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, SIZE[0]), ylim=(SIZE[1], 0))
        self.axis.set_axis_off()

    def text(self, x: float, y: float, text: str, **kwargs) -> None:
        style = {"ha": "center", "va": "center", "fontsize": 9, "color": INK, "linespacing": 1.3}
        self.axis.text(x, y, text, **style | kwargs)

    def heading(self, x: float, y: float, text: str, note: str) -> None:
        self.text(x, y, text, ha="left", fontsize=10.5, weight="bold")
        self.text(x, y + 18, note, ha="left", va="top", color=GRAY, fontsize=8.5)

    def box(
        self, x: float, y: float, width: float, height: float, text: str, color: str = PLAIN, name: str = ""
    ) -> None:
        """Draw a box around its center (x, y); below it, the name that it has in the code."""
        corner = (x - width / 2, y - height / 2)
        style = "round,pad=0,rounding_size=4"
        self.axis.add_patch(FancyBboxPatch(corner, width, height, style, facecolor=color, edgecolor=INK, linewidth=0.8))
        self.text(x, y, text)
        self.text(x, y + height / 2 + 10, name, family="monospace", fontsize=8, color=GRAY)

    def frame(self, left: float, top: float, right: float, bottom: float, text: str, color: str) -> None:
        """Draw a frame behind a part, with its name at the lower left."""
        style = "round,pad=0,rounding_size=6"
        patch = FancyBboxPatch(
            (left, top), right - left, bottom - top, style, facecolor=color, edgecolor="none", alpha=0.55, zorder=0
        )
        self.axis.add_patch(patch)
        self.text(left + 8, bottom - 10, text, ha="left", fontsize=8.5, weight="bold")

    def sign(self, x: float, y: float, sign: str) -> None:
        self.axis.add_patch(Circle((x, y), 9, facecolor="white", edgecolor=INK, linewidth=0.8, zorder=3))
        self.text(x, y, sign, fontsize=11, zorder=4)

    def arrow(self, *points: tuple[float, float], color: str = INK) -> None:
        """Draw a line through points, with a head at the last."""
        if len(points) > 2:
            self.axis.plot(*zip(*points[:-1]), color=color, linewidth=0.9, zorder=1, solid_capstyle="round")
        style = {"arrowstyle": "-|>,head_width=0.18,head_length=0.35", "shrinkA": 0, "shrinkB": 0}
        self.axis.annotate("", points[-1], points[-2], arrowprops={**style, "color": color, "linewidth": 0.9}, zorder=1)

    def dot(self, x: float, y: float) -> None:
        """Mark where a line branches."""
        self.axis.add_patch(Circle((x, y), 2.4, facecolor=INK, edgecolor="none", zorder=2))

    def line(self, *points: tuple[float, float]) -> None:
        self.axis.plot(*zip(*points), color=INK, linewidth=0.9, zorder=1, solid_capstyle="round")

    def chain(self, y: float, parts: Sequence[tuple[float, float]]) -> None:
        """Connect the parts of a row, each a center and a width, by arrows."""
        for (x, width), (following, following_width) in itertools.pairwise(parts):
            self.arrow((x + width / 2, y), (following - following_width / 2, y))


def _draw_encoder(diagram: Diagram, variant: Variant) -> list[float]:
    """Draw the stages. Returns their centers."""
    name = f"Encoder: MSCAN-{variant.key.upper()}"
    diagram.heading(20, 64, name, "Stages 2 to 4 begin with a 3×3 convolution of stride 2; all end with LayerNorm.")
    y, half = 150, 40
    parts = [(62, 84), (184, 104)]
    diagram.box(62, y, 84, 2 * half, "image\n3 channels\nH × W")
    diagram.box(184, y, 104, 2 * half, "stem: two 3×3\nconvolutions\nof stride 2", ENCODER)
    for i, (dim, depth) in enumerate(zip(variant.dims, variant.depths)):
        parts.append((316 + 136 * i, 112))
        text = f"stage {i + 1}\nstride {4 << i}\n{depth} blocks\n{dim} channels"
        diagram.box(parts[-1][0], y, 112, 2 * half, text, ENCODER)
    diagram.chain(y, parts)
    return [x for x, _ in parts[2:]]


def _draw_decoder(diagram: Diagram, variant: Variant, stages: list[float]) -> None:
    width, rank = variant.decoder_channels, variant.decoder_rank
    note = f"Features of strides 8, 16 and 32 are squeezed\nto {width} channels, resized to stride 8, and summed."
    diagram.heading(20, 228, "Decoder: light Hamburger", note)
    total = (stages[1], 316)
    for i, x in enumerate(stages[1:]):
        diagram.arrow((x, 190), (x, 213))
        diagram.box(x, 228, 96, 30, "squeeze 1×1", DECODER)
        if i:
            diagram.arrow((x, 243), (x, 259))
            diagram.box(x, 273, 96, 28, f"resize ×{2 << (i - 1)}")
            diagram.line((x, 287), (x, total[1]))
    diagram.arrow((stages[1], 243), (total[0], total[1] - 9))
    diagram.arrow((stages[3], total[1]), (total[0] + 9, total[1]))
    diagram.dot(stages[2], total[1])
    diagram.sign(*total, "+")

    y, half = 382, 20
    diagram.arrow((total[0] - 9, total[1]), (62, total[1]), (62, y - half))
    parts = [(62, 84), (174, 56), (260, 84), (364, 92), (440, 18), (549, 114), (645, 58), (714, 52)]
    diagram.frame(118, 330, 478, 442, "Hamburger", DECODER)
    texts = ("GroupNorm\nReLU", "1×1\nReLU", f"NMF\n{rank} bases", "1×1\nGroupNorm", "", "1×1, GroupNorm\nReLU")
    names = ("squeeze_norm", "proj_in", "nmf", "proj_out", "", "align", "head", "")
    for (x, part), text, name in zip(parts, (*texts, "1×1 to\nclasses", "resize\n×8"), names):
        if text:
            color = MATRIX if name == "nmf" else DECODER if name else PLAIN
            diagram.box(x, y, part, 2 * half, text, color, name)
    diagram.chain(y, parts)
    diagram.sign(440, y, "+")
    diagram.text(440, y + 20, "ReLU", fontsize=8.5)
    diagram.dot(126, y)
    diagram.arrow((126, y), (126, 346), (440, 346), (440, y - 9))
    diagram.arrow((740, y), (778, y))
    diagram.text(762, y + 38, "logits\nH × W")


def _draw_block(diagram: Diagram) -> None:
    diagram.heading(
        20, 482, "A block of MSCAN", "Attention, then an MLP; each is normalized, scaled per channel, and added."
    )
    half = 15
    y, below = 574, 684
    parts = [(64, 40), (140, 44), (201, 50), (266, 52), (330, 44), (372, 18), (428, 52), (478, 18)]
    texts = ("BN", "1×1", "GELU", "MSCA", "1×1", "", "scale", "")
    names = ("norm1", "proj_in", "act", "msca", "proj_out", "", "ls1", "")
    diagram.frame(98, 534, 392, 626, "SpatialAttention", ENCODER)
    for (x, width), text, name in zip(parts, texts, names):
        if text:
            diagram.box(x, y, width, 2 * half, text, ATTENTION if text == "MSCA" else PLAIN, name)
    diagram.arrow((16, y), (44, y))
    diagram.chain(y, parts)
    diagram.arrow((107, y), (107, 544), (372, 544), (372, y - 9))
    diagram.arrow((30, y), (30, 526), (478, 526), (478, y - 9))

    diagram.arrow((478, y + 9), (478, 634), (16, 634), (16, below), (44, below))
    parts = [(64, 40), (140, 44), (212, 72), (288, 50), (352, 44), (428, 52), (478, 18)]
    texts = ("BN", "1×1", "3×3\ndepthwise", "GELU", "1×1", "scale", "")
    names = ("norm2", "fc1", "dwconv", "act", "fc2", "ls2", "")
    diagram.frame(98, 652, 392, 738, "ConvMlp", ENCODER)
    for (x, width), text, name in zip(parts, texts, names):
        if text:
            diagram.box(x, below, width, 2 * half + 6 * text.count("\n"), text, PLAIN, name)
    diagram.chain(below, parts)
    diagram.arrow((30, below), (30, 644), (478, 644), (478, below - 9))
    diagram.arrow((487, below), (508, below))
    for x, row in ((30, y), (107, y), (30, below)):
        diagram.dot(x, row)
    for x, row in ((372, y), (478, y), (478, below)):
        diagram.sign(x, row, "+")


def _draw_attention(diagram: Diagram) -> None:
    note = "A 5×5 and three pairs of strips, all\ndepthwise, weight the input."
    diagram.heading(544, 482, "Its attention: MSCA", note)
    columns, left, middle = (588, 644, 700, 756), 548, 644
    diagram.text(middle, 541, "x", style="italic", fontsize=10)
    diagram.arrow((middle, 548), (middle, 567))
    diagram.box(middle, 579, 108, 24, "5×5 depthwise")
    diagram.line((middle, 591), (middle, 599))
    diagram.line((columns[0], 670), (columns[0], 599), (columns[3], 599))
    for x, length in zip(columns[1:], (7, 11, 21)):
        diagram.arrow((x, 599), (x, 608))
        diagram.box(x, 618, 48, 20, f"1×{length}", ATTENTION)
        diagram.arrow((x, 628), (x, 637))
        diagram.box(x, 647, 48, 20, f"{length}×1", ATTENTION)
        if x != middle:
            diagram.line((x, 657), (x, 670))
    diagram.line((middle, 657), (middle, 661))
    diagram.arrow((columns[0], 670), (middle - 9, 670))
    diagram.arrow((columns[3], 670), (middle + 9, 670))
    diagram.arrow((middle, 679), (middle, 688))
    diagram.box(middle, 699, 48, 22, "1×1")
    diagram.arrow((middle, 710), (middle, 719))
    diagram.line((middle, 556), (left, 556), (left, 728))
    diagram.arrow((left, 728), (middle - 9, 728))
    diagram.arrow((middle + 9, 728), (middle + 36, 728))
    diagram.dot(middle, 556)
    diagram.dot(middle, 599)
    diagram.dot(columns[2], 670)
    diagram.dot(columns[2], 599)
    diagram.sign(middle, 670, "+")
    diagram.sign(middle, 728, "×")


def draw_architecture(path: Path, variant: str = "t") -> None:
    """Draw SegNeXt.

    Args:
        path: The picture, a PNG or an SVG.
        variant: The size: "t", "s", "b" or "l".
    """
    diagram = Diagram()
    title = "SegNeXt: convolutions, and one matrix decomposition for context"
    diagram.text(20, 26, title, ha="left", fontsize=13, weight="bold", color=BLUE)
    stages = _draw_encoder(diagram, VARIANTS[variant])
    _draw_decoder(diagram, VARIANTS[variant], stages)
    diagram.axis.plot((20, SIZE[0] - 20), (460, 460), color=LIGHT, linewidth=0.8)
    _draw_block(diagram)
    _draw_attention(diagram)
    if path.suffix == ".svg":
        with matplotlib.rc_context({"svg.hashsalt": "architecture"}):  # the same file every time
            diagram.figure.savefig(path, metadata={"Date": None})
    else:
        save(diagram.figure, path)
