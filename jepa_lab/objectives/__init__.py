"""The systems of the book, each a composition of the parts: what is computed on a batch, and what a probe sees.

    objective = build_objective("jepa", encoder, target="none")

Book: chapters 01, 04, 06, 08 to 14.
"""

from torch import Tensor, nn

from jepa_lab.objectives.base import Objective
from jepa_lab.objectives.c_jepa import (
    CJEPA,
    CJEPAConfig,
    CJEPAVicReg,
    CJEPAVicRegConfig,
    ContrastiveJEPA,
    NTXentConfig,
)
from jepa_lab.objectives.contrastive import Contrastive, ContrastiveConfig
from jepa_lab.objectives.decorrelation import (
    BarlowTwins,
    BarlowTwinsConfig,
    LeJEPA,
    LeJEPAConfig,
    VICReg,
    VICRegConfig,
)
from jepa_lab.objectives.hierarchical import HJEPA, HJEPAConfig
from jepa_lab.objectives.jepa import JEPA, JEPAConfig, MomentumConfig
from jepa_lab.objectives.mae import MAE, MAEConfig
from jepa_lab.objectives.masked import PredictorConfig
from jepa_lab.objectives.retrieval import Retrieval, RetrievalConfig
from jepa_lab.objectives.routed import RoutedJasper, RoutedJasperConfig, RoutingLossConfig
from jepa_lab.objectives.siamese import BYOL, BYOLConfig, SimSiam, SimSiamConfig
from jepa_lab.objectives.steering import Jasper, JasperConfig, JasperLossConfig, TargetConfig
from jepa_lab.objectives.supervised import Supervised, SupervisedConfig
from jepa_lab.objectives.two_view import TwoView, TwoViewConfig
from jepa_lab.polar.model import PolarV1, PolarV1Config

OBJECTIVES: dict[str, type[Objective]] = {
    "barlow_twins": BarlowTwins,
    "byol": BYOL,
    "c_jepa": CJEPA,
    "c_jepa_vicreg": CJEPAVicReg,
    "contrastive": Contrastive,
    "h_jepa": HJEPA,
    "jasper": Jasper,
    "jasper_routed": RoutedJasper,
    "jepa": JEPA,
    "lejepa": LeJEPA,
    "mae": MAE,
    "polar": PolarV1,
    "retrieval": Retrieval,
    "simsiam": SimSiam,
    "supervised": Supervised,
    "vicreg": VICReg,
}


# What `use_contrastive: true` makes of an objective: the same name, more settings.
WITH_CONTRASTIVE: dict[str, type[Objective]] = {"c_jepa": CJEPA, "h_jepa": CJEPA, "jepa": ContrastiveJEPA}


def objective_class(name: str, use_contrastive: bool | None = None) -> type[Objective]:
    """The class of the objective called `name`; `use_contrastive` as its settings say, None where they do not.

    Raises: ValueError for an unknown name (lists the known ones), and for a `use_contrastive` that does not fit it.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(sorted(OBJECTIVES))}")
    if use_contrastive and name not in WITH_CONTRASTIVE:
        raise ValueError(f"use_contrastive=True fits {', '.join(sorted(WITH_CONTRASTIVE))}, not {name!r}")
    if use_contrastive is False and name == "c_jepa":
        raise ValueError("use_contrastive=False does not fit 'c_jepa'; without the contrastive term it is 'h_jepa'")
    return WITH_CONTRASTIVE[name] if use_contrastive else OBJECTIVES[name]


def build_objective(name: str, encoder: nn.Module | Tensor, config=None, seed: int = 0, **settings) -> Objective:
    """The objective called `name` on this encoder (`jasper`, `jasper_routed`: on these centroids of the topics,
    [K, D]; `retrieval`: on one of `text_nets`), from its config object or from the config's fields as keywords.

    NT-Xent joins a JEPA in two ways: `build_objective("h_jepa", encoder, use_contrastive=True, ...)` is `"c_jepa"`.
    `polar` has no encoder to be put on: `PolarV1(config, units, image_size)` builds it.

    Raises: ValueError for an unknown name (lists the known ones) or polar, TypeError for an unknown setting.
    """
    if name == "polar":
        raise ValueError("polar is a whole model: build it with PolarV1(config, units, image_size)")
    if config is not None and settings:
        raise TypeError(f"give either config or the settings {sorted(settings)}, not both")
    given = settings if config is None else vars(config)
    cls = objective_class(name, given.get("use_contrastive"))
    return cls(encoder, config if config is not None else cls.Config(**settings), seed=seed)


__all__ = [
    "BYOL",
    "CJEPA",
    "HJEPA",
    "JEPA",
    "MAE",
    "OBJECTIVES",
    "WITH_CONTRASTIVE",
    "BYOLConfig",
    "BarlowTwins",
    "BarlowTwinsConfig",
    "CJEPAConfig",
    "CJEPAVicReg",
    "CJEPAVicRegConfig",
    "Contrastive",
    "ContrastiveConfig",
    "ContrastiveJEPA",
    "HJEPAConfig",
    "JEPAConfig",
    "Jasper",
    "JasperConfig",
    "JasperLossConfig",
    "LeJEPA",
    "LeJEPAConfig",
    "MAEConfig",
    "MomentumConfig",
    "NTXentConfig",
    "Objective",
    "PolarV1",
    "PolarV1Config",
    "PredictorConfig",
    "Retrieval",
    "RetrievalConfig",
    "RoutedJasper",
    "RoutedJasperConfig",
    "RoutingLossConfig",
    "SimSiam",
    "SimSiamConfig",
    "Supervised",
    "SupervisedConfig",
    "TargetConfig",
    "TwoView",
    "TwoViewConfig",
    "VICReg",
    "VICRegConfig",
    "build_objective",
    "objective_class",
]
