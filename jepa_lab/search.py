"""How well are sources found? One search task, with the control rows that a steering model has to beat.

Everything that has a parameter (how far to move, how much to trust words) chooses it on the validation questions by
mean reciprocal rank, once for each pool; the part that is reported is searched once.

Book: chapter 12.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from jepa_lab.data.steering import VARIANTS, check_pairs, leave_one_out, steer, topic_centroids
from jepa_lab.metrics import mean_cosine, normalized_std
from jepa_lab.objectives.steering import Jasper
from jepa_lab.ranking import ranks, retrieval_metrics

POOLS = ("part", "all")
STEPS = tuple(round(0.05 * i, 2) for i in range(41))  # how far to move, how much to trust words: 0 to 2
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
Row = dict[str, str | float | dict[str, float]]


@dataclass(frozen=True)
class SearchTask:
    """Questions, the sources that answer them, and what is known about the sources' topics.

    `parts` names the rows of each split. Centroids, and with them the steering, are made of training sources; a pair's
    own source is left out of its own, and no source is in two parts. With `unseen_topics` (parts that share no topic)
    a topic's centroid is the mean of the topic's *other* sources, whatever part they are in: steering by a gallery.
    `lexical` are the TF-IDF rows of questions and sources, unit length; the other vectors are brought to unit length.

    Two pools are searched: `part`, the sources of the same part, and `all` sources.

    Raises: ValueError as `SteeringDataset` does, and when a source is in two parts.
    Book: chapter 12.
    """

    question: Float[Tensor, "n D"]
    source: Float[Tensor, "n D"]
    topic: Int[Tensor, " n"]
    source_id: Int[Tensor, " n"]
    parts: dict[str, Int[Tensor, " m"]]
    lexical: tuple[csr_matrix, csr_matrix] | None = None
    ambiguous: Bool[Tensor, " n"] | None = None
    keywords: Float[Tensor, "K D"] | None = None
    unseen_topics: bool = False

    def __post_init__(self):
        check_pairs(self.question, self.source, self.topic)
        check_parts(self.source_id, self.parts)
        for name in ("question", "source", "keywords"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, F.normalize(value, dim=1))
        train = self.parts["train"]
        if self.unseen_topics:
            own, centroids = (
                leave_one_out(self.source, self.topic, self.source_id),
                topic_centroids(self.source, self.topic),
            )
        else:
            k = int(self.topic.max()) + 1
            centroids = topic_centroids(self.source[train], self.topic[train], k)
            own = centroids[self.topic]
            own[train] = leave_one_out(self.source[train], self.topic[train], self.source_id[train])
        if self.keywords is not None and self.keywords.shape != centroids.shape:
            raise ValueError(
                f"keywords must be {tuple(centroids.shape)}, a row per topic, got {tuple(self.keywords.shape)}"
            )
        object.__setattr__(self, "centroids", centroids)
        object.__setattr__(self, "own_centroid", own)

    def pool(self, name: str, part: str) -> Int[Tensor, " P"]:
        """The rows whose sources are searched, each source once."""
        rows = self.parts[part] if name == "part" else torch.arange(len(self.topic))
        _, inverse = torch.unique(self.source_id[rows], return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(rows)).scatter_reduce_(
            0, inverse, torch.arange(len(rows)), "amin"
        )
        return rows[first]

    def right(self, part: str, pool: Int[Tensor, " P"]) -> Int[Tensor, " Q"]:
        """The place in the pool of the source of each question of a part."""
        place = torch.full((int(self.source_id.max()) + 1,), -1)
        place[self.source_id[pool]] = torch.arange(len(pool))
        return place[self.source_id[self.parts[part]]]

    def steering(self, part: str, variant: str = "centroid") -> Float[Tensor, "Q D"]:
        """Steering vectors of the questions of a part: one of `VARIANTS`, or `wrong`, the centroid of the topic that
        is nearest to the right one."""
        rows = self.parts[part]
        if variant == "wrong":
            near = (self.centroids @ self.centroids.T).fill_diagonal_(-torch.inf)
            near[:, self.centroids.norm(dim=1) == 0] = -torch.inf
            return self.centroids[near.argmax(1)[self.topic[rows]]]
        code = torch.full((len(rows),), VARIANTS.index(variant))
        return steer(self.question[rows], self.own_centroid[rows], self.keywords, self.topic[rows], code)

    def batch(self, part: str, variant: str = "centroid") -> dict[str, Tensor]:
        """The pairs of a part with steering, as `Jasper.evaluate` takes them."""
        rows = self.parts[part]
        batch = {"question": self.question[rows], "source": self.source[rows], "source_id": self.source_id[rows]}
        if not self.unseen_topics:  # the model has no centroid of a topic that it never saw
            batch["topic"] = self.topic[rows]
        return batch | {"steering": self.steering(part, variant)}

    def ranks(
        self,
        part: str,
        pool: str,
        scores: Callable[[Tensor, Tensor], Tensor],
        by_topic: bool = False,
        chunk: int = 1024,
    ) -> Float[Tensor, " Q"]:
        """Ranks of the right sources by `scores(questions, pool)`, which takes positions in the part and rows of the
        pool and returns [q, P]. `by_topic` searches the sources of the question's topic only."""
        pooled, rows = self.pool(pool, part), self.parts[part]
        right, found = self.right(part, pooled), []
        topics_of = torch.zeros(int(self.source_id.max()) + 1, len(self.centroids), dtype=torch.bool)
        topics_of[self.source_id, self.topic] = True  # a source may be in several
        for some in torch.arange(len(rows)).split(chunk):
            allowed = topics_of[self.source_id[pooled]][:, self.topic[rows[some]]].T if by_topic else None
            found.append(ranks(scores(some, pooled), right[some], allowed))
        return torch.cat(found)


def check_parts(source_id: Int[Tensor, " n"], parts: dict[str, Int[Tensor, " m"]]) -> None:
    """Raises: ValueError when a source is in two parts: a centroid of training sources would hold a test's answer."""
    for (one, rows), (other, others) in combinations(parts.items(), 2):
        shared = source_id[rows][torch.isin(source_id[rows], source_id[others])]
        if len(shared):
            raise ValueError(f"parts: source_id {int(shared[0])} is in {one} and in {other}; keep a source in one part")


def by_cosine(query: Float[Tensor, "Q D"], source: Float[Tensor, "n D"]) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores for `SearchTask.ranks`: the cosine of each query of a part with the sources of a pool."""
    q, s = F.normalize(query, dim=1), F.normalize(source, dim=1)
    return lambda some, pooled: q[some] @ s[pooled].T


def by_words(task: SearchTask, part: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores for `SearchTask.ranks`: the TF-IDF cosine, words against words."""
    question, source = task.lexical
    rows = task.parts[part].numpy()

    def scores(some: Tensor, pooled: Tensor) -> Tensor:
        product = question[rows[some.numpy()]] @ source[pooled.numpy()].T
        return torch.from_numpy(product.toarray().astype(np.float32))

    return scores


def mixed(first: Callable, second: Callable, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The scores first + weight x second."""
    return lambda some, pooled: first(some, pooled) + weight * second(some, pooled)


def row(task: SearchTask, method: str, part: str, scores: dict[str, Callable], by_topic: bool = False, **extra) -> Row:
    """A row of the table: the metrics of both pools ("recall@10", "recall@10 all"), ambiguous names also apart."""
    result: Row = {"method": method}
    for pool in POOLS:
        rank = task.ranks(part, pool, scores[pool], by_topic)
        suffix = "" if pool == "part" else " all"
        result |= {name + suffix: value for name, value in retrieval_metrics(rank).items()}
        if task.ambiguous is not None and bool((chosen := task.ambiguous[task.parts[part]]).any()):
            result[f"recall@10 ambiguous{suffix}"] = retrieval_metrics(rank[chosen])["recall@10"]
    return result | extra


def tune(task: SearchTask, make: Callable[[str, float], Callable], values: tuple[float, ...]) -> dict[str, float]:
    """For each pool the value whose `make(part, value)` has the best mean reciprocal rank on validation."""
    best = {}
    for pool in POOLS:
        mrr = [retrieval_metrics(task.ranks("validation", pool, make("validation", value)))["mrr"] for value in values]
        best[pool] = values[int(np.argmax(mrr))]
    return best


def _tuned_row(task: SearchTask, method: str, part: str, make: Callable, values: tuple[float, ...]) -> Row:
    best = tune(task, make, values)
    return row(task, method, part, {pool: make(part, best[pool]) for pool in POOLS}, parameter=best)


def tune_mix(
    task: SearchTask, first: Callable[[str, str], Callable], second: Callable[[str, str], Callable]
) -> dict[str, float]:
    """For each pool the weight w of `STEPS` with the best mean reciprocal rank of first + w x second on validation.

    `first(part, pool)` and `second(part, pool)` return scores. Both are computed once; only their sum is ranked anew.
    """
    best, rows = {}, torch.arange(len(task.parts["validation"]))
    for pool in POOLS:
        pooled = task.pool(pool, "validation")
        right = task.right("validation", pooled)
        a, b = first("validation", pool)(rows, pooled), second("validation", pool)(rows, pooled)
        mrr = [retrieval_metrics(ranks(a + weight * b, right))["mrr"] for weight in STEPS]
        best[pool] = STEPS[int(np.argmax(mrr))]
    return best


def mixed_row(task: SearchTask, method: str, part: str, first: Callable, second: Callable) -> tuple[Row, Callable]:
    """The row of first + w x second with w tuned, and its scores, to mix further."""
    best = tune_mix(task, first, second)

    def scores(part: str, pool: str) -> Callable:
        return mixed(first(part, pool), second(part, pool), best[pool])

    return row(task, method, part, {pool: scores(part, pool) for pool in POOLS}, parameter=best), scores


def control_rows(task: SearchTask, part: str = "test") -> list[Row]:
    """What is reached without a model: by chance, by cosine, by arithmetic with the topic's centroid, by ridge
    regression, by words, and by a filter that is told the topic."""
    q, s = task.question, task.source

    def of(query: Tensor) -> Callable:
        return lambda part, pool: by_cosine(query[task.parts[part]], s)

    plain = dict.fromkeys(POOLS, of(q)(part, ""))
    rows = [chance_row(task, part), row(task, "cosine", part, plain)]
    # cos(q + a c, s) ranks as q.s + a c.s does: the length of a query changes no order.
    rows.append(mixed_row(task, "centroid arithmetic", part, of(q), _centroid_scores(task))[0])
    ridge = {value: fit_ridge(task, value) for value in RIDGES}
    rows.append(_tuned_row(task, "ridge [q; c]", part, lambda part, value: of(ridge[value])(part, ""), RIDGES))
    rows.append(row(task, "topic filter", part, plain, by_topic=True))
    if task.lexical is not None:
        words = word_scores(task)
        rows.append(row(task, "TF-IDF", part, dict.fromkeys(POOLS, words(part, ""))))
        rows.append(mixed_row(task, "TF-IDF, steered", part, words, _centroid_scores(task))[0])
    return rows


def _centroid_scores(task: SearchTask) -> Callable[[str, str], Callable]:
    return lambda part, pool: by_cosine(task.own_centroid[task.parts[part]], task.source)


def word_scores(task: SearchTask) -> Callable[[str, str], Callable]:
    """Scores by part and pool, as `mixed_row` takes them: words against words."""
    return lambda part, pool: by_words(task, part)


def fit_ridge(task: SearchTask, penalty: float) -> Float[Tensor, "n D"]:
    """Predicted sources [n, D] of a ridge regression from [question; centroid] on the training pairs."""
    x = torch.cat([task.question, task.own_centroid], dim=1).double()
    train = task.parts["train"]
    mean_x, mean_y = x[train].mean(0), task.source[train].double().mean(0)
    a, b = x[train] - mean_x, task.source[train].double() - mean_y
    weights = torch.linalg.solve(a.T @ a + penalty * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)
    return ((x - mean_x) @ weights + mean_y).to(task.source.dtype)


def chance_row(task: SearchTask, part: str) -> Row:
    """A random order of the pool, in expectation."""
    result: Row = {"method": "chance"}
    for pool in POOLS:
        n, suffix = len(task.pool(pool, part)), "" if pool == "part" else " all"
        places = torch.arange(1, n + 1, dtype=torch.float64)
        result |= {name + suffix: value for name, value in retrieval_metrics(places).items()}
        if task.ambiguous is not None:
            result[f"recall@10 ambiguous{suffix}"] = min(10 / n, 1.0)
    return result


def model_rows(task: SearchTask, objective: Jasper, method: str, part: str = "test") -> list[Row]:
    """A trained model steered in every way, with the filter on top, and mixed with TF-IDF scores."""
    device = objective.centroids.device
    source = objective.represent({"source": task.source.to(device)}, "source").cpu()

    def query(part: str, variant: str = "centroid") -> Tensor:
        batch = {"question": task.question[task.parts[part]], "steering": task.steering(part, variant)}
        return objective.represent({key: value.to(device) for key, value in batch.items()}, "query").cpu()

    def scores(part: str, variant: str = "centroid") -> Callable:
        return by_cosine(query(part, variant), source)

    steered = scores(part)
    rows = [row(task, method, part, dict.fromkeys(POOLS, steered), **_health(source))]
    variants = ["zero", "residual", "wrong", *(["keyword"] if task.keywords is not None else [])]
    for variant in variants:
        rows.append(row(task, f"{method}, {variant}", part, dict.fromkeys(POOLS, scores(part, variant))))
    rows.append(row(task, f"{method} + filter", part, dict.fromkeys(POOLS, steered), by_topic=True))
    if task.lexical is not None:
        words, model = word_scores(task), {name: scores(name) for name in {part, "validation"}}
        rows.append(mixed_row(task, f"{method} + TF-IDF", part, lambda part, pool: model[part], words)[0])
        _, steered_words = mixed_row(task, "TF-IDF, steered", part, words, _centroid_scores(task))
        fused = mixed_row(task, f"{method} + steered TF-IDF", part, steered_words, lambda part, pool: model[part])
        rows.append(fused[0])
    return rows


def _health(source: Float[Tensor, "n D"]) -> dict[str, float]:
    """Whether the space that is searched has collapsed: recall does not see it."""
    return {"target_std": float(normalized_std(source)), "target_cosine": float(mean_cosine(source))}
