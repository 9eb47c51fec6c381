"""Is the router right, does it know when it is, and does an explanation tell failures from successes?

Book: chapter 13.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from jepa_lab.calibration import auroc, expected_calibration_error
from jepa_lab.objectives.routed import RoutedJasper, subspaces_used
from jepa_lab.routing import entropy
from jepa_lab.search import POOLS, Row, SearchTask, by_cosine, row

LOGISTIC_C = 10.0  # of scikit-learn's logistic regression on the unit vectors of the questions


def topic_control_rows(task: SearchTask, part: str = "test") -> list[Row]:
    """How well a question alone says its topic, without a router: the most frequent topic, the nearest centroid, and a
    logistic regression on the training questions. Each searches with the centroid of its choice as query."""
    train, rows = task.parts["train"], task.parts[part]
    k = len(task.centroids)
    frequency = torch.bincount(task.topic[train], minlength=k).float()
    nearest = task.question[rows] @ task.centroids.T
    model = LogisticRegression(C=LOGISTIC_C, max_iter=300).fit(task.question[train].numpy(), task.topic[train].numpy())
    p = torch.zeros(len(rows), k, dtype=torch.float64)
    p[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba(task.question[rows].numpy())).double()
    scores = {"majority topic": frequency.expand(len(rows), -1), "nearest centroid": nearest, "logistic regression": p}
    result = []
    for method, score in scores.items():
        found: Row = {"routing_accuracy": _accuracy(score, task.topic[rows])}
        if method == "logistic regression":
            found["ece"] = expected_calibration_error(p, task.topic[rows])
        result.append(_chosen(task, method, part, task.centroids[score.argmax(1)]) | found)
    return result


def routing_rows(task: SearchTask, objective: RoutedJasper, method: str, part: str = "test") -> list[Row]:
    """Rows of the steered question, of the question alone ("zero"), and of the coarse part, with what the routing says.

    `routing_accuracy`, `ece`, `entropy` (nats), `batch_entropy`, `subspaces_used`, `residual_norm`; and for each pool
    `failures` (the right source is not in the top 10) and `AUROC ...`: does more of this doubt mean failure? Doubts are
    the length of the residual, its share of the prediction, the entropy of the routing, and minus the highest
    similarity, the margin to rank 11, and the highest similarity of the question itself.
    """
    result = []
    for name, variant in {f"{method}, routing": "centroid", f"{method}, routing, zero": "zero"}.items():
        result.append(_routed(task, objective, name, part, variant))
    coarse = _parts(objective, task.question[task.parts[part]], task.steering(part)).coarse
    source = objective.represent({"source": task.source.to(objective.centroids.device)}, "source").cpu()
    result.append(row(task, f"{method}, coarse", part, dict.fromkeys(POOLS, _scores(coarse, source))))
    return result


def _routed(task: SearchTask, objective: RoutedJasper, name: str, part: str, variant: str) -> Row:
    rows, topic = task.parts[part], task.topic[task.parts[part]]
    out = _parts(objective, task.question[rows], task.steering(part, variant))
    source = objective.represent({"source": task.source.to(objective.centroids.device)}, "source").cpu()
    p, length = out.logits.softmax(1), out.fine.norm(dim=1)
    found = row(task, name, part, dict.fromkeys(POOLS, _scores(out.prediction, source))) | {
        "routing_accuracy": _accuracy(out.logits, topic),
        "ece": expected_calibration_error(p, topic),
        "entropy": float(entropy(p).mean()),
        "batch_entropy": float(entropy(p.mean(0))),
        "subspaces_used": float(subspaces_used(out.logits)),
        "residual_norm": float(length.mean()),
    }
    extra = {"residual": length, "residual share": length / out.prediction.norm(dim=1), "entropy": entropy(p)}
    return found | failure_metrics(task, part, out.prediction, source, extra)


def failure_metrics(
    task: SearchTask, part: str, query: Float[Tensor, "Q D"], source: Float[Tensor, "n D"], doubts: dict[str, Tensor]
) -> dict[str, float]:
    """For each pool the share of `failures`, and the AUROC of each doubt and of those that similarities give."""
    found = {}
    for pool in POOLS:
        suffix = "" if pool == "part" else " all"
        failed = failures(task, part, pool, query, source)
        found[f"failures{suffix}"] = float(failed.double().mean())
        if not 0 < int(failed.sum()) < len(failed):
            continue
        every = doubts | similarity_doubts(task, part, pool, query, source)
        found |= {f"AUROC {name}{suffix}": auroc(doubt, failed) for name, doubt in every.items()}
    return found


def failures(task: SearchTask, part: str, pool: str, query: Tensor, source: Tensor) -> Bool[Tensor, " Q"]:
    """Whether the right source of each question of a part is not among the first ten."""
    return task.ranks(part, pool, _scores(query, source)) > 10


def similarity_doubts(
    task: SearchTask, part: str, pool: str, query: Float[Tensor, "Q D"], source: Float[Tensor, "n D"]
) -> dict[str, Float[Tensor, " Q"]]:
    """Doubts that need no router: minus the highest similarity in the pool, minus its lead over rank 11, and minus the
    highest similarity of the question itself, without any model."""
    pooled, rows = task.pool(pool, part), torch.arange(len(query))
    top = _scores(query, source)(rows, pooled).topk(min(11, len(pooled)), dim=1).values
    plain = _scores(task.question[task.parts[part]], task.source)(rows, pooled).max(1).values
    return {"max similarity": -top[:, 0], "margin": top[:, -1] - top[:, 0], "max similarity of the question": -plain}


def _parts(objective: RoutedJasper, question: Tensor, steering: Tensor):
    device = objective.centroids.device
    out = objective.explain_parts(question.to(device), steering.to(device))
    return type(out)(*(part.cpu() for part in out))


def _scores(query: Tensor, source: Tensor):
    return by_cosine(query, source)


def _accuracy(score: Float[Tensor, "Q K"], topic: Int[Tensor, " Q"]) -> float:
    return float((score.argmax(1) == topic).double().mean())


def _chosen(task: SearchTask, method: str, part: str, query: Tensor) -> Row:
    return row(task, method, part, dict.fromkeys(POOLS, by_cosine(F.normalize(query, dim=1), task.source)))
