"""Why this prediction? Which subspace, what the steering changed, how far from typical, and what is known nearby.

    explainer = Explainer(objective, names, question, source, steering)
    explanation = explainer.explain(q, s)
    print(explanation.actionable_signal)

An explanation is plain data: what a model says of itself, numbers that can be checked, and words with their thresholds.

Book: chapter 13.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jepa_lab.calibration import percentile_of, quantiles_of
from jepa_lab.explain_words import Thresholds, actionable_signal
from jepa_lab.explanation import Explanation, Influence, Neighbour
from jepa_lab.objectives.routed import RoutedJasper
from jepa_lab.objectives.steering import Jasper
from jepa_lab.routing import check_names, entropy

__all__ = ["Explainer", "Explanation", "Influence", "Neighbour", "Thresholds"]


class Explainer:
    """Explains what a trained Jasper predicts; fully with a router, in a reduced form without.

    The influence of a steering vector is measured against another one, `without`. That must be one that the training
    has seen, or the difference says how the model takes to a strange input. The default is the zero vector: the
    curriculum of `SteeringDataset` gives it to a half to a tenth of the pairs. For a model that was trained without
    zero steering, pass another, such as the mean of the centroids, and its name.

    Args:
        names: of the K subspaces, in the order of the objective's centroids.
        known_question, known_source: embeddings [n, D] of pairs that the model may point to: those of the training.
        known_steering: their steering [n, D]. Given, it calibrates the percentile of the atypicality, in the model too.
        known_text: the texts of the pairs, (question, source); known_topic: their topics [n].
        neighbours: how many pairs an explanation names.

    Raises: ValueError unless there is one name a subspace, for pairs of other shapes, for vectors that are not finite.
    Book: chapter 13.
    """

    def __init__(
        self,
        objective: Jasper,
        names: Sequence[str],
        known_question: Float[Tensor, "n D"] | None = None,
        known_source: Float[Tensor, "n D"] | None = None,
        known_steering: Float[Tensor, "n D"] | None = None,
        known_text: Sequence[tuple[str, str]] | None = None,
        known_topic: Int[Tensor, " n"] | None = None,
        without: Float[Tensor, " D"] | None = None,
        without_name: str | None = None,
        neighbours: int = 3,
        thresholds: Thresholds | None = None,
    ):
        check_names(names, len(objective.centroids))
        self.objective, self.names = objective, list(names)
        self.device, dim = objective.centroids.device, objective.centroids.shape[1]
        self.without = torch.zeros(dim) if without is None else without
        self.without_name = without_name or ("zero steering" if without is None else "the given steering")
        _check_vectors("without", self.without[None], dim)
        self.neighbours, self.thresholds = neighbours, thresholds or Thresholds()
        self.known_text, self.known_topic = known_text, known_topic
        self.known_question = self.known_target = self._similarities = None
        if (known_question is None) != (known_source is None):
            raise ValueError("known_question and known_source go together: give both or neither")
        if known_question is not None:
            for name, value in {"known_source": known_source, "known_steering": known_steering}.items():
                if value is not None and value.shape != known_question.shape:
                    raise ValueError(f"{name} must be {tuple(known_question.shape)}, got {tuple(value.shape)}")
            for name, value in {"known_text": known_text, "known_topic": known_topic}.items():
                if value is not None and len(value) != len(known_question):
                    raise ValueError(f"{name} must have {len(known_question)} entries, got {len(value)}")
            _check_vectors("known_question", known_question, dim)
            self.known_question = F.normalize(known_question.to(self.device), dim=1)
            self.known_target = objective.represent({"source": known_source.to(self.device)}, "source")
            if known_steering is not None:
                self._calibrate(known_question, known_steering)

    def explain(
        self, question: Float[Tensor, " D"], steering: Float[Tensor, " D"] | None = None, text: str | None = None
    ) -> Explanation:
        """Explain one question; without steering it gets that of `without`. `text` is kept for the reader.

        Raises: ValueError for vectors of another width, or not finite.
        """
        batch = None if steering is None else steering[None]
        return self.explain_batch(question[None], batch, None if text is None else [text])[0]

    def explain_batch(
        self,
        question: Float[Tensor, "B D"],
        steering: Float[Tensor, "B D"] | None = None,
        texts: Sequence[str] | None = None,
    ) -> list[Explanation]:
        """`explain` of every row.

        Raises: ValueError as `explain`, and for another number of texts than questions.
        """
        dim = self.objective.centroids.shape[1]
        neutral = self.without.to(question).expand(len(question), -1)
        steering = neutral if steering is None else steering
        _check_vectors("question", question, dim)
        _check_vectors("steering", steering, dim)
        if steering.shape != question.shape or (texts is not None and len(texts) != len(question)):
            raise ValueError(
                f"steering and texts must have a row for each of the {len(question)} questions, got {len(steering)}"
                + ("" if texts is None else f" and {len(texts)}")
            )
        question, steering, neutral = (x.to(self.device) for x in (question, steering, neutral))
        with_, without = self._predict(question, steering), self._predict(question, neutral)
        l2 = (with_["prediction"] - without["prediction"]).norm(dim=1).tolist()
        columns = self._routing(with_, without) if "logits" in with_ else [{} for _ in l2]
        known = self._known(question, with_["prediction"])
        told = []
        for i, routing in enumerate(columns):
            influence = Influence(self.without_name, l2[i], **routing.pop("influence", {}))
            one = Explanation(
                form="routed" if routing else "reduced",
                prediction=with_["prediction"][i].tolist(),
                steering_influence=influence,
                question=None if texts is None else texts[i],
                thresholds=asdict(self.thresholds),
                **routing,
                **known[i],
            )
            told.append(replace(one, actionable_signal=actionable_signal(one, self.thresholds)))
        return told

    def compare_steering_influence(
        self, question: Float[Tensor, " D"], steerings: Mapping[str, Float[Tensor, " D"]]
    ) -> list[dict[str, Any]]:
        """The same question under several steering vectors: for each its `steering`, `kl` and `l2` against `without`,
        the `primary_subspace` and the `confidence`, in the order given.

        Raises: ValueError without steering vectors, and as `explain`.
        """
        if not steerings:
            raise ValueError("steerings must hold at least one vector")
        told = self.explain_batch(question.expand(len(steerings), -1), torch.stack(list(steerings.values())))
        return [
            {
                "steering": name,
                "kl": one.steering_influence.kl,
                "l2": one.steering_influence.l2,
                "primary_subspace": one.primary_subspace,
                "confidence": one.confidence,
            }
            for name, one in zip(steerings, told, strict=True)
        ]

    def _predict(self, question: Tensor, steering: Tensor) -> dict[str, Tensor]:
        if isinstance(self.objective, RoutedJasper):
            return self.objective.explain_parts(question, steering)._asdict()
        return {"prediction": self.objective.represent({"question": question, "steering": steering}, "query")}

    def _routing(self, with_: dict[str, Tensor], without: dict[str, Tensor]) -> list[dict[str, Any]]:
        log_p, log_q = with_["logits"].log_softmax(1), without["logits"].log_softmax(1)
        p, q = log_p.exp(), log_q.exp()
        kl = (p * (log_p - log_q)).sum(1).clamp_min(0)
        atypicality = with_["fine"].norm(dim=1)
        predictor = self.objective.predictor
        calibrated = bool(predictor.quantiles[0] >= 0)
        percentile = predictor.percentile(atypicality).tolist() if calibrated else [None] * len(p)
        top, coarse, h = p.max(1), with_["coarse"].norm(dim=1), entropy(p)
        return [
            {
                "primary_subspace": self.names[int(top.indices[i])],
                "confidence": float(top.values[i]),
                "distribution": dict(zip(self.names, p[i].tolist(), strict=True)),
                "entropy": float(h[i]),
                "max_entropy": math.log(len(self.names)),
                "coarse_norm": float(coarse[i]),
                "atypicality": float(atypicality[i]),
                "atypicality_percentile": percentile[i],
                "influence": {
                    "kl": float(kl[i]),
                    "primary_without": self.names[int(q[i].argmax())],
                    "distribution_without": dict(zip(self.names, q[i].tolist(), strict=True)),
                },
            }
            for i in range(len(p))
        ]

    def _known(self, question: Tensor, prediction: Tensor) -> list[dict[str, Any]]:
        """The nearest known pairs and the similarity of the nearest known source."""
        if self.known_question is None:
            return [{} for _ in question]
        near = F.normalize(question, dim=1) @ self.known_question.T
        to_source = F.normalize(prediction, dim=1) @ self.known_target.T
        highest = to_source.max(1).values
        place = [None] * len(question)
        if self._similarities is not None:
            place = percentile_of(highest, self._similarities).tolist()
        order = near.argsort(dim=1, descending=True, stable=True)[:, : self.neighbours].tolist()
        return [
            {
                "nearest": [self._neighbour(row, near[i, row], to_source[i, row]) for row in order[i]],
                "max_similarity": float(highest[i]),
                "max_similarity_percentile": place[i],
            }
            for i in range(len(question))
        ]

    def _neighbour(self, row: int, similarity: Tensor, source_similarity: Tensor) -> Neighbour:
        text = (None, None) if self.known_text is None else self.known_text[row]
        topic = None if self.known_topic is None else self.names[int(self.known_topic[row])]
        return Neighbour(row, float(similarity), float(source_similarity), *text, topic)

    def _calibrate(self, question: Tensor, steering: Tensor) -> None:
        """What is usual, among the known pairs: for the residual, and for the similarity of the nearest *other* source,
        since each known question would find its own."""
        fine, highest = [], []
        for rows in torch.arange(len(question)).split(1024):
            out = self._predict(question[rows].to(self.device), steering[rows].to(self.device))
            fine.append(out.get("fine"))
            cosine = F.normalize(out["prediction"], dim=1) @ self.known_target.T
            same = self.known_target[rows] @ self.known_target.T > 1 - 1e-5
            highest.append(cosine.masked_fill(same, -1.0).max(1).values)
        self._similarities = quantiles_of(torch.cat(highest))
        if isinstance(self.objective, RoutedJasper):
            self.objective.predictor.calibrate(torch.cat(fine))


def _check_vectors(name: str, x: Tensor, dim: int) -> None:
    """Raises: ValueError unless x is [B, dim] and finite."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"{name} must have the model's width {dim}, got shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{name} must be finite: look for NaN in the embeddings")
