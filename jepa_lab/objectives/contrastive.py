"""Contrastive learning: two views of a sample must find each other among all the others (SimCLR).

Book: chapter 04.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_lab.distributed import gather
from jepa_lab.losses import nt_xent
from jepa_lab.nets import TokenEncoder
from jepa_lab.objectives.two_view import TwoView, TwoViewConfig


@dataclass(frozen=True)
class ContrastiveConfig(TwoViewConfig):
    """Two views as in `TwoViewConfig`, and the `temperature` of NT-Xent."""

    temperature: float = 0.2


class Contrastive(TwoView):
    """Two views, one embedding each, NT-Xent.

    Metrics: `accuracy`, `positive_cosine`, `negative_cosine` of `losses.nt_xent`; the first two once more as
    `contrastive_accuracy` and `contrastive_pos_similarity`, `contrastive_temperature`, the loss as `contrastive_loss`
    and as `ssl_loss`, its name in all objectives of the comparison; with masked views `contrastive_mask_ratio_actual`,
    `contrastive_n_tokens_per_sample`, `contrastive_n_visible_per_sample` and `contrastive_n_masked_per_sample`, means
    over both views.
    Paper: Chen et al. 2020 (SimCLR). Book: chapter 04.
    """

    Config = ContrastiveConfig

    def __init__(self, encoder: TokenEncoder, config: ContrastiveConfig | None = None, seed: int = 0):
        super().__init__(encoder, config, seed)
        if not self.config.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.config.temperature}")

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        views = self.draw(batch)
        z1, z2 = (gather(z) for z in self.head(self.encode(self.encoder, views)).chunk(2))
        loss, metrics = nt_xent(z1, z2, self.config.temperature)
        metrics |= {
            "ssl_loss": loss.detach(),
            "contrastive_loss": loss.detach(),
            "contrastive_accuracy": metrics["accuracy"],
            "contrastive_pos_similarity": metrics["positive_cosine"],
            "contrastive_temperature": torch.full_like(loss.detach(), self.config.temperature),
        }
        return loss, metrics | {f"contrastive_{name}": value for name, value in views.counts.items()}
