"""How is a memory carried along while the eye moves? Rotate what is remembered, then mix in what is seen.

A frame already shows where the eye is. Only the memory is of an older place, and the shift theorem says what it would
look like from here: another phase, the same amplitude. Everything is linear in the responses with the same
coefficients at all places, so it may act on maps or on what readout windows have pooled from them.

Book: chapter 15.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class DynamicsConfig:
    """How fast the memory forgets, per second, in fixations and in saccades; `dt` in seconds, `pixels_per_degree` of
    the movie.

    Raises: ValueError for a setting that is not positive.
    Book: chapter 15.
    """

    lambda_fix: float = 10.0
    lambda_sac: float = 40.0
    dt: float = 1 / 240
    pixels_per_degree: float = 16.0

    def __post_init__(self):
        for name in ("lambda_fix", "lambda_sac", "dt", "pixels_per_degree"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"recurrence.{name} must be a positive number, got {value}")

    def leak(self, q: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """lambda_t dt = ((1 - q_t) lambda_fix + q_t lambda_sac) dt, with q from 0 in a fixation to 1 in a saccade."""
        return ((1 - q) * self.lambda_fix + q * self.lambda_sac) * self.dt


def displacement(gaze: Float[Tensor, "B T 2"]) -> tuple[Float[Tensor, "B T 2"], Bool[Tensor, "B T"]]:
    """How far the eye has moved since the frame before, and where that is not known.

    The first frame has moved by 0. Where the eye was not seen (NaN: a blink), or not the frame before, the displacement
    is 0 and the frame is `lost`.

    Shapes: gaze [B, T, 2] -> displacement [B, T, 2] in its units, lost Bool[B, T].
    Book: chapter 15.
    """
    step = torch.diff(gaze, dim=1, prepend=gaze[:, :1])
    lost = step.isnan().any(-1)
    return step.nan_to_num(0.0), lost


def phase_advance(
    pixels: Float[Tensor, "B T 2"],
    k: Float[Tensor, "M 2"],
    gamma: Float[Tensor, "B T M"] | float = 1.0,
    rho: Float[Tensor, "B T M"] | float = 0.0,
) -> Float[Tensor, "B T M"]:
    """By how much a displacement of the gaze turns the phase of each pair: the shift theorem.

        dphi = 2 pi gamma k.d + rho,   and 0 where |2 pi k.d| > pi

    Where the picture moves by more than half a period, the phase is the same for several displacements: there is
    nothing to rotate to.

    Shapes: pixels [B, T, 2] (x right, y down), k [M, 2] in cycles a pixel -> [B, T, M] radians.
    Book: chapter 15.
    """
    turn = 2 * math.pi * pixels @ k.T
    return torch.where(turn.abs() <= math.pi, gamma * turn + rho, 0.0)


def rotate(re: Tensor, im: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """(re + i im) exp(i angle), as a pair."""
    cos, sin = angle.cos(), angle.sin()
    return re * cos - im * sin, re * sin + im * cos


def memory_weights(leak: Float[Tensor, "B T"]) -> Float[Tensor, "B T T"]:
    """What each frame s still weighs in the memory at t, rotation left out: each row sums to 1.

        D_ts = exp(-(L_t - L_s)) (1 - a_s) for 0 < s <= t,   D_t0 = exp(-(L_t - L_0)),   L = cumsum(lambda dt)

    Shapes: leak [B, T] -> [B, T, T], lower triangular.
    Book: chapter 15.
    """
    total = leak.cumsum(1)
    # Masked before the exponential: above the diagonal it would overflow, and inf x 0 is no number.
    gap = (total[:, :, None] - total[:, None, :]).tril()
    new = torch.cat([torch.ones_like(leak[:, :1]), -torch.expm1(-leak[:, 1:])], dim=1)
    return (torch.exp(-gap) * new[:, None, :]).tril()


def rotated_memory(
    re: Float[Tensor, "B T M U"],
    im: Float[Tensor, "B T M U"],
    leak: Float[Tensor, "B T"],
    advance: Float[Tensor, "B T M"],
) -> tuple[Float[Tensor, "B T M U"], Float[Tensor, "B T M U"]]:
    """The memory z of the responses w, all frames at once.

        z_t = a_t exp(i dphi_t) z_(t-1) + (1 - a_t) w_t,   a_t = exp(-lambda_t dt),   z_0 = w_0
            = exp(i P_t) sum_s D_ts exp(-i P_s) w_s,       P = cumsum(dphi)

    Each frame is turned back to the first, averaged there, and turned forward again. Exact, not an approximation.

    Shapes: re, im [B, T, M, U], leak = lambda dt [B, T], advance [B, T, M] -> re, im of z.
    Book: chapter 15.
    """
    angle = advance.cumsum(1)[..., None]
    weights = memory_weights(leak)
    back = torch.stack(rotate(re, im, -angle), dim=2)
    kept = (weights @ back.flatten(2)).view_as(back)
    return rotate(kept[:, :, 0], kept[:, :, 1], angle)


def rotated_memory_loop(
    re: Float[Tensor, "B T M U"],
    im: Float[Tensor, "B T M U"],
    leak: Float[Tensor, "B T"],
    advance: Float[Tensor, "B T M"],
) -> tuple[Float[Tensor, "B T M U"], Float[Tensor, "B T M U"]]:
    """`rotated_memory` frame by frame, as its first formula says: slower, and what the other is tested against.

    Shapes: as `rotated_memory`.
    Book: chapter 15.
    """
    z = (re[:, 0], im[:, 0])
    frames = [torch.stack(z)]
    for t in range(1, re.shape[1]):
        a = torch.exp(-leak[:, t, None, None])
        z_re, z_im = rotate(*z, advance[:, t, :, None])
        z = (a * z_re + (1 - a) * re[:, t], a * z_im + (1 - a) * im[:, t])
        frames.append(torch.stack(z))
    kept = torch.stack(frames, dim=2)
    return kept[0], kept[1]


def relaxed_amplitude(
    amplitude: Float[Tensor, "B T M U"],
    q: Float[Tensor, "B T"],
    leak: Float[Tensor, "B T"],
    rest: Float[Tensor, " M"],
) -> Float[Tensor, "B T M U"]:
    """An amplitude that follows what is seen in fixations, and falls back to rest in saccades.

        h_t = a_t h_(t-1) + (1 - a_t) [rest + (1 - q_t) (A_t - rest)],   h_0 = A_0

    With q = 1 nothing is seen, and h - rest decays at lambda_sac.

    Shapes: amplitude [B, T, M, U], q and leak [B, T], rest [M] -> [B, T, M, U].
    Book: chapter 15.
    """
    rest = rest[:, None]
    # The first frame is where the memory starts, whatever the eye does.
    open_ = torch.cat([torch.ones_like(q[:, :1]), 1 - q[:, 1:]], dim=1)[:, :, None, None]
    seen = rest + open_ * (amplitude - rest)
    return (memory_weights(leak) @ seen.flatten(2)).view_as(seen)


def carried(
    re: Float[Tensor, "B T M U"],
    im: Float[Tensor, "B T M U"],
    pixels: Float[Tensor, "B T 2"],
    k: Float[Tensor, "M 2"],
) -> tuple[Float[Tensor, "B T M U"], Float[Tensor, "B T M U"]]:
    """What the responses will be once the gaze has moved by so many pixels, if rotation were all: the forecast.

        what = exp(i 2 pi k.d) w,   and w where that is aliased

    Shapes: re, im [B, T, M, U], pixels [B, T, 2], k [M, 2] -> re, im.
    Book: chapter 15.
    """
    return rotate(re, im, phase_advance(pixels, k)[..., None])
