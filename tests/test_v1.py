"""Simulated V1: what the eye does, what it sees, what the cells answer, and how a recording is cut into windows."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_lab.data import v1_movie
from jepa_lab.data.gaze import BLINK, FIXATION, SACCADE, Gaze, gaze_statistics, read_gaze, runs, smooth_gaze
from jepa_lab.data.v1 import V1Config, cells_of, simulate_v1
from jepa_lab.data.v1_cells import (
    draw_cells,
    drive,
    position_gain,
    receptive_fields,
    saccadic_gain,
    saturate,
    temporal_kernel,
)
from jepa_lab.data.v1_gaze import simulate_gaze
from jepa_lab.data.v1_movie import gaze_region, pictures, retinal_movie
from jepa_lab.data.v1_windows import MovieWindows
from jepa_lab.polar.score import bits_per_spike

FOLDER = Path(os.environ.get("JEPA_LAB_DATA") or "missing") / "gaze-lookatpoint"
recordings = pytest.mark.skipif(not FOLDER.is_dir(), reason="the recordings are not in JEPA_LAB_DATA")
SMALL = V1Config(size=16, simple=2, complex=2)


@pytest.fixture(scope="module")
def recording():
    return simulate_v1(20.0, "train", SMALL)


# What is seen.


def test_parts_share_no_pixel_and_are_equally_large():
    quarters = [q for part in v1_movie.PARTS for q in v1_movie._QUARTERS[part]]
    assert len(set(quarters)) == len(quarters) == 8
    shapes = {tuple(pictures(part).shape[1:]) for part in v1_movie.PARTS}
    assert shapes == {(213, 320)}


def test_a_part_is_normalised_by_itself(monkeypatch):
    """Nothing of the test pictures changes when all others are painted over."""
    before = pictures("test").clone()
    photos = [photo.copy() for photo in v1_movie.load_sample_images().images]
    kept = {(p, r, c) for p, r, c in v1_movie._QUARTERS["test"]}
    for p, photo in enumerate(photos):
        for r in (0, 1):
            for c in (0, 1):
                if (p, r, c) not in kept:
                    photo[r * 213 : (r + 1) * 213, c * 320 : (c + 1) * 320] = 255
    monkeypatch.setattr(v1_movie, "load_sample_images", lambda: type("Photos", (), {"images": photos}))
    torch.testing.assert_close(pictures.__wrapped__("test"), before)


def test_contrast_is_even():
    """Tile by tile, but for the quarter of clear sky; divided by one number for all, half of a photo is far below."""
    for part in v1_movie.PARTS:
        found = pictures(part)
        spread = found.unfold(1, 71, 71).unfold(2, 80, 80).std((-2, -1)).flatten(1)
        assert found.abs().max() <= 4 and spread.max() < 1.8
        middle = spread.median(1).values
        assert (middle > 0.6).sum() == len(middle) - (part == "train") and (middle < 1.2).all()


def test_the_crop_is_where_the_gaze_is():
    """x to the right, y down, whole pixels exactly; beyond the edge a mirror."""
    picture = torch.randn(1, 21, 31, generator=torch.Generator().manual_seed(0))
    gaze = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, -2.0], [14.0, 0.0]]) / v1_movie.PIXELS_PER_DEGREE
    movie = retinal_movie(picture, torch.zeros(4, dtype=torch.long), gaze, 5)
    near = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(movie[0], picture[0, 8:13, 13:18], **near)
    torch.testing.assert_close(movie[1], picture[0, 8:13, 16:21], **near)
    torch.testing.assert_close(movie[2], picture[0, 6:11, 13:18], **near)
    torch.testing.assert_close(movie[3], picture[0, 8:13, [27, 28, 29, 30, 29]], **near)


def test_between_pixels_the_movie_is_the_shifted_picture():
    x = torch.arange(64.0)
    picture = torch.sin(2 * math.pi * 0.12 * x).expand(1, 48, 64)
    shift = torch.linspace(-1, 1, 9)
    gaze = torch.stack([shift / v1_movie.PIXELS_PER_DEGREE, torch.zeros(9)], dim=1)
    movie = retinal_movie(picture, torch.zeros(9, dtype=torch.long), gaze, 8)
    at = 31.5 + shift[:, None] + torch.arange(8.0) - 3.5
    expected = torch.sin(2 * math.pi * 0.12 * at)[:, None].expand(9, 8, 8)
    assert (movie - expected).abs().max() < 0.04  # bilinear: .07


def test_scenes_change_and_shut_eyes_see_grey():
    scenes = torch.stack([torch.full((40, 40), 1.0), torch.full((40, 40), 2.0)])
    gaze = torch.zeros(4, 2)
    gaze[2] = torch.nan
    movie = retinal_movie(scenes, torch.tensor([0, 1, 1, 0]), gaze, 8)
    torch.testing.assert_close(movie.mean((1, 2)), torch.tensor([1.0, 2.0, 0.0, 1.0]))


def test_gaze_keeps_its_statistics_and_ranges_over_the_same_degrees_in_all_parts():
    found = {part: simulate_v1(60.0, part, V1Config(size=8, simple=1, complex=0)).gaze for part in v1_movie.PARTS}
    assert not torch.equal(found["train"], found["test"])
    for gaze in found.values():
        assert (gaze.abs() <= torch.tensor(gaze_region(8)) + 1e-5).all()
        assert (gaze.abs().amax(0) > 0.85 * torch.tensor(gaze_region(8))).all()
        speed = gaze.diff(dim=0).norm(dim=1) * 240
        event = torch.where(speed > 15, SACCADE, FIXATION)
        statistics = gaze_statistics(Gaze(gaze, torch.cat([event[:1], event]), 240.0))
        # Micro-saccades too slow for the threshold count as fixation, hence a wider range than the labels have.
        assert 190 <= statistics.fixation_ms <= 433 and 1.5 <= statistics.saccade_deg <= 3.4
        assert 67 <= statistics.drift <= 169


# What the cells answer.


def grating(cells, unit, frames, turns=0.0, speed=4.0, size=24):
    """A drifting grating of a cell's own wave vector, `turns` ahead, `speed` in cycles a second."""
    offset = torch.arange(size) - (size - 1) / 2
    place = torch.stack(torch.meshgrid(offset, offset, indexing="xy"), dim=-1)
    direction = torch.stack([cells.orientation[unit].cos(), cells.orientation[unit].sin()])
    space = cells.frequency[unit] * (place @ direction)
    time = speed * torch.arange(frames) / 240
    return torch.cos(2 * math.pi * (space + time[:, None, None] + turns))


def test_receptive_fields_are_a_quadrature_pair():
    cells = draw_cells(3, 3, 24)
    fields = receptive_fields(cells, 24)
    assert fields.sum((-2, -1)).abs().max() < 1e-4 * fields.abs().sum((-2, -1)).min()
    for unit in range(6):
        for turns in (0.0, 0.1, 0.4):
            even, odd = (fields[:, unit] * grating(cells, unit, 1, turns)[0]).sum((-2, -1)).tolist()
            where = (
                2
                * math.pi
                * (
                    cells.frequency[unit]
                    * (
                        cells.centre[unit, 0] * cells.orientation[unit].cos()
                        + cells.centre[unit, 1] * cells.orientation[unit].sin()
                    )
                    + turns
                )
            )
            assert even**2 + odd**2 == pytest.approx(1.0, abs=1e-4)
            angle = float(where) + float(cells.phase[unit])
            assert (even, odd) == pytest.approx((math.cos(angle), -math.sin(angle)), abs=1e-4)


def test_a_complex_cell_does_not_see_phase_and_a_simple_one_does():
    cells = draw_cells(4, 4, 24, seed=1)
    for unit in range(8):
        rate = torch.stack([drive(grating(cells, unit, 120, turns), cells)[60:, unit] for turns in (0.0, 0.25, 0.5)])
        steady, across = rate.std(1).max() / rate.mean(), rate.mean(1).std() / rate.mean()
        if cells.complex[unit]:
            assert steady < 0.01 and across < 0.01
        else:
            assert steady > 0.9


def test_the_temporal_kernel_rises_falls_and_looks_back_only():
    kernel = temporal_kernel()
    assert kernel[0] == 0 and 0.017 < int(kernel.argmax()) / 240 < 0.025
    assert kernel.min() < -0.2 * kernel.max() and 0.1 < kernel.sum() < 0.5
    cells, movie = draw_cells(1, 1, 16), torch.randn(80, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = movie.clone()
    changed[50:] = 0
    before, after = drive(movie, cells), drive(changed, cells)
    torch.testing.assert_close(before[:51], after[:51])  # the kernel is 0 at lag 0
    assert not torch.allclose(before[53:60], after[53:60])
    # A loop over the past.
    t = 60
    even, odd = (
        sum(float(kernel[lag] * (movie[t - lag] * f).sum()) for lag in range(len(kernel)))
        for f in receptive_fields(cells, 16)[:, 1]
    )
    assert float(before[t, 1]) == pytest.approx(even**2 + odd**2, rel=1e-4)


def test_a_movie_that_stands_still_is_answered_steadily():
    movie = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(50, -1, -1)
    found = drive(movie, draw_cells(2, 2, 16))
    torch.testing.assert_close(found, found[:1].expand(50, -1))


def test_rates_saturate():
    mean, peak = torch.tensor([2.0]), torch.tensor([100.0])
    low, half, high = saturate(torch.tensor([[0.0], [6.0], [1e6]]), mean, peak)[:, 0].tolist()
    assert (low, half, high) == pytest.approx((6.0, 53.0, 100.0), abs=0.1)


def test_saccadic_gain_is_the_sum_over_saccades():
    onset, strength = torch.tensor([10, 40, 200]), torch.tensor([0.5, 1.2])
    found = saccadic_gain(onset, 300, strength)
    for t in (5, 10, 17, 30, 50, 68, 120, 299):
        total = 0.0
        for start in onset.tolist():
            ms = (t - start) / 240 * 1000
            if 0 <= ms < 300:
                total += 1.2 * math.exp(-(((ms - 120) / 45) ** 2)) - 0.9 * math.exp(-(((ms - 30) / 20) ** 2))
        for unit, g in enumerate((0.5, 1.2)):
            assert float(found[t, unit]) == pytest.approx(max(0.05, 1 + g * total), abs=1e-4)


def test_position_gain():
    found = position_gain(torch.tensor([[8.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.5, -1.0]]))
    torch.testing.assert_close(found[:, 0], torch.tensor([math.exp(0.5), math.exp(-0.5)]))


# The recording.


def test_rates_are_those_of_the_field():
    """Medians and tails as single cells in natural viewing have them, whatever the population."""
    for population in (0, 1):
        hertz = simulate_v1(30.0, "train", V1Config(population=population)).rate * 240
        assert 10 < hertz.mean() < 30 and hertz.mean(0).min() > 5
        assert hertz.quantile(0.05) > 2 and 5 < hertz.median() < 20 and hertz.quantile(0.99) < 250


def test_gains_are_switched_off_and_on(recording):
    plain = simulate_v1(20.0, "train", V1Config(16, 2, 2, saccadic_gain=False, position_gain=False))
    torch.testing.assert_close(plain.rate, plain.ungained)
    torch.testing.assert_close(plain.ungained, recording.ungained)
    gain = recording.rate / recording.ungained
    where = position_gain(recording.gaze, recording.cells.position)
    assert ((gain / where).amin(0) < 0.7).all() and ((gain / where).amax(0) > 1.5).all()  # around saccades
    quiet = (gain / where - 1).abs().amax(1) < 1e-6
    assert 0.05 < quiet.float().mean() < 0.6  # 300 ms after one there is nothing left
    only = simulate_v1(20.0, "train", V1Config(16, 2, 2, saccadic_gain=False))
    torch.testing.assert_close(only.rate / only.ungained, where, rtol=1e-4, atol=1e-5)


def test_saccades_start_the_gain_when_the_eye_does():
    """The gain of a cell is lowest some 30 ms after the onsets that speed alone shows."""
    found = simulate_v1(60.0, "train", V1Config(16, 2, 2, position_gain=False))
    speed = found.gaze.diff(dim=0).norm(dim=1) * 240
    fast = torch.cat([torch.zeros(1, dtype=torch.bool), speed > 60])
    onset = runs(fast)[:, 0]
    onset = onset[onset < len(fast) - 60]
    gain = (found.rate / found.ungained)[:, 0]
    course = torch.stack([gain[onset + lag] for lag in range(60)]).mean(1)
    assert 4 <= int(course.argmin()) <= 8 and 24 <= int(course.argmax()) <= 34


def test_counts_are_drawn_once_from_the_rate(recording):
    again = simulate_v1(20.0, "train", SMALL)
    assert torch.equal(again.counts, recording.counts) and torch.equal(again.movie, recording.movie)
    other = simulate_v1(20.0, "train", SMALL, seed=1)
    assert not torch.equal(other.counts, recording.counts) and not torch.equal(other.gaze, recording.gaze)
    assert (recording.counts == recording.counts.round()).all()
    expected = recording.rate.sum(0)
    assert ((recording.counts.sum(0) - expected).abs() < 4 * expected.sqrt()).all()


def test_a_population_is_the_same_in_all_parts():
    train, test = (simulate_v1(2.0, part, SMALL).cells for part in ("train", "test"))
    for a, b in zip(train, test, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(train.frequency, cells_of(V1Config(16, 2, 2, population=1)).frequency)


def test_a_cell_saturates_alike_in_every_recording():
    """The same movie evokes the same drive in a longer recording: mean drive is not measured in the recording."""
    gaze = simulate_gaze(6.0)
    short, long = (simulate_v1(s, "train", SMALL, gaze=gaze).ungained for s in (3.0, 6.0))
    torch.testing.assert_close(short, long[: len(short)])


def test_the_ceiling_is_known_and_gains_are_worth_bits():
    found = simulate_v1(60.0, "test")
    best = bits_per_spike(found.rate, found.counts)
    no_gain = found.ungained * found.counts.mean(0) / found.ungained.mean(0)
    movie = bits_per_spike(no_gain, found.counts)
    assert (movie > 0.2).all() and 0.1 < (best - movie).mean() < 0.4


def test_a_given_gaze_drives_the_crop_and_blinks_are_grey():
    gaze = simulate_gaze(3.0)
    position, event = gaze.position.clone(), gaze.event.clone()
    position[100:140], event[100:140] = torch.nan, BLINK
    found = simulate_v1(3.0, "train", SMALL, gaze=Gaze(position, event, 240.0))
    assert found.gaze[100:140].isnan().all() and (found.movie[100:140] == 0).all()
    assert found.rate.isfinite().all() and found.movie.isfinite().all() and (found.rate > 0).all()
    seen = simulate_v1(3.0, "train", SMALL, gaze=gaze)
    torch.testing.assert_close(found.movie[:100], seen.movie[:100])
    torch.testing.assert_close(found.rate[:100], seen.rate[:100])
    # The eye is where it was: the position gain goes on from there.
    held = position_gain(position[99:100], found.cells.position)
    only = simulate_v1(3.0, "train", V1Config(16, 2, 2, saccadic_gain=False), gaze=Gaze(position, event, 240.0))
    torch.testing.assert_close((only.rate / only.ungained)[100:140], held.expand(40, -1), rtol=1e-4, atol=1e-5)


@recordings
def test_recorded_gaze_drives_the_crop():
    gaze = smooth_gaze(read_gaze(None, "lookAtPoint_EL_S1.npy"))
    seconds = len(gaze.position) / 240
    found = simulate_v1(seconds, "train", SMALL, gaze=gaze)
    assert found.rate.isfinite().all() and found.counts.sum(0).min() > 20
    windows = MovieWindows(found, 4)
    assert windows.blinks == int(gaze.position.isnan().any(1).sum())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: V1Config(size=4), "size must be at least 8"),
        (lambda: V1Config(size=200), "size must leave the gaze a degree"),
        (lambda: V1Config(simple=0, complex=0), "at least one cell"),
        (lambda: V1Config(scene=0.0), "scene must last"),
        (lambda: pictures("testing"), "train, validation, test"),
        (lambda: simulate_v1(1.0, "testing"), "train, validation, test"),
        (lambda: simulate_v1(0.001), "at least a frame"),
        (lambda: simulate_v1(3.0, gaze=simulate_gaze(2.0)), "gaze lasts 2.0 s"),
        (lambda: simulate_v1(1.0, gaze=simulate_gaze(2.0)._replace(rate=1000.0)), "use smooth_gaze"),
        (lambda: retinal_movie(torch.zeros(1, 9, 9), torch.zeros(3).long(), torch.zeros(2, 2), 4), "equally long"),
    ],
)
def test_bad_input(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


# Windows.


@pytest.mark.parametrize("seconds", [20.0, 20.03, 0.3])
def test_every_frame_after_the_first_warm_up_is_scored_once(seconds):
    found = simulate_v1(seconds, "train", SMALL)
    windows = MovieWindows(found, 1, length=72, warm_up=24)
    times = torch.zeros(len(found.movie))
    for batch in windows.in_order(3):
        assert batch["movie"].shape[1:] == (72, 16, 16) and not batch["scored"][:, :24].any()
    for start, scored in zip(windows.starts.tolist(), windows.scored, strict=True):
        times[start : start + 72] += scored
    assert (times[:24] == 0).all() and (times[24:] == 1).all()


def test_windows_are_the_recording(recording):
    windows = MovieWindows(recording, 4)
    batch = windows.take(torch.tensor([0, 3]))
    for name in ("movie", "gaze", "counts", "rate"):
        torch.testing.assert_close(batch[name][1], getattr(recording, name)[3 * 48 : 3 * 48 + 72])
    # Overlapping frames have the same counts in both windows.
    follow = windows.take(torch.tensor([4]))
    torch.testing.assert_close(batch["counts"][1, 48:], follow["counts"][0, :24])


def test_blinks_are_not_scored_and_counted():
    gaze = simulate_gaze(3.0)
    gaze.position[100:140] = torch.nan
    windows = MovieWindows(simulate_v1(3.0, "train", SMALL, gaze=gaze), 2)
    assert windows.blinks == 40
    batches = list(windows.in_order())
    assert sum(int(b["scored"].sum()) for b in batches) == 720 - 24 - 40
    assert not any((b["scored"] & b["gaze"].isnan().any(-1)).any() for b in batches)


def test_an_epoch_shows_every_window_once_in_another_order(recording):
    windows = MovieWindows(recording, 8)
    first, again, second = (windows(e).labelled for e in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert len(first.flatten().unique()) == first.numel() and len(windows(0)) == len(list(windows(0)))
    assert first.numel() > len(windows.starts) - 8


def test_a_share_is_the_same_windows_in_as_many_steps(recording):
    whole, few = MovieWindows(recording, 8), MovieWindows(recording, 8, share=0.1)
    seen = torch.cat([few(e).labelled.flatten() for e in range(4)]).unique()
    assert len(seen) == round(0.1 * len(few.starts)) and len(few(0)) == len(whole(0))
    counts = torch.bincount(few(0).labelled.flatten(), minlength=len(few.starts))[seen]
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(seen, MovieWindows(recording, 8, share=0.1, seed=1).labelled)


def test_unlabelled_windows_show_the_movie_and_not_the_counts(recording):
    windows = MovieWindows(recording, 4, share=0.25, unlabelled=3)
    shown = set()
    for batch, index in zip(windows(0), windows(0).others, strict=True):
        assert len(batch["movie"]) == 7 and batch["scored"][:4].any(1).all()
        assert not batch["scored"][4:].any() and not batch["counts"][4:].any() and not batch["rate"][4:].any()
        start = int(windows.starts[index[-1]])
        torch.testing.assert_close(batch["movie"][-1], recording.movie[start : start + 72])
        shown |= set(index.tolist())
    assert shown and not shown & set(windows.labelled.tolist())
    # The labelled half of each batch is what it is without them.
    plain = MovieWindows(recording, 4, share=0.25)
    for a, b in zip(windows(2), plain(2), strict=True):
        torch.testing.assert_close(a["counts"][:4], b["counts"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warm_up": 72}, "warm_up must lie in"),
        ({"length": 10**5}, "longer than the recording"),
        ({"share": 0.0}, "share must lie in"),
        ({"share": 0.001}, "has only"),
        ({"batch_size": 1000}, "has only"),
        ({"unlabelled": 1}, "the windows that share=1.0 leaves"),
        ({"share": 0.5, "unlabelled": -1}, "unlabelled must lie in"),
    ],
)
def test_windows_bad_input(recording, settings, message, unchecked):
    with pytest.raises(ValueError, match=message):
        MovieWindows(recording, **{"batch_size": 4, **settings})


def test_representable_by_the_traces_of_the_model():
    """Last value, two traces and a derivative of the input explain most of what the temporal kernel makes of it, so
    that a model of traces can learn these cells."""
    generator = np.random.default_rng(0)
    x = np.zeros(20000)
    for t in range(1, len(x)):
        x[t] = math.exp(-1 / 12) * x[t - 1] + generator.normal()
    answer = np.convolve(x, temporal_kernel().numpy())[: len(x)]
    columns = [x, np.append(0, np.diff(x))]
    for alpha in (0.74, 0.95):
        trace = np.zeros_like(x)
        for t in range(1, len(x)):
            trace[t] = alpha * trace[t - 1] + (1 - alpha) * x[t]
        columns.append(trace)
    design = np.stack(columns, 1)
    residual = answer - design @ np.linalg.lstsq(design, answer, rcond=None)[0]
    assert 1 - residual.var() / answer.var() > 0.8
