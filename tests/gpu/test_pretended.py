"""What can be known of CUDA on a CPU: devices, dtypes, layouts and waits, on fake "cuda" tensors and in real steps."""

import copy
import io
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from timm.layers import BatchNormAct2d
from timm.utils import ModelEmaV3
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import miniatures
import step_traffic
import train
import training
from pretended_cuda import WaitCounter, fake, fake_autocast
from segmentation import evaluation, layouts
from segmentation.autocasting import _CastAll, reduce_casts
from segmentation.models import with_synced_norms
from segmentation.recipe import DataSettings
from segmentation.stepping import compile_model, step_if
from segnext_timm import UpsampledCrossEntropyLoss
from segnext_timm.kernels import norms, resizing
from segnext_timm.models.hamburger import GroupNorm
from segnext_timm.models.model_info import evaluation_mode
from segnext_timm.prediction.pipeline import segment
from small_models import narrow

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends a GPU where there is none")
DTYPES = [None, torch.float16, torch.bfloat16]
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
        monkeypatch.setattr(resizing, "_triton_runs", lambda device: False)
    model = pretended(mode, training=True, upsampling=1)
    loss_function = UpsampledCrossEntropyLoss(ignore_index=255)
    with mode, fake_autocast(dtype), WaitCounter() as counter:
        logits = model(images(2, 3, 64, 96))
        labels = torch.zeros(2, 64, 96, dtype=torch.long, device="cuda")
        loss = loss_function(logits, labels)
    assert (logits.device.type, logits.dtype) == ("cuda", dtype or torch.float32)
    assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)
    assert not counter.waits


@pytest.mark.parametrize("dtype", [None, torch.float16])
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
        monkeypatch.setattr(resizing, "_triton_runs", lambda device: False)
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


def test_an_evaluation_waits_once_for_each_image_at_most(mode, tmp_path, monkeypatch):
    miniatures.make("folder", tmp_path, [0, 1, 2, 255], sizes=((48, 64), (50, 70), (64, 40)))
    split = layouts.open_split("folder", tmp_path, "val")
    device = torch.device("cuda")
    accelerator = SimpleNamespace(device=device, process_index=0, num_processes=1, is_main_process=False)
    accelerator.autocast, accelerator.reduce = nullcontext, lambda tensor, how: tensor
    model = pretended(mode)
    read = evaluation.Samples(split, range(len(split)))
    samples = [tuple(map(mode.from_tensor, read[i])) for i in range(len(split))]
    monkeypatch.setattr(evaluation, "DataLoader", lambda *args, **kwargs: samples)  # it draws a seed, from data
    with mode, WaitCounter() as counter:
        evaluation.evaluate(model, split, DataSettings(workers=0), accelerator)
    # the images are not pinned here; where they are, these copies do not wait. And one wait for the result
    assert sum(counter.waits.values()) <= len(split) + 1, counter.waits


def test_moving_averages_and_synchronized_norms_stay_on_the_device(mode):
    model = narrow().train()
    average = ModelEmaV3(model, decay=0.9)
    for one in (model, average.module):
        fake(one, mode)
    with mode, WaitCounter() as counter:
        average.update(model)
    assert {p.device.type for p in average.module.parameters()} == {"cuda"}
    assert not counter.waits
    with mode:
        synced = with_synced_norms(model, True, 2, torch.device("cuda"))
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synced.modules())


def test_a_gpu_s_group_norm_is_exported_and_traced(monkeypatch):
    monkeypatch.setattr(norms, "applies", lambda x: True)
    norm, x = GroupNorm(4, 12).eval(), torch.randn(2, 12, 5, 7).contiguous(memory_format=torch.channels_last)
    program = torch.export.export(norm, (x,)).module()
    traced = torch.jit.trace(norm, (x,))
    torch.jit.save(traced, io.BytesIO())
    for one in (program, traced):
        torch.testing.assert_close(one(x), norm(x))


def test_unused_parameters_get_no_gradient_from_grouped_casts():
    tensors = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    used, _ = _CastAll.apply(torch.bfloat16, *tensors)
    used.sum().backward()
    assert tensors[0].grad.dtype == torch.float32
    assert tensors[1].grad is None


def test_synchronized_norms_keep_their_activations():
    model = torch.nn.Sequential(BatchNormAct2d(4))
    synced = with_synced_norms(model, True, 2, torch.device("cuda"))
    assert isinstance(synced[0], torch.nn.SyncBatchNorm)
    assert isinstance(synced[0].act, torch.nn.ReLU)


def test_a_fused_optimizer_skips_updates_without_a_wait():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    wrapped = SimpleNamespace(defaults=optimizer.defaults, optimizer=optimizer, step=optimizer.step)
    for finite, moved in ((False, False), (True, True), (False, False)):
        before = parameter.detach().clone()
        parameter.grad = torch.full((3,), 1.0 if finite else float("nan"))
        with WaitCounter(everywhere=True) as counter:
            step_if(torch.tensor(finite), wrapped)
        assert not counter.waits
        assert torch.equal(parameter, before) != moved
    assert optimizer.state[parameter]["step"] == 1


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A trainer on the CPU that updates as on a GPU, and batches that are read already."""
    monkeypatch.setattr(train, "prefers_fused", lambda device: True)
    miniatures.make("folder", tmp_path / "data", [0, 1, 2, 255])

    def make(**options):
        settings = training.narrow_settings(
            data_root=str(tmp_path / "data"),
            out=str(tmp_path / "run"),
            crop_size=32,
            workers=0,
            tracker="none",
            **({"batch_size": 2} | options),
        )
        made = train.Trainer(settings)
        return made, iter([batch for _, batch in zip(range(4), made.loader())])

    yield make
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16", "ema_decay": 0.9, "clip_grad": 1.0},
        {"accumulate": 2, "batch_size": 4, "color_on_device": True, "one_step_gradient": True},
        {"freeze_encoder": True, "grad_checkpointing": True},
    ],
)
def test_a_training_step_never_waits(trainer, options):
    run, batches = trainer(**options)
    step(run, batches, 0)  # the first one creates the optimizer's state
    with WaitCounter(everywhere=True) as counter:
        step(run, batches, 1)
    assert not counter.waits
    run.iteration = 2
    run.read_losses()
    assert len(run.losses) == 2


def step(run, batches, iteration):
    run.prepare_iteration(iteration)
    run.update(run.accumulate_gradient(batches))


def test_the_counter_sees_what_waits(trainer):
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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["channels_last", "nchw"])
def test_group_norm_of_gpus_is_that_of_torch(kind, training, monkeypatch):
    torch.manual_seed(0)
    norm = GroupNorm(4, 12).double().train(training)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, out = torch.randn(2, 12, 5, 7, dtype=torch.float64), []
    if kind == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    for on_a_gpu in (False, True):
        monkeypatch.setattr(norms, "applies", lambda x, on_a_gpu=on_a_gpu: on_a_gpu)
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        gradients = torch.autograd.grad((y * y.detach().cos()).sum(), (leaf, norm.weight, norm.bias))
        out.append((y, *gradients))
    for expected, found in zip(*out):
        torch.testing.assert_close(found, expected)


def test_fewer_casts_give_the_same_gradients():
    # drop path's random numbers are drawn in the same order
    torch.manual_seed(0)
    model = narrow(drop_path_rate=0.3, upsampling=1).train()
    x, labels = torch.randn(4, 3, 64, 64), torch.randint(0, 3, (4, 64, 64))
    exact, plain, lean = (gradients(model, x, labels, how) for how in ("fp32", "plain", "lean"))
    assert plain.keys() == lean.keys()
    for part in ("encoder", "decoder", "segmentation_head"):
        names = [name for name in exact if name.startswith(part)]
        errors = [sum((g[n] - exact[n]).square().sum() for n in names).sqrt() for g in (plain, lean)]
        assert errors[1] < 1.2 * errors[0], part  # no worse than plain autocast


def gradients(model, x, labels, how):
    model = copy.deepcopy(model)
    if how == "lean":
        reduce_casts(model)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=how != "fp32"):
        loss = UpsampledCrossEntropyLoss()(model(x), labels)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_hooks_leave_evaluation_and_float32_alone():
    model = narrow().eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    reduce_casts(model)
    assert torch.equal(model(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(torch.randn(2, 3, 64, 64))
    assert all("weight" not in module.__dict__ for module in model.modules())


@pytest.mark.slow
def test_a_step_of_tiny_moves_less_than_three_fifths_of_what_it_moved():
    step_counted, loss_part, strides = step_traffic.count("t", 16)
    total = sum(step_counted.bytes.values())
    assert total < 0.6 * 74.8e9  # of the step before the kernels, by the same count
    assert sum(loss_part.bytes.values()) < 0.08 * total
    assert step_counted.count["_to_copy"] + step_counted.count["_foreach_copy_"] < 819 / 3
    assert all(stride[1] == 1 for stride in strides)  # channels_last


@pytest.mark.parametrize(("how", "graphs"), [("blocks", 8), ("model", 1)])
def test_images_of_fifty_sizes_are_evaluated_without_compiling(how, graphs):
    torch._dynamo.reset()
    model, counter = narrow(upsampling=1, drop_path_rate=0.1), CompileCounter()
    compile_model(model, how, backend=counter)
    for _ in range(3):
        model.train()(torch.randn(2, 3, 64, 64))
    compiled = counter.frame_count
    assert 1 <= compiled <= graphs
    with torch.compiler.set_stance("force_eager"), torch.no_grad(), evaluation_mode(model):
        for side in range(50):
            model(torch.randn(1, 3, 40 + side, 50 + 2 * side))
    assert counter.frame_count == compiled
    torch._dynamo.reset()
