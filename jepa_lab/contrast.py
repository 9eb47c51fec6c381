"""What picks out: losses in which an embedding must find its partner among the others of the batch.

Import them from `jepa_lab.losses`.

Book: chapters 04, 12.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepa_lab.fused import Implementation, log_sum_exp_of_candidates, log_sum_exp_of_pairs, use_fused
from jepa_lab.regularisers import check_views

# Rows B from which implementation="auto" takes the fused form. On the CPU it wins from fewer on; below, stored results
# would change in their last digits for the sake of milliseconds. On a GPU the matrix must be large before it costs more
# than the additional calls.
_FUSED_FROM = {"cpu": 1024, "gpu": 8192}
# Width up to which "auto" takes the fused InfoNCE: it makes one matrix product again that the dense form stores.
_FUSED_INFO_NCE_UP_TO = 512


def nt_xent(
    z1: Float[Tensor, "B P"],
    z2: Float[Tensor, "B P"],
    temperature: float = 0.1,
    implementation: Implementation = "auto",
    similarity: Literal["cosine", "dot"] = "cosine",
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """NT-Xent, the contrastive loss of SimCLR: pick your own other view out of the 2B - 1 other embeddings.

        loss = -1/(2B) sum_i log( exp(s_ip / t) / sum_{j != i} exp(s_ij / t) )

    over the 2B rows of [z1; z2], with s the cosine similarity, p the row of i's other view (i + B or i - B) and t the
    temperature. A collapsed batch, all embeddings equal, gives ln(2B - 1). The values of different temperatures or
    batch sizes are not comparable.

    Args:
        implementation: "dense" is the code below, with a matrix of 2B x 2B; "fused" gives the same value and gradient
            in O(B) memory, but no second derivative; "auto" takes "fused" where it is faster: for large batches.
        similarity: "dot" takes s as the inner product instead, so that the lengths of the embeddings count as well: a
            temperature that the model can move. It is always computed dense.
    Shapes: z1, z2 [B, P], not normalised; returns the scalar loss and detached 0-d metrics: `accuracy` (share of rows
        whose nearest other row is their positive), `positive_cosine` and `negative_cosine` (means, before dividing by
        the temperature, cosines whatever the similarity).
    Raises: ValueError for temperature <= 0, for a batch of one (there are no negatives), for different shapes or an
        unknown `implementation` or `similarity`.
    Paper: Chen et al. 2020 (SimCLR), equation 1. Book: chapter 04.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"z1 and z2 must both be [B, P], got {tuple(z1.shape)} and {tuple(z2.shape)}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    batch = len(z1)
    if batch < 2:
        raise ValueError(f"NT-Xent needs a batch of at least 2 rows to have negatives, got {batch}")
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"similarity must be cosine or dot, got {similarity!r}")
    both = torch.cat([z1, z2])
    z = _unit(both)
    if use_fused(implementation, z, batch, _FUSED_FROM) and similarity == "cosine":
        return _nt_xent_fused(z, temperature)
    cosine = z @ z.T  # [2B, 2B]
    itself = torch.eye(2 * batch, dtype=torch.bool, device=z.device)
    score = cosine if similarity == "cosine" else _wide(both) @ _wide(both).T
    logits = (score / temperature).masked_fill(itself, -torch.inf)  # a row is not its own candidate
    other_view = torch.arange(2 * batch, device=z.device).roll(batch)
    loss = F.cross_entropy(logits, other_view)

    with torch.no_grad():
        positive = cosine.gather(1, other_view[:, None]).mean()
        everything = cosine.sum() - cosine.diagonal().sum()
        metrics = {
            "accuracy": (logits.argmax(1) == other_view).float().mean(),
            "positive_cosine": positive,
            "negative_cosine": (everything - 2 * batch * positive) / (2 * batch * (2 * batch - 2)),
        }
    return loss, metrics


def _nt_xent_fused(z: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    batch = len(z) // 2
    total, positive, best = log_sum_exp_of_pairs(z, temperature)
    loss = total.mean() - _same_value((z[:batch] * z[batch:]).sum(1), positive[:batch]).mean() / temperature
    with torch.no_grad():
        everything = z.sum(0).square().sum() - z.square().sum()  # of the cosines of different rows
        metrics = {
            "accuracy": (positive > best).float().mean(),
            "positive_cosine": positive.mean(),
            "negative_cosine": (everything - 2 * batch * positive.mean()) / (2 * batch * (2 * batch - 2)),
        }
    return loss, metrics


def info_nce(
    query: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    negatives: Float[Tensor, "B K D"] | None = None,
    temperature: float = 0.07,
    ignore: Bool[Tensor, "B B"] | None = None,
    ignore_negatives: Bool[Tensor, "B K"] | None = None,
    in_batch: bool = True,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """InfoNCE: tell the right source of a query from those of the other rows, and from `negatives` of its own.

        loss = -1/B sum_i log( exp(s(q_i, p_i) / t) / sum_c exp(s(q_i, c) / t) )

    with s the cosine similarity, t the temperature, and c over p_i, the other rows' positives (`in_batch`) and row i's
    own negatives. A collapsed batch gives the log of the number of candidates.

    Args:
        ignore: candidates that are no negatives although they look like it, [i, j] for the positive of row j as a
            negative of row i: a source that answers both. The diagonal, the positives themselves, is never ignored.
        ignore_negatives: likewise for a row's own negatives.
        implementation: as in `nt_xent`. Without `in_batch` there is nothing to fuse, and "dense" is used.
    Shapes: query, positive [B, D], negatives [B, K, D], none normalised. Returns the scalar loss and detached 0-d
        metrics: `accuracy` (the positive has the highest similarity), `positive_cosine`, `negative_cosine` (means).
    Raises: ValueError for temperature <= 0, for different shapes or an unknown `implementation`, and when some row
        has no negative at all (checked on the CPU).
    Papers: van den Oord et al. 2018, equation 4; hard negatives as in Karpukhin et al. 2020. Book: chapter 12.
    """
    check_views(query, positive)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if negatives is None and not in_batch:
        raise ValueError("in_batch=False needs negatives: without either there is nothing to tell apart")
    if negatives is not None and (negatives.ndim != 3 or negatives.shape[::2] != query.shape):
        raise ValueError(f"negatives must be [B, K, D] with query {tuple(query.shape)}, got {tuple(negatives.shape)}")
    q, p = _unit(query), _unit(positive)
    size = len(q) if q.shape[1] <= _FUSED_INFO_NCE_UP_TO else 0
    if use_fused(implementation, q, size, _FUSED_FROM) and in_batch:
        own = None if negatives is None else _unit(negatives)
        return _info_nce_fused(q, p, own, temperature, ignore, ignore_negatives)
    rows = torch.arange(len(q), device=q.device)
    itself = torch.eye(len(q), dtype=torch.bool, device=q.device)
    out = torch.zeros_like(itself) if ignore is None else ignore & ~itself
    cosine = q @ p.T
    if not in_batch:
        out = ~itself
    if negatives is not None:
        cosine = torch.cat([cosine, torch.einsum("bd,bkd->bk", q, _unit(negatives))], dim=1)
        own = torch.zeros_like(cosine[:, len(q) :], dtype=torch.bool) if ignore_negatives is None else ignore_negatives
        out = torch.cat([out, own], dim=1)
    if q.device.type == "cpu" and bool((out.sum(1) == out.shape[1] - 1).any()):
        raise ValueError(_NO_NEGATIVE)
    logits = (cosine / temperature).masked_fill(out, -torch.inf)
    loss = F.cross_entropy(logits, rows)

    with torch.no_grad():
        positives = cosine[rows, rows]
        other = ~out
        other[rows, rows] = False
        metrics = {
            "accuracy": (logits.argmax(1) == rows).float().mean(),
            "positive_cosine": positives.mean(),
            "negative_cosine": torch.where(other, cosine, 0.0).sum() / other.sum(),
        }
    return loss, metrics


_NO_NEGATIVE = "ignore: some row has no negative left; use a larger batch or more negatives"


def _info_nce_fused(q, p, negatives, temperature, ignore, ignore_negatives) -> tuple[Tensor, dict[str, Tensor]]:
    total, positive, best, mean = log_sum_exp_of_candidates(q, p, negatives, temperature, ignore, ignore_negatives)
    if q.device.type == "cpu" and bool((best == -torch.inf).any()):
        raise ValueError(_NO_NEGATIVE)
    loss = total.mean() - _same_value((q * p).sum(1), positive).mean() / temperature
    accuracy = (positive > best).float().mean()
    return loss, {"accuracy": accuracy, "positive_cosine": positive.mean(), "negative_cosine": mean}


def centroid_loss(
    prediction: Float[Tensor, "B D"],
    centroids: Float[Tensor, "K D"],
    topic: Int[Tensor, " B"],
    temperature: float = 0.1,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of the topic when the topics' centroids are the classes: softmax of cosine / temperature.

    Shapes: prediction [B, D], centroids [K, D], neither normalised, topic [B] in 0..K-1; returns the scalar loss and
        the accuracy, detached: the share of rows whose nearest centroid is their topic's.
    Raises: ValueError for temperature <= 0 or another width.
    Book: chapter 12.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if prediction.shape[-1] != centroids.shape[-1]:
        raise ValueError(
            f"prediction and centroids must have the same width, got {prediction.shape[-1]} and {centroids.shape[-1]}"
        )
    logits = _unit(prediction) @ _unit(centroids).T / temperature
    return F.cross_entropy(logits, topic), (logits.detach().argmax(1) == topic).float().mean()


def _same_value(x: Tensor, value: Tensor) -> Tensor:
    """x with the digits of `value`, which went into the sum: else a solved task would not come out at zero."""
    return x + (value - x).detach()


def _unit(z: Tensor) -> Tensor:
    """Unit rows; half precision has too few digits for a similarity that is divided by a temperature."""
    return F.normalize(_wide(z), dim=-1)


def _wide(z: Tensor) -> Tensor:
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
