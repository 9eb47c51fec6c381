"""Runs on irregular clinical series: train one model without labels, read it out, fine-tune it, beside the controls.

Not the objectives belong to this family but the data: those for images run on observations unchanged. The seed of a run
is the seed of its split too: which stays are held out moves the numbers more than the initial weights do.
"""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from jepa_lab.clinical_probes import ClinicalTask, ProbeConfig
from jepa_lab.clinical_rows import CONTROLS, Bar, bar, control_rows, frozen_rows, tuned_rows
from jepa_lab.data.clinical import Records, physionet2012
from jepa_lab.data.clinical_batches import BatchConfig, RecordBatches, Scale, cut, pad, split
from jepa_lab.data.clinical_generator import FEW, GeneratorConfig, generate
from jepa_lab.families.base import Prepared, check_settings
from jepa_lab.families.images import CURVE_ROWS, curves
from jepa_lab.fine_tuning import FineTuneConfig
from jepa_lab.monitor import CollapseMonitor
from jepa_lab.nets import SeriesEncoderConfig, TokenEncoder, series_encoder
from jepa_lab.objectives import build_objective
from jepa_lab.training import seed_all

__all__ = ["DATASETS", "add_arguments", "check", "curves", "generated", "line", "load", "measure", "prepare"]


def generated(
    n: int = 6000, seed: int = 0, few: bool = True, two_sided: float = 0.6, density: float = 0.5, present: float = 0.8
) -> Records:
    """Stays of the generator: with `few`, ten channels and about a hundred observations each, which an encoder learns
    from in minutes; else all channels at `density`, and `present` = 0 keeps the shares of the real set."""
    settings = {"channels": FEW} if few else {}
    return generate(n, seed, GeneratorConfig(two_sided=two_sided, density=density, present=present, **settings))


DATASETS = {"generator": generated, "physionet2012": physionet2012}


@dataclass(frozen=True)
class ClinicalConfig:
    """Which stays; `settings` are keyword arguments of the loader. `held_out` is the share that a model is measured on:
    the test, or of the rest the validation."""

    name: Literal["generator", "physionet2012"] = "generator"
    settings: dict[str, Any] | None = None
    held_out: float = 0.2


def add_arguments(parser: ArgumentParser) -> None:
    """The settings that only a run on clinical series has."""
    parser.add_class_arguments(ClinicalConfig, "data")
    parser.add_class_arguments(SeriesEncoderConfig, "encoder")
    parser.add_class_arguments(BatchConfig, "batches")
    parser.add_class_arguments(ProbeConfig, "probe")
    parser.add_class_arguments(FineTuneConfig, "finetune")
    parser.add_argument("--controls", type=list[Literal[CONTROLS]], default=list(CONTROLS))


def check(config: Namespace) -> None:
    """Raises: ValueError for settings out of range, or that the loader does not know."""
    if config.monitoring.explain_every:
        raise ValueError(
            f"monitoring.explain_every={config.monitoring.explain_every} needs a model of texts; set it to 0"
        )
    if not 0 < config.data.held_out < 1:
        raise ValueError(f"data.held_out, the share of the stays, must lie in (0, 1), got {config.data.held_out}")
    check_settings(config.data.name, DATASETS[config.data.name], config.data.settings or {})


def prepare(config: Namespace, parts: Namespace, seed: int) -> Prepared:
    """The stays of this seed's split, and an untrained model; with `trainer.evaluate_every`, collapse metrics on some
    of the held-out stays."""
    task = load(ClinicalConfig(**vars(config.data)), seed, config.split)
    seed_all(seed)
    objective = build_objective(config.objective.name, untrained(task, parts), parts.objective, seed=seed)
    trainer = replace(parts.trainer, seed=seed)
    batches = RecordBatches(task.train, trainer.batch_size, parts.batches, seed)
    observed = task.held.count.nonzero().flatten()[:CURVE_ROWS]
    few = cut(pad(task.held, observed), parts.probe.observations)
    watch = CollapseMonitor(max_rows=CURVE_ROWS).watch(few) if trainer.evaluate_every else None
    return Prepared(objective, batches, trainer, watch, task)


def untrained(task: ClinicalTask, parts: Namespace) -> TokenEncoder:
    """A new encoder of the configured size."""
    return series_encoder(len(task.train.features), parts.encoder)


def load(data: ClinicalConfig, seed: int, part: str) -> ClinicalTask:
    """The training and the held-out stays of a seed: for `part` test the test and all other stays, for validation a
    part of those others, and the rest of them. The scale is that of the training stays."""
    return _load(data.name, json.dumps(data.settings or {}), data.held_out, seed, part)


@lru_cache(maxsize=2)  # a sweep comes back to each split
def _load(name: str, settings: str, held_out: float, seed: int, part: str) -> ClinicalTask:
    records = _records(name, settings)
    train, test = split(records, seed, held_out)
    if part == "validation":
        rest, validation = split(records.take(train), seed, held_out)
        train, test = train[rest], train[validation]
    scale = Scale.fit(records.take(train))
    return ClinicalTask.of(scale(records.take(train)), scale(records.take(test)))


@lru_cache(maxsize=1)
def _records(name: str, settings: str) -> Records:
    return DATASETS[name](**json.loads(settings))


def measure(config: Namespace, parts: Namespace, prepared: Prepared, seed: int) -> list[dict[str, Any]]:
    """Read the trained model out, frozen and fine-tuned, with the control rows of the same split before it."""
    task, device, name = prepared.data, prepared.trainer.device, config.objective.name
    base = _bar(config, parts.probe, seed)
    rows = control_rows(
        task, lambda: untrained(task, parts), base, parts.probe, parts.finetune, seed, config.controls, device
    )
    rows += frozen_rows(task, prepared.objective, name, base, parts.probe, seed)
    if parts.finetune.steps:
        encoder = prepared.objective.representing_encoder
        tuned = f"{name}, fine-tuned"
        rows += tuned_rows(task, encoder, tuned, base, parts.finetune, parts.probe.observations, seed, device)
    return rows


def _bar(config: Namespace, probe: ProbeConfig, seed: int) -> Bar:
    """The scores of the summary statistics, fitted once for all objectives of a sweep."""
    data = config.data
    return _fitted(data.name, json.dumps(data.settings or {}), data.held_out, seed, config.split, probe)


@lru_cache(maxsize=8)
def _fitted(name: str, settings: str, held_out: float, seed: int, part: str, probe: ProbeConfig) -> Bar:
    return bar(_load(name, settings, held_out, seed, part), probe, seed)


def line(rows: list[dict[str, Any]]) -> str:
    """The rows of a run in one line of progress."""
    return "AUROC %: " + ", ".join(f"{row['method']} {100 * row['auroc']:.1f}" for row in rows)
