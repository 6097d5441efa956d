"""Compile a torch.export program with AOTInductor and segment an image. Needs torch and a C++ compiler.

segnext-timm export my-segnext model.pt2 --argmax --portable
python examples/deployment/run_aotinductor.py model.pt2 photo.jpg labels.png

The first run writes `model.aoti.pt2`, which C++ programs load with libtorch alone.
"""

import json
from pathlib import Path

import torch
from preprocessing import labels_of, read_image, run, save_labels
from torch._inductor import aoti_compile_and_package, aoti_load_package


def main(file: str, image: str, result: str) -> None:
    facts = {"metadata.json": ""}
    program = torch.export.load(file, extra_files=facts)
    package = Path(file).with_suffix(".aoti.pt2")
    if not package.is_file():
        aoti_compile_and_package(program, package_path=str(package))
    metadata = json.loads(facts["metadata.json"])
    images, size = read_image(image, metadata)
    output = aoti_load_package(str(package))(torch.from_numpy(images))
    save_labels(labels_of(output.numpy()), size, metadata, result)


if __name__ == "__main__":
    run(main, __doc__)
