"""The estimate of a training step's memory, made without computing it."""

import copy
import json

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn as nn
from timm.layers import convert_sync_batchnorm
from torch.profiler import ProfilerActivity, profile

import training
from segmentation import memory
from segmentation.losses import build_loss
from segmentation.recipe import TrainSettings

LOSS = build_loss(TrainSettings(), ignore_index=255)


def narrow(**options):
    torch.manual_seed(0)
    settings = {"encoder_weights": None, "classes": 7, "decoder_channels": 32, "decoder_rank": 4}
    return smp.SegNeXt("tu-test_mscan", **settings, **options)


def estimate(model, **settings):
    defaults = {"batch_size": 4, "crop_size": 128}
    return memory.estimate_step(model, LOSS, training.narrow_settings(**defaults | settings))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_estimate_changes_neither_the_model_nor_the_random_numbers(precision):
    model = narrow()
    model.decoder.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert estimate(model, precision=precision) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_sum_of_sizes_that_can_be_told_by_hand():
    class OneLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False))

        def forward(self, x):
            return self.encoder(x)

    model, settings = OneLayer(), training.narrow_settings(batch_size=2, crop_size=32, channels_last=False)
    found = memory.estimate_step(model, lambda output, labels: output.sum(), settings)
    weights, image, labels, output = 4 * 24, 4 * 2 * 3 * 32**2, 8 * 2 * 32**2, 4 * 2 * 8 * 32**2
    # the gradient of the weights comes when the output is gone, and that of the output is a view of a scalar
    expected = 3 * weights + image + labels + output
    assert expected <= found / memory.MARGIN < expected + 100


def test_the_estimate_grows_with_pixels_and_shrinks_with_what_saves_memory():
    whole = estimate(narrow())
    assert estimate(narrow(), batch_size=8) > 1.8 * whole
    assert estimate(narrow(), crop_size=256) > 3.5 * whole
    assert estimate(narrow(), accumulate=2) < 0.6 * whole
    assert estimate(narrow(decoder_one_step_gradient=True)) < whole
    assert estimate(narrow(), ema_decay=0.9) > whole
    checkpointed = narrow()
    checkpointed.set_grad_checkpointing()
    assert estimate(checkpointed) < 0.8 * whole
    frozen = narrow()
    frozen.encoder.requires_grad_(False)
    assert estimate(frozen, freeze_encoder=True) < 0.6 * whole
    assert estimate(narrow(), precision="bf16") < 0.8 * whole


def test_synchronized_norms_are_counted_as_others():
    assert estimate(convert_sync_batchnorm(narrow())) == estimate(narrow())


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "tu-convnext_atto"])
def test_models_of_smp_are_estimated_too(encoder):
    model = smp.Unet(encoder, encoder_weights=None, in_channels=5, classes=2)
    assert estimate(model, crop_size=256) > estimate(model) > 4 * sum(p.nbytes for p in model.parameters())


def test_the_estimate_is_what_a_step_on_a_cpu_allocates(tmp_path):
    model = narrow().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        images = torch.rand(4, 3, 128, 128).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(4, 128, 128, dtype=torch.long)
        LOSS(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # creates the moments
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    totals = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    moments = 2 * sum(p.nbytes for p in model.parameters())
    allocated = weights + moments + max(totals) - totals[-1]
    counted = estimate(model) / memory.MARGIN
    assert counted == pytest.approx(allocated, rel=0.1)


def test_the_estimate_is_said_before_the_first_step(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    training.run("folder", "--data_root", folder, "--out", tmp_path / "run", "--iterations", 1)
    said = capsys.readouterr().out
    assert "\nMemory: about 0.1 GB (estimated) of 0.0 GB free." in said
    assert "Warning: the memory may not suffice: try a higher --accumulate" in said


@pytest.mark.parametrize("name", memory.SIZED_BY_DATA)
def test_losses_whose_sizes_depend_on_labels_need_about_what_is_said(name):
    settings = training.narrow_settings(loss=name, batch_size=4, crop_size=128)
    (line,) = memory.memory_lines(narrow(), build_loss(settings, 255), settings, torch.device("cpu"))
    assert line.startswith("Memory: about 0.1 GB (estimated)")
    peaks = []
    for loss in (name, "ce+dice"):
        with memory._Tally() as tally:
            logits, labels = torch.randn(4, 7, 16, 16, requires_grad=True), torch.randint(7, (4, 128, 128))
            build_loss(TrainSettings(loss=loss), 255)(logits, labels).backward()
        peaks.append(tally.peak)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.15)


def test_processes_share_the_memory_of_a_cpu(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4e9)
    settings = training.narrow_settings(batch_size=4, crop_size=32)
    (line,) = memory.memory_lines(narrow(), LOSS, settings, torch.device("cpu"), processes=2)
    assert line == "Memory: about 0.1 GB (estimated) of 2.0 GB free for each process."
    (line,) = memory.memory_lines(narrow(), LOSS, settings, torch.device("cuda"), processes=2)
    assert line == "Memory: about 0.1 GB (estimated) of 4.0 GB free for each process."


def test_a_loss_that_cannot_be_estimated_is_said_to_be_so():
    lines = memory.memory_lines(
        narrow(),
        lambda output, labels: output.sum() * output.sum().item(),
        training.narrow_settings(),
        torch.device("cpu"),
    )
    assert lines == [
        "Memory: not estimated, since model or loss do not run without data (DataDependentOutputException)."
    ]
