"""The strip convolutions of MSCA: Triton (on CUDA, else in Triton's interpreter) and NCHW, against torch in float64."""

import copy
import logging

import pytest
import torch
import torch.nn as nn
import torch.utils.checkpoint

from compiled_kernels import CAPABILITIES, Kernel, compile_kernels
from segnext_timm import kernels
from segnext_timm.kernels import strips
from segnext_timm.models.mscan import MultiScaleConvAttention

pytest.importorskip("triton")
from segnext_timm.kernels import strips_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # relative, in the 2-norm
CASES = [  # batch, channels, height, width, dilation
    (2, 20, 3, 9, 1),
    (1, 32, 1, 17, 1),
    (1, 32, 6, 5, 2),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in ((1, 70, 5, 30, 1), (3, 64, 13, 11, 4), (1, 32, 40, 1, 1))
    ),
]


@pytest.fixture
def use_nchw(use_triton, monkeypatch):
    monkeypatch.setattr(kernels, "triton_runs", lambda *tried: False)


def channels_last(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    return x.contiguous(memory_format=torch.channels_last)


def attention(channels=32, dilation=1):
    torch.manual_seed(channels)
    return MultiScaleConvAttention(channels, dilation).to(DEVICE, memory_format=torch.channels_last)


def expected(base, branches):
    """Sum, and gradients of features and parameters, in float64 by torch's convolutions."""
    base, branches = base.detach().double().requires_grad_(), copy.deepcopy(branches).double()
    total = base + sum(branch(base) for branch in branches)
    return total, torch.autograd.grad(total, [base, *branches.parameters()], upstream(total))


def upstream(total):
    return channels_last(*total.shape, dtype=total.dtype)


def assert_close(found, exact, tolerance):
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("batch", "channels", "height", "width", "dilation"), CASES)
def test_sum_and_gradients_are_those_of_the_convolutions(use_triton, batch, channels, height, width, dilation, dtype):
    branches = attention(channels, dilation).branches
    base = channels_last(batch, channels, height, width, dtype=dtype).requires_grad_()
    assert strips.applies(base, branches)
    total = strips.add_branches(base, branches)
    gradients = torch.autograd.grad(total, [base, *branches.parameters()], upstream(total))
    assert [gradient.dtype for gradient in gradients] == [dtype] + [torch.float32] * 12
    assert total.is_contiguous(memory_format=torch.channels_last)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
    exact_total, exact_gradients = expected(base, branches)
    assert_close([total, *gradients], [exact_total, *exact_gradients], TOLERANCES[dtype])
    with torch.no_grad():
        assert torch.equal(strips.add_branches(base, branches), total)


def test_parameters_that_are_frozen_get_no_gradient(use_triton):
    branches, base = attention().branches, channels_last(1, 32, 3, 4).requires_grad_()
    _, exact = expected(base, branches)
    for name, parameter in branches.named_parameters():
        parameter.requires_grad_("weight" in name)
    strips.add_branches(base, branches).backward(upstream(base))
    assert_close([branches[2][1].weight.grad], [exact[-2]], 1e-5)
    assert branches[2][1].bias.grad is None
    branches.requires_grad_(False).zero_grad()
    (gradient,) = torch.autograd.grad(strips.add_branches(base, branches), base, upstream(base))
    assert_close([gradient], exact[:1], 1e-5)


def test_gradients_have_the_dtype_of_the_parameters(use_triton):
    branches, base = attention().branches.bfloat16(), channels_last(1, 32, 3, 4, dtype=torch.bfloat16).requires_grad_()
    strips.add_branches(base, branches).backward(upstream(base))
    assert_close([p.grad for p in branches.parameters()], expected(base, branches)[1][1:], 1e-2)
    assert {p.grad.dtype for p in branches.parameters()} == {torch.bfloat16}


def test_blocks_are_computed_again_with_gradient_checkpointing(use_triton):
    model, base = attention(), channels_last(1, 32, 3, 4).requires_grad_()
    leaves = [base, *model.parameters()]
    gradients = torch.autograd.grad(model(base), leaves, upstream(base))
    again = torch.utils.checkpoint.checkpoint(model, base, use_reentrant=False)
    assert_close(torch.autograd.grad(again, leaves, upstream(base)), gradients, 1e-6)


def test_operators_have_fake_implementations(use_triton):
    branches, base = attention().branches, channels_last(1, 32, 2, 3)
    weights, biases = ([getattr(conv, name) for pair in branches for conv in pair] for name in ("weight", "bias"))
    parameters = [part.detach() for i in (0, 1) for parts in (weights, biases) for part in parts[i::2]]
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(strips_triton.add_strips, (base, parameters, 1), test_utils=checks)
    total, between = strips_triton.add_strips(base, parameters, 1)
    for needs_parameters in (True, False):
        arguments = (total, base, between, parameters, 1, needs_parameters)
        torch.library.opcheck(strips_triton._backward, arguments, test_utils=checks)


def test_a_second_derivative_is_refused(use_triton):
    branches, base = attention().branches, channels_last(1, 32, 2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(strips.add_branches(base, branches).square().sum(), base, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(gradient.sum(), base)


@pytest.mark.parametrize("form", ["use_triton", "use_nchw"])
def test_the_compiled_attention_is_one_graph_with_the_same_gradients(form, request):
    request.getfixturevalue(form)
    torch._dynamo.reset()
    model, base = attention(), channels_last(1, 32, 3, 4).requires_grad_()
    leaves = [base, *model.parameters()]
    found = [
        (total := function(base), *torch.autograd.grad(total, leaves, upstream(total)))
        for function in (model, torch.compile(model, fullgraph=True, backend="aot_eager"))
    ]
    assert_close(*found, 1e-6)


@pytest.mark.parametrize("dilation", [1, 2])
def test_nchw_is_equal_and_returns_channels_last(use_nchw, dilation):
    branches, base = attention(20, dilation).double().branches, channels_last(2, 20, 9, 7, dtype=torch.float64)
    base.requires_grad_()
    total = strips.add_branches(base, branches)
    gradients = torch.autograd.grad(total, [base, *branches.parameters()], upstream(total))
    exact_total, exact_gradients = expected(base, branches)
    assert_close([total, *gradients], [exact_total, *exact_gradients], 1e-14)
    assert total.is_contiguous(memory_format=torch.channels_last)


def test_torch_gets_features_weights_and_gradients_in_nchw(use_nchw):
    branches, base = attention().branches, channels_last(2, 32, 9, 7).requires_grad_()
    seen = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "convolution" in str(func):
                tensors = args[: 3 if "backward" in str(func) else 2]
                seen.append([tensor.stride() == torch.empty(tensor.shape).stride() for tensor in tensors])
            return func(*args, **kwargs or {})

    with Recorder():
        strips.add_branches(base, branches).backward(upstream(base))
    assert seen == [[True] * 2] * 6 + [[True] * 3] * 6


class Scaled(nn.Conv2d):
    """Stands for convolutions of others, with low-rank or quantized weights."""


def hook(branches):
    branches[1][0].register_forward_hook(lambda module, inputs, output: None)


def hook_gradients(branches):
    branches[1].register_full_backward_hook(lambda module, inputs, outputs: None)


def replace(branches):
    branches[0][1].__class__ = Scaled


def shorten(branches):
    branches[0][0] = nn.Conv2d(32, 32, (1, 5), padding=(0, 2), groups=32)


def parametrize(branches):
    nn.utils.parametrizations.spectral_norm(branches[2][0])


def replace_forward(branches):
    branches[0][0].forward = branches[0][0].forward


@pytest.mark.parametrize("change", [hook, hook_gradients, replace, shorten, parametrize, replace_forward])
def test_changed_branches_are_called(use_triton, change):
    branches, base = attention().branches, channels_last(1, 32, 3, 4)
    assert strips.applies(base, branches)
    change(branches)
    assert not strips.applies(base, branches)


def test_features_in_float64_or_nchw_are_left_to_torch(use_triton):
    branches = attention().branches
    assert not strips.applies(channels_last(1, 32, 3, 4, dtype=torch.float64), branches)
    assert not strips.applies(channels_last(1, 32, 3, 4).contiguous(), branches)


def test_traced_and_exported_graphs_hold_convolutions_alone(use_triton):
    model, base = attention().eval(), channels_last(1, 32, 3, 4)
    traced = [
        str(torch.jit.trace(model, base).inlined_graph),
        str(torch.jit.script(model).inlined_graph),
        str(torch.export.export(model, (base,)).graph),
        str(torch.fx.symbolic_trace(model).graph),
    ]
    assert not any("add_strips" in graph for graph in traced)


@pytest.mark.parametrize("cause", ["Triton fails", "kernels are turned off"])
def test_without_triton_the_sum_is_that_of_torch(use_triton, trial, monkeypatch, caplog, request, cause):
    model, x = attention(), channels_last(1, 32, 3, 4)
    if cause == "Triton fails":
        request.getfixturevalue("failing_triton")
    else:
        monkeypatch.setattr(kernels, "ENABLED", False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            base = model.dwconv(x)
            exact = model.proj(base + sum(branch(base) for branch in model.branches)) * x
            torch.testing.assert_close(model(x), exact, atol=1e-6, rtol=1e-5)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (cause == "Triton fails")
    assert all(message.endswith("ptxas failed") for message in told)


def launched(capability, features, divisible):
    """What forward and backward passes launch for features of a type."""
    parameters = ["*fp32"] * 3
    fan = {"x": features, "y": features, "added": features, "weights": parameters, "biases": parameters}
    correlate = {"x": features, "gradient": features, "partial": "*fp32"}
    for inwards in (False, True):
        for backward in (False, True):
            constants = {"IN": inwards, "BACKWARD": backward}
            yield Kernel(strips_triton.__name__, "_fan_kernel", capability, fan, constants, divisible)
        yield Kernel(strips_triton.__name__, "_correlate_kernel", capability, correlate, {"IN": inwards}, divisible)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("features", "divisible"), [("*bf16", True), ("*fp16", True), ("*fp32", True), ("*bf16", False)]
)
def test_kernels_fit_the_registers_of_gpus(capability, features, divisible):
    launches = list(launched(capability, features, ("channels",) if divisible else ()))
    for launch, usage in zip(launches, compile_kernels(launches)):
        # addresses of channels that are not divisible by 16 take more registers; MSCAN's are all divisible by 32
        assert usage.stack <= (0 if divisible else 64), launch
        assert usage.registers <= (128 if divisible else 255), launch


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_tap_takes_few_instructions(capability):
    launches = list(launched(capability, "*bf16", ("channels",)))
    for launch, usage in zip(launches, compile_kernels(launches)):
        assert max(usage.loops) / 32 <= (5 if launch.name == "_fan_kernel" else 9), launch  # 32 products of a thread
