import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from segnext_timm import overlay
from segnext_timm.errors import ImageError, OptionError
from segnext_timm.label_sets import VOC_PALETTE
from segnext_timm.prediction.drawing import class_areas, colored, label_picture, share_text
from segnext_timm.prediction.images import read_image


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def read(image, channels=3):
    return read_image(image, channels).permute(1, 2, 0).numpy()


def test_files_of_all_kinds_are_read_upright_in_color(tmp_path):
    array, gray = noise(40, 60), noise(40, 60, 1)[..., 0]
    in_color = np.repeat(gray[..., None], 3, axis=2)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    transparent = Image.fromarray(gray).convert("P")
    transparent.info["transparency"] = bytes(range(256))
    for name, image, expected, options in (
        ("color.png", Image.fromarray(array), array, {}),
        ("color.tiff", Image.fromarray(array), array, {}),
        ("color.webp", Image.fromarray(array), array, {"lossless": True}),
        ("turned.png", Image.fromarray(array), np.rot90(array, -1), {"exif": exif}),
        ("gray.png", Image.fromarray(gray), in_color, {}),
        ("alpha.png", Image.fromarray(np.dstack([array, np.full((40, 60), 7, np.uint8)])), array, {}),
        ("gray_alpha.png", Image.fromarray(np.dstack([gray, gray])), in_color, {}),
        ("palette.png", label_picture(gray, [(i, i, i) for i in range(256)]), in_color, {}),
        ("transparent.png", transparent, in_color, {}),
        ("sixteen.png", Image.fromarray(gray.astype(np.uint16) * 257), np.float32(in_color / 255), {}),
        ("sixteen.tiff", Image.fromarray(gray.astype(np.uint16) * 257), np.float32(in_color / 255), {}),
        ("thirty_two.tiff", Image.fromarray(gray.astype(np.int32) * 257), np.float32(in_color / 255), {}),
        ("bits.png", Image.fromarray(gray > 128), np.where(in_color > 128, 255, 0), {}),
        ("one.png", Image.fromarray(array[:1, :1]), array[:1, :1], {}),
    ):
        image.save(tmp_path / name, **options)
        assert np.array_equal(read(tmp_path / name), expected), name
        assert np.array_equal(read(str(tmp_path / name)), expected)
        with Image.open(tmp_path / name) as opened:
            assert np.array_equal(read(opened), expected), name


def test_cmyk_becomes_color(tmp_path):
    flat = np.full((40, 60, 3), (200, 80, 30), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "x.jpg", quality=100)
    assert np.abs(read(tmp_path / "x.jpg").astype(int) - flat).max() <= 3


def test_channels_are_those_of_the_model(tmp_path):
    array = noise(40, 60)
    Image.fromarray(array).save(tmp_path / "x.png")
    gray = np.asarray(Image.fromarray(array).convert("L"))
    assert np.array_equal(read(tmp_path / "x.png", 1)[..., 0], gray)
    assert np.array_equal(read(array, 1)[..., 0], gray)
    Image.fromarray(noise(40, 60, 4)).save(tmp_path / "four.png")
    assert np.array_equal(read(tmp_path / "four.png", 4), noise(40, 60, 4))
    for channels, message in ((4, r"takes images of 4 channels, got 3"), (6, r"takes images of 6 channels, got 3")):
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / "x.png", channels)


def test_arrays_and_tensors_keep_their_values():
    array = noise(40, 60)
    assert np.array_equal(read(array), array)
    assert np.array_equal(read(array[:, ::-1]), array[:, ::-1])
    assert np.array_equal(read(torch.from_numpy(array).permute(2, 0, 1)), array)
    assert np.array_equal(read(array[..., 0]), np.repeat(array[..., :1], 3, axis=2))
    np.testing.assert_allclose(read(array / 255), array / 255, rtol=1e-6)
    np.testing.assert_allclose(read(array.astype(np.uint16) * 257), array / 255, rtol=1e-6)
    assert read(noise(40, 60, 6), 6).shape == (40, 60, 6)
    assert np.abs(read(array.astype(np.uint16) * 257, 1) * 255 - read(array, 1)).max() <= 0.51


def test_what_is_no_image_is_told(tmp_path):
    Image.fromarray(noise(400, 400)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no image", encoding="utf-8")
    (tmp_path / "empty.png").touch()
    for image, error, message in (
        (tmp_path / "cut.jpg", ImageError, r"cut\.jpg cannot be read as an image: image file is truncated"),
        (tmp_path / "text.jpg", ImageError, r"text\.jpg cannot be read as an image: not an image file"),
        (tmp_path / "empty.png", ImageError, r"empty\.png cannot be read as an image: not an image file"),
        (tmp_path, ImageError, "cannot be read as an image"),
        (tmp_path / "none.png", FileNotFoundError, r"none\.png"),
        (np.zeros((4, 4, 2), np.uint8), ImageError, r"takes images of 3 channels, got 2"),
        (
            np.zeros((4, 0, 3), np.uint8),
            ImageError,
            r"array \(H, W, C\) or \(H, W\), or a tensor \(C, H, W\), got uint8",
        ),
        (torch.zeros(4, 4), ImageError, "or a tensor"),
        (np.zeros((4, 4, 3), np.int64), ImageError, "uint8, uint16, or floating point from 0 to 1, got int64"),
        (np.full((4, 4, 3), 2.0), ImageError, "not normalized ones; got 2 to 2"),
        (np.full((4, 4, 3), np.nan), ImageError, "not normalized ones; got nan"),
    ):
        with pytest.raises(error, match=message):
            read_image(image)


def test_more_pixels_than_pillow_trusts_are_told(tmp_path, monkeypatch):
    Image.fromarray(noise(40, 60)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert read(tmp_path / "x.png").shape == (40, 60, 3)  # a warning of Pillow's
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"x\.png cannot be read as an image: .*Raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "x.png")


def test_label_pictures_hold_labels_and_palette(tmp_path):
    labels = noise(20, 30, 1)[..., 0]
    label_picture(labels, VOC_PALETTE[:5]).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), labels)
        assert picture.getpalette()[:15] == [value for color in VOC_PALETTE[:5] for value in color]
    wide = labels.astype(np.int32) * 4
    label_picture(wide, ()).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert np.array_equal(np.asarray(picture), wide)


def test_overlays_blend_and_name_the_classes_present_largest_first():
    image = noise(120, 600)
    labels = np.zeros((120, 600), np.uint8)
    labels[:90] = 2
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    picture = overlay(image, labels, ["road", "car", "sky"], palette, alpha=0.25)
    pixels = np.asarray(picture)
    assert np.array_equal(pixels[:120], np.rint(0.75 * image + 0.25 * colored(labels, palette)).astype(np.uint8))
    legend = pixels[120:]
    first, second = (np.argwhere((legend == color).all(2)) for color in (palette[2], palette[0]))
    assert first[:, 1].max() < second[:, 1].min()
    assert not (legend == palette[1]).all(2).any()
    plain = overlay(Image.fromarray(image), labels, legend=False)
    assert plain.size == (600, 120)
    assert np.asarray(overlay(image / 255, labels)).shape[1] == 600


def test_overlays_of_a_pixel_or_of_many_classes_have_room_for_their_legend():
    assert overlay(noise(1, 1), np.zeros((1, 1), np.uint8), ["a long name of a class"]).width > 100
    labels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    many = overlay(noise(10, 20), labels)
    assert many.height > 200 * 12
    assert overlay(noise(10, 20), labels.astype(np.int32) * 3).height > 200 * 12  # beyond the palette too


def test_overlays_of_other_sizes_are_refused():
    with pytest.raises(OptionError, match=r"image has \(4, 5\) pixels .* labels have \(5, 4\)"):
        overlay(noise(4, 5), np.zeros((5, 4), np.uint8))


def test_an_opacity_out_of_its_range_is_refused():
    with pytest.raises(OptionError, match="alpha must be from 0 to 1, got 2"):
        overlay(noise(4, 5), np.zeros((4, 5), np.uint8), alpha=2)


def test_areas_are_shares_of_the_picture():
    labels = np.zeros((10, 10), np.uint8)
    labels[:7] = 3
    areas = class_areas(labels, ["a", "b"])
    assert class_areas(torch.from_numpy(labels).long(), ["a", "b"]) == areas
    assert areas[0] == {"label": 3, "name": "class 3", "pixels": 70, "share": 0.7}
    assert areas[1] == {"label": 0, "name": "a", "pixels": 30, "share": 0.3}
    assert [share_text(x) for x in (1, 0.304, 0.056, 0.0001)] == ["100%", "30%", "5.6%", "<0.1%"]


@pytest.mark.parametrize("labels", [np.full((4, 5), -1), np.zeros((0, 5), int), np.zeros((4, 5)), np.zeros(4, int)])
def test_areas_of_what_are_no_labels_are_refused(labels):
    with pytest.raises(OptionError, match=r"labels are whole numbers from 0, of shape \(H, W\), got \w+ \("):
        class_areas(labels, ["a"])


@pytest.mark.parametrize("bands", [[0], [-1, 1, 2], [4, 1, 2], [1.5, 2, 3]])
def test_bands_are_counted_from_1(bands):
    with pytest.raises(ImageError, match=r'The image has 3 bands, and pretrained_cfg\["bands"\] names the band'):
        read_image(np.zeros((4, 5, 3), np.uint8), bands=bands)


@pytest.mark.parametrize("value_range", [[0, 0], [9, 1], 5, [0, float("nan")], [0, float("inf")], [0, 1, 2]])
def test_a_range_without_a_low_and_a_high_is_refused(value_range):
    with pytest.raises(ImageError, match=r"A range is \[low, high\], or such a pair for each band, got"):
        read_image(np.zeros((4, 5, 3), np.uint8), value_range=value_range)


def test_files_of_floating_point_hold_values_from_0_to_1(tmp_path):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(read(tmp_path / "a.tif")[..., 0], values)
    Image.fromarray(200 * values).save(tmp_path / "b.tif")
    with pytest.raises(
        ImageError, match=r"b\.tif: Images of floating point have values from 0 to 1, .*; got 0 to 200\. State which"
    ):
        read_image(tmp_path / "b.tif")


KINDS = "An image is a path, a Pillow image, an array (H, W, C) or (H, W), or a tensor (C, H, W), got "


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, f"{KINDS}NoneType."),
        (7, f"{KINDS}int."),
        ({"a": 1}, f"{KINDS}dict."),
        ([1, 2], f"{KINDS}list."),
        ([[1, 2], [3]], f"{KINDS}list."),
        ((), f"{KINDS}tuple."),
        (b"abc", f"{KINDS}bytes."),
        (io.BytesIO(b"abc"), f"{KINDS}BytesIO."),
    ],
)
def test_what_is_neither_file_nor_array_is_named(image, message):
    with pytest.raises(ImageError, match=f"^{re.escape(message)}$"):
        read_image(image)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4, 4, 3), object), "object (4, 4, 3)"),
        (np.zeros((4, 4, 3), complex), "complex128 (4, 4, 3)"),
        (np.full((4, 4, 3), "a"), "<U1 (4, 4, 3)"),
        (np.zeros((4, 4), [("a", np.uint8)]), "[('a', 'u1')] (4, 4)"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), "complex64 (3, 4, 4)"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "bool (3, 4, 4)"),
    ],
)
def test_arrays_of_other_types_are_named_with_the_types_allowed(image, found):
    message = f"An image is uint8, uint16, or floating point from 0 to 1, got {found}."
    with pytest.raises(ImageError, match=f"^{re.escape(message)}$"):
        read_image(image)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.float32(0.5), "float32 ()"),
        (np.zeros(3, np.uint8), "uint8 (3,)"),
        (np.zeros((0, 4), np.uint8), "uint8 (0, 4)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "uint8 (1, 4, 4, 3)"),
        (torch.zeros(3, 0, 4), "float32 (3, 0, 4)"),
        (torch.tensor(1.0), "float32 ()"),
    ],
)
def test_arrays_that_are_no_image_are_named_with_the_shapes_allowed(image, found):
    with pytest.raises(ImageError, match=rf"an array \(H, W, C\) or .*, got {re.escape(found)}\.$"):
        read_image(image)


@pytest.mark.parametrize("image", [torch.zeros(40, 60, 3), np.zeros((3, 40, 60), np.uint8)])
def test_an_image_with_its_channels_on_another_axis_is_told_where_they_belong(image):
    with pytest.raises(ImageError, match=r"got [46]0: .*; an array is \(H, W, C\), a tensor \(C, H, W\)\.$"):
        read_image(image)


@pytest.mark.parametrize("image", [np.zeros((40, 60, 4), np.uint8), torch.zeros(6, 40, 60)])
def test_other_channels_in_their_place_are_not_told_to_move(image):
    with pytest.raises(ImageError, match=r"takes images of 3 channels, got [46]: state which bands it takes"):
        read_image(image)


@pytest.mark.parametrize("dtype", [">u2", ">f4", np.float16, np.longdouble])
def test_arrays_of_every_order_of_bytes_and_precision_are_read(dtype):
    array = noise(40, 60).astype(np.uint16)
    array = (array * 257).astype(dtype) if np.dtype(dtype).kind == "u" else (array / 255).astype(dtype)
    np.testing.assert_allclose(read(array), noise(40, 60) / 255, atol=1e-3)


def test_infinite_values_are_refused():
    with pytest.raises(ImageError, match="not normalized ones; got 0 to inf"):
        read_image(np.array([[0, 1e300]]))


class OfAnotherLibrary:
    """An array as jax, pandas and xarray have it."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_arrays_of_other_libraries_are_read():
    assert np.array_equal(read(OfAnotherLibrary(noise(40, 60))), noise(40, 60))


def test_a_tensor_that_requires_gradients_is_read_as_its_values():
    image = torch.rand(3, 4, 5, requires_grad=True)
    found = read_image(image)
    assert not found.requires_grad
    assert torch.equal(found, image.detach())


def test_a_folder_is_told_from_a_damaged_file(tmp_path):
    with pytest.raises(ImageError, match=r"it is a folder\. Pass its files, or use `segnext-timm predict`"):
        read_image(tmp_path)
