"""Narrow models that compute as trained ones do, and the comparison of their outputs."""

import segmentation_models_pytorch as smp
import timm
import torch

import segnext_timm  # noqa: F401  registers SegNeXt and MSCAN


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 4 - 2


def lively(model):
    """The model in evaluation mode, with statistics, norms and layer scales as after training."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor, low, high):
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            draw(module.running_mean, -0.5, 0.5)
            draw(module.running_var, 0.7, 1.5)
            draw(module.weight, 0.7, 1.3)
            draw(module.bias, -0.5, 0.5)
        if hasattr(module, "gamma"):
            draw(module.gamma, -0.05, 0.05)
    return model.eval()


def tiny(**kwargs):
    """A narrow SegNeXt."""
    torch.manual_seed(0)
    arguments = {"encoder_weights": None, "decoder_channels": 32, "decoder_rank": 4, "classes": 5} | kwargs
    return lively(smp.create_model("segnext", arguments.pop("encoder_name", "tu-test_mscan"), **arguments))


def backbone(**kwargs):
    torch.manual_seed(0)
    return lively(timm.create_model("test_mscan", **kwargs))


def assert_same(outputs, expected, tolerance=1e-5):
    """Equal up to a share of the greatest value."""
    outputs, expected = ([x] if isinstance(x, torch.Tensor) else x for x in (outputs, expected))
    assert len(outputs) == len(expected)
    for output, right in zip(outputs, expected):
        assert output.shape == right.shape
        assert output.dtype == right.dtype
        assert ((output - right).abs().max() / right.abs().max()).item() < tolerance
