"""Runs on pairs of texts: train a steering predictor, search with it, beside the control rows.

The seed of a run is the seed of its split too: the split moves the numbers more than the initial weights do, so the
spread over seeds must hold it.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from jepa_lab.data import text
from jepa_lab.data.steering import SteeringConfig, SteeringDataset, keyword_vectors
from jepa_lab.data.text_encoders import ENCODERS
from jepa_lab.explanation import Explanation
from jepa_lab.families.base import Prepared, check_settings
from jepa_lab.monitor import TrainingMonitor
from jepa_lab.objectives import RoutedJasper, build_objective
from jepa_lab.objectives.base import Objective
from jepa_lab.routing_rows import routing_rows, topic_control_rows
from jepa_lab.search import SearchTask, control_rows, model_rows
from jepa_lab.training import Trainer, seed_all

DATASETS = {"docstrings": text.docstring_pairs, "squad": text.squad_pairs}
CONTROLS = ("baselines",)


@dataclass(frozen=True)
class TextConfig:
    """Which pairs, how they are split and embedded. `settings` are keyword arguments of the loader; `split_by` topic
    keeps the topics of the test out of the training, package its packages."""

    name: Literal["docstrings", "squad"] = "docstrings"
    settings: dict[str, Any] | None = None
    split_by: Literal[text.SPLITS] = "pair"
    encoder: Literal[ENCODERS] = "lsa"
    dim: int = 256


def add_arguments(parser: ArgumentParser) -> None:
    """The settings that only a run on pairs of texts has."""
    parser.add_class_arguments(TextConfig, "data")
    parser.add_class_arguments(SteeringConfig, "steering")
    parser.add_argument("--controls", type=list[Literal[CONTROLS]], default=list(CONTROLS))


def check(config: Namespace) -> None:
    """Raises: ValueError for settings that the loader does not know, and for explanations that cannot be made."""
    _check_explanations(config)
    check_settings(config.data.name, DATASETS[config.data.name], config.data.settings or {})


def _check_explanations(config: Namespace) -> None:
    every, evaluate_every, epochs = (
        config.monitoring.explain_every,
        config.trainer.evaluate_every,
        config.trainer.epochs,
    )
    if not every:
        return
    if config.data.split_by != "pair":
        raise ValueError("monitoring.explain_every needs topics that the training knows: data.split_by=pair, or 0")
    if every > epochs or evaluate_every == 0 or every % evaluate_every:
        raise ValueError(
            f"monitoring.explain_every={every} must be a multiple of trainer.evaluate_every={evaluate_every} (not 0), "
            f"and at most trainer.epochs={epochs}: explanations are written where the model is evaluated"
        )


def prepare(config: Namespace, parts: Namespace, seed: int) -> Prepared:
    """The task of this seed's split, and an untrained model; evaluated on the validation questions, steered."""
    task = load_task(TextConfig(**vars(config.data)), seed)
    trainer = replace(parts.trainer, seed=seed)
    seed_all(seed)
    dataset = training_set(task, SteeringConfig(**vars(config.steering)), trainer)
    objective = build_objective(config.objective.name, dataset.centroids, parts.objective, seed=seed)
    held_out = task.batch("validation")
    return Prepared(objective, dataset, trainer, lambda model: model.evaluate(held_out), task, _texts(config))


def measure(config: Namespace, parts: Namespace, prepared: Prepared, seed: int) -> list[dict[str, Any]]:
    """Search the reported part with the trained model, and without it."""
    task, objective, name, part = prepared.data, prepared.objective, config.objective.name, config.split
    rows = control_rows(task, part) if config.controls else []
    rows += model_rows(task, objective, name, part)
    if isinstance(objective, RoutedJasper) and not task.unseen_topics:  # a router knows the topics it was trained on
        rows += topic_control_rows(task, part) if config.controls else []
        rows += routing_rows(task, objective, name, part)
    return rows


def explain(config: Namespace, prepared: Prepared, objective: Objective, count: int) -> list[Explanation]:
    """Explain the first `count` validation questions with the model as it is."""
    from jepa_lab.explain_text import explain_validation  # which needs this module

    return explain_validation(config, prepared.data, objective, count)


def curves(before: dict[str, float], trainer: Trainer) -> dict[str, list[int | float | None]]:
    """The means of all training metrics and the validation metrics, by epoch, to five digits; `before` in epoch 0."""
    monitor = TrainingMonitor.from_trainer(trainer)
    history, known = monitor.history, {f"validation/{name}": value for name, value in before.items()} | {"epoch": 0}
    return {name: [_digits(value) for value in (known.get(name), *column)] for name, column in history.items()}


def _digits(value: int | float | None) -> int | float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.5g}")


def load_pairs(data: TextConfig | Namespace) -> text.Pairs:
    """The texts themselves."""
    return _load_pairs(data.name, json.dumps(data.settings or {}))


def load_task(data: TextConfig, seed: int) -> SearchTask:
    """The pairs, embedded by an encoder that saw the training part of this seed's split alone."""
    return _load_task(data.name, json.dumps(data.settings or {}), data.split_by, data.encoder, data.dim, seed)


def _texts(config: Namespace) -> str:
    return load_pairs(config.data).hash


@lru_cache(maxsize=1)
def _load_pairs(name: str, settings: str) -> text.Pairs:
    return DATASETS[name](**json.loads(settings))


@lru_cache(maxsize=8)  # a sweep comes back to each split
def _load_task(name: str, settings: str, split_by: str, encoder: str, dim: int, seed: int) -> SearchTask:
    pairs = _load_pairs(name, settings)
    index = text.split(pairs, seed, split_by)
    check_topics(pairs, index["train"] if split_by == "pair" else torch.arange(len(pairs)))
    embedded = text.embed(pairs, index["train"], encoder, dim)
    fitted = text.fit_encoder(pairs, index["train"], encoder, dim)
    topics_of = Counter(name for name, _ in set(zip(pairs.name, pairs.topic, strict=True)))
    ambiguous = torch.tensor([topics_of[name] > 1 for name in pairs.name])
    return SearchTask(
        embedded.question,
        embedded.source,
        pairs.topic_index,
        pairs.pool[1],
        index,
        lexical=tuple(text.tfidf(pairs, index["train"])),
        ambiguous=ambiguous if ambiguous.any() else None,
        keywords=keyword_vectors(pairs.take(index["train"]), pairs.topics, fitted) if split_by == "pair" else None,
        unseen_topics=split_by != "pair",
    )


def check_topics(pairs: text.Pairs, rows: Tensor) -> None:
    """Raises: ValueError naming a topic with fewer than two sources in these rows: one has no others to steer by."""
    sources = Counter(topic for topic, _ in {(pairs.topic[row], pairs.source[row]) for row in rows.tolist()})
    few = [topic for topic in pairs.topics if sources[topic] < 2]
    if few:
        raise ValueError(
            f"data: topic {few[0]!r} has {sources[few[0]]} of the sources that centroids are made of, and {len(few)} "
            "topics have fewer than 2; leave them out"
        )


def training_set(task: SearchTask, config: SteeringConfig, trainer_config) -> SteeringDataset:
    """The training part of a task, for the trainer; topics are numbered anew where the part lacks some."""
    train = task.parts["train"]
    topic = task.topic[train]
    if task.unseen_topics:
        topic = torch.unique(topic, return_inverse=True)[1]
    _, source_id = torch.unique(task.source_id[train], return_inverse=True)
    return SteeringDataset(
        task.question[train],
        task.source[train],
        topic,
        task.keywords,
        config,
        source_id,
        trainer_config.batch_size,
        trainer_config.epochs,
        trainer_config.seed,
    )


def line(rows: list[dict[str, Any]]) -> str:
    """The rows of a run in one line of progress."""
    return "recall@10 %: " + ", ".join(f"{row['method']} {100 * row['recall@10']:.1f}" for row in rows)
