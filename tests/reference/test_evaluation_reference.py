"""Figures and inference modes are those of mmsegmentation."""

import types

import pytest
import torch

from publishing.reference import import_mmseg
from scores import segment
from segmentation.metrics import Scores, add_to_confusion

pytestmark = [pytest.mark.reference, pytest.mark.slow]

STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std


def predictions(seed):
    """Random labels and predictions of 7 classes, of which one does not occur and one is predicted only."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (60, 80), generator=generator)
    labels[torch.rand(60, 80, generator=generator) < 0.2] = 255
    guess = torch.randint(0, 6, (60, 80), generator=generator)
    right = torch.rand(60, 80, generator=generator) < 0.5
    return torch.where(right & (labels != 255), labels, guess), labels


def test_miou_macc_and_aacc_equal_iou_metric():
    import_mmseg()
    from mmseg.evaluation import IoUMetric

    confusion, areas = torch.zeros(7, 7, dtype=torch.int64), []
    for seed in range(5):
        guess, labels = predictions(seed)
        add_to_confusion(confusion, labels, guess, ignore_index=255)
        areas.append(IoUMetric.intersect_and_union(guess, labels, 7, 255))
    expected = IoUMetric.total_area_to_metrics(*map(sum, zip(*areas)), metrics=["mIoU"])
    scores = Scores([str(i) for i in range(7)], confusion)
    for ours, theirs in ((scores.iou, expected["IoU"]), (scores.recall, expected["Acc"])):
        torch.testing.assert_close(ours, torch.as_tensor(theirs).double(), equal_nan=True, rtol=0, atol=1e-6)
    assert scores.aacc == pytest.approx(float(expected["aAcc"]), abs=1e-6)
    assert scores.miou == pytest.approx(torch.as_tensor(expected["IoU"]).nanmean().item(), abs=1e-6)


def model():
    """Maps images to logits by their surroundings."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 3, padding=1))
    net.pretrained_cfg = dict(zip(("mean", "std"), STATISTICS))
    return net


@pytest.mark.parametrize(("size", "window", "stride"), [((75, 91), 32, 24), ((64, 64), 32, 32), ((40, 100), 48, 36)])
def test_sliding_windows_equal_slide_inference(size, window, stride):
    import_mmseg()
    from mmseg.models.segmentors import EncoderDecoder

    net, image = model(), torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    x = (image / 255 - torch.tensor(STATISTICS[0])[:, None, None]) / torch.tensor(STATISTICS[1])[:, None, None]
    fake = types.SimpleNamespace(
        test_cfg=types.SimpleNamespace(stride=(stride, stride), crop_size=(window, window)),
        out_channels=5,
        encode_decode=lambda inputs, metas: net(inputs),
    )
    with torch.inference_mode():
        expected = EncoderDecoder.slide_inference(fake, x[None], [{}])[0]
    logits = segment(net, image, mode="slide", window=window, stride=stride)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_scales_and_flips_equal_test_time_augmentation():
    import_mmseg()
    from mmengine.structures import PixelData
    from mmseg.models.segmentors import SegTTAModel
    from mmseg.structures import SegDataSample

    net = model()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    scales = (0.5, 1.0, 1.75)
    samples = []
    for scale in scales:
        for flip in (False, True):
            # what one view gives, at the image's own size and unflipped, as mmsegmentation's postprocessing has it
            flipped = image.flip(-1) if flip else image
            logits = segment(net, flipped, scales=(scale,))
            sample = SegDataSample(metainfo={"img_path": ""})
            sample.set_data({"seg_logits": PixelData(data=logits.flip(-1) if flip else logits)})
            samples.append([sample])
    fake = types.SimpleNamespace(module=types.SimpleNamespace(out_channels=5))
    merged = SegTTAModel.merge_preds(fake, [[s[0] for s in samples]])[0].pred_sem_seg.data[0]
    ours = segment(net, image, scales=scales, flip=True).argmax(0)
    assert torch.equal(ours, merged)
