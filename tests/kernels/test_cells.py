"""The Triton kernels, in Triton's interpreter on the CPU, against torch in float64; and compiled for GPUs."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import EagerAndRecordGraphs

from segnext_timm import UpsampledCrossEntropyLoss, kernels
from segnext_timm.kernels import upsampling
from segnext_timm.models.losses import resized_argmax

pytest.importorskip("triton")
from segnext_timm.kernels import cells

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without CUDA")
CASES = [  # classes, size, resized, smoothing, whether classes have weights
    (2, (3, 3), (17, 20), 0.0, False),
    (5, (3, 2), (11, 9), 0.1, True),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (2, (3, 4), (24, 32), 0.0, False),
            (19, (4, 6), (29, 43), 0.1, True),
            (150, (3, 4), (24, 32), 0.1, False),
            (171, (3, 3), (20, 21), 0.0, True),
        )
    ),
    (5, (1, 4), (8, 30), 0.0, False),
    (5, (1, 1), (5, 3), 0.2, False),
    (3, (6, 6), (6, 6), 0.0, False),
]


@pytest.fixture
def use_kernels(monkeypatch):
    monkeypatch.setattr(upsampling, "_kernels", lambda logits: cells)


def inputs(classes, size, resized):
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, *resized), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits.contiguous(memory_format=torch.channels_last), labels


@pytest.mark.parametrize(("classes", "size", "resized", "smoothing", "weighted"), CASES)
def test_loss_and_gradient_are_those_of_resized_logits(use_kernels, classes, size, resized, smoothing, weighted):
    logits, labels = inputs(classes, size, resized)
    options = {"ignore_index": 255, "reduction": "sum" if weighted else "mean", "label_smoothing": smoothing}
    weight = torch.rand(classes, dtype=torch.float64) + 0.5 if weighted else None
    expected_logits = logits.clone().requires_grad_()
    maps = F.interpolate(expected_logits, resized, mode="bilinear", align_corners=False)
    expected = F.cross_entropy(maps, labels, weight, **options)
    expected.backward()
    logits = logits.float().requires_grad_()
    loss = UpsampledCrossEntropyLoss(weight, **options)(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    largest = expected_logits.grad.abs().max()
    assert (logits.grad - expected_logits.grad).abs().max() < 1e-5 * largest
    assert logits.grad.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert UpsampledCrossEntropyLoss(weight, **options)(logits, labels).item() == loss.item()


def test_the_gradient_has_the_dtype_of_half_precision_logits(use_kernels):
    logits, labels = inputs(5, (2, 2), (8, 12))
    logits = logits.bfloat16().requires_grad_()
    loss = UpsampledCrossEntropyLoss(ignore_index=255)(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16


def test_labels_beyond_the_classes_make_the_loss_nan(use_kernels):
    logits, labels = inputs(5, (2, 2), (8, 12))
    labels[0, 0, 0] = 5
    assert UpsampledCrossEntropyLoss(ignore_index=255)(logits.float(), labels).isnan()


def test_pixels_that_are_all_ignored_have_no_loss(use_kernels):
    logits, labels = inputs(5, (2, 2), (8, 12))
    logits = logits.float().requires_grad_()
    loss = UpsampledCrossEntropyLoss(ignore_index=255, reduction="sum")(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(("classes", "size", "resized", "smoothing", "weighted"), CASES)
def test_labels_are_those_of_resized_logits(use_kernels, classes, size, resized, smoothing, weighted):
    logits, _ = inputs(classes, size, resized)
    expected = F.interpolate(logits, resized, mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(resized_argmax(logits.float(), resized), expected)


def test_a_logit_that_is_not_a_number_is_the_largest(use_kernels):
    logits = torch.zeros(1, 4, 3, 3)
    logits[0, 2, 1, 1] = float("nan")
    assert resized_argmax(logits, (3, 3))[0, 1, 1] == 2


def test_operators_have_fake_implementations(use_kernels):
    logits, labels = torch.randn(1, 5, 3, 3), torch.randint(0, 5, (1, 6, 6))
    checks = ("test_schema", "test_faketensor")
    for smoothing, needs_gradient in ((0.1, True), (0.0, False)):
        arguments = (logits, labels, None, 255, smoothing, needs_gradient)
        torch.library.opcheck(upsampling.cross_entropy, arguments, test_utils=checks)
    torch.library.opcheck(upsampling.argmax, (logits, (6, 6)), test_utils=checks)


def test_the_compiled_loss_is_that_of_the_kernels(use_kernels):
    torch._dynamo.reset()
    graphs = EagerAndRecordGraphs()
    logits, labels = inputs(5, (2, 2), (8, 12))
    criterion, losses = UpsampledCrossEntropyLoss(ignore_index=255), []
    for function in (criterion, torch.compile(criterion, fullgraph=True, backend=graphs)):
        leaf = logits.float().requires_grad_()
        loss = function(leaf, labels)
        losses.append((loss, *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*losses)
    called = [str(node.target) for node in graphs.graphs[0].graph.nodes if "segnext_timm" in str(node.target)]
    assert called == ["segnext_timm.upsampled_cross_entropy.default"]


def test_the_compiler_does_not_trace_the_trial_of_triton(monkeypatch):
    torch._dynamo.reset()
    kernels._try_triton.cache_clear()
    # a GPU for the trial alone: the compiler would initialize one
    monkeypatch.setattr("torch.cuda.is_available", lambda: sys._getframe(1).f_globals["__name__"] == kernels.__name__)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    graphs = EagerAndRecordGraphs()
    compiled = torch.compile(lambda x: x + kernels.triton_runs(x.device), fullgraph=True, backend=graphs)
    assert compiled(torch.zeros(1)) == 1
    assert kernels._try_triton.cache_info().misses == 1
    assert len([node for node in graphs.graphs[0].graph.nodes if node.op == "call_function"]) == 1


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from segnext_timm.kernels import cells as kernels

def compile(kernel, pointers, constants):
    launch = kernels._launch({classes})
    options = {{"num_warps": launch.pop("num_warps")}}
    constants = {{name: value for name, value in (constants | launch).items() if name in kernel.arg_names}}
    types = dict.fromkeys(kernel.arg_names, "i32") | pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    print(len(triton.compile(source, target=GPUTarget("cuda", {capability}, 32), options=options).asm["cubin"]))

loss = {{"logits": "*bf16", "target": "*i64", "weight": "*fp32", "losses": "*fp32", "corner_gradients": "*fp32"}}
compile(kernels._cross_entropy_kernel, loss | {{"smoothing": "fp32"}}, {{"WEIGHTED": True, "NEEDS_GRADIENT": True}})
compile(kernels._gather_kernel, {{"corner_gradients": "*fp32", "gradient": "*fp32"}}, {{}})
compile(kernels._argmax_kernel, {{"logits": "*fp32", "labels": "*i64"}}, {{}})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "classes"), [(75, 19), (90, 1000)])
def test_kernels_compile_for_gpus(capability, classes):
    code = COMPILE.format(capability=capability, classes=classes)
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(int(size) > 1000 for size in done.stdout.split())
