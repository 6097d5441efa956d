"""Convert a model folder of SegNeXt or MSCAN to a checkpoint of mmsegmentation; `segnext-timm convert` leads back.

python examples/deployment/to_mmseg.py my-segnext segnext_b.pth

The file keeps class names, colors and the rank of the decomposition beside the weights.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from segnext_timm import CheckpointError, SegNeXtError, load_segmenter
from segnext_timm.checkpoints.dialects import BASES, DECODER_NAMES, ENCODER, NATIVE_SQUEEZE, SQUEEZE
from segnext_timm.models.mscan import PUBLISHED_NAMES

# Values at which mmsegmentation's SegNeXt fixes these arguments
FIXED = {"activation": None, "aux_params": None, "decoder_eval_steps": 7, "output_stride": 32}
STATISTICS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # those of mmsegmentation's configurations, over 255
LABELS = {"classes": "label_names", "palette": "palette"}  # keys of `dataset_meta`, and of `pretrained_cfg`
STAGE = re.compile(r"^stages\.(\d)\.(patch_embed|block|norm)")  # what mscan.py makes of published names first


def native_to_mmseg(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename native parameters to mmsegmentation's names, without the bases, which mmsegmentation draws itself."""
    published = {}
    for name, value in state_dict.items():
        if name == BASES or name in NATIVE_SQUEEZE:
            continue
        own = name.removeprefix(ENCODER).replace("stages_", "stages.")
        renamed = own
        for theirs, ours in (*DECODER_NAMES, *PUBLISHED_NAMES):
            renamed = renamed.replace(ours, theirs)
        renamed = STAGE.sub(lambda match: f"{match[2]}{int(match[1]) + 1}", renamed)
        if renamed == own:
            raise CheckpointError(f"mmsegmentation's SegNeXt has no parameter for {name!r}.")
        published[f"backbone.{renamed}" if name.startswith(ENCODER) else renamed] = value
    squeeze = [state_dict[name] for name in NATIVE_SQUEEZE if name in state_dict]
    if len(squeeze) in (1, 2):
        raise CheckpointError("mmsegmentation's SegNeXt has four stages, this model has fewer.")
    return published | ({SQUEEZE: torch.cat(squeeze, dim=1)} if squeeze else {})


def convert(folder: Path, file: Path) -> None:
    """Write the checkpoint; says which normalization mmsegmentation's configuration has to state.

    Raises:
        CheckpointError: If the model computes what mmsegmentation's does not.
    """
    if file.suffix != ".pth" or file.exists():
        raise FileExistsError(f"{file}: choose a new name that ends in .pth.")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("_model_class", "SegNeXt") != "SegNeXt":
        raise CheckpointError(f"{folder}: holds {config['_model_class']}, not SegNeXt or MSCAN.")
    settings = {**config, **(config.get("model_args") or {})}
    if lost := [f"{key}={settings[key]!r}" for key, value in FIXED.items() if settings.get(key, value) != value]:
        raise CheckpointError(f"{folder}: mmsegmentation's file cannot state {', '.join(lost)}.")
    meta: dict[str, Any] = {}
    if "encoder_name" in config:
        model, facts = load_segmenter(folder), config.get("pretrained_cfg") or {}
        meta["config"] = f"ham_kwargs=dict(MD_R={config['decoder_rank']})"
        mean, std = facts.get("mean"), facts.get("std")
        if mean and (mean, std) != STATISTICS:
            print(f"State in mmsegmentation's configuration, times 255: mean {mean}, std {std}.")
    else:
        model, facts = timm.create_model(f"local-dir:{folder}", pretrained=True), config
    if facts.get("label_names"):
        meta["dataset_meta"] = {key: facts[name] for key, name in LABELS.items() if facts.get(name)}
    with tempfile.TemporaryDirectory(dir=file.parent) as work:
        torch.save({"state_dict": native_to_mmseg(model.state_dict()), "meta": meta}, Path(work) / file.name)
        (Path(work) / file.name).replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="model folder of SegNeXt or MSCAN")
    parser.add_argument("file", type=Path, help="what to write; ends in .pth")
    args = parser.parse_args()
    try:
        convert(args.folder, args.file)
    except (SegNeXtError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"Wrote {args.file}.")


if __name__ == "__main__":
    main()
