"""The systems of the book, each a composition of the parts: what is computed on a batch, and what a probe sees.

    objective = build_objective("jepa", encoder, target="none")

Book: chapters 01, 04.
"""

from jepa_lab.nets import TokenEncoder
from jepa_lab.objectives.base import Objective
from jepa_lab.objectives.contrastive import Contrastive, ContrastiveConfig
from jepa_lab.objectives.jepa import JEPA, JEPAConfig, MomentumConfig, PredictorConfig
from jepa_lab.objectives.supervised import Supervised, SupervisedConfig

OBJECTIVES: dict[str, type[Objective]] = {"jepa": JEPA, "contrastive": Contrastive, "supervised": Supervised}


def build_objective(name: str, encoder: TokenEncoder, config=None, seed: int = 0, **settings) -> Objective:
    """The objective called `name` on this encoder, from its config object or from the config's fields as keywords.

    Raises: ValueError for an unknown name (lists the known ones), TypeError for an unknown setting.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(sorted(OBJECTIVES))}")
    if config is not None and settings:
        raise TypeError(f"give either config or the settings {sorted(settings)}, not both")
    cls = OBJECTIVES[name]
    return cls(encoder, config if config is not None else cls.Config(**settings), seed=seed)


__all__ = [
    "JEPA",
    "OBJECTIVES",
    "Contrastive",
    "ContrastiveConfig",
    "JEPAConfig",
    "MomentumConfig",
    "Objective",
    "PredictorConfig",
    "Supervised",
    "SupervisedConfig",
    "build_objective",
]
