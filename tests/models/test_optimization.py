"""Parameter groups for the optimizers of torch."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

from segnext_timm import parameter_groups
from small_models import narrow


def settings_of(model, groups):
    """Learning rate and weight decay of each parameter by its name."""
    of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters() if id(p) in of}


def test_the_head_learns_faster_and_norms_biases_and_layer_scales_do_not_decay():
    model = narrow()
    found = settings_of(model, parameter_groups(model, lr=1e-4, weight_decay=0.05))
    encoder = "encoder.model.stages_1.blocks.0"
    assert found[f"{encoder}.mlp.fc1.weight"] == (1e-4, 0.05)
    for name in (f"{encoder}.norm1.weight", f"{encoder}.ls1.gamma", f"{encoder}.mlp.fc1.bias"):
        assert found[name] == (1e-4, 0.0)
    assert found["encoder.model.stem.norm1.weight"] == (1e-4, 0.0)
    assert found["decoder.align.weight"] == found["segmentation_head.0.weight"] == (pytest.approx(1e-3), 0.05)
    assert found["decoder.align_norm.weight"] == found["segmentation_head.0.bias"] == (pytest.approx(1e-3), 0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: narrow(aux_params={"classes": 2}),
        lambda: smp.Unet("tu-test_mscan", encoder_weights=None),
        lambda: smp.FPN("resnet18", encoder_weights=None),
        lambda: smp.Segformer("mit_b0", encoder_weights=None),
        lambda: torch.compile(narrow(), backend="eager"),
        lambda: torch.nn.DataParallel(narrow()),
    ],
    ids=["segnext", "unet", "fpn", "segformer", "compiled", "data parallel"],
)
def test_every_parameter_that_requires_a_gradient_is_in_one_group(make):
    model = make()
    next(model.parameters()).requires_grad_(False)
    groups = parameter_groups(model, lr=1e-3)
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {
        (1e-3, 0.01), (1e-3, 0.0), (1e-2, 0.01), (1e-2, 0.0)
    }  # fmt: skip
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    torch.optim.AdamW(groups).step()


def test_a_frozen_encoder_leaves_the_head_s_groups():
    model = narrow()
    model.encoder.requires_grad_(False)
    assert [group["lr"] for group in parameter_groups(model, lr=1.0, head_lr_scale=3.0)] == [3.0, 3.0]


def test_a_model_without_an_encoder_is_refused():
    with pytest.raises(ValueError, match="a segmentation model with an `encoder`"):
        parameter_groups(timm.create_model("test_mscan"), lr=1.0)
