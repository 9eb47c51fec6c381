"""Polar dynamics and summaries: the parallel forms equal their loops, and the memory does what the formulas say."""

import math

import pytest
import torch

from jepa_lab.data.gaze import FIXATION, runs
from jepa_lab.data.v1_gaze import simulate_gaze
from jepa_lab.polar.dynamics import (
    DynamicsConfig,
    carried,
    displacement,
    memory_weights,
    phase_advance,
    relaxed_amplitude,
    rotate,
    rotated_memory,
    rotated_memory_loop,
)
from jepa_lab.polar.features import FeatureConfig, PolarFeatures
from jepa_lab.polar.summary import BOX, TemporalSummarizer, box, trace, trace_loop
from tests.polar_cases import centre, crops, grating, photos, places

CONFIG = DynamicsConfig()


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("frames", [1, 2, 24, 240])
def test_the_parallel_memory_is_the_recurrence(frames):
    re, im = random(2, frames, 3, 4), random(2, frames, 3, 4, seed=1)
    leak = CONFIG.leak(random(2, frames, seed=2).sigmoid())
    advance = random(2, frames, 3, seed=3)
    for fast, slow in zip(
        rotated_memory(re, im, leak, advance), rotated_memory_loop(re, im, leak, advance), strict=True
    ):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)


def test_gradients_of_the_parallel_memory_are_those_of_the_recurrence():
    inputs = [random(2, 9, 3, 2, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1)]
    leak = random(2, 9, seed=2, dtype=torch.float64).exp().mul(0.1).requires_grad_()
    advance = random(2, 9, 3, seed=3, dtype=torch.float64).requires_grad_()
    weight = random(2, 2, 9, 3, 2, seed=4, dtype=torch.float64)
    grads = [
        torch.autograd.grad((torch.stack(form(*inputs, leak, advance)) * weight).sum(), [*inputs, leak, advance])
        for form in (rotated_memory, rotated_memory_loop)
    ]
    for fast, slow in zip(*grads, strict=True):
        torch.testing.assert_close(fast, slow)
    assert all(g.abs().sum() > 0 for g in grads[0])


def test_memory_of_a_long_saccade_has_finite_gradients():
    """1000 frames of q = 1: above the diagonal the weights would be exp(166), infinite."""
    leak = CONFIG.leak(torch.ones(1, 1000)).requires_grad_()
    memory_weights(leak).square().sum().backward()
    assert leak.grad.isfinite().all()


def test_weights_sum_to_one_and_never_look_ahead():
    weights = memory_weights(CONFIG.leak(random(2, 30).sigmoid()))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 30))
    assert (weights.triu(1) == 0).all() and (weights >= 0).all()


def test_memory_decays_four_times_faster_in_a_saccade():
    """After the first frame nothing is seen any more; without movement what is left is exp(-lambda t)."""
    re = torch.zeros(1, 25, 1, 1)
    re[:, 0] = 1.0
    rates = []
    for q in (0.0, 1.0):
        z = rotated_memory(re, torch.zeros_like(re), CONFIG.leak(torch.full((1, 25), q)), torch.zeros(1, 25, 1))[0]
        rates.append(-math.log(float(z[0, -1])) * 240 / 24)
    assert rates == pytest.approx([10.0, 40.0], rel=1e-4)


def test_amplitude_returns_to_rest_four_times_faster_in_a_saccade_and_follows_in_a_fixation():
    rest = torch.tensor([0.5])
    seen = torch.full((1, 241, 1, 1), 2.0)
    saccade = torch.ones(1, 241)
    h = relaxed_amplitude(seen, saccade, CONFIG.leak(saccade), rest)[0, :, 0, 0]
    torch.testing.assert_close(h[24] - 0.5, torch.tensor(1.5 * math.exp(-40 * 0.1)), rtol=1e-4, atol=0)
    fixation = torch.zeros(1, 241)
    seen[:, 0] = 0.0
    h = relaxed_amplitude(seen, fixation, CONFIG.leak(fixation), rest)[0, :, 0, 0]
    torch.testing.assert_close(2 - h[24], torch.tensor(2 * math.exp(-10 * 0.1)), rtol=1e-4, atol=0)


def test_relaxed_amplitude_is_its_recurrence():
    a, q, rest = random(2, 12, 3, 2).abs(), random(2, 12, seed=1).sigmoid(), torch.tensor([0.1, 0.5, 1.0])
    leak = CONFIG.leak(q)
    h, frames = a[:, 0], [a[:, 0]]
    for t in range(1, 12):
        keep, gate = torch.exp(-leak[:, t, None, None]), q[:, t, None, None]
        h = keep * h + (1 - keep) * (rest[:, None] + (1 - gate) * (a[:, t] - rest[:, None]))
        frames.append(h)
    torch.testing.assert_close(relaxed_amplitude(a, q, leak, rest), torch.stack(frames, 1))


def test_memory_of_a_moving_grating_stays_the_grating():
    """The eye drifts over a grating: a memory that is rotated agrees with what is seen, one that is not washes out."""
    features = PolarFeatures().double()
    k = features.wave_vectors()[0].detach()
    pixels = torch.tensor([[0.5, 0.2]]).double().repeat(40, 1)
    pixels[0] = 0
    z = centre(features(grating(k[0], pixels.cumsum(0))[None])[0])[:, :, :1, ::8, ::8].flatten(3)
    leak = CONFIG.leak(torch.zeros(1, 40).double())
    advance = phase_advance(pixels[None], k[:1])
    kept = torch.complex(*rotated_memory(z.real, z.imag, leak, advance))
    assert (kept - z).abs().max() < 0.02 * z.abs().mean()
    still = torch.complex(*rotated_memory(z.real, z.imag, leak, torch.zeros_like(advance)))
    assert (still - z)[:, -1].abs().mean() > 0.5 * z.abs().mean()


def test_rotation_is_dropped_where_it_aliases():
    k = torch.tensor([[0.15, 0.0], [0.0, 0.15]])
    pixels = torch.tensor([[[1.0, 4.0], [3.4, -1.0]]])
    turn = phase_advance(pixels, k, gamma=1.0, rho=0.0)
    torch.testing.assert_close(turn[0], 2 * math.pi * 0.15 * torch.tensor([[1.0, 0.0], [0.0, -1.0]]))


def test_gamma_and_rho_act_on_their_own_pair():
    k = torch.tensor([[0.15, 0.0], [0.0, 0.15]])
    pixels = torch.ones(1, 1, 2)
    turn = phase_advance(pixels, k, torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 0.3]]]))[0, 0]
    torch.testing.assert_close(turn, torch.tensor([1.0, 2.0]) * 2 * math.pi * 0.15 + torch.tensor([0.0, 0.3]))


def test_a_blink_moves_nothing():
    gaze = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [torch.nan, torch.nan], [5.0, 1.0], [5.0, 2.0]]])
    moved, lost = displacement(gaze)
    torch.testing.assert_close(moved[0], torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    assert lost[0].tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("level", [0, 1])
def test_rotation_alone_forecasts_the_drift_of_a_fixation(level):
    """Six frames ahead, rotated responses have less than half the error energy of unrotated ones."""
    gaze, ahead = simulate_gaze(20.0, seed=3), 6
    starts = [start for start, stop in runs(gaze.event == FIXATION).tolist() if stop - start > ahead + 1][:24]
    at = places(len(starts))
    move = 16 * torch.stack([gaze.position[s + ahead] - gaze.position[s] for s in starts])
    features = PolarFeatures(FeatureConfig(pairs=8))
    k = features.wave_vectors()[level].detach()
    residual = torch.zeros(2)
    for photo in photos():
        movie = torch.stack([crops(photo, at), crops(photo, at + move)], 1)
        now, then = (z[:, None].flatten(3) for z in centre(features(movie)[level]).unbind(1))
        rotated = torch.complex(*carried(now.real, now.imag, move[:, None], k))
        residual += torch.stack([(then - z).abs().square().sum() for z in (now, rotated)])
    assert residual[0] > 2 * residual[1], residual  # measured 4.5 to 5 times


def test_rotate_is_a_complex_product():
    re, im, angle = random(5), random(5, seed=1), random(5, seed=2)
    expected = torch.complex(re, im) * torch.polar(torch.ones(5), angle)
    torch.testing.assert_close(torch.complex(*rotate(re, im, angle)), expected)


# ---------------------------------------------------------------------------------------------------- summaries


@pytest.mark.parametrize("frames", [1, 24, 240])
def test_the_parallel_trace_is_the_loop(frames):
    x = random(2, frames, 3, 4)
    for alpha in (0.74, 0.95):
        torch.testing.assert_close(trace(x, torch.tensor(alpha)), trace_loop(x, torch.tensor(alpha)), rtol=0, atol=1e-5)


def test_a_trace_starts_at_the_first_frame():
    torch.testing.assert_close(trace(torch.full((1, 24, 1), 3.0), torch.tensor(0.95)), torch.full((1, 24, 1), 3.0))


def test_box_is_the_mean_of_the_last_frames():
    x = random(1, 60, 2)
    for t in (0, 5, 40, 59):
        torch.testing.assert_close(box(x)[:, t], x[:, max(0, t - BOX + 1) : t + 1].mean(1))


@pytest.mark.parametrize(("kind", "channels"), [("temporal", 11), ("static", 4)])
def test_summaries_see_the_past_and_the_phase_and_not_the_future(kind, channels):
    summary = TemporalSummarizer(kind)
    parts = [random(2, 30, 4, 3, seed=s).requires_grad_() for s in range(4)]
    out = summary(*parts)
    assert out.shape == (2, 30, channels * 4, 3)
    grads = torch.autograd.grad(out[:, 15].square().sum(), parts)
    for grad in grads:
        assert (grad[:, 16:] == 0).all() and (grad[:, 15].abs() > 0).all()
    for grad in (grads[0], grads[2], grads[3]):
        assert (grad[:, 14].abs() > 0).all()


def test_alpha_is_learnt():
    summary = TemporalSummarizer()
    summary(*[random(2, 30, 4, 3, seed=s) for s in range(4)]).square().sum().backward()
    assert (summary.logit.grad.abs() > 0).all()
    torch.testing.assert_close(summary.logit.sigmoid().detach(), torch.tensor([0.74, 0.95]))


@pytest.mark.parametrize("kind", ["temporal", "static"])
def test_summaries_commute_with_pooling(kind):
    """Pool first, then do time: the same numbers as the other way round (the energy is pooled as it is)."""
    maps = [random(1, 12, 2, 20, seed=s, dtype=torch.float64) for s in range(4)]
    masks = random(20, 3, seed=9, dtype=torch.float64).softmax(0)
    summary = TemporalSummarizer(kind).double()
    torch.testing.assert_close(summary(*(m @ masks for m in maps)), summary(*maps) @ masks)


@pytest.mark.usefixtures("unchecked")
def test_bad_settings():
    with pytest.raises(ValueError, match=r"recurrence.lambda_sac must be a positive number, got 0.0"):
        DynamicsConfig(lambda_sac=0.0)
    with pytest.raises(ValueError, match="summary must be temporal or static, got 'mean'"):
        TemporalSummarizer("mean")
    with pytest.raises(ValueError, match=r"slow must lie in \(0, 1\), got 1.0"):
        TemporalSummarizer(slow=1.0)
