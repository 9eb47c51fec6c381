"""What holds the features apart: second-moment losses over a batch of embeddings.

A loss that only pulls has a trivial minimum, all embeddings equal. Each function here is large at that minimum. They
look at means, variances and covariances of the batch only; `jepa_lab.sigreg` looks at the whole distribution. Import
them from `jepa_lab.losses`.

Book: chapters 02, 06, 07.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lab.fused import Implementation, use_fused, vicreg_terms

CovNorm = Literal["paper", "mean"]
# Values B D of a view from which implementation="auto" takes the fused VICReg: on the CPU above the sizes of the stored
# results, on a GPU from the smallest that was measured.
_FUSED_FROM = {"cpu": 2**17, "gpu": 2**15}


def variance_term(z: Float[Tensor, "B D"], target_std: float = 1.0, eps: float = 1e-4) -> Float[Tensor, ""]:
    """VICReg's variance term: a hinge that asks every feature to vary by at least `target_std` over the batch.

        v(z) = 1/D sum_j max(0, target_std - sqrt(var(z_j) + eps)),  var with B - 1 in the denominator

    A collapsed batch gives target_std - sqrt(eps) = 0.99. The eps keeps the gradient finite there, but cannot make it
    large: at an exactly collapsed batch it is zero. Blind to offsets and to features that repeat each other.

    Shapes: z [B, D] -> scalar.
    Raises: ValueError on fewer than 2 rows.
    Paper: Bardes et al. 2022 (VICReg), equations 1 and 2. Book: chapter 07.
    """
    z = _rows(z)
    return (target_std - (z.var(0) + eps).sqrt()).relu().mean()


def covariance_term(z: Float[Tensor, "B D"], norm: CovNorm = "paper") -> Float[Tensor, ""]:
    """VICReg's covariance term: no two features may vary together.

        c(z) = 1/D sum_{i != j} C_ij^2  ("paper"),   C = (z - mean)'(z - mean) / (B - 1)

    "mean" divides by D (D - 1), the number of summands, instead of D: the same term, D - 1 times smaller. Published
    codes use one or the other; `conventions.convert_covariance_weight` converts their weights.

    With fewer rows than features the sum comes from the B x B matrix of inner products, since |Z'Z| = |ZZ'| in the
    Frobenius norm: the same value, and at B = 256, D = 2048 an eighth of the multiplications.

    Shapes: z [B, D] -> scalar.
    Raises: ValueError on fewer than 2 rows or an unknown `norm`.
    Paper: Bardes et al. 2022 (VICReg), equations 3 and 4. Book: chapter 07.
    """
    if norm not in ("paper", "mean"):
        raise ValueError(f"norm must be 'paper' or 'mean', got {norm!r}")
    z = _rows(z)
    rows, dim = z.shape
    z = z - z.mean(0)
    gram = z @ z.T if rows < dim else z.T @ z
    variances = z.square().sum(0)  # the diagonal of z'z, without making z'z
    # The two sums nearly cancel for decorrelated features; rounding must not make a sum of squares negative.
    off_diagonal = (gram.square().sum() - variances.square().sum()).clamp(min=0) / (rows - 1) ** 2
    return off_diagonal / (dim if norm == "paper" else max(dim * (dim - 1), 1))


def vicreg(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    cov_norm: CovNorm = "paper",
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """VICReg: pull the two views together, hold every feature apart, decorrelate the features.

        loss = invariance mean (z1 - z2)^2 + variance (v(z1) + v(z2)) / 2 + covariance (c(z1) + c(z2))

    The mean of the first term runs over rows and features; the variance terms of the views are averaged, the covariance
    terms added, as in the authors' code.

    Args:
        implementation: "dense" is the code below; "fused" gives the same value and gradient in fewer steps, but no
            second derivative; "auto" takes "fused" for large batches.
    Shapes: z1, z2 [B, D], not normalised; returns the scalar loss and the three detached unweighted terms,
        `invariance`, `variance`, `covariance`.
    Raises: ValueError on different shapes, fewer than 2 rows, an unknown `cov_norm` or `implementation`.
    Paper: Bardes et al. 2022 (VICReg), equation 6. Book: chapter 07.
    """
    check_views(z1, z2)
    if cov_norm not in ("paper", "mean"):
        raise ValueError(f"cov_norm must be 'paper' or 'mean', got {cov_norm!r}")
    z1, z2 = _rows(z1), _rows(z2)
    if use_fused(implementation, z1, z1.numel(), _FUSED_FROM):
        dtype = torch.promote_types(z1.dtype, z2.dtype)
        z1, z2 = z1.to(dtype), z2.to(dtype)
        dim = z1.shape[1]
        divisor = dim if cov_norm == "paper" else max(dim * (dim - 1), 1)
        loss, values = vicreg_terms(z1, z2, (invariance, variance, covariance), divisor)
        return loss, dict(zip(("invariance", "variance", "covariance"), values, strict=True))
    terms = {
        "invariance": (z1 - z2).square().mean(),
        "variance": (variance_term(z1) + variance_term(z2)) / 2,
        "covariance": covariance_term(z1, cov_norm) + covariance_term(z2, cov_norm),
    }
    loss = invariance * terms["invariance"] + variance * terms["variance"] + covariance * terms["covariance"]
    return loss, {name: term.detach() for name, term in terms.items()}


def barlow_twins(
    z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"], redundancy: float = 5e-3, eps: float = 1e-5
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Barlow Twins: the cross-correlation matrix of the two views should be the identity.

        loss = sum_i (1 - C_ii)^2 + redundancy sum_{i != j} C_ij^2

    with C the correlation, over the batch, of feature i of one view with feature j of the other. Free of scale and
    offset. A collapsed batch gives D, each feature D times 1.

    Shapes: z1, z2 [B, D]; returns the scalar loss and the detached unweighted sums `on_diagonal`, `off_diagonal`.
    Raises: ValueError on different shapes or fewer than 2 rows.
    Paper: Zbontar et al. 2021, equations 1 and 2. Book: chapter 06.
    """
    check_views(z1, z2)
    a, b = (_standardise(_rows(z), eps) for z in (z1, z2))
    correlation = a.T @ b / len(a)
    on = (1 - correlation.diagonal()).square().sum()
    off = correlation.square().sum() - correlation.diagonal().square().sum()
    return on + redundancy * off, {"on_diagonal": on.detach(), "off_diagonal": off.detach()}


def isotropy(z: Float[Tensor, "B D"], target_std: float = 1.0, eps: float = 1e-4) -> Float[Tensor, ""]:
    """Pull the covariance to a multiple of the identity, and that multiple to `target_std`^2.

        1/D |C - s I|_F^2 + (sqrt(s + eps) - target_std)^2,   s = trace(C) / D

    The first term alone asks for a round cloud and is zero at a point, where s is zero too: it would welcome a
    collapse. The second term makes the point expensive. Blind to offsets.

    Shapes: z [B, D] -> scalar.
    Raises: ValueError on fewer than 2 rows.
    Book: chapters 06, 07.
    """
    z = _rows(z)
    dim = z.shape[1]
    variances = z.var(0)
    scale = variances.mean()
    # |C - sI|^2 = off-diagonal squares + (C_ii - s)^2 on the diagonal; the first sum comes in its cheaper form.
    round_ = covariance_term(z) + (variances - scale).square().sum() / dim
    return round_ + ((scale + eps).sqrt() - target_std).square()


def check_views(z1: Tensor, z2: Tensor) -> None:
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"z1 and z2 must both be [B, D], got {tuple(z1.shape)} and {tuple(z2.shape)}")


def _rows(z: Tensor) -> Tensor:
    """Two or more rows, in at least float32: squares of squares overflow half precision."""
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z must be [B, D] with at least 2 rows (a variance needs them), got shape {tuple(z.shape)}")
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def _standardise(z: Tensor, eps: float) -> Tensor:
    return (z - z.mean(0)) / (z.var(0, unbiased=False) + eps).sqrt()
