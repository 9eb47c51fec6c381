"""Two views without negatives and without batch statistics: SimSiam and BYOL predict one view from the other.

Book: chapters 05, 06.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from jepa_lab.distributed import gather, global_mean
from jepa_lab.ema import EMAEncoder
from jepa_lab.losses import negative_cosine
from jepa_lab.metrics import normalized_std
from jepa_lab.nets import TokenEncoder
from jepa_lab.objectives.jepa import MomentumConfig
from jepa_lab.objectives.two_view import TwoView, TwoViewConfig
from jepa_lab.predictors import MLPPredictor


@dataclass(frozen=True)
class SimSiamConfig(TwoViewConfig):
    """`predictor_hidden` is the width of the predictor's hidden layer. Without `stop_gradient` it collapses."""

    head_norm: Literal["layer", "batch", "none"] = "batch"
    predictor_hidden: int = 32
    stop_gradient: bool = True


class SimSiam(TwoView):
    """Predict each view's embedding from the other's; the target side carries no gradient.

        loss = 1/2 D(g(z1), sg(z2)) + 1/2 D(g(z2), sg(z1)),   D = minus the cosine

    Metrics: `embedding_std`, the normalised std of the embeddings (1 = spread over the sphere, 0 = collapsed).
    Paper: Chen & He 2021. Book: chapter 06.
    """

    Config = SimSiamConfig

    def __init__(self, encoder: TokenEncoder, config: SimSiamConfig | None = None, seed: int = 0):
        super().__init__(encoder, config, seed)
        self.predictor = MLPPredictor(self.embedding_dim, self.config.predictor_hidden)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        z1, z2 = self.embed(batch)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        t1, t2 = (z1.detach(), z2.detach()) if self.config.stop_gradient else (z1, z2)
        loss = (negative_cosine(p1, t2) + negative_cosine(p2, t1)) / 2
        return global_mean(loss, len(z1)), {"embedding_std": normalized_std(gather(z1.detach()))}


@dataclass(frozen=True)
class BYOLConfig(TwoViewConfig):
    """`predictor_hidden` is the width of the predictor's hidden layer, `momentum` the EMA of encoder and head."""

    head_norm: Literal["layer", "batch", "none"] = "batch"
    predictor_hidden: int = 128
    momentum: MomentumConfig = field(default_factory=MomentumConfig)


class BYOL(TwoView):
    """SimSiam with targets from an EMA of encoder and head. Represents with the target encoder.

        loss = [2 - 2 cos(g(z1), z2')] + [2 - 2 cos(g(z2), z1')],   z' from the target encoder and head

    Metrics: `embedding_std`, `tau`.
    Paper: Grill et al. 2020, equations 1 to 3. Book: chapters 05, 06.
    """

    Config = BYOLConfig

    def __init__(self, encoder: TokenEncoder, config: BYOLConfig | None = None, seed: int = 0):
        super().__init__(encoder, config, seed)
        self.predictor = MLPPredictor(self.embedding_dim, self.config.predictor_hidden)
        schedule = self.config.momentum.build()
        self.target_encoder = EMAEncoder(encoder, schedule)
        self.target_head = EMAEncoder(self.head, schedule)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        views = self.draw(batch)
        z1, z2 = self.head(self.encode(self.encoder, views)).chunk(2)
        t1, t2 = self.targets(views)
        loss = 4 + 2 * negative_cosine(self.predictor(z1), t2) + 2 * negative_cosine(self.predictor(z2), t1)
        metrics = {"embedding_std": normalized_std(gather(t1)), "tau": self.target_encoder.tau.clone()}
        return global_mean(loss, len(z1)), metrics

    def targets(self, views) -> tuple[Tensor, Tensor]:
        return self.target_head(self.encode(self.target_encoder.target, views)).chunk(2)

    def after_step(self, progress: float) -> None:
        self.target_encoder.update(progress)
        self.target_head.update(progress)

    @property
    def representing_encoder(self) -> TokenEncoder:
        return self.target_encoder.target
