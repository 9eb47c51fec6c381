"""The same loss under other names: conversions between the weights that published codes use.

A weight copied from one code into another trains a different loss when the two divide by different things. What each
code divides by is in the docstrings; every conversion is tested by computing both losses.

Book: conventions.md, chapter 07.
"""

import math
from typing import Literal

Convention = Literal["lejepa", "eb_jepa", "stable_pretraining"]
CONVENTIONS = ("lejepa", "eb_jepa", "stable_pretraining")


def convert_lambda(value: float, source: Convention, target: Convention, batch: int, views: int = 2) -> float:
    """The weight of SIGReg that trains the same loss, up to a constant factor, in another code.

        lejepa              (1 - lambda) centroid + lambda T          lambda in [0, 1)
        eb_jepa             pair + lambda T / B                       two views only
        stable_pretraining  centroid + lambda T(all V B rows at once)

    with T the statistic of `losses.sigreg`, per view and with its factor B; `centroid` the mean of (z_v - mean_v z_v)^2
    and `pair` the mean of (z_1 - z_2)^2, which is 4 times as much. T of the V B rows at once is V times the T of each
    view when the views have the same distribution, which invariance asks of them; otherwise this step is approximate.
    eb_jepa integrates over 10 knots instead of 17 on the half axis, which is the same integral.

    Args:
        batch: rows of one view, B, all processes together. views: V.
    Raises: ValueError for an unknown convention, a weight out of range, or eb_jepa with other than 2 views.
    Papers: Balestriero and LeCun 2025 (LeJEPA). Book: conventions.md.
    """
    for name in (source, target):
        if name not in CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {name!r}")
    if "eb_jepa" in (source, target) and views != 2:
        raise ValueError(f"views: eb_jepa compares exactly 2 views, got {views}")
    if batch < 2 or views < 2:
        raise ValueError(f"batch and views must be at least 2, got {batch} and {views}")
    if not (math.isfinite(value) and value >= 0 and (source != "lejepa" or value < 1)):
        raise ValueError(f"value must be a weight >= 0, below 1 in the convention lejepa, got {value}")
    # What T, per view, weighs against `centroid`.
    ratio = {
        "lejepa": lambda: value / (1 - value),
        "eb_jepa": lambda: value / (4 * batch),
        "stable_pretraining": lambda: value * views,
    }[source]()
    return {
        "lejepa": lambda: ratio / (1 + ratio),
        "eb_jepa": lambda: 4 * batch * ratio,
        "stable_pretraining": lambda: ratio / views,
    }[target]()


def convert_covariance_weight(
    weight: float, dim: int, source: Literal["paper", "mean"], target: Literal["paper", "mean"]
) -> float:
    """The weight of VICReg's covariance term under the other normalisation of `losses.covariance_term`.

    "paper" divides the sum of squared off-diagonal covariances by D, "mean" by D (D - 1); the weight for "mean" is
    D - 1 times as large. At D = 2048 the paper's 1 is a 2047, and a 100 of a code that takes the mean is a 0.05.

    Raises: ValueError for an unknown normalisation or fewer than 2 features.
    Paper: Bardes et al. 2022 (VICReg), equation 4. Book: conventions.md.
    """
    for name in (source, target):
        if name not in ("paper", "mean"):
            raise ValueError(f"normalisation must be 'paper' or 'mean', got {name!r}")
    if dim < 2:
        raise ValueError(f"dim must be at least 2 for a covariance to exist, got {dim}")
    if source == target:
        return weight
    return weight * (dim - 1) if target == "mean" else weight / (dim - 1)
