"""Print the README's table of published weights: names, sizes, results, origins, license caveats, what was verified.

    python tests/measure/weights_table.py

What was verified comes from `tests/golden/verified.json`, a report of `examples/publishing/verify.py`.
"""

import functools
import json
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from segnext_timm import SegNeXt
from segnext_timm.checkpoints.catalog import (
    BACKBONES,
    MULTI_SCALE,
    ORIGINS,
    SINGLE_SCALE,
    BackboneCfg,
    get_segmenter_cfg,
    list_segmenters,
)

REPORT = Path(__file__).parents[1] / "golden" / "verified.json"


def status(names, entries):
    """Whether checkpoints were verified, in words."""
    verified = [name for name in names if entries.get(name, {}).get("status") == "verified"]
    if not verified:
        return "not yet verified"
    if len(verified) == len(names):
        return f"verified {max(entries[name]['date'] for name in names)}"
    sizes = ", ".join(name.split("_")[1][0].upper() for name in verified)
    return f"{sizes} verified; others not yet"


def gmacs(model, side):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2e9


@functools.cache
def size_of_segmenter(encoder, channels, rank, classes):
    """Millions of parameters, and GMACs at 512²."""
    with torch.device("meta"):
        model = SegNeXt(encoder, encoder_weights=None, decoder_channels=channels, decoder_rank=rank, classes=classes)
    return sum(p.numel() for p in model.parameters()) / 1e6, gmacs(model, 512)


@functools.cache
def size_of_backbone(name, classes):
    """Millions of parameters, and GMACs at 224²."""
    model = timm.create_model(name, num_classes=classes, device="meta")
    return sum(p.numel() for p in model.parameters()) / 1e6, gmacs(model, 224)


def sizes(found):
    """Two cells: parameters and GMACs of the variants."""
    return [", ".join(f"{value:.1f}" for value in values) for values in zip(*found)]


def size(cfg):
    if isinstance(cfg, BackboneCfg):
        return size_of_backbone(cfg.variant.backbone, 1000)
    return size_of_segmenter(cfg.encoder_name, cfg.decoder_channels, cfg.decoder_rank, cfg.num_classes)


def accuracy(cfg):
    if isinstance(cfg, BackboneCfg):
        return f"{cfg.top1}"
    values = [cfg.miou.get(setting) for setting in (SINGLE_SCALE, MULTI_SCALE)]
    return " / ".join(f"{value}" for value in values if value is not None) or "not published"


def statement(term):
    return f"{term['says']} ([source]({term['source']}))"


def table(report=REPORT):
    """The table in Markdown: one row per origin and data set."""
    entries = json.loads(report.read_text(encoding="utf-8"))["checkpoints"]
    columns = ("name", "data set", "parameters, M", "GMACs", "published, %", "origin", "verified")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    groups, terms = {}, {}
    for cfg in (*BACKBONES.values(), *map(get_segmenter_cfg, list_segmenters())):
        groups.setdefault(cfg.name.split(".")[1], []).append(cfg)
        terms[cfg.dataset] = cfg.terms
    for tag, cfgs in groups.items():
        origin, keys = ORIGINS[cfgs[0].origin], [cfg.variant.key for cfg in cfgs]
        architecture = cfgs[0].name.split("_")[0]
        name = f"`{architecture}_{keys[0] if len(keys) == 1 else '{' + ','.join(keys) + '}'}.{tag}`"
        found, published = sizes(map(size, cfgs)), ", ".join(map(accuracy, cfgs))
        cells = (name, cfgs[0].dataset, *found, published, f"[{origin.name}]({origin.url})")
        lines.append(f"| {' | '.join(cells)} | {status([cfg.name for cfg in cfgs], entries)} |")
    notes = {}
    for origin in ORIGINS.values():
        notes.setdefault(origin.license_note, []).append(origin.name)
    caveats = [f"{', '.join(names)}: {note}." for note, names in notes.items()]
    said = [f"- {name}: {'; '.join(map(statement, statements))}." for name, statements in terms.items()]
    lines += ["", "License notes. " + " ".join(caveats), ""]
    return (
        "\n".join([*lines, "Terms of the data sets behind the weights, as their sources state them:", "", *said]) + "\n"
    )


if __name__ == "__main__":
    print(table(), end="")
