"""Metrics: known values, and which collapse each one sees or is blind to."""

import math

import pytest
import torch

from jepa_lab.metrics import (
    alignment,
    effective_rank,
    feature_std,
    mean_cosine,
    normalized_std,
    rankme,
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
