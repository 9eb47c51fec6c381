"""Which k directions does a linear encoder keep? The closed forms behind three families of objectives.

An autoencoder with k linear features finds the principal components of x, one that predicts y from x finds
reduced-rank regression, and one that predicts *whitened features* of y finds canonical correlation analysis. The three
differ in what they diagonalise, and in nothing else:

    PCA                Cxx                            scores: variance
    reduced rank       Cxx^-1/2 Cxy                   scores: explained variance of y
    CCA                Cxx^-1/2 Cxy Cyy^-1/2          scores: canonical correlation

Each function returns whitened features, W Cxx W' = I, so that two encoders that keep the same subspace give the same
features up to a rotation, and a probe compares what was kept and not how it was scaled.

Book: chapter 02.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def covariances(
    x: Float[Tensor, "n D"], y: Float[Tensor, "n P"]
) -> tuple[Float[Tensor, "D D"], Float[Tensor, "D P"], Float[Tensor, "P P"]]:
    """Cxx, Cxy and Cyy of paired rows, with n - 1 in the denominator.

    Shapes: x [n, D], y [n, P] -> [D, D], [D, P], [P, P].
    Raises: ValueError if the rows differ in number or are fewer than two.
    Book: chapter 02.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"x and y must have the same number of rows, at least 2, got {len(x)} and {len(y)}")
    x, y = x - x.mean(0), y - y.mean(0)
    n = len(x) - 1
    return x.T @ x / n, x.T @ y / n, y.T @ y / n


def pca(cxx: Float[Tensor, "D D"], k: int) -> tuple[Float[Tensor, "k D"], Float[Tensor, " k"]]:
    """The k directions of most variance: what a linear autoencoder with k features keeps.

    Shapes: cxx [D, D] -> encoder W [k, D], whose features W (x - mean) are white, and the variances [k].
    Raises: ValueError if k is not in 1..D or `cxx` is not a covariance with k positive eigenvalues.
    Paper: Baldi & Hornik 1989. Book: chapter 02.
    """
    _check(cxx, k)
    values, vectors = torch.linalg.eigh(cxx)
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    if not values[-1] > 0:
        raise ValueError(f"cxx must have at least k = {k} positive eigenvalues, number {k} is {values[-1]:.3g}")
    return vectors.T / values.sqrt()[:, None], values


def reduced_rank(
    cxx: Float[Tensor, "D D"], cxy: Float[Tensor, "D P"], k: int, ridge: float = 0.0
) -> tuple[Float[Tensor, "k D"], Float[Tensor, " k"]]:
    """The k directions that explain most variance of y: what linear prediction of y through k features keeps.

        min over W, V of E |y - V W x|^2:   W = A' Cxx^-1/2,  A = first k left singular vectors of Cxx^-1/2 Cxy

    Where x and y are diagonal in the same directions, with equal variances v and correlations rho, the score of a
    direction is v rho^2. With y = x this is PCA.

    Args:
        ridge: Cxx is replaced by Cxx + ridge l I, with l its largest eigenvalue: needed where Cxx is singular.
    Shapes: cxx [D, D], cxy [D, P] -> encoder W [k, D], white features, and the explained variances [k].
    Raises: ValueError if k is not in 1..min(D, P), the sizes do not fit, ridge < 0, or Cxx is singular without ridge.
    Paper: Izenman 1975. Book: chapter 02.
    """
    _check(cxx, k, cxy)
    root = _inverse_root(cxx, ridge, "cxx")
    left, scores, _ = torch.linalg.svd(root @ cxy)
    return left[:, :k].T @ root, scores[:k].square()


def cca(
    cxx: Float[Tensor, "D D"], cxy: Float[Tensor, "D P"], cyy: Float[Tensor, "P P"], k: int, ridge: float = 0.0
) -> tuple[Float[Tensor, "k D"], Float[Tensor, " k"]]:
    """The k directions that are predicted best, whatever their variance: canonical correlation analysis.

        W = A' Cxx^-1/2,  A = first k left singular vectors of Cxx^-1/2 Cxy Cyy^-1/2

    What linear latent prediction keeps when its features are held white. Of `reduced_rank` it differs by one factor,
    the whitening of y, and with it the size of a direction no longer counts.

    Args:
        ridge: Cxx and Cyy are replaced by C + ridge l I, with l their largest eigenvalue. A direction whose variance
            is small against ridge l loses its correlation, so a ridge puts a little of the variance back into the rule.
    Shapes: cxx [D, D], cxy [D, P], cyy [P, P] -> encoder W [k, D] of x, white features, and the correlations [k].
    Raises: ValueError if k is not in 1..min(D, P), the sizes do not fit, ridge < 0, or a covariance is singular
        without ridge.
    Paper: Hotelling 1936. Book: chapter 02.
    """
    _check(cxx, k, cxy, cyy)
    root = _inverse_root(cxx, ridge, "cxx")
    left, scores, _ = torch.linalg.svd(root @ cxy @ _inverse_root(cyy, ridge, "cyy"))
    return left[:, :k].T @ root, scores[:k]


def energy(encoder: Float[Tensor, "k D"]) -> Float[Tensor, " D"]:
    """How much of each input direction the row space of an encoder contains: the diagonal of its projection matrix.

    Between 0 (dropped) and 1 (kept), with sum k: how an encoder spends its k features. It does not change when the
    features are mixed or scaled.

    Shapes: encoder [k, D] of rank k -> [D].
    Raises: ValueError if the encoder has more rows than columns or dependent rows: it then has fewer than k features.
    Book: chapter 02.
    """
    k, width = encoder.shape
    if k > width or torch.linalg.matrix_rank(encoder) < k:
        raise ValueError(f"encoder must be [k, D] with k <= D independent rows, got shape {(k, width)}")
    return torch.linalg.qr(encoder.T).Q.square().sum(1)


def _inverse_root(c: Tensor, ridge: float, name: str) -> Tensor:
    """C^-1/2, symmetric."""
    if not ridge >= 0:
        raise ValueError(f"ridge must be >= 0, got {ridge}")
    values, vectors = torch.linalg.eigh(c)
    values = values + ridge * values[-1]
    if not values[0] > torch.finfo(c.dtype).eps * len(c) * values[-1]:
        raise ValueError(f"{name} is singular (smallest eigenvalue {values[0]:.3g}): pass a ridge > 0, got {ridge}")
    return (vectors / values.sqrt()) @ vectors.T


def _check(cxx: Tensor, k: int, cxy: Tensor | None = None, cyy: Tensor | None = None) -> None:
    width = len(cxx)
    other = width if cxy is None else cxy.shape[1]
    if cxx.shape != (width, width) or (cxy is not None and len(cxy) != width):
        raise ValueError(
            f"cxx must be [D, D] and cxy [D, P], got {tuple(cxx.shape)} and {cxy if cxy is None else tuple(cxy.shape)}"
        )
    if cyy is not None and cyy.shape != (other, other):
        raise ValueError(f"cyy must be [P, P] with P = {other}, got {tuple(cyy.shape)}")
    if not 1 <= k <= min(width, other):
        raise ValueError(f"k must lie in 1..{min(width, other)}, got {k}")
