"""JASPER: predict where the source of a question lies, given a steering signal.

Book: chapter 12.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepa_lab.data.steering import VARIANTS
from jepa_lab.distributed import gather
from jepa_lab.ema import SCHEDULES, EMAEncoder
from jepa_lab.losses import centroid_loss, info_nce, prediction_loss, vicreg
from jepa_lab.metrics import normalized_std, retrieval_metrics, retrieval_ranks
from jepa_lab.objectives.base import Objective
from jepa_lab.predictors import SteeringPredictor, SteeringPredictorConfig

TARGETS = ("raw", "ema", "stop_gradient", "none")
SCALES = ("sqrt_dim", "unit")


@dataclass(frozen=True)
class TargetConfig:
    """`target`: the space in which sources are searched. `raw` leaves their embeddings as they are. The others put a
    trainable encoder, the identity at first, before questions and sources: sources go through its moving average
    (`ema`, with `schedule` from `start` to `end`), through itself behind a `stop_gradient`, or through itself with
    gradient (`none`, which collapses without a loss that holds it open). `hidden_dim` is the encoder's hidden width."""

    target: Literal["raw", "ema", "stop_gradient", "none"] = "raw"
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    start: float = 0.996
    end: float = 0.999
    hidden_dim: int = 256

    def __post_init__(self):
        for name, known in {"target": TARGETS, "schedule": tuple(SCHEDULES)}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"ema.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("start", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ema.{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.hidden_dim < 1:
            raise ValueError(f"ema.hidden_dim must be at least 1, got {self.hidden_dim}")

    def build(self):
        return (
            SCHEDULES["constant"](self.start)
            if self.schedule == "constant"
            else SCHEDULES[self.schedule](self.start, self.end)
        )


@dataclass(frozen=True)
class JasperLossConfig:
    """The weights lambda of the four losses (0 leaves one out), their temperatures, and the three weights within
    VICReg. The weights mean something only for vectors of a known size: `scale` brings the unit vectors to length
    sqrt(D) (`sqrt_dim`), one unit a feature, before smooth-L1 and VICReg, or leaves them (`unit`)."""

    prediction: float = 1.0
    contrastive: float = 0.5
    centroid: float = 0.1
    vicreg: float = 0.1
    temperature: float = 0.07
    centroid_temperature: float = 0.1
    in_batch: bool = True
    hard_negatives: bool = True
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    scale: Literal["sqrt_dim", "unit"] = "sqrt_dim"

    def __post_init__(self):
        lambdas = ("prediction", "contrastive", "centroid", "vicreg")
        for name in (*lambdas, "invariance", "variance", "covariance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"loss.{name} must be a finite number that is not negative, got {getattr(self, name)}")
        if not any(getattr(self, name) for name in lambdas):
            raise ValueError(f"loss: one of the weights {', '.join(lambdas)} must be positive, all are 0")
        for name in ("temperature", "centroid_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"loss.{name} must be a positive number, got {getattr(self, name)}")
        if self.scale not in SCALES:
            raise ValueError(f"loss.scale must be one of {', '.join(SCALES)}, got {self.scale!r}")
        if self.contrastive and not (self.in_batch or self.hard_negatives):
            raise ValueError("loss: the contrastive loss needs in_batch or hard_negatives, or both")


@dataclass(frozen=True)
class JasperConfig:
    """The predictor (`model`), the space of the targets (`ema`), and the losses (`loss`)."""

    model: SteeringPredictorConfig = field(default_factory=SteeringPredictorConfig)
    ema: TargetConfig = field(default_factory=TargetConfig)
    loss: JasperLossConfig = field(default_factory=JasperLossConfig)


class ResidualEncoder(nn.Module):
    """x + f(x) with f zero at first: a trainable encoder that starts as the identity.

    Shapes: [..., D] -> [..., D].
    """

    def __init__(self, dim: int, hidden: int = 256):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        nn.init.zeros_(self.f[-1].weight)
        nn.init.zeros_(self.f[-1].bias)

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        return x + self.f(x)


class Jasper(Objective):
    """Question and steering in, the place of the source out: four losses on one prediction.

        L = lambda_p smooth-L1(p, y) + lambda_c InfoNCE(p, y, negatives) + lambda_k centroid(p) + lambda_v VICReg(p, y)

    y is the target: the source, through the target encoder, at unit length. Negatives and the topics' centroids go
    through the same encoder. Smooth-L1 and VICReg see both vectors times sqrt(D); InfoNCE and the centroid loss see
    directions only. The other rows of the batch are negatives too, except those with the same source.

    Represents: `query`, the prediction for question and steering; `source`, the target of a source.

    Metrics: the unweighted losses `prediction`, `contrastive`, `centroid`, `vicreg`, where their weight is not 0;
    those of `info_nce` as `contrastive_...`; `centroid_accuracy`; `steering/...`, the share of each steering variant in
    the batch; `target_std`, the normalised std of the targets (0 = collapsed); `tau`.
    Book: chapter 12.

    Args:
        centroids: a unit vector for each topic [K, D], in the space of the sources before any encoder; kept in the
            state dict, since the centroid loss cannot do without.
    """

    Config = JasperConfig
    family = "text"
    representations = ("query", "source")

    def __init__(self, centroids: Float[Tensor, "K D"], config: JasperConfig | None = None, seed: int = 0):
        config = config or JasperConfig()
        dim, ema = centroids.shape[1], config.ema
        if not centroids.isfinite().all():
            raise ValueError("centroids must be finite: look for NaN in the embeddings")
        super().__init__(nn.Identity() if ema.target == "raw" else ResidualEncoder(dim, ema.hidden_dim), seed)
        self.config = config
        self.register_buffer("centroids", centroids.clone())
        self.predictor = self._build_predictor()
        self.target_encoder = EMAEncoder(self.encoder, ema.build()) if ema.target == "ema" else None

    def _build_predictor(self) -> nn.Module:
        return SteeringPredictor(self.centroids.shape[1], self.config.model)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        # Each loss is one over the batch, so several processes bring their rows together first.
        p, y = gather(self.predict(batch["question"], batch["steering"])), gather(self.target(batch["source"]))
        return self._losses(p, y, batch)

    def _losses(self, p: Tensor, y: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The four losses, weighted and summed, on the gathered predictions and targets of a batch; the metrics."""
        loss, scale = self.config.loss, self._scale()
        parts, metrics = {}, {}
        if loss.prediction:
            parts["prediction"] = prediction_loss(p * scale, y * scale, target_norm="none")
        if loss.contrastive:
            parts["contrastive"], found = self._contrast(p, y, batch)
            metrics |= {f"contrastive_{name}": value for name, value in found.items()}
        if loss.centroid:
            parts["centroid"], metrics["centroid_accuracy"] = centroid_loss(
                p, self.target(self.centroids), gather(batch["topic"]), loss.centroid_temperature
            )
        if loss.vicreg:
            parts["vicreg"], _ = vicreg(p * scale, y * scale, loss.invariance, loss.variance, loss.covariance)
        total = sum(getattr(loss, name) * value for name, value in parts.items())
        metrics |= {name: value.detach() for name, value in parts.items()}
        variant = gather(batch["steering_variant"])
        metrics |= {f"steering/{name}": (variant == i).float().mean() for i, name in enumerate(VARIANTS)}
        if len(y) > 1:
            metrics["target_std"] = normalized_std(y.detach())
        if self.target_encoder is not None:
            metrics["tau"] = self.target_encoder.tau.clone()
        return total, metrics

    def _contrast(self, p: Tensor, y: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, source = self.config.loss, gather(batch["source_id"])
        hard = loss.hard_negatives and batch["negatives"].shape[1] > 0
        return info_nce(
            p,
            y,
            gather(self.target(batch["negatives"])) if hard else None,
            loss.temperature,
            ignore=source[:, None] == source,
            ignore_negatives=gather(batch["negative_id"]) == source[:, None] if hard else None,
            in_batch=loss.in_batch,
        )

    def predict(self, question: Float[Tensor, "B D"], steering: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The place where the source of a question should lie, in the space of `target`. Shapes: [B, D] -> [B, D].

        Raises: ValueError for embeddings of another width than the centroids.
        """
        self._check_width("question", question)
        return self.predictor(self.encoder(question), steering)

    def target(self, source: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        """Sources, negatives or centroids as the losses and the search see them, at unit length; with gradient only
        when `ema.target` is `none`. Shapes: [..., D] -> [..., D].

        Raises: ValueError for embeddings of another width than the centroids.
        """
        self._check_width("source", source)
        if self.target_encoder is not None:
            return F.normalize(self.target_encoder(source), dim=-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.ema.target == "none"):
            return F.normalize(self.encoder(source), dim=-1)

    def _check_width(self, name: str, x: Tensor) -> None:
        if x.shape[-1] != self.centroids.shape[1]:
            raise ValueError(f"{name} must have the centroids' width {self.centroids.shape[1]}, got {x.shape[-1]}")

    def _scale(self) -> float:
        return self.centroids.shape[1] ** 0.5 if self.config.loss.scale == "sqrt_dim" else 1.0

    def after_step(self, progress: float) -> None:
        if self.target_encoder is not None:
            self.target_encoder.update(progress)

    def _represent(self, batch: dict[str, Tensor], name: str) -> Tensor:
        if name == "query":
            return self.predict(batch["question"], batch["steering"])
        return self.target(batch["source"])

    @torch.no_grad()
    def evaluate(self, data: dict[str, Tensor]) -> dict[str, float]:
        """Search the sources of `data` with its questions: recall@1, recall@10, mrr, ndcg@10; with `topic` also
        `centroid_accuracy`, how often the nearest centroid is the topic's. `data` holds `question, source, steering` as
        a batch does, maybe `source_id` (pairs with one id share the source) and `topic` (as numbered in training)."""
        device = self.centroids.device
        data = {key: value.to(device) for key, value in data.items()}
        query, source = self.represent(data, "query"), self.represent(data, "source")
        right = torch.arange(len(query), device=device)
        if "source_id" in data:  # each source once in the pool, else its copies tie with it
            ids, right = torch.unique(data["source_id"], return_inverse=True)
            first = torch.full((len(ids),), len(right), device=device)
            source = source[first.scatter_reduce_(0, right, torch.arange(len(right), device=device), "amin")]
        found = retrieval_metrics(retrieval_ranks(query, source, right))
        if "topic" in data:  # parts that share no topic have no centroids in common
            _, accuracy = centroid_loss(query, self.target(self.centroids), data["topic"])
            found["centroid_accuracy"] = float(accuracy)
        return found
