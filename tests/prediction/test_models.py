"""Models as `predict` and `predict_labels` call them: their hooks, compilers, wrappers, activations and modes."""

import functools
import threading
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image
from torch.nn import functional as F

import stress
from scores import shrink_tiles
from segnext_timm import predict, predict_file
from segnext_timm.errors import OptionError
from segnext_timm.models.segmenter import evaluation_mode
from small_models import narrow

CFG = {"mean": [0.5] * 3, "std": [0.25] * 3}


def noise(height=64, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def segnext(classes=3, activation=None):
    torch.manual_seed(0)
    model = smp.SegNeXt(
        "tu-test_mscan", encoder_weights=None, classes=classes, decoder_channels=32, activation=activation
    )
    return lively(model)


def unet(classes=1, activation=None):
    torch.manual_seed(0)
    model = smp.Unet(
        "tu-test_mscan", encoder_weights=None, classes=classes, decoder_channels=(16, 8, 8, 8, 8), activation=activation
    )
    return lively(model)


def lively(model):
    """Make a model's labels vary, and state its normalization."""
    model.pretrained_cfg = dict(CFG)
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    return model.eval()


def normalized(image):
    return ((torch.from_numpy(image).permute(2, 0, 1) / 255 - 0.5) / 0.25)[None]


# What decides the labels


def test_labels_do_not_depend_on_free_memory(monkeypatch):
    model, image = segnext(), noise(100, 130)
    expected = predict(model, image, window=48)
    read_text = Path.read_text

    def starved(path, *args, **kwargs):
        return "MemAvailable: 64 kB\n" if str(path) == "/proc/meminfo" else read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", starved)
    assert np.array_equal(predict(model, image, window=48), expected)
    assert not np.array_equal(predict(model, image, window=48, mode="slide"), expected)


def of_numpy():
    """The error of an array that is too large, whose class takes other arguments than Python's."""
    try:
        return np.empty(1 << 59)
    except MemoryError as error:
        return error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError("no"), MemoryError),
        (of_numpy(), MemoryError),
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
        (RuntimeError("can't allocate memory"), RuntimeError),
    ],
)
def test_too_little_memory_is_told_with_what_to_do(error, raised):
    model = segnext()

    def fail(module, inputs):
        raise error

    model.register_forward_pre_hook(fail)
    with pytest.raises(raised, match=r"image of 64×96 pixels .* mode 'whole'\. Use mode='slide', a smaller window"):
        predict(model, noise())


# Hooks, compilers, wrappers


@pytest.mark.parametrize("options", [{}, {"probabilities": True}, {"mode": "slide", "window": 48}, {"scales": (0.5,)}])
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_hooks_of_a_model_fire_when_it_predicts(options, activation):
    model, fired = segnext(activation=activation), []
    model.register_forward_hook(lambda *args: fired.append(args))
    predict(model, noise(), **options)
    assert fired


def test_hooks_of_a_model_fire_when_it_predicts_labels_and_decide_them():
    model, x = segnext(), normalized(noise())
    expected = model.predict_labels(x)
    model.register_forward_hook(lambda module, inputs, output: -output)
    assert not torch.equal(model.predict_labels(x), expected)
    assert torch.equal(model.predict_labels(x), model(x).argmax(1))


class Counter:
    """A compiler that changes nothing and counts the runs of what it compiled."""

    def __init__(self):
        self.runs = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.runs += 1
            return graph(*args)

        return run


@pytest.mark.parametrize(
    ("in_place", "activation", "classes"),
    [
        (False, None, 3),
        (True, "softmax2d", 3),
        pytest.param(True, None, 1, marks=pytest.mark.slow),
        pytest.param(False, "sigmoid", 1, marks=pytest.mark.slow),
    ],
)
def test_compiled_models_run_compiled_and_predict_the_same(in_place, activation, classes):
    torch._dynamo.reset()
    model = segnext(classes, activation)
    expected, counter = predict(model, noise()), Counter()
    if in_place:
        model.compile(backend=counter)
        assert torch.equal(model.predict_labels(normalized(noise())), torch.from_numpy(expected)[None].long())
        assert counter.runs
        counter.runs = 0
    else:
        model = torch.compile(model, backend=counter)
    labels, shares = predict(model, noise(), probabilities=True)
    assert counter.runs
    assert np.array_equal(labels, expected)
    assert np.array_equal(predict(model, noise()), expected)
    assert shares.shape == (classes, 64, 96)
    assert shares.min() >= 0 and shares.max() <= 1


@pytest.mark.parametrize("make", [segnext, functools.partial(unet, 3)])
def test_models_in_data_parallel_predict_as_they_do_alone(make):
    model = make()
    for options in ({}, {"mode": "slide", "window": 48}, {"flip": True}):
        found = predict(torch.nn.DataParallel(model), noise(), **options)
        assert np.array_equal(found, predict(model, noise(), **options))


@pytest.mark.parametrize("make", [unet, segnext])
def test_a_compiled_head_does_not_change_the_labels(make):
    model = make(classes=1, activation="sigmoid")
    expected = predict(model, noise())
    assert 0 < expected.mean() < 1
    head = model.segmentation_head
    model.segmentation_head = torch.compile(head, backend="eager")
    assert np.array_equal(predict(model, noise()), expected)
    model.segmentation_head = head
    head.compile(backend="eager")
    assert np.array_equal(predict(model, noise()), expected)


@pytest.mark.parametrize("classes", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_traced_and_exported_models_predict_as_they_do_themselves(classes):
    model, x = segnext(classes), normalized(noise())
    expected = predict(model, noise())
    for other in (torch.jit.trace(model, x), torch.jit.script(model), torch.export.export(model, (x,)).module()):
        other.pretrained_cfg = dict(CFG)
        assert np.array_equal(predict(other, noise()), expected)


@pytest.mark.parametrize("activation", [None, "sigmoid", "softmax2d"])
def test_hooks_of_a_segnext_get_the_model_itself(activation):
    model, seen = segnext(activation=activation), []
    model.register_forward_hook(lambda module, *args: seen.append(module))
    model.segmentation_head.register_forward_hook(lambda module, *args: seen.append(module))
    predict(model, noise())
    model.predict_labels(normalized(noise()))
    assert {id(module) for module in seen} == {id(model), id(model.segmentation_head)}


@pytest.mark.parametrize("options", [{}, {"scales": (1.0, 1.0)}])
@pytest.mark.parametrize("make", [unet, segnext])
def test_an_activation_of_torch_at_the_end_of_a_head_counts(make, options):
    model = make(classes=1)
    model.segmentation_head = torch.nn.Sequential(model.segmentation_head[0], torch.nn.Sigmoid())
    expected = (model(normalized(noise()))[0, 0] > 0.5).numpy()
    assert 0 < expected.mean() < 1
    assert (predict(model, noise(), **options) == expected).mean() > 0.999


@pytest.mark.parametrize("activation", ["softmax2d", "tanh", "sigmoid", "logsoftmax", None])
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")  # of smp's logsoftmax
@torch.no_grad()
def test_labels_with_another_head_are_the_greatest_of_the_output(activation):
    model, x = segnext(), normalized(noise(71, 97))
    torch.manual_seed(1)
    model.segmentation_head = smp.base.SegmentationHead(32, 3, activation=activation, upsampling=2).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    labels, output = model.predict_labels(x), model(x)
    assert torch.equal(output.gather(1, labels[:, None])[:, 0], output.amax(1))


def test_a_module_without_weights_is_no_model(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    for predicted in (predict, functools.partial(predict_file, result=tmp_path / "out" / "a")):
        with pytest.raises(OptionError, match="predict takes a model, got a Identity without weights: load one by"):
            predicted(torch.nn.Identity(), tmp_path / "a.png")


def test_a_model_that_does_not_segment_is_told():
    classifier = timm.create_model("test_mscan", num_classes=10)
    with pytest.raises(ValueError, match=r"returned float32 \(1, 10\), not scores \(B, classes, H, W\) of each pixel"):
        predict(classifier, noise())
    with pytest.raises(OptionError, match=r"takes a model, got a str: load one by segnext_timm\.load_segmenter"):
        predict("segnext_b", noise())
    features = timm.create_model("test_mscan", features_only=True)
    features.pretrained_cfg = CFG
    with pytest.raises(ValueError, match=r"returned a list, not a tensor \(B, classes, H, W\)"):
        predict(features, noise())


# Activations


class Doubled(torch.nn.Module):
    """A probability that smp does not know."""

    def forward(self, x):
        return x.sigmoid() * 0.999


@pytest.mark.parametrize(
    ("activation", "threshold"),
    [
        (torch.nn.Hardsigmoid, 0.5),
        (Doubled, 0.4995),
        (torch.nn.Softsign, 0.0),
        (torch.nn.LogSigmoid, float(np.log(0.5))),
        (functools.partial(torch.nn.Hardtanh, 0.0, 1.0), 0.5),
        ("sigmoid", 0.5),
        ("tanh", 0.0),
        ("clamp", 0.5),
    ],
)
@pytest.mark.parametrize("make", [unet, segnext])
def test_a_binary_model_is_positive_above_the_middle_of_its_activation(make, activation, threshold):
    model = make(classes=1, activation=activation)
    image = noise()
    with torch.no_grad():
        logits = model.segmentation_head[0](model.decoder(model.encoder(normalized(image))))
        model.segmentation_head[0].bias -= logits.median() - (threshold if activation == "clamp" else 0.0)
        output = model(normalized(image))
    expected = (output[0, 0] > threshold).numpy()
    assert 0.05 < expected.mean() < 0.95
    assert (predict(model, image) == expected).mean() > 0.999
    for options in ({"scales": (1.0, 1.0)}, {"mode": "slide", "window": 96}):
        assert (predict(model, image, **options) == expected).mean() > 0.999
    if hasattr(model, "predict_labels"):
        assert (model.predict_labels(normalized(image))[0].numpy() == expected).mean() > 0.999


def test_probabilities_of_an_activation_that_smp_does_not_name_are_its_own():
    model, image = unet(activation=torch.nn.Hardsigmoid), noise()
    _, shares = predict(model, image, probabilities=True)
    np.testing.assert_allclose(shares, model(normalized(image))[0].detach(), rtol=1e-4, atol=1e-5)


def test_a_model_returns_its_activated_output_while_another_thread_predicts(monkeypatch):
    shrink_tiles(monkeypatch, 32)
    model, image = unet(classes=3, activation="sigmoid"), noise()
    x, seen = normalized(image), []
    with torch.no_grad():
        expected = model(x)
        predict(model, image, progress=lambda share: seen.append(model(x)), mode="slide", window=48)
        stop = threading.Event()
        worker = threading.Thread(target=lambda: [predict(model, image) for _ in range(30)] and stop.set())
        worker.start()
        while not stop.is_set():
            seen.append(model(x))
        worker.join()
    assert all(torch.equal(output, expected) for output in seen)


def test_predicting_changes_nothing_of_a_model(monkeypatch):
    shrink_tiles(monkeypatch, 32)
    model = segnext(activation="softmax2d")
    before = {name: (module, dict(module._forward_hooks)) for name, module in model.named_modules()}
    inside = []

    def look(share):
        inside.append({name: (module, dict(module._forward_hooks)) for name, module in model.named_modules()})

    predict(model, noise(), progress=look, probabilities=True)
    assert inside
    assert all(state == before for state in inside)


# Modes


@pytest.mark.parametrize("wrapper_ends_first", [False, True])
def test_modes_of_a_wrapper_and_the_model_in_it_return_when_both_have_predicted(wrapper_ends_first):
    model = narrow().train()
    model.decoder.eval()
    wrapper = torch.nn.Sequential(model)
    modes = [module.training for module in wrapper.modules()]
    blocks = [evaluation_mode(wrapper), evaluation_mode(model)]
    for block in blocks:
        block.__enter__()
    first, second = blocks if wrapper_ends_first else blocks[::-1]
    first.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())  # the other block still runs
    second.__exit__(None, None, None)
    assert [module.training for module in wrapper.modules()] == modes


def test_modes_of_a_compiled_model_return():
    model = narrow().train()
    compiled = torch.compile(model, backend="eager")
    with evaluation_mode(compiled), evaluation_mode(model):
        assert not any(module.training for module in compiled.modules())
    assert all(module.training for module in compiled.modules())


def test_a_model_in_training_mode_predicts_alike_compiled_or_not():
    model = segnext().train()
    expected = predict(model, noise())
    compiled = torch.compile(model, backend="eager")
    assert np.array_equal(predict(compiled, noise()), expected)
    assert all(module.training for module in model.modules())
    assert F.mse_loss(model(normalized(noise())), model(normalized(noise()))) > 0  # training draws bases


@pytest.mark.slow
def test_threads_that_use_the_same_models_get_the_answers_of_one():
    answers, wrong = stress.main(30)
    assert answers > 100
    assert wrong == []
