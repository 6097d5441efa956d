import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

from segnext_timm import predict
from segnext_timm.inference import fit, segment, slide_logits, whole_logits


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = smp.SegNeXt("tu-test_mscan", encoder_weights=None, classes=5, decoder_channels=32, decoder_rank=4).eval()
    torch.nn.init.normal_(model.segmentation_head[0].weight)
    return model


class Pointwise(torch.nn.Module):
    """Labels a pixel by its own colour, whatever is around it."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, classes, 1)

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


def test_other_kinds_of_images_are_read(model, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    expected = predict(model, np.repeat(grey[..., None], 3, axis=2))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(predict(model, grey), expected)
    assert np.array_equal(predict(model, tmp_path / "grey.png"), expected)
    rgba = np.dstack([noise(40, 60), np.full((40, 60), 7, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert np.array_equal(predict(model, tmp_path / "rgba.png"), predict(model, noise(40, 60)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(noise(40, 60)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(predict(model, tmp_path / "turned.png"), predict(model, np.rot90(noise(40, 60), -1)))


def test_the_model_s_own_normalisation_is_used(model):
    image = torch.from_numpy(noise(40, 60)).permute(2, 0, 1)
    x = (image / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    torch.testing.assert_close(segment(model, image), model(x[None]).detach()[0], rtol=1e-4, atol=1e-4)
    model.pretrained_cfg.update(mean=[0.5] * 3, std=[0.25] * 3)
    torch.testing.assert_close(
        segment(model, image), model((image / 255 - 0.5)[None] / 0.25).detach()[0], rtol=1e-4, atol=1e-4
    )
    model.pretrained_cfg.clear()


def test_windows_that_hold_the_image_see_it_whole(model):
    x = torch.randn(1, 3, 50, 70)
    torch.testing.assert_close(slide_logits(model, x, (64, 80), (48, 60)), whole_logits(model, x))


@pytest.mark.parametrize(("window", "stride"), [((32, 32), (16, 24)), ((40, 56), (40, 56)), ((33, 47), (10, 11))])
def test_windows_cover_every_pixel_and_are_averaged(window, stride):
    model, x = Pointwise(), torch.randn(2, 3, 75, 91)
    torch.testing.assert_close(slide_logits(model, x, window, stride), model(x).detach())


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


def test_mistakes_are_named(model, tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    for image, error, message in (
        (tmp_path / "x.png", ValueError, r"x\.png cannot be read as an image"),
        (tmp_path / "none.png", FileNotFoundError, r"none\.png"),
        (np.zeros((4, 4, 3)), ValueError, r"is uint8 of shape \(H, W, 3\) or \(H, W\), got float64 \(4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "got uint8"),
    ):
        with pytest.raises(error, match=message):
            predict(model, image)
    with pytest.raises(ValueError, match="mode must be 'whole' or 'slide', got 'tile'"):
        predict(model, noise(40, 40), mode="tile")
