"""Is it collapsing? Numbers that see it, and `diagnose`, which weighs them.

The metrics of retrieval, from `ranking.py`, can be imported from here too.

A collapse to a point shows in the standard deviation and the mean cosine and not in a centred rank; a collapse to a
subspace shows in the rank and not in the standard deviation. Look at both.

Book: chapters 01, 04, 06.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_lab.ranking import mean_reciprocal_rank, ndcg_at, ranks, recall_at, retrieval_metrics, retrieval_ranks
from jepa_lab.report import CollapseReport
from jepa_lab.spectra import PowerLaw, alpha_req, as_rows, core_rank, effective_rank, lidar, rankme, spectrum
from jepa_lab.verdicts import gather_evidence, judge, no_evidence, remarks

__all__ = [
    "CollapseReport",
    "PowerLaw",
    "alignment",
    "alpha_req",
    "core_rank",
    "diagnose",
    "effective_rank",
    "feature_std",
    "lidar",
    "mean_cosine",
    "mean_norm_ratio",
    "mean_reciprocal_rank",
    "ndcg_at",
    "normalized_std",
    "rankme",
    "ranks",
    "recall_at",
    "retrieval_metrics",
    "retrieval_ranks",
    "spectrum",
    "uniformity",
]
MAX_ROWS = 4096  # more rows make `diagnose` slow and its numbers no better
SHOWN = 64  # rows in the similarity map of a report


@torch.no_grad()
def feature_std(z: Float[Tensor, "n D"]) -> Float[Tensor, " D"]:
    """Standard deviation of every feature over the rows. Zero everywhere is complete collapse; the scale is free.

    Shapes: [n, D] -> [D].
    Book: chapter 06.
    """
    return as_rows(z).std(0)


@torch.no_grad()
def normalized_std(z: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """sqrt(D) x the mean standard deviation of the features of L2-normalised rows: near 1 when directions are spread
    evenly over the sphere, 0 when all rows point the same way. Free of the embedding's scale.

    Shapes: [n, D] -> scalar.
    Paper: Chen & He 2021 (SimSiam), section 4.1, there against 1/sqrt(D). Book: chapter 01.
    """
    z = _unit(z)
    return z.std(0).mean() * z.shape[1] ** 0.5


@torch.no_grad()
def mean_cosine(z: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Mean cosine similarity of two different rows: 1 when all rows point the same way.

    Shapes: [n, D] -> scalar.
    Book: chapter 06.
    """
    z = _unit(z)
    n = len(z)
    return (z.sum(0).square().sum() - z.square().sum()) / (n * (n - 1))


@torch.no_grad()
def mean_norm_ratio(z: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """|mean row| / root mean square length of the rows: 1 when a constant offset is all there is, 0 without any.

    Its square is the share of the squared length that all rows have in common.

    Shapes: [n, D] -> scalar in 0..1; 0 for rows that are all zero.
    Book: chapter 06.
    """
    z = as_rows(z)
    z = z / z.abs().max().clamp_min(torch.finfo(z.dtype).tiny)
    length = z.square().sum(1).mean().sqrt()
    return (z.mean(0).norm() / length.clamp_min(torch.finfo(z.dtype).tiny)).clamp_max(1)


@torch.no_grad()
def alignment(z1: Float[Tensor, "n D"], z2: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Mean squared distance of the two views of a sample on the unit sphere: 0 (same point) to 4 (opposite).

    Shapes: [n, D], [n, D] -> scalar. With gradient: `losses.alignment`.
    Raises: ValueError on different shapes.
    Paper: Wang & Isola 2020, equation 5 with alpha = 2. Book: chapter 04.
    """
    if z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must have the same shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")
    return (_unit(z1) - _unit(z2)).square().sum(1).mean()


@torch.no_grad()
def uniformity(z: Float[Tensor, "n D"], t: float = 2.0) -> Float[Tensor, ""]:
    """log of the mean of exp(-t |x - y|^2) over pairs of different rows on the unit sphere.

    0 when all rows coincide, towards -2t when they are spread evenly over a sphere of many dimensions.

    Shapes: [n, D] -> scalar. With gradient: `losses.uniformity`.
    Paper: Wang & Isola 2020, equation 6. Book: chapter 04.
    """
    z = _unit(z)
    return F.pdist(z).square().mul(-t).exp().mean().log()


@torch.no_grad()
def diagnose(
    embeddings: Tensor | np.ndarray,
    views: Tensor | np.ndarray | None = None,
    sample: Tensor | np.ndarray | None = None,
    reference_std: float | None = None,
) -> CollapseReport:
    """Name the collapse, if there is one: a verdict on anybody's embeddings, with its reasons and all the numbers.

        print(diagnose(z))

    Takes a numpy array or a tensor of any float type, on any device, with or without gradient. Rows are examples. Rows
    with NaN or infinity are counted and dropped; of more than 4096 rows a fixed random choice is judged. Token features
    [B, N, D] are refused, because it matters what the rows are: `z.mean(1)` asks whether examples differ, and
    `z.flatten(0, 1)` also counts the difference between positions, which can hide a collapse of the examples.

    `views` holds other embeddings of the same examples, row by row; it adds alignment, and LiDAR over the pairs.
    `sample` gives each row of `embeddings` the number of its example, for LiDAR over groups of any size.
    `reference_std` is what the standard deviation of a feature should be (1 for VICReg, the value at the start of
    training, ...); without it the scale is reported and not judged. The verdict does not change when the rows are
    rotated or reordered nor, without `reference_std`, rescaled. `jepa_lab.verdicts` has the rules and the thresholds.

    Shapes: embeddings, views [n, D]; sample [n].
    Raises: TypeError for what is no array of floats; ValueError for other shapes, ids that are no whole numbers, or a
        reference_std that is not positive.
    Book: chapter 06.
    """
    z = _float64_rows("embeddings", embeddings)
    info = torch.finfo if isinstance(embeddings, Tensor) else np.finfo
    resolution = float(info(embeddings.dtype).eps)
    other = None if views is None else _float64_rows("views", views)
    ids = None if sample is None else torch.as_tensor(sample).detach().cpu()
    if other is not None and other.shape != z.shape:
        raise ValueError(f"views must have the shape of embeddings, {tuple(z.shape)}, got {tuple(other.shape)}")
    if ids is not None and (ids.shape != z.shape[:1] or ids.is_floating_point()):
        raise ValueError(f"sample must hold {len(z)} whole numbers, one a row, got {ids.dtype} {tuple(ids.shape)}")
    if reference_std is not None and not 0 < reference_std < float("inf"):
        raise ValueError(f"reference_std must be a positive number, got {reference_std}")

    notes = []
    finite = z.isfinite().all(1)
    if other is not None:
        finite &= other.isfinite().all(1)
    invalid = int((~finite).sum())
    if invalid:
        notes.append(f"{invalid} of {len(z)} rows hold NaN or infinity and were dropped.")
    z, other, ids = z[finite], None if other is None else other[finite], None if ids is None else ids[finite]
    numbers = _of_views(z, other, ids, notes) if len(z) > 1 else {}
    if len(z) > MAX_ROWS:
        notes.append(f"Judged on {MAX_ROWS} of {len(z)} rows, drawn at random.")
        z = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:MAX_ROWS]]
    if len(z) < 2:  # nothing to measure
        evidence = no_evidence(z, invalid)
        return CollapseReport(*judge(evidence, reference_std), notes, evidence)

    peak = z.abs().max().item() or 1.0  # first, since the square of 1e200 is no number any more
    scale = peak * (z / peak).square().mean().sqrt().item() or 1.0
    z = z / scale
    evidence = gather_evidence(z, scale, invalid, len(finite))
    verdict, reasons = judge(evidence, reference_std)
    notes += remarks(evidence, verdict, resolution, reference_std)

    centred = (z - z.mean(0)).float() if evidence.std or evidence.clipped else torch.zeros_like(z).float()
    law, stds = alpha_req(centred), feature_std(z)
    unit = _unit(z)[:SHOWN]
    numbers |= {
        "std": stds.square().mean().sqrt().item() * scale,
        "normalized_std": normalized_std(z).item(),
        "mean_cosine": mean_cosine(z).item(),
        "mean_norm_ratio": mean_norm_ratio(z).item(),
        "effective_rank": effective_rank(centred).item(),
        "rankme": rankme(z.float()).item(),
        "alpha": law.alpha,
        "alpha_r2": law.r2,
        "uniformity": uniformity(z[:1024]).item(),
    }
    arrays = {
        "spectrum": (spectrum(centred).double() * scale).numpy(),
        "feature_stds": (stds * scale).numpy(),
        "similarity": (unit @ unit.T).numpy(),
    }
    return CollapseReport(verdict, reasons, notes, evidence, **numbers, **arrays)


def _unit(z: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay. `F.normalize` alone takes rows shorter than 1e-12 for zeros."""
    z = as_rows(z)
    return F.normalize(z / z.abs().amax(1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny), dim=1)


def _of_views(z: Tensor, other: Tensor | None, ids: Tensor | None, notes: list[str]) -> dict[str, float]:
    """Alignment and LiDAR, where the rows say which of them belong together."""
    numbers = {}
    if other is not None:
        numbers["alignment"] = alignment(z, other).item()
        ids = torch.arange(len(z)) if ids is None else ids
        z, ids = torch.cat([z, other]), torch.cat([ids, ids])
    if ids is not None:
        _, group, counts = torch.unique(ids, return_inverse=True, return_counts=True)
        paired = counts[group] > 1
        if not paired.all():
            notes.append(f"LiDAR leaves out {int((~paired).sum())} rows that are the only view of their sample.")
        if int((counts > 1).sum()) > 1:
            numbers["lidar"] = lidar(z[paired], ids[paired]).item()
    return numbers


def _float64_rows(name: str, values: Tensor | np.ndarray) -> Tensor:
    """On the CPU in float64: a report is rare, and the CPU has float64 everywhere."""
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or a numpy array, got {type(values).__name__}")
    z = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if not z.is_floating_point():
        raise TypeError(f"{name} must hold floats, got {z.dtype}")
    if z.ndim != 2 or 0 in z.shape:
        hint = "; for tokens [B, N, D] pass z.mean(1) or z.flatten(0, 1)" if z.ndim == 3 else ""
        raise ValueError(f"{name} must be [n, D] with at least one row and feature, got {tuple(z.shape)}{hint}")
    return z.cpu().double()
