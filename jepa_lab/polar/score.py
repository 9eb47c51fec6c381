"""How well is a neuron predicted? Likelihood of its spikes in bits, and likeness to the rate it really had.

Book: chapter 15.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


class Scores(NamedTuple):
    """What a prediction is worth, neuron by neuron; NaN for one without a spike or with a constant rate.

    `bits` and `best` are bits a spike over the mean rate, of the prediction and of the true rate, which no prediction
    can be expected to beat. `rate_correlation` is that with the true rate, whose ceiling is 1; `spike_share` is the
    correlation with the spikes as a share of the true rate's own.

    Shapes: each [U].
    Book: chapter 15.
    """

    bits: Float[Tensor, " U"]
    best: Float[Tensor, " U"]
    rate_correlation: Float[Tensor, " U"]
    spike_share: Float[Tensor, " U"]


def poisson_nll(
    rate: Float[Tensor, "*B T U"], counts: Float[Tensor, "*B T U"], scored: Bool[Tensor, "*B T"] | None = None
) -> Float[Tensor, ""]:
    """Negative log-likelihood of spike counts, a neuron and frame, without the term that no model can change.

        loss = mean over scored frames and neurons of  rate - counts log rate

    Shapes: rate, counts [..., T, U], scored [..., T] -> scalar. Rates in expected counts a frame.
    Raises: ValueError for other shapes, negative counts, or if nothing is scored.
    Book: chapter 15.
    """
    rate, counts = _scored(rate, counts, scored)
    return F.poisson_nll_loss(rate, counts, log_input=False)


def bits_per_spike(
    rate: Float[Tensor, "*B T U"], counts: Float[Tensor, "*B T U"], scored: Bool[Tensor, "*B T"] | None = None
) -> Float[Tensor, " U"]:
    """Log-likelihood over that of a constant rate, in bits a spike.

        bits_u = sum_t [n_tu log(r_tu / m_u) - r_tu + m_u] / (ln 2 sum_t n_tu),   m_u = mean_t n_tu

    m is the mean of the counts that are scored, not of a training set: the strictest constant there is.

    Shapes: rate, counts [..., T, U], scored [..., T] -> [U], NaN for a neuron without a spike.
    Raises: ValueError for other shapes, negative counts, or if nothing is scored.
    Paper: Pillow et al. 2008, Nature 454 (their bits a spike are over a homogeneous Poisson process too).
        Book: chapter 15.
    """
    rate, counts = (x.double() for x in _scored(rate, counts, scored))
    mean = counts.mean(0).expand_as(counts)
    gain = _log_likelihood(rate, counts) - _log_likelihood(mean, counts)
    spikes = counts.sum(0)
    return torch.where(spikes > 0, gain / (math.log(2) * spikes), torch.nan)


def correlation(
    a: Float[Tensor, "*B T U"], b: Float[Tensor, "*B T U"], scored: Bool[Tensor, "*B T"] | None = None
) -> Float[Tensor, " U"]:
    """Pearson's correlation over the frames, neuron by neuron.

    Shapes: a, b [..., T, U], scored [..., T] -> [U], NaN where either is constant.
    Raises: ValueError for other shapes, or if nothing is scored.
    Book: chapter 15.
    """
    a, b = (x.double() for x in _select(a, b, scored))
    a, b = a - a.mean(0), b - b.mean(0)
    scale = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return torch.where(scale > 0, (a * b).sum(0) / scale, torch.nan)


def score(
    predicted: Float[Tensor, "*B T U"],
    counts: Float[Tensor, "*B T U"],
    true: Float[Tensor, "*B T U"],
    scored: Bool[Tensor, "*B T"] | None = None,
) -> Scores:
    """A prediction against the spikes and against the rate that drew them.

    Shapes: predicted, counts, true [..., T, U], scored [..., T] -> `Scores`, each [U].
    Raises: ValueError for other shapes, negative counts, or if nothing is scored.
    Book: chapter 15.
    """
    return Scores(
        bits_per_spike(predicted, counts, scored),
        bits_per_spike(true, counts, scored),
        correlation(predicted, true, scored),
        correlation(predicted, counts, scored) / correlation(true, counts, scored),
    )


def _log_likelihood(rate: Tensor, counts: Tensor) -> Tensor:
    return (torch.xlogy(counts, rate) - rate).sum(0)


def _scored(rate: Tensor, counts: Tensor, scored: Tensor | None) -> tuple[Tensor, Tensor]:
    if (counts < 0).any():
        raise ValueError(f"counts must be 0 or more, got a smallest of {float(counts.min())}")
    return _select(rate, counts, scored)


def _select(a: Tensor, b: Tensor, scored: Tensor | None) -> tuple[Tensor, Tensor]:
    """The frames that count, [N, U] each."""
    if a.shape != b.shape:
        raise ValueError(f"both must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if scored is None:
        scored = torch.ones(a.shape[:-1], dtype=torch.bool, device=a.device)
    if scored.shape != a.shape[:-1]:
        raise ValueError(f"scored must have the shape {tuple(a.shape[:-1])}, got {tuple(scored.shape)}")
    if not scored.any():
        raise ValueError("scored: no frame is; make the windows longer than the warm-up, or leave the blinks out")
    return a[scored], b[scored]
