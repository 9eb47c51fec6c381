"""What holds features apart: slow oracles, known constants, invariances, and where the gradient dies."""

import math
import time

import pytest
import torch

from jepa_lab.losses import (
    alignment,
    barlow_twins,
    covariance_term,
    isotropy,
    lejepa,
    negative_cosine,
    sigreg,
    uniformity,
    variance_term,
    vicreg,
)
from jepa_lab.sigreg import epps_pulley, quadrature, random_directions


def gaussian(rows=40, dim=6, seed=0, dtype=torch.float64):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_covariance(z):
    rows, dim = z.shape
    mean = [sum(z[b, i] for b in range(rows)) / rows for i in range(dim)]
    return [
        [sum((z[b, i] - mean[i]) * (z[b, j] - mean[j]) for b in range(rows)) / (rows - 1) for j in range(dim)]
        for i in range(dim)
    ]


def slow_off_diagonal(z):
    c = slow_covariance(z)
    return sum(c[i][j] ** 2 for i in range(len(c)) for j in range(len(c)) if i != j)


def gradient(loss, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z), z)[0]


SHAPES = [(12, 5), (5, 12), (6, 6), (2, 3)]  # more rows than features, fewer, as many, the fewest


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_vicreg_terms_equal_a_loop(rows, dim):
    z1, z2 = gaussian(rows, dim) * 1.5, gaussian(rows, dim, 1) * 0.7
    loss, terms = vicreg(z1, z2, 3.0, 5.0, 7.0)
    hinge = [sum(max(0.0, 1 - math.sqrt(slow_covariance(z)[j][j] + 1e-4)) for j in range(dim)) / dim for z in (z1, z2)]
    expected = {
        "invariance": sum((z1[b, j] - z2[b, j]) ** 2 for b in range(rows) for j in range(dim)) / (rows * dim),
        "variance": sum(hinge) / 2,
        "covariance": (slow_off_diagonal(z1) + slow_off_diagonal(z2)) / dim,
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(float(value)), name
        assert not terms[name].requires_grad
    expected_loss = 3 * expected["invariance"] + 5 * expected["variance"] + 7 * expected["covariance"]
    assert loss.item() == pytest.approx(float(expected_loss))
    assert variance_term(z2).item() == pytest.approx(hinge[1])


def test_vicreg_on_numbers_anyone_can_check():
    """Two rows: every variance is half the squared difference, every covariance half the product of differences."""
    z1 = torch.tensor([[0.0, 0.0], [2.0, 4.0]], dtype=torch.float64)
    z2 = torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
    loss, terms = vicreg(z1, z2)
    assert terms["invariance"].item() == pytest.approx((1 + 9) / 4)
    assert terms["variance"].item() == pytest.approx((1 - math.sqrt(0.5 + 1e-4)) / 2)  # both features of z2, half
    assert terms["covariance"].item() == pytest.approx(2 * 4**2 / 2 + 2 * 0.5**2 / 2)
    assert loss.item() == pytest.approx(25 * 2.5 + 25 * (1 - math.sqrt(0.5 + 1e-4)) / 2 + 16.25)


def test_gram_and_covariance_forms_agree_in_value_and_gradient():
    """The form is chosen by the shape: padding with constant features or repeating rows switches it."""
    z = gaussian(9, 7, dtype=torch.float32)
    wide = torch.cat([z, torch.zeros(9, 7)], 1)  # 14 features, 9 rows: the Gram form of the same covariances
    dense, gram = covariance_term(z), covariance_term(wide) * 14 / 7
    torch.testing.assert_close(gram, dense, rtol=1e-5, atol=0)
    a = gradient(covariance_term, z)
    b = gradient(lambda x: covariance_term(torch.cat([x, torch.zeros(9, 7)], 1)) * 2, z)
    torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_few_rows_of_many_features_never_make_the_large_matrix():
    """At 64 x 2048 the D x D matrix takes 32 times the multiplications: a ratio of times, the best of five each."""

    def dense(z):
        z = z - z.mean(0)
        c = z.T @ z / (len(z) - 1)
        return (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]

    def seconds(f):
        started = time.process_time()
        f(z)
        return time.process_time() - started

    z = gaussian(64, 2048, dtype=torch.float32)
    torch.testing.assert_close(covariance_term(z), dense(z), rtol=1e-4, atol=0)
    fast, slow = (min(seconds(f) for _ in range(5)) for f in (covariance_term, dense))
    assert slow > 4 * fast  # measured: 15 to 30


def test_rounding_never_makes_a_sum_of_squares_negative():
    """Orthogonal columns: the sum of squares and its diagonal cancel to a rounding error of either sign."""
    for seed in range(20):
        q = gaussian(33, 16, seed, torch.float32)
        q = torch.linalg.qr(q - q.mean(0))[0] * 5
        assert 0 <= covariance_term(q).item() < 1e-5


@pytest.mark.parametrize("loss", [variance_term, covariance_term, isotropy], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_gradients_by_finite_differences(loss, rows, dim):
    z = (0.5 * gaussian(rows, dim)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (z,))


def test_the_two_covariance_norms_differ_by_the_number_of_other_features():
    z = gaussian(300, 128)
    assert covariance_term(z, "paper").item() == pytest.approx(127 * covariance_term(z, "mean").item())
    assert vicreg(z, z, 0.0, 0.0)[0].item() == pytest.approx(127 * vicreg(z, z, 0.0, 0.0, 1.0, "mean")[0].item())
    for norm in ("paper", "mean"):  # a single feature has no other to vary with
        assert covariance_term(z[:, :1], norm).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("loss", [variance_term, covariance_term, isotropy], ids=lambda f: f.__name__)
def test_second_moments_see_scale_and_not_offset(loss):
    z = 0.5 * gaussian(60, 8)
    torch.testing.assert_close(loss(z + 100), loss(z))
    assert abs(loss(0.1 * z) - loss(z)) > 1e-3


def test_a_collapsed_batch_is_expensive():
    z = torch.ones(32, 4, dtype=torch.float64)
    assert variance_term(z).item() == pytest.approx(0.99)
    assert isotropy(z).item() == pytest.approx(0.99**2)  # a covariance norm alone would be zero here
    assert isotropy(0 * z).item() == pytest.approx(0.99**2)
    assert barlow_twins(z, z)[0].item() == pytest.approx(4)
    assert vicreg(z, z)[0].item() == pytest.approx(25 * 0.99)
    assert uniformity(z).item() == pytest.approx(0, abs=1e-12)


def test_isotropy_equals_its_formula_and_has_its_minimum_at_the_standard_covariance():
    z = gaussian(50, 5) @ gaussian(5, 5, 1)
    c = torch.cov(z.T)
    s = c.trace() / 5
    expected = (c - s * torch.eye(5)).square().sum() / 5 + ((s + 1e-4).sqrt() - 1) ** 2
    torch.testing.assert_close(isotropy(z), expected)
    torch.testing.assert_close(isotropy(z[:4]), isotropy(z[:4].clone()))
    q = torch.linalg.qr(gaussian(50, 5) - gaussian(50, 5).mean(0))[0] * 7  # covariance exactly the identity
    assert isotropy(q) < 1e-6 < 1e-2 < min(isotropy(1.5 * q), isotropy(0.5 * q), isotropy(q * torch.arange(1.0, 6)))


def test_barlow_twins_equals_a_loop():
    z1, z2 = gaussian(30, 4), gaussian(30, 4, 1) + 0.5 * gaussian(30, 4)
    on = off = 0.0
    for i in range(4):
        for j in range(4):
            c = torch.corrcoef(torch.stack([z1[:, i], z2[:, j]]))[0, 1]
            on, off = (on + (1 - c) ** 2, off) if i == j else (on, off + c**2)
    loss, terms = barlow_twins(z1, z2, redundancy=0.1)
    # eps = 1e-5 in the denominators
    torch.testing.assert_close(terms["on_diagonal"], on, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms["off_diagonal"], off, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loss, on + 0.1 * off, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(barlow_twins(3 * z1 + 5, z2, 0.1)[0], loss, rtol=1e-3, atol=0)


# --- SIGReg ----------------------------------------------------------------------------------------------------------


def slow_epps_pulley(y, knots, t_max):
    """The integral over the whole interval by complex exponentials, one sample at a time."""
    total, step = 0.0, t_max / (knots - 1)
    for k in range(-(knots - 1), knots):
        t = k * step
        empirical = sum(complex(math.cos(t * v), math.sin(t * v)) for v in y) / len(y)
        ends = 0.5 if abs(k) == knots - 1 else 1.0
        total += ends * step * abs(empirical - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
    return len(y) * total


@pytest.mark.parametrize(("knots", "t_max"), [(17, 3.0), (5, 2.0)])
def test_epps_pulley_equals_a_loop_over_the_whole_interval(knots, t_max):
    y = gaussian(11, 3) * torch.tensor([1.0, 0.2, 3.0]) + torch.tensor([0.0, 1.0, -2.0])
    expected = [slow_epps_pulley(y[:, s].tolist(), knots, t_max) for s in range(3)]
    torch.testing.assert_close(epps_pulley(y, knots, t_max), torch.tensor(expected, dtype=torch.float64))


def test_sigreg_is_the_mean_over_slices_and_views():
    z = torch.stack([gaussian(20, 4), 2 * gaussian(20, 4, 1)])
    u = random_directions(4, 8, z, torch.Generator().manual_seed(3))
    torch.testing.assert_close(u.norm(dim=0), torch.ones(8, dtype=torch.float64), rtol=1e-6, atol=0)
    expected = torch.stack([epps_pulley(view @ u).mean() for view in z]).mean()
    torch.testing.assert_close(sigreg(z, 8, generator=torch.Generator().manual_seed(3)), expected)
    pooled = sigreg(z.flatten(0, 1), 8, generator=torch.Generator().manual_seed(3))
    assert not torch.isclose(pooled, expected)  # the views are not thrown together


@pytest.mark.parametrize("rows", [64, 256, 1024])
def test_known_constants_of_sigreg(rows):
    """A Gaussian gives sum w (1 - phi^2) = 1.0525 within its standard error, a point 0.402 a row."""
    g = torch.Generator().manual_seed(0)
    values = torch.tensor([sigreg(torch.randn(rows, 16, generator=g), 64, generator=g) for _ in range(60)])
    standard_error = values.std() / math.sqrt(len(values))
    knots, weights = quadrature(17, 3.0, values.double())
    constant = (weights * (1 - torch.exp(-knots.square()))).sum().item()
    assert constant == pytest.approx(1.0525, abs=1e-4)
    assert abs(values.mean() - constant) < 3.5 * standard_error < 0.15
    at_zero = sigreg(torch.zeros(rows, 16), 64).item()
    assert at_zero / rows == pytest.approx(0.40205, abs=1e-4)


def test_sigreg_sees_scale_and_offset():
    z = gaussian(256, 16)

    def value(x):
        return sigreg(x, 64, generator=torch.Generator().manual_seed(0)).item()

    assert value(z) < 2
    for scale in (0.1, 0.5, 2.0, 10.0):
        assert value(scale * z) > 4 * value(z), scale
    assert value(z + 1) > 4 * value(z)
    rank_one = z[:, :1].expand(-1, 16)
    assert value(rank_one) > 2 * value(z)


def test_the_gradient_of_sigreg_dies_at_the_collapsed_point():
    """d loss / d log scale at B = 256, D = 32: none at the point, strong on the way there. Hence: prevent, not cure."""
    z = gaussian(256, 32)

    def slope(scale):
        log_scale = torch.tensor(math.log(scale), dtype=torch.float64, requires_grad=True)
        loss = sigreg(log_scale.exp() * z, 256, generator=torch.Generator().manual_seed(0))
        return torch.autograd.grad(loss, log_scale)[0].item()

    assert abs(slope(1e-4)) < 1e-4
    assert -0.2 < slope(1e-2) < -0.02
    assert slope(0.1) < -5
    assert slope(0.5) < -50  # measured before: -78
    assert abs(slope(1.0)) < 5
    assert slope(2.0) > 100  # measured before: +157
    assert gradient(lambda x: sigreg(x, 16), torch.zeros(8, 4)).abs().max() == 0


def test_directions_are_fresh_and_come_from_the_generator():
    z = gaussian(50, 8) * torch.arange(1, 9)
    g = torch.Generator().manual_seed(0)
    first, second = sigreg(z, 8, generator=g), sigreg(z, 8, generator=g)
    assert first != second
    assert sigreg(z, 8, generator=torch.Generator().manual_seed(0)) == first


def test_lejepa_equals_its_formula_and_needs_no_partner():
    views = torch.stack([gaussian(32, 4), gaussian(32, 4, 1), gaussian(32, 4, 2)])
    loss, terms = lejepa(views, 0.3, 16, torch.Generator().manual_seed(0))
    centre = sum(views) / 3
    invariance = sum(((v - centre) ** 2).mean() for v in views) / 3
    gaussianity = sigreg(views, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, 0.7 * invariance + 0.3 * gaussianity)
    torch.testing.assert_close(terms["invariance"], invariance)
    torch.testing.assert_close(terms["sigreg"], gaussianity)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    z = (300 * gaussian(16, 64, dtype=torch.float32)).to(dtype)  # squares of squares overflow fp16
    for loss in (variance_term, covariance_term, isotropy, lambda x: sigreg(x, 8, generator=torch.Generator())):
        value = loss(z)
        assert value.isfinite() and value.dtype == torch.float32
        torch.testing.assert_close(value, loss(z.float()), rtol=1e-5, atol=0)


def test_non_contiguous_input():
    z = gaussian(7, 20).T  # [20, 7]
    torch.testing.assert_close(covariance_term(z), covariance_term(z.contiguous()))
    torch.testing.assert_close(isotropy(z), isotropy(z.contiguous()))


# --- losses on the sphere --------------------------------------------------------------------------------------------


def test_alignment_and_uniformity_equal_the_metrics_and_carry_gradient():
    from jepa_lab import metrics

    z1, z2 = gaussian(20, 5), gaussian(20, 5, 1)
    torch.testing.assert_close(alignment(z1, z2), metrics.alignment(z1, z2))
    torch.testing.assert_close(uniformity(z1), metrics.uniformity(z1))
    z = z1.clone().requires_grad_()
    assert torch.autograd.gradcheck(uniformity, (z,))
    assert torch.autograd.gradcheck(alignment, (z, z2))
    same = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(uniformity(same), same)[0].isfinite().all()


def test_negative_cosine():
    p, t = gaussian(20, 5), gaussian(20, 5, 1)
    cosines = [(p[b] @ t[b] / (p[b].norm() * t[b].norm())).item() for b in range(20)]
    assert negative_cosine(p, t).item() == pytest.approx(-sum(cosines) / 20)
    assert negative_cosine(p, 3 * p).item() == pytest.approx(-1)
    t.requires_grad_()
    assert torch.autograd.grad(negative_cosine(p, t), t)[0].abs().sum() > 0  # the stop-gradient is the caller's


def test_bad_input():
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match="at least 2 rows"):
        variance_term(z[:1])
    # The annotations would catch these first here; a user runs without them.
    with pytest.raises(ValueError, match="norm must be 'paper' or 'mean'"):
        covariance_term.__wrapped__(z, "sum")
    for loss in (vicreg, barlow_twins, negative_cosine, alignment):
        with pytest.raises(ValueError, match=r"must both be \[B, D\]"):
            loss.__wrapped__(z, z[:3])
    with pytest.raises(ValueError, match="n_slices"):
        sigreg(z, 0)
    with pytest.raises(ValueError, match="n_knots"):
        sigreg(z, 4, n_knots=1)
    with pytest.raises(ValueError, match="at least 2 rows"):
        sigreg(z[:1])
    with pytest.raises(ValueError, match="lam must lie in"):
        lejepa(torch.stack([z, z]), 1.5)
    with pytest.raises(ValueError, match="at least 2 views"):
        lejepa(z[None])
    with pytest.raises(ValueError, match="t must be positive"):
        uniformity(z, 0.0)
