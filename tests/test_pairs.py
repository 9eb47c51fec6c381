"""Two captures share what `c` says, and one capture alone does not know `c`."""

import math

import pytest
import torch

from jepa_lab.data.pairs import captures, moving_dot, smooth_background


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correlation(a, b):
    return (a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()


def test_background_has_variance_one_everywhere_and_the_promised_smoothness():
    x = smooth_background(20000, 8, 10, 1.5, generator())[:, 0]
    assert x.shape == (20000, 8, 10)
    # in the corners as in the middle: zero padding would fade them
    torch.testing.assert_close(x.var(0), torch.ones(8, 10), atol=0.05, rtol=0)
    for d in (1, 2, 4):
        expected = torch.tensor(math.exp(-(d**2) / (4 * 1.5**2)))
        torch.testing.assert_close(correlation(x[:, :, :-d], x[:, :, d:]), expected, atol=0.03, rtol=0)
        torch.testing.assert_close(correlation(x[:, :-d], x[:, d:]), expected, atol=0.03, rtol=0)


def test_without_blur_it_is_white():
    x = smooth_background(5000, 4, 4, 0.0, generator()).flatten(1)
    torch.testing.assert_close(x.T @ x / 5000, torch.eye(16), atol=0.07, rtol=0)


@pytest.mark.parametrize("c", [0.0, 0.3, 0.9, 1.0])
def test_the_share_is_the_correlation(c):
    image = torch.full((4000, 1, 6, 6), 0.7)
    x, y = captures(image, c, 0.5, 1.0, generator())
    torch.testing.assert_close(correlation(x - 0.7, y - 0.7), torch.tensor(c), atol=0.03, rtol=0)
    # one capture alone: the same mean and variance for every c
    for one in (x, y):
        torch.testing.assert_close(one.mean(), torch.tensor(0.7), atol=0.02, rtol=0)
        torch.testing.assert_close(one.std(), torch.tensor(0.5), atol=0.02, rtol=0)


def test_static_captures_are_equal_and_quiet_ones_are_the_image():
    image = torch.rand(3, 1, 5, 5, generator=generator())
    x, y = captures(image, 1.0, 0.5, 1.0, generator())
    assert torch.equal(x, y)
    assert torch.equal(captures(image, 0.3, 0.0, 1.0, generator())[0], image)


def test_one_seed_gives_the_same_backgrounds_at_every_share():
    zero = torch.zeros(2, 1, 5, 5)
    static = captures(zero, 1.0, 1.0, 1.0, generator())[0]
    fresh = captures(zero, 0.0, 1.0, 1.0, generator())[0]
    half = captures(zero, 0.5, 1.0, 1.0, generator())[0]
    torch.testing.assert_close(half, math.sqrt(0.5) * (static + fresh))


@pytest.mark.parametrize("c", [0.0, 0.4, 1.0])
def test_noise_behind_the_dot(c):
    quiet = moving_dot(800, c, 3, 8, noise=0.0, generator=generator())
    loud = moving_dot(800, c, 3, 8, noise=0.5, generator=generator())
    assert torch.equal(quiet["position"], loud["position"])
    noise = loud["frames"] - quiet["frames"]
    torch.testing.assert_close(noise.std(), torch.tensor(0.5), atol=0.01, rtol=0)
    for t in (1, 2):
        torch.testing.assert_close(correlation(noise[:, 0], noise[:, t]), torch.tensor(c), atol=0.02, rtol=0)


def test_the_dot_is_where_it_says_and_jumps_as_it_says():
    movie = moving_dot(500, 0.0, 4, 12, noise=0.0, jump=2.0, generator=generator())
    frames, position = movie["frames"], movie["position"]
    assert frames.shape == (500, 4, 12, 12) and position.shape == (500, 4, 2) and movie["action"].shape == (500, 3, 2)
    brightest = frames.flatten(2).argmax(-1)
    found = torch.stack([brightest // 12, brightest % 12], dim=-1)
    assert (found - position * 11).abs().max() <= 0.51
    torch.testing.assert_close(position[:, :-1] * 11 + movie["action"] * 2, position[:, 1:] * 11)
    assert movie["action"].abs().max() <= 1 and position.min() >= 0 and position.max() <= 1


def test_seeds():
    a, b, other = (moving_dot(2, 0.5, generator=generator(s))["frames"] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, other)


def test_what_is_refused():
    image = torch.zeros(1, 1, 4, 4)
    for c in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"c, the persistent share .* got"):
            captures(image, c)
        with pytest.raises(ValueError, match=r"c, the persistent share .* got"):
            moving_dot(1, c)
    with pytest.raises(ValueError, match="amplitude"):
        captures(image, 0.5, amplitude=-1.0)
    with pytest.raises(ValueError, match="blur"):
        smooth_background(1, 4, 4, -1.0)
    with pytest.raises(ValueError, match="frames"):
        moving_dot(1, 0.5, frames=1)
    with pytest.raises(ValueError, match="jump"):
        moving_dot(1, 0.5, jump=0.0)
