"""Labels and loss of whole models."""

import pytest
import torch

import segnext_timm
from lively_models import images, tiny


@torch.no_grad()
@pytest.mark.parametrize("activation", [None, "sigmoid", "softmax2d", "tanh", lambda: torch.nn.Hardtanh(-0.001, 0.001)])
def test_predicted_labels_are_the_greatest_of_the_output(activation):
    model = tiny(activation=activation)
    for shape in ((2, 3, 64, 96), (1, 3, 71, 99)):
        labels, output = model.predict_labels(images(*shape)), model(images(*shape))
        assert labels.dtype == torch.long
        assert torch.equal(output.gather(1, labels[:, None])[:, 0], output.amax(1))


@torch.no_grad()
def test_labels_of_one_class_are_where_the_logit_is_positive():
    model, x = tiny(classes=1, activation="sigmoid"), images(2, 3, 71, 99)
    assert torch.equal(model.predict_labels(x), (model(x)[:, 0] > 0.5).long())


def test_labels_and_loss_name_bad_images():
    for call in (tiny().predict_labels, tiny(upsampling=1)):
        with pytest.raises(ValueError, match="takes images of 3 channels, got 1"):
            call(images(1, 1, 64, 64))


def test_cross_entropy_is_that_of_the_output_and_trains_all():
    model, x = tiny(), images(2, 3, 71, 99)
    target = torch.randint(0, 5, (2, 71, 99), generator=torch.Generator().manual_seed(0))
    target[0, :20] = 255
    expected = torch.nn.functional.cross_entropy(model(x), target, ignore_index=255, label_smoothing=0.1)
    model.upsampling = 1
    loss = segnext_timm.UpsampledCrossEntropyLoss(ignore_index=255, label_smoothing=0.1)(model(x), target)
    torch.testing.assert_close(loss, expected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for ours, right in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-6)
