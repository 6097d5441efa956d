"""Metrics of evaluations."""

import csv
import math

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from segmentation.metrics import Scores, add_to_boundary, add_to_confusion, boundary_band


def random_labels(seed, classes=5, size=(60, 80)):
    """True labels, of which a fifth is ignored (255), and predictions, of which half is right; blocks of 4×4."""
    generator = torch.Generator().manual_seed(seed)
    small = [side // 4 for side in size]
    truth, guess = (torch.randint(0, classes, small, generator=generator) for _ in range(2))
    guess = torch.where(torch.rand(small, generator=generator) < 0.5, truth, guess)
    truth[torch.rand(small, generator=generator) < 0.2] = 255
    return tuple(each.repeat_interleave(4, 0).repeat_interleave(4, 1) for each in (truth, guess))


def test_values_by_hand():
    # truth: 4 pixels of a, 2 of b, none of c and d; c is predicted once
    scores = Scores("abcd", torch.tensor([[3, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert scores.dice.tolist()[:3] == pytest.approx([6 / 8, 2 / 3, 0])
    assert scores.precision.tolist()[:3] == pytest.approx([3 / 4, 1, 0])
    assert scores.recall.tolist()[:2] == pytest.approx([3 / 4, 1 / 2])
    assert scores.recall[2].isnan() and all(values[3].isnan() for values in scores.by_class.values())
    content = scores.as_dict()
    assert content["mdice"] == pytest.approx(100 * (6 / 8 + 2 / 3) / 3, abs=1e-5)
    assert content["mprecision"] == pytest.approx(100 * (3 / 4 + 1) / 3, abs=1e-5)
    assert content["mrecall"] == content["macc"] == pytest.approx(100 * 5 / 8)
    assert "boundary_iou" not in content and "boundary" not in scores.table()


def test_values_equal_those_of_smp():
    classes, confusion, stats = 5, torch.zeros(5, 5, dtype=torch.int64), []
    for seed in range(4):
        truth, guess = random_labels(seed)
        add_to_confusion(confusion, truth, guess, 255)
        stats.append(smp.metrics.get_stats(guess, truth, "multiclass", ignore_index=255, num_classes=classes))
    sums = [torch.cat(each).sum(0, keepdim=True) for each in zip(*stats)]  # over all images
    scores = Scores("abcde", confusion)
    for name, metric in (("iou", "iou_score"), ("dice", "f1_score"), ("precision", "precision"), ("recall", "recall")):
        expected = getattr(smp.metrics, metric)(*sums)[0]
        torch.testing.assert_close(getattr(scores, name).float(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.dice, 2 * scores.iou / (1 + scores.iou))


def test_the_table_has_a_row_for_each_class_and_says_what_is_absent():
    confusion = torch.tensor([[3, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    head, *rows = Scores(["road", "mean", "car", "sign"], confusion).table().splitlines()
    assert head.split() == ["IoU", "Dice", "precision", "recall"]
    assert [row.split() for row in rows] == [
        ["road", "60.00", "75.00", "75.00", "75.00"],
        ["mean", "50.00", "66.67", "100.00", "50.00"],
        ["car", "0.00", "0.00", "0.00", "absent"],
        ["sign", "absent", "absent", "absent", "absent"],
        ["mean", "36.67", "47.22", "58.33", "62.50"],
        ["all", "pixels", "66.67"],
    ]
    assert rows[-1].endswith("66.67") and len(rows[-1]) == len(head)  # below the recall


def test_the_csv_has_a_row_for_each_class_and_nothing_where_a_metric_is_undefined(tmp_path):
    scores = Scores(["road, wet", "sign"], torch.tensor([[3, 0], [0, 0]]), torch.tensor([[2, 0], [3, 0], [1, 0]]))
    scores.write_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    metrics = {"iou": "100.0", "dice": "100.0", "precision": "100.0", "recall": "100.0", "boundary_iou": "25.0"}
    assert rows == [
        {"class": "road, wet", **metrics, "true_pixels": "3", "predicted_pixels": "3"},
        {"class": "sign", **dict.fromkeys(metrics, ""), "true_pixels": "0", "predicted_pixels": "0"},
    ]


def eroded(mask, times):
    """What is left of a mask (H, W) after erosions by 3×3 squares, with nothing beyond its border, as in the paper."""
    padded = F.pad(mask[None, None].float(), (1, 1, 1, 1))
    for _ in range(times):
        padded = -F.max_pool2d(-padded, 3, stride=1, padding=1)
    return padded[0, 0, 1:-1, 1:-1].bool()


@pytest.mark.parametrize("size", [(60, 80), (4, 8), (52, 120), (200, 12)])
def test_the_boundary_is_what_erosions_remove_from_each_class(size):
    labels, _ = random_labels(0, classes=3, size=size)
    labels[: size[0] // 2, size[1] // 2 :] = 1  # a region with an interior
    distance = max(round(0.02 * math.hypot(*size)), 1)
    band = boundary_band(labels)
    for value in (0, 1, 2, 255):
        mask = labels == value
        assert torch.equal(band & mask, mask & ~eroded(mask, distance)), value


def test_boundary_iou_by_hand():
    truth = torch.zeros(10, 10, dtype=torch.int32)  # d is 1 up to a diagonal of 75 pixels
    truth[2:8, 2:8] = 1
    guess = torch.zeros(10, 10, dtype=torch.uint8)
    guess[2:8, 3:9] = 1
    counts = torch.zeros(3, 2, dtype=torch.int64)
    add_to_boundary(counts, truth, guess, ignore_index=255)
    # rings of 20 pixels, which share the upper and the lower row: 5 columns each, and no column within them
    assert counts[:, 1].tolist() == [20, 20, 10]
    scores = Scores("ab", torch.zeros(2, 2, dtype=torch.int64), counts)
    assert scores.boundary_iou[1].item() == pytest.approx(10 / 30)
    assert scores.as_dict()["boundary_iou"]["b"] == pytest.approx(100 / 3, abs=1e-5)
    assert "boundary IoU" in scores.table()


def test_ignored_pixels_have_no_boundary_iou():
    truth, guess = random_labels(1)
    counts, others = torch.zeros(2, 3, 5, dtype=torch.int64)
    add_to_boundary(counts, truth, guess, ignore_index=255)
    add_to_boundary(others, truth, torch.where(truth == 255, 0, guess), ignore_index=255)
    assert torch.equal(counts, others)
    assert counts[0].sum() <= (truth != 255).sum()


def test_a_perfect_prediction_has_a_boundary_iou_of_1():
    truth, _ = random_labels(2)
    counts = torch.zeros(3, 5, dtype=torch.int64)
    add_to_boundary(counts, truth, truth.clamp(max=4), ignore_index=255)
    assert Scores("abcde", torch.zeros(5, 5), counts).boundary_iou.tolist() == [1] * 5
