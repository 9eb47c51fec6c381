"""From a table of embeddings to a verdict: the thresholds, each with its reason, and the rules that use them.

Everything here is measured on rows that were divided by their root mean square, so that no verdict depends on the
scale, and with far-off rows pulled in, so that one broken row cannot decide for all others. Distances and singular
values do not change under a rotation or a change of the row order, and so no verdict does.

Book: chapter 06.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lab.spectra import core_rank, spectrum

VERDICTS = (
    "healthy",
    "constant offset",
    "dimensional collapse",
    "complete collapse",
    "too small",
    "too large",
    "undecided",
    "invalid",
)

# Below this spread (root mean square distance from the mean row over root mean square length) the rows are one point.
# At 0.01 any two rows have a cosine of about 0.9999, and bfloat16, which keeps 3 digits, rounds away what tells them
# apart. Digits: 0.0008 to 0.006 for JEPA with gradient into its targets, 0.06 to 0.1 for an untrained transformer.
COMPLETE_SPREAD = 0.01
# Above this |mean row| / root mean square length the common part holds more than nine tenths of the squared length, and
# a cosine sees little else. Rectified Gaussian features, which are healthy, have 0.8; trained encoders on digits 0.1
# to 0.9; an untrained transformer 0.996.
OFFSET_RATIO = 0.95
# Below this share of the usable directions, (core rank - 1) / (attainable - 1), few directions hold everything.
# On digits encoders collapsed to a subspace have 0.01, an untrained transformer 0.09 to 0.12 (eight seeds), trained
# ones 0.14 to 0.2, JEPA without EMA 0.06; a power-law spectrum with exponent 1.5 in 512 dimensions 0.3, an isotropic
# cloud close to 1.
RANK_SHARE = 0.08
# An order of magnitude away from the reference: smaller changes of scale are common in healthy training.
SCALE_FACTOR = 10.0
# Fewer rows, or fewer distinct ones, say too little about a rank: 8 rows span 7 directions at most.
MIN_ROWS = 8
# More non-finite rows than this, and the rest is no fair sample.
MAX_INVALID = 0.5
# Rows further out than this many times the distance of the 75 % quantile are pulled in to it. A Gaussian of two or
# more dimensions has less than one row in 200 out there.
CLIP_QUANTILE, CLIP_FACTOR = 0.75, 2.0
# Rows closer than this share of the spread are the same row. Float32 rounds below it, even under the largest offset
# that is no complete collapse.
SAME_ROW = 1e-4


class Evidence(NamedTuple):
    """What a verdict rests on, measured on robust rows; `std` is in the units of the embeddings."""

    given: int  # rows that came in; of them
    invalid: int  # were not finite, and
    rows: int  # were judged
    dim: int
    distinct: int
    clipped: int
    spread: float
    mean_norm_ratio: float
    std: float
    core_rank: float
    attainable: int
    rank_share: float  # NaN where there is no second direction


def winsorise(z: Float[Tensor, "n D"]) -> tuple[Float[Tensor, "n D"], Float[Tensor, " D"], int]:
    """Pull rows that lie far out towards the centre, and return them, the centre and how many were pulled.

    Where the centre lies depends on the pulled rows and the other way round, hence the loop; up to a quarter of the
    rows can be anywhere. Nothing in it depends on the axes, so that a rotation of the rows rotates the result.

    Shapes: [n, D] -> [n, D], [D], number.
    """
    centre, pulled, far = z.mean(0), z, torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for _ in range(100):
        out = z - centre
        distance = out.norm(dim=1)
        limit = CLIP_FACTOR * distance.quantile(CLIP_QUANTILE)
        far = distance > limit
        factor = torch.where(far, limit / distance.clamp_min(torch.finfo(z.dtype).tiny), 1.0)
        pulled = centre + out * factor[:, None]
        moved = (pulled.mean(0) - centre).norm()
        centre = pulled.mean(0)
        if moved <= 1e-9 * limit:
            break
    return pulled, centre, int(far.sum())


def distinct_rows(z: Float[Tensor, "n D"], spread: float) -> int:
    """How many different rows there are: each row counts as one over the number of rows that equal it.

    Shapes: centred rows [n, D] -> number.
    """
    square = z.square().sum(1)
    total = 0.0
    for start in range(0, len(z), 1024):
        block = z[start : start + 1024]
        squared = square[start : start + 1024, None] + square - 2 * block @ z.T
        same = squared <= (SAME_ROW * spread) ** 2
        total += (1 / same.sum(1)).sum().item()
    return round(total)


def gather_evidence(z: Float[Tensor, "n D"], scale: float, invalid: int, given: int) -> Evidence:
    """Measure what `judge` needs on finite float64 rows that were divided by `scale`, their root mean square.

    Shapes: [n, D] with n >= 2 -> Evidence.
    """
    size = (given, invalid, *z.shape)
    robust, centre, clipped = winsorise(z)
    length = robust.square().sum(1).mean().sqrt().item()
    centred = robust - centre
    spread = centred.square().sum(1).mean().sqrt().item()
    if length == 0 or spread <= 1e-14 * length:  # float64 itself rounds here: rows that are exactly the same
        ratio = 1.0 if length else 0.0
        return Evidence(*size, 1, clipped, 0.0, ratio, 0.0, 0.0, 0, math.nan)
    distinct = distinct_rows(centred, spread)
    rank = core_rank(spectrum((centred / spread).float())).item()
    attainable = max(1, min(z.shape[1], distinct - 1))
    share = (rank - 1) / (attainable - 1) if attainable > 1 else math.nan
    std = spread * scale / math.sqrt(z.shape[1])
    ratio = min(1.0, centre.norm().item() / length)
    return Evidence(*size, distinct, clipped, spread / length, ratio, std, rank, attainable, share)


def no_evidence(z: Float[Tensor, "n D"], invalid: int) -> Evidence:
    """Too few rows to measure anything."""
    return Evidence(invalid + len(z), invalid, *z.shape, len(z), 0, *[math.nan] * 4, 0, math.nan)


def judge(e: Evidence, reference_std: float | None) -> tuple[str, list[str]]:
    """The gravest verdict that applies, and the sentences that say why.

    Order: invalid, undecided, complete collapse, dimensional collapse, too small or too large (only against a
    reference), constant offset, healthy.
    """
    if e.invalid > MAX_INVALID * e.given:
        return "invalid", [
            f"{e.invalid} of {e.given} rows hold NaN or infinity, more than {MAX_INVALID:.0%}: the rest is "
            "no fair sample."
        ]
    if e.rows < MIN_ROWS:
        return "undecided", [f"{e.rows} row(s) are too few to judge: at least {MIN_ROWS} are needed."]
    spread = f"the spread around the mean row is {e.spread:.2g} of the rows' length"
    if e.spread < COMPLETE_SPREAD:
        return "complete collapse", [
            f"{spread[0].upper()}{spread[1:]}, below {COMPLETE_SPREAD:g}: nearly all rows are one point. In how many "
            "directions the remainder points does not matter."
        ]
    if e.distinct < MIN_ROWS:
        return "undecided", [
            f"Of {e.rows} rows only {e.distinct} are distinct, too few to judge (at least {MIN_ROWS}). If the inputs "
            "were all different, the encoder maps many of them to one point: that is a collapse."
        ]
    reasons = [f"The rows differ: {spread} (complete collapse: below {COMPLETE_SPREAD:g})."]
    used = (
        f"99 % of the variance lies in directions with an effective rank of {e.core_rank:.1f}, of {e.attainable} that "
        f"{e.distinct} distinct rows in {e.dim} dimensions could use: a share of {e.rank_share:.1%}"
    )
    if e.rank_share < RANK_SHARE:
        return "dimensional collapse", [
            *reasons,
            f"{used}, below {RANK_SHARE:.0%}. A few tight clusters look the same, such as the classes of a network "
            "trained on labels: k clusters have a rank of k - 1.",
        ]
    if e.dim > 1:
        reasons.append(f"{used} (dimensional collapse: below {RANK_SHARE:.0%}).")
    if reference_std is not None:
        factor = e.std / reference_std
        scale = f"The std of a feature is {e.std:.3g}, {factor:.3g} times the reference {reference_std:.3g}"
        if not 1 / SCALE_FACTOR <= factor <= SCALE_FACTOR:
            way = "small" if factor < 1 else "large"
            return f"too {way}", [*reasons, f"{scale}, more than a factor of {SCALE_FACTOR:g} away."]
        reasons.append(f"{scale}, within a factor of {SCALE_FACTOR:g}.")
    common = f"The mean row is {e.mean_norm_ratio:.3f} times as long as the rows (root mean square)"
    if e.mean_norm_ratio > OFFSET_RATIO:
        return "constant offset", [
            *reasons,
            f"{common}, above {OFFSET_RATIO:g}: a cosine sees mostly what all rows share. Subtract the mean row.",
        ]
    return "healthy", [*reasons, f"{common} (constant offset: above {OFFSET_RATIO:g})."]


def remarks(e: Evidence, verdict: str, resolution: float, reference_std: float | None) -> list[str]:
    """What one should know beside the verdict; `resolution` is the relative rounding of the embeddings' float type."""
    notes = []
    if e.clipped:
        notes.append(f"Rows that lie far out, and were pulled in for the verdict: {e.clipped}.")
    if 0 < e.spread < 8 * resolution:
        notes.append(f"The float type of the embeddings rounds at {resolution:.1g}: what differs may be rounding.")
    if e.distinct < 0.9 * e.rows and verdict != "undecided" and e.spread > 0:
        notes.append(
            f"Only {e.distinct} of {e.rows} rows are distinct, and the rank is judged against {e.attainable}. If the "
            "inputs were all different, many of them share one point."
        )
    if e.distinct <= e.dim and e.spread > 0:
        notes.append(
            f"{e.distinct} distinct rows in {e.dim} dimensions: the rank cannot exceed {e.distinct - 1}. More rows "
            "than dimensions would say more."
        )
    if verdict == "dimensional collapse" and e.mean_norm_ratio > OFFSET_RATIO:
        notes.append(
            f"There is a constant offset too: the mean row is {e.mean_norm_ratio:.3f} times as long as the rows."
        )
    if reference_std is None:
        notes.append("The scale is reported and not judged: give reference_std to have it judged.")
    return notes
