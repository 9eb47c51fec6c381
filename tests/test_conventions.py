"""Conversions of weights: both losses are written out and must be one another's multiple, in value and gradient."""

import pytest
import torch

from jepa_lab.conventions import CONVENTIONS, convert_covariance_weight, convert_lambda
from jepa_lab.losses import lejepa, sigreg, vicreg
from jepa_lab.sigreg import epps_pulley, random_directions

BATCH, DIM = 24, 5


def same_views(seed=0, views=2):
    """Views that hold the same points in another order: equal distributions, and not equal row by row."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(BATCH, DIM, generator=g, dtype=torch.float64) * torch.tensor([2.0, 1.0, 0.5, 0.3, 0.1])
    return torch.stack([z[torch.randperm(BATCH, generator=g)] for _ in range(views)])


def lejepa_loss(z, lam):
    return lejepa(z, lam, 32, torch.Generator().manual_seed(0))[0]


def eb_jepa_loss(z, lam):
    """Mean squared difference of two views; characteristic functions over [-3, 3], without the number of rows."""
    u = random_directions(DIM, 32, z, torch.Generator().manual_seed(0))
    t = torch.linspace(-3, 3, 33, dtype=z.dtype)
    phi, total = torch.exp(-t.square() / 2), 0.0
    for view in z:
        empirical = torch.exp(1j * t * (view @ u)[..., None]).mean(0)
        total = total + torch.trapezoid((empirical - phi).abs().square() * phi, t).mean()
    return (z[0] - z[1]).square().mean() + lam * total / 2


def stable_pretraining_loss(z, lam):
    """The views thrown together before the test, and no 1 - lambda."""
    centroid = (z - z.mean(0)).square().mean()
    return centroid + lam * sigreg(z.flatten(0, 1), 32, generator=torch.Generator().manual_seed(0))


LOSSES = {"lejepa": lejepa_loss, "eb_jepa": eb_jepa_loss, "stable_pretraining": stable_pretraining_loss}


@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_converted_lambdas_train_the_same_loss(source, target):
    lam = {"lejepa": 0.05, "eb_jepa": 10.0, "stable_pretraining": 0.02}[source]
    converted = convert_lambda(lam, source, target, BATCH)
    factor = LOSSES[target](same_views(), converted) / LOSSES[source](same_views(), lam)
    for seed in range(1, 4):  # one constant factor between the two losses, whatever the embeddings
        z = same_views(seed)
        torch.testing.assert_close(LOSSES[target](z, converted), factor * LOSSES[source](z, lam), rtol=1e-6, atol=0)
    z = same_views(7).requires_grad_()
    a, b = (torch.autograd.grad(LOSSES[n](z, w), z)[0] for n, w in ((source, lam), (target, converted)))
    torch.testing.assert_close(b, factor * a, rtol=1e-5, atol=1e-10)
    assert convert_lambda(converted, target, source, BATCH) == pytest.approx(lam)


def test_three_views():
    z = same_views(0, 3)
    lam = convert_lambda(0.05, "lejepa", "stable_pretraining", BATCH, 3)
    torch.testing.assert_close(stable_pretraining_loss(z, lam) * 0.95, lejepa_loss(z, 0.05))


def test_published_numbers():
    """eb_jepa's 10 at 256 rows is LeJEPA's .0097; its covariance weight 80 at 2048 features is the paper's .039."""
    assert convert_lambda(10.0, "eb_jepa", "lejepa", 256) == pytest.approx(0.0097, abs=5e-5)
    assert convert_covariance_weight(80.0, 2048, "mean", "paper") == pytest.approx(0.039, abs=5e-4)


def test_ten_knots_or_seventeen_are_the_same_integral():
    """eb_jepa's 10 knots over [-3, 3] do not even contain 0; the quadrature agrees to better than a percent."""
    y = torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    t = torch.linspace(-3, 3, 10, dtype=y.dtype)
    phi = torch.exp(-t.square() / 2)
    empirical = torch.exp(1j * t * y[..., None]).mean(0)
    ten = torch.trapezoid((empirical - phi).abs().square() * phi, t)
    torch.testing.assert_close(len(y) * ten, epps_pulley(y), rtol=0.01, atol=0)


@pytest.mark.parametrize("dim", [2, 128, 2048])
def test_covariance_weights(dim):
    z1, z2 = torch.randn(2, 16, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = convert_covariance_weight(3.0, dim, "paper", "mean")
    a, b = vicreg(z1, z2, covariance=3.0)[0], vicreg(z1, z2, covariance=weight, cov_norm="mean")[0]
    torch.testing.assert_close(a, b)
    assert convert_covariance_weight(weight, dim, "mean", "paper") == pytest.approx(3.0)
    assert convert_covariance_weight(weight, dim, "mean", "mean") == weight


def test_bad_input():
    convert, cov = convert_lambda.__wrapped__, convert_covariance_weight.__wrapped__
    for arguments, message in [
        ((0.1, "lejepa", "solo", 8), "convention must be one of"),
        ((1.0, "lejepa", "eb_jepa", 8), "below 1 in the convention lejepa"),
        ((-1.0, "eb_jepa", "lejepa", 8), "value must be a weight >= 0"),
        ((0.1, "lejepa", "eb_jepa", 8, 4), "exactly 2 views, got 4"),
        ((0.1, "lejepa", "lejepa", 1), "batch and views must be at least 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert(*arguments)
    with pytest.raises(ValueError, match="dim must be at least 2"):
        cov(1.0, 1, "paper", "mean")
    with pytest.raises(ValueError, match="normalisation must be"):
        cov(1.0, 8, "sum", "mean")
