"""What the scripts for training and evaluation share. To use a script elsewhere, copy this folder with it.

The scripts import it before other packages: one that is missing is then told in one line, which names its extra.
"""

import sys
from pathlib import Path

# modules that the scripts import, by the extra that installs them
EXTRAS = {
    "train": ("accelerate", "matplotlib", "psutil", "tqdm", "tyro", "yaml"),
    "app": ("gradio",),
    "integrations": ("lightning", "peft", "torchgeo", "torchmetrics", "transformers"),
    "benchmark": ("mmcv", "mmengine", "mmseg"),
}


def _tell_missing(kind: type[BaseException], error: BaseException, traceback) -> None:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    for extra, modules in EXTRAS.items():
        if missing in modules:
            install = f'pip install "segnext-timm[{extra}]"'
            print(f"{Path(sys.argv[0]).name}: {missing} is not installed: {install}", file=sys.stderr)
            return
    sys.__excepthook__(kind, error, traceback)


sys.excepthook = _tell_missing
