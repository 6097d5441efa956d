"""Write tests/golden/agreement.safetensors: samples of what mmsegmentation computes, in float64.

pip install mmsegmentation==1.2.2 mmcv-lite==2.1.0 ftfy regex
python tests/reference/make_golden.py
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / name) for name in ("examples", "tests/helpers")]
import agreement
import reference
from random_checkpoints import VARIANTS

GOLDEN = Path(__file__).parents[1] / "golden" / "agreement.safetensors"


def main() -> None:
    samples = {}
    for variant in VARIANTS:
        state_dict, bases = agreement.weights(variant), agreement.bases(variant)
        for size in agreement.SIZES:
            outputs = reference.run(variant, state_dict, bases, agreement.images(size).double())
            for name, output in outputs.items():
                samples[f"{variant}.{size[0]}x{size[1]}.{name}"] = agreement.sample(output).float()
    save_file(samples, GOLDEN)
    print(f"{len(samples)} samples: {GOLDEN}")


if __name__ == "__main__":
    main()
