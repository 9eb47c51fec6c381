"""Runs of Polar-V1 on simulated recordings: predict the spikes of a population, beside what is known of them.

The seed of a run draws the cells, the gaze, the spikes and the first weights: a spread over seeds is one over
populations too. Models that are compared have the same seeds, and so the same recordings.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from jepa_lab.data.v1 import V1Config, V1Recording, simulate_v1
from jepa_lab.data.v1_movie import Part
from jepa_lab.data.v1_windows import MovieWindows
from jepa_lab.families.base import Prepared
from jepa_lab.families.images import curves
from jepa_lab.metrics import diagnose
from jepa_lab.objectives import OBJECTIVES
from jepa_lab.polar.model import PolarV1
from jepa_lab.polar.score import score
from jepa_lab.training import seed_all

__all__ = ["add_arguments", "check", "curves", "line", "measure", "predict", "prepare", "windows"]

CONTROLS = ("mean rate", "true rate, no gain", "true rate")
_WATCHED = 20.0  # seconds of the validation recording that a training run is watched on
_EMBEDDED = 4  # every so many frames one embedding: neighbours are almost copies


@dataclass(frozen=True)
class PolarData:
    """How much of what is recorded, and how it is cut.

    Raises: ValueError for a setting out of range.

    Args:
        train, held_out: seconds of the two recordings. cells: the simulation (`V1Config`); its `population` is the
            first, a run adds its seed.
        length, warm_up: frames of a window, and how many at its start fill the memory and are not scored.
        share: of the training windows that give their counts. unlabelled: windows of the rest in each batch, whose
            movie is shown to the JEPA and whose counts are not.
    """

    train: float = 120.0
    held_out: float = 60.0
    cells: V1Config = field(default_factory=V1Config)
    length: int = 72
    warm_up: int = 24
    share: float = 1.0
    unlabelled: int = 0

    def __post_init__(self):
        for name in ("train", "held_out"):
            if not getattr(self, name) > 0:
                raise ValueError(f"data.{name} must be positive (seconds), got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"data.share must lie in (0, 1], got {self.share}")


class PolarTask(NamedTuple):
    """The recording of a run that is trained on, and the one it is measured on."""

    train: MovieWindows
    held: MovieWindows


def add_arguments(parser: ArgumentParser) -> None:
    """The settings that only a run of Polar-V1 has."""
    parser.add_class_arguments(PolarData, "data")
    parser.add_argument("--controls", type=list[Literal[CONTROLS]], default=list(CONTROLS))


def check(config: Namespace) -> None:
    """Raises: ValueError for explanations, which this model does not give, or unlabelled windows without a JEPA."""
    if config.monitoring.explain_every:
        raise ValueError(
            f"monitoring.explain_every={config.monitoring.explain_every} needs a model of texts; set it to 0"
        )
    if config.data.unlabelled and not config.objective.use_jepa:
        raise ValueError(
            f"data.unlabelled={config.data.unlabelled} windows teach nothing without objective.use_jepa=true"
        )


def prepare(config: Namespace, parts: Namespace, seed: int) -> Prepared:
    """The recordings of this seed, and an untrained model; watched on pictures that are neither trained on nor
    tested."""
    data, trainer = parts.data, replace(parts.trainer, seed=seed)
    train = windows(data, "train", seed, trainer.batch_size)
    task = PolarTask(train, windows(data, config.split, seed, trainer.batch_size))
    seed_all(seed)
    cells = data.cells
    objective = OBJECTIVES[config.objective.name](
        parts.objective, units=cells.simple + cells.complex, image_size=cells.size, seed=seed
    )
    evaluate = None
    if trainer.evaluate_every:
        evaluate = watch(windows(replace(data, held_out=_WATCHED), "validation", seed, trainer.batch_size))
    return Prepared(objective, train, trainer, evaluate, task)


def windows(data: PolarData, part: Part, seed: int, batch_size: int) -> MovieWindows:
    """The recording of a part in windows; that of `train` with the configured share of counts."""
    few = {"share": data.share, "unlabelled": data.unlabelled} if part == "train" else {}
    seconds = data.train if part == "train" else data.held_out
    cells = replace(data.cells, population=data.cells.population + seed)
    recording = _recording(seconds, part, cells, seed)
    return MovieWindows(recording, batch_size, data.length, data.warm_up, seed=seed, **few)


@lru_cache(maxsize=3)  # a sweep comes back to each seed; a recording of 120 s has 66 MB
def _recording(seconds: float, part: Part, cells: V1Config, seed: int) -> V1Recording:
    return simulate_v1(seconds, part, cells, seed)


def watch(held: MovieWindows) -> Callable[[PolarV1], dict[str, float]]:
    """Bits a spike on these windows, as an evaluation for the trainer."""
    counts, true, scored = gathered(held)

    def evaluate(objective: PolarV1) -> dict[str, float]:
        return {"bits_per_spike": float(score(predict(objective, held), counts, true, scored).bits.nanmean())}

    return evaluate


def predict(objective: PolarV1, held: MovieWindows) -> Float[Tensor, "N T U"]:
    """The rates of a model on all windows, in expected counts a frame."""
    device = next(objective.parameters()).device
    found = []
    for batch in held.in_order():
        found.append(objective.represent({name: value.to(device) for name, value in batch.items()}, "rates").cpu())
    return torch.cat(found)


def gathered(held: MovieWindows) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, true rates and which frames are scored, window by window."""
    batches = list(held.in_order())
    return tuple(torch.cat([batch[name] for batch in batches]) for name in ("counts", "rate", "scored"))


def measure(config: Namespace, parts: Namespace, prepared: Prepared, seed: int) -> list[dict[str, Any]]:
    """Bits a spike over the mean rate and likeness to the true rate, on pictures that were not trained on.

    Control rows: the training recording's `mean rate`; the `true rate`, which is the ceiling; and the `true rate, no
    gain`, the ceiling of a model that sees the movie alone: scaled to the same mean, a model may learn as much.
    """
    task: PolarTask = prepared.data
    held, cells = task.held, parts.data.cells
    counts, true, scored = gathered(held)

    def row(method: str, rates: Tensor) -> dict[str, Any]:
        found = score(rates, counts, true, scored)
        return {
            "method": method,
            "bits": float(found.bits.nanmean()),
            "bits_simple": float(found.bits[: cells.simple].nanmean()),
            "bits_complex": float(found.bits[cells.simple :].nanmean()),
            "best": float(found.best.nanmean()),
            "rate_correlation": float(found.rate_correlation.nanmean()),
            "spike_share": float(found.spike_share.nanmean()),
            "bits_units": [None if math.isnan(x) else round(x, 4) for x in found.bits.tolist()],
        }

    rows = [row(name, rates) for name, rates in _controls(task, true).items() if name in config.controls]
    model = row(config.objective.name, predict(prepared.objective, held))
    return [*rows, model | _jepa(prepared.objective, held)]


def _controls(task: PolarTask, true: Tensor) -> dict[str, Tensor]:
    seen, held = task.train.recording, task.held.recording
    ungained = held.ungained * (seen.rate.mean(0) / seen.ungained.mean(0))
    at = task.held.starts[:, None] + torch.arange(task.held.length)
    mean = seen.counts.mean(0).clamp(min=1e-6)  # a cell silent in training may fire in the test
    return {"mean rate": mean.expand_as(true), "true rate, no gain": ungained[at], "true rate": true}


def _jepa(objective: PolarV1, held: MovieWindows) -> dict[str, float]:
    """The forecast's error beside its baselines, and whether the embedding has collapsed; nothing without a JEPA."""
    if objective.jepa is None:
        return {}
    device = next(objective.parameters()).device
    batches = [{name: value.to(device) for name, value in batch.items()} for batch in held.in_order()]
    errors = [objective.forecast_errors(batch) for batch in batches]
    found = {f"forecast_{name}": sum(e[name] for e in errors) / len(errors) for name in errors[0]}
    z = torch.cat([objective.represent(batch, "embedding")[:, held.warm_up :: _EMBEDDED] for batch in batches])
    report = diagnose(z.flatten(0, 1))
    return found | {
        "embedding_std": report.std,
        "embedding_rank": report.effective_rank,
        "embedding_verdict": report.verdict,
    }


def line(rows: list[dict[str, Any]]) -> str:
    """The rows of a run in one line of progress."""
    return "bits/spike: " + ", ".join(f"{row['method']} {row['bits']:.3f}" for row in rows)
