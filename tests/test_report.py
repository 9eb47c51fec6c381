"""Is the collapse report fooled by scale, offset, duplicates, few rows, outliers or NaN, and can it be read?"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jepa_lab
from jepa_lab import metrics
from jepa_lab.metrics import diagnose
from jepa_lab.verdicts import COMPLETE_SPREAD, OFFSET_RATIO, RANK_SHARE, SCALE_FACTOR, VERDICTS


class Draw:
    """Random tables of one seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def rotation(self, dim):
        return torch.linalg.qr(self.normal(dim, dim))[0]


def rms(z):
    return z.square().sum(1).mean().sqrt().item()


def with_offset(d, z, ratio):
    """Add a common vector so that |mean| / root mean square length of the result is `ratio`."""
    z = z - z.mean(0)
    direction = d.normal(1, z.shape[1])
    return z + direction / direction.norm() * rms(z) * ratio / (1 - ratio**2) ** 0.5


def cloud(d, rows=300, dim=48):
    return d.normal(rows, dim) @ d.rotation(dim)


def flat(d, rows=300, dim=48):
    return d.normal(rows, 2) @ d.normal(2, dim) + 1e-3 * d.normal(rows, dim)


def point(d, rows=300, dim=48):
    return d.normal(1, dim) + 1e-4 * d.normal(rows, dim)


def mostly_nan(d):
    z = cloud(d)
    z[:200] = math.nan
    return z


EXAMPLES = {
    "healthy": lambda d: (cloud(d), {}),
    "dimensional collapse": lambda d: (flat(d), {}),
    "complete collapse": lambda d: (point(d), {}),
    "constant offset": lambda d: (with_offset(d, cloud(d), 0.99), {}),
    "too small": lambda d: (cloud(d), {"reference_std": 50.0}),
    "too large": lambda d: (cloud(d), {"reference_std": 0.02}),
    "undecided": lambda d: (cloud(d, rows=5), {}),
    "invalid": lambda d: (mostly_nan(d), {}),
}


def test_there_is_an_example_of_every_verdict():
    assert set(EXAMPLES) == set(VERDICTS)


# --- what must not fool it -------------------------------------------------------------------------------------------


def test_a_point_with_noise_is_a_collapse_although_its_centred_rank_is_full():
    report = diagnose(1 + 1e-6 * Draw(0).normal(512, 64))
    assert report.verdict == "complete collapse" and not report.healthy
    assert report.effective_rank > 60 and report.rankme < 1.01 and report.normalized_std < 1e-5
    assert "one point" in report.reasons[0]


def test_each_threshold_is_where_it_says():
    d = Draw(1)
    z = d.normal(400, 32)
    for spread, verdict in [(0.8, "complete collapse"), (1.3, "constant offset")]:
        ratio = (1 - (spread * COMPLETE_SPREAD) ** 2) ** 0.5
        assert diagnose(with_offset(d, z, ratio)).verdict == verdict
    for ratio, verdict in [(OFFSET_RATIO - 0.02, "healthy"), (OFFSET_RATIO + 0.02, "constant offset")]:
        assert diagnose(with_offset(d, z, ratio)).verdict == verdict
    for share, verdict in [(0.5, "dimensional collapse"), (1.6, "healthy")]:
        rank = 1 + round(share * RANK_SHARE * 199)
        thin = torch.linalg.qr(d.normal(1000, rank))[0] @ d.rotation(200)[:rank]
        assert diagnose(thin).verdict == verdict, share
    for factor, verdict in [(0.8, "healthy"), (1.25, "too large")]:
        assert diagnose(z * factor * SCALE_FACTOR, reference_std=1.0).verdict == verdict
        below = {"too large": "too small"}.get(verdict, verdict)
        assert diagnose(z / (factor * SCALE_FACTOR), reference_std=1.0).verdict == below


def test_the_scale_is_reported_and_only_judged_against_a_reference():
    z = Draw(0).normal(300, 16)
    for scale in (1e-9, 1.0, 1e9):
        report = diagnose(z * scale)
        assert report.verdict == "healthy" and report.std == pytest.approx(scale, rel=0.05)
        assert any("give reference_std" in note for note in report.notes)
    assert not any("give reference_std" in note for note in diagnose(z, reference_std=1.0).notes)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    report = diagnose(Draw(0).normal(100, 8) * scale)
    assert report.verdict == "healthy"
    assert report.normalized_std == pytest.approx(1, abs=0.1) and report.std == pytest.approx(scale, rel=0.2)


def test_nan_rows_are_counted_dropped_and_said():
    z = Draw(0).normal(200, 16)
    z[:20, 3] = math.nan
    z[20, 0] = math.inf
    report, clean = diagnose(z), diagnose(z[21:])
    assert report.verdict == "healthy" and "21 of 200 rows hold NaN" in report.notes[0]
    assert report.effective_rank == pytest.approx(clean.effective_rank)
    assert diagnose(torch.full((50, 4), math.nan)).verdict == "invalid"


def test_few_rows_say_so():
    report = diagnose(Draw(0).normal(40, 256))
    assert report.verdict == "healthy" and any("the rank cannot exceed 39" in note for note in report.notes)
    assert diagnose(Draw(0).normal(5, 256)).verdict == "undecided"
    assert diagnose(Draw(0).normal(1, 256)).verdict == "undecided"
    few = diagnose(Draw(0).normal(4, 32).repeat(128, 1))  # 512 rows, 4 of them distinct
    assert few.verdict == "undecided" and "only 4 are distinct" in few.reasons[0]


def test_one_row_far_out_decides_nothing():
    for make, verdict in ((cloud, "healthy"), (flat, "dimensional collapse")):
        z = make(Draw(3))
        z[0] *= 1e9
        report = diagnose(z)
        assert report.verdict == verdict and any("lie far out" in note for note in report.notes)


def test_tight_clusters_are_named_with_the_other_reading():
    """A network trained on ten labels looks like this; no number tells it from a collapse, and the report says so."""
    d = Draw(0)
    z = d.normal(10, 256)[torch.arange(500) % 10] + 1e-2 * d.normal(500, 256)
    report = diagnose(z)
    assert report.verdict == "dimensional collapse" and "k clusters have a rank of k - 1" in report.reasons[-1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(EXAMPLES)), st.floats(-8, 8))
def test_the_verdict_does_not_change_under_rotation_reordering_and_rescaling(seed, verdict, exponent):
    d = Draw(seed)
    z, arguments = EXAMPLES[verdict](d)
    before = diagnose(z, **arguments).verdict
    changed = z[torch.randperm(len(z), generator=d.generator)] @ d.rotation(z.shape[1])
    if z.isfinite().all():
        assert diagnose(changed, **arguments).verdict == before
    if not arguments:
        assert diagnose(z * 10**exponent).verdict == before


# --- what it takes and gives -----------------------------------------------------------------------------------------


def test_it_takes_arrays_and_tensors_of_any_kind_and_leaves_them_alone():
    z = Draw(0).normal(200, 16)
    expected = diagnose(z).effective_rank
    weird = torch.empty(16, 400, dtype=torch.float64)[:, ::2].T  # not contiguous
    weird.copy_(z)
    weird.requires_grad_()
    state = torch.random.get_rng_state()
    for same in (z.numpy(), z.numpy()[::1], np.asfortranarray(z.numpy()), weird):
        assert diagnose(same).effective_rank == pytest.approx(expected, rel=1e-5)
    for rounded in (z.float(), z.half(), z.bfloat16(), z.numpy().astype(np.float16)):
        assert diagnose(rounded).effective_rank == pytest.approx(expected, rel=1e-2)
    assert torch.equal(torch.random.get_rng_state(), state)  # it draws nothing from the global generator
    assert torch.equal(weird.detach(), z) and jepa_lab.diagnose is diagnose
    with pytest.raises(AttributeError, match="no attribute 'diagnosis'"):
        jepa_lab.diagnosis  # noqa: B018


def test_views_add_alignment_and_lidar():
    d = Draw(0)
    z = d.normal(200, 16)
    report = diagnose(z, views=z + 0.1 * d.normal(200, 16))
    assert 0 < report.alignment < 0.1 and 10 < report.lidar <= 16
    apart = diagnose(z, views=d.normal(200, 16))
    assert apart.alignment > 1.5
    grouped = diagnose(z, sample=torch.arange(200) // 4)
    assert math.isfinite(grouped.lidar) and math.isnan(grouped.alignment)
    alone = diagnose(z, sample=torch.arange(200))
    assert math.isnan(alone.lidar) and any("only view of their sample" in note for note in alone.notes)


def test_more_rows_than_it_judges():
    report = diagnose(Draw(0).normal(6000, 8))
    assert report.verdict == "healthy" and any("of 6000 rows" in note for note in report.notes)


def test_bad_input():
    z = torch.randn(20, 4)
    for bad, error, message in [
        ([[1.0, 2.0]], TypeError, "must be a tensor or a numpy array"),
        (torch.ones(20, 4, dtype=torch.long), TypeError, "must hold floats"),
        (torch.randn(2, 20, 4), ValueError, r"pass z.mean\(1\) or z.flatten\(0, 1\)"),
        (torch.randn(20), ValueError, r"must be \[n, D\]"),
        (torch.zeros(0, 4), ValueError, "at least one row"),
    ]:
        with pytest.raises(error, match=message):
            metrics._float64_rows.__wrapped__("embeddings", bad)  # the annotations would catch a list first
    with pytest.raises(ValueError, match="views must have the shape"):
        diagnose(z, views=z[:5])
    with pytest.raises(ValueError, match="whole numbers, one a row"):
        diagnose(z, sample=torch.arange(5))
    with pytest.raises(ValueError, match="reference_std must be a positive number"):
        diagnose(z, reference_std=0.0)


@pytest.mark.parametrize("verdict", sorted(EXAMPLES))
def test_every_report_can_be_printed_shown_and_drawn(verdict):
    z, arguments = EXAMPLES[verdict](Draw(0))
    report = diagnose(z, **arguments)
    assert report.verdict == verdict and report.reasons
    text, html = str(report), report._repr_html_()
    assert text.startswith(verdict) and all(reason in text for reason in report.reasons)
    assert verdict in html and "<script" not in html and ' id="' not in html
    assert html == diagnose(z, **arguments)._repr_html_()
    if math.isfinite(report.std):
        figure = report.plot()
        assert len(figure.axes) >= 3 and all(ax.get_xlabel() for ax in figure.axes[:2])
        assert report.numbers()["effective_rank"] == report.effective_rank
