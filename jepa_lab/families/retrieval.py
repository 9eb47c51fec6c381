"""Runs of a retrieval model on pairs of texts: train it, search with it, beside the control rows.

As in `families.text`, the seed of a run is the seed of its split too.
"""

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from jepa_lab.data import text
from jepa_lab.data.negatives import NegativesConfig
from jepa_lab.data.retrieval import RetrievalDataset, Texts, ordered_words, weighted_words
from jepa_lab.families.base import Prepared, check_settings
from jepa_lab.families.text import CONTROLS, DATASETS, TextConfig, curves, line, load_pairs, load_task
from jepa_lab.objectives import build_objective
from jepa_lab.objectives.retrieval import Retrieval
from jepa_lab.retrieval_rows import RetrievalTask, control_rows, model_rows
from jepa_lab.text_nets import TextEncoderConfig, build_text_encoder
from jepa_lab.training import TrainConfig, seed_all

__all__ = ["add_arguments", "check", "curves", "line", "load", "measure", "prepare", "training_set", "untrained"]


def add_arguments(parser: ArgumentParser) -> None:
    """The settings that only a run of a retrieval model has."""
    parser.add_class_arguments(TextConfig, "data")
    parser.add_class_arguments(TextEncoderConfig, "encoder")
    parser.add_class_arguments(NegativesConfig, "negatives")
    parser.add_argument("--controls", type=list[Literal[CONTROLS]], default=list(CONTROLS))


def check(config: Namespace) -> None:
    """Raises: ValueError for settings that the loader does not know, that do not fit together, or explanations."""
    if config.monitoring.explain_every:
        raise ValueError(
            f"monitoring.explain_every={config.monitoring.explain_every} needs a steering predictor; set it to 0"
        )
    if config.encoder.start == "lsa" and (config.data.encoder, config.data.dim) != ("lsa", config.encoder.dim):
        raise ValueError(
            f"encoder.start=lsa needs data.encoder=lsa and data.dim={config.encoder.dim} as encoder.dim, got "
            f"data.encoder={config.data.encoder} and data.dim={config.data.dim}"
        )
    check_settings(config.data.name, DATASETS[config.data.name], config.data.settings or {})


def prepare(config: Namespace, parts: Namespace, seed: int) -> Prepared:
    """The texts of this seed's split, and an untrained model; evaluated on the validation questions."""
    data = TextConfig(**vars(config.data))
    task = load(data, TextEncoderConfig(**vars(config.encoder)), seed)
    trainer = replace(parts.trainer, seed=seed)
    dataset = training_set(task, NegativesConfig(**vars(config.negatives)), trainer)
    held_out = task.batch(task.search.parts["validation"])
    return Prepared(
        untrained(config, parts, task, seed),
        dataset,
        trainer,
        lambda model: model.evaluate(held_out),
        task,
        load_pairs(data).hash,
    )


def untrained(config: Namespace, parts: Namespace, task: RetrievalTask, seed: int) -> Retrieval:
    """The model of a run before its first step."""
    seed_all(seed)
    encoder = build_text_encoder(
        TextEncoderConfig(**vars(config.encoder)), task.search.question.shape[1], task.words, task.start
    )
    return build_objective(config.objective.name, encoder, parts.objective, seed=seed)


def load(data: TextConfig, encoder: TextEncoderConfig, seed: int) -> RetrievalTask:
    """The texts as the encoder reads them. Words, their weights and the directions of LSA are those of the training
    part of this seed's split."""
    search = load_task(data, seed)
    if encoder.words == "none":
        return RetrievalTask(search, Texts(search.question), Texts(search.source))
    pairs, train = load_pairs(data), search.parts["train"]
    words = search.lexical[0].shape[1]
    if encoder.words == "weighted":
        question, source = (weighted_words(rows) for rows in search.lexical)
    else:
        fitted = text.TfidfEncoder().fit(text.training_texts(pairs, train))
        question, source = (ordered_words(fitted, texts, encoder.max_words) for texts in (pairs.question, pairs.source))
    start = None
    if encoder.start == "lsa":
        start = _lsa_directions(data.name, json.dumps(data.settings or {}), data.split_by, data.dim, seed)
    return RetrievalTask(search, question, source, words, start)


@lru_cache(maxsize=8)  # a sweep comes back to each split
def _lsa_directions(name: str, settings: str, split_by: str, dim: int, seed: int) -> Float[Tensor, "V D"]:
    """The right singular vectors that `load_task` with these arguments embeds with, a row a word."""
    data = TextConfig(name, json.loads(settings), split_by, "lsa", dim)
    lsa = text.fit_encoder(load_pairs(data), load_task(data, seed).parts["train"], "lsa", dim)
    return torch.from_numpy(lsa.svd.components_.T.copy()).float()


def training_set(task: RetrievalTask, negatives: NegativesConfig, trainer: TrainConfig) -> RetrievalDataset:
    """The training part of a task, for the trainer: it holds no other text."""
    search = task.search
    train = search.parts["train"]
    return RetrievalDataset(
        Texts(*(None if column is None else column[train] for column in task.question)),
        Texts(*(None if column is None else column[train] for column in task.source)),
        search.source[train],
        torch.unique(search.topic[train], return_inverse=True)[1],
        torch.unique(search.source_id[train], return_inverse=True)[1],
        negatives,
        trainer.batch_size,
        trainer.seed,
    )


def measure(config: Namespace, parts: Namespace, prepared: Prepared, seed: int) -> list[dict[str, Any]]:
    """Search the reported part with the trained model, and without it."""
    task, part = prepared.data, config.split
    rows = control_rows(task, untrained(config, parts, task, seed), part) if config.controls else []
    return rows + model_rows(task, prepared.objective, config.objective.name, part)
