"""A record of irregular measurements as a set of tokens: one for each observed (time, feature, value).

A table with a column for every hour and a row for every channel would be mostly holes, and a filled hole is a
measurement that nobody made. A set of tokens has no holes: what was not measured is not there.

Book: chapter 08.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lab.tokens import Series, Tokens


class ObservationTokenizer(nn.Module):
    """One token for each observation: what was measured, when, and how much.

        x_i = v_i W[f_i] + q_i,   q_i = E[f_i] + code(t_i)

    with the value v, the feature f, the time t in hours, and a learned direction W and place E for each feature. q, the
    token without its value, is what a predictor is asked with. Order is in the times alone: the encoder sees a set, and
    permuting the observations of a record permutes its tokens.

    Args:
        n_features: how many features there are. dim: the token width D, even.
        shortest, longest: the periods of the time code in hours; those in between are spaced geometrically.
    Shapes: batch["value"] [B, N], batch["time"] [B, N], batch["feature"] Int[B, N] in 0..n_features-1,
        batch["valid"] Bool[B, N] (False = padding, whatever it holds) -> Tokens with R = 1.
    Raises: ValueError for sizes or periods out of range, and (checked on the CPU) for an unknown feature.
    Book: chapter 08.
    """

    raw_dim = 1

    def __init__(self, n_features: int, dim: int, shortest: float = 1.0, longest: float = 200.0):
        super().__init__()
        if n_features < 1 or dim < 2 or dim % 2:
            raise ValueError(f"n_features must be at least 1 and dim even and positive, got {n_features} and {dim}")
        if not 0 < shortest < longest < math.inf:
            raise ValueError(f"shortest and longest must be periods, 0 < shortest < longest, got {shortest}, {longest}")
        self.n_features, self.dim = n_features, dim
        self.shortest, self.longest = shortest, longest
        self.direction = nn.Embedding(n_features, dim)
        self.place = nn.Embedding(n_features, dim)

    def forward(self, batch: dict[str, Tensor]) -> Tokens:
        valid, dtype = batch["valid"], self.place.weight.dtype
        # Nothing that stands in a padded slot may come further: NaN times an attention weight of zero is NaN.
        value, time = (batch[name].to(dtype).masked_fill(~valid, 0.0) for name in ("value", "time"))
        feature = batch["feature"].masked_fill(~valid, 0)
        if (
            feature.device.type == "cpu"
            and feature.numel()
            and not 0 <= feature.min() <= feature.max() < self.n_features
        ):
            raise ValueError(
                f"batch['feature'] must lie in 0..{self.n_features - 1}, got {int(feature.min())}..{int(feature.max())}"
            )
        query = self.place(feature) + time_code(time, self.dim, self.shortest, self.longest)
        x = value[..., None] * self.direction(feature) + query
        return Tokens(x, valid, query, value[..., None], Series(time, feature))


def time_code(
    hours: Float[Tensor, "*shape"], dim: int, shortest: float = 1.0, longest: float = 200.0
) -> Float[Tensor, "*shape D"]:
    """Sines and cosines of a time, of dim / 2 periods from `shortest` to `longest` hours, spaced geometrically.

        [sin(2 pi t / p_i), cos(2 pi t / p_i)],   p_i = shortest (longest / shortest)^(i / (dim/2 - 1))

    Continuous: two times that differ by little have codes that differ by little, and no time is cut to a grid.

    Shapes: hours [...] -> [..., dim].
    Raises: ValueError for an odd `dim`.
    Book: chapter 08.
    """
    if dim % 2:
        raise ValueError(f"dim must be even (half sines, half cosines), got {dim}")
    share = torch.arange(dim // 2, device=hours.device, dtype=hours.dtype) / max(dim // 2 - 1, 1)
    angle = 2 * math.pi * hours[..., None] / (shortest * (longest / shortest) ** share)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
