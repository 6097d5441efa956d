"""How a training step is made: fewer casts, updates that do not wait, compiled parts, synchronized norms."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from timm.layers import BatchNormAct2d
from torch._dynamo.testing import CompileCounter

import miniatures
import train
import training
from pretended_cuda import WaitCounter
from segmentation.autocasting import _CastAll, reduce_casts
from segmentation.models import with_synced_norms
from segmentation.stepping import compile_model, step_if
from segnext_timm import UpsampledCrossEntropyLoss
from segnext_timm.models.segmenter import evaluation_mode
from small_models import narrow


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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_fused_optimizer_skips_updates_without_a_wait(device):
    parameter = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    wrapped = SimpleNamespace(defaults=optimizer.defaults, optimizer=optimizer, step=optimizer.step)
    for finite, moved in ((False, False), (True, True), (False, False)):
        before = parameter.detach().clone()
        parameter.grad = torch.full((3,), 1.0 if finite else float("nan"), device=device)
        finite = torch.tensor(finite, device=device)
        with WaitCounter(everywhere=True) as counter:
            step_if(finite, wrapped)
        assert not counter.waits
        assert torch.equal(parameter, before) != moved
    assert optimizer.state[parameter]["step"] == 1


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
        {"accumulate": 2, "batch_size": 4, "one_step_gradient": True},
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
