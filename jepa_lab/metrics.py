"""Is it collapsing? Numbers that see it.

A collapse to a point shows in the standard deviation and the mean cosine and not in a centred rank; a collapse to a
subspace shows in the rank and not in the standard deviation. Look at both.

Book: chapters 01, 04, 06.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def feature_std(z: Float[Tensor, "n D"]) -> Float[Tensor, " D"]:
    """Standard deviation of every feature over the rows. Zero everywhere is complete collapse; the scale is free.

    Shapes: [n, D] -> [D].
    """
    return _rows(z).std(0)


@torch.no_grad()
def normalized_std(z: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """sqrt(D) x the mean standard deviation of the features of L2-normalised rows: near 1 when directions are spread
    evenly over the sphere, 0 when all rows point the same way. Free of the embedding's scale.

    Shapes: [n, D] -> scalar.
    Paper: Chen & He 2021 (SimSiam), section 4.1, there against 1/sqrt(D).
    """
    z = F.normalize(_rows(z), dim=1)
    return z.std(0).mean() * z.shape[1] ** 0.5


@torch.no_grad()
def mean_cosine(z: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Mean cosine similarity of two different rows: 1 when all rows point the same way.

    Shapes: [n, D] -> scalar.
    """
    z = F.normalize(_rows(z), dim=1)
    n = len(z)
    return (z.sum(0).square().sum() - z.square().sum()) / (n * (n - 1))


@torch.no_grad()
def effective_rank(z: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """How many directions the *centred* rows use: exp of the entropy of the normalised singular values.

    Blind to scale and offset: a collapsed network whose rows differ by rounding noise can score the full D.

    Shapes: [n, D] -> scalar in 1..min(n, D); 0 when the rows do not differ at all.
    Paper: Roy & Vetterli 2007, definition 1.
    """
    z = _rows(z)
    return _spectral_entropy_rank(torch.linalg.svdvals(z - z.mean(0)), eps=0.0)


@torch.no_grad()
def rankme(z: Float[Tensor, "n D"], eps: float = 1e-7) -> Float[Tensor, ""]:
    """RankMe: the same on the rows as they are, *not* centred, so that a large common offset counts as collapse.

        exp(-sum_k p_k log p_k),  p_k = sigma_k / sum sigma + eps

    Meant for comparing runs of one method on one data set.

    Shapes: [n, D] -> scalar in 1..min(n, D) (the eps can push it just above).
    Paper: Garrido et al. 2023, equation 3.
    """
    return _spectral_entropy_rank(torch.linalg.svdvals(_rows(z)), eps)


@torch.no_grad()
def alignment(z1: Float[Tensor, "n D"], z2: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Mean squared distance of the two views of a sample on the unit sphere: 0 (same point) to 4 (opposite).

    Shapes: [n, D], [n, D] -> scalar.
    Raises: ValueError on different shapes.
    Paper: Wang & Isola 2020, equation 5 with alpha = 2.
    """
    if z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must have the same shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")
    return (F.normalize(_rows(z1), dim=1) - F.normalize(_rows(z2), dim=1)).square().sum(1).mean()


@torch.no_grad()
def uniformity(z: Float[Tensor, "n D"], t: float = 2.0) -> Float[Tensor, ""]:
    """log of the mean of exp(-t |x - y|^2) over pairs of different rows on the unit sphere.

    0 when all rows coincide, towards -2t when they are spread evenly over a sphere of many dimensions.

    Shapes: [n, D] -> scalar.
    Paper: Wang & Isola 2020, equation 6.
    """
    z = F.normalize(_rows(z), dim=1)
    return F.pdist(z).square().mul(-t).exp().mean().log()


def _rows(z: Tensor) -> Tensor:
    """At least float32, two or more rows."""
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z must be [n, D] with at least 2 rows, got shape {tuple(z.shape)}")
    return z.double() if z.dtype == torch.float64 else z.float()


def _spectral_entropy_rank(sigma: Tensor, eps: float) -> Tensor:
    total = sigma.sum()
    if total == 0:
        return torch.zeros_like(total)
    p = sigma / total + eps
    return torch.exp(-torch.special.xlogy(p, p).sum())
