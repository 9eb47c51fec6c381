"""What a family hands to the trainer, and what it needs again to measure the trained model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jepa_lab.objectives.base import Objective
from jepa_lab.training import TrainConfig


@dataclass(frozen=True)
class Prepared:
    """The arguments of `Trainer`, all made from the configuration and the seed alone, and the `data` behind them."""

    objective: Objective
    batches: Any
    trainer: TrainConfig
    evaluate: Callable[[Objective], dict[str, float]] | None
    data: Any
