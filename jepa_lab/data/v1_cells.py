"""What would neurons of V1 answer to a movie? Simple and complex cells whose every part is known.

Book: chapter 15.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

FRAME_RATE = 240.0
_TAU = 0.009  # seconds; the temporal kernel then peaks at some 21 ms
_BIPHASIC = 0.8  # 1 would leave nothing of a steady picture
_EXPONENT, _HALF, _BASE = 1.3, 3.0, 0.06  # saturation: its steepness, half of the range at 3 mean drives, floor
_REACH = 8.0  # degrees over which the position gain changes by the factor exp(p)


class Cells(NamedTuple):
    """A population: receptive fields, saturation and gains.

    `centre` in pixels from the middle of the crop, x right and y down; `frequency` in cycles a pixel; `orientation` of
    the wave vector and `phase` in radians; `width`, the s.d. of the envelope, in pixels; `peak` in spikes a second.
    `saccadic` is the strength of the gain after a saccade, `position` that of the gain with gaze.

    Shapes: [U], centre and position [U, 2].
    Book: chapter 15.
    """

    complex: Bool[Tensor, " U"]
    centre: Float[Tensor, "U 2"]
    frequency: Float[Tensor, " U"]
    orientation: Float[Tensor, " U"]
    phase: Float[Tensor, " U"]
    width: Float[Tensor, " U"]
    peak: Float[Tensor, " U"]
    saccadic: Float[Tensor, " U"]
    position: Float[Tensor, "U 2"]


def draw_cells(simple: int, complex: int, size: int, seed: int = 0) -> Cells:
    """First the simple cells, then the complex ones, looking at about the middle of a crop of `size` pixels.

    Book: chapter 15.
    """
    generator = torch.Generator().manual_seed(seed)
    units = simple + complex

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(units, *shape, generator=generator)

    frequency = uniform(0.08, 0.18)
    return Cells(
        complex=torch.arange(units) >= simple,
        centre=uniform(-size / 6, size / 6, 2),
        frequency=frequency,
        orientation=uniform(0.0, math.pi),
        phase=uniform(0.0, 2 * math.pi),
        width=(0.45 / frequency).clamp(max=size / 5),
        peak=uniform(40.0, 90.0),
        saccadic=uniform(0.6, 1.2),
        position=0.5 * torch.randn(units, 2, generator=generator),
    )


def receptive_fields(cells: Cells, size: int) -> Float[Tensor, "2 U size size"]:
    """The pair of fields of each cell: Gabors of its phase and a quarter of a cycle on.

    Neither sees a constant, and a grating exp(i (2 pi k.x - phase)) of the cell's wave vector k is answered with
    exactly (cos, sin) of where its bars lie: the pair is made so on the crop, which cuts off some of the Gaussian.

    Shapes: -> [2, U, size, size]; a simple cell has the first of the two.
    Book: chapter 15.
    """
    offset = torch.arange(size) - (size - 1) / 2
    place = torch.stack(torch.meshgrid(offset, offset, indexing="xy"), dim=-1).double().view(-1, 2)
    k = cells.frequency[:, None] * torch.stack([cells.orientation.cos(), cells.orientation.sin()], dim=1)
    away = place - cells.centre.double()[:, None]
    angle = 2 * math.pi * (away @ k.double()[:, :, None])[..., 0] - cells.phase.double()[:, None]
    envelope = torch.exp(-away.square().sum(-1) / (2 * cells.width.double()[:, None].square()))
    grating = torch.stack([angle.cos(), angle.sin()], dim=1)
    constant = (envelope[:, None] * grating).sum(-1, keepdim=True) / envelope.sum(-1)[:, None, None]
    pair = envelope[:, None] * (grating - constant)
    pair = torch.linalg.solve(pair @ grating.mT, pair)
    return pair.movedim(1, 0).reshape(2, -1, size, size).float()


def temporal_kernel() -> Float[Tensor, " K"]:
    """How the past counts, frame by frame from now backwards: up, then down.

        k(t) = x^3 exp(-x) (1/3! - b x^2/5!),   x = t / tau,  tau = 9 ms

    divided by the sum of its absolute values.

    Paper: Adelson & Bergen 1985, equation 1, with b = 1. Book: chapter 15.
    """
    x = torch.arange(round(0.15 * FRAME_RATE)) / FRAME_RATE / _TAU
    kernel = x**3 * torch.exp(-x) * (1 / 6 - _BIPHASIC * x**2 / 120)
    return kernel / kernel.abs().sum()


def drive(movie: Float[Tensor, "T size size"], cells: Cells) -> Float[Tensor, "T U"]:
    """What arrives at each cell, before saturation: simple cells see light and dark, complex ones only contrast.

        e, o = k * (field . movie);   simple: max(0, e),   complex: e^2 + o^2

    with * the causal convolution with `temporal_kernel`. Before the first frame the movie stood still.

    Shapes: movie [T, size, size] -> [T, U].
    Paper: Adelson & Bergen 1985, the energy model. Book: chapter 15.
    """
    kernel, fields = temporal_kernel(), receptive_fields(cells, movie.shape[-1])
    seen = torch.einsum("txy,puxy->put", movie, fields)
    seen = F.pad(seen.flatten(0, 1)[:, None], (len(kernel) - 1, 0), mode="replicate")
    even, odd = F.conv1d(seen, kernel.flip(0)[None, None])[:, 0].view(2, -1, len(movie)).mT
    return torch.where(cells.complex, even.square() + odd.square(), even.clamp(min=0))


def saturate(drive: Float[Tensor, "T U"], mean: Float[Tensor, " U"], peak: Float[Tensor, " U"]) -> Float[Tensor, "T U"]:
    """Rates in spikes a second: they grow with the drive and level off.

        r = peak (b + (1 - b) x^n / (1 + x^n)),   x = drive / (3 mean),  n = 1.3,  b = 0.06

    Shapes: drive [T, U], mean drive and peak rate [U] -> [T, U].
    Paper: Naka & Rushton 1966. Book: chapter 15.
    """
    x = (drive / (_HALF * mean)) ** _EXPONENT
    return peak * (_BASE + (1 - _BASE) * x / (1 + x))


def saccadic_gain(onset: Int[Tensor, " N"], frames: int, strength: Float[Tensor, " U"]) -> Float[Tensor, "T U"]:
    """Suppression during a saccade and a rebound after it, whatever is seen.

        gain = max(.05, 1 + g sum_onsets [1.2 exp(-((t - 120) / 45)^2) - .9 exp(-((t - 30) / 20)^2)]),   t in ms

    Shapes: onset Int[N] frames in which saccades begin, strength g [U] -> [T, U].
    Book: chapter 15.
    """
    t = torch.arange(round(0.3 * FRAME_RATE)) / FRAME_RATE
    kernel = 1.2 * torch.exp(-(((t - 0.120) / 0.045) ** 2)) - 0.9 * torch.exp(-(((t - 0.030) / 0.020) ** 2))
    events = torch.zeros(frames)
    events[onset] = 1.0
    trace = F.conv1d(F.pad(events[None, None], (len(kernel) - 1, 0)), kernel.flip(0)[None, None])[0, 0]
    return (1 + trace[:, None] * strength).clamp(min=0.05)


def position_gain(gaze: Float[Tensor, "T 2"], strength: Float[Tensor, "U 2"]) -> Float[Tensor, "T U"]:
    """A gain with where the eye points, whatever is seen: exp(p . g / 8 degrees).

    Shapes: gaze [T, 2] degrees, strength p [U, 2] -> [T, U].
    Paper: Trotter & Celebrini 1999, Nature 398, on gaze direction in V1. Book: chapter 15.
    """
    return torch.exp(gaze @ strength.T / _REACH)
