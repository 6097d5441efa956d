"""How a training step is made: fewer casts, updates that do not wait, compiled parts, synchronized norms."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from timm.layers import BatchNormAct2d
from torch._dynamo.testing import CompileCounter

import miniatures
import train
import training
from pretended_cuda import OperatorCounter, WaitCounter
from segmentation.data import training_samples
from segmentation.models import with_synced_norms
from segmentation.stepping import GroupedCasts, compile_model, step_if
from segnext_timm import UpsampledCrossEntropyLoss
from segnext_timm.kernels import strips
from segnext_timm.models.segmenter import evaluation_mode
from small_models import narrow


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["plain", "checkpointed", "frozen"])
def test_grouped_casts_give_the_numbers_of_autocast(dtype, how):
    torch.manual_seed(0)
    model = narrow(drop_path_rate=0.3, upsampling=1).train()
    model.encoder.requires_grad_(how != "frozen")
    model.set_grad_checkpointing(how == "checkpointed")
    x, labels = torch.randn(4, 3, 64, 64), torch.randint(0, 3, (4, 64, 64))
    found = []
    for step in (model, GroupedCasts(model)):
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = UpsampledCrossEntropyLoss()(step(x), labels)
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)])
    assert all(map(torch.equal, *found))
    assert all(parameter.requires_grad == (parameter.grad is not None) for parameter in model.parameters())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_grouped_casts_give_the_numbers_of_autocast_to_kernels_too(checkpointed, monkeypatch):
    pytest.importorskip("triton")
    applies, calls = strips.applies, []

    def is_cuda_there(base, branches):  # elsewhere, what says that it is on CUDA would be asked for more
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
            calls.append(applies(base, branches))
        return calls[-1]

    monkeypatch.setattr(strips, "applies", is_cuda_there)
    torch.manual_seed(0)
    model = narrow(upsampling=1).train().to(memory_format=torch.channels_last)
    model.set_grad_checkpointing(checkpointed)
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    found = []
    for step in (model, GroupedCasts(model)):
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = step(x)
        logits.float().square().sum().backward()
        found.append([logits, *(parameter.grad for parameter in model.parameters())])
    assert calls and all(calls)
    assert all(map(torch.equal, *found))


@pytest.fixture
def process_group():
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of 1×1 weights in channels_last, with any model
@pytest.mark.parametrize("option", ["static_graph", "find_unused_parameters"])
def test_grouped_casts_are_trained_by_several_processes(process_group, option):
    model = narrow(upsampling=1).train()
    x, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    several = torch.nn.parallel.DistributedDataParallel(GroupedCasts(model), broadcast_buffers=False, **{option: True})
    found = []
    for step in (model, several):
        for seed in range(2):  # a static graph is known after the first
            torch.manual_seed(seed)
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = UpsampledCrossEntropyLoss()(step(x), labels)
            loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *found))


def test_parameters_that_are_not_used_get_no_gradient_from_grouped_casts():
    class Half(torch.nn.ModuleList):
        def forward(self, x):
            return self[0](x)

    model = Half([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    with torch.autocast("cpu", torch.bfloat16):
        GroupedCasts(model)(torch.ones(1, 2)).sum().backward()
    assert model[0].weight.grad.dtype == torch.float32
    assert model[1].weight.grad is None


def test_grouped_casts_are_fewer_operators():
    def operators(step):
        with torch.autocast("cpu", torch.bfloat16), OperatorCounter() as counter:
            step(torch.randn(2, 3, 64, 64)).sum().backward()
        return counter.counts

    model = narrow(upsampling=1).train()
    plain, grouped = operators(model), operators(GroupedCasts(model))
    assert grouped["_foreach_copy_"] == 2
    casts = 2 * len(GroupedCasts(model).trained)
    assert plain["_to_copy"] - grouped["_to_copy"] == casts


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

    def make(on_device=False, **options):
        settings = training.narrow_settings(
            data_root=str(tmp_path / "data"),
            out=str(tmp_path / "run"),
            crop_size=32,
            workers=0,
            tracker="none",
            **({"batch_size": 2} | options),
        )
        made = train.Trainer(settings)
        if on_device:
            given = made.settings, made.normalization, made.balance.sampler
            made.samples = training_samples(made.train_split, *given, on_device=True)
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
        {"freeze_encoder": True, "precision": "bf16"},
        {"on_device": True},
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


def test_losses_are_about_the_same_with_colors_on_the_device(trainer):
    losses = []
    for on_device in (False, True):
        run, batches = trainer(on_device=on_device)
        for iteration in range(3):
            step(run, batches, iteration)
        run.iteration = 3
        run.read_losses()
        losses.append(run.losses)
        AcceleratorState._reset_state(True)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def step(run, batches, iteration):
    run.prepare_iteration(iteration)
    run.update(run.accumulate_gradient(batches))
