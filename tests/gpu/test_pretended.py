"""What can be known of CUDA on a CPU: devices, dtypes, layouts and waits, on fake "cuda" tensors and in real steps."""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pretended_cuda import WaitCounter, aten, backward, fake, fake_autocast
from scores import segment
from segnext_timm import UpsampledCrossEntropyLoss, kernels
from segnext_timm.models.mscan import MultiScaleConvAttention
from small_models import narrow

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends a GPU where there is none")
DTYPES = [None, torch.float16]
STATISTICS = {"mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def mode():
    return FakeTensorMode(allow_non_fake_inputs=True)


def pretended(mode, training=False, **options):
    model = narrow(pretrained_cfg=STATISTICS, **options).to(memory_format=torch.channels_last).train(training)
    return fake(model, mode)


def images(*shape):
    return torch.empty(*shape, device="cuda").contiguous(memory_format=torch.channels_last)


def is_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("triton", [True, False])
def test_forward_pass_and_loss_stay_on_the_device_without_a_wait(mode, dtype, triton, monkeypatch):
    if not triton:
        monkeypatch.setattr(kernels, "triton_runs", lambda *tried: False)
    model = pretended(mode, training=True, upsampling=1)
    loss_function = UpsampledCrossEntropyLoss(ignore_index=255)
    with mode, fake_autocast(dtype), WaitCounter() as counter:
        logits = model(images(2, 3, 64, 96))
        labels = torch.zeros(2, 64, 96, dtype=torch.long, device="cuda")
        loss = loss_function(logits, labels)
    assert (logits.device.type, logits.dtype) == ("cuda", dtype or torch.float32)
    assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)
    assert not counter.waits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_channels_last_is_kept_from_the_stem_to_the_logits(mode, dtype, training):
    model = pretended(mode, training, upsampling=1)
    lost = []

    def check(module, inputs, output):
        if isinstance(output, torch.Tensor) and output.ndim == 4 and not is_channels_last(output):
            lost.append(type(module).__name__)

    for module in model.modules():
        module.register_forward_hook(check)
    with mode, fake_autocast(dtype):
        model(images(2, 3, 64, 96))
    assert not lost


@pytest.mark.parametrize("triton", [True, False])
def test_labels_are_predicted_without_a_wait(mode, triton, monkeypatch):
    if not triton:
        monkeypatch.setattr(kernels, "triton_runs", lambda *tried: False)
    model = pretended(mode)
    with mode, WaitCounter() as counter:
        labels = model.predict_labels(images(2, 3, 64, 96))
    assert (labels.device.type, labels.dtype, tuple(labels.shape)) == ("cuda", torch.long, (2, 64, 96))
    assert not counter.waits


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "whole"},
        {"mode": "slide", "window": 64, "stride": 48},
        {"mode": "whole", "scales": (0.5, 1), "flip": True},
    ],
)
def test_scores_are_computed_without_a_wait(mode, options):
    model = pretended(mode)
    with mode, WaitCounter() as counter:
        scores = segment(model, torch.empty(3, 96, 130, dtype=torch.uint8, device="cuda"), **options)
    assert (scores.device.type, tuple(scores.shape)) == ("cuda", (3, 96, 130))
    assert not counter.waits


def test_a_backward_pass_without_the_engine_gives_its_gradients():
    x, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    found = []
    for compute in (torch.Tensor.backward, backward):
        torch.manual_seed(0)
        model = narrow(upsampling=1).train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = UpsampledCrossEntropyLoss()(model(x), labels)
        compute(loss)
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *found))


def test_the_counter_sees_what_waits():
    with WaitCounter(everywhere=True) as counter:
        x = torch.arange(4.0)
        x[x > 1].sum().item()
        x.nonzero()
        x.tolist()
        float(x[0])
        torch.where(x > 1, x, 0)
    assert sorted(name.split(".")[0] for name, _ in counter.waits.elements()) == [
        "__float__", "index", "item", "nonzero", "tolist",
    ]  # fmt: skip
    assert all("test_pretended.py: " in line for _, line in counter.waits)


class Recorder(TorchDispatchMode):
    """Count operators, and list whether tensors of strip convolutions have the strides of NCHW."""

    def __init__(self):
        super().__init__()
        self.counts, self.strips = Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name()] += 1
        if func.overloadpacket in (aten.convolution, aten.convolution_backward):
            tensors = args[: 3 if func.overloadpacket is aten.convolution_backward else 2]
            if 1 in tensors[-1].shape[2:] and tensors[-1].shape[2:] != (1, 1):
                self.strips.append([t.stride() == torch.empty(t.shape).stride() for t in tensors])
        return func(*args, **kwargs or {})


def count_blocks(model):
    return sum(isinstance(module, MultiScaleConvAttention) for module in model.modules())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_strips_are_two_kernels_or_convolutions_in_nchw(mode, dtype, training, monkeypatch):
    model = pretended(mode, training)
    blocks = count_blocks(model)
    for triton in (True, False):
        monkeypatch.setattr(kernels, "triton_runs", lambda *tried, runs=triton: runs)
        with mode, fake_autocast(dtype), Recorder() as recorder:
            model(images(2, 3, 64, 96))
        assert recorder.counts["segnext_timm::add_strips"] == (blocks if triton else 0)
        assert recorder.strips == ([] if triton else [[True] * 2] * 6 * blocks)


@pytest.mark.parametrize("triton", [True, False])
def test_a_training_step_has_all_gradients_by_the_same_kernels(mode, triton, monkeypatch):
    # a backward pass on pretended GPUs needs a driver, so these tensors are on the CPU, and say that they are not
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(kernels, "triton_runs", lambda *tried: triton)
    model = fake(narrow(upsampling=1).to(memory_format=torch.channels_last).train(), mode, "cpu")
    with mode, torch.autocast("cpu", torch.bfloat16), Recorder() as recorder:
        logits = model(torch.empty(2, 3, 64, 96).contiguous(memory_format=torch.channels_last))
        UpsampledCrossEntropyLoss()(logits, torch.zeros(2, 64, 96, dtype=torch.long)).backward()
    blocks = count_blocks(model)
    found = [recorder.counts[f"segnext_timm::add_strips{direction}"] for direction in ("", "_backward")]
    assert found == [blocks if triton else 0] * 2
    assert recorder.strips == ([] if triton else [[True] * 2] * 6 * blocks + [[True] * 3] * 6 * blocks)
    for module in model.modules():
        if isinstance(module, MultiScaleConvAttention):
            for parameter in module.branches.parameters():
                assert parameter.grad.dtype == torch.float32
                assert parameter.grad.shape == parameter.shape
