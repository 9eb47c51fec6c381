"""Which topic is this question about? A soft choice among K subspaces.

What teaches it is in `routing_losses`; what is made of the choice, a prediction, in `predictors.DecomposedPredictor`.

Book: chapter 13.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lab.distributed import own, positions

SAMPLING = ("gumbel", "straight_through", "none")
INFERENCE = ("softmax", "argmax")


@dataclass(frozen=True)
class RouterConfig:
    """`num_layers` hidden layers of width `hidden_dim`; `normalize` brings question and steering to unit length first.

    In training the weights are drawn: `gumbel` softly, `straight_through` one-hot with the soft gradient, `none` not
    at all (the softmax). Their temperature falls along half a cosine from `temperature_start` to `temperature_end`.
    At inference nothing is drawn: `softmax` at `inference_temperature`, or `argmax`, all weight on one subspace."""

    hidden_dim: int = 128
    num_layers: int = 1
    dropout: float = 0.1
    normalize: bool = False
    sampling: Literal["gumbel", "straight_through", "none"] = "gumbel"
    temperature_start: float = 1.0
    temperature_end: float = 0.1
    inference: Literal["softmax", "argmax"] = "softmax"
    inference_temperature: float = 1.0

    def __post_init__(self):
        if self.hidden_dim < 1 or self.num_layers < 0:
            raise ValueError(
                "router.hidden_dim must be at least 1 and router.num_layers not negative (0 = linear), "
                f"got {self.hidden_dim} and {self.num_layers}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"router.dropout must lie in [0, 1), got {self.dropout}")
        for name in ("temperature_start", "temperature_end", "inference_temperature"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"router.{name} must be a positive number, got {getattr(self, name)}")
        for name, known in {"sampling": SAMPLING, "inference": INFERENCE}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"router.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


class Routing(NamedTuple):
    """The weights [B, K] that mix the subspaces, and the logits [B, K] that they come from."""

    weights: Tensor
    logits: Tensor


class SubspaceRouter(nn.Module):
    """From question and steering to a distribution over K subspaces.

    Shapes: question [B, D], steering [B, D] -> `Routing`: weights [B, K], rows that sum to 1, and logits [B, K].
    Raises: ValueError for K < 1, or when question or steering have another width than `dim`.
    Papers: Jang et al. 2017 and Maddison et al. 2017 (Gumbel-softmax). Book: chapter 13.
    """

    def __init__(self, dim: int, n_subspaces: int, config: RouterConfig | None = None):
        super().__init__()
        if n_subspaces < 1:
            raise ValueError(f"n_subspaces must be at least 1, got {n_subspaces}")
        self.dim, self.n_subspaces = dim, n_subspaces
        self.config = c = config or RouterConfig()
        layers, width = [], 2 * dim
        for _ in range(c.num_layers):
            layers += [nn.Linear(width, c.hidden_dim), nn.LayerNorm(c.hidden_dim), nn.GELU(), nn.Dropout(c.dropout)]
            width = c.hidden_dim
        self.net = nn.Sequential(*layers, nn.Linear(width, n_subspaces))
        self.register_buffer("temperature", torch.tensor(c.temperature_start))  # of the draw in training

    def anneal(self, progress: float) -> None:
        """Set the temperature of the draw for a progress in [0, 1]."""
        self.temperature.fill_(annealed(progress, self.config.temperature_start, self.config.temperature_end))

    def forward(
        self,
        question: Float[Tensor, "B D"],
        steering: Float[Tensor, "B D"],
        generator: torch.Generator | None = None,
    ) -> Routing:
        logits = self.logits(question, steering)
        c = self.config
        if self.training and c.sampling != "none":
            weights = gumbel_softmax(logits, self.temperature, c.sampling == "straight_through", generator)
        elif self.training:
            weights = (logits / self.temperature).softmax(1)
        elif c.inference == "argmax":
            weights = F.one_hot(logits.argmax(1), self.n_subspaces).to(logits.dtype)
        else:
            weights = (logits / c.inference_temperature).softmax(1)
        return Routing(weights, logits)

    def logits(self, question: Float[Tensor, "B D"], steering: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        for name, value in {"question": question, "steering": steering}.items():
            if value.shape[-1] != self.dim:
                raise ValueError(f"{name} must have the router's width {self.dim}, got {value.shape[-1]}")
        if self.config.normalize:
            question, steering = F.normalize(question, dim=-1), F.normalize(steering, dim=-1)
        return self.net(torch.cat([question, steering], dim=-1))

    @torch.no_grad()
    def primary_subspace(self, question: Float[Tensor, "B D"], steering: Float[Tensor, "B D"]) -> Int[Tensor, " B"]:
        """The most likely subspace of each row, without draw."""
        return self._eval_logits(question, steering).argmax(1)

    @torch.no_grad()
    def explain(
        self, question: Float[Tensor, "B D"], steering: Float[Tensor, "B D"], names: Sequence[str]
    ) -> list[dict[str, object]]:
        """For each row the name of its `primary` subspace, the router's `confidence` in it, the whole `distribution` by
        name, and its `entropy` in nats; of the softmax at temperature 1, whatever is drawn in training.

        Raises: ValueError unless there is one name per subspace.
        """
        check_names(names, self.n_subspaces)
        p = self._eval_logits(question, steering).softmax(1)
        top = p.max(1)
        return [
            {
                "primary": names[int(i)],
                "confidence": float(confidence),
                "distribution": dict(zip(names, row.tolist(), strict=True)),
                "entropy": float(h),
            }
            for row, i, confidence, h in zip(p, top.indices, top.values, entropy(p), strict=True)
        ]

    def _eval_logits(self, question: Tensor, steering: Tensor) -> Tensor:
        was_training = self.training
        self.eval()
        try:
            return self.logits(question, steering)
        finally:
            self.train(was_training)


def check_names(names: Sequence[str], k: int) -> None:
    """Raises: ValueError unless there are k different names."""
    if len(names) != k or len(set(names)) != k:
        raise ValueError(
            f"names must be {k} different names, one a subspace, got {len(names)} ({len(set(names))} different)"
        )


def gumbel_softmax(
    logits: Float[Tensor, "B K"],
    temperature: float | Tensor = 1.0,
    hard: bool = False,
    generator: torch.Generator | None = None,
    noise: Float[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B K"]:
    """A random choice that lets gradient through.

        y = softmax((logits + g) / temperature),   g = -log(-log(u)), u uniform in (0, 1)

    The largest y is class k with probability softmax(logits)_k, whatever the temperature; that decides how near to
    one-hot y is. `hard` returns the one-hot choice, and gives backwards what the soft y would (straight-through).

    Args:
        generator: of the noise, drawn on the CPU so that a seed gives the same draw on every device.
        noise: the Gumbel noise g itself, instead of a draw.
    Shapes: [B, K] -> [B, K], rows that sum to 1.
    Raises: ValueError for a temperature <= 0 given as a number.
    Papers: Jang et al. 2017, equation 2; Maddison et al. 2017. Book: chapter 13.
    """
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if noise is None:
        # Drawn for the whole batch in several processes, each keeps its own rows: the generators stay in step.
        noise = own(_gumbel(logits, generator), len(logits))
    soft = ((logits + noise) / temperature).softmax(1)
    if not hard:
        return soft
    one_hot = F.one_hot(soft.argmax(1), logits.shape[1]).to(soft.dtype)
    return one_hot + (soft - soft.detach())  # the brackets keep it exactly one-hot: (1 + x) - x is not always 1


def _gumbel(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    n = positions(len(logits), logits)[1]
    exponential = torch.empty(n, logits.shape[1]).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log().to(logits)


def annealed(progress: float, start: float, end: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1, both exact."""
    fallen = (1 - math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
    return start * (1 - fallen) + end * fallen


def entropy(p: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
    """-sum p log p in nats: 0 for one certain class, log K for K equal ones. Shapes: [..., K] -> [...]."""
    return -torch.special.xlogy(p, p).sum(-1)
