import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

from scores import segment, shrink_tiles
from segnext_timm import predict
from segnext_timm.errors import ImageError, OptionError
from segnext_timm.models.model_info import ModelInfo
from segnext_timm.prediction.pipeline import fit
from small_models import narrow


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=5, decoder_channels=32, decoder_rank=4).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    return model


class Pointwise(torch.nn.Module):
    """Labels a pixel by its own color, whatever is around it."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, classes, 1)
        self.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    def forward(self, x):
        return self.conv(x)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_labels_have_the_image_s_own_size_whatever_it_is(model, tmp_path):
    for size in ((64, 64), (47, 91), (20, 200), (1, 1), (33, 32)):
        for options in (
            {},
            {"mode": "slide", "window": 48},
            {"scales": (0.5, 1.5), "flip": True},
            {"fit_in": (96, 64)},
        ):
            labels = predict(model, noise(*size), **options)
            assert (labels.shape, labels.dtype) == (size, np.uint8)
            assert labels.max() < 5


def test_arrays_images_and_files_give_the_same_labels(model, tmp_path):
    array = noise(50, 70)
    Image.fromarray(array).save(tmp_path / "x.png")
    expected = predict(model, array)
    assert len(np.unique(expected)) > 1
    for image in (Image.fromarray(array), tmp_path / "x.png", str(tmp_path / "x.png")):
        assert np.array_equal(predict(model, image), expected)
    assert not model.training


def test_predicting_leaves_a_model_in_training_as_it_is(model):
    model.train()
    labels = predict(model, noise(50, 70))
    assert model.training
    assert np.array_equal(predict(model.eval(), noise(50, 70)), labels)


def test_the_model_s_own_normalization_is_used(model):
    image = torch.from_numpy(noise(40, 60)).permute(2, 0, 1)
    encoder_s = (image / 255 - 0.5)[None] / 0.5
    torch.testing.assert_close(segment(model, image), model(encoder_s).detach()[0], rtol=1e-4, atol=1e-4)
    model.pretrained_cfg.update(mean=[0.4] * 3, std=[0.25] * 3)
    own = (image / 255 - 0.4)[None] / 0.25
    torch.testing.assert_close(segment(model, image), model(own).detach()[0], rtol=1e-4, atol=1e-4)
    model.pretrained_cfg.clear()


@pytest.mark.parametrize("encoder", ["tu-mscan_t", "tu-resnet18", "tu-convnext_atto"])
def test_a_model_that_does_not_say_is_normalized_as_smp_preprocesses_for_its_encoder(encoder):
    params = smp.encoders.get_preprocessing_params(encoder)
    model = smp.FPN(encoder, encoder_weights=None)
    assert ModelInfo(model).normalization == (tuple(params["mean"]), tuple(params["std"]))


def test_normalization_is_never_guessed(monkeypatch):
    with pytest.raises(ValueError, match="does not state how its images are normalized, and it is not a model of smp"):
        predict(torch.nn.Conv2d(3, 2, 1), noise(40, 40))

    def refuse(*args):
        raise OSError("no network")

    monkeypatch.setattr("segnext_timm.models.model_info.get_preprocessing_params", refuse)
    with pytest.raises(ValueError, match=r"encoder 'resnet18' are unknown \(no network\)\. Set model\.pretrained_cfg"):
        predict(smp.Unet("resnet18", encoder_weights=None), noise(40, 40))


ACTIVATIONS = [
    "sigmoid",
    "softmax2d",
    "logsoftmax",
    "tanh",
    "identity",
    "argmax",
    "argmax2d",
    "clamp",
    torch.nn.Sigmoid,
]
CASES = [
    (architecture, name, classes) for architecture in ("unet", "segnext") for name in ACTIVATIONS for classes in (1, 4)
]
# ties; and outputs of smp's other models, taken as they are, that do not tell the logits
CASES = [case for case in CASES if case[1:] != ("clamp", 4)]
CASES = [case for case in CASES if case[0] != "unet" or case[1] not in ("tanh", "argmax", "argmax2d")]
CASES = [case for case in CASES if case not in (("unet", "softmax2d", 1), ("unet", "logsoftmax", 1))]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")  # of smp's logsoftmax
@pytest.mark.parametrize(("architecture", "activation", "classes"), CASES)
def test_every_activation_of_smp_is_labeled_and_gives_probabilities_as_the_model_does(
    architecture, activation, classes
):
    torch.manual_seed(0)
    arguments = {"encoder_name": "tu-test_mscan", "encoder_weights": None, "classes": classes}
    arguments["decoder_channels"] = (16, 8, 8, 8, 8) if architecture == "unet" else 32
    arguments |= {"aux_params": {"classes": 2}} if activation in ("sigmoid", "softmax2d") else {}
    aux = "aux_params" in arguments
    plain = smp.create_model(architecture, **arguments).eval()
    torch.nn.init.normal_(plain.segmentation_head[0].weight)
    model = smp.create_model(architecture, **arguments, activation=activation).eval()
    model.load_state_dict(plain.state_dict())
    image = noise(64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in ModelInfo(model).normalization)
    x = ((torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std)[None]
    logits = plain(x)[0] if aux else plain(x)
    expected = logits.sigmoid() if classes == 1 or activation in ("sigmoid", torch.nn.Sigmoid) else logits.softmax(1)
    expected = logits.clamp(0, 1) if activation == "clamp" else expected
    labels, probabilities = predict(model, image, probabilities=True)
    torch.testing.assert_close(torch.from_numpy(probabilities), expected[0], rtol=1e-3, atol=1e-4)
    scores = torch.cat([1 - expected, expected], 1)[0] if classes == 1 else expected[0]
    for found in (labels, predict(model, image)):
        own_scores = scores.gather(0, torch.from_numpy(found)[None].long())[0]
        assert (scores.amax(0) - own_scores).max() < 1e-4  # sigmoids can be equal
        assert len(np.unique(found)) > 1
    if activation == "sigmoid" or (activation == "softmax2d" and classes > 1):  # the model's own output
        own = model(x)[0] if aux else model(x)
        torch.testing.assert_close(torch.from_numpy(probabilities), own[0], rtol=1e-3, atol=1e-4)


def test_predicting_leaves_every_module_s_mode(model):
    model.train()
    model.freeze_encoder()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    predict(model, noise(50, 70))
    assert [module.training for module in model.modules()] == modes
    model.unfreeze_encoder()
    model.eval()


def pixels(height, width, seed=0):
    return torch.from_numpy(noise(height, width, seed)).permute(2, 0, 1)


def test_windows_that_hold_the_image_see_it_whole(model):
    slid = segment(model, pixels(50, 70), mode="slide", window=(64, 80), stride=(48, 60))
    torch.testing.assert_close(slid, segment(model, pixels(50, 70), mode="whole"))


@pytest.mark.parametrize(("window", "stride"), [((32, 32), (16, 24)), ((40, 56), (40, 56)), ((33, 47), (10, 11))])
def test_windows_cover_every_pixel_and_are_averaged(window, stride):
    model, x = Pointwise(), pixels(75, 91)
    slid = segment(model, x, mode="slide", window=window, stride=stride)
    torch.testing.assert_close(slid, segment(model, x, mode="whole"))


def test_windows_give_the_labels_of_the_whole_image_away_from_their_borders():
    torch.manual_seed(0)
    reach = 6  # of two convolutions
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 7, padding=3), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 7, padding=3)
    )
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    image = noise(200, 260)
    whole, slid = predict(model, image, mode="whole"), predict(model, image, mode="slide", window=128, stride=96)
    inside = np.ones((200, 260), bool)
    for axis, side in enumerate((200, 260)):
        starts = sorted({min(i * 96, side - 128) for i in range(3)})
        borders = [*starts[1:], *(start + 128 for start in starts[:-1])]
        position = np.arange(side).reshape((-1, 1) if axis == 0 else (1, -1))
        for border in borders:
            inside &= (position < border - reach) | (position >= border + reach)
    assert inside.mean() > 0.5
    assert np.array_equal(slid[inside], whole[inside])
    assert not np.array_equal(slid, whole)


@pytest.mark.parametrize("views", [{}, {"scales": (0.7, 1.5), "flip": True}, {"fit_in": (96, 64)}])
def test_any_tile_gives_the_same_labels(model, views, monkeypatch):
    image = noise(90, 120)
    for mode in ({"mode": "slide", "window": 48, "stride": 32}, {"mode": "whole"}):
        expected = segment(model, torch.from_numpy(image).permute(2, 0, 1), **mode, **views).argmax(0).numpy()
        for tile in (29, 64, 500):
            shrink_tiles(monkeypatch, tile, classes=5)
            assert np.array_equal(predict(model, image, **mode, **views), expected), (mode, tile)


def test_windows_can_be_forgotten_and_seen_again(model, monkeypatch):
    options = {"mode": "slide", "window": 48, "stride": 32}
    shrink_tiles(monkeypatch, 33, classes=5)
    expected = predict(model, noise(100, 130), **options)
    monkeypatch.setattr("segnext_timm.prediction.windows._CACHE_BYTES", 1)
    assert np.array_equal(predict(model, noise(100, 130), **options), expected)
    assert np.array_equal(predict(model, noise(100, 130), batch=3, **options), expected)


def test_models_without_logits_of_their_own_slide_too(monkeypatch):
    shrink_tiles(monkeypatch, 40)
    torch.manual_seed(0)
    model = smp.Unet("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=(16, 8, 8, 8, 8)).eval()
    options = {"mode": "slide", "window": 50, "stride": 40}
    labels, shares = predict(model, noise(75, 110), probabilities=True, **options)
    scores = segment(model, pixels(75, 110), **options)
    assert np.array_equal(labels, scores.argmax(0).numpy())
    np.testing.assert_allclose(shares, scores.softmax(0).numpy(), rtol=1e-4, atol=1e-5)


def test_large_images_are_seen_in_windows_by_themselves(model, monkeypatch):
    slid = predict(model, noise(100, 130), mode="slide", window=48)
    whole = predict(model, noise(100, 130), mode="whole")
    assert np.array_equal(predict(model, noise(100, 130), window=48), whole)
    monkeypatch.setattr("segnext_timm.prediction.pipeline._WHOLE_BYTES", 1000)
    assert np.array_equal(predict(model, noise(100, 130), window=48), slid)
    assert not np.array_equal(slid, whole)


def test_windows_are_as_large_as_the_images_of_the_training():
    torch.manual_seed(0)
    cfg = {"input_size": [3, 40, 56]}
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=5, decoder_channels=32, pretrained_cfg=cfg)
    expected = predict(model, noise(100, 130), mode="slide", window=(40, 56), stride=(30, 42))
    assert np.array_equal(predict(model, noise(100, 130), mode="slide"), expected)


def test_probabilities_are_written_to_an_array_of_the_users(model, tmp_path):
    create = functools.partial(np.memmap, tmp_path / "shares", np.float32, "w+", 0)
    labels, shares = predict(model, noise(50, 70), probabilities=create)
    expected_labels, expected = predict(model, noise(50, 70), probabilities=True)
    assert isinstance(shares, np.memmap)
    assert np.array_equal(shares, expected)
    assert np.array_equal(labels, expected_labels)


def test_probabilities_come_on_request(model):
    for options in ({}, {"flip": True}, {"mode": "slide", "window": 48}):
        labels, shares = predict(model, noise(50, 70), probabilities=True, **options)
        assert np.array_equal(labels, predict(model, noise(50, 70), **options))
        assert (shares.shape, shares.dtype) == ((5, 50, 70), np.float32)
        np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-5)
        assert (shares.argmax(0) == labels).mean() > 0.999


def test_several_images_give_a_list(model):
    images = [noise(50, 70), noise(33, 40, seed=1)]
    labels = predict(model, images)
    assert [one.shape for one in labels] == [(50, 70), (33, 40)]
    assert np.array_equal(labels[1], predict(model, images[1]))
    batch = np.stack([noise(50, 70), noise(50, 70, seed=1)])
    for several in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2)):
        assert np.array_equal(predict(model, several)[1], predict(model, batch[1]))


def test_tensors_and_numbers_from_0_to_1_are_images_too(model):
    image = noise(50, 70)
    expected = predict(model, image)
    assert np.array_equal(predict(model, torch.from_numpy(image).permute(2, 0, 1)), expected)
    assert np.array_equal(predict(model, (image / 255).astype(np.float32)), expected)
    assert np.array_equal(predict(model, image.astype(np.uint16) * 257), expected)


def test_half_precision_gives_nearly_the_same_labels(model):
    image = np.kron(noise(4, 5), np.ones((16, 16, 1), np.uint8))
    for mode in ("whole", "slide"):
        labels = predict(model, image, precision="bf16", mode=mode, window=48)
        assert (labels == predict(model, image, mode=mode, window=48)).mean() > 0.9


def test_other_numbers_of_channels_need_their_own_statistics():
    torch.manual_seed(0)
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, in_channels=6)
    image = np.concatenate([noise(40, 60), noise(40, 60, seed=1)], 2)
    with pytest.raises(OptionError, match=r"takes 6 channels, and its mean and std have 3: put those of your images"):
        predict(model, image)
    model.pretrained_cfg.update(mean=[0.5] * 6, std=[0.25] * 6)
    assert predict(model, image).shape == (40, 60)
    with pytest.raises(ImageError, match=r"takes images of 6 channels, got 3"):
        predict(model, noise(40, 60))
    gray = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=32, in_channels=1)
    gray.pretrained_cfg.update(mean=[0.5], std=[0.25])
    expected = predict(gray, np.asarray(Image.fromarray(noise(40, 60)).convert("L")))
    assert np.array_equal(predict(gray, Image.fromarray(noise(40, 60))), expected)
    assert (predict(gray, noise(40, 60)) == expected).mean() > 0.99


def test_progress_is_told(model, monkeypatch):
    shrink_tiles(monkeypatch, 32, classes=5)
    told = []
    predict(model, noise(60, 70), mode="slide", window=40, progress=told.append)
    assert told == sorted(told)
    assert len(told) == 6
    assert told[-1] == 1


def test_a_model_names_its_labels(model):
    assert ModelInfo(model).label_names[4] == "class 4"
    binary = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=1, decoder_channels=32)
    assert ModelInfo(binary).label_names == ["background", "class 0"]
    assert ModelInfo(binary).palette[0] == (0, 0, 0) != ModelInfo(binary).palette[1]
    binary.pretrained_cfg.update(label_names=["road"], palette=[[1, 2, 3]])
    assert ModelInfo(binary).label_names == ["background", "road"]
    assert ModelInfo(binary).palette == [(0, 0, 0), (1, 2, 3)]


def test_mirrored_images_give_mirrored_labels_with_flip(model):
    image = noise(48, 64)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    assert np.array_equal(predict(model, mirrored, flip=True), predict(model, image, flip=True)[:, ::-1])


def test_scales_and_flips_average_probabilities():
    model = Pointwise()
    image = torch.from_numpy(noise(40, 60)).permute(2, 0, 1)
    scores = segment(model, image, scales=(1.0, 1.0), flip=True)
    torch.testing.assert_close(scores, segment(model, image).softmax(0))
    assert segment(model, image, scales=(0.5, 2)).sum(0).allclose(torch.ones(40, 60))


def test_a_binary_model_tells_yes_from_no():
    model = Pointwise(1)
    image = noise(40, 60)
    labels = predict(model, image)
    assert np.array_equal(labels, predict(model, image, flip=True))
    assert set(np.unique(labels)) <= {0, 1}
    logits = segment(model, torch.from_numpy(image).permute(2, 0, 1))[0]
    assert np.array_equal(labels, (logits > 0).numpy())


def test_sizes_are_whole_numbers_of_any_kind(model):
    expected = predict(model, noise(60, 80), mode="slide", window=(48, 48), fit_in=(70, 70))
    found = predict(model, noise(60, 80), mode="slide", window=np.int64(48), fit_in=70)
    assert np.array_equal(found, expected)


def test_the_longer_of_two_maximum_sides_is_that_of_the_longer_side(model):
    found = (predict(model, noise(60, 80), fit_in=sides) for sides in ((96, 64), (64, 96)))
    assert np.array_equal(*found)


def test_models_that_need_divisible_sizes_get_them():
    model = smp.Unet("tu-test_mscan", encoder_weights=None, classes=3, decoder_channels=(16, 8, 8, 8, 8)).eval()
    assert predict(model, noise(45, 70)).shape == (45, 70)


def test_sizes_fit_and_round_up():
    assert fit((512, 683), 2048, 512) == (512, 683)
    assert fit((1024, 2048), 2048, 512) == (512, 1024)
    assert fit((300, 300), 2048, 512) == (512, 512)
    assert fit((100, 3000), 2048, 512) == (68, 2048)
    assert fit((100, 3000), 2048, 512, 32) == (96, 2048)
    assert fit((512, 683), 2048, 512, 32) == (512, 704)
    assert fit((1, 5000), 100, 100) == (1, 100)


def test_invalid_options_and_images_raise_errors_that_name_them(model):
    for options, message in (
        ({"mode": "tile"}, "mode must be 'auto', 'whole' or 'slide', got 'tile'"),
        ({"mode": "slide", "window": 32, "stride": 33}, r"stride must be from 1 to the window's side, got \(33, 33\)"),
        ({"scales": ()}, "scales must be positive"),
        ({"scales": (0.0,)}, "scales must be positive"),
        ({"scales": 1.0}, "scales must be positive numbers, such as"),
        ({"scales": (float("nan"),)}, "scales must be positive"),
        ({"scales": (1, 1e-9)}, "scales or fit_in are too small: an image of .* pixels would become a single one"),
        ({"window": 0}, "window must be a number of pixels from 1 on, or two of them, got 0"),
        ({"window": "64"}, "window must be a number of pixels"),
        ({"window": (64, 96, 3)}, "window must be a number of pixels"),
        ({"stride": (-3, 4)}, "stride must be a number of pixels"),
        ({"fit_in": (0, 0)}, "fit_in must be a number of pixels"),
        ({"precision": "int8"}, "precision must be one of fp32, bf16, fp16, got 'int8'"),
        ({"batch": 0}, "batch must be at least 1"),
    ):
        with pytest.raises(OptionError, match=message):
            predict(model, noise(40, 40), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_models_of_other_types_predict(dtype, mode):
    torch.manual_seed(0)
    model = narrow(pretrained_cfg={"mean": [0.5] * 3, "std": [0.25] * 3}).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    expected = predict(model, image, mode=mode, window=64)
    found = predict(model.to(dtype), image, mode=mode, window=64)
    assert (found == expected).mean() > (0.9 if dtype == torch.bfloat16 else 0.999)


def test_threads_share_a_model_in_training_mode():
    model = narrow(pretrained_cfg={"mean": [0.5] * 3, "std": [0.25] * 3}).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    expected = predict(model, image)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: predict(model, image), range(40)))
    assert all(np.array_equal(labels, expected) for labels in found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
