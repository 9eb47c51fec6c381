"""Intervals over paired seeds: scipy's numbers, the coverage they promise, and what they refuse."""

import numpy as np
import pytest
from scipy import stats

from jepa_lab.tables import Interval, paired_interval


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("seeds", [2, 5, 12])
def test_paired_interval_is_that_of_scipy(seeds, confidence):
    random = np.random.default_rng(seeds)
    a, b = random.normal(0.8, 0.1, seeds), random.normal(0.7, 0.2, seeds)
    expected = stats.ttest_rel(a, b).confidence_interval(confidence)
    found = paired_interval(a.tolist(), b.tolist(), confidence)
    assert found.mean == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_what_a_seed_does_to_both_cancels():
    seed = np.random.default_rng(0).normal(0, 10, 5)
    higher = seed + np.array([1.0, 1.1, 0.9, 1.0, 1.0])
    found = paired_interval(higher, seed)
    assert 0.8 < found.low < found.mean < found.high < 1.2
    back = paired_interval(seed, higher)
    assert back == pytest.approx((-found.mean, -found.high, -found.low))


def test_it_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        a, b = random.normal(0.3, 1, (2, 5))
        found = paired_interval(a, b - 0.3)
        hits += found.low < 0.6 - 0.3 < found.high  # E[a - (b - .3)] = .3 - .3 + .3
    assert 0.93 < hits / 1000 < 0.97  # one standard error is .007


def test_an_interval_reads_with_signs():
    assert str(Interval(1.25, -0.31, 2.7)) == "+1.2 [-0.3, +2.7]"
    assert Interval(0.0125, -0.003, 0.02).text(100.0, 2) == "+1.25 [-0.30, +2.00]"


@pytest.mark.parametrize(
    ("a", "b", "confidence", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], 0.95, "the same two or more seeds"),
        ([1.0], [2.0], 0.95, "the same two or more seeds"),
        ([1.0, float("nan")], [1.0, 2.0], 0.95, "finite"),
        ([1.0, 2.0], [1.0, 2.0], 1.0, r"confidence must lie in \(0, 1\)"),
    ],
)
def test_what_has_no_interval_is_refused(a, b, confidence, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(a, b, confidence)
