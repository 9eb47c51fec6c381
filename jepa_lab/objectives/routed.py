"""JASPER with a router: the prediction is an exact anchor plus a residual, and says which anchor.

Book: chapter 13.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_lab.calibration import expected_calibration_error
from jepa_lab.distributed import gather
from jepa_lab.objectives.steering import Jasper, JasperConfig
from jepa_lab.predictors import Decomposed, DecomposedConfig, DecomposedPredictor
from jepa_lab.routing import RouterConfig, SubspaceRouter, entropy
from jepa_lab.routing_losses import (
    disentanglement,
    entropy_regularisation,
    entropy_target,
    residual_penalty,
    routing_loss,
)


@dataclass(frozen=True)
class RoutingLossConfig:
    """The weights of the four routing losses (0 leaves one out), and their settings. The entropy that a row may have
    falls from log K to `entropy_end` nats at the share `entropy_until` of the training; `batch_entropy` is the weight
    of the batch's within the entropy loss, `residual_margin` the length of a residual that costs nothing, in units of
    an embedding's length."""

    routing: float = 1.0
    entropy: float = 0.1
    residual: float = 0.1
    disentanglement: float = 0.01
    label_smoothing: float = 0.0
    batch_entropy: float = 1.0
    entropy_end: float = 0.1
    entropy_until: float = 1.0
    residual_margin: float = 0.5

    def __post_init__(self):
        for name in (
            "routing", "entropy", "residual", "disentanglement", "batch_entropy", "entropy_end", "residual_margin"
        ):  # fmt: skip
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"routing.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"routing.label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if not 0 < self.entropy_until <= 1:
            raise ValueError(f"routing.entropy_until must lie in (0, 1], got {self.entropy_until}")


@dataclass(frozen=True)
class RoutedJasperConfig(JasperConfig):
    """The residual network (`model`), the `router`, the space of the targets (`ema`), the losses on the prediction
    (`loss`) and those on its routing (`routing`). `router_first` is the share of the training in which the residual is
    0 and the router alone learns. `refreshes` is how often in the course of the training the anchors are made anew from
    the moving target encoder: 0 = they stay frozen, the number of epochs = once an epoch."""

    model: DecomposedConfig = field(default_factory=DecomposedConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    routing: RoutingLossConfig = field(default_factory=RoutingLossConfig)
    router_first: float = 0.0
    refreshes: int = 0

    def __post_init__(self):
        if not 0 <= self.router_first < 1:
            raise ValueError(f"router_first must lie in [0, 1), got {self.router_first}")
        if self.refreshes < 0:
            raise ValueError(f"refreshes must not be negative, got {self.refreshes}")


class RoutedJasper(Jasper):
    """Jasper whose predictor is a `DecomposedPredictor`; the losses on its routing come on top of Jasper's four.

        L = L_Jasper + lambda_r CE(router, topic) + lambda_h entropy + lambda_f residual + lambda_d disentanglement

    The anchors are the centroids as the targets see them, without gradient: those of the start, when the target encoder
    is the identity, unless they are refreshed.

    Represents: `query`, the prediction; `source`, as Jasper.

    Metrics: those of Jasper, and `routing_loss`, `entropy_loss`, `residual_loss`, `disentanglement_loss` where their
    weight is not 0; `routing_accuracy` under the steering of the batch; `entropy`, the mean over rows, and
    `batch_entropy`, that of the mean distribution; `subspaces_used`, the exponential of the entropy of the shares in
    which subspaces come first; `residual_norm`; the `temperature` of the draw.
    Book: chapter 13.
    """

    Config = RoutedJasperConfig

    def __init__(self, centroids: Float[Tensor, "K D"], config: RoutedJasperConfig | None = None, seed: int = 0):
        super().__init__(centroids, config or RoutedJasperConfig(), seed)
        self.register_buffer("refreshed", torch.tensor(0))
        self.register_buffer("entropy_allowed", torch.tensor(0.0))
        self.before_step(0.0)

    def _build_predictor(self) -> DecomposedPredictor:
        k, dim = self.centroids.shape
        # No target encoder yet, but every one of them starts as the identity: these are the targets of the start.
        anchors = F.normalize(self.centroids, dim=-1)
        return DecomposedPredictor(anchors, SubspaceRouter(dim, k, self.config.router), self.config.model)

    def before_step(self, progress: float) -> None:
        c, k = self.config, len(self.centroids)
        self.predictor.router.anneal(progress)
        self.predictor.residual.fill_(float(progress >= c.router_first))
        self.entropy_allowed.fill_(entropy_target(progress, k, c.routing.entropy_end, c.routing.entropy_until))
        due = int(progress * c.refreshes + 1e-9)  # epoch / epochs x epochs may fall short of the epoch
        if due > self.refreshed:
            self.predictor.refresh(self.target(self.centroids).detach())
            self.refreshed.fill_(due)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        c, out = self.config.routing, self.decompose(batch["question"], batch["steering"])
        total, metrics = self._losses(gather(out.prediction), gather(self.target(batch["source"])), batch)
        logits, topic, fine = gather(out.logits), gather(batch["topic"]), gather(out.fine)
        parts = {}
        if c.routing:
            parts["routing"] = routing_loss(logits, topic, c.label_smoothing)
        if c.entropy:
            parts["entropy"], _ = entropy_regularisation(logits, self.entropy_allowed, c.batch_entropy)
        if c.residual:
            parts["residual"] = residual_penalty(fine, c.residual_margin)
        if c.disentanglement:
            parts["disentanglement"] = disentanglement(gather(out.weights))
        total = total + sum(getattr(c, name) * value for name, value in parts.items())
        metrics |= {f"{name}_loss": value.detach() for name, value in parts.items()}
        p, first = logits.detach().softmax(1), logits.detach().argmax(1)
        return total, metrics | {
            "routing_accuracy": (first == topic).float().mean(),
            "entropy": entropy(p).mean(),
            "batch_entropy": entropy(p.mean(0)),
            "subspaces_used": subspaces_used(logits),
            "residual_norm": fine.detach().norm(dim=1).mean(),
            "temperature": self.predictor.router.temperature.clone(),
        }

    def predict(self, question: Float[Tensor, "B D"], steering: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.decompose(question, steering).prediction

    def decompose(self, question: Float[Tensor, "B D"], steering: Float[Tensor, "B D"]) -> Decomposed:
        """The prediction and its parts. In training mode the routing is drawn; in eval mode it is not.

        Raises: ValueError for embeddings of another width than the centroids.
        """
        self._check_width("question", question)
        return self.predictor(self.encoder(question), steering, self.generator)

    @torch.no_grad()
    def explain_parts(self, question: Float[Tensor, "B D"], steering: Float[Tensor, "B D"]) -> Decomposed:
        """`decompose` in eval mode, without gradient."""
        was_training = self.training
        self.eval()
        try:
            return self.decompose(question, steering)
        finally:
            self.train(was_training)

    @torch.no_grad()
    def evaluate(self, data: dict[str, Tensor]) -> dict[str, float]:
        """As Jasper; with `topic` also how the question *alone* is routed, with zero steering: `routing_accuracy`,
        `ece` (the calibration error of its confidence), `subspaces_used`, `entropy` (the mean over rows) and
        `batch_entropy` in nats. A steering vector is the topic: with it the accuracy says nothing."""
        found = super().evaluate(data)
        if "topic" in data:
            question = data["question"].to(self.centroids.device)
            logits, topic = (
                self.explain_parts(question, torch.zeros_like(question)).logits,
                data["topic"].to(question.device),
            )
            found["routing_accuracy"] = float((logits.argmax(1) == topic).double().mean())
            p = logits.softmax(1)
            found["ece"] = expected_calibration_error(p, topic)
            found["subspaces_used"] = float(subspaces_used(logits))
            found["entropy"], found["batch_entropy"] = float(entropy(p).mean()), float(entropy(p.mean(0)))
        return found


@torch.no_grad()
def subspaces_used(logits: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """How many subspaces come first, weighted: exp of the entropy of their shares. 1 when all rows go to one, K when
    the rows are spread evenly. Shapes: [B, K] -> scalar."""
    share = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).to(logits.dtype) / len(logits)
    return entropy(share).exp()
