"""The losses, as pure functions.

What pulls together stands here, what picks out in `contrast.py`, what holds apart in `regularisers.py` and `sigreg.py`.
All of them can be imported from this module.

Book: chapters 01, 03, 04, 06, 07, 12.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from jepa_lab.contrast import centroid_loss, info_nce, nt_xent
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
