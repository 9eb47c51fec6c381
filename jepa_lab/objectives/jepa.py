"""JEPA: predict the representation of what is hidden from the representation of what is seen.

Book: chapters 01, 03.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor

from jepa_lab.ema import SCHEDULES, EMAEncoder
from jepa_lab.losses import prediction_loss
from jepa_lab.masking import MaskConfig, take_visible
from jepa_lab.metrics import normalized_std
from jepa_lab.nets import TokenEncoder, masked_mean
from jepa_lab.objectives.base import Objective
from jepa_lab.predictors import MaskedTokenPredictor
from jepa_lab.tokens import gather_tokens


@dataclass(frozen=True)
class PredictorConfig:
    """The predictor's own width, depth and heads; usually narrower than the encoder."""

    width: int = 64
    depth: int = 2
    heads: int = 2


@dataclass(frozen=True)
class MomentumConfig:
    """The EMA momentum tau over the run: `constant` (start), `linear` or `cosine` from start to end."""

    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    start: float = 0.99
    end: float = 0.999

    def build(self):
        if self.schedule == "constant":
            return SCHEDULES["constant"](self.start)
        return SCHEDULES[self.schedule](self.start, self.end)


@dataclass(frozen=True)
class JEPAConfig:
    """`target` says where the targets come from: the `ema` of the encoder, the encoder itself behind a
    `stop_gradient`, or the encoder with gradient (`none`, which collapses). `target_norm` and `loss` are those of
    `losses.prediction_loss`."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    target: Literal["ema", "stop_gradient", "none"] = "ema"
    target_norm: Literal["layer", "batch", "none"] = "layer"
    loss: Literal["smooth_l1", "mse", "cosine"] = "smooth_l1"
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)


class JEPA(Objective):
    """Masked-token JEPA on any token encoder.

    The context encoder sees the context tokens only. The target encoder sees *all* tokens; its outputs at the target
    positions are what the predictor must produce, given the context and the positions. Represents with the target
    encoder when there is one; the `online_` representations are those of the context encoder.

    Metrics: `target_std`, the normalised std of the pooled targets (1 = spread over the sphere, 0 = collapsed),
    and `tau`, the EMA momentum of the last update.
    Papers: LeCun 2022; Assran et al. 2023 (I-JEPA). Book: chapters 01, 03.
    """

    Config = JEPAConfig
    representations = (*Objective.representations, "online_pooled", "online_tokens")

    def __init__(self, encoder: TokenEncoder, config: JEPAConfig | None = None, seed: int = 0):
        super().__init__(encoder, seed)
        self.config = config = config or JEPAConfig()
        if config.target not in ("ema", "stop_gradient", "none"):
            raise ValueError(f"target must be ema, stop_gradient or none, got {config.target!r}")
        config.mask.check(encoder.grid)
        p = config.predictor
        self.predictor = MaskedTokenPredictor(encoder.dim, p.width, p.depth, p.heads)
        self.target_encoder = EMAEncoder(encoder, config.momentum.build()) if config.target == "ema" else None

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self.encoder.tokenize(batch)
        mask = self.config.mask.draw(tokens.valid, self.encoder.grid, self.generator)

        context, context_valid, index = take_visible(tokens.x, mask.context)  # hidden tokens are gone from here on
        h = self.encoder.encode(context, context_valid)

        m = mask.targets.shape[1]
        flat = rearrange(mask.targets & context_valid.any(1)[:, None, None], "b m n -> (b m) n")
        query, asked, where = take_visible(repeat(tokens.query, "b n d -> (b m) n d", m=m), flat)
        prediction = self.predictor(
            h,
            context_valid,
            gather_tokens(tokens.query, index),
            rearrange(query, "(b m) l d -> b m l d", m=m),
            rearrange(asked, "(b m) l -> b m l", m=m),
        )

        everything = self.targets(batch)
        target = gather_tokens(repeat(everything, "b n d -> (b m) n d", m=m), where)
        loss = prediction_loss(
            rearrange(prediction, "b m l d -> (b m) l d"), target, asked, self.config.loss, self.config.target_norm
        )
        pooled = masked_mean(everything.detach(), tokens.valid)
        metrics = {"target_std": normalized_std(pooled.nan_to_num())} if len(pooled) > 1 else {}
        if self.target_encoder is not None:
            metrics["tau"] = self.target_encoder.tau.clone()
        return loss, metrics

    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        """Representations of all tokens of the whole input, [B, N, D], before the target norm."""
        if self.target_encoder is not None:
            return self.target_encoder(batch)
        if self.config.target == "none":
            return self.encoder(batch)  # the gradient flows into the targets: moving them is easier than predicting
        with torch.no_grad():
            return self.encoder(batch)

    def after_step(self, progress: float) -> None:
        if self.target_encoder is not None:
            self.target_encoder.update(progress)

    def _represent(self, batch: dict[str, Tensor], name: str) -> Tensor:
        if name.startswith("online_"):
            return self._read(self.encoder, batch, name.removeprefix("online_"))
        return super()._represent(batch, name)

    @property
    def representing_encoder(self) -> TokenEncoder:
        return self.encoder if self.target_encoder is None else self.target_encoder.target
