"""Segment an image with ONNX Runtime, without torch.

segnext-timm export my-segnext model.onnx --argmax
pip install onnxruntime pillow
python examples/deployment/run_onnxruntime.py model.onnx photo.jpg labels.png
"""

from preprocessing import labels_of, parse_metadata, read_image, run, save_labels


def main(file: str, image: str, result: str) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
    metadata = parse_metadata(session.get_modelmeta().custom_metadata_map)
    images, size = read_image(image, metadata)
    (output, *_) = session.run(None, {"images": images})
    save_labels(labels_of(output), size, metadata, result)


if __name__ == "__main__":
    run(main, __doc__)
