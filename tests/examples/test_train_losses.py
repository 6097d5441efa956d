"""The losses that train.py takes by name, and the user's own."""

import sys

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

import train
import training
from segmentation import recipe
from segmentation.losses import LOSSES, build_loss, check_loss
from segmentation.recipe import SettingsError, TrainSettings
from segnext_timm import UpsampledCrossEntropyLoss

IGNORED = 255


def batch(classes, present=None, size=64):
    """Logits (2, classes, size / 8, size / 8) that can be differentiated, and labels with ignored pixels."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, size // 8, size // 8, generator=generator).requires_grad_()
    labels = torch.randint(0, present or classes, (2, size, size), generator=generator)
    labels[:, :10] = IGNORED
    return logits, labels


def gradient(name, logits, labels, weights=None, **settings):
    """The loss, and its gradient."""
    loss = build_loss(TrainSettings(loss=name, **settings), IGNORED, weights)(logits, labels)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def full(logits, labels):
    return F.interpolate(logits, labels.shape[1:], mode="bilinear")


def test_cross_entropy_is_to_the_bit_the_sum_over_pixels_by_their_number():
    logits, labels = batch(20)
    expected = UpsampledCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")(logits, labels) / labels.numel()
    loss, found = gradient("ce", logits, labels)
    assert torch.equal(loss, expected)
    assert torch.equal(found, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 20])
def test_a_step_along_the_gradient_lowers_each_loss(name, classes):
    logits, labels = batch(classes)
    loss, found = gradient(name, logits, labels)
    assert loss > 0
    assert found.isfinite().all()
    after, _ = gradient(name, (logits - 0.1 * found / found.norm()).detach().requires_grad_(), labels)
    assert after < loss


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 20])
def test_ignored_pixels_have_no_gradient(name, classes):
    # logits of the labels' own size, so that each pixel has its own
    logits, labels = batch(classes)
    logits = full(logits, labels).detach().requires_grad_()
    _, found = gradient(name, logits, labels)
    assert (found[:, :, :10] == 0).all()
    assert found[:, :, 10:].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 20])
def test_a_batch_of_ignored_pixels_has_the_loss_0_and_the_gradient_0(name, classes):
    logits, labels = batch(classes)
    loss, found = gradient(name, logits, torch.full_like(labels, IGNORED))
    assert loss == 0
    assert (found == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_classes_that_are_absent_from_a_batch_give_finite_gradients(name):
    logits, labels = batch(20, present=3)
    loss, found = gradient(name, logits, labels)
    assert loss.isfinite()
    assert found.isfinite().all()
    assert found[:, :3].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32_under_autocast(name, dtype):
    logits, labels = batch(5)
    logits = (30 * logits).to(dtype).detach().requires_grad_()
    loss, found = gradient(name, logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, same = gradient(name, logits, labels)
    wide, _ = gradient(name, logits.float().detach().requires_grad_(), labels)
    assert under_autocast.dtype == torch.float32
    assert under_autocast == loss == wide
    assert torch.equal(same, found)
    assert found.isfinite().all()


def test_dice_is_that_of_the_whole_batch_at_full_size():
    logits, labels = batch(3)
    probabilities, counts = full(logits, labels).softmax(1), (labels != IGNORED)[:, None]
    truth = F.one_hot(labels.where(counts[:, 0], 0), 3).movedim(-1, 1) * counts
    # smp's intersection is that of soft sets: the smaller of the two memberships
    both = torch.minimum(probabilities, truth).sum((0, 2, 3))
    expected = 1 - 2 * both / ((probabilities * counts).sum((0, 2, 3)) + truth.sum((0, 2, 3)))
    torch.testing.assert_close(gradient("dice", logits, labels)[0], expected.mean().detach())
    weighted = (expected * torch.tensor([1.0, 2.0, 5.0])).sum() / 8
    torch.testing.assert_close(gradient("dice", logits, labels, [1.0, 2.0, 5.0])[0], weighted.detach())


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0]])
def test_dice_is_the_mean_over_the_classes_that_are_present(weights):
    logits, labels = batch(3)
    others = torch.full((2, 147, *logits.shape[2:]), -1e4)  # no probability
    expected, of_three = gradient("dice", logits, labels, weights)
    loss, found = gradient("dice", torch.cat([logits, others], 1), labels, weights and [*weights, *[9.0] * 147])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found[:, :3], of_three)


def test_cross_entropy_and_dice_are_summed():
    logits, labels = batch(4)
    options = {"weights": [1.0, 2.0, 3.0, 4.0]}
    both, _ = gradient("ce+dice", logits, labels, **options, label_smoothing=0.1)
    parts = (
        gradient("ce", logits, labels, **options, label_smoothing=0.1)[0],
        gradient("dice", logits, labels, **options)[0],
    )
    assert both == sum(parts)


def test_class_weights_and_label_smoothing_are_those_of_torch():
    logits, labels = batch(4)
    loss, _ = gradient("ce", logits, labels, [1.0, 2.0, 0.0, 4.0], label_smoothing=0.1)
    expected = F.cross_entropy(
        full(logits, labels),
        labels,
        torch.tensor([1.0, 2.0, 0.0, 4.0]),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=0.1,
    )
    torch.testing.assert_close(loss, (expected / labels.numel()).detach())


def test_focal_is_the_mean_over_classes_against_all_others():
    logits, labels = batch(3)
    counts = labels != IGNORED
    truth = F.one_hot(labels.where(counts, 0), 3).movedim(-1, 1).float()
    entropy = F.binary_cross_entropy_with_logits(full(logits, labels), truth, reduction="none")
    by_class = ((1 - (-entropy).exp()) ** 2 * entropy * counts[:, None]).sum((0, 2, 3)) / labels.numel()
    torch.testing.assert_close(gradient("focal", logits, labels)[0], by_class.mean().detach())
    weighted = (by_class * torch.tensor([1.0, 2.0, 5.0])).sum() / 8
    torch.testing.assert_close(gradient("focal", logits, labels, [1.0, 2.0, 5.0])[0], weighted.detach())


@pytest.mark.parametrize(("sure", "hard"), [(0, 0.2), (150, 0.2), (0, 0.6)])
def test_ohem_learns_from_the_hard_pixels_alone(sure, hard):
    # 4,096 pixels of two classes: probabilities of the true class from `hard` of them below 0.7, the others above
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    margins = torch.where(torch.arange(4096) < hard * 4096, torch.linspace(-2, 0.8, 4096), 0.9 + sure)
    margins = margins + torch.linspace(0, 0.1, 4096)
    logits = torch.stack([margins, torch.zeros(4096)]).view(1, 2, 64, 64).requires_grad_()
    loss, found = gradient("ohem", logits, labels)
    losses = F.cross_entropy(logits, labels, reduction="none").flatten()
    kept = losses >= torch.minimum(losses.sort(descending=True).values[819 - 1], torch.tensor(0.7).log().neg())
    torch.testing.assert_close(loss, (losses[kept].sum() / 4096).detach())
    assert found.flatten(2).any(1)[0].sum() == kept.sum()
    assert kept.sum() >= 819


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dise"}, r"--loss dise: choose from ce, ce\+dice, dice, focal, lovasz, ohem, or name your own as"),
        (
            {"loss": "ohem", "class_weights": "auto"},
            r"--class_weights and --loss ohem cannot be combined: .* ce, ce\+d",
        ),
        ({"loss": "lovasz", "class_weights": (1, 2)}, r"--class_weights and --loss lovasz cannot be combined"),
        (
            {"loss": "focal", "label_smoothing": 0.1},
            r"--label_smoothing and --loss focal cannot be combined: .* ce, ce",
        ),
        ({"class_weights": (1, 2, 3)}, r"--class_weights needs a number for each of the 2 classes.*\(a, b\), got 3"),
        ({"class_weights": (0, 0)}, "--class_weights must not all be 0"),
        ({"loss": "no_such_module:loss"}, "--loss no_such_module:loss: there is no module 'no_such_module'"),
    ],
)
def test_what_does_not_combine_is_refused_by_the_names_of_the_options(options, message):
    with pytest.raises(SettingsError, match=message):
        check_loss(TrainSettings(**options), ["a", "b"])


def test_settings_are_refused_before_the_files_are_read(folder, tmp_path):
    (folder / "labels" / "train" / "train_0.png").write_bytes(b"damaged")
    with pytest.raises(SettingsError, match="--class_weights and --loss lovasz cannot be combined"):
        training.run("folder", "--data_root", folder, "--out", tmp_path, "--loss", "lovasz", "--class_weights", "auto")


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A module of the user's with losses."""
    (tmp_path / "own_losses.py").write_text(
        "import segmentation_models_pytorch as smp\n\n"
        "jaccard = smp.losses.JaccardLoss('multiclass', ignore_index=-100)\n\n"
        "def wrong(logits, labels):\n"
        "    batch, classes = logits.shape  # of four dimensions\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_losses", None)


def test_a_loss_of_ones_own_takes_logits_at_full_size(own_code):
    logits, labels = batch(3)
    with torch.autocast("cpu", torch.bfloat16):
        loss, found = gradient("own_losses:jaccard", logits.to(torch.bfloat16).detach().requires_grad_(), labels)
    expected = smp.losses.JaccardLoss("multiclass", ignore_index=IGNORED)(
        full(logits.to(torch.bfloat16).float(), labels), labels
    )
    assert loss == expected
    assert found.any()


def test_a_bug_in_ones_own_loss_shows_its_traceback(own_code, folder, tmp_path, monkeypatch):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--iterations", 1, "--loss", "own_losses:wrong")
    monkeypatch.setattr(sys, "argv", ["train.py", *training.arguments("folder", *options)])
    with pytest.raises(ValueError, match="too many values to unpack"):
        recipe.run(train.main)


def test_class_weights_do_not_combine_with_a_loss_of_ones_own(own_code):
    with pytest.raises(SettingsError, match="--class_weights and --loss own_losses:jaccard cannot be combined"):
        check_loss(TrainSettings(loss="own_losses:jaccard", class_weights="auto"), ["a", "b"])


def test_models_of_several_outputs_are_trained_by_the_first():
    logits, labels = batch(3)
    loss = build_loss(TrainSettings(loss="ce+dice"), IGNORED)
    assert loss((logits, logits.mean((2, 3))), labels) == loss(logits, labels)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ce"])
def test_each_loss_trains(folder, tmp_path, name):
    options = ("--data_root", folder, "--out", tmp_path / "run", "--iterations", 2, "--base_scale", 64, 64)
    training.run("folder", *options, "--loss", name)
    assert all(0 < loss < 10 for loss in training.checkpoint(tmp_path / "run")["losses"])


def test_lovasz_is_refused_with_deterministic_kernels_on_a_gpu(monkeypatch):
    settings = TrainSettings(loss="lovasz", deterministic=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_loss(settings, ["a", "b"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SettingsError, match="--loss lovasz and --deterministic cannot be combined on a GPU"):
        check_loss(settings, ["a", "b"])
