"""What an explanation holds: plain data, to JSON and back.

Book: chapter 13.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Neighbour:
    """A known pair near the question. `similarity`: cosine of the two questions. `source_similarity`: cosine of the
    prediction and the pair's source. Texts and topic are None where the explainer was not given them."""

    row: int
    similarity: float
    source_similarity: float
    question: str | None = None
    source: str | None = None
    topic: str | None = None


@dataclass(frozen=True)
class Influence:
    """What the steering did, against the steering called `without`: `kl`, the divergence in nats of the routing with
    it from the routing without it, `l2`, how far the prediction moved, and the routing without it."""

    without: str
    l2: float
    kl: float | None = None
    primary_without: str | None = None
    distribution_without: dict[str, float] | None = None


@dataclass(frozen=True)
class Explanation:
    """A prediction [D] and its reasons. Lengths and similarities are those of the embedding space, entropies in nats,
    percentiles in % of the known pairs.

    `form` is `routed`, or `reduced` for a model without router, which has no subspace, no routing and no atypicality:
    what it lacks is None. `distribution` is the softmax of the routing's logits, `max_entropy` the log of their number.
    `atypicality` is the length of the residual, `max_similarity` the cosine of the prediction and the nearest known
    source: the *less*, the more doubtful.
    """

    form: str
    prediction: list[float]
    steering_influence: Influence
    question: str | None = None
    primary_subspace: str | None = None
    confidence: float | None = None
    distribution: dict[str, float] | None = None
    entropy: float | None = None
    max_entropy: float | None = None
    coarse_norm: float | None = None
    atypicality: float | None = None
    atypicality_percentile: float | None = None
    max_similarity: float | None = None
    max_similarity_percentile: float | None = None
    nearest: list[Neighbour] = field(default_factory=list)
    actionable_signal: str = ""
    thresholds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """As JSON; `from_json` makes the same explanation of it."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Explanation":
        """Raises: TypeError for fields that an explanation does not have."""
        data: dict[str, Any] = json.loads(text)
        nearest = [Neighbour(**one) for one in data.pop("nearest")]
        return cls(steering_influence=Influence(**data.pop("steering_influence")), nearest=nearest, **data)

    def plot(self, top: int = 6):
        """`explain_plots.plot_explanation` of it."""
        from jepa_lab.explain_plots import plot_explanation

        return plot_explanation(self, top)
