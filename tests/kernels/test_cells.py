"""The Triton kernels against torch in float64: on CUDA, else in Triton's interpreter; and compiled for GPUs."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import EagerAndRecordGraphs

from compiled_kernels import CAPABILITIES, Kernel, compile_kernels
from segnext_timm import UpsampledCrossEntropyLoss, kernels
from segnext_timm.kernels import upsampling
from segnext_timm.models.losses import resized_argmax

pytest.importorskip("triton")
from segnext_timm.kernels import cells

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [  # classes, size, resized, smoothing, whether classes have weights
    (2, (3, 3), (10, 11), 0.0, False),
    (5, (3, 2), (11, 9), 0.1, True),
    (20, (3, 2), (13, 7), 0.0, True),
    (70, (2, 2), (9, 11), 0.1, True),
    (150, (2, 3), (7, 10), 0.0, False),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (2, (3, 3), (17, 20), 0.0, False),
            (5, (3, 1), (13, 4), 0.1, True),
            (32, (2, 3), (9, 13), 0.1, False),
            (2, (3, 4), (24, 32), 0.0, False),
            (3, (6, 6), (6, 6), 0.0, False),
            (19, (4, 6), (29, 43), 0.1, True),
            (150, (3, 4), (24, 32), 0.1, False),
            (171, (3, 3), (20, 21), 0.0, True),
            (1000, (2, 3), (15, 17), 0.1, True),
        )
    ),
    (5, (1, 3), (4, 11), 0.0, False),
    (5, (1, 1), (5, 3), 0.2, False),
    (3, (4, 5), (4, 5), 0.0, False),
]


def inputs(classes, size, resized):
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, *resized), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits.to(DEVICE).contiguous(memory_format=torch.channels_last), labels.to(DEVICE)


def loss_and_gradient(logits, labels, weight=None, **options):
    logits = logits.detach().requires_grad_()
    loss = UpsampledCrossEntropyLoss(weight, ignore_index=255, **options)(logits, labels)
    return loss.detach(), *torch.autograd.grad(loss, logits)


@pytest.mark.parametrize(("classes", "size", "resized", "smoothing", "weighted"), CASES)
def test_loss_and_gradient_are_those_of_resized_logits(use_triton, classes, size, resized, smoothing, weighted):
    logits, labels = inputs(classes, size, resized)
    options = {"ignore_index": 255, "reduction": "sum" if weighted else "mean", "label_smoothing": smoothing}
    weight = torch.rand(classes, dtype=torch.float64, device=DEVICE) + 0.5 if weighted else None
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_the_loss_of_half_precision_is_computed_in_float32(use_triton, dtype, tolerance):
    logits, labels = inputs(20, (2, 2), (9, 7))
    loss, gradient = loss_and_gradient(logits.to(dtype), labels)
    wide_loss, wide_gradient = loss_and_gradient(logits.to(dtype).float(), labels)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert torch.equal(loss, wide_loss)
    assert torch.equal(gradient, wide_gradient.to(dtype))
    maps = F.interpolate(logits.to(dtype).double(), (9, 7), mode="bilinear", align_corners=False)
    assert loss.item() == pytest.approx(F.cross_entropy(maps, labels, ignore_index=255).item(), rel=1e-6)


def test_a_batch_of_many_logits_is_processed_by_image(use_triton, monkeypatch):
    logits, labels = inputs(5, (2, 2), (4, 6))
    expected = loss_and_gradient(logits.float(), labels)
    monkeypatch.setattr(cells, "_CORNER_BYTES", 1)
    for result, whole in zip(loss_and_gradient(logits.float(), labels), expected):
        assert torch.equal(result, whole)


@pytest.mark.cuda
def test_two_streams_give_the_bits_of_one(use_triton):
    logits, labels = inputs(150, (64, 64), (512, 512))
    problems = [(logits.float(), labels), (logits.float().flip(0), labels.flip(0))]
    expected = [loss_and_gradient(*problem) for problem in problems]
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream(), torch.cuda.Stream()], []
    for _ in range(5):
        for stream, problem in zip(streams, problems):
            with torch.cuda.stream(stream):
                results.append(loss_and_gradient(*problem))
    torch.cuda.synchronize()
    for result, whole in zip(results, expected * 5):
        assert all(torch.equal(*pair) for pair in zip(result, whole))


def test_labels_beyond_the_classes_make_the_loss_nan(use_triton):
    logits, labels = inputs(5, (2, 2), (8, 12))
    labels[0, 0, 0] = 5
    assert UpsampledCrossEntropyLoss(ignore_index=255)(logits.float(), labels).isnan()


def test_pixels_that_are_all_ignored_have_no_loss(use_triton):
    logits, labels = inputs(5, (2, 2), (8, 12))
    logits = logits.float().requires_grad_()
    loss = UpsampledCrossEntropyLoss(ignore_index=255, reduction="sum")(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(("classes", "size", "resized", "smoothing", "weighted"), CASES)
def test_labels_are_those_of_resized_logits(use_triton, classes, size, resized, smoothing, weighted):
    logits, _ = inputs(classes, size, resized)
    expected = F.interpolate(logits, resized, mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(resized_argmax(logits.float(), resized), expected)


def test_a_logit_that_is_not_a_number_is_the_largest(use_triton):
    logits = torch.zeros(1, 4, 3, 3)
    logits[0, 2, 1, 1] = float("nan")
    assert resized_argmax(logits, (3, 3))[0, 1, 1] == 2


def test_operators_have_fake_implementations(use_triton):
    logits, labels = torch.randn(1, 5, 3, 3), torch.randint(0, 5, (1, 6, 6))
    checks = ("test_schema", "test_faketensor")
    for smoothing, needs_gradient in ((0.1, True), (0.0, False)):
        arguments = (logits, labels, None, 255, smoothing, needs_gradient)
        torch.library.opcheck(upsampling.cross_entropy, arguments, test_utils=checks)
    torch.library.opcheck(upsampling.argmax, (logits, (6, 6)), test_utils=checks)


def test_the_compiled_loss_is_that_of_the_kernels(use_triton):
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


def test_the_compiler_does_not_trace_the_trial_of_triton(trial):
    torch._dynamo.reset()
    graphs = EagerAndRecordGraphs()
    compiled = torch.compile(lambda x: x + kernels.triton_runs(x.device, "cells"), fullgraph=True, backend=graphs)
    assert compiled(torch.zeros(1, device=DEVICE)) == 1
    assert trial.cache_info().misses == 1
    assert len([node for node in graphs.graphs[0].graph.nodes if node.op == "call_function"]) == 1


@pytest.mark.parametrize("cause", ["Triton fails", "kernels are turned off"])
def test_without_triton_the_plain_forms_are_used(use_triton, trial, monkeypatch, caplog, request, cause):
    if cause == "Triton fails":
        request.getfixturevalue("failing_triton")
    else:
        monkeypatch.setattr(kernels, "ENABLED", False)
    logits, labels = inputs(5, (2, 2), (8, 12))
    maps = F.interpolate(logits.float(), (8, 12), mode="bilinear", align_corners=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loss, _ = loss_and_gradient(logits.float(), labels, reduction="sum")
            assert torch.equal(loss, F.cross_entropy(maps, labels, ignore_index=255, reduction="sum"))
            assert torch.equal(resized_argmax(logits.float(), (8, 12)), maps.argmax(1))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (cause == "Triton fails")
    assert all(message.endswith("ptxas failed") for message in told)


@pytest.mark.parametrize("failing", ["cells", "strips_triton"])
def test_kernels_that_fail_leave_the_others_on(trial, monkeypatch, caplog, failing):
    def fail(*arguments):
        raise RuntimeError("ptxas failed")

    monkeypatch.setattr(f"segnext_timm.kernels.{failing}.launch_all", fail)
    runs = {module: kernels.triton_runs(torch.device(DEVICE), module) for module in ("cells", "strips_triton")}
    assert runs == {"cells": failing != "cells", "strips_triton": failing != "strips_triton"}
    assert f"The Triton kernels in {failing} do not run here" in caplog.text


LOSS = {"weight": "*fp32", "losses": "*fp32", "corner_gradients": "*fp32", "smoothing": "fp32"}
TYPES = {  # of the arguments that are not int32
    "_cross_entropy_kernel": LOSS | {"logits": "*bf16", "target": "*i64"},
    "_argmax_kernel": {"logits": "*bf16", "labels": "*i64"},
    "_gather_kernel": {"corner_gradients": "*fp32", "gradient": "*fp32"},
}
WIDE = {"logits": "*fp32"}


def launched(name, capability, classes, weighted=False, types=(), ones=()):
    """What a launch compiles for logits of `classes`; arguments that are 1, `ones`, are constants in Triton."""
    launch = cells._launch(classes)
    options = {"num_warps": launch.pop("num_warps")} if name != "_gather_kernel" else {}
    constants = {"WEIGHTED": weighted, "NEEDS_GRADIENT": True} | launch | dict.fromkeys(ones, 1)
    constants = {key: value for key, value in constants.items() if key in getattr(cells, name).arg_names}
    return Kernel(cells.__name__, name, capability, TYPES[name] | dict(types), constants, options=options)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_fit_the_registers_of_gpus(capability):
    limits = {"_cross_entropy_kernel": 255, "_argmax_kernel": 128, "_gather_kernel": 64}
    blocks = (2, 19, 150, 256, 1024)
    launches = [launched(name, capability, classes) for name in TYPES for classes in blocks]
    launches += [launched("_cross_entropy_kernel", capability, classes, True, WIDE) for classes in blocks]
    for launch, usage in zip(launches, compile_kernels(launches)):
        assert usage.stack == 0, launch
        assert usage.registers <= limits[launch.name], launch


@pytest.mark.slow
def test_a_pixel_of_150_classes_takes_few_instructions():
    limits = {"_cross_entropy_kernel": 180, "_argmax_kernel": 130}
    launches = [launched(name, capability, 150) for name in limits for capability in CAPABILITIES]
    for launch, usage in zip(launches, compile_kernels(launches)):
        count = launch.options["num_warps"] * max(usage.loops) / launch.constants["PIXELS"]
        assert count <= limits[launch.name], launch


@pytest.mark.slow
def test_kernels_compile_for_one_class():
    launches = [launched(name, 90, 1, ones=["classes"]) for name in TYPES]
    assert not any(usage.stack for usage in compile_kernels(launches))
