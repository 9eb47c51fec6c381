"""Readout of a model of visual cortex: windows in space, and what a prediction of spikes is worth."""

import math

import pytest
import torch
import torch.nn.functional as F
from tensors import randn, shake

from jepa_lab.polar.readout import GaussianReadout
from jepa_lab.polar.score import bits_per_spike, correlation, poisson_nll, score


def readout(levels=2, channels=3, units=4, seed=0):
    torch.manual_seed(seed)
    return shake(GaussianReadout(levels, channels, units).double())


def test_masks_are_the_gaussian_that_centre_and_covariance_say():
    model = readout()
    height, width = 5, 8
    mask = model.masks(1, height, width)
    covariance = model.covariance()[1]
    for unit in range(4):
        weights = torch.empty(height, width, dtype=torch.float64)
        inverse = torch.linalg.inv(covariance[unit])
        for row in range(height):
            for column in range(width):
                place = torch.tensor([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dtype=torch.float64)
                away = place - model.centre[1, unit]
                weights[row, column] = torch.exp(-away @ inverse @ away / 2)
        torch.testing.assert_close(mask[unit], weights / weights.sum())


def test_x_is_to_the_right_and_y_is_down():
    model = GaussianReadout(1, 1, 1, width=0.2)
    with torch.no_grad():
        model.centre[0, 0] = torch.tensor([0.5, -0.25])
    mask = model.masks(0, 16, 16)[0]
    row, column = divmod(int(mask.argmax()), 16)
    assert (row, column) in {(5, 11), (5, 12), (6, 11), (6, 12)}


def test_a_window_that_has_left_the_map_is_still_a_mean():
    model = GaussianReadout(1, 1, 1, width=0.01)
    with torch.no_grad():
        model.centre[0, 0] = 40.0
    mask = model.masks(0, 4, 4).detach()
    assert float(mask.sum()) == pytest.approx(1) and mask.isfinite().all()


def test_the_output_does_not_grow_with_the_map():
    model = readout()
    for size in (6, 24):
        pooled = model.pool(torch.full((2, 3, size, size), 1.5, dtype=torch.float64), 0)
        torch.testing.assert_close(pooled, torch.full((2, 3, 4), 1.5, dtype=torch.float64))


def test_pooling_commutes_with_time():
    """A trace of the maps, then pooled, is a trace of what was pooled: the model may do the cheap one."""
    model, maps = readout(), randn(2, 7, 3, 6, 6)
    kernel = torch.tril(0.8 ** (torch.arange(7)[:, None] - torch.arange(7)).clamp(min=0).double())
    late = model.pool(torch.einsum("ts,bsmhw->btmhw", kernel, maps), 0)
    early = torch.einsum("ts,bsmu->btmu", kernel, model.pool(maps, 0))
    torch.testing.assert_close(late, early)


def test_forward_is_the_formula():
    model, pooled = readout(), [randn(2, 5, 3, 4, seed=s) for s in (0, 1)]
    out = model(pooled)
    expected = torch.zeros(2, 5, 4, dtype=torch.float64)
    for unit in range(4):
        expected[..., unit] = model.bias[unit]
        for level in range(2):
            for channel in range(3):
                expected[..., unit] += model.weight[level, channel, unit] * pooled[level][:, :, channel, unit]
    torch.testing.assert_close(out, expected)


def test_gradient_reaches_every_parameter():
    model = readout()
    maps = [randn(2, 5, 3, 8, 8), randn(2, 5, 3, 4, 4, seed=1)]
    model([model.pool(m, level) for level, m in enumerate(maps)]).square().sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad != 0).all(), name


def test_a_window_finds_where_a_neuron_looks():
    """Windows alone, trained: the drive of a place to the upper right."""
    torch.manual_seed(0)
    maps = torch.randn(400, 1, 1, 12, 12)
    drive = maps[..., 2:5, 7:10].mean((-2, -1))
    model = GaussianReadout(1, 1, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        loss = F.mse_loss(model([model.pool(maps, 0)]), drive)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(
        model.centre[0, 0], torch.tensor([2 * 8.5 / 12 - 1, 2 * 3.5 / 12 - 1]), atol=0.06, rtol=0
    )


def test_start_at():
    model = GaussianReadout(1, 1, 3)
    rate = torch.tensor([0.01, 0.06, 3.0])
    model.start_at(rate)
    torch.testing.assert_close(F.softplus(model.bias), rate)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianReadout(0, 1, 1), "levels must be at least 1, got 0"),
        (lambda: GaussianReadout(1, 1, 1, width=0.0), "width must be positive"),
        (lambda: GaussianReadout(1, 1, 1).masks(1, 4, 4), r"level must lie in 0\.\.0, got 1"),
        (lambda: GaussianReadout(1, 1, 1).masks(0, 0, 4), "height and width"),
        (lambda: GaussianReadout(2, 3, 4)([randn(1, 2, 3, 4)]), r"2 levels of \[B, T, 3, 4\]"),
        (lambda: GaussianReadout(1, 1, 2).start_at(torch.tensor([0.1, 0.0])), "smallest of 0.0"),
    ],
)
def test_readout_bad_input(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


# Scores.


def drawn(frames=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rate = 0.05 * torch.exp(torch.randn(2, frames // 2, 3, generator=generator))
    return rate, torch.poisson(rate, generator=generator)


def test_poisson_nll_is_that_of_the_distribution():
    rate, counts = drawn()
    constant = torch.lgamma(counts + 1).mean()
    exact = -torch.distributions.Poisson(rate).log_prob(counts).mean()
    torch.testing.assert_close(poisson_nll(rate, counts) + constant, exact)


def test_bits_per_spike_is_the_gain_in_likelihood():
    rate, counts = drawn()
    flat, mean = counts.flatten(0, 1), counts.mean((0, 1))
    gain = torch.distributions.Poisson(rate.flatten(0, 1)).log_prob(flat).sum(0)
    gain -= torch.distributions.Poisson(mean.expand_as(flat)).log_prob(flat).sum(0)
    expected = gain / flat.sum(0) / math.log(2)
    torch.testing.assert_close(bits_per_spike(rate, counts), expected.double(), rtol=1e-3, atol=1e-4)
    # The mean of what is scored is worth exactly nothing, and any other constant less.
    torch.testing.assert_close(bits_per_spike(mean.expand_as(counts), counts), torch.zeros(3).double())
    assert (bits_per_spike(1.2 * mean.expand_as(counts), counts) < 0).all()


def test_the_true_rate_is_the_ceiling_in_the_mean():
    rate, counts = drawn(40000)
    worse = rate * torch.exp(0.3 * torch.randn(rate.shape, generator=torch.Generator().manual_seed(1)))
    found = score(worse, counts, rate)
    assert (found.bits < found.best).all() and (found.rate_correlation < 1).all() and (found.spike_share < 1.02).all()
    own = score(rate, counts, rate)
    torch.testing.assert_close(own.bits, own.best)
    torch.testing.assert_close(own.rate_correlation, torch.ones(3).double())
    torch.testing.assert_close(own.spike_share, torch.ones(3).double())


def test_only_scored_frames_count():
    rate, counts = drawn()
    scored = torch.zeros(counts.shape[:-1], dtype=torch.bool)
    scored[0, 100:900] = True
    wrong = torch.where(scored[..., None], rate, 50.0)
    for call in (poisson_nll, bits_per_spike, correlation):
        torch.testing.assert_close(call(wrong, counts, scored), call(rate[:1, 100:900], counts[:1, 100:900]))


def test_correlation_does_not_see_scale():
    a, b = randn(50, 2), randn(50, 2, seed=1)
    expected = torch.stack([torch.corrcoef(torch.stack([a[:, u], b[:, u]]))[0, 1] for u in range(2)])
    torch.testing.assert_close(correlation(3 * a + 7, b), expected)


def test_silent_and_constant_neurons_are_nan():
    rate, counts = drawn()
    counts[..., 0], rate[..., 1] = 0, 0.1
    assert bits_per_spike(rate, counts).isnan().tolist() == [True, False, False]
    assert correlation(rate, counts).isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("call", [poisson_nll, bits_per_spike])
def test_score_bad_input(call, unchecked):
    rate, counts = drawn(8)
    with pytest.raises(ValueError, match="counts must be 0 or more, got a smallest of -1"):
        call(rate, torch.full_like(counts, -1.0))
    with pytest.raises(ValueError, match="same shape"):
        call(rate, counts[:, :2])
    with pytest.raises(ValueError, match="scored must have the shape"):
        call(rate, counts, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="no frame is"):
        call(rate, counts, torch.zeros(counts.shape[:-1], dtype=torch.bool))
