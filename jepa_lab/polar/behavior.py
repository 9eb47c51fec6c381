"""What does the eye's movement do to the model? From gaze to a gate, a gain of the rotation, and a gain of the rates.

Book: chapter 15.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepa_lab.polar.dynamics import displacement
from jepa_lab.polar.summary import trace

# Speeds that tell a saccade from a fixation, degrees a second; accelerations are larger by what 10 ms make of them.
_SPEED, _SLOPE = 25.0, 0.25
_ACCELERATION = 2500.0
_POSITION = 52.0  # degrees of a period at the start: over half of it a sine is monotone
_TRACES = (0.74, 0.95)
_FEATURES = 17


@dataclass(frozen=True)
class BehaviorConfig:
    """Width of the code of the gaze, how far it may turn a phase by itself, and how far the rates' gain may reach:
    exp(-gain) to exp(gain).

    Raises: ValueError for a setting out of range.
    Book: chapter 15.
    """

    dim: int = 128
    rho: float = 0.1
    gain: float = 1.5

    def __post_init__(self):
        if self.dim < 1:
            raise ValueError(f"behavior.dim must be at least 1, got {self.dim}")
        for name in ("rho", "gain"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"behavior.{name} must be 0 or more, got {getattr(self, name)}")


class Behavior(NamedTuple):
    """What a gaze means for the model.

    Shapes:
        q: [B, T] in (0, 1), from fixation to saccade; 1 where the eye was lost.
        gamma: [B, T, L, M], gain of the rotation, 1 at the start.
        rho: [B, T, L, M] radians, 0 at the start.
        gain: [B, T, U], factor of the rates, 1 at the start.
        moved: [B, T, 2] degrees since the frame before, 0 where the eye was lost.
        lost: Bool[B, T], blinks and the first frame after each.
    Book: chapter 15.
    """

    q: Tensor
    gamma: Tensor
    rho: Tensor
    gain: Tensor
    moved: Tensor
    lost: Tensor


class Kinematics(NamedTuple):
    """How the eye moves: velocity [B, T, 2] in deg/s, speed [B, T], acceleration [B, T, 2] in deg/s^2, the position
    with blinks bridged [B, T, 2], the displacement [B, T, 2] and where the eye was lost Bool[B, T]."""

    velocity: Tensor
    speed: Tensor
    acceleration: Tensor
    position: Tensor
    moved: Tensor
    lost: Tensor


def kinematics(gaze: Float[Tensor, "B T 2"], dt: float = 1 / 240) -> Kinematics:
    """Velocity and acceleration as differences to the frame before, so that nothing looks ahead.

    Shapes: gaze [B, T, 2] degrees, NaN = not seen -> `Kinematics`.
    Book: chapter 15.
    """
    moved, lost = displacement(gaze)
    velocity = moved / dt
    acceleration = torch.diff(velocity, dim=1, prepend=velocity[:, :1]) / dt
    # A difference to a frame whose velocity is not known says nothing.
    unknown = lost | torch.cat([lost[:, :1], lost[:, :-1]], dim=1)
    acceleration = torch.where(unknown[..., None], 0.0, acceleration)
    return Kinematics(velocity, _length(velocity), acceleration, last_seen(gaze), moved, lost)


def last_seen(gaze: Float[Tensor, "B T 2"]) -> Float[Tensor, "B T 2"]:
    """The last position before each frame at which the eye was seen; 0 before the first.

    Shapes: [B, T, 2] -> [B, T, 2] without NaN.
    Book: chapter 15.
    """
    seen = ~gaze.isnan().any(-1)
    frame = torch.arange(gaze.shape[1], device=gaze.device)
    at = torch.where(seen, frame, -1).cummax(1).values
    position = gaze.gather(1, at.clamp(min=0)[..., None].expand_as(gaze))
    return torch.where(at[..., None] < 0, 0.0, position)


class BehaviorEncoder(nn.Module):
    """From gaze to what the model takes from it.

        q = sigmoid((speed - 25 deg/s) / 4 + W_q c),   gamma = 1 + tanh(W_gamma c),   rho = .1 tanh(W_rho c)
        gain = exp(1.5 tanh(W_g c))

    c is a code of the kinematics; all W start at 0, so that a new model rotates as the shift theorem says and leaves
    the rates alone. Speeds and accelerations go through asinh: in degrees a second they reach into the hundreds and the
    ten thousands. The gain is needed: q, gamma and rho cannot say that a rate doubles after a saccade.

    Book: chapter 15.
    """

    def __init__(self, config: BehaviorConfig, levels: int, pairs: int, units: int, dt: float = 1 / 240):
        super().__init__()
        self.config, self.dt = config, dt
        self.shape = (levels, pairs)
        self.frequency = nn.Parameter(torch.eye(2) / _POSITION)  # two wave vectors, cycles a degree
        self.code = nn.Sequential(
            nn.Linear(_FEATURES, config.dim), nn.GELU(), nn.Linear(config.dim, config.dim), nn.GELU()
        )
        self.heads = nn.ModuleDict(
            {
                "q": nn.Linear(config.dim, 1),
                "gamma": nn.Linear(config.dim, levels * pairs),
                "rho": nn.Linear(config.dim, levels * pairs),
                "gain": nn.Linear(config.dim, units),
            }
        )
        for head in self.heads.values():
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, gaze: Float[Tensor, "B T 2"]) -> Behavior:
        """Shapes: gaze [B, T, 2] degrees, NaN = not seen."""
        eye = kinematics(gaze, self.dt)
        code = self.code(self.features(eye))
        q = torch.sigmoid((eye.speed - _SPEED) * _SLOPE + self.heads["q"](code)[..., 0])
        gamma = (1 + torch.tanh(self.heads["gamma"](code))).unflatten(-1, self.shape)
        rho = (self.config.rho * torch.tanh(self.heads["rho"](code))).unflatten(-1, self.shape)
        gain = torch.exp(self.config.gain * torch.tanh(self.heads["gain"](code)))
        return Behavior(torch.where(eye.lost, 1.0, q), gamma, rho, gain, eye.moved, eye.lost)

    def features(self, eye: Kinematics) -> Float[Tensor, "B T F"]:
        """What the code is made of, all of it of size 1 or so.

        Traces of the saccade gate remember a saccade for some 100 ms; their logarithms fall linearly with its age.
        """
        speed = eye.speed[..., None]
        gate = torch.sigmoid((speed - _SPEED) * _SLOPE)
        fast, slow = (trace(gate, speed.new_tensor(alpha)) for alpha in _TRACES)
        angle = 2 * math.pi * eye.position @ self.frequency.T
        return torch.cat(
            [
                torch.asinh(eye.velocity / _SPEED),
                torch.asinh(speed / _SPEED),
                F.normalize(eye.velocity, dim=-1, eps=1.0),
                torch.asinh(eye.acceleration / _ACCELERATION),
                gate,
                fast,
                slow,
                torch.log(fast + 0.01) / 2,
                torch.log(slow + 0.01) / 2,
                angle.sin(),
                angle.cos(),
                eye.lost[..., None].to(speed.dtype),
            ],
            dim=-1,
        )


def blinks(gaze: Float[Tensor, "B T 2"]) -> Bool[Tensor, "B T"]:
    """The frames at which the eye was not seen.

    Shapes: [B, T, 2] -> Bool[B, T].
    Book: chapter 15.
    """
    return gaze.isnan().any(-1)


def _length(velocity: Tensor) -> Tensor:
    """|v|, with a gradient where the eye rests."""
    return (velocity.square().sum(-1) + 1e-6).sqrt()
