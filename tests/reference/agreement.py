"""What is compared with the reference: inputs, weights, and this package's outputs for them."""

import segmentation_models_pytorch as smp
import timm
import torch

import segnext_timm  # noqa: F401
from random_checkpoints import VARIANTS, backbone_shapes, random_state_dict, segmenter_shapes
from segnext_timm.checkpoints.dialects import segmenter_to_native
from segnext_timm.models.mscan import backbone_to_native

CLASSES = 19
SIZES = ((64, 96), (71, 99))  # one divisible by 32, one odd


def weights(variant: str) -> dict[str, torch.Tensor]:
    """A segmenter's state dict in mmsegmentation's spelling, and `head.weight` and `head.bias` of a classifier."""
    classifier = backbone_shapes(variant, classifier=True)
    shapes = segmenter_shapes(variant, CLASSES) | {name: classifier[name] for name in ("head.weight", "head.bias")}
    return random_state_dict(shapes)


def bases(variant: str) -> torch.Tensor:
    """Bases (1, D, R) of the decomposition, of the rank in the paper's code."""
    *_, channels, rank = VARIANTS[variant]
    generator = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(torch.rand(1, channels, rank, generator=generator), dim=1)


def images(size: tuple[int, int]) -> torch.Tensor:
    """Images (2, 3, *size) with values in [-2, 2)."""
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2)) * 4 - 2


def run(variant: str, state_dict: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What this package makes of images: the entries of `reference.run`."""
    classifier = {f"{name}": value for name, value in state_dict.items() if name.startswith("head.")}
    backbone = {name.removeprefix("backbone."): v for name, v in state_dict.items() if name.startswith("backbone.")}
    encoder = timm.create_model(f"mscan_{variant}").eval()
    encoder.load_state_dict(backbone_to_native(backbone | classifier))
    *_, channels, rank = VARIANTS[variant]
    segmenter = smp.create_model(
        "segnext",
        f"tu-mscan_{variant}",
        encoder_weights=None,
        classes=CLASSES,
        decoder_channels=channels,
        decoder_rank=rank,
    ).eval()
    native = segmenter_to_native(state_dict)
    segmenter.load_state_dict(native | {"decoder.hamburger.nmf.bases": bases(variant)})
    return outputs(encoder, segmenter, x)


def outputs(encoder: torch.nn.Module, segmenter: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a classifier and a segmenter make of images: the entries of `reference.run`."""
    with torch.inference_mode():
        last, features = encoder.to(x.dtype).forward_intermediates(x)
        logits = encoder.forward_head(last)
        masks = segmenter.to(x.dtype)(x)
    return {**{f"feature{i}": f for i, f in enumerate(features)}, "logits": logits, "masks": masks}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def sample(tensor: torch.Tensor, count: int = 256) -> torch.Tensor:
    """Values spread evenly over a tensor, in its logical order."""
    flat = tensor.flatten()
    return flat[torch.arange(count) * (flat.numel() - 1) // (count - 1)].clone()  # linspace rounds as the CPU does
