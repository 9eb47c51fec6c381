"""Two views without negatives, held apart by the statistics of the batch: VICReg, Barlow Twins, LeJEPA.

None of them needs a stop-gradient, a moving average or a predictor: at a collapsed batch the loss itself is high.
Their heads have a BatchNorm, as their papers' have; statistics of the batch are what these losses are about.

Book: chapters 06, 07.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jepa_lab.losses import barlow_twins, lejepa, vicreg
from jepa_lab.objectives.two_view import TwoView, TwoViewConfig


@dataclass(frozen=True)
class VICRegConfig(TwoViewConfig):
    """The three weights of `losses.vicreg`; a weight of 0 removes a term, for the collapse gallery."""

    head_norm: Literal["layer", "batch", "none"] = "batch"
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    cov_norm: Literal["paper", "mean"] = "paper"


class VICReg(TwoView):
    """Variance, invariance, covariance.

    Metrics: the unweighted terms `invariance`, `variance`, `covariance`.
    Paper: Bardes et al. 2022. Book: chapters 06, 07.
    """

    Config = VICRegConfig

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        return vicreg(*self.embed_all(batch), c.invariance, c.variance, c.covariance, c.cov_norm)


@dataclass(frozen=True)
class BarlowTwinsConfig(TwoViewConfig):
    """`redundancy` weighs the off-diagonal correlations."""

    head_norm: Literal["layer", "batch", "none"] = "batch"
    redundancy: float = 5e-3


class BarlowTwins(TwoView):
    """The cross-correlation of the two views should be the identity.

    Metrics: the unweighted sums `on_diagonal`, `off_diagonal`.
    Paper: Zbontar et al. 2021. Book: chapter 06.
    """

    Config = BarlowTwinsConfig

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return barlow_twins(*self.embed_all(batch), self.config.redundancy)


@dataclass(frozen=True)
class LeJEPAConfig(TwoViewConfig):
    """`lam` in [0, 1] weighs SIGReg against the invariance; `n_slices` random directions a step.

    The head's last layer has no norm: SIGReg must see the scale.
    """

    head_norm: Literal["layer", "batch", "none"] = "batch"
    lam: float = 0.05
    n_slices: int = 64


class LeJEPA(TwoView):
    """Two views at one point, all embeddings together a Gaussian.

    Metrics: the unweighted `invariance`, `sigreg` (about 1 when the batch is Gaussian).
    Paper: Balestriero and LeCun 2025. Book: chapters 06, 07.
    """

    Config = LeJEPAConfig

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return lejepa(torch.stack(self.embed_all(batch)), self.config.lam, self.config.n_slices, self.generator)
