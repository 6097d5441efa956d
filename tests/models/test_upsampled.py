import pytest
import torch
import torch.nn.functional as F

import label_memory
from segnext_timm import UpsampledCrossEntropyLoss
from segnext_timm.models.upsampled import _resized_argmax_graph, resize_region, resized_argmax

# shapes of logits, sizes of labels: eight times as large, odd, one row or column, the same, smaller
SHAPES = [
    ((1, 150, 16, 24), (128, 192)),
    ((3, 7, 9, 13), (71, 99)),
    ((1, 3, 1, 1), (8, 8)),
    ((1, 5, 4, 1), (33, 7)),
    ((2, 4, 5, 6), (5, 6)),
    ((1, 5, 8, 8), (5, 6)),
]


def logits(shape, dtype=torch.float32, smooth=1):
    """Random logits; smooth ones, as a network's are, if `smooth` is more than 1."""
    batch, classes, height, width = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, classes, -(-height // smooth), -(-width // smooth), generator=generator, dtype=dtype)
    return F.interpolate(coarse, (height, width), mode="bicubic")


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("smooth", [1, 4])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_labels_are_those_of_the_resized_maps(shape, size, smooth, channels_last):
    x = logits(shape, torch.float64, smooth)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    expected = resized(x, size).argmax(1)
    labels = resized_argmax(x, size)
    assert labels.dtype == torch.long
    assert torch.equal(labels, expected)
    assert torch.equal(_resized_argmax_graph(x, size), expected)


def test_labels_of_half_precision_are_those_of_maps_in_float32():
    x = logits((1, 20, 8, 8)).bfloat16()
    assert torch.equal(resized_argmax(x, (64, 64)), resized(x.float(), (64, 64)).argmax(1))


def test_logits_that_are_not_numbers_are_labeled_as_the_maps_are():
    x = torch.full((1, 3, 4, 4), torch.nan)
    assert torch.equal(resized_argmax(x, (32, 32)), resized(x, (32, 32)).argmax(1))


def test_bands_of_several_rows_give_the_same_labels(monkeypatch):
    x = logits((2, 6, 9, 13), smooth=3)
    expected = resized_argmax(x, (71, 99))
    for budget in (1, 4 * 99 * 6 * 25, 1 << 30):
        monkeypatch.setattr("segnext_timm.models.upsampled._CPU_BYTES", budget)
        assert torch.equal(resized_argmax(x, (71, 99)), expected)


@pytest.mark.parametrize(
    "arguments", [{}, {"weight": True}, {"label_smoothing": 0.1}, {"weight": True, "label_smoothing": 0.1}]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("shape", "size"), SHAPES[:-1])
def test_the_loss_and_its_gradient_are_those_of_the_resized_maps(shape, size, reduction, arguments):
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
        monkeypatch.setattr("segnext_timm.models.upsampled._CPU_BYTES", budget)
        torch.testing.assert_close(UpsampledCrossEntropyLoss()(x, target), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_runs_in_float32_under_autocast(dtype):
    x, target = logits((1, 6, 4, 4)).to(dtype).requires_grad_(), torch.randint(0, 6, (1, 32, 32))
    with torch.autocast("cpu", dtype=dtype):
        loss = UpsampledCrossEntropyLoss()(x, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, UpsampledCrossEntropyLoss()(x, target))
    loss.backward()
    assert x.grad.dtype == dtype


def test_the_loss_without_gradient_and_of_ignored_pixels_only():
    x, target = logits((1, 6, 4, 4)), torch.full((1, 32, 32), 255)
    assert not UpsampledCrossEntropyLoss(ignore_index=255)(x, target).requires_grad
    assert UpsampledCrossEntropyLoss(ignore_index=255)(x, target).isnan()  # as of cross_entropy
    assert UpsampledCrossEntropyLoss(ignore_index=255, reduction="sum")(x, target) == 0


def test_labels_beyond_the_classes_and_shapes_that_do_not_fit_are_refused():
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
def test_labels_of_another_image_are_refused(size):
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
    assert "ignore_index=255" in repr(loss)


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


@pytest.mark.parametrize(
    ("full", "size"), [((7, 9), (56, 72)), ((7, 9), (50, 61)), ((40, 30), (17, 90)), ((1, 1), (8, 8))]
)
def test_a_piece_of_resized_maps_is_that_piece_of_them(full, size):
    maps = torch.randn(1, 5, *full)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    asked = []

    def part(rows, columns):
        asked.append((rows, columns))
        return maps[0].permute(1, 2, 0)[rows, columns]

    for rows, columns in (
        (slice(0, size[0]), slice(0, size[1])),
        (slice(3, 8), slice(5, 6)),
        (slice(7, 8), slice(0, 3)),
    ):
        piece = resize_region(part, full, size, rows, columns)
        torch.testing.assert_close(piece, expected[rows, columns], rtol=1e-4, atol=1e-5)
    if size[0] > full[0] > 1:  # no more than it needs
        assert asked[1][0].stop - asked[1][0].start <= 5
