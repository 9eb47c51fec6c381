"""Explain what a model of texts predicts for a question that somebody types.

    python -m jepa_lab explain --checkpoint CHECKPOINT --question "Solve a linear system" --topic scipy.linalg

Book: chapter 13.
"""

import copy
from dataclasses import dataclass
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from jsonargparse import Namespace
from torch import Tensor

from jepa_lab.data.steering import SteeringConfig
from jepa_lab.data.text import Pairs, fit_encoder
from jepa_lab.data.text_encoders import TextEncoder
from jepa_lab.explain import Explainer
from jepa_lab.explanation import Explanation
from jepa_lab.families.base import Prepared
from jepa_lab.families.text import load_pairs
from jepa_lab.objectives.base import Objective
from jepa_lab.search import SearchTask


@dataclass(frozen=True)
class TextExplainer:
    """An `Explainer` over the training pairs of a run, the encoder of what is typed, and a steering vector a topic."""

    explainer: Explainer
    encoder: TextEncoder
    steering: dict[str, Tensor]

    @classmethod
    def of_run(cls, config: Namespace, prepared: Prepared, neighbours: int = 3) -> "TextExplainer":
        """Of a run that `experiment.restore` made anew.

        Raises: ValueError for a model of anything else than texts, or of topics that the training did not have.
        """
        check_explainable(config, prepared.objective)
        pairs, task = load_pairs(config.data), prepared.data
        train = task.parts["train"]
        explainer = _explainer(config, prepared.objective, pairs, task, neighbours)
        steering = dict(zip(pairs.topics, task.centroids, strict=True))
        return cls(explainer, fit_encoder(pairs, train, config.data.encoder, config.data.dim), steering)

    def explain(self, question: str, topic: str | None = None) -> Explanation:
        """Explain what the model predicts for a typed question, steered to a topic.

        Raises: ValueError for a question without any known word, or an unknown topic (names the nearest).
        """
        if topic is not None and topic not in self.steering:
            like = get_close_matches(topic, self.steering, n=6, cutoff=0.0)
            raise ValueError(f"unknown topic {topic!r} of {len(self.steering)}; the nearest names: {', '.join(like)}")
        if not bool(self.encoder.knows([question])[0]):
            raise ValueError(f"question: none of the words of {question!r} occurs in the training texts")
        vector = F.normalize(self.encoder.encode([question]), dim=1)[0]
        return self.explainer.explain(vector, None if topic is None else self.steering[topic], question)


def check_explainable(config: Namespace, objective: Objective) -> None:
    """Raises: ValueError for a model of anything else than texts, or of topics that the training did not have."""
    if getattr(objective, "family", None) != "text":
        raise ValueError(f"explain needs a model of texts; {config.objective.name} is one of images")
    if config.data.split_by != "pair":
        raise ValueError("explain needs a model that knows its topics: data.split_by=pair")


def explain_validation(config: Namespace, task: SearchTask, objective: Objective, count: int) -> list[Explanation]:
    """Explain the first `count` validation questions, steered to their topics, in the middle of a training: a copy of
    the model is asked, and the training does not notice.

    Raises: ValueError as `check_explainable`.
    """
    check_explainable(config, objective)
    pairs = load_pairs(config.data)
    rows = task.parts["validation"][:count]
    explainer = _explainer(config, copy.deepcopy(objective), pairs, task)
    return explainer.explain_batch(task.question[rows], task.own_centroid[rows], pairs.take(rows).question)


def _explainer(
    config: Namespace, objective: Objective, pairs: Pairs, task: SearchTask, neighbours: int = 3
) -> Explainer:
    """An explainer that knows the training pairs."""
    train = task.parts["train"]
    known = pairs.take(train)
    without, name = unsteered(SteeringConfig(**vars(config.steering)), task.centroids)
    return Explainer(
        objective,
        pairs.topics,
        task.question[train],
        task.source[train],
        task.own_centroid[train],
        list(zip(known.question, known.source, strict=True)),
        task.topic[train],
        without,
        name,
        neighbours,
    )


def unsteered(config: SteeringConfig, centroids: Tensor) -> tuple[Tensor, str]:
    """The steering that says nothing, of those that a training with this configuration has seen: zero, or where no pair
    was without steering the mean of the topics' centroids; and its name."""
    shares = [float(config.shares(progress)[0]) for progress in (0.0, 1.0)]
    if max(shares) > 0:
        return torch.zeros_like(centroids[0]), f"zero steering ({shares[0]:.0%} to {shares[1]:.0%} of the pairs)"
    return F.normalize(centroids.mean(0), dim=0), "the mean of the topics"


def page(e: Explanation, top: int = 3) -> str:
    """An explanation as lines of text."""
    lines = [f"question      {e.question}"]
    if e.distribution is not None:
        best = sorted(e.distribution.items(), key=lambda item: -item[1])[:top]
        lines += [
            f"subspace      {e.primary_subspace} (confidence {e.confidence:.2f}, entropy {e.entropy:.2f} of at most "
            f"{e.max_entropy:.2f} nats)",
            "routing       " + ", ".join(f"{name} {p:.2f}" for name, p in best),
            f"atypicality   {e.atypicality:.2f}"
            + ("" if e.atypicality_percentile is None else f", above {e.atypicality_percentile:.0f} % of known pairs"),
        ]
    influence = e.steering_influence
    kl = "" if influence.kl is None else f"{influence.kl:.2f} nats, "
    lines.append(f"steering      {kl}moved by {influence.l2:.2f}, against {influence.without}")
    if e.max_similarity is not None:
        lines.append(f"near source   cosine {e.max_similarity:.2f}")
    for one in e.nearest:
        topic = f"[{one.topic}] " if one.topic else ""
        lines.append(f"like          {one.similarity:.2f} {topic}{_short(one.question)} -> {_short(one.source)}")
    return "\n".join([*lines, f"signal        {e.actionable_signal}"])


def _short(text: str | None, width: int = 60) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= width else text[: width - 3] + "..."
