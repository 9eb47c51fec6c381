"""What teaches a router: a name for every subspace, decisions, all subspaces in use, short residuals.

A router sits in the middle of a model, so the prediction's own gradient reaches it too. That gradient does not care
which subspace is called what, and is content with a single one for all: what is to be believed when the model explains
itself must be supervised by itself. Each loss here acts on tensors that carry gradient; what is returned for
explanation is detached afterwards.

Book: chapter 13.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def routing_loss(
    logits: Float[Tensor, "B K"], topic: Int[Tensor, " B"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy of the right subspace: the one loss that gives the subspaces their meaning.

    Shapes: logits [B, K], topic [B] -> scalar.
    Raises: ValueError for label_smoothing outside [0, 1).
    Book: chapter 13.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    return F.cross_entropy(logits, topic, label_smoothing=label_smoothing)


def entropy_regularisation(
    logits: Float[Tensor, "B K"], target: float | Float[Tensor, ""] = 0.1, batch_weight: float = 1.0
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Each row decided, all subspaces in use.

        loss = mean_i max(0, H(p_i) - target) + batch_weight (log K - H(mean_i p_i)),   p = softmax(logits)

    The first term alone is at its best when every row is sent to one and the same subspace; the second is zero only
    when the batch as a whole uses all of them equally. On softmax(logits), not on a Gumbel draw, whose entropy is that
    of the noise and the temperature.

    Args:
        target: entropy of a row, in nats, above which it is penalised. Anneal it from log K to 0.1: first diversity,
            then confidence (`entropy_target`).
    Shapes: [B, K] -> scalar, and the detached 0-d metrics `entropy` (mean of the rows) and `batch_entropy`.
    Raises: ValueError for a negative batch_weight, or a negative target given as a number.
    Book: chapter 13.
    """
    if not (batch_weight >= 0 and (isinstance(target, Tensor) or target >= 0)):
        raise ValueError(f"target and batch_weight must not be negative, got {target} and {batch_weight}")
    log_p = logits.log_softmax(1)
    # In logarithms: where a probability underflows to 0, the gradient of p log p would be 0 x infinity.
    rows, batch = _entropy(log_p), _entropy(log_p.logsumexp(0) - math.log(len(logits)))
    loss = (rows - target).relu().mean() + batch_weight * (math.log(logits.shape[1]) - batch)
    return loss, {"entropy": rows.detach().mean(), "batch_entropy": batch.detach()}


def _entropy(log_p: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
    return -(log_p.exp() * log_p).sum(-1)


def entropy_target(progress: float, k: int, end: float = 0.1, until: float = 1.0) -> float:
    """The entropy that a row may have at a progress in [0, 1]: linear from log k to `end` nats at `until`, then `end`.

    Raises: ValueError for `until` outside (0, 1].
    """
    if not 0 < until <= 1:
        raise ValueError(f"until must lie in (0, 1], got {until}")
    start = max(math.log(k), end)
    return start + (end - start) * min(max(progress / until, 0.0), 1.0)


def residual_penalty(fine: Float[Tensor, "B D"], margin: float = 0.5, scale: float = 1.0) -> Float[Tensor, ""]:
    """Explain with the anchor first: a hinge on the length of the residual, relative to the embeddings' own length.

        loss = mean_i max(0, |fine_i| / scale - margin)

    Args:
        scale: the length of an embedding, 1 for unit vectors: a margin without it means nothing.
    Shapes: [B, D] -> scalar.
    Raises: ValueError for a negative margin or scale <= 0.
    Book: chapter 13.
    """
    if not (margin >= 0 and scale > 0):
        raise ValueError(f"margin must not be negative and scale positive, got {margin} and {scale}")
    # The tiny constant keeps the gradient finite at a residual of exactly zero, where training starts.
    length = (fine.square().sum(1) + 1e-12).sqrt()
    return (length / scale - margin).relu().mean()


def disentanglement(weights: Float[Tensor, "B K"] | Sequence[Float[Tensor, "B _"]]) -> Float[Tensor, ""]:
    """Subspaces that vary independently: squared covariances over the batch, off the diagonal.

        loss = sum_{i != j} Cov(w_i, w_j)^2 / K

    With several axes (a router each: topic, style, ...) only covariances *between* axes count: two axes should not say
    the same. Within one axis weights that sum to 1 must covary, and the loss cannot reach zero.

    Shapes: weights [B, K], or one such tensor per axis -> scalar.
    Raises: ValueError on fewer than 2 rows, or axes with different numbers of rows.
    Book: chapter 13.
    """
    axes = [weights] if isinstance(weights, Tensor) else list(weights)
    if not axes or len({len(axis) for axis in axes}) != 1 or len(axes[0]) < 2:
        raise ValueError(
            f"weights must be [B, K] with B >= 2, the same B in each axis, got {[tuple(a.shape) for a in axes]}"
        )
    w = torch.cat(axes, dim=1)
    w = w - w.mean(0)
    covariance = w.T @ w / (len(w) - 1)
    if len(axes) == 1:
        other = ~torch.eye(w.shape[1], dtype=torch.bool, device=w.device)
    else:
        axis = torch.repeat_interleave(torch.arange(len(axes)), torch.tensor([a.shape[1] for a in axes])).to(w.device)
        other = axis[:, None] != axis
    return torch.where(other, covariance, 0.0).square().sum() / w.shape[1]
