"""Recordings from a simulated V1: an eye looks around a photo, cells answer with spikes, and the rates are known.

Book: chapter 15.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lab.data.gaze import SACCADE, Gaze, runs
from jepa_lab.data.v1_cells import FRAME_RATE, Cells, draw_cells, drive, position_gain, saccadic_gain, saturate
from jepa_lab.data.v1_gaze import GazeConfig, simulate_gaze
from jepa_lab.data.v1_movie import PARTS, PIXELS_PER_DEGREE, Part, gaze_region, pictures, retinal_movie

__all__ = ["FRAME_RATE", "PIXELS_PER_DEGREE", "V1Config", "V1Recording", "cells_of", "simulate_v1"]


@dataclass(frozen=True)
class V1Config:
    """Which cells see what.

    Raises: ValueError for a setting out of range.
    Book: chapter 15.

    Args:
        size: pixels a side of the crop that the cells look at. simple, complex: how many of each.
        saccadic_gain: rates are suppressed and rebound with saccades. position_gain: they depend on where the eye
            points. Without the two, the movie says all there is to know.
        scene: seconds until the next picture is shown. population: the seed that the cells are drawn with.
    """

    size: int = 24
    simple: int = 4
    complex: int = 4
    saccadic_gain: bool = True
    position_gain: bool = True
    scene: float = 5.0
    population: int = 0

    def __post_init__(self):
        if self.size < 8:
            raise ValueError(f"size must be at least 8 pixels, got {self.size}")
        gaze_region(self.size)
        if min(self.simple, self.complex) < 0 or self.simple + self.complex < 1:
            raise ValueError(f"simple and complex must give at least one cell, got {self.simple} and {self.complex}")
        if not self.scene * FRAME_RATE >= 1:
            raise ValueError(f"scene must last at least a frame of 1/240 s, got {self.scene} s")


class V1Recording(NamedTuple):
    """A movie, the eye's movements behind it and the spikes it evoked, 240 frames a second.

    `gaze` in degrees from the centre of the picture, x right and y down, NaN where the eye was shut. `rate` is the
    expected count of each frame, which the counts were drawn from once, and `ungained` what it were with both gains 1:
    all that the movie tells.

    Shapes: movie [T, H, W], gaze [T, 2], counts, rate, ungained [T, U].
    Book: chapter 15.
    """

    movie: Float[Tensor, "T H W"]
    gaze: Float[Tensor, "T 2"]
    counts: Float[Tensor, "T U"]
    rate: Float[Tensor, "T U"]
    ungained: Float[Tensor, "T U"]
    cells: Cells
    config: V1Config


def simulate_v1(
    seconds: float, part: Part = "train", config: V1Config | None = None, seed: int = 0, gaze: Gaze | None = None
) -> V1Recording:
    """A recording of so many seconds, with pictures of this part and, unless given, a gaze drawn with this seed.

        counts ~ Poisson(rate),   rate = saturate(drive(movie)) saccadic_gain position_gain / 240

    The population is that of `config`, whatever the part and the seed: the same cells see all three parts, and their
    gaze ranges over the same degrees in each. What a part holds out are the pictures.

    Raises: ValueError for an unknown part, less than a frame, or a gaze that is too short or not of 240 Hz.
    Book: chapter 15.
    """
    config = config or V1Config()
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    frames = round(seconds * FRAME_RATE)
    if frames < 1:
        raise ValueError(f"seconds must hold at least a frame of 1/240 s, got {seconds}")
    stream = seed * len(PARTS) + PARTS.index(part)  # the same seed is another gaze in another part
    if gaze is None:
        gaze = simulate_gaze(seconds, _eye(config), stream)
    elif gaze.rate != FRAME_RATE:
        raise ValueError(f"gaze must have {FRAME_RATE} samples a second, got {gaze.rate}: use smooth_gaze")
    elif len(gaze.position) < frames:
        raise ValueError(f"gaze lasts {len(gaze.position) / FRAME_RATE:.1f} s, less than the {seconds} s asked for")
    position, event = gaze.position[:frames], gaze.event[:frames]
    scenes = pictures(part)
    scene = (torch.arange(frames) / FRAME_RATE / config.scene).long() % len(scenes)
    movie = retinal_movie(scenes, scene, position, config.size)
    cells = cells_of(config)
    ungained = saturate(drive(movie, cells), _mean_drive(config), cells.peak) / FRAME_RATE
    rate = ungained
    if config.saccadic_gain:
        rate = rate * saccadic_gain(runs(event == SACCADE)[:, 0], frames, cells.saccadic)
    if config.position_gain:
        rate = rate * position_gain(_held(position), cells.position)
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(stream + 10**6))
    return V1Recording(movie, position, counts, rate, ungained, cells, config)


def cells_of(config: V1Config) -> Cells:
    """The population of a configuration.

    Book: chapter 15.
    """
    return draw_cells(config.simple, config.complex, config.size, config.population)


def _eye(config: V1Config) -> GazeConfig:
    """An eye that stays on a quarter of a photo. Few large saccades fit there, hence a larger median before they are
    left out."""
    return GazeConfig(region=gaze_region(config.size), amplitude=3.2)


@lru_cache(maxsize=32)
def _mean_drive(config: V1Config) -> Float[Tensor, " U"]:
    """A cell's mean drive over 20 s of one gaze on the training pictures: saturation is a property of the cell, and
    must not depend on the recording it is measured in."""
    gaze = simulate_gaze(20.0, _eye(config), seed=10**6)
    scenes = pictures("train")
    scene = torch.arange(len(gaze.position)) * len(scenes) // len(gaze.position)
    return drive(retinal_movie(scenes, scene, gaze.position, config.size), cells_of(config)).mean(0)


def _held(position: Float[Tensor, "T 2"]) -> Float[Tensor, "T 2"]:
    """While the eye is shut it points where it pointed last; before it was first seen, at the centre."""
    seen = ~position.isnan().any(1)
    last = torch.where(seen, torch.arange(len(position)), -1).cummax(0).values
    return torch.where((last >= 0)[:, None], position[last.clamp(min=0)].nan_to_num(), 0.0)
