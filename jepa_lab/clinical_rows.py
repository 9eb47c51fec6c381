"""The rows of a table of clinical runs: a model frozen and fine-tuned, and the controls that give numbers a meaning.

The controls are chance, statistics of the channels, an untrained encoder read alike, and training with labels alone.
Every score also comes averaged with that of the statistics: what a model adds to them is the question.

Book: chapter 09.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from jepa_lab.clinical_probes import (
    ClinicalTask,
    ProbeConfig,
    Row,
    asked,
    death_scores,
    judged,
    rank_average,
    represented,
    some_labels,
)
from jepa_lab.data.clinical import DESCRIPTORS
from jepa_lab.data.clinical_summary import summary
from jepa_lab.fine_tuning import FineTuneConfig, fine_tune, scores
from jepa_lab.metrics import effective_rank, normalized_std
from jepa_lab.nets import TokenEncoder
from jepa_lab.objectives import JEPA
from jepa_lab.objectives.base import Objective
from jepa_lab.training import seed_all

CONTROLS = ("chance", "summary", "boosted trees", "random init", "supervised")


class Bar(NamedTuple):
    """The scores of the summary statistics for each share of the labels: what every other score is averaged with."""

    scores: dict[float, np.ndarray]
    rows: dict[float, Tensor]


def bar(task: ClinicalTask, config: ProbeConfig, seed: int = 0) -> Bar:
    """Logistic regression on the summary statistics and the descriptors."""
    train = torch.cat([summary(task.train), task.extra], 1)
    held = torch.cat([summary(task.held), task.held_extra], 1)
    rows = {share: some_labels(task.train.label, share, seed) for share in config.labels}
    found = {share: death_scores(train[i], task.train.label[i], held, seed) for share, i in rows.items()}
    return Bar(found, rows)


def together(method: str, found: dict[float, np.ndarray], base: Bar, label: Tensor) -> Row:
    """The row of a method's scores averaged with those of the bar."""
    row: Row = {"method": f"{method} + summary"}
    for share, score in found.items():
        row |= judged(rank_average(score, base.scores[share]), label, share)
    return row


def frozen_rows(
    task: ClinicalTask, objective: Objective, method: str, base: Bar, config: ProbeConfig, seed: int = 0
) -> list[Row]:
    """A frozen encoder: its tokens' mean, maximum and standard deviation and the descriptors, read by logistic
    regression; the same averaged with the bar. `auroc mean` reads the mean alone, as the regressions do."""
    train = represented(objective, task.train, config.observations)
    held = represented(objective, task.held, config.observations)
    label, held_label = task.train.label, task.held.label
    some = train.mean.abs().sum(1) > 0  # what was observed at all
    row: Row = {"method": method}
    wide, held_wide = torch.cat([train.all, task.extra], 1), torch.cat([held.all, task.held_extra], 1)
    found = {share: death_scores(wide[i], label[i], held_wide, seed) for share, i in base.rows.items()}
    for share, score in found.items():
        row |= judged(score, held_label, share)
    row["auroc mean"] = judged(death_scores(train.mean, label, held.mean, seed), held_label)["auroc"]
    row |= asked(task, train.mean, held.mean)
    row |= {"std": normalized_std(train.mean[some]).item(), "rank": effective_rank(train.mean[some]).item()}
    return [row, together(method, found, base, held_label)]


def tuned_rows(
    task: ClinicalTask,
    encoder: TokenEncoder | Callable[[], TokenEncoder],
    method: str,
    base: Bar,
    config: FineTuneConfig,
    observations: int,
    seed: int = 0,
    device: str = "auto",
) -> list[Row]:
    """An encoder trained with the labels, from where it is or from scratch; the same averaged with the bar."""
    found = {}
    for share, rows in base.rows.items():
        model = fine_tune(encoder, task.train, task.extra, rows, config, seed, device)
        found[share] = scores(model, task.held, task.held_extra, observations).numpy()
    row: Row = {"method": method}
    for share, score in found.items():
        row |= judged(score, task.held.label, share)
    return [row, together(method, found, base, task.held.label)]


def control_rows(
    task: ClinicalTask,
    make_encoder: Callable[[], TokenEncoder],
    base: Bar,
    config: ProbeConfig,
    finetune: FineTuneConfig,
    seed: int = 0,
    rows: Iterable[str] = CONTROLS,
    device: str = "auto",
) -> list[Row]:
    """The rows that every table needs beside the method's own.

    `chance`: the most frequent answer. `summary`: logistic regression on mean, minimum, maximum, last value and count
    of every channel and the descriptors: the bar. `boosted trees`: on the same, and free to bend it. `random init`: the
    same encoder untrained, read alike. `supervised`: the same encoder trained with the labels from scratch, with the
    recipe of fine-tuning.

    Raises: ValueError for an unknown row name.
    """
    found: list[Row] = []
    label, held_label = task.train.label, task.held.label
    for name in rows:
        if name == "chance":
            found.append(_chance_row(task, config))
        elif name == "summary":
            row: Row = {"method": name}
            for share, score in base.scores.items():
                row |= judged(score, held_label, share)
            found.append(row | asked(task, summary(task.train), summary(task.held)))
        elif name == "boosted trees":
            train = torch.cat([summary(task.train), task.extra], 1).numpy()
            held = torch.cat([summary(task.held), task.held_extra], 1).numpy()
            row, both = {"method": name}, {}
            for share, i in base.rows.items():
                model = HistGradientBoostingClassifier(learning_rate=0.05, max_iter=150, random_state=seed)
                both[share] = model.fit(train[i], label[i].numpy()).decision_function(held)
                row |= judged(both[share], held_label, share)
            found += [row, together(name, both, base, held_label)]
        elif name == "random init":
            seed_all(seed)
            found += frozen_rows(task, JEPA(make_encoder(), seed=seed), name, base, config, seed)
        elif name == "supervised":
            if finetune.steps:
                found += tuned_rows(task, make_encoder, name, base, finetune, config.observations, seed, device)
        else:
            raise ValueError(f"unknown control row {name!r}; known: {', '.join(CONTROLS)}")
    return found


def _chance_row(task: ClinicalTask, config: ProbeConfig) -> Row:
    row: Row = {"method": "chance"}
    for share in config.labels:
        row |= judged(np.zeros(len(task.held)), task.held.label, share)
    common = task.train.static[:, DESCRIPTORS.index("ICUType")].mode().values
    hits = task.held.static[:, DESCRIPTORS.index("ICUType")] == common
    return row | {f"{name} r2": 0.0 for name in task.answers} | {"unit accuracy": hits.float().mean().item()}
