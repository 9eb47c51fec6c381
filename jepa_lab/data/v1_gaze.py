"""Gaze without an eye tracker: drift, micro-saccades and saccades with the statistics of recorded gaze.

Book: chapter 15.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.signal import lfilter
from torch import Tensor

from jepa_lab.data.gaze import FIXATION, SACCADE, Gaze

# Drift keeps its direction for some 19 ms; it is a random walk over longer times.
_PERSISTENCE = 0.0187


@dataclass(frozen=True)
class GazeConfig:
    """How an eye moves. The defaults give the medians of recorded gaze (tests compare them).

    Raises: ValueError for a setting out of range.
    Book: chapter 15.

    Args:
        rate: samples a second. drift: its diffusion constant over long times, arcmin^2/s; over 10 to 80 ms, as
            recordings are measured, some 15 % less.
        fixation: median seconds of a fixation, log-normal with standard deviation `fixation_spread`.
        amplitude: median degrees of a saccade before those that leave the region are drawn anew, log-normal with
            `amplitude_spread`, cut to `amplitude_range`.
        region: half width and half height of where the gaze stays, degrees.
    """

    rate: float = 240.0
    drift: float = 95.0
    fixation: float = 0.3
    fixation_spread: float = 0.7
    amplitude: float = 2.6
    amplitude_spread: float = 1.2
    amplitude_range: tuple[float, float] = (0.15, 15.0)
    region: tuple[float, float] = (13.0, 12.5)

    def __post_init__(self):
        for name in ("rate", "fixation", "amplitude"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("drift", "fixation_spread", "amplitude_spread"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        low, high = self.amplitude_range
        if not 0 < low <= high:
            raise ValueError(f"amplitude_range must be (low, high) with 0 < low <= high, got {self.amplitude_range}")
        if min(self.region) <= low:
            raise ValueError(f"region must leave room for a saccade of {low} degrees, got {self.region}")


def simulate_gaze(seconds: float, config: GazeConfig | None = None, seed: int = 0) -> Gaze:
    """Fixations with drift, and saccades between them.

        duration = 15.2 ms + 2.39 ms/deg A,    g(s) = g_0 + A (10 s^3 - 15 s^4 + 6 s^5),  s = t / duration

    the minimum-jerk course, whose peak speed 1.875 A / duration follows the main sequence. Drift is a velocity that
    is an AR(1) process. A saccade starts where drift has led; one that would leave the region is drawn anew.

    Raises: ValueError for `seconds` that hold not one sample.
    Book: chapter 15.
    """
    config = config or GazeConfig()
    samples = round(seconds * config.rate)
    if samples < 1:
        raise ValueError(f"seconds must hold at least one sample at {config.rate} Hz, got {seconds}")
    generator = torch.Generator().manual_seed(seed)
    region = torch.tensor(config.region)
    at = (2 * torch.rand(2, generator=generator) - 1) * region / 2
    position, event, total = [], [], 0
    while total < samples:
        median, spread = config.fixation, config.fixation_spread
        length = max(round(median * math.exp(spread * _normal(generator)) * config.rate), 1)
        # An eye that drifts out of the region comes back as from a mirror.
        fixation = _reflect(at + _drift(length, config, generator), region)
        start = fixation[-1]
        step = _saccade(start, region, config, generator)
        duration = 0.0152 + 0.00239 * float(step.norm())
        frames = max(round(duration * config.rate), 1)
        s = (torch.arange(1, frames + 1) / frames)[:, None]
        at = start + step
        position += [fixation, start + step * (10 * s**3 - 15 * s**4 + 6 * s**5)]
        event += [torch.full((length,), FIXATION), torch.full((frames,), SACCADE)]
        total += length + frames
    return Gaze(torch.cat(position)[:samples], torch.cat(event)[:samples], config.rate)


def _normal(generator: torch.Generator) -> float:
    return float(torch.randn((), generator=generator))


def _drift(length: int, config: GazeConfig, generator: torch.Generator) -> Float[Tensor, "T 2"]:
    """A path from 0 whose mean square distance grows by 4 D t, once t is longer than the persistence."""
    keep = math.exp(-1 / (_PERSISTENCE * config.rate))
    size = math.sqrt(2 * config.drift / 3600 / config.rate * (1 - keep) / (1 + keep))
    noise = size * torch.randn(length, 2, generator=generator)
    noise[1:] *= math.sqrt(1 - keep**2)
    velocity = lfilter([1.0], [1.0, -keep], noise.numpy(), axis=0)
    return torch.from_numpy(velocity).float().cumsum(0)


def _reflect(position: Float[Tensor, "T 2"], region: Float[Tensor, " 2"]) -> Float[Tensor, "T 2"]:
    phase = (position + region).remainder(4 * region)
    return torch.minimum(phase, 4 * region - phase) - region


def _saccade(
    start: Float[Tensor, " 2"], region: Float[Tensor, " 2"], config: GazeConfig, generator: torch.Generator
) -> Float[Tensor, " 2"]:
    """A displacement that stays in the region. The smallest one towards the centre always does."""
    low, high = config.amplitude_range
    for _ in range(100):
        size = config.amplitude * math.exp(config.amplitude_spread * _normal(generator))
        angle = 2 * math.pi * float(torch.rand((), generator=generator))
        step = min(max(size, low), high) * torch.tensor([math.cos(angle), math.sin(angle)])
        if ((start + step).abs() <= region).all():
            return step
    return -low * start / start.norm()
