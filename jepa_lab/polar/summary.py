"""What of the past does a neuron's rate depend on? Traces of the responses, or only their average.

Book: chapter 15.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Summary = Literal["temporal", "static"]
CHANNELS = {"temporal": 11, "static": 4}  # features a pair that a summary makes
BOX = 24  # frames that a static summary averages over


def trace_weights(alpha: Float[Tensor, ""], frames: int) -> Float[Tensor, "T T"]:
    """What each frame weighs in an exponential trace that starts at the first frame: each row sums to 1.

        trace_t = alpha trace_(t-1) + (1 - alpha) x_t,  trace_0 = x_0:   D_ts = (1 - alpha) alpha^(t-s),  D_t0 = alpha^t

    A trace that starts at 0 would first have to fill: after 24 frames of alpha = .95 it has reached 71 per cent.

    Shapes: scalar in (0, 1) -> [T, T], lower triangular.
    Book: chapter 15.
    """
    t = torch.arange(frames, device=alpha.device)
    lag = (t[:, None] - t[None, :]).clamp(min=0)
    new = torch.where(t == 0, 1.0, 1 - alpha)
    return (alpha**lag * new).tril()


def trace(x: Float[Tensor, "B T *rest"], alpha: Float[Tensor, ""]) -> Float[Tensor, "B T *rest"]:
    """The exponential trace of x over all frames, as one product with `trace_weights`.

    Shapes: [B, T, ...] -> [B, T, ...].
    Book: chapter 15.
    """
    return (trace_weights(alpha, x.shape[1]) @ x.flatten(2)).view_as(x)


def trace_loop(x: Float[Tensor, "B T *rest"], alpha: Float[Tensor, ""]) -> Float[Tensor, "B T *rest"]:
    """`trace` frame by frame: slower, and what the other is tested against.

    Shapes: [B, T, ...] -> [B, T, ...].
    Book: chapter 15.
    """
    frames = [x[:, 0]]
    for t in range(1, x.shape[1]):
        frames.append(alpha * frames[-1] + (1 - alpha) * x[:, t])
    return torch.stack(frames, dim=1)


def box(x: Float[Tensor, "B T *rest"], frames: int = BOX) -> Float[Tensor, "B T *rest"]:
    """The mean of the last `frames` frames, of fewer where there are fewer. It never looks ahead.

    Shapes: [B, T, ...] -> [B, T, ...].
    Book: chapter 15.
    """
    t = torch.arange(x.shape[1], device=x.device)
    lag = t[:, None] - t[None, :]
    inside = ((lag >= 0) & (lag < frames)).to(x.dtype)
    return (inside / inside.sum(1, keepdim=True) @ x.flatten(2)).view_as(x)


class TemporalSummarizer(nn.Module):
    """What the readout is shown of the pooled responses, at every frame, from this frame and earlier ones.

    `temporal`, 11 features a pair: of the amplitude the last value, the fast and the slow trace and the difference to
    the frame before; the temporal energy; of the real and the imaginary part the last value and both traces. Without
    those six no phase would reach the readout, and a simple cell is a phase.
    `static`, 4 features a pair: amplitude, energy, real and imaginary part, each averaged over the last 24 frames.

    The traces' memory alpha is learnt, through a logit.

    Raises: ValueError for another kind, or an alpha outside (0, 1).
    Book: chapter 15.
    """

    def __init__(self, kind: Summary = "temporal", fast: float = 0.74, slow: float = 0.95):
        super().__init__()
        if kind not in CHANNELS:
            raise ValueError(f"summary must be temporal or static, got {kind!r}")
        self.kind = kind
        if kind == "temporal":
            for name, alpha in (("fast", fast), ("slow", slow)):
                if not 0 < alpha < 1:
                    raise ValueError(f"{name} must lie in (0, 1), got {alpha}")
            self.logit = nn.Parameter(torch.tensor([math.log(a / (1 - a)) for a in (fast, slow)]))

    def forward(
        self,
        amplitude: Float[Tensor, "B T M U"],
        energy: Float[Tensor, "B T M U"],
        re: Float[Tensor, "B T M U"],
        im: Float[Tensor, "B T M U"],
    ) -> Float[Tensor, "B T C U"]:
        """Shapes: [B, T, M, U] each -> [B, T, C, U] with C = 11 M or 4 M."""
        if self.kind == "static":
            return torch.cat([box(x) for x in (amplitude, energy, re, im)], dim=2)
        parts = torch.cat([amplitude, re, im], dim=2)
        fast, slow = self.logit.sigmoid()
        rise = torch.diff(amplitude, dim=1, prepend=amplitude[:, :1])
        return torch.cat([parts, trace(parts, fast), trace(parts, slow), rise, energy], dim=2)
