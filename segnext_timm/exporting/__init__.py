"""Export models to ONNX and torch.export."""
