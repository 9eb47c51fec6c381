"""When is a confidence worth believing? Calibration, and how well a score tells failures from successes.

Book: chapter 13.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Reliability(NamedTuple):
    """One row a bin that holds something: mean confidence, accuracy, and the number of questions."""

    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    count: Int[Tensor, " bins"]


@torch.no_grad()
def reliability(p: Float[Tensor, "n K"], label: Int[Tensor, " n"], bins: int = 15) -> Reliability:
    """How often is a choice right that is made with this confidence? Equally wide bins of the largest probability.

    Shapes: p [n, K], rows that sum to 1, label [n] in 0..K-1.
    Raises: ValueError for bins < 1 or no rows.
    Paper: Guo et al. 2017, section 2. Book: chapter 13.
    """
    if bins < 1 or len(p) == 0:
        raise ValueError(f"bins must be at least 1 and p must have rows, got bins={bins} and {len(p)} rows")
    confidence, choice = p.double().max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(place, minlength=bins)
    some = count > 0
    right = torch.bincount(place, (choice == label).double(), bins)
    total = torch.bincount(place, confidence, bins)
    return Reliability((total[some] / count[some]), (right[some] / count[some]), count[some])


def expected_calibration_error(p: Float[Tensor, "n K"], label: Int[Tensor, " n"], bins: int = 15) -> float:
    """Mean distance of confidence and accuracy, over the bins of `reliability`, weighted by their counts.

        ECE = sum_b count_b / n |accuracy_b - confidence_b|

    Raises: ValueError as `reliability`.
    Paper: Guo et al. 2017, equation 3. Book: chapter 13.
    """
    r = reliability(p, label, bins)
    return float((r.count * (r.accuracy - r.confidence).abs()).sum() / r.count.sum())


@torch.no_grad()
def auroc(score: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Probability that a positive has the higher score than a negative, ties counting half: 0.5 says nothing.

    Raises: ValueError unless there are both, or for scores that are not finite.
    Book: chapter 13.
    """
    if not score.isfinite().all():
        raise ValueError("score must be finite")
    n, ones = len(positive), int(positive.sum())
    if not 0 < ones < n:
        raise ValueError(f"positive must hold both kinds, got {ones} of {n}")
    _, value, count = torch.unique(score, return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count - 1) / 2).double()[value]  # tied scores share the mean of their places
    return float((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * (n - ones)))


@torch.no_grad()
def risk_coverage(doubt: Float[Tensor, " n"], failed: Bool[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """Answer the questions with the least doubt only: how many of the answered ones fail?

    Shapes: doubt [n], failed [n] -> coverage [n], the answered share in steps of 1/n, and risk [n], the share of
        failures among them; questions of equal doubt are answered in random order, on average.
    Raises: ValueError without questions or for doubts that are not finite.
    Book: chapter 13.
    """
    if len(doubt) == 0 or not doubt.isfinite().all():
        raise ValueError(f"doubt must be finite and not empty, got {len(doubt)} values")
    _, group, count = torch.unique(doubt, return_inverse=True, return_counts=True)
    share = torch.bincount(group, failed.double(), len(count)) / count
    expected = torch.repeat_interleave(share, count)
    answered = torch.arange(1, len(doubt) + 1, device=doubt.device, dtype=torch.float64)
    return answered / len(doubt), expected.cumsum(0) / answered


@torch.no_grad()
def quantiles_of(values: Float[Tensor, " n"]) -> Float[Tensor, "101"]:
    """The 0th to 100th percentile of a sample. Shapes: [n] -> [101]."""
    return torch.quantile(values, torch.linspace(0, 1, 101, device=values.device, dtype=values.dtype))


@torch.no_grad()
def percentile_of(x: Float[Tensor, " B"], quantiles: Float[Tensor, " Q"]) -> Float[Tensor, " B"]:
    """Share of a sample, in %, that lies below each x, from its equally spaced `quantiles`; straight lines between.

    Shapes: x [B], quantiles [Q], rising -> [B], 0 to 100.
    """
    upper = torch.searchsorted(quantiles, x.to(quantiles.dtype).contiguous()).clamp(1, len(quantiles) - 1)
    low, high = quantiles[upper - 1], quantiles[upper]
    within = (x - low) / (high - low).clamp_min(torch.finfo(quantiles.dtype).tiny)
    return (upper - 1 + within.clamp(0, 1)) * (100 / (len(quantiles) - 1))
