"""Images of any number of bands and any type, and the range of values that a model states."""

import re

import numpy as np
import pytest
import torch
import torch.nn as nn

from segnext_timm.errors import ImageError, OptionError
from segnext_timm.models.model_info import ModelInfo
from segnext_timm.prediction.images import scale_values


def stating(channels=3, **facts):
    model = nn.Identity()
    model.config, model.pretrained_cfg = {"in_channels": channels}, facts
    return ModelInfo(model)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float16", "float32", "float64"])
def test_values_of_every_type_are_scaled_by_a_range_and_clipped(dtype):
    values = torch.from_numpy(np.array([0, 50, 100, 120], dtype)).view(1, 2, 2)
    scaled = scale_values(values, (20, 100))
    assert scaled.dtype == torch.float32
    assert torch.allclose(scaled.flatten(), torch.tensor([0, 0.375, 1, 1]))


def test_each_band_may_have_a_range_of_its_own():
    values = torch.tensor([[[0, 5]], [[-10, 10]]], dtype=torch.int16)
    assert scale_values(values, ((0, 10), (-10, 10))).tolist() == [[[0, 0.5]], [[0, 1]]]
    with pytest.raises(ImageError, match="3 pairs of low and high, and the image 2 bands"):
        scale_values(values, ((0, 1), (0, 1), (0, 1)))


def test_pixels_without_a_number_become_zero_and_infinite_ones_an_end():
    values = torch.tensor([[[float("nan"), float("inf"), -float("inf"), 1e300]]], dtype=torch.float64)
    assert scale_values(values, (100, 200)).flatten().tolist() == [0, 1, 0, 1]


def test_without_a_range_bytes_stay_and_sixteen_bits_keep_their_levels():
    byte = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert scale_values(byte) is byte
    for dtype in (np.uint16, np.int32):
        values = torch.from_numpy(np.arange(65536).astype(dtype)).view(1, 256, 256)
        assert torch.allclose(scale_values(values), torch.arange(65536).view(1, 256, 256) / 65535)
    values = torch.rand(2, 3, 3)
    assert torch.equal(scale_values(values), values)


@pytest.mark.parametrize("values", [[-1, 5], [0, 70000], [0.0, 1.5], [float("nan"), 0.5]])
def test_without_a_range_values_without_a_meaning_are_refused(values):
    with pytest.raises(ImageError, match=r'State what black and white are: pretrained_cfg\["range"\]'):
        scale_values(torch.tensor([[values]]))


def test_a_model_states_the_range_and_the_bands_of_its_images():
    info = stating(range=[0, 4095], bands=[4, 3, 2])
    assert info.value_range == (0, 4095)
    assert info.bands == (4, 3, 2)
    assert stating(2, range=((0, 1), (-1, 1))).value_range == ((0, 1), (-1, 1))
    assert stating(2, range=torch.tensor([[0, 1], [-1, 1]])).value_range == ((0, 1), (-1, 1))
    assert stating(3, bands=[4]).bands == (4,)  # gray, repeated
    assert stating().value_range is stating().bands is None


@pytest.mark.parametrize(
    "stated", [[1, 0], [0, 0], [0], [[0, 1]] * 2, [0, float("inf")], "0 1", 5, [None, 1], [[0, 1], [0]], {"low": 0}]
)
def test_an_invalid_range_is_refused_with_what_is_allowed(stated):
    with pytest.raises(OptionError, match=r'^pretrained_cfg\["range"\] is \[low, high\], or such a pair for each of'):
        stating(range=stated).value_range  # noqa: B018


@pytest.mark.parametrize("stated", [[0, 1, 2], [1, 2], [1.0, 2.0, 3.0], "123", 3, [True, 2, 3], [-1, 2, 3]])
def test_invalid_bands_are_refused_with_what_is_allowed(stated):
    with pytest.raises(OptionError, match=rf"from 1, such as \[1, 2, 3\], got {re.escape(repr(stated))}"):
        stating(bands=stated).bands  # noqa: B018
