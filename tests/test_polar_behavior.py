"""Behaviour: what the model takes from the gaze, at the start and by gradient."""

import pytest
import torch

from jepa_lab.data.v1_gaze import simulate_gaze
from jepa_lab.polar.behavior import BehaviorConfig, BehaviorEncoder, blinks, kinematics, last_seen

DT = 1 / 240


def encoder(**settings):
    torch.manual_seed(0)
    return BehaviorEncoder(BehaviorConfig(**settings), levels=3, pairs=4, units=5)


def gaze(frames=240, seed=0):
    return simulate_gaze(frames / 240, seed=seed).position[None]


def saccade():
    """Rest, 12 frames at 100 deg/s to the right, rest."""
    x = torch.cat([torch.zeros(20), torch.arange(1, 13) * 100 * DT, torch.full((20,), 1200 * DT)])
    return torch.stack([x, torch.zeros(52)], 1)[None]


def test_kinematics_of_a_saccade():
    eye = kinematics(saccade(), DT)
    torch.testing.assert_close(eye.velocity[0, 25], torch.tensor([100.0, 0.0]))
    assert float(eye.speed[0, 25]) == pytest.approx(100, rel=1e-3) and float(eye.speed[0, 10]) < 1e-2
    torch.testing.assert_close(eye.acceleration[0, 20], torch.tensor([100.0 / DT, 0.0]), rtol=1e-4, atol=1.0)
    torch.testing.assert_close(eye.acceleration[0, 32], torch.tensor([-100.0 / DT, 0.0]), rtol=1e-4, atol=1.0)


def test_a_new_model_gates_saccades_and_changes_nothing_else():
    out = encoder()(saccade())
    assert (out.q[0, 20:32] > 0.99).all() and (out.q[0, :20] < 0.01).all()
    assert (out.gamma == 1).all() and (out.rho == 0).all() and (out.gain == 1).all()
    assert out.gamma.shape == out.rho.shape == (1, 52, 3, 4) and out.gain.shape == (1, 52, 5)
    slow = saccade() * 0.25  # 25 deg/s is where the gate is half open
    torch.testing.assert_close(encoder()(slow).q[0, 25], torch.tensor(0.5), rtol=0, atol=1e-3)


def test_each_head_learns_and_feels_the_gaze():
    model = encoder()
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    out = model(gaze())
    for name in ("gamma", "rho", "gain"):
        assert getattr(out, name).std(1).min() > 1e-3, name
    assert (out.rho.abs() < 0.1).all() and (out.gain.log().abs() < 1.5).all()
    for name in ("q", "gamma", "rho", "gain"):
        model.zero_grad()
        getattr(model(gaze()), name).square().sum().backward()
        assert model.heads[name].weight.grad.abs().sum() > 0, name
        assert model.frequency.grad.abs().sum() > 0, name
        assert all(p.grad.abs().sum() > 0 for p in model.code.parameters()), name


def test_behaviour_never_looks_ahead():
    model = encoder()
    torch.nn.init.normal_(model.heads["gain"].weight)
    whole = gaze()
    changed = whole.clone()
    changed[:, 100:] += 3.0
    a, b = model(whole), model(changed)
    torch.testing.assert_close(a.gain[:, :100], b.gain[:, :100])
    assert not torch.isclose(a.gain[:, 100:], b.gain[:, 100:]).all()


def test_a_saccade_is_remembered_and_position_is_felt():
    model = encoder()
    torch.nn.init.normal_(model.heads["gain"].weight)
    out = model(saccade())
    before, after = out.gain[0, 10], out.gain[0, 45]  # 50 ms after its end, at rest
    assert (before.log() - after.log()).abs().max() > 0.05
    left, right = (model(torch.full((1, 30, 2), x)).gain[0, -1] for x in (-8.0, 8.0))
    assert (left.log() - right.log()).abs().max() > 0.05


def test_features_are_of_size_one():
    model = encoder()
    found = model.features(kinematics(gaze(2400), DT))
    assert found.abs().max() < 5 and found.isfinite().all()


def test_a_blink_opens_the_gate_and_leaves_no_nan():
    model = encoder()
    torch.nn.init.normal_(model.heads["gain"].weight)
    seen = gaze()
    blinked = seen.clone()
    blinked[:, 50:60] = torch.nan
    out = model(blinked)
    for name, value in out._asdict().items():
        assert value.isfinite().all(), name
    assert (out.q[0, 50:61] == 1).all() and (out.moved[0, 50:61] == 0).all()
    assert out.lost[0].nonzero().flatten().tolist() == list(range(50, 61))
    assert blinks(blinked)[0].sum() == 10
    eye = kinematics(blinked, DT)
    assert (eye.acceleration[0, 50:62] == 0).all()
    torch.testing.assert_close(last_seen(blinked)[0, 50:60], seen[0, 49].expand(10, 2))
    out.gain.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert (last_seen(torch.full((1, 4, 2), torch.nan)) == 0).all()


@pytest.mark.usefixtures("unchecked")
def test_bad_settings():
    with pytest.raises(ValueError, match=r"behavior.dim must be at least 1"):
        BehaviorConfig(dim=0)
    with pytest.raises(ValueError, match=r"behavior.gain must be 0 or more, got -1"):
        BehaviorConfig(gain=-1.0)
