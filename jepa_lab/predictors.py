"""From what is seen to what is not: the predictors.

Book: chapters 01, 03, 12, 13.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepa_lab.calibration import percentile_of, quantiles_of
from jepa_lab.nets import MLP, Transformer
from jepa_lab.routing import SubspaceRouter
from jepa_lab.tokens import nothing_padded


class MaskedTokenPredictor(nn.Module):
    """I-JEPA's predictor: context tokens and mask tokens in, representations of the masked tokens out.

    Every token is projected to the predictor's own, usually smaller, width. A hidden slot enters as one learnable
    mask token plus the code of *where* (or when, or which feature) it is: that code is its whole question. A light
    transformer lets the questions look at the context, and the answers are projected back to the encoder's width.
    The M target blocks of a row are M sequences of their own, so that no block sees another's questions.

    Args:
        dim_out: the width R of an answer; default D, the encoder's. The decoder of a masked autoencoder answers with
            what a token holds instead.
    Shapes:
        context [B, K, D], context_valid Bool[B, K], context_query [B, K, D],
        target_query [B, M, L, D], target_valid Bool[B, M, L] -> prediction [B, M, L, R], zeros at padded slots.
    Paper: Assran et al. 2023, section 3 (narrow predictor, appendix A). Book: chapters 01, 03.
    """

    def __init__(
        self,
        dim: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 2,
        mlp_ratio: float = 2.0,
        dim_out: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.project_query = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.transformer = Transformer(width, depth, heads, mlp_ratio, dropout)
        self.back = nn.Linear(width, dim_out or dim)

    def forward(
        self,
        context: Float[Tensor, "B K D"],
        context_valid: Bool[Tensor, "B K"],
        context_query: Float[Tensor, "B K D"],
        target_query: Float[Tensor, "B M L D"],
        target_valid: Bool[Tensor, "B M L"],
    ) -> Float[Tensor, "B M L R"]:
        m, k = target_query.shape[1], context.shape[1]
        seen = self.project(context) + self.project_query(context_query)
        asked = self.mask_token + self.project_query(rearrange(target_query, "b m l d -> (b m) l d"))
        x = torch.cat([repeat(seen, "b k w -> (b m) k w", m=m), asked], dim=1)
        asked_valid = rearrange(target_valid, "b m l -> (b m) l")
        valid = torch.cat([repeat(context_valid, "b k -> (b m) k", m=m), asked_valid], dim=1)
        answer = self.back(self.transformer(x, valid)[:, k:])
        if not nothing_padded(asked_valid):
            answer = answer.masked_fill(~asked_valid[..., None], 0.0)
        return rearrange(answer, "(b m) l d -> b m l d", m=m)


class MLPPredictor(nn.Module):
    """A two-layer MLP from one embedding to another of the same width, as in BYOL and SimSiam.

    Shapes: [..., D] -> [..., D].
    Paper: Grill et al. 2020, section 3.2.
    """

    def __init__(self, dim: int, hidden: int | None = None, depth: int = 1, norm: str = "layer"):
        super().__init__()
        self.net = MLP(dim, hidden or 2 * dim, dim, depth, norm)

    def forward(self, h: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self.net(h)


ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


def _check_layers(hidden_dim: int, num_layers: int, dropout: float) -> None:
    if hidden_dim < 1 or num_layers < 0:
        raise ValueError(
            "model.hidden_dim must be at least 1 and model.num_layers not negative (0 = linear), "
            f"got {hidden_dim} and {num_layers}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"model.dropout must lie in [0, 1), got {dropout}")


@dataclass(frozen=True)
class SteeringPredictorConfig:
    """`num_layers` hidden layers of width `hidden_dim` in each encoder; 0 makes the whole predictor one linear map.
    `residual` starts from the question itself: q + f(q, s), with f zero at first."""

    hidden_dim: int = 256
    num_layers: int = 2
    dropout: float = 0.1
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    layer_norm: bool = True
    residual: bool = True
    normalize_output: bool = False

    def __post_init__(self):
        _check_layers(self.hidden_dim, self.num_layers, self.dropout)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"model.activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")


class SteeringPredictor(nn.Module):
    """Where does the source of this question lie, if it comes from there? Question and steering in, prediction out.

        p = q + f(q, s)     (residual)        p = f(q, s)     (plain)
        f(q, s) = head([question_encoder(q); steering_encoder(s)])

    The residual form starts at p = q, which already finds many sources: its last layer is zero. The plain form has to
    find the space of the sources first.

    Shapes: question [B, D], steering [B, D] -> [B, D]; unit rows with `normalize_output`.
    Raises: ValueError when question or steering have another width than `dim`.
    Book: chapter 12.
    """

    def __init__(self, dim: int, config: SteeringPredictorConfig | None = None):
        super().__init__()
        self.dim = dim
        self.config = c = config or SteeringPredictorConfig()
        if c.num_layers:
            self.question_encoder = self._encoder(dim)
            self.steering_encoder = self._encoder(dim)
            self.head = nn.Sequential(*self._layer(2 * c.hidden_dim), nn.Linear(c.hidden_dim, dim))
        else:
            self.question_encoder = self.steering_encoder = nn.Identity()
            self.head = nn.Sequential(nn.Linear(2 * dim, dim))
        if c.residual:
            nn.init.zeros_(self.head[-1].weight)
            nn.init.zeros_(self.head[-1].bias)

    def _encoder(self, dim: int) -> nn.Sequential:
        c = self.config
        widths = [dim] + [c.hidden_dim] * (c.num_layers - 1)
        return nn.Sequential(*[part for width in widths for part in self._layer(width)])

    def _layer(self, width: int) -> list[nn.Module]:
        c = self.config
        norm = [nn.LayerNorm(c.hidden_dim)] if c.layer_norm else []
        return [nn.Linear(width, c.hidden_dim), *norm, ACTIVATIONS[c.activation](), nn.Dropout(c.dropout)]

    def forward(self, question: Float[Tensor, "B D"], steering: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        for name, value in {"question": question, "steering": steering}.items():
            if value.shape[-1] != self.dim:
                raise ValueError(f"{name} must have the predictor's width {self.dim}, got {value.shape[-1]}")
        h = torch.cat([self.question_encoder(question), self.steering_encoder(steering)], dim=-1)
        p = self.head(h)
        if self.config.residual:
            p = question + p
        return F.normalize(p, dim=-1) if self.config.normalize_output else p


@dataclass(frozen=True)
class DecomposedConfig:
    """The residual network: `num_layers` hidden layers of width `hidden_dim` beside a linear map (0 leaves the linear
    map alone), on question, steering and coarse part side by side (`concat`) or summed (`add`). `start`: before any
    training the residual is the question itself (`question`), which already finds sources, or zero (`anchor`)."""

    hidden_dim: int = 256
    num_layers: int = 2
    dropout: float = 0.1
    combine: Literal["concat", "add"] = "concat"
    start: Literal["question", "anchor"] = "question"

    def __post_init__(self):
        _check_layers(self.hidden_dim, self.num_layers, self.dropout)
        if self.combine not in ("concat", "add"):
            raise ValueError(f"model.combine must be concat or add, got {self.combine!r}")
        if self.start not in ("anchor", "question"):
            raise ValueError(f"model.start must be anchor or question, got {self.start!r}")


class Decomposed(NamedTuple):
    """A prediction [B, D] and what it is made of: coarse + fine [B, D], the routing weights and logits [B, K]."""

    prediction: Tensor
    coarse: Tensor
    fine: Tensor
    weights: Tensor
    logits: Tensor


class DecomposedPredictor(nn.Module):
    """A prediction that says where it comes from: an exact anchor plus a residual.

        prediction = coarse + fine,   coarse = sum_k w_k anchor_k,   fine = q + f(q, s, coarse)  or  f(q, s, coarse)

    The router chooses the weights w. Anchors are the centroids of the subspaces, frozen unless `refresh` is called: the
    coarse part of a one-hot choice is a centroid to the bit. The length of the fine part says how far from typical the
    prediction is: its *atypicality*, in absolute terms and, after `calibrate`, as a percentile of the training pairs.

    Shapes: question, steering [B, D] -> `Decomposed`.
    Raises: ValueError when the router has another width, or another number of subspaces, than the anchors [K, D].
    Book: chapter 13.
    """

    def __init__(self, anchors: Float[Tensor, "K D"], router: SubspaceRouter, config: DecomposedConfig | None = None):
        super().__init__()
        k, dim = anchors.shape
        if (router.n_subspaces, router.dim) != (k, dim):
            raise ValueError(
                f"router must have {k} subspaces of width {dim}, as the anchors, got {router.n_subspaces} of "
                f"{router.dim}"
            )
        if not anchors.isfinite().all():
            raise ValueError("anchors must be finite: look for NaN in the embeddings")
        self.config = c = config or DecomposedConfig()
        self.router = router
        self.register_buffer("anchors", anchors.detach().clone())
        self.register_buffer("residual", torch.tensor(1.0))  # 0 in a first stage that trains the router alone
        self.register_buffer("quantiles", torch.full((101,), -1.0))  # of the atypicality; -1 = not known yet
        width = 3 * dim if c.combine == "concat" else dim
        self.skip = nn.Linear(width, dim)
        layers = []
        for i in range(c.num_layers):
            layers += [nn.Linear(c.hidden_dim if i else width, c.hidden_dim), nn.LayerNorm(c.hidden_dim), nn.GELU()]
            layers += [nn.Dropout(c.dropout)]
        self.net = nn.Sequential(*layers, nn.Linear(c.hidden_dim, dim)) if layers else None
        last = [self.skip] if self.net is None else [self.skip, self.net[-1]]
        for layer in last:  # nothing is added to the start
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        question: Float[Tensor, "B D"],
        steering: Float[Tensor, "B D"],
        generator: torch.Generator | None = None,
    ) -> Decomposed:
        weights, logits = self.router(question, steering, generator)
        coarse = weights @ self.anchors
        if self.config.combine == "concat":
            x = torch.cat([question, steering, coarse], dim=-1)
        else:
            x = question + steering + coarse
        fine = self.skip(x) if self.net is None else self.skip(x) + self.net(x)
        if self.config.start == "question":
            fine = fine + question
        fine = fine * self.residual
        return Decomposed(coarse + fine, coarse, fine, weights, logits)

    @torch.no_grad()
    def refresh(self, anchors: Float[Tensor, "K D"]) -> None:
        """Move the anchors, for a space that moved in training."""
        self.anchors.copy_(anchors)

    @torch.no_grad()
    def calibrate(self, fine: Float[Tensor, "n D"]) -> None:
        """Keep the distribution of the atypicality over these residuals, of the training pairs."""
        self.quantiles.copy_(quantiles_of(fine.norm(dim=1)))

    @torch.no_grad()
    def percentile(self, atypicality: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Share of the training pairs, in %, that are less atypical; straight lines between whole percents.

        Raises: ValueError before `calibrate`.
        """
        if self.quantiles[0] < 0:
            raise ValueError("calibrate the predictor on training pairs first: a percentile needs a distribution")
        return percentile_of(atypicality, self.quantiles)
