"""Which topic is this question about? A soft choice among K subspaces, and the losses that teach it.

A router sits in the middle of a model, so the prediction's own gradient reaches it too. That gradient does not care
which subspace is called what, and is content with a single one for all: what is to be believed when the model explains
itself must be supervised by itself. Each loss here acts on tensors that carry gradient; what is returned for
explanation is detached afterwards.

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
    return one_hot + soft - soft.detach()


def _gumbel(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    n = positions(len(logits), logits)[1]
    exponential = torch.empty(n, logits.shape[1]).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log().to(logits)


def annealed(progress: float, start: float, end: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def entropy(p: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
    """-sum p log p in nats: 0 for one certain class, log K for K equal ones. Shapes: [..., K] -> [...]."""
    return -torch.special.xlogy(p, p).sum(-1)


# ------------------------------------------------------------------------------------------------------- losses


def routing_loss(
    logits: Float[Tensor, "B K"], topic: Int[Tensor, " B"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy of the right subspace: the one loss that gives the subspaces their meaning.

    Shapes: logits [B, K], topic [B] -> scalar.
    Raises: ValueError for label_smoothing outside [0, 1).
    Book: chapter 13.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    return F.cross_entropy(logits, topic, label_smoothing=label_smoothing)


def entropy_regularisation(
    logits: Float[Tensor, "B K"], target: float = 0.1, batch_weight: float = 1.0
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Each row decided, all subspaces in use.

        loss = mean_i max(0, H(p_i) - target) + batch_weight (log K - H(mean_i p_i)),   p = softmax(logits)

    The first term alone is at its best when every row is sent to one and the same subspace; the second is zero only
    when the batch as a whole uses all of them equally. On softmax(logits), not on a Gumbel draw, whose entropy is that
    of the noise and the temperature.

    Args:
        target: entropy of a row, in nats, above which it is penalised. Anneal it from log K to 0.1: first diversity,
            then confidence (`entropy_target`).
    Shapes: [B, K] -> scalar, and the detached 0-d metrics `entropy` (mean of the rows) and `batch_entropy`.
    Raises: ValueError for a negative target or batch_weight.
    Book: chapter 13.
    """
    if not (target >= 0 and batch_weight >= 0):
        raise ValueError(f"target and batch_weight must not be negative, got {target} and {batch_weight}")
    p = logits.softmax(1)
    rows, batch = entropy(p), entropy(p.mean(0))
    loss = (rows - target).relu().mean() + batch_weight * (math.log(logits.shape[1]) - batch)
    return loss, {"entropy": rows.detach().mean(), "batch_entropy": batch.detach()}


def entropy_target(progress: float, k: int, end: float = 0.1, until: float = 1.0) -> float:
    """The entropy that a row may have at a progress in [0, 1]: linear from log k to `end` nats at `until`, then `end`.

    Raises: ValueError for `until` outside (0, 1].
    """
    if not 0 < until <= 1:
        raise ValueError(f"until must lie in (0, 1], got {until}")
    start = max(math.log(k), end)
    return start + (end - start) * min(max(progress / until, 0.0), 1.0)


def residual_penalty(fine: Float[Tensor, "B D"], margin: float = 0.5, scale: float = 1.0) -> Float[Tensor, ""]:
    """Explain with the anchor first: a hinge on the length of the residual, relative to the embeddings' own length.

        loss = mean_i max(0, |fine_i| / scale - margin)

    Args:
        scale: the length of an embedding, 1 for unit vectors: a margin without it means nothing.
    Shapes: [B, D] -> scalar.
    Raises: ValueError for a negative margin or scale <= 0.
    Book: chapter 13.
    """
    if not (margin >= 0 and scale > 0):
        raise ValueError(f"margin must not be negative and scale positive, got {margin} and {scale}")
    # The tiny constant keeps the gradient finite at a residual of exactly zero, where training starts.
    length = (fine.square().sum(1) + 1e-12).sqrt()
    return (length / scale - margin).relu().mean()


def disentanglement(weights: Float[Tensor, "B K"] | Sequence[Float[Tensor, "B _"]]) -> Float[Tensor, ""]:
    """Subspaces that vary independently: squared covariances over the batch, off the diagonal.

        loss = sum_{i != j} Cov(w_i, w_j)^2 / K

    With several axes (a router each: topic, style, ...) only covariances *between* axes count: two axes should not say
    the same. Within one axis weights that sum to 1 must covary, and the loss cannot reach zero.

    Shapes: weights [B, K], or one such tensor per axis -> scalar.
    Raises: ValueError on fewer than 2 rows, or axes with different numbers of rows.
    Book: chapter 13.
    """
    axes = [weights] if isinstance(weights, Tensor) else list(weights)
    if not axes or len({len(axis) for axis in axes}) != 1 or len(axes[0]) < 2:
        raise ValueError(
            f"weights must be [B, K] with B >= 2, the same B in each axis, got {[tuple(a.shape) for a in axes]}"
        )
    w = torch.cat(axes, dim=1)
    w = w - w.mean(0)
    covariance = w.T @ w / (len(w) - 1)
    if len(axes) == 1:
        other = ~torch.eye(w.shape[1], dtype=torch.bool, device=w.device)
    else:
        axis = torch.repeat_interleave(torch.arange(len(axes)), torch.tensor([a.shape[1] for a in axes])).to(w.device)
        other = axis[:, None] != axis
    return torch.where(other, covariance, 0.0).square().sum() / w.shape[1]
