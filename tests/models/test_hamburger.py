import pytest
import torch

from segnext_timm import Hamburger, NMF2d


def features(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_nmf_follows_the_published_updates():
    nmf = NMF2d(8, rank=3, eval_steps=7).double().eval()
    x = features(2, 8, 4, 5).double()
    for image, output in zip(x, nmf(x)):
        matrix, bases = image.reshape(8, 20), nmf.bases[0]
        coef = (matrix.T @ bases).softmax(-1)
        for _ in range(7):
            coef = coef * (matrix.T @ bases) / (coef @ bases.T @ bases + 1e-6)
            bases = bases * (matrix @ coef) / (bases @ coef.T @ coef + 1e-6)
        coef = coef * (matrix.T @ bases) / (coef @ bases.T @ bases + 1e-6)
        torch.testing.assert_close(output, (bases @ coef.T).reshape(8, 4, 5))


def test_nmf_output_has_the_rank_and_more_steps_come_closer():
    x = features(1, 16, 8, 8)
    few, many = (NMF2d(16, rank=4, eval_steps=steps).eval()(x) for steps in (1, 50))
    assert torch.linalg.matrix_rank(many.reshape(16, 64), rtol=1e-4) == 4
    assert (many - x).norm() < (few - x).norm()


def test_nmf_evaluation_is_deterministic_and_training_draws_bases_anew():
    nmf, x = NMF2d(16, rank=4), features(2, 16, 6, 6)
    assert not torch.equal(nmf(x), nmf(x))
    nmf.eval()
    assert torch.equal(nmf(x), nmf(x))


def test_bases_are_unit_columns_saved_with_the_weights_whatever_the_seed():
    nmf = NMF2d(16, rank=4)
    assert nmf.state_dict()["bases"].shape == (1, 16, 4)
    torch.testing.assert_close(nmf.bases.norm(dim=1), torch.ones(1, 4))
    torch.manual_seed(123)
    assert torch.equal(nmf.bases, NMF2d(16, rank=4).bases)


def test_bases_are_made_on_any_default_device():
    with torch.device("meta"):
        assert NMF2d(16, rank=4).bases.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_nmf_returns_the_dtype_it_got(dtype):
    nmf = NMF2d(16, rank=4).eval()
    x = features(1, 16, 6, 6).to(dtype)
    assert nmf(x).dtype == dtype
    assert nmf.to(dtype)(x).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nmf_runs_in_float32_under_autocast(dtype):
    nmf, x = NMF2d(64, rank=16).eval(), features(1, 64, 8, 8) * 1000
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(nmf(x), nmf(x.clone()))
        inside = nmf(x)
    assert torch.equal(inside, nmf(x))


def test_one_step_gradient_keeps_the_output_and_sees_the_last_update_only():
    x = features(1, 16, 6, 6).requires_grad_()
    full, one_step = (NMF2d(16, rank=4, one_step_gradient=flag).eval() for flag in (False, True))
    assert torch.equal(full(x), one_step(x))
    (gradient,) = torch.autograd.grad(one_step(x).square().sum(), x)

    matrix = x.flatten(2)
    with torch.no_grad():
        bases, coef, _ = one_step._factorize(matrix, one_step.bases)
    coef = one_step._update_coefficients(matrix.transpose(1, 2) @ bases, bases, coef)
    (expected,) = torch.autograd.grad((bases @ coef.transpose(1, 2)).square().sum(), x)
    torch.testing.assert_close(gradient, expected)
    (through_all,) = torch.autograd.grad(full(x).square().sum(), x)
    assert not torch.allclose(gradient, through_all)


def test_zero_features_give_zeros_and_finite_gradients():
    nmf = NMF2d(16, rank=4)
    x = torch.zeros(1, 16, 4, 4, requires_grad=True)
    output = nmf(x)
    output.sum().backward()
    assert output.abs().max() == 0
    assert x.grad.isfinite().all()


def test_nmf_rejects_a_rank_below_one():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        NMF2d(16, rank=0)


def test_hamburger_keeps_the_shape_and_is_scriptable():
    hamburger, x = Hamburger(64, rank=8).eval(), features(2, 64, 5, 7)
    assert hamburger(x).shape == x.shape
    torch.testing.assert_close(torch.jit.script(hamburger)(x), hamburger(x))


def test_the_factors_can_be_looked_at():
    nmf, x = NMF2d(16, rank=4).eval(), torch.rand(2, 16, 6, 9)
    bases, coefficients = nmf.decompose(x.flatten(2))
    assert (bases.shape, coefficients.shape) == ((2, 16, 4), (2, 54, 4))
    assert bases.min() >= 0
    assert coefficients.min() >= 0
    torch.testing.assert_close((bases @ coefficients.transpose(1, 2)).view(x.shape), nmf(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_bases_are_those_of_float32_whatever_the_default_type(dtype):
    expected = NMF2d(64, 16).bases
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        bases = NMF2d(64, 16).bases
    finally:
        torch.set_default_dtype(before)
    assert bases.dtype == torch.float32
    assert torch.equal(bases, expected)
