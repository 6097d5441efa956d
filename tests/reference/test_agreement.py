"""MSCAN and SegNeXt compute what mmsegmentation's, and so the authors', compute."""

import subprocess
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file

import agreement
from make_golden import GOLDEN
from random_checkpoints import VARIANTS, segmenter_shapes, write
from segnext_timm import NMF2d, convert

EXAMPLES = Path(__file__).parents[2] / "examples"
cases = pytest.mark.parametrize("variant", VARIANTS)


@cases
def test_features_and_logits_agree_with_golden_samples(variant):
    golden = load_file(GOLDEN)
    state_dict = agreement.weights(variant)
    for size in agreement.SIZES:
        outputs = agreement.run(variant, state_dict, agreement.images(size))
        assert set(outputs) == {"feature0", "feature1", "feature2", "feature3", "logits", "masks"}
        for name, output in outputs.items():
            expected = golden[f"{variant}.{size[0]}x{size[1]}.{name}"]
            error = agreement.relative_error(agreement.sample(output), expected)
            assert error < 1e-5, f"{name} at {size}: relative error {error:.1e}"


@pytest.mark.reference
@pytest.mark.slow
@cases
def test_features_and_logits_agree_with_mmsegmentation(variant):
    import reference

    state_dict, bases = agreement.weights(variant), agreement.bases(variant)
    for size in agreement.SIZES:
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            x = agreement.images(size).to(dtype)
            expected = reference.run(variant, state_dict, bases, x)
            for name, output in agreement.run(variant, state_dict, x).items():
                error = agreement.relative_error(output, expected[name])
                print(f"mscan_{variant} {size} {dtype} {name}: relative error {error:.1e}")
                assert error < tolerance, f"{name} at {size} in {dtype}: relative error {error:.1e}"


@pytest.mark.reference
@pytest.mark.slow
@cases
def test_published_names_are_those_of_mmsegmentation(variant):
    import reference

    modules = {
        "backbone": reference.backbone(variant),
        "decode_head": reference.head(variant, 19, torch.zeros(1, VARIANTS[variant][3], 16)),
    }
    shapes = {f"{m}.{n}": tuple(v.shape) for m, module in modules.items() for n, v in module.state_dict().items()}
    assert shapes == segmenter_shapes(variant, 19)


@pytest.mark.reference
@pytest.mark.slow
@cases
def test_converted_checkpoints_predict_as_mmsegmentation(variant, tmp_path):
    import reference

    state_dict = agreement.weights(variant)
    segmenter = {name: value for name, value in state_dict.items() if not name.startswith("head.")}
    backbone = {name.removeprefix("backbone."): v for name, v in state_dict.items() if "decode_head" not in name}
    x = agreement.images((71, 99))
    *_, channels, rank = VARIANTS[variant]
    expected = reference.run(variant, state_dict, NMF2d(channels, rank).bases, x)
    for dialect in ("paper", "mmseg", "jittor"):
        convert(write(tmp_path / "segmenter", segmenter, dialect), tmp_path / "smp", force=True)
        convert(write(tmp_path / "backbone", backbone, dialect), tmp_path / "timm", force=True)
        encoder = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        outputs = agreement.outputs(encoder, smp.from_pretrained(tmp_path / "smp"), x)
        for name, output in outputs.items():
            error = agreement.relative_error(output, expected[name])
            print(f"mscan_{variant} from {dialect} {name}: relative error {error:.1e}")
            assert error < 1e-5, f"{name} from {dialect}: relative error {error:.1e}"


@pytest.mark.reference
@pytest.mark.slow
def test_importing_mmsegmentation_leaves_no_stand_in_behind():
    """Also when it is imported again, and when the import fails."""
    code = (
        "import sys, publishing.reference as reference\n"
        "sys.modules['ftfy'] = None\n"
        "try: reference.import_mmseg()\n"
        "except ImportError: print(sorted(name for name in sys.modules if name.startswith('mmcv.ops')))\n"
        "del sys.modules['ftfy']\n"
        "first, second = reference.import_mmseg(), reference.import_mmseg()\n"
        "import mmseg.datasets, mmseg.evaluation\n"
        "new = [m for n, m in sys.modules.items() if n.split('.')[0] in ('mmseg', 'mmcv') and not m.__spec__]\n"
        "print(first is second, new, sorted(name for name in sys.modules if name.startswith('mmcv.ops')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLES)
    assert done.stdout.splitlines() == ["[]", "True [] []"], done.stderr
