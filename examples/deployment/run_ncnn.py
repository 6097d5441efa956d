"""Segment an image with ncnn, without torch.

python examples/deployment/to_ncnn.py my-segnext model.ncnn
pip install ncnn pillow
python examples/deployment/run_ncnn.py model.ncnn photo.jpg labels.png
"""

import json
from pathlib import Path

import numpy as np
from preprocessing import labels_of, read_image, run, save_labels


def main(folder: str, image: str, result: str) -> None:
    import ncnn

    metadata = json.loads((Path(folder) / "metadata.json").read_text(encoding="utf-8"))
    images, size = read_image(image, metadata)
    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = False  # the matrix decomposition overflows in float16
    net.load_param(str(Path(folder) / "model.ncnn.param"))
    net.load_model(str(Path(folder) / "model.ncnn.bin"))
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(images[0]))
    output = np.array(extractor.extract("out0")[1])[None]
    save_labels(labels_of(output), size, metadata, result)


if __name__ == "__main__":
    run(main, __doc__)
