import pytest
import torch
import torch.nn.functional as F

from segnext_timm.prediction.windows import resample, resizing_taps


@pytest.mark.parametrize(
    ("full", "size"),
    [
        ((6, 5), (41, 33)),
        ((1, 9), (8, 72)),
        ((30, 40), (11, 13)),
        ((7, 7), (7, 7)),
        ((40, 60), (47, 71)),
        ((9, 1), (9, 1)),
    ],
)
def test_resampled_maps_are_those_of_interpolate_and_a_part_of_them_is_that_part(full, size):
    maps = torch.randn(1, 5, *full)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    for rows, columns in (
        (slice(0, size[0]), slice(0, size[1])),
        (slice(size[0] // 2, size[0]), slice(0, 1)),
        (slice(size[0] - 1, size[0]), slice(size[1] // 3, size[1])),
    ):
        taps = [resizing_taps(*sides) for sides in zip(full, size, (rows, columns))]
        torch.testing.assert_close(
            resample(maps[0].permute(1, 2, 0), *taps), expected[rows, columns], rtol=0, atol=1e-5
        )


def test_large_maps_are_resampled_as_by_interpolate():
    maps = 10 * torch.randn(1, 3, 375, 500)
    expected = F.interpolate(maps, (3000, 4000), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    part = slice(2500, 2600)
    taps = [resizing_taps(375, 3000, part), resizing_taps(500, 4000, part)]
    torch.testing.assert_close(resample(maps[0].permute(1, 2, 0), *taps), expected[part, part], rtol=0, atol=1e-4)
