"""What does a retrieval model find, beside what is found without one, and how does its space look?

Book: chapter 14.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa_lab.data.retrieval import Texts
from jepa_lab.metrics import diagnose
from jepa_lab.objectives.retrieval import Retrieval
from jepa_lab.regularisers import isotropy
from jepa_lab.search import POOLS, Row, SearchTask, by_cosine, chance_row, mixed_row, row, word_scores

CHUNK = 1024  # texts embedded at once
PAIRS = 20_000  # random pairs behind the quantiles of the cosine
QUANTILES = (0.05, 0.5, 0.95)


class RetrievalTask(NamedTuple):
    """A search task, and all its texts as the encoder reads them; `words` is the size of the vocabulary, `start` [V, D]
    the word vectors of LSA."""

    search: SearchTask
    question: Texts
    source: Texts
    words: int = 0
    start: Tensor | None = None

    def batch(self, rows: Int[Tensor, " B"]) -> dict[str, Tensor]:
        """These pairs, as `Retrieval.evaluate` and `Retrieval.represent` take them."""
        texts = self.question.take("question", rows) | self.source.take("source", rows)
        return texts | {"source_id": self.search.source_id[rows]}


def represented(task: RetrievalTask, objective: Retrieval, name: str) -> Float[Tensor, "n D"]:
    """The representation `name` of all pairs of a task, on the CPU."""
    device = next(objective.parameters()).device
    parts = []
    for rows in torch.arange(len(task.search.topic)).split(CHUNK):
        batch = {key: value.to(device) for key, value in task.batch(rows).items()}
        parts.append(objective.represent(batch, name).cpu())
    return torch.cat(parts)


def control_rows(task: RetrievalTask, untrained: Retrieval, part: str = "test") -> list[Row]:
    """What is found by chance, by the cosine of the frozen embeddings, by the words, and by the encoder before its
    first step."""
    search = task.search
    rows = search.parts[part]
    return [
        chance_row(search, part),
        _searched(search, "cosine", part, search.question[rows], search.source),
        row(search, "TF-IDF", part, dict.fromkeys(POOLS, word_scores(search)(part, ""))),
        _searched(
            search,
            "untrained",
            part,
            represented(task, untrained, "query")[rows],
            represented(task, untrained, "source"),
        ),
    ]


def model_rows(task: RetrievalTask, objective: Retrieval, method: str, part: str = "test") -> list[Row]:
    """A trained model: searching with its encoder as the config's `mix` says, with the predicted source alone, with the
    mixture of the two and with that of encoder and words, whose weights are chosen on validation questions."""
    search, mix = task.search, objective.config.mix
    source = represented(task, objective, "source")
    cosine = _of_parts(search, represented(task, objective, "query"), source)
    predicted = None
    health = space(source[search.parts[part]])
    if objective.predictor is not None:
        z = represented(task, objective, "predicted")
        predicted = _of_parts(search, z, source)
        rows = search.parts[part]
        health["prediction_error"] = float(1 - (z[rows] * source[rows]).sum(1).mean())

    def own(part: str, pool: str) -> Callable:
        first = cosine(part, pool)
        if not mix:
            return first
        second = predicted(part, pool)
        return lambda some, pooled: (1 - mix) * first(some, pooled) + mix * second(some, pooled)

    result = [row(search, method, part, {pool: own(part, pool) for pool in POOLS}, **health)]
    if predicted is not None:
        found = {pool: predicted(part, pool) for pool in POOLS}
        result.append(row(search, f"{method}, predicted", part, found))
        result.append(mixed_row(search, f"{method}, mixed", part, cosine, predicted)[0])
    if search.lexical is not None:
        result.append(mixed_row(search, f"{method} + TF-IDF", part, own, word_scores(search))[0])
    return result


def space(z: Float[Tensor, "n D"]) -> dict[str, float | str]:
    """How do unit vectors fill their space? The numbers and the verdict of `diagnose`, the isotropy loss at features of
    size 1, and quantiles of the cosine of two random rows ("cosine 50 %").

    Book: chapter 14.
    """
    report = diagnose(z)
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(len(z), (PAIRS,), generator=generator)
    other = (one + torch.randint(1, len(z), (PAIRS,), generator=generator)) % len(z)  # never a row with itself
    cosines = (z[one] * z[other]).sum(1).quantile(torch.tensor(QUANTILES)).tolist()
    return {
        "verdict": report.verdict,
        "source_std": report.normalized_std,
        "source_cosine": report.mean_cosine,
        "effective_rank": report.effective_rank,
        "isotropy": float(isotropy(z * z.shape[1] ** 0.5)),
        **{f"cosine {q:.0%}".replace("%", " %"): value for q, value in zip(QUANTILES, cosines, strict=True)},
    }


def _searched(
    search: SearchTask, method: str, part: str, query: Float[Tensor, "Q D"], source: Float[Tensor, "n D"]
) -> Row:
    """The row of a search by cosine, with the health of the space."""
    return row(
        search, method, part, dict.fromkeys(POOLS, by_cosine(query, source)), **space(source[search.parts[part]])
    )


def _of_parts(
    search: SearchTask, query: Float[Tensor, "n D"], source: Float[Tensor, "n D"]
) -> Callable[[str, str], Callable]:
    """Scores by part and pool, as `mixed_row` takes them."""
    return lambda part, pool: by_cosine(query[search.parts[part]], source)
