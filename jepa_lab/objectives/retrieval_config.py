"""The settings of `Retrieval`: its architecture, its losses and their weights, its phases.

Book: chapter 14.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from jepa_lab.text_nets import RetrievalPredictorConfig

ARCHITECTURES = ("predictor", "asymmetric", "bidirectional")
CONTRASTS = ("info_nce", "attraction")
ISOTROPIES = ("isotropy", "sigreg", "vicreg")
LAMBDAS = ("predictive", "contrastive", "isotropy", "reg")

# The weights of the three recipes that the literature on this idea proposes.
PRESETS = {
    "minimal": {"lambda_predictive": 1.0, "lambda_contrastive": 0.0, "lambda_isotropy": 0.0},
    "hybrid": {"lambda_predictive": 0.5, "lambda_contrastive": 0.1, "lambda_isotropy": 1.0},
    "full": {"lambda_predictive": 1.0, "lambda_contrastive": 0.0, "lambda_isotropy": 1.0},
}


@dataclass(frozen=True)
class RetrievalLossConfig:
    """The weights of the four losses (0 leaves one out), and what each of them is.

    Predictive: the distance `kind` of the predicted to the actual embedding of the source, whose gradient
    `stop_gradient` stops. Contrastive: `info_nce`, against the other sources of the batch (`in_batch`) and those that
    come with the pair (`hard_negatives`), or `attraction` alone, which has no negatives. Isotropy: `isotropy`,
    `sigreg` with `n_slices` directions, or `vicreg`, its variance and covariance terms in the usual proportion. Reg:
    embeddings should have the length that the others presume."""

    lambda_predictive: float = 1.0
    lambda_contrastive: float = 0.1
    lambda_isotropy: float = 1.0
    lambda_reg: float = 0.0
    kind: Literal["mse", "smooth_l1", "cosine"] = "mse"
    stop_gradient: bool = True
    contrast: Literal["info_nce", "attraction"] = "info_nce"
    temperature: float = 0.05
    in_batch: bool = True
    hard_negatives: bool = True
    isotropy: Literal["isotropy", "sigreg", "vicreg"] = "isotropy"
    n_slices: int = 256

    def __post_init__(self):
        for name in (f"lambda_{part}" for part in LAMBDAS):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"loss.{name} must be a finite number that is not negative, got {getattr(self, name)}")
        if not any(getattr(self, f"lambda_{part}") for part in LAMBDAS):
            raise ValueError(f"loss: one of the weights {', '.join(f'lambda_{p}' for p in LAMBDAS)} must be positive")
        for name, known in {"contrast": CONTRASTS, "isotropy": ISOTROPIES}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"loss.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"loss.temperature must be a positive number, got {self.temperature}")
        if self.n_slices < 1:
            raise ValueError(f"loss.n_slices must be at least 1, got {self.n_slices}")
        if self.lambda_contrastive and self.contrast == "info_nce" and not (self.in_batch or self.hard_negatives):
            raise ValueError("loss: InfoNCE needs in_batch or hard_negatives, or both; or set contrast=attraction")


@dataclass(frozen=True)
class PhaseConfig:
    """Until `frozen_until`, a share of the training, the encoders stay as they are and the predictor alone learns; from
    `isotropy_from` on the isotropy loss counts. (0, 0) is joint training from the first step; (0.2, 0.8) has three
    phases: predictor, joint, fine-tuning with isotropy."""

    frozen_until: float = 0.0
    isotropy_from: float = 0.0

    def __post_init__(self):
        for name in ("frozen_until", "isotropy_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"phases.{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class RetrievalConfig:
    """`architecture`: `predictor`, one encoder for questions and sources and a predictor from the one to the other;
    `asymmetric`, an encoder of its own for the sources (with `shared` the same one after all, which is `predictor`
    again); `bidirectional`, one encoder and a predictor in each direction. `mix`: a question searches with
    (1 - mix) cosine(question, source) + mix cosine(prediction, source)."""

    architecture: Literal["predictor", "asymmetric", "bidirectional"] = "predictor"
    shared: bool = False
    mix: float = 0.0
    predictor: RetrievalPredictorConfig = field(default_factory=RetrievalPredictorConfig)
    loss: RetrievalLossConfig = field(default_factory=RetrievalLossConfig)
    phases: PhaseConfig = field(default_factory=PhaseConfig)

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")
        if self.shared and self.architecture != "asymmetric":
            raise ValueError(
                f"shared=true is for architecture=asymmetric; {self.architecture} has one encoder anyway, leave it out"
            )
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix must lie in [0, 1], got {self.mix}")
        if not self.loss.lambda_predictive and self.mix:
            raise ValueError("mix must be 0 without a predictor (loss.lambda_predictive=0)")
        if not self.loss.lambda_predictive and self.phases.frozen_until:
            raise ValueError("phases.frozen_until must be 0 without a predictor: nothing would be trained until then")
