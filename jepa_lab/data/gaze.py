"""Where does an eye look? Recorded gaze, made fit to move a picture, and the numbers that describe any gaze.

Book: chapter 15.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

GAZE_HOME = "https://github.com/r-zemblys/irf (etdata/lookAtPoint_EL)"
RECORDING_RATE = 1000.0
FIXATION, SACCADE, BLINK = 1, 2, 5


class Gaze(NamedTuple):
    """Gaze in degrees, x to the right and y down as rows of a picture are; NaN where the eye was not seen.

    `event` is FIXATION, SACCADE or BLINK, and 0, 3 or 4 (undefined, post-saccadic oscillation, pursuit) only in
    recordings; `rate` in samples a second.

    Book: chapter 15.
    """

    position: Float[Tensor, "T 2"]
    event: Int[Tensor, " T"]
    rate: float


class GazeStatistics(NamedTuple):
    """Medians over the events of a gaze, none of them dropped for being short: milliseconds, degrees, degrees a second.

    Speed is measured over 4 ms, so that rates compare and tracker noise counts little. `drift` is the diffusion
    constant within fixations in arcmin^2/s, and `noise` the tracker's, degrees an axis.

    Book: chapter 15.
    """

    fixation_ms: float
    saccade_deg: float
    saccade_ms: float
    peak_speed: float
    drift: float
    noise: float


def read_gaze(root: str | Path | None, name: str) -> Gaze:
    """A recording of the look-at-point task, as it was recorded: 1000 Hz, labelled by hand, tracker noise included.

    `root` defaults to the environment variable JEPA_LAB_DATA; the file is `root/gaze-lookatpoint/name`. The
    recordings have y up; here it is down.

    Raises: FileNotFoundError naming the public home page and the folder looked in; ValueError if the file has other
        fields.
    Paper: Zemblys et al., Using machine learning to detect events in eye-tracking data, Behavior Research Methods 2018.
    Book: chapter 15.
    """
    root = root if root is not None else os.environ.get("JEPA_LAB_DATA") or None
    if root is None:
        remedy = "pass root=FOLDER or set the environment variable JEPA_LAB_DATA"
        raise FileNotFoundError(f"{name} ({GAZE_HOME}): no folder to look in; {remedy}")
    path = Path(root) / "gaze-lookatpoint" / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} not found in {path.parent}. Put the file there ({GAZE_HOME}).")
    rows = np.load(path, allow_pickle=False)
    if not {"x", "y", "status", "evt"} <= set(rows.dtype.names or ()):
        raise ValueError(f"{path} must have the fields x, y, status and evt, got {rows.dtype}")
    position = torch.from_numpy(np.stack([rows["x"], -rows["y"]], axis=1).astype(np.float32))
    event = torch.from_numpy(rows["evt"].astype(np.int64))
    event[torch.from_numpy(~rows["status"])] = BLINK
    position[event == BLINK] = torch.nan
    return Gaze(position, event, RECORDING_RATE)


def runs(mask: Bool[Tensor, " T"]) -> Int[Tensor, "N 2"]:
    """First sample of each run of True, and the one after its last.

    Shapes: mask [T] -> [N, 2].
    Book: chapter 15.
    """
    edge = F.pad(mask.int(), (1, 1)).diff()
    return torch.stack([(edge == 1).nonzero()[:, 0], (edge == -1).nonzero()[:, 0]], dim=1)


def smooth_gaze(gaze: Gaze, rate: float = 240.0, sigma: float = 0.0125) -> Gaze:
    """A recording at another rate, low-passed within fixations: the noise of a tracker is larger than the drift.

        g_t = sum_s K(t - s) g_s / sum_s K(t - s),    s in the same fixation, K a Gaussian of `sigma` seconds

    then interpolated linearly. Saccades are left as they are, and a fixation is not blurred into them. A sample is
    NaN where the eye was not seen.

    Shapes: T samples -> ceil(T rate' / rate).
    Raises: ValueError for a rate or a sigma that is not positive.
    Book: chapter 15.
    """
    if not rate > 0 or not sigma > 0:
        raise ValueError(f"rate and sigma must be positive, got rate={rate} and sigma={sigma}")
    position = gaze.position.clone()
    reach = max(round(3 * sigma * gaze.rate), 1)
    lag = torch.arange(-reach, reach + 1) / (sigma * gaze.rate)
    kernel = torch.exp(-lag.square() / 2)[None, None]
    for start, stop in runs(gaze.event == FIXATION).tolist():
        piece = gaze.position[start:stop].T[:, None]
        weight = F.conv1d(torch.ones_like(piece[:1]), kernel, padding=reach)
        # Around the mean, so that float32 does not round away the drift of a gaze far from 0.
        mean = piece.mean(-1, keepdim=True)
        position[start:stop] = (F.conv1d(piece - mean, kernel, padding=reach) / weight + mean)[:, 0].T
    at = torch.arange(int(np.ceil(len(position) * rate / gaze.rate)), dtype=torch.float64) * gaze.rate / rate
    low = at.floor().long().clamp(max=len(position) - 1)
    high = (low + 1).clamp(max=len(position) - 1)
    part = (at - low).clamp(0, 1).float()[:, None]
    event = gaze.event[torch.where(part[:, 0] < 0.5, low, high)]
    # Not by lerp alone: a sample that lies on one of the recording's is known even where the next one is NaN.
    between = torch.where(part > 0, torch.lerp(position[low], position[high], part), position[low])
    event[between.isnan().any(1)] = BLINK
    between[event == BLINK] = torch.nan
    return Gaze(between, event, rate)


def gaze_statistics(gaze: Gaze) -> GazeStatistics:
    """Durations and sizes of fixations and saccades, and the drift within fixations.

        median(|g(t + lag) - g(t)|^2) / ln 2 = 4 D lag + 4 noise^2

    fitted over lags of 10 to 80 ms within fixations of at least 100 ms. The left side is the mean square displacement
    of a random walk; a mean would be that of the few saccades which a label missed.

    Raises: ValueError without a single saccade, or without a fixation of 100 ms.
    Book: chapter 15.
    """
    position, rate = gaze.position.double(), gaze.rate
    fixations, saccades = runs(gaze.event == FIXATION), runs(gaze.event == SACCADE)
    last = len(position) - 1
    before, after = (saccades[:, 0] - 1).clamp(min=0), saccades[:, 1].clamp(max=last)
    size = (position[after] - position[before]).norm(dim=1)
    seen = ~size.isnan()
    long = [position[a:b] for a, b in fixations.tolist() if b - a >= 0.1 * rate]
    if not seen.any() or not long:
        raise ValueError("gaze must hold a saccade and a fixation of 100 ms; pass a longer one")
    apart = max(round(0.004 * rate), 1)
    speed = (position[apart:] - position[:-apart]).norm(dim=1) * rate / apart
    # Steps that begin in a saccade, or at the sample before it.
    peak = torch.stack([speed[a:b].max() for a, b in torch.stack([before, after], 1)[seen].tolist() if b <= len(speed)])
    lags = range(max(round(0.01 * rate), 1), round(0.08 * rate) + 1)
    squares = [torch.cat([(p[lag:] - p[:-lag]).square().sum(1) for p in long]) for lag in lags]
    msd = torch.stack([square.nanmedian() for square in squares]) / math.log(2)
    time = torch.tensor([[lag / rate, 1.0] for lag in lags], dtype=torch.float64)
    slope, start = torch.linalg.lstsq(time, msd[:, None]).solution[:, 0].tolist()

    def median_ms(events: Tensor) -> float:
        return float((events[:, 1] - events[:, 0]).double().median() / rate * 1000)

    return GazeStatistics(
        median_ms(fixations),
        float(size[seen].median()),
        median_ms(saccades),
        float(peak.median()),
        slope / 4 * 3600,
        max(start / 4, 0.0) ** 0.5,
    )
