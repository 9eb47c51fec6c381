"""Masked autoencoder: reconstruct the input itself where it is hidden, from the representation of what is seen.

Book: chapters 08, 09, 10.
"""

from dataclasses import dataclass, field
from typing import Literal

from einops import repeat
from torch import Tensor

from jepa_lab.distributed import global_mean
from jepa_lab.losses import prediction_loss
from jepa_lab.masking import MaskConfig
from jepa_lab.nets import TokenEncoder
from jepa_lab.objectives.base import Objective
from jepa_lab.objectives.masked import PredictorConfig, answer, draw_mask
from jepa_lab.tokens import gather_tokens


@dataclass(frozen=True)
class MAEConfig:
    """`decoder` is the light network that is thrown away afterwards. `target_norm` "layer" standardises what each token
    holds (the paper's per-patch normalisation), "none" asks for the input as it is."""

    mask: MaskConfig = field(default_factory=lambda: MaskConfig(ratio=0.75))
    decoder: PredictorConfig = field(default_factory=PredictorConfig)
    target_norm: Literal["layer", "none"] = "none"


class MAE(Objective):
    """Masked autoencoder on any token encoder: the JEPA of `JEPA` with the raw input as its target.

        loss = mean over hidden tokens of |decoder(encoder(visible), where)_i - raw_i|^2 / R

    The encoder sees the context tokens only. The decoder gets their outputs, a learnable mask token for each hidden
    slot and the code of where it is; it is `MaskedTokenPredictor` with a head of width R, what a token held before it
    was embedded: p^2 C for the pixels of a patch, 1 for an observation. Nothing is asked of the visible tokens. There
    is no target encoder, and nothing that could collapse: the target does not move.

    Metrics: `mae_loss` and `ssl_loss`, both the loss; `mae_mask_ratio_actual`, the hidden share of the real tokens,
    and `mae_n_tokens_per_sample`, `mae_n_visible_per_sample`, `mae_n_masked_per_sample`.
    Raises: ValueError when `target_norm` is "layer" and a token holds a single number: it would become a zero.
    Paper: He et al. 2022, section 3. Book: chapters 08, 09, 10.
    """

    Config = MAEConfig

    def __init__(self, encoder: TokenEncoder, config: MAEConfig | None = None, seed: int = 0):
        super().__init__(encoder, seed)
        self.config = config = config or MAEConfig()
        if config.target_norm not in ("layer", "none"):
            raise ValueError(f"target_norm must be layer or none, got {config.target_norm!r}")
        if config.target_norm == "layer" and encoder.raw_dim == 1:
            raise ValueError("target_norm='layer' makes a zero of a token that holds one number; use 'none'")
        config.mask.check(encoder.grid)
        self.decoder = config.decoder.build(encoder.dim, encoder.raw_dim)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self.encoder.tokenize(batch)
        mask, counts = draw_mask(self.config.mask, self.encoder, tokens.valid, self.generator)
        told = answer(self.encoder, self.decoder, tokens, mask)
        target = gather_tokens(repeat(tokens.raw, "b n r -> (b m) n r", m=mask.targets.shape[1]), told.slot)
        loss = prediction_loss(told.prediction, target, told.asked, "mse", self.config.target_norm)
        loss = global_mean(loss, told.asked)
        metrics = {"ssl_loss": loss.detach(), "mae_loss": loss.detach()}
        return loss, metrics | {f"mae_{name}": value for name, value in counts.items()}
