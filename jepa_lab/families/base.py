"""What a family hands to the trainer, and what it needs again to measure the trained model."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from jepa_lab.objectives.base import Objective
from jepa_lab.training import TrainConfig


@dataclass(frozen=True)
class Prepared:
    """The arguments of `Trainer`, all made from the configuration and the seed alone, and the `data` behind them.

    `texts` is a hash of the data where the same settings may give others elsewhere, as with the docstrings of other
    versions: a checkpoint then belongs to these data alone."""

    objective: Objective
    batches: Any
    trainer: TrainConfig
    evaluate: Callable[[Objective], dict[str, float]] | None
    data: Any
    texts: str = ""


def check_settings(name: str, loader: Callable, settings: dict[str, Any]) -> None:
    """Raises: ValueError for keyword arguments that the loader of a data set does not have, or of another type."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(loader)
    try:
        signature(loader).bind(**settings)  # its message names the argument
        parser.parse_object(settings)
    except (TypeError, ArgumentError) as error:
        raise ValueError(f"data.settings of {name}: {error}") from error
