"""Segment an image with OpenVINO, without torch.

segnext-timm export my-segnext model.onnx --argmax
pip install openvino pillow
python examples/deployment/run_openvino.py model.onnx photo.jpg labels.png
"""

from preprocessing import labels_of, parse_metadata, read_image, run, save_labels


def main(file: str, image: str, result: str) -> None:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    keys = ["input_size", "mean", "std", "range", "bands", "label_names", "palette"]
    keys += ["dynamic", "fit_in", "size_divisor"]
    found = {key: ["framework", key] for key in keys if model.has_rt_info(["framework", key])}
    metadata = parse_metadata({key: model.get_rt_info(path).astype(str) for key, path in found.items()})
    images, size = read_image(image, metadata)
    precision = {"INFERENCE_PRECISION_HINT": "f32"}  # OpenVINO computes in bf16 where a CPU can, with other labels
    output = core.compile_model(model, "CPU", precision)({"images": images})[0]
    save_labels(labels_of(output), size, metadata, result)


if __name__ == "__main__":
    run(main, __doc__)
