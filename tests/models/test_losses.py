import copy
import importlib
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import label_memory
from segnext_timm import UpsampledCrossEntropyLoss, kernels
from segnext_timm.exporting.label_graph import argmax_graph
from segnext_timm.kernels import bands, upsampling
from segnext_timm.models.losses import resized_argmax
from segnext_timm.models.mscan import ConvMlp

# shapes of logits, sizes of labels: eight times as large, odd, one row or column, the same, smaller
SHAPES = [
    ((1, 150, 16, 24), (128, 192)),
    ((3, 7, 9, 13), (71, 99)),
    ((1, 3, 1, 1), (8, 8)),
    ((1, 5, 4, 1), (33, 7)),
    ((2, 4, 5, 6), (5, 6)),
    ((1, 5, 8, 8), (5, 6)),
]
BUDGET = "segnext_timm.kernels.bands._BYTES"  # of maps at once


def logits(shape, dtype=torch.float32, smooth=1):
    """Random logits; smooth ones, as a network's are, if `smooth` is more than 1."""
    batch, classes, height, width = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, classes, -(-height // smooth), -(-width // smooth), generator=generator, dtype=dtype)
    return F.interpolate(coarse, (height, width), mode="bicubic")


@pytest.fixture(params=["kernels", "plain"])
def form(request, monkeypatch):
    """The kernels of a CPU, or the plain form."""
    monkeypatch.setattr(kernels, "ENABLED", request.param == "kernels")
    return request.param


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("smooth", [1, 4])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_labels_are_those_of_the_resized_maps(shape, size, smooth, channels_last, form):
    x = logits(shape, torch.float64, smooth)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    expected = resized(x, size).argmax(1)
    labels = resized_argmax(x, size)
    assert labels.dtype == torch.long
    assert torch.equal(labels, expected)
    for drop_classes in (True, False):
        assert torch.equal(argmax_graph(x, size, drop_classes), expected)


def test_labels_of_half_precision_are_those_of_maps_in_float32(form):
    x = logits((1, 20, 8, 8)).bfloat16()
    assert torch.equal(resized_argmax(x, (64, 64)), resized(x.float(), (64, 64)).argmax(1))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_an_infinite_logit_changes_the_labels_around_it_alone(form, value):
    x = logits((1, 5, 8, 8))
    expected = resized(x, (64, 64)).argmax(1)
    x[0, 2, 4, 4] = value
    differs = resized_argmax(x, (64, 64)) != expected
    assert not differs[:, :28].any()
    assert not differs[:, :, 44:].any()


def test_an_empty_batch_has_no_labels_and_no_loss(form):
    x, target = torch.zeros(0, 3, 4, 4, requires_grad=True), torch.zeros(0, 32, 32, dtype=torch.long)
    assert resized_argmax(x, (32, 32)).shape == (0, 32, 32)
    assert UpsampledCrossEntropyLoss(reduction="sum")(x, target) == 0
    assert UpsampledCrossEntropyLoss()(x, target).isnan()


def test_the_loss_of_pretended_tensors_has_a_gradient(form):
    x = torch.zeros(2, 3, 4, 4, device="meta", requires_grad=True)
    UpsampledCrossEntropyLoss()(x, torch.zeros(2, 32, 32, dtype=torch.long, device="meta")).backward()
    assert x.grad.shape == x.shape


def test_logits_that_are_not_numbers_are_labeled_as_the_maps_are(form):
    x = torch.full((1, 3, 4, 4), torch.nan)
    assert torch.equal(resized_argmax(x, (32, 32)), resized(x, (32, 32)).argmax(1))


def test_bands_of_several_rows_give_the_same_labels(monkeypatch):
    x = logits((2, 6, 9, 13), smooth=3)
    expected = resized_argmax(x, (71, 99))
    for budget in (1, 4 * 99 * 6 * 25, 1 << 30):
        monkeypatch.setattr(BUDGET, budget)
        assert torch.equal(resized_argmax(x, (71, 99)), expected)


@pytest.mark.parametrize(
    "arguments", [{}, {"weight": True}, {"label_smoothing": 0.1}, {"weight": True, "label_smoothing": 0.1}]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("shape", "size"), SHAPES[:-1])
def test_the_loss_and_its_gradient_are_those_of_the_resized_maps(shape, size, reduction, arguments, form):
    x = logits(shape, torch.float64).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, shape[1], (shape[0], *size), generator=generator)
    target[:, :2] = 255
    arguments = {**arguments, "reduction": reduction, "ignore_index": 255}
    if "weight" in arguments:
        arguments["weight"] = torch.rand(shape[1], generator=generator, dtype=torch.float64)
    expected = F.cross_entropy(resized(x, size), target, **arguments)
    loss = UpsampledCrossEntropyLoss(**arguments)(x, target)
    torch.testing.assert_close(loss, expected)
    scale = 3.0
    gradients = (torch.autograd.grad(value.sum() * scale, x)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients)


def test_bands_of_several_rows_give_the_same_loss(monkeypatch):
    x, target = logits((2, 6, 9, 13)).requires_grad_(), torch.randint(0, 6, (2, 71, 99))
    expected = F.cross_entropy(resized(x, (71, 99)), target)
    for budget in (1, 4 * 99 * 6 * 25, 1 << 30):
        monkeypatch.setattr(BUDGET, budget)
        torch.testing.assert_close(UpsampledCrossEntropyLoss()(x, target), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_runs_in_float32_under_autocast(dtype, form):
    x, target = logits((1, 6, 4, 4)).to(dtype).requires_grad_(), torch.randint(0, 6, (1, 32, 32))
    with torch.autocast("cpu", dtype=dtype):
        loss = UpsampledCrossEntropyLoss()(x, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, UpsampledCrossEntropyLoss()(x, target))
    loss.backward()
    assert x.grad.dtype == dtype


def test_the_loss_without_gradient_and_of_ignored_pixels_only(form):
    x, target = logits((1, 6, 4, 4)), torch.full((1, 32, 32), 255)
    assert not UpsampledCrossEntropyLoss(ignore_index=255)(x, target).requires_grad
    assert UpsampledCrossEntropyLoss(ignore_index=255)(x, target).isnan()  # as of cross_entropy
    assert UpsampledCrossEntropyLoss(ignore_index=255, reduction="sum")(x, target) == 0
    for weight in (None, torch.ones(6)):
        leaf = x.clone().requires_grad_()
        UpsampledCrossEntropyLoss(weight, ignore_index=255)(leaf, target).backward()
        assert torch.equal(leaf.grad, torch.zeros_like(x))  # as of cross_entropy


def test_labels_beyond_the_classes_and_shapes_that_do_not_fit_are_refused(form):
    x = logits((1, 6, 4, 4))
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        UpsampledCrossEntropyLoss()(x, torch.full((1, 32, 32), 6))
    for shape in ((2, 32, 32), (32, 32), (1, 6, 32, 32)):
        with pytest.raises(ValueError, match=r"need labels \(B, H, W\), got logits \(1, 6, 4, 4\) and labels"):
            UpsampledCrossEntropyLoss()(x, torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'avg'"):
        UpsampledCrossEntropyLoss(reduction="avg")
    with pytest.raises(ValueError, match=r"label_smoothing must be from 0 to 1, got 1\.5"):
        UpsampledCrossEntropyLoss(label_smoothing=1.5)


@pytest.mark.parametrize("size", [(32, 33), (32, 64), (5, 6), (3, 3)])
def test_labels_of_another_image_are_refused(size, form):
    x, target = logits((1, 6, 4, 4)), torch.zeros(1, *size, dtype=torch.long)
    if size == (32, 33):  # 33 / 8 is 4 rounded down: an encoder that pools without padding
        assert UpsampledCrossEntropyLoss()(x, target).isfinite()
        return
    with pytest.raises(ValueError, match=r"not an integer fraction of labels of .*labels of another image"):
        UpsampledCrossEntropyLoss()(x, target)


def test_the_loss_is_a_module_that_moves_and_saves_its_class_weights():
    loss = UpsampledCrossEntropyLoss(weight=torch.ones(6), ignore_index=255)
    assert isinstance(loss, torch.nn.Module)
    assert loss.double().weight.dtype == torch.float64
    assert list(loss.state_dict()) == ["weight"]


REDUCTIONS = ["mean", "sum", "none"]
COMPILED = ["mean", *(pytest.param(reduction, marks=pytest.mark.slow) for reduction in ("sum", "none"))]


@pytest.fixture
def compiles():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def labeled(shape, dtype=torch.float32):
    """Logits that need a gradient, and labels of which some are 255."""
    batch, classes, height, width = shape
    target = torch.randint(0, classes, (batch, 8 * height, 8 * width), generator=torch.Generator().manual_seed(1))
    target[:, :2] = 255
    return logits(shape).to(dtype).requires_grad_(), target


def assert_same_loss_and_gradient(loss, expected, x, tolerance=1e-5):
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    gradient, exact = (torch.autograd.grad(value.sum() * 3, x)[0] for value in (loss, expected))
    assert gradient.dtype == exact.dtype
    assert (gradient - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_class_weights_in_half_precision_are_used_in_full(dtype, logits_dtype, reduction, smoothing, form):
    x, target = labeled((1, 3, 36, 36), logits_dtype)  # 80,000 pixels: more than float16 counts
    options = {"ignore_index": 255, "reduction": reduction, "label_smoothing": smoothing}
    criterion = torch.nn.Sequential(UpsampledCrossEntropyLoss(torch.tensor([0.3, 1.0, 1.7]), **options)).to(dtype)[0]
    wide = x.to(torch.promote_types(logits_dtype, torch.float32))
    expected = F.cross_entropy(resized(wide, target.shape[1:]), target, criterion.weight.to(wide), **options)
    loss = criterion(x, target)
    assert loss.dtype == wide.dtype
    assert_same_loss_and_gradient(loss, expected, x, 1e-3 if logits_dtype == torch.float16 else 1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.bool],
    ids=str,
)
def test_labels_of_every_integer_type_are_those_of_int64(dtype, weighted, reduction, form):
    x, target = labeled((2, 6, 4, 4))
    target = target.clamp(max=5).to(dtype)
    criterion = UpsampledCrossEntropyLoss(torch.arange(1.0, 7) if weighted else None, reduction=reduction)
    assert torch.equal(criterion(x, target), criterion(x, target.long()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_the_ignored_label_is_that_of_any_integer_type(dtype, form):
    x, target = labeled((2, 6, 4, 4))
    expected = F.cross_entropy(resized(x, target.shape[1:]), target, ignore_index=255)
    torch.testing.assert_close(UpsampledCrossEntropyLoss(ignore_index=255)(x, target.to(dtype)), expected)


def test_no_label_is_ignored_if_its_type_cannot_hold_the_ignored_one(form):
    x, target = logits((1, 157, 2, 2)), torch.full((1, 16, 16), 156, dtype=torch.uint8)  # -100 modulo 256
    expected = F.cross_entropy(resized(x, target.shape[1:]), target.long())
    torch.testing.assert_close(UpsampledCrossEntropyLoss(ignore_index=-100)(x, target), expected)


def test_labels_with_a_channel_and_weights_of_other_classes_are_told():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"got logits .* and labels \(2, 1, 32, 32\)\. Use `target\.squeeze\(1\)`"):
        UpsampledCrossEntropyLoss()(x, torch.zeros(2, 1, 32, 32, dtype=torch.long))
    with pytest.raises(ValueError, match="There are 4 class weights for logits of 3 classes"):
        UpsampledCrossEntropyLoss(weight=torch.ones(4))(x, torch.zeros(2, 32, 32, dtype=torch.long))


def test_labels_that_are_not_integers_are_refused():
    x, target = labeled((2, 6, 4, 4))
    with pytest.raises(ValueError, match=r"must be integers.*got torch.float32. Convert .*target.long\(\)"):
        UpsampledCrossEntropyLoss(ignore_index=255)(x, target.float())


def test_a_gradient_is_not_differentiated_once_more():
    x, target = labeled((2, 6, 4, 4))
    loss = UpsampledCrossEntropyLoss(ignore_index=255)(x, target)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        (loss + gradient.square().sum()).backward()


@pytest.mark.parametrize("arguments", [{}, {"weight": torch.arange(1.0, 7), "label_smoothing": 0.1}])
@pytest.mark.parametrize("reduction", COMPILED)
def test_the_compiled_loss_and_its_gradient_are_the_eager_ones(compiles, reduction, arguments):
    criterion = UpsampledCrossEntropyLoss(ignore_index=255, reduction=reduction, **arguments)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for shape in ((2, 6, 4, 5), (2, 6, 5, 7)):
        x, target = labeled(shape)
        assert_same_loss_and_gradient(compiled(x, target), criterion(x, target), x)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, target), criterion(x, target))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sizes_after_the_first_share_a_compiled_loss(compiles, reduction):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(UpsampledCrossEntropyLoss(reduction=reduction), fullgraph=True, backend=counter)
    for side in (4, 5, 9, 31):
        compiled(logits((2, 6, side, side + 1)), torch.zeros(2, 8 * side, 8 * side + 8, dtype=torch.long))
    assert counter.frame_count == 2


def test_labels_are_compiled_without_a_break(compiles, form):
    compiled = torch.compile(resized_argmax, fullgraph=True, backend="aot_eager")
    for size in ((32, 40), (31, 39)):
        x = logits((2, 6, 4, 5)).requires_grad_()
        labels = compiled(x, size)
        assert not labels.requires_grad
        assert torch.equal(labels, resized(x, size).argmax(1))


def test_a_compiled_loss_holds_no_full_size_logits(compiles):
    sizes = []

    def record(graph, inputs):
        values = (node.meta.get("val") for node in graph.graph.nodes)
        sizes.extend(value.numel() for value in values if isinstance(value, torch.Tensor))
        return graph

    x, target = labeled((2, 20, 4, 4))
    criterion = UpsampledCrossEntropyLoss(torch.ones(20), ignore_index=255, label_smoothing=0.1)
    torch.compile(criterion, fullgraph=True, backend=aot_autograd(fw_compiler=record))(x, target).backward()
    assert x.numel() <= max(sizes) <= max(x.numel(), target.numel())


def test_a_compiled_step_is_the_eager_one(compiles):
    model, criterion = torch.nn.Conv2d(3, 6, 8, 8), UpsampledCrossEntropyLoss(torch.arange(1.0, 7), ignore_index=255)

    def step(images, target):
        with torch.autocast("cpu", torch.bfloat16):
            return criterion(model(images), target)

    images, (_, target) = torch.randn(2, 3, 32, 40), labeled((2, 6, 4, 5))
    loss = torch.compile(step, fullgraph=True, backend="aot_eager")(images, target)
    assert loss.dtype == torch.float32
    assert_same_loss_and_gradient(loss, step(images, target), model.weight)


def test_an_exported_loss_takes_any_size():
    height, width = (torch.export.Dim(name, min=2, max=100) for name in ("height", "width"))
    sizes = ({2: height, 3: width}, {1: 8 * height, 2: 8 * width})
    criterion = UpsampledCrossEntropyLoss(torch.arange(1.0, 7), ignore_index=255)
    program = torch.export.export(criterion, labeled((2, 6, 4, 5)), dynamic_shapes=sizes).module()
    x, target = labeled((2, 6, 7, 3))
    assert_same_loss_and_gradient(program(x, target), criterion(x, target), x)


def test_a_compiled_loss_refuses_what_the_eager_one_does(compiles):
    x, target = logits((1, 6, 4, 4)), torch.zeros(1, 32, 64, dtype=torch.long)
    compiled = torch.compile(UpsampledCrossEntropyLoss(), fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="labels of another image"):
        compiled(x, target)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        compiled(x, torch.full((1, 32, 32), 6))


def test_the_loss_is_copied_and_pickled():
    x, target = labeled((2, 6, 4, 4))
    criterion = UpsampledCrossEntropyLoss(torch.arange(1.0, 7), ignore_index=255)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(other(x, target), criterion(x, target))


@torch.no_grad()
@pytest.mark.parametrize(("value", "expected"), [("0", False), ("1", True)])
def test_an_environment_variable_turns_kernels_off(monkeypatch, value, expected):
    monkeypatch.setattr(kernels, "ENABLED", None)  # restored in the end
    monkeypatch.setenv("SEGNEXT_TIMM_KERNELS", value)
    importlib.reload(kernels)  # which reads the variable
    x = torch.zeros(1, 64, 64, 2048).permute(0, 3, 1, 2)
    mlp = ConvMlp(2048, 4096, 1, torch.nn.GELU, device="meta").eval()
    assert (kernels.ENABLED, upsampling.applies(x), bands.applies_to_mlp(x, mlp)) == (expected,) * 3


@pytest.mark.parametrize("form", ["plain"], indirect=True)
def test_the_plain_form_is_differentiated_twice(form):
    x, target = logits((2, 6, 4, 6)).requires_grad_(), torch.randint(0, 6, (2, 33, 50))
    (gradient,) = torch.autograd.grad(UpsampledCrossEntropyLoss()(x, target), x, create_graph=True)
    (exact,) = torch.autograd.grad(F.cross_entropy(resized(x, (33, 50)), target), x, create_graph=True)
    torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), x)[0] for g in (gradient, exact)))


@pytest.mark.parametrize("form", ["plain"], indirect=True)
@pytest.mark.parametrize("reduction", COMPILED)
def test_the_plain_form_is_compiled_for_all_sizes(form, compiles, reduction):
    counter = CompileCounterWithBackend("aot_eager")
    criterion = UpsampledCrossEntropyLoss(reduction=reduction)
    compiled = torch.compile(criterion, fullgraph=True, backend=counter)
    for side in (4, 5, 9, 31, 33, 40):
        x, target = labeled((2, 6, side, side + 1))
        target.clamp_(max=5)
        assert_same_loss_and_gradient(compiled(x, target), criterion(x, target), x)
    assert counter.frame_count == 2


@pytest.mark.slow
def test_the_module_can_be_loaded_again():
    code = """if True:
        import importlib, torch
        from segnext_timm.models import losses
        x, target = torch.zeros(1, 2, 2, 2, requires_grad=True), torch.zeros(1, 8, 8, dtype=torch.long)
        before = losses.UpsampledCrossEntropyLoss()
        for criterion in (before, importlib.reload(losses).UpsampledCrossEntropyLoss(), before):
            criterion(x, target).backward()
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.timed
@pytest.mark.slow
def test_large_label_maps_need_a_fifth_of_the_memory_and_less_time():
    plain, ours = label_memory.main()
    assert ours.megabytes < plain.megabytes / 5
    assert ours.milliseconds < plain.milliseconds


@pytest.mark.cuda
def test_cuda_gives_the_labels_and_the_loss_of_the_cpu():
    x, target = logits((2, 7, 9, 13), smooth=3), torch.randint(0, 7, (2, 71, 99))
    assert (resized_argmax(x.cuda(), (71, 99)).cpu() != resized_argmax(x, (71, 99))).float().mean() < 1e-3
    torch.testing.assert_close(
        UpsampledCrossEntropyLoss()(x.cuda(), target.cuda()).cpu(), UpsampledCrossEntropyLoss()(x, target)
    )
