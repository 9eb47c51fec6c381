"""What does a representation of stays know? Death with all labels and with few, the heart rate, a severity, a trend.

Every method is read in the same ways: a logistic regression of death on frozen features, ridge regressions of the heart
rate, of a severity and of a trend, and a logistic regression of the ICU type.

Book: chapter 09.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from jepa_lab.data.clinical import DESCRIPTORS, Records
from jepa_lab.data.clinical_batches import in_order
from jepa_lab.data.clinical_summary import descriptors
from jepa_lab.data.images import stratified_order
from jepa_lab.nets import masked_mean
from jepa_lab.objectives.base import Objective

PENALTIES = (0.003, 0.03, 0.3, 3.0)
Row = dict[str, str | float]


@dataclass(frozen=True)
class ProbeConfig:
    """`observations` of a stay are shown to the encoder (0 = all); `labels` are the shares of the training labels that
    a probe is trained with, 1 = all."""

    observations: int = 256
    labels: tuple[float, ...] = (1.0, 0.1, 0.01)

    def __post_init__(self):
        if self.observations < 0:
            raise ValueError(f"probe.observations must not be negative (0 = all), got {self.observations}")
        if not self.labels or not all(0 < share <= 1 for share in self.labels):
            raise ValueError(f"probe.labels must be shares of the labels in (0, 1], got {self.labels}")


class ClinicalTask(NamedTuple):
    """Training and held-out stays on one scale, what is known of them beside their series, and what a probe asks for.

    Shapes: extra, held_extra [n, E], [m, E]; answers and held_answers: name -> Float[n], Float[m], NaN = not known.
    """

    train: Records
    held: Records
    extra: Tensor
    held_extra: Tensor
    answers: dict[str, Tensor]
    held_answers: dict[str, Tensor]

    @classmethod
    def of(cls, train: Records, held: Records) -> "ClinicalTask":
        """From records whose values are on the scale of the training stays."""
        extra = [descriptors(records, train) for records in (train, held)]
        return cls(train, held, *extra, answers(train), answers(held))


def answers(records: Records) -> dict[str, Tensor]:
    """What a representation is asked for beside death: the mean heart rate, the severity (that of the generator, or the
    SAPS-I score), and the trend (that of the generator, or the heart rate of the second day minus that of the first).

    Shapes: name -> Float[n], NaN where not known.
    """
    here = records.feature == records.features.index("HR") if "HR" in records.features else records.feature < 0
    late = records.time > 24

    def mean(where: Tensor) -> Tensor:
        row = records.row[where]
        count = torch.bincount(row, minlength=len(records))
        total = torch.bincount(row, records.value[where].double(), minlength=len(records))
        return (total / count).float()  # 0 / 0: not known

    factors = records.factors
    severity = factors.get("severity", factors.get("saps", torch.full((len(records),), torch.nan)))
    return {
        "heart rate": mean(here),
        "severity": severity,
        "trend": factors.get("trend", mean(here & late) - mean(here & ~late)),
    }


class Features(NamedTuple):
    """The mean of a stay's tokens, and mean, maximum and standard deviation of them side by side.

    Shapes: mean [n, D], all [n, 3 D]; zeros for a stay without observations.
    """

    mean: Tensor
    all: Tensor


def represented(objective: Objective, records: Records, observations: int) -> Features:
    """Frozen features of all stays, each seen once with so many observations, on the CPU."""
    device, means, everything = next(objective.parameters()).device, [], []
    for batch in in_order(records, observations):
        batch = {key: value.to(device) for key, value in batch.items()}
        h, valid = objective.represent(batch, "tokens").float().nan_to_num(0), batch["valid"]
        mean = masked_mean(h, valid).nan_to_num(0)
        highest = h.masked_fill(~valid[..., None], -torch.inf).amax(1).masked_fill(~valid.any(1)[:, None], 0)
        spread = masked_mean((h - mean[:, None]).square(), valid).nan_to_num(0).sqrt()
        means.append(mean.cpu())
        everything.append(torch.cat([mean, highest, spread], 1).cpu())
    return Features(torch.cat(means), torch.cat(everything))


# -------------------------------------------------------------------------------------------------- reading it out


def some_labels(label: Int[Tensor, " n"], share: float, seed: int) -> Int[Tensor, " m"]:
    """The rows whose labels are known when only this share is, with equal shares of deaths and at least two of them.

    The fewer are among the more: 1 % is part of 10 %. Of every method and of the same seed they are the same.
    """
    if share >= 1:
        return torch.arange(len(label))
    order = stratified_order(label, seed)
    died = (label[order] == 1).cumsum(0)
    enough = int((died < 2).sum()) + 1
    return order[: min(max(round(share * len(label)), enough), len(label))].sort().values


def death_scores(
    train: Float[Tensor, "n F"], label: Int[Tensor, " n"], held: Float[Tensor, "m F"], seed: int = 0
) -> np.ndarray:
    """Log odds of the held-out stays from a logistic regression on standardised features, whose penalty is chosen by
    cross-validation within the training stays."""
    y, folds = label.numpy(), min(5, int(label.sum()), int((label == 0).sum()))

    def model(C: float):
        return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))

    best = PENALTIES[0]
    with warnings.catch_warnings():  # a weak penalty on few labels converges slowly, and is not chosen
        warnings.simplefilter("ignore", ConvergenceWarning)
        if folds >= 2:
            cv = StratifiedKFold(folds, shuffle=True, random_state=seed)
            found = {C: cross_val_score(model(C), train.numpy(), y, cv=cv, scoring="roc_auc").mean() for C in PENALTIES}
            best = max(found, key=found.get)
        return model(best).fit(train.numpy(), y).decision_function(held.numpy())


def rank_average(*parts: np.ndarray) -> np.ndarray:
    """The mean of the ranks of several scores: what two models say together, whatever their scales."""
    return np.mean([_ranks(part) for part in parts], axis=0)


def _ranks(score: np.ndarray) -> np.ndarray:
    """Equal scores share the mean of their ranks."""
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    last = count.cumsum()
    return (last - (count - 1) / 2)[inverse]


def judged(score: np.ndarray, label: Int[Tensor, " m"], share: float = 1.0) -> Row:
    """`auroc` and `ap` (average precision) of a score of death; with fewer labels the names say so: `auroc 10 %`."""
    suffix = "" if share == 1 else f" {100 * share:g} %"
    y = label.numpy()
    return {
        f"auroc{suffix}": float(roc_auc_score(y, score)),
        f"ap{suffix}": float(average_precision_score(y, score)),
    }


def explained(train: Tensor, target: Tensor, held: Tensor, held_target: Tensor) -> float:
    """R2 on the held-out stays of a ridge regression, over the stays whose target is known; NaN with fewer than 10."""
    known, held_known = target.isfinite(), held_target.isfinite()
    if min(int(known.sum()), int(held_known.sum())) < 10:
        return float("nan")
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 6)))
    model.fit(train[known].numpy(), target[known].numpy())
    return float(model.score(held[held_known].numpy(), held_target[held_known].numpy()))


def unit_accuracy(task: ClinicalTask, train: Tensor, held: Tensor) -> float:
    """Accuracy of the ICU type, from features that do not hold it."""
    place = DESCRIPTORS.index("ICUType")
    y, held_y = task.train.static[:, place], task.held.static[:, place]
    known, held_known = y.isfinite(), held_y.isfinite()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train[known].numpy(), y[known].numpy())
    return float(model.score(held[held_known].numpy(), held_y[held_known].numpy()))


def asked(task: ClinicalTask, train: Tensor, held: Tensor) -> Row:
    """What features say about the answers of a task (`... r2`) and the ICU type (`unit accuracy`)."""
    found = {f"{name} r2": explained(train, task.answers[name], held, task.held_answers[name]) for name in task.answers}
    return found | {"unit accuracy": unit_accuracy(task, train, held)}
