"""Eight threads use the same models at once: `python tests/measure/stress.py [SECONDS]`, 600 by default.

Each thread draws one job after another: predict whole, in windows, at scales and in batches, label directly, call a
model, save it and load it again, read checkpoints of several containers. All share models of several architectures and
activations, one in training mode, alone and in wrappers. Every answer is compared with that of a single thread; wrong
ones are printed, and the exit status is 1.
"""

import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch

from segnext_timm import load_segmenter, predict
from segnext_timm.checkpoints.formats import read_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from random_checkpoints import backbone_shapes, random_state_dict

THREADS = 8
OPTIONS = (
    {},
    {"mode": "slide", "window": 64, "stride": 40},
    {"scales": (0.5, 1.5), "flip": True},
    {"fit_in": (96, 64)},
    {"probabilities": True},
)


def make_models() -> dict[str, torch.nn.Module]:
    """Models by name; those of a name that ends in "training" are in training mode."""
    torch.manual_seed(0)
    narrow = {"encoder_weights": None, "decoder_channels": 32, "decoder_rank": 4}
    unet = {"encoder_weights": None, "decoder_channels": (16, 8, 8, 8, 8), "classes": 3}
    models = {
        "logits": smp.SegNeXt("tu-test_mscan", classes=5, **narrow),
        "binary": smp.SegNeXt("tu-test_mscan", classes=1, activation="sigmoid", **narrow),
        "softmax": smp.SegNeXt("tu-test_mscan", classes=4, activation="softmax2d", **narrow),
        "unet": smp.Unet("tu-test_mscan", activation="sigmoid", **unet),
        "hardsigmoid": smp.Unet("tu-test_mscan", activation=torch.nn.Hardsigmoid, **unet),
        "training": smp.SegNeXt("tu-test_mscan", classes=3, **narrow),
    }
    for name, model in models.items():
        model.pretrained_cfg = {"mean": [0.5] * 3, "std": [0.25] * 3}
        torch.nn.init.normal_(model.segmentation_head[0].weight)
        model.train(name == "training")
    return models


def write_checkpoints(folder: Path) -> list[Path]:
    """Write a state dict in torch's two containers and in one with numpy scalars beside it."""
    state_dict = random_state_dict(backbone_shapes("t"))
    files = [folder / name for name in ("zip.pth", "old.pth", "scalars.pth")]
    torch.save(state_dict, files[0])
    torch.save(state_dict, files[1], _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state_dict, "best": np.float64(0.5), "seen": np.arange(3)}, files[2])
    return files


def predicted(model, image, options) -> list[np.ndarray]:
    result = predict(model, image, **options)
    return list(result) if isinstance(result, tuple) else [result]


def called(model, x) -> list[np.ndarray]:
    with torch.no_grad():
        return [model(x).numpy()]


def saved_and_loaded(model, folder) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        model.save_pretrained(inner)
        loaded = load_segmenter(inner)
    return [value.numpy() for value in loaded.state_dict().values()]


def read(file) -> list[np.ndarray]:
    content = read_checkpoint(file)
    return [value.numpy() for value in content.get("state_dict", content).values()]


def jobs(folder: Path) -> dict[str, Callable[[], list[np.ndarray]]]:
    """Make jobs by name; each returns arrays that do not depend on what else runs."""
    images = [np.random.default_rng(i).integers(0, 256, (70 + 20 * i, 100, 3), np.uint8) for i in range(len(OPTIONS))]
    x = torch.randn(2, 3, 64, 96)
    found: dict[str, Callable[[], list[np.ndarray]]] = {}
    for name, model in make_models().items():
        for image, options in zip(images, OPTIONS):
            found[f"predict {name} {options}"] = partial(predicted, model, image, options)
            found[f"predict wrapped {name} {options}"] = partial(
                predicted, torch.nn.DataParallel(model), image, options
            )
        if hasattr(model, "predict_labels"):
            found[f"label {name}"] = lambda model=model: [model.predict_labels(x).numpy()]
        if not model.training:
            found[f"call {name}"] = partial(called, model, x)
            if isinstance(model, smp.SegNeXt):  # smp's own save of one model is not for several threads
                found[f"save and load {name}"] = partial(saved_and_loaded, model, folder)
    for file in write_checkpoints(folder):
        found[f"read {file.name}"] = partial(read, file)
    return found


def equal(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    """Whether all labels are equal and all other values differ by rounding at most."""
    return len(found) == len(expected) and all(
        np.array_equal(one, other) if one.dtype.kind in "iu" else np.allclose(one, other, rtol=1e-4, atol=1e-5)
        for one, other in zip(found, expected)
    )


def main(seconds: float = 600) -> tuple[int, list[str]]:
    """Run all threads; gives the number of answers and the wrong ones."""
    torch.set_num_threads(1)
    wrong: list[str] = []
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        work = jobs(Path(folder))
        expected = {name: job() for name, job in work.items()}
        end = time.monotonic() + seconds

        def run(seed: int) -> None:
            torch.set_num_threads(1)
            draw = random.Random(seed)
            while time.monotonic() < end:
                name = draw.choice(list(work))
                try:
                    if not equal(work[name](), expected[name]):
                        wrong.append(name)
                except Exception:
                    wrong.append(f"{name}: {traceback.format_exc()}")
                done[name.split()[0]] += 1

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        late = [name for name, job in work.items() if not equal(job(), expected[name])]
        wrong += [f"{name}, afterward" for name in late]
    print(f"{sum(done.values())} answers in {seconds:.0f} s, {len(wrong)} wrong: {dict(done)}")
    for name in wrong[:20]:
        print(name)
    return sum(done.values()), wrong


if __name__ == "__main__":
    sys.exit(bool(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600)[1]))
