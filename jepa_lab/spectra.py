"""How many directions do the embeddings use? Singular values, and the ranks that are read off them.

All of them are blind to scale, and the centred ones to an offset too: a network that has collapsed to a point can have
a perfect centred rank. Read them together with a standard deviation, or let `metrics.diagnose` do so.

Book: chapters 01, 04, 06.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

CORE_VARIANCE = 0.99  # share of the variance that `core_rank` looks at


@torch.no_grad()
def spectrum(z: Float[Tensor, "n D"], center: bool = True) -> Float[Tensor, " k"]:
    """Singular values of the rows, the largest first, after subtracting the mean row unless `center=False`.

    Up to float32 they are the roots of the eigenvalues of the smaller Gram matrix (Z^T Z or Z Z^T) in float64. A Gram
    matrix squares the values and so halves the digits: float64 still tells them apart down to 1.5e-8 of the largest,
    below the 6e-8 at which float32 rounds its numbers; a Gram matrix in float32 would lose all below 3e-4. Rows that
    come in float64 go through a singular value decomposition, several times slower and exact to 2e-16.

    Shapes: [n, D] -> [min(n, D)], at least float32.
    Raises: ValueError unless z is [n, D] with at least 2 rows.
    Book: chapter 06.
    """
    rows = as_rows(z)
    z = rows.double() if rows.device.type != "mps" else rows.cpu().double()  # Apple's GPUs have no float64
    z = z / z.abs().max().clamp_min(torch.finfo(z.dtype).tiny)  # squares of 1e-200 or 1e200 would leave the range
    scale = rows.abs().max()
    z = z - z.mean(0) if center else z
    if rows.dtype == torch.float64:
        sigma = torch.linalg.svdvals(z)
    else:
        gram = z.T @ z if z.shape[1] <= len(z) else z @ z.T
        sigma = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()
    return sigma.to(rows) * scale


@torch.no_grad()
def effective_rank(z: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """How many directions the *centred* rows use: exp of the entropy of the normalised singular values.

    Blind to scale and offset: a collapsed network whose rows differ by rounding noise can score the full D.

    Shapes: [n, D] -> scalar in 1..min(n, D); 0 when the rows do not differ at all.
    Paper: Roy & Vetterli 2007, definition 1. Book: chapter 01.
    """
    return spectral_entropy_rank(spectrum(z))


@torch.no_grad()
def rankme(z: Float[Tensor, "n D"], eps: float = 1e-7) -> Float[Tensor, ""]:
    """RankMe: the same on the rows as they are, *not* centred, so that a large common offset counts as collapse.

        exp(-sum_k p_k log p_k),  p_k = sigma_k / sum sigma + eps

    Meant for comparing runs of one method on one data set.

    Shapes: [n, D] -> scalar in 1..min(n, D) (the eps can push it just above).
    Paper: Garrido et al. 2023, equation 3. Book: chapter 06.
    """
    return spectral_entropy_rank(spectrum(z, center=False), eps)


def core_rank(sigma: Float[Tensor, " k"], variance: float = CORE_VARIANCE) -> Float[Tensor, ""]:
    """Effective rank of the leading directions that together hold 99 % of the variance; what is below is left out.

    The plain effective rank counts singular values, not variances, so that a faint noise in many directions looks like
    many directions: four directions of a 512-wide embedding plus noise at 1 % of their width score above 100.

    Shapes: singular values [k], the largest first -> scalar in 1..k, or 0 when all are 0.
    Book: chapter 06.
    """
    power = sigma.double().square()
    total = power.sum()
    if total == 0:
        return torch.zeros_like(total)
    held = power.cumsum(0) / total
    return spectral_entropy_rank(sigma.double()[: int((held < variance).sum()) + 1])


class PowerLaw(NamedTuple):
    """Eigenvalues lambda_k ~ k^-alpha, fitted for `low` <= k <= `high` (k counts from 1); `r2` says how well."""

    alpha: float
    r2: float
    low: int
    high: int


@torch.no_grad()
def alpha_req(z: Float[Tensor, "n D"], low: int | None = None, high: int | None = None) -> PowerLaw:
    """alpha-ReQ: how fast the eigenvalues of the covariance fall, as the slope of a line in log-log coordinates.

        log lambda_k = c - alpha log k   for k = low..high, ordinary least squares

    Near 1 in good vision networks; far above 1 a few directions hold everything, far below 1 the spectrum is flat. The
    number depends on the range of the fit: by default the first twentieth of the eigenvalues is skipped (it is often
    off the line) and the smaller half (in a sample it falls off too fast). Distrust an alpha whose R^2 is low.

    Shapes: [n, D] -> PowerLaw; alpha and r2 are NaN when fewer than 3 eigenvalues lie in the range.
    Raises: ValueError unless 1 <= low < high <= min(n - 1, D).
    Paper: Agrawal et al. 2022. Book: chapter 06.
    """
    sigma = spectrum(z)
    size = min(len(z) - 1, z.shape[1])
    above = int((sigma[:size] > sigma[0] * 1e-6).sum())  # below lies rounding
    low = 1 + above // 20 if low is None else low
    high = max(low, (above + 1) // 2) if high is None else high
    if not 1 <= low <= high <= max(size, 1):
        raise ValueError(f"low and high must satisfy 1 <= low <= high <= {size}, got {low} and {high}")
    x = torch.arange(low, high + 1, dtype=torch.float64).log()
    y = 2 * sigma[low - 1 : high].double().cpu().log()
    if len(x) < 3 or not y.isfinite().all():
        return PowerLaw(math.nan, math.nan, low, high)
    dx, dy = x - x.mean(), y - y.mean()
    slope = (dx @ dy) / (dx @ dx)
    left = (dy - slope * dx).square().sum()
    total = dy.square().sum()
    return PowerLaw(-slope.item(), 1.0 if total == 0 else (1 - left / total).item(), low, high)


@torch.no_grad()
def lidar(
    z: Float[Tensor, "n D"], sample: Int[Tensor, " n"], delta: float = 1e-4, eps: float = 1e-8
) -> Float[Tensor, ""]:
    """LiDAR: how many directions tell samples apart, measured against how much the views of one sample differ.

        S_b = sum_i (m_i - m)(m_i - m)^T / (s - 1),   S_w = sum_ij (x_ij - m_i)(x_ij - m_i)^T / (n - s) + delta I
        exp(-sum_k p_k log p_k),   p_k = (lambda_k + eps) / sum(lambda + eps)

    for s samples with means m_i and the eigenvalues lambda of S_w^-1/2 S_b S_w^-1/2. Rows are grouped by the ids in
    `sample`, not by their order. With unequal numbers of views every sample counts once in S_b and every row once in
    S_w. `delta` is absolute: embeddings much smaller than its root, 0.01, are judged by S_b alone.

    Shapes: rows [n, D], ids [n] -> scalar in 1..min(D, s - 1).
    Raises: ValueError when the ids do not fit, there are fewer than 2 samples, or a sample has a single view.
    Paper: Thilak et al. 2024. Book: chapter 06.
    """
    rows = as_rows(z).double()
    if sample.shape != rows.shape[:1]:
        raise ValueError(f"sample must hold one id a row, [{len(rows)}], got shape {tuple(sample.shape)}")
    ids, group, counts = torch.unique(sample.to(rows.device), return_inverse=True, return_counts=True)
    if len(ids) < 2 or counts.min() < 2:
        raise ValueError(
            f"sample must name at least 2 samples of at least 2 views each, got {len(ids)} samples, the smallest with "
            f"{int(counts.min())} views"
        )
    means = torch.zeros(len(ids), rows.shape[1], dtype=rows.dtype, device=rows.device)
    means = means.index_add(0, group, rows) / counts[:, None]
    inside = rows - means[group]
    identity = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    within = inside.T @ inside / (len(rows) - len(ids)) + delta * identity
    # With S_w = L L^T, the eigenvalues of L^-1 S_b L^-T are those of S_w^-1/2 S_b S_w^-1/2.
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(within), (means - means.mean(0)).T, upper=False)
    values = torch.linalg.svdvals(white).square() / (len(ids) - 1)
    values = values[: min(rows.shape[1], len(ids) - 1)]  # the s-th is zero: the mean was subtracted
    return spectral_entropy_rank(values + eps)


def as_rows(z: Tensor) -> Tensor:
    """At least float32, two or more rows."""
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z must be [n, D] with at least 2 rows, got shape {tuple(z.shape)}")
    return z if z.dtype == torch.float64 else z.float()


def spectral_entropy_rank(sigma: Tensor, eps: float = 0.0) -> Tensor:
    """exp of the entropy of p = sigma / sum(sigma) + eps; 0 if nothing is there."""
    total = sigma.sum()
    p = sigma / total.clamp_min(torch.finfo(sigma.dtype).tiny) + eps
    return torch.where(total == 0, 0.0, torch.exp(-torch.special.xlogy(p, p).sum()))
