"""Metrics: known values, and which collapse each one sees or is blind to."""

import math

import numpy as np
import pytest
import torch

from jepa_lab.metrics import (
    alignment,
    alpha_req,
    core_rank,
    effective_rank,
    feature_std,
    lidar,
    mean_cosine,
    mean_norm_ratio,
    normalized_std,
    rankme,
    spectrum,
    uniformity,
)


def gaussian(n=512, d=64, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_known_values_on_a_gaussian():
    z = gaussian()
    assert effective_rank(z).item() == pytest.approx(62.9, abs=0.3)  # measured before on this size
    assert rankme(z).item() == pytest.approx(62.9, abs=0.3)
    assert rankme(z + 5).item() == pytest.approx(23.9, abs=1.5)  # a common offset counts as collapse
    assert effective_rank(z + 5).item() == pytest.approx(effective_rank(z).item())  # here it does not
    assert normalized_std(z).item() == pytest.approx(1.0, abs=0.02)
    assert mean_cosine(z).item() == pytest.approx(0.0, abs=0.01)
    assert feature_std(3 * z).mean().item() == pytest.approx(3.0, abs=0.05)


def test_rank_equals_the_dimension_of_an_isotropic_subspace():
    q = torch.linalg.qr(gaussian(300, 10, 1))[0]  # orthonormal columns: ten equal singular values
    z = (q - q.mean(0)) @ torch.linalg.qr(gaussian(32, 10, 2))[0].T
    assert rankme(z).item() == pytest.approx(10, abs=0.1)
    assert effective_rank(z).item() == pytest.approx(10, abs=0.1)


def test_collapse_to_a_point_shows_in_the_std_and_not_in_the_centred_rank():
    z = torch.ones(512, 64, dtype=torch.float64) + 1e-6 * gaussian()
    assert normalized_std(z) < 1e-5
    assert mean_cosine(z) > 1 - 1e-9
    assert rankme(z) < 1.01
    assert effective_rank(z) > 60  # blind: it says healthy
    assert effective_rank(torch.ones(10, 4)) == 0


def test_collapse_to_a_subspace_shows_in_the_rank_and_not_in_the_std():
    z = gaussian(512, 2) @ gaussian(2, 64, 1)
    assert effective_rank(z) < 2.01
    assert feature_std(z).min() > 0.05


def test_oracles():
    z1, z2 = gaussian(20, 5), gaussian(20, 5, 1)
    a, b = z1 / z1.norm(dim=1, keepdim=True), z2 / z2.norm(dim=1, keepdim=True)
    assert alignment(z1, z2).item() == pytest.approx(sum(((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)) / 20)
    pairs = [(i, j) for i in range(20) for j in range(20) if i != j]
    potential = sum(math.exp(-2 * ((a[i] - a[j]) ** 2).sum()) for i, j in pairs) / len(pairs)
    assert uniformity(z1).item() == pytest.approx(math.log(potential))
    assert mean_cosine(z1).item() == pytest.approx(sum((a[i] @ a[j]).item() for i, j in pairs) / len(pairs))


def test_ranges():
    z = gaussian(200, 256)
    assert alignment(z, z) == 0
    assert alignment(z, -z).item() == pytest.approx(4)
    assert uniformity(torch.ones(10, 3)).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(z).item() == pytest.approx(-4, abs=0.1)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2 rows"):
        rankme(torch.zeros(1, 4))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
@pytest.mark.parametrize("center", [True, False])
def test_spectrum_is_that_of_a_singular_value_decomposition(shape, center):
    z = gaussian(*shape) + 2
    expected = torch.from_numpy(np.linalg.svd((z - z.mean(0) if center else z).numpy(), compute_uv=False))
    torch.testing.assert_close(spectrum(z, center), expected, atol=1e-12, rtol=1e-10)
    low = spectrum(z.float(), center)
    assert low.dtype == torch.float32 and len(low) == 12
    torch.testing.assert_close(low.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(spectrum(z * 1e-150, center), expected * 1e-150, rtol=1e-10, atol=1e-162)


def test_the_gram_matrix_keeps_the_digits_that_float32_has():
    """In float32 its square root could not see a singular value of 1e-5 of the largest."""
    left, right = torch.linalg.qr(gaussian(100, 4))[0], torch.linalg.qr(gaussian(8, 4, 1))[0]
    z = (left * torch.tensor([1, 1e-2, 1e-4, 1e-5], dtype=torch.float64)) @ right.T
    assert spectrum(z.float(), center=False)[3].item() == pytest.approx(1e-5, rel=0.02)
    assert spectrum(z, center=False)[3].item() == pytest.approx(1e-5, rel=1e-9)


def test_core_rank_leaves_out_what_holds_the_last_percent_of_the_variance():
    sigma = torch.cat([torch.ones(4), torch.full((508,), 0.004)])
    assert core_rank(sigma).item() == pytest.approx(4)
    assert core_rank(sigma, variance=1.0) > 8
    assert core_rank(torch.ones(5)).item() == pytest.approx(5)
    assert core_rank(torch.zeros(5)) == 0


def test_mean_norm_ratio():
    z = gaussian(2000, 16)
    assert mean_norm_ratio(z) < 0.05
    length = (z + 3).square().sum(1).mean().sqrt()
    assert mean_norm_ratio(z + 3).item() == pytest.approx(((z + 3).mean(0).norm() / length).item())
    assert mean_norm_ratio(torch.ones(5, 3)).item() == pytest.approx(1) and mean_norm_ratio(torch.zeros(5, 3)) == 0
    assert mean_norm_ratio(z.float() * 1e-30).item() == pytest.approx(mean_norm_ratio(z).item(), rel=1e-4)


def test_directions_do_not_depend_on_the_scale():
    z = gaussian(50, 8).float() + 0.5
    for metric in (normalized_std, mean_cosine, uniformity):
        assert metric(z * 1e-20).item() == pytest.approx(metric(z).item(), rel=1e-4)
    assert mean_cosine(torch.zeros(4, 3)) == 0


@pytest.mark.parametrize("alpha", [0.7, 1.0, 2.0])
def test_alpha_req_finds_the_exponent_of_a_power_law(alpha):
    """Over five seeds of this size it is within 0.06 of it."""
    z = gaussian(5000, 64) * torch.arange(1, 65, dtype=torch.float64) ** (-alpha / 2)
    law = alpha_req(z @ torch.linalg.qr(gaussian(64, 64, 1))[0] + 7)
    assert law.alpha == pytest.approx(alpha, abs=0.1) and law.r2 > 0.99
    assert (law.low, law.high) == (4, 32)


def test_alpha_req_fits_the_range_that_it_is_told():
    z = gaussian(400, 30)
    law = alpha_req(z, low=2, high=9)
    x = np.log(np.arange(2, 10))
    y = np.log(np.linalg.eigvalsh(np.cov(z.numpy().T))[::-1][1:9])
    slope, start = np.polyfit(x, y, 1)
    assert law.alpha == pytest.approx(-slope) and (law.low, law.high) == (2, 9)
    assert law.r2 == pytest.approx(1 - ((y - slope * x - start) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    assert math.isnan(alpha_req(torch.ones(20, 8)).alpha)  # nothing to fit
    assert alpha_req(gaussian(400, 2) @ gaussian(2, 30)).high <= 2  # rounding is no eigenvalue
    for low, high in ((0, 5), (6, 5), (1, 31)):
        with pytest.raises(ValueError, match=r"1 <= low <= high <= 30"):
            alpha_req(z, low, high)


def lidar_loop(z, sample, delta=1e-4):
    groups = {i: [z[k].numpy() for k in range(len(z)) if sample[k] == i] for i in set(sample.tolist())}
    means = {i: np.mean(rows, 0) for i, rows in groups.items()}
    overall, d = np.mean(list(means.values()), 0), z.shape[1]
    between, within = np.zeros((d, d)), np.zeros((d, d))
    for i, rows in groups.items():
        between += np.outer(means[i] - overall, means[i] - overall) / (len(groups) - 1)
        for row in rows:
            within += np.outer(row - means[i], row - means[i]) / (len(z) - len(groups))
    values, vectors = np.linalg.eigh(within + delta * np.eye(d))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    lam = np.linalg.eigvalsh(root @ between @ root)[::-1][: min(d, len(groups) - 1)].clip(0)
    p = (lam + 1e-8) / (lam + 1e-8).sum()
    return np.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize(("samples", "d"), [(30, 6), (5, 12)])
def test_lidar_against_a_loop_grouped_by_id_and_not_by_order(samples, d):
    sample = torch.arange(samples).repeat(4)[: 4 * samples - 1]  # the last sample has a view less
    z = gaussian(samples, d)[sample] + 0.3 * gaussian(len(sample), d, 1)
    assert lidar(z, sample).item() == pytest.approx(lidar_loop(z, sample), rel=1e-8)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    assert lidar(z[order], 7 * sample[order] - 3).item() == pytest.approx(lidar(z, sample).item())
    assert lidar(z, sample) <= min(d, samples - 1)


def test_lidar_counts_the_directions_that_tell_samples_apart():
    sample = torch.arange(200).repeat_interleave(3)
    told_apart = (gaussian(200, 3) @ gaussian(3, 16, 1))[sample]
    z = told_apart + 0.01 * gaussian(600, 16, 2)
    assert 1.5 < lidar(z, sample) < 3.5
    views_only = gaussian(600, 16, 2)  # nothing of the sample: S_b is noise in all directions
    assert lidar(views_only, sample) > 12
    assert lidar(z[:6], sample[:6]) == 1  # two samples differ along one line


def test_lidar_refuses_what_has_no_views():
    z = gaussian(10, 3)
    for sample, says in (
        (torch.arange(10), "the smallest with 1 views"),
        (torch.zeros(10).long(), "got 1 samples"),
        (torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 2]), "the smallest with 1 views"),
    ):
        with pytest.raises(ValueError, match=says):
            lidar(z, sample)
