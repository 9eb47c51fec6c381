"""Polar features: the pyramid gives its pictures back, and a phase runs as the shift of the picture says."""

import math

import pytest
import torch

from jepa_lab.polar.features import (
    FeatureConfig,
    PolarFeatures,
    QuadratureBank,
    Response,
    laplacian_pyramid,
    reconstruct,
)
from tests.polar_cases import centre, crops, grating, photos, places

LEVELS = range(3)
EIGHT = FeatureConfig(pairs=8)


def along(k, degrees):
    """The shift by which a grating with wave vector k advances so many degrees."""
    return k / k.square().sum() * degrees / 360


@pytest.mark.parametrize("size", [(24, 24), (32, 33), (48, 51), (25, 64)])
def test_the_pyramid_gives_its_pictures_back(size):
    frames = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    bands, residual = laplacian_pyramid(frames, 3)
    assert (reconstruct(bands, residual) - frames).abs().max() < 1e-5
    assert [tuple(b.shape[1:]) for b in bands] == [tuple(math.ceil(n / 2**i) for n in size) for i in LEVELS]


def test_a_band_is_blind_to_a_constant_and_holds_its_octave():
    flat, residual = laplacian_pyramid(torch.full((1, 96, 96), 3.0), 3)
    assert max(band.abs().max() for band in flat) < 1e-5
    torch.testing.assert_close(residual, torch.full_like(residual, 3.0))
    for level in LEVELS:
        fine = grating(torch.tensor([0.15 / 2**level, 0.0]), torch.zeros(1, 2))
        energy = [band.square().mean() for band in laplacian_pyramid(fine, 3)[0]]
        assert max(LEVELS, key=lambda i: energy[i]) == level


@pytest.mark.parametrize("level", LEVELS)
def test_phase_and_amplitude_of_a_grating(level):
    """The phase is +2 pi k.x and advances by 2 pi k.shift; the amplitude stays, wherever the bars are."""
    features = PolarFeatures(EIGHT).double()
    for m, k in enumerate(features.wave_vectors()[level].detach()):
        shifts = torch.stack([torch.zeros(2), along(k, 60), along(k, 150)])
        z = centre(features(grating(k, shifts)[None])[level])[0, :, m]
        for frame, degrees in ((1, 60), (2, 150)):
            expected = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(math.radians(degrees)).double())
            error = torch.angle(z[frame] / z[0] / expected).abs().max()
            assert error < 0.03, (level, m, degrees, error)  # measured .004 at the first two levels, .007 at the third
        amplitude = z.abs()
        assert amplitude.std() / amplitude.mean() < 0.01
        x = torch.angle(z[0, 0, 1:] / z[0, 0, :-1]).mean() / (2 * math.pi)  # one pixel of this level to the right
        assert float(x) == pytest.approx(float(k[0]) * 2**level, abs=1e-3)


def test_gain_is_one_at_the_wave_vector_and_zero_at_a_constant():
    bank = QuadratureBank(EIGHT).double()
    k = bank.wave_vectors().detach()
    phase = 2 * math.pi * torch.einsum("yxc,mc->myx", bank.grid, k)
    even, minus = bank.kernels()[:, 0].detach().split(8)
    odd = -minus
    torch.testing.assert_close((even * phase.cos()).sum((1, 2)), torch.ones(8).double())
    torch.testing.assert_close((odd * phase.sin()).sum((1, 2)), torch.ones(8).double())
    assert even.sum((1, 2)).abs().max() < 1e-9 and odd.sum((1, 2)).abs().max() < 1e-9
    pure = torch.polar(torch.ones_like(phase), phase)
    # The pair is blind to the grating that runs the other way: |even - i odd| at -k is a few per cent.
    assert ((torch.complex(even, -odd) * pure.conj()).sum((1, 2)).abs() < 0.05).all()


@pytest.mark.parametrize("shift", [0.25, 0.5, 1.0])
def test_phase_of_natural_crops_follows_the_shift(shift):
    features, k = PolarFeatures(EIGHT), PolarFeatures(EIGHT).wave_vectors().detach()
    at = places(24)
    angle = torch.rand(24, generator=torch.Generator().manual_seed(1)) * 2 * math.pi
    move = shift * torch.stack([angle.cos(), angle.sin()], dim=1)
    movie = torch.cat([torch.stack([crops(photo, at), crops(photo, at + move)], 1) for photo in photos()])
    for level, response in enumerate(features(movie)):
        before, after = centre(response).unbind(1)
        advance = (2 * math.pi * move.repeat(2, 1) @ k[level].T)[:, :, None, None]
        weight = (before * after).abs()
        error = torch.angle(after / before * torch.polar(torch.ones_like(advance), -advance))
        rms = (weight * error.square()).sum().sqrt() / (weight * advance.square()).sum().sqrt()
        turned = torch.angle(after * before.conj())
        gamma = (weight * advance * turned).sum() / (weight * advance.square()).sum()
        assert rms < 0.6, (level, rms)  # measured .35 to .41: the relative bandwidth of the filters
        assert abs(gamma - 1) < 0.12, (level, gamma)  # measured .95 to 1.01


def test_learnt_filters_keep_their_wave_vector():
    """After any change of the parameters the phase still runs with `wave_vectors`."""
    features = PolarFeatures(EIGHT).double()
    with torch.no_grad():
        for p in features.parameters():
            p += 0.4 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    k = features.wave_vectors()[0].detach()
    assert (k - PolarFeatures(EIGHT).wave_vectors()[0]).norm(dim=1).max() > 0.02
    for m in range(8):
        z = centre(features(grating(k[m], torch.stack([torch.zeros(2), along(k[m], 60)]))[None])[0])[0, :, m]
        assert (torch.angle(z[1] / z[0]) - math.pi / 3).abs().max() < 0.1


def test_every_parameter_learns():
    features = PolarFeatures()
    responses = features(torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(0)))
    sum(r.amplitude.square().sum() for r in responses).backward()
    for name, p in features.named_parameters():
        assert (p.grad.abs() > 0).all(), name


def test_frames_do_not_mix():
    features = PolarFeatures()
    movie = torch.randn(2, 5, 24, 24, generator=torch.Generator().manual_seed(0))
    whole = features(movie)
    one = features(movie[1:, 3:4])
    for a, b in zip(whole, one, strict=True):
        assert a.re.shape[:3] == (2, 5, 4)
        torch.testing.assert_close(a.re[1:, 3:4], b.re)
        torch.testing.assert_close(a.im[1:, 3:4], b.im)


def test_noise_filters_have_no_wave_vector():
    torch.manual_seed(0)
    features = PolarFeatures(FeatureConfig(filters="noise"))
    assert len(features(torch.randn(1, 2, 24, 24))) == 3
    assert features.bank.weight.requires_grad
    with pytest.raises(ValueError, match="no known wave vector"):
        features.wave_vectors()


def test_temporal_energy_is_that_of_the_change_over_two_frames():
    response = PolarFeatures()(torch.randn(1, 9, 24, 24, generator=torch.Generator().manual_seed(0)))[0]
    w = torch.complex(response.re, response.im)
    torch.testing.assert_close(response.energy, (w[:, 2:] - w[:, :-2]).abs())
    torch.testing.assert_close(response.amplitude, w.abs())
    maps = torch.randn(1, 4, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Response(x).amplitude, maps)
    assert torch.autograd.gradcheck(lambda x: Response(x).energy, maps)


def test_a_blank_frame_has_finite_gradients():
    features = PolarFeatures()
    sum(w.amplitude.sum() + w.energy.sum() for w in features(torch.zeros(1, 4, 24, 24))).backward()
    assert all(p.grad.isfinite().all() for p in features.parameters())


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    for settings, message in [
        ({"levels": 0}, "features.levels must be at least 1"),
        ({"size": 8}, "features.size must be odd"),
        ({"frequency": 0.3}, r"features.frequency must lie in \(0, 0.25\)"),
        ({"filters": "dog"}, "gabor or noise"),
    ]:
        with pytest.raises(ValueError, match=message):
            FeatureConfig(**settings)
    with pytest.raises(TypeError, match="frames must be float"):
        laplacian_pyramid(torch.zeros(1, 24, 24, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="too small for 4 levels"):
        laplacian_pyramid(torch.zeros(1, 24, 24), 4)
