"""Gaze: simulated with the statistics of recorded gaze, and recorded gaze rid of the tracker's noise."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_lab.data.gaze import BLINK, FIXATION, SACCADE, Gaze, gaze_statistics, read_gaze, runs, smooth_gaze
from jepa_lab.data.v1_gaze import GazeConfig, simulate_gaze

# Smallest and largest of the six recordings, with no fragment dropped.
RECORDED = {
    "fixation_ms": (197, 433),
    "saccade_deg": (1.5, 3.4),
    "saccade_ms": (17, 38),
    "peak_speed": (151, 271),
    "drift": (67, 169),
}
FOLDER = Path(os.environ.get("JEPA_LAB_DATA") or "missing") / "gaze-lookatpoint"
recordings = pytest.mark.skipif(not FOLDER.is_dir(), reason="the recordings are not in JEPA_LAB_DATA")


def write(folder, rows, fields=("x", "y", "status", "evt")):
    kinds = {"x": "f4", "y": "f4", "status": "?", "evt": "u1"}
    data = np.zeros(len(rows), dtype=[(name, kinds[name]) for name in fields])
    for i, row in enumerate(rows):
        data[i] = tuple(row[: len(fields)])
    (folder / "gaze-lookatpoint").mkdir()
    np.save(folder / "gaze-lookatpoint" / "a.npy", data)


@pytest.mark.parametrize("seed", [0, 1])
def test_simulated_gaze_has_the_medians_of_recordings(seed):
    found = gaze_statistics(simulate_gaze(120.0, seed=seed))
    for name, (low, high) in RECORDED.items():
        assert low <= getattr(found, name) <= high, (name, found)


def test_simulated_gaze_stays_in_its_region_and_is_continuous():
    config = GazeConfig(region=(3.0, 2.0))
    gaze = simulate_gaze(60.0, config)
    assert len(gaze.position) == 60 * 240 and gaze.rate == 240
    assert (gaze.position.abs() <= torch.tensor([3.0, 2.0]) + 1e-5).all()
    assert gaze.position.abs().amax(0).gt(torch.tensor([2.0, 1.3])).all()  # and covers it
    step = gaze.position.diff(dim=0).norm(dim=1)
    fixating = (gaze.event[1:] == FIXATION) & (gaze.event[:-1] == FIXATION)
    assert step[fixating].max() < 0.03 < step[gaze.event[1:] == SACCADE].max()


def test_main_sequence():
    """Durations and peak speeds of saccades grow with their size as recorded ones do."""
    gaze = simulate_gaze(60.0, GazeConfig(rate=1000.0, drift=0.0))
    position, saccades = gaze.position, runs(gaze.event == SACCADE)[:-1]
    size = (position[saccades[:, 1] - 1] - position[saccades[:, 0] - 1]).norm(dim=1)
    duration = saccades.diff(dim=1)[:, 0].float()
    assert (duration - 15.2 - 2.39 * size).abs().max() < 0.6
    speed = position.diff(dim=0).norm(dim=1) * 1000
    peak = torch.stack([speed[a - 1 : b - 1].max() for a, b in saccades.tolist()])
    torch.testing.assert_close(peak * duration / 1000 / size, torch.full_like(size, 1.875), rtol=0.02, atol=0)


def test_seed_decides():
    a, b, c = (simulate_gaze(2.0, seed=seed).position for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_drift_and_noise_are_measured():
    """A random walk of known diffusion, and white noise of known size on top."""
    g = torch.Generator().manual_seed(0)
    steps = torch.randn(40_000, 2, generator=g) * (2 * 100 / 3600 / 1000) ** 0.5
    walk = steps.double().cumsum(0).float() + 0.02 * torch.randn(40_000, 2, generator=g)
    event = torch.full((40_000,), FIXATION)
    event[20_000:20_020] = SACCADE
    found = gaze_statistics(Gaze(walk, event, 1000.0))
    assert found.drift == pytest.approx(100, rel=0.1) and found.noise == pytest.approx(0.02, rel=0.05)
    assert found.saccade_ms == 20 and found.fixation_ms == 19_980


def test_smoothing_removes_noise_and_keeps_saccades_sharp():
    clean = simulate_gaze(20.0, GazeConfig(rate=1000.0))
    noise = 0.02 * torch.randn(clean.position.shape, generator=torch.Generator().manual_seed(1))
    noisy = clean._replace(position=clean.position + noise)
    smooth, exact = smooth_gaze(noisy), clean.position[torch.arange(0, 20_000, 25)]
    assert smooth.rate == 240 and len(smooth.position) == 4800
    at = torch.arange(0, 4800, 6)  # every 25 ms both have a sample
    fixating = smooth.event[at] == FIXATION
    error = (smooth.position[at] - exact).norm(dim=1)
    assert error[fixating].square().mean().sqrt() < 0.5 * noise.norm(dim=1).square().mean().sqrt()
    assert error.max() < 0.12  # no saccade is rounded off

    def fixation_speed(gaze):
        inside = (gaze.event[1:] == FIXATION) & (gaze.event[:-1] == FIXATION)
        return (gaze.position.diff(dim=0)[inside].norm(dim=1) * gaze.rate).square().mean().sqrt()

    every_fourth = Gaze(noisy.position[::4], noisy.event[::4], 250.0)
    assert fixation_speed(smooth) < fixation_speed(every_fourth) / 3


def test_reads_recordings_with_y_down_and_blinks_as_nan(tmp_path):
    write(tmp_path, [(1.0, 2.0, True, 1), (1.5, 2.5, True, 2), (0.0, 0.0, True, 5), (9.0, 9.0, False, 1)])
    gaze = read_gaze(tmp_path, "a.npy")
    assert gaze.rate == 1000 and gaze.event.tolist() == [FIXATION, SACCADE, BLINK, BLINK]
    torch.testing.assert_close(gaze.position[:2], torch.tensor([[1.0, -2.0], [1.5, -2.5]]))
    assert gaze.position[2:].isnan().all()
    smooth = smooth_gaze(gaze, rate=1000.0)
    assert smooth.position.isnan().any(1).tolist() == [False, False, True, True]
    # Also between two samples: what lies next to a blink is not known.
    assert smooth_gaze(gaze, rate=2000.0).position.isnan().any(1).tolist() == [False] * 3 + [True] * 5


def test_bad_input(tmp_path, monkeypatch):
    monkeypatch.delenv("JEPA_LAB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set the environment variable JEPA_LAB_DATA"):
        read_gaze(None, "a.npy")
    with pytest.raises(FileNotFoundError, match=r"a.npy not found in .*r-zemblys"):
        read_gaze(tmp_path, "a.npy")
    write(tmp_path, [(1.0, 2.0, True, 1)], ("x", "y", "status"))
    with pytest.raises(ValueError, match="must have the fields x, y, status and evt"):
        read_gaze(tmp_path, "a.npy")
    gaze = simulate_gaze(0.05)
    with pytest.raises(ValueError, match="rate and sigma must be positive"):
        smooth_gaze(gaze, rate=0.0)
    with pytest.raises(ValueError, match="must hold a saccade and a fixation"):
        gaze_statistics(gaze)
    with pytest.raises(ValueError, match="seconds must hold at least one sample"):
        simulate_gaze(0.0)
    for settings, message in [
        ({"rate": 0.0}, "rate must be positive"),
        ({"drift": -1.0}, "drift must be 0 or more"),
        ({"amplitude_range": (2.0, 1.0)}, "amplitude_range must be"),
        ({"region": (0.1, 5.0)}, "region must leave room"),
    ]:
        with pytest.raises(ValueError, match=message):
            GazeConfig(**settings)


@recordings
@pytest.mark.slow
def test_recordings_have_the_stated_statistics():
    found = [gaze_statistics(read_gaze(None, f"lookAtPoint_EL_S{i}.npy")) for i in range(1, 7)]
    for name, (low, high) in RECORDED.items():
        values = [getattr(statistics, name) for statistics in found]
        assert min(values) == pytest.approx(low, rel=0.1) and max(values) == pytest.approx(high, rel=0.1), name
    assert all(0.01 < statistics.noise < 0.06 for statistics in found)
    smooth = gaze_statistics(smooth_gaze(read_gaze(None, "lookAtPoint_EL_S1.npy")))
    assert smooth.noise < 0.5 * found[0].noise
