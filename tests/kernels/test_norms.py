"""Group norms of features in channels_last, on a CPU, against torch's."""

import io

import pytest
import torch
import torch.nn.functional as F

from segnext_timm.kernels import norms


class GroupNorm(torch.nn.GroupNorm):
    """A group norm that computes as on a GPU."""

    def forward(self, x):
        return norms.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, self.training)


def channels_last(*shape, dtype):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
def test_group_norm_and_its_gradients_are_those_of_torch(training):
    torch.manual_seed(0)
    x = channels_last(2, 12, 5, 7, dtype=torch.float64).requires_grad_()
    weight, bias = torch.randn(2, 12, dtype=torch.float64).requires_grad_().unbind()
    outputs = F.group_norm(x, 4, weight, bias), norms.group_norm(x, 4, weight, bias, 1e-5, training)
    expected, found = (torch.autograd.grad((y * y.detach().cos()).sum(), (x, weight, bias)) for y in outputs)
    for one, other in zip((outputs[1], *found), (outputs[0], *expected)):
        torch.testing.assert_close(one, other)


def test_group_norm_is_exported_and_traced():
    norm, x = GroupNorm(4, 12).eval(), channels_last(2, 12, 5, 7, dtype=torch.float32)
    program = torch.export.export(norm, (x,)).module()
    traced = torch.jit.trace(norm, (x,))
    torch.jit.save(traced, io.BytesIO())
    for one in (program, traced):
        torch.testing.assert_close(one(x), norm(x))
