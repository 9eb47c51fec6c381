"""Did the search find it? Ranks, and the metrics that are made of them.

Book: chapter 12.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# In units of the last digit; the cosines of equal directions were up to 3 apart in 4 to 1,024 dimensions, 6 in 4,096.
ROUNDING = 8


@torch.no_grad()
def ranks(
    scores: Float[Tensor, "Q P"], right: Int[Tensor, " Q"], allowed: Bool[Tensor, "Q P"] | None = None
) -> Float[Tensor, " Q"]:
    """Rank of the right candidate among all, 1 = best; candidates that tie share the mean of their places.

        rank = 1 + #(better) + (#(equal) - 1)/2

    Without the last term a query whose scores are all equal (a collapsed model, a text of unknown words) would rank
    everything first, or everything last, by the order of the candidates alone. Scores are equal when they differ by
    less than rounding: equal embeddings at two places of a pool have cosines that differ in the last digits, and the
    one query of a chunk, with all candidates the same, would otherwise rank one of them first.

    Args:
        right: the column of the right candidate. Where it is not `allowed`, its rank is infinite: it is never found.
        allowed: the candidates that count for each query; None = all.
    Shapes: scores [Q, P], right [Q] -> [Q].
    Raises: ValueError on a column out of range or scores that are not finite.
    Book: chapter 12.
    """
    if scores.shape[0] != len(right) or (len(right) and not 0 <= int(right.min()) <= int(right.max()) < len(scores.T)):
        raise ValueError(
            f"right must hold one column of scores {tuple(scores.shape)} per query, got {tuple(right.shape)}"
        )
    if not scores.isfinite().all():
        raise ValueError("scores must be finite: look for NaN in the embeddings")
    own = scores.gather(1, right[:, None])
    margin = ROUNDING * torch.finfo(scores.dtype).eps * own.abs().clamp(min=1)
    counts = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed
    better = ((scores > own + margin) & counts).sum(1)
    equal = (((scores - own).abs() <= margin) & counts).sum(1)
    rank = 1 + better + (equal - 1) / 2
    return rank.masked_fill(~counts.gather(1, right[:, None])[:, 0], torch.inf)


@torch.no_grad()
def retrieval_ranks(
    query: Float[Tensor, "Q D"], pool: Float[Tensor, "P D"], right: Int[Tensor, " Q"], chunk: int = 1024
) -> Float[Tensor, " Q"]:
    """`ranks` by cosine similarity, `chunk` queries at a time: the Q x P matrix never exists as a whole.

    Shapes: query [Q, D], pool [P, D], neither normalised -> [Q].
    Raises: ValueError as `ranks` does, and on chunk < 1.
    Book: chapter 12.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    unit = torch.nn.functional.normalize
    query, pool = unit(query, dim=1), unit(pool, dim=1)
    parts = [ranks(q @ pool.T, r) for q, r in zip(query.split(chunk), right.split(chunk), strict=True)]
    return torch.cat(parts) if parts else query.new_zeros(0)


def recall_at(rank: Float[Tensor, " Q"], k: int) -> float:
    """Share of the queries whose right candidate is among the first k.

    Raises: ValueError on k < 1 or without queries.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return float((_some(rank) <= k).double().mean())


def mean_reciprocal_rank(rank: Float[Tensor, " Q"]) -> float:
    """MRR: mean of 1/rank; 1 when the right candidate always comes first.

    Raises: ValueError without queries.
    """
    return float((1 / _some(rank).double()).mean())


def ndcg_at(rank: Float[Tensor, " Q"], k: int = 10) -> float:
    """nDCG@k with one right candidate a query: mean of 1/log2(1 + rank), 0 where the rank exceeds k.

    Raises: ValueError on k < 1 or without queries.
    Paper: Jarvelin and Kekalainen 2002.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rank = _some(rank).double()
    return float(torch.where(rank <= k, 1 / torch.log2(1 + rank), 0.0).mean())


def retrieval_metrics(rank: Float[Tensor, " Q"]) -> dict[str, float]:
    """`recall@1`, `recall@10`, `mrr` and `ndcg@10` of the ranks of the right candidates."""
    return {
        "recall@1": recall_at(rank, 1),
        "recall@10": recall_at(rank, 10),
        "mrr": mean_reciprocal_rank(rank),
        "ndcg@10": ndcg_at(rank, 10),
    }


def _some(rank: Tensor) -> Tensor:
    if not len(rank):
        raise ValueError("rank: no queries to average over")
    return rank
