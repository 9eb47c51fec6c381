"""JEPA: predict the representation of what is hidden from the representation of what is seen.

Book: chapters 01, 03, 05, 06, 07.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from jepa_lab.distributed import gather, global_mean, world_size
from jepa_lab.ema import SCHEDULES, EMAEncoder
from jepa_lab.losses import covariance_term, isotropy, prediction_loss, sigreg, variance_term
from jepa_lab.masking import Mask, MaskConfig
from jepa_lab.metrics import normalized_std
from jepa_lab.nets import TokenEncoder, masked_mean
from jepa_lab.objectives.base import Objective
from jepa_lab.objectives.masked import Answers, PredictorConfig, Seen, ask, draw_mask, see
from jepa_lab.tokens import Tokens, gather_tokens

# Each asks the rows to vary by about 1 in every direction. VICReg's two terms are in their paper's proportion, 25 : 1.
REGULARISERS = {
    "none": None,
    "vicreg": lambda rows, generator: variance_term(rows) + covariance_term(rows) / 25,
    "sigreg": lambda rows, generator: sigreg(rows, n_slices=64, generator=generator),
    "isotropy": lambda rows, generator: isotropy(rows),
}


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
    `losses.prediction_loss`. `regulariser` holds the encoder's features apart; `regulariser_weight` times its value is
    added to the loss, computed on at most `regulariser_rows` random tokens of the batch. `use_contrastive` adds NT-Xent
    between two views, and with it the settings of `c_jepa.NTXentConfig`: `build_objective` then makes another class."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    target: Literal["ema", "stop_gradient", "none"] = "ema"
    target_norm: Literal["layer", "batch", "none"] = "layer"
    loss: Literal["smooth_l1", "mse", "cosine"] = "smooth_l1"
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)
    regulariser: Literal["none", "vicreg", "sigreg", "isotropy"] = "none"
    regulariser_weight: float = 0.1
    regulariser_rows: int = 512
    use_contrastive: bool = False

    def __post_init__(self):
        if not self.regulariser_weight >= 0 or self.regulariser_rows < 2:
            raise ValueError(
                "regulariser_weight must not be negative and regulariser_rows must be at least 2, "
                f"got {self.regulariser_weight} and {self.regulariser_rows}"
            )


class Step(NamedTuple):
    """A forward pass of `JEPA`: the loss, its metrics, what the context encoder saw, and everything that the target
    encoder says, [B, N, D]."""

    loss: Tensor
    metrics: dict[str, Tensor]
    seen: Seen
    everything: Tensor


class JEPA(Objective):
    """Masked-token JEPA on any token encoder.

    The context encoder sees the context tokens only. The target encoder sees *all* tokens; its outputs at the target
    positions are what the predictor must produce, given the context and the positions. Represents with the target
    encoder when there is one; the `online_` representations are those of the context encoder.

    A regulariser acts on the context encoder's own outputs, one row a token, before the target norm: at the target
    positions where this encoder makes the targets too, at the context positions where an EMA does. On other vectors
    than the compared ones it would be satisfied while those collapse.

    Metrics: `target_std`, the normalised std of the pooled targets (1 = spread over the sphere, 0 = collapsed),
    `tau`, the EMA momentum of the last update (as `jepa_momentum` too), and with a regulariser its unweighted value,
    `regulariser`, and the loss without it, `prediction`. `jepa_loss` and `ssl_loss` are the loss without it, the second
    under the name that all objectives of the comparison share; `jepa_mask_ratio_actual`, `jepa_n_tokens_per_sample`,
    `jepa_n_visible_per_sample` and `jepa_n_masked_per_sample` count what the masks hid.
    Papers: LeCun 2022; Assran et al. 2023 (I-JEPA). Book: chapters 01, 03.
    """

    Config = JEPAConfig
    contrastive: ClassVar[bool] = False  # what `use_contrastive` must be
    representations = (*Objective.representations, "online_pooled", "online_tokens")

    def __init__(self, encoder: TokenEncoder, config: JEPAConfig | None = None, seed: int = 0):
        super().__init__(encoder, seed)
        self.config = config = config or self.Config()
        if config.use_contrastive != self.contrastive:
            raise ValueError(
                f"use_contrastive={config.use_contrastive} does not fit {type(self).__name__}; `build_objective` picks "
                "the class that it does"
            )
        if config.target not in ("ema", "stop_gradient", "none"):
            raise ValueError(f"target must be ema, stop_gradient or none, got {config.target!r}")
        if config.regulariser not in REGULARISERS:
            raise ValueError(f"regulariser must be one of {', '.join(REGULARISERS)}, got {config.regulariser!r}")
        config.mask.check(encoder.grid, encoder.is_series)
        self.predictor = config.predictor.build(encoder.dim)
        self.target_encoder = EMAEncoder(encoder, config.momentum.build()) if config.target == "ema" else None

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        step = self.step(batch)
        return step.loss, step.metrics

    def step(self, batch: dict[str, Tensor]) -> Step:
        """The loss, its metrics, and what either encoder said."""
        tokens = self.encoder.tokenize(batch)
        mask, counts = self.draw(tokens)
        seen = see(self.encoder, tokens, mask)
        loss, everything, metrics = self.predict(batch, tokens, mask, seen)
        metrics |= {"ssl_loss": loss.detach(), "jepa_loss": loss.detach()}
        metrics |= {f"jepa_{name}": value for name, value in counts.items()}
        pooled = gather(masked_mean(everything.detach(), tokens.valid))
        if len(pooled) > 1:
            metrics["target_std"] = normalized_std(pooled.nan_to_num())
        if self.target_encoder is not None:
            metrics["tau"] = metrics["jepa_momentum"] = self.target_encoder.tau.clone()
        if self.config.regulariser != "none":
            if self.target_encoder is not None:
                rows = gather(seen.h, seen.valid)
            else:
                rows = gather(everything, mask.targets.any(1) & tokens.valid & seen.valid.any(1)[:, None])
            regulariser = self.regularise(rows)
            metrics |= {"prediction": loss.detach(), "regulariser": regulariser.detach()}
            loss = loss + self.config.regulariser_weight * regulariser
        return Step(loss, metrics, seen, everything)

    def draw(self, tokens: Tokens) -> tuple[Mask, dict[str, Tensor]]:
        """A mask for each row, and what it hides on average."""
        return draw_mask(self.config.mask, self.encoder, tokens, self.generator)

    def predict(
        self, batch: dict[str, Tensor], tokens: Tokens, mask: Mask, seen: Seen
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The prediction loss, the target representations of all tokens [B, N, D], and more metrics."""
        everything = self.targets(batch)
        told = ask(self.predictor, seen, tokens.query, mask.targets)
        return self.compare(told.prediction, self.compared(everything, told), told.asked), everything, {}

    def compared(self, target: Tensor, told: Answers) -> Tensor:
        """What the answers are compared with: of `target` [B, N, D] the slots that were asked for, [B M, L, D]."""
        target = target if self.config.target == "none" else target.detach()
        m = len(told.slot) // len(target)
        return gather_tokens(repeat(target, "b n d -> (b m) n d", m=m), told.slot)

    def compare(self, prediction: Tensor, target: Tensor, asked: Tensor) -> Tensor:
        """The prediction loss over the asked tokens of all processes."""
        how = (self.config.loss, self.config.target_norm)
        if self.config.target_norm == "batch" and world_size() > 1:  # its statistics are those of all the targets
            return prediction_loss(gather(prediction, asked), gather(target, asked), None, *how)
        return global_mean(prediction_loss(prediction, target, asked, *how), asked)

    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        """Representations of all tokens of the whole input, [B, N, D], before the target norm; they carry gradient
        only where the config says so, or where the regulariser needs it."""
        if self.target_encoder is not None:
            return self.target_encoder(batch)
        # With target="none" the gradient flows into the targets: moving them is easier than predicting.
        with torch.set_grad_enabled(self.config.target == "none" or self.config.regulariser != "none"):
            return self.encoder(batch)

    def regularise(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
        """The configured regulariser on at most `regulariser_rows` of these rows, drawn without replacement."""
        if len(rows) > self.config.regulariser_rows:
            chosen = torch.randperm(len(rows), generator=self.generator)[: self.config.regulariser_rows]
            rows = rows[chosen.to(rows.device)]
        return REGULARISERS[self.config.regulariser](rows, self.generator)

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
