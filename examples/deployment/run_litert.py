"""Segment an image with LiteRT (TensorFlow Lite), without torch.

python examples/deployment/to_litert.py my-segnext model.tflite --argmax
pip install ai-edge-litert pillow
python examples/deployment/run_litert.py model.tflite photo.jpg labels.png
"""

import json
from pathlib import Path

from preprocessing import labels_of, read_image, run, save_labels


def main(file: str, image: str, result: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    metadata = json.loads(Path(f"{file}.json").read_text(encoding="utf-8"))
    images, size = read_image(image, metadata)
    interpreter = Interpreter(file)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    save_labels(labels_of(output), size, metadata, result)


if __name__ == "__main__":
    run(main, __doc__)
