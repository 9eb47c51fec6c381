"""The losses, as pure functions.

What pulls together or picks out stands here; what holds apart stands in `regularisers.py` and `sigreg.py`. All of them
can be imported from this module.

Book: chapters 01, 03, 04, 06, 07, 12.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepa_lab.regularisers import (
    barlow_twins,
    check_views,
    covariance_term,
    isotropy,
    variance_term,
    vicreg,
)
from jepa_lab.sigreg import epps_pulley, lejepa, sigreg

__all__ = [
    "alignment",
    "barlow_twins",
    "centroid_loss",
    "covariance_term",
    "epps_pulley",
    "info_nce",
    "isotropy",
    "lejepa",
    "negative_cosine",
    "normalize_targets",
    "nt_xent",
    "prediction_loss",
    "sigreg",
    "uniformity",
    "variance_term",
    "vicreg",
]

TargetNorm = Literal["layer", "batch", "none"]


def prediction_loss(
    prediction: Float[Tensor, "*tokens D"],
    target: Float[Tensor, "*tokens D"],
    where: Bool[Tensor, "*tokens"] | None = None,
    kind: Literal["smooth_l1", "mse", "cosine"] = "smooth_l1",
    target_norm: TargetNorm = "layer",
) -> Float[Tensor, ""]:
    """JEPA's loss: the distance between predicted and actual representations, averaged over the masked tokens.

    With y the normalised target and p the prediction: smooth_l1 and mse average over the D features as well (smooth-L1
    is d^2/2 for |d| < 1 and |d| - 1/2 beyond); cosine is 2 - 2 cos(p, y). The I-JEPA paper writes the squared
    distance, its code uses smooth-L1.

    Args:
        where: which tokens count; None = all. Others never reach the loss, nor the batch statistics.
        target_norm: "layer" standardises each target over its D features, without learnable scale; "batch" each
            feature over the counted tokens; "none" leaves the scale free, and a loss that only asks for a small
            distance is then reduced by shrinking the targets.
    Shapes: prediction and target [..., D], where Bool[...]; returns a scalar.
    Raises: ValueError on different shapes or (checked on the CPU) when no token counts. On other devices, where the
        check would stall every step, the loss is NaN instead, which the trainer reports.
    Paper: Assran et al. 2023, section 3, "Loss". Book: chapters 01, 03.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have the same shape, got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if where is None:
        where = torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
    if where.device.type == "cpu" and not where.any():
        raise ValueError("where: no masked token in the whole batch (is every row padding, or too short to mask?)")
    y = normalize_targets(target, target_norm, where)
    if kind == "cosine":
        distance = 2 - 2 * F.cosine_similarity(prediction, y, dim=-1)
    elif kind in ("smooth_l1", "mse"):
        pointwise = F.smooth_l1_loss if kind == "smooth_l1" else F.mse_loss
        distance = pointwise(prediction, y.to(prediction.dtype), reduction="none").mean(-1)
    else:
        raise ValueError(f"kind must be smooth_l1, mse or cosine, got {kind!r}")
    return torch.where(where, distance, 0.0).sum() / where.sum()


def normalize_targets(
    target: Float[Tensor, "*tokens D"], norm: TargetNorm, where: Bool[Tensor, "*tokens"] | None = None
) -> Float[Tensor, "*tokens D"]:
    """Fix the scale of latent targets, per token ("layer") or per feature over the counted tokens ("batch").

    Shapes: target [..., D], where Bool[...] -> [..., D].
    """
    if norm == "layer":
        return F.layer_norm(target, target.shape[-1:])
    if norm == "batch":
        weight = torch.ones_like(target[..., :1]) if where is None else where[..., None].to(target.dtype)
        axes = tuple(range(target.ndim - 1))
        mean = (target * weight).sum(axes) / weight.sum()
        variance = ((target - mean).square() * weight).sum(axes) / weight.sum()
        return (target - mean) / (variance + 1e-5).sqrt()
    if norm == "none":
        return target
    raise ValueError(f"target_norm must be layer, batch or none, got {norm!r}")


def nt_xent(
    z1: Float[Tensor, "B P"], z2: Float[Tensor, "B P"], temperature: float = 0.1
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """NT-Xent, the contrastive loss of SimCLR: pick your own other view out of the 2B - 1 other embeddings.

        loss = -1/(2B) sum_i log( exp(s_ip / t) / sum_{j != i} exp(s_ij / t) )

    over the 2B rows of [z1; z2], with s the cosine similarity, p the row of i's other view (i + B or i - B) and t the
    temperature. A collapsed batch, all embeddings equal, gives ln(2B - 1). The values of different temperatures or
    batch sizes are not comparable.

    Shapes: z1, z2 [B, P], not normalised; returns the scalar loss and detached 0-d metrics: `accuracy` (share of rows
        whose nearest other row is their positive), `positive_cosine` and `negative_cosine` (means, before dividing by
        the temperature).
    Raises: ValueError for temperature <= 0, for a batch of one (there are no negatives) or for different shapes.
    Paper: Chen et al. 2020 (SimCLR), equation 1. Book: chapter 04.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"z1 and z2 must both be [B, P], got {tuple(z1.shape)} and {tuple(z2.shape)}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    batch = len(z1)
    if batch < 2:
        raise ValueError(f"NT-Xent needs a batch of at least 2 rows to have negatives, got {batch}")
    z = _unit(torch.cat([z1, z2]))
    cosine = z @ z.T  # [2B, 2B]
    itself = torch.eye(2 * batch, dtype=torch.bool, device=z.device)
    logits = (cosine / temperature).masked_fill(itself, -torch.inf)  # a row is not its own candidate
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


def negative_cosine(prediction: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """The loss of SimSiam and, up to 2 + 2x, of BYOL: minus the mean cosine of a prediction and its target.

    From -1 (same direction) to 1. It stops no gradient: detach the target, or the embeddings collapse.

    Shapes: prediction, target [B, D], not normalised -> scalar.
    Raises: ValueError on different shapes.
    Papers: Chen & He 2021, equation 1; Grill et al. 2020, equation 2. Book: chapter 06.
    """
    check_views(prediction, target)
    return -F.cosine_similarity(prediction, target, dim=1).mean()


def alignment(z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean squared distance of the two views of a sample on the unit sphere: 0 to 4. The pull of a contrastive loss.

    Shapes: z1, z2 [B, D], not normalised -> scalar.
    Raises: ValueError on different shapes.
    Paper: Wang & Isola 2020, equation 5 with alpha = 2. Book: chapter 04.
    """
    check_views(z1, z2)
    return (F.normalize(z1, dim=1) - F.normalize(z2, dim=1)).square().sum(1).mean()


def uniformity(z: Float[Tensor, "B D"], t: float = 2.0) -> Float[Tensor, ""]:
    """log mean exp(-t |x - y|^2) over pairs of different rows on the unit sphere. The push of a contrastive loss.

    0 for a collapsed batch, towards -2t for directions spread evenly over a sphere of many dimensions.

    Shapes: z [B, D], not normalised, at least 2 rows -> scalar.
    Raises: ValueError on fewer than 2 rows or t <= 0.
    Paper: Wang & Isola 2020, equation 6. Book: chapter 04.
    """
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z must be [B, D] with at least 2 rows, got shape {tuple(z.shape)}")
    if not t > 0:
        raise ValueError(f"t must be positive, got {t}")
    z = F.normalize(z, dim=1)
    # |x - y|^2 = 2 - 2 cos: finite gradients for equal rows, where that of a distance is not.
    pairs = torch.ones(len(z), len(z), dtype=torch.bool, device=z.device).triu(1)
    return torch.logsumexp((2 * t) * ((z @ z.T)[pairs] - 1), 0) - math.log(len(z) * (len(z) - 1) / 2)


def info_nce(
    query: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    negatives: Float[Tensor, "B K D"] | None = None,
    temperature: float = 0.07,
    ignore: Bool[Tensor, "B B"] | None = None,
    ignore_negatives: Bool[Tensor, "B K"] | None = None,
    in_batch: bool = True,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """InfoNCE: tell the right source of a query from those of the other rows, and from `negatives` of its own.

        loss = -1/B sum_i log( exp(s(q_i, p_i) / t) / sum_c exp(s(q_i, c) / t) )

    with s the cosine similarity, t the temperature, and c over p_i, the other rows' positives (`in_batch`) and row i's
    own negatives. A collapsed batch gives the log of the number of candidates.

    Args:
        ignore: candidates that are no negatives although they look like it, [i, j] for the positive of row j as a
            negative of row i: a source that answers both. The diagonal, the positives themselves, is never ignored.
        ignore_negatives: likewise for a row's own negatives.
    Shapes: query, positive [B, D], negatives [B, K, D], none normalised. Returns the scalar loss and detached 0-d
        metrics: `accuracy` (the positive has the highest similarity), `positive_cosine`, `negative_cosine` (means).
    Raises: ValueError for temperature <= 0, for different shapes, and when some row has no negative at all (checked on
        the CPU).
    Papers: van den Oord et al. 2018, equation 4; hard negatives as in Karpukhin et al. 2020. Book: chapter 12.
    """
    check_views(query, positive)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if negatives is None and not in_batch:
        raise ValueError("in_batch=False needs negatives: without either there is nothing to tell apart")
    q, p = _unit(query), _unit(positive)
    rows = torch.arange(len(q), device=q.device)
    itself = torch.eye(len(q), dtype=torch.bool, device=q.device)
    out = torch.zeros_like(itself) if ignore is None else ignore & ~itself
    cosine = q @ p.T
    if not in_batch:
        out = ~itself
    if negatives is not None:
        if negatives.ndim != 3 or negatives.shape[::2] != query.shape:
            raise ValueError(
                f"negatives must be [B, K, D] with query {tuple(query.shape)}, got {tuple(negatives.shape)}"
            )
        cosine = torch.cat([cosine, torch.einsum("bd,bkd->bk", q, _unit(negatives))], dim=1)
        own = torch.zeros_like(cosine[:, len(q) :], dtype=torch.bool) if ignore_negatives is None else ignore_negatives
        out = torch.cat([out, own], dim=1)
    if q.device.type == "cpu" and bool((out.sum(1) == out.shape[1] - 1).any()):
        raise ValueError("ignore: some row has no negative left; use a larger batch or more negatives")
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


def _unit(z: Tensor) -> Tensor:
    """Unit rows; half precision has too few digits for a similarity that is divided by a temperature."""
    return F.normalize(z.float() if z.dtype in (torch.float16, torch.bfloat16) else z, dim=-1)
