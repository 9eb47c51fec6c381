"""Contrastive learning: two views of a sample must find each other among all the others (SimCLR).

Book: chapter 04.
"""

from dataclasses import dataclass

from torch import Tensor

from jepa_lab.losses import nt_xent
from jepa_lab.nets import TokenEncoder
from jepa_lab.objectives.two_view import TwoView, TwoViewConfig


@dataclass(frozen=True)
class ContrastiveConfig(TwoViewConfig):
    """Two views as in `TwoViewConfig`, and the `temperature` of NT-Xent."""

    temperature: float = 0.2


class Contrastive(TwoView):
    """Two views, one embedding each, NT-Xent.

    Metrics: `accuracy`, `positive_cosine`, `negative_cosine` of `losses.nt_xent`.
    Paper: Chen et al. 2020 (SimCLR). Book: chapter 04.
    """

    Config = ContrastiveConfig

    def __init__(self, encoder: TokenEncoder, config: ContrastiveConfig | None = None, seed: int = 0):
        super().__init__(encoder, config, seed)
        if not self.config.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.config.temperature}")

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return nt_xent(*self.embed_all(batch), self.config.temperature)
