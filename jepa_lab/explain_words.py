"""What should a reader do about an explanation? Words, and the thresholds behind them.

Book: chapter 13.
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jepa_lab.explanation import Explanation


@dataclass(frozen=True)
class Thresholds:
    """Beyond which an explanation speaks up: the share of the largest entropy that is `undecided`, a `confidence` that
    is low, an `influence` of the steering in nats that is large, an `atypicality` that is high and a `similarity` of
    the nearest source that is low, both as percentiles of the known pairs: absolute lengths mean nothing from one
    space to another."""

    undecided: float = 0.9
    confidence: float = 0.5
    influence: float = 0.5
    atypicality: float = 95.0
    similarity: float = 5.0

    def __post_init__(self):
        top = {"undecided": 1.0, "confidence": 1.0, "influence": math.inf, "atypicality": 100.0, "similarity": 100.0}
        for one in fields(self):
            if not 0 <= getattr(self, one.name) <= top[one.name]:
                raise ValueError(
                    f"thresholds.{one.name} must lie in [0, {top[one.name]:g}], got {getattr(self, one.name)}"
                )


def actionable_signal(e: "Explanation", t: Thresholds) -> str:
    """One sentence for each thing that a reader should act on, the gravest first; each names its threshold."""
    found = []
    if e.max_entropy and e.entropy >= t.undecided * e.max_entropy:
        found.append(
            f"The router is undecided (entropy {e.entropy:.2f} of at most {e.max_entropy:.2f} nats, threshold "
            f"{t.undecided * e.max_entropy:.2f}): do not believe the subspace."
        )
    elif e.confidence is not None and e.confidence < t.confidence:
        second = sorted(e.distribution, key=e.distribution.get)[-2]
        found.append(
            f"Low confidence ({e.confidence:.2f}, threshold {t.confidence:.2f}): {e.primary_subspace} or {second}? "
            "Steer to the one you mean."
        )
    if e.max_similarity_percentile is not None and e.max_similarity_percentile < t.similarity:
        found.append(
            f"No known source is near (similarity {e.max_similarity:.2f}, in the lowest {t.similarity:g} %): the "
            "answer may be missing."
        )
    if e.atypicality_percentile is not None and e.atypicality_percentile > t.atypicality:
        found.append(
            f"Atypical for its subspace (residual longer than {e.atypicality_percentile:.0f} % of the known pairs, "
            f"threshold {t.atypicality:g} %): look at the nearest pairs."
        )
    kl, without = e.steering_influence.kl, e.steering_influence.primary_without
    if kl is not None and kl > t.influence:
        moved = f"from {without} to {e.primary_subspace}" if without != e.primary_subspace else "to be surer"
        found.append(f"The steering decided it ({kl:.2f} nats, threshold {t.influence:.2f}), {moved}: is it right?")
    return " ".join(found) or "Nothing unusual: no value is beyond its threshold."
