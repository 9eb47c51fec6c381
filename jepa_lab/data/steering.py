"""Question, source, and a steering signal that says which topic the source is from.

A pair is a question embedding and the embedding of the source that answers it. The steering vector lives in the same
space and points to the pair's topic. In training its kind changes from epoch to epoch, so that the model learns to use
a signal and to do without; sources that are easily mistaken for the right one come along as negatives.

Book: chapter 12.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jepa_lab.batches import Epoch
from jepa_lab.data.negatives import Tiers, are_shares, check_tiers, tier_slots
from jepa_lab.data.text import Pairs
from jepa_lab.data.text_encoders import TextEncoder, TfidfEncoder

VARIANTS = ("zero", "centroid", "keyword", "residual")


@dataclass(frozen=True)
class SteeringConfig:
    """`variant` fixes the kind of steering; `mix` draws it anew for every pair and epoch. The share of `zero`, no
    steering at all, falls from `zero_start` to `zero_end` over the epochs, linearly; the other kinds share the rest as
    `centroid`, `keyword` and `residual` say (in proportion). `n_neg` negatives a pair, divided over the four tiers in
    the proportions of `tiers`; drawn anew every `refresh_every` epochs (0 = never)."""

    variant: Literal["mix", "zero", "centroid", "keyword", "residual"] = "mix"
    zero_start: float = 0.5
    zero_end: float = 0.1
    centroid: float = 1.0
    keyword: float = 1.0
    residual: float = 1.0
    n_neg: int = 8
    tiers: tuple[float, float, float, float] = (0.5, 0.25, 0.125, 0.125)
    refresh_every: int = 1

    def __post_init__(self):
        if self.variant not in ("mix", *VARIANTS):
            raise ValueError(f"steering.variant must be one of mix, {', '.join(VARIANTS)}, got {self.variant!r}")
        for name in ("zero_start", "zero_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"steering.{name} must lie in [0, 1], got {getattr(self, name)}")
        shares = (self.centroid, self.keyword, self.residual)
        if not are_shares(shares):
            raise ValueError(
                f"steering.centroid, keyword and residual must be shares of which one is > 0, got {shares}"
            )
        check_tiers("steering", self.n_neg, self.tiers, self.refresh_every)

    def shares(self, progress: float) -> Tensor:
        """Probability of each of `VARIANTS` at a progress in [0, 1]."""
        if self.variant != "mix":
            return torch.tensor([float(name == self.variant) for name in VARIANTS], dtype=torch.float64)
        zero = self.zero_start + (self.zero_end - self.zero_start) * progress
        rest = torch.tensor([self.centroid, self.keyword, self.residual], dtype=torch.float64)
        return torch.cat([torch.tensor([zero], dtype=torch.float64), (1 - zero) * rest / rest.sum()])

    def slots(self) -> list[int]:
        """The tier of each of the n_neg negatives."""
        return tier_slots(self.n_neg, self.tiers)


class SteeringDataset:
    """Pairs with steering and negatives, as `batches(epoch)` for the trainer.

        dataset = SteeringDataset(question, source, topic, keywords, epochs=10)
        dataset.set_epoch(3)
        batch = dataset[torch.arange(128)]

    A batch holds `question`, `source`, `steering` [B, D], `negatives` [B, n_neg, D], `topic`, `source_id`, `relevance`
    (cosine of question and source), `centroid_distance` (1 - cosine of source and centroid), `steering_variant` [B],
    `negative_id`, `negative_tier` [B, n_neg]. Everything drawn depends on the seed and the epoch alone.

    Args:
        question, source: embeddings [n, D]; they are brought to unit length.
        topic: [n], 0..K-1, at least two sources each, since the centroid that steers leaves the pair's own source out.
        keywords: a vector for each topic [K, D], such as the weighted mean of its characteristic words' embeddings.
        source_id: pairs that share a source have one id, so that none is another's negative; None = all differ.
        epochs: over which the curriculum runs.

    Raises: ValueError on other shapes, rows that are not finite, a topic with one source, n_neg larger than the pool.
    Book: chapter 12.
    """

    def __init__(
        self,
        question: Float[Tensor, "n D"],
        source: Float[Tensor, "n D"],
        topic: Int[Tensor, " n"],
        keywords: Float[Tensor, "K D"] | None = None,
        config: SteeringConfig | None = None,
        source_id: Int[Tensor, " n"] | None = None,
        batch_size: int = 128,
        epochs: int = 10,
        seed: int = 0,
    ):
        self.config = config = config or SteeringConfig()
        check_pairs(question, source, topic)
        if not 1 <= batch_size <= len(topic):
            raise ValueError(f"batch_size must lie in 1..{len(topic)}, the number of pairs, got {batch_size}")
        pool = len(topic) if source_id is None else len(source_id.unique())
        if config.n_neg >= pool:
            raise ValueError(f"steering.n_neg={config.n_neg} is larger than the pool of {pool - 1} other sources")
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.question, self.source, self.topic = F.normalize(question, dim=1), F.normalize(source, dim=1), topic
        self.source_id = torch.arange(len(topic)) if source_id is None else source_id
        self.centroids = topic_centroids(self.source, topic)
        if keywords is not None and keywords.shape != self.centroids.shape:
            raise ValueError(
                f"keywords must be {tuple(self.centroids.shape)}, a row per topic, got {tuple(keywords.shape)}"
            )
        if keywords is not None and not keywords.isfinite().all():
            raise ValueError("keywords must be finite: look for NaN in the embeddings")
        if keywords is None and config.shares(0.5)[VARIANTS.index("keyword")] > 0:
            raise ValueError("keywords must be given for the keyword variant; set steering.keyword=0 to do without")
        self.keywords = None if keywords is None else F.normalize(keywords, dim=1)
        self.own_centroid = leave_one_out(self.source, topic, self.source_id)
        self.relevance = (self.question * self.source).sum(1)
        self.centroid_distance = 1 - (self.own_centroid * self.source).sum(1)
        self._tiers = Tiers(self.source, topic, self.centroids)
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.topic)

    def set_epoch(self, epoch: int) -> None:
        """Draw the steering variants of this epoch, and its negatives when they are due."""
        generator = _generator(self.seed, epoch, 0)
        progress = min(epoch / max(self.epochs - 1, 1), 1.0)
        shares = self.config.shares(progress)
        self.variant = torch.multinomial(shares.float(), len(self), replacement=True, generator=generator)
        self.steering = steer(self.question, self.own_centroid, self.keywords, self.topic, self.variant)
        every = self.config.refresh_every
        drawn_in = epoch // every * every if every else 0
        if getattr(self, "_drawn_in", None) != drawn_in:
            self._drawn_in = drawn_in
            slots = self._tiers.possible(self.config.slots())
            self.negative_tier = torch.tensor(slots, dtype=torch.long).expand(len(self), -1)
            self.negative = self._tiers.draw(slots, _generator(self.seed, drawn_in, 1))

    def __getitem__(self, index: Int[Tensor, " B"]) -> dict[str, Tensor]:
        negative = self.negative[index]
        return {
            "question": self.question[index],
            "source": self.source[index],
            "steering": self.steering[index],
            "negatives": self.source[negative],
            "topic": self.topic[index],
            "source_id": self.source_id[index],
            "relevance": self.relevance[index],
            "centroid_distance": self.centroid_distance[index],
            "steering_variant": self.variant[index],
            "negative_id": self.source_id[negative],
            "negative_tier": self.negative_tier[index],
        }

    def __call__(self, epoch: int) -> Epoch:
        """The shuffled batches of an epoch; the last incomplete one is left out."""
        self.set_epoch(epoch)
        order = torch.randperm(len(self), generator=_generator(self.seed, epoch, 2))
        # A copy holds what was drawn: an epoch stays what it is when another one is asked for before it is over.
        return Epoch(copy.copy(self).__getitem__, order, self.batch_size)


def steer(
    question: Float[Tensor, "n D"],
    centroid: Float[Tensor, "n D"],
    keywords: Float[Tensor, "K D"] | None,
    topic: Int[Tensor, " n"],
    variant: Int[Tensor, " n"],
) -> Float[Tensor, "n D"]:
    """The steering vector of each pair, by its variant.

        zero      0
        centroid  c, the mean of the topic's sources on the unit sphere
        keyword   the topic's keyword vector
        residual  (c - q) / |c - q|, from the question to the centroid

    Shapes: question and centroid (of each pair's topic) [n, D], keywords [K, D], topic and variant [n] -> [n, D].
    Raises: ValueError when a keyword variant meets keywords=None.
    Book: chapter 12.
    """
    code = variant[:, None]
    if keywords is None and bool((variant == 2).any()):
        raise ValueError("keywords must be given for the keyword variant")
    result = torch.where(code == 1, centroid, torch.zeros_like(question))
    if keywords is not None:
        result = torch.where(code == 2, keywords[topic], result)
    return torch.where(code == 3, F.normalize(centroid - question, dim=1), result)


def keyword_vectors(pairs: Pairs, topics: Sequence[str], encoder: TextEncoder, k: int = 10) -> Float[Tensor, "K D"]:
    """A vector for each topic out of the k words that set it apart: sum_w weight_w x encoder(w), at unit length.

    A word's weight is its mean TF-IDF in the topic's sources minus its mean in all sources.

    Shapes: -> [K, D], rows in the order of `topics`.
    Raises: ValueError for a topic without pairs.
    Book: chapter 12.
    """
    tfidf = TfidfEncoder().fit(pairs.source)
    rows, words = tfidf.encode(pairs.source), tfidf.vectorizer.get_feature_names_out()
    overall = np.asarray(rows.mean(0)).ravel()
    chosen, weights = [], []
    for name in topics:
        members = [i for i, topic in enumerate(pairs.topic) if topic == name]
        if not members:
            raise ValueError(f"topics: no pair has the topic {name!r}")
        apart = np.asarray(rows[members].mean(0)).ravel() - overall
        best = np.argsort(-apart, kind="stable")[:k]
        chosen += words[best].tolist()
        weights.append(torch.from_numpy(apart[best]).float())
    vectors = encoder.encode(chosen).reshape(len(topics), -1, encoder.encode(chosen[:1]).shape[1])
    return F.normalize(torch.einsum("kw,kwd->kd", torch.stack(weights), vectors), dim=1)


def topic_centroids(source: Float[Tensor, "n D"], topic: Int[Tensor, " n"], k: int = 0) -> Float[Tensor, "K D"]:
    """Unit mean of the sources of each topic; zero for a topic without any. `k` topics at least, 0 = as many as occur.

    Shapes: source [n, D], topic [n] -> [K, D].
    """
    return F.normalize(_sums(source, topic, k), dim=1)


def leave_one_out(
    source: Float[Tensor, "n D"], topic: Int[Tensor, " n"], source_id: Int[Tensor, " n"] | None = None
) -> Float[Tensor, "n D"]:
    """For each source the unit mean of the *other* sources of its topic: its own would give the answer away.

    Rows with the same `source_id` hold the same source; all of them are left out, and in other means they count as
    often as they occur. A source may occur in several topics.

    Shapes: source [n, D], topic and source_id [n] -> [n, D].
    Raises: ValueError for a topic with one source, which has no others.
    """
    if source_id is None:
        source_id = torch.arange(len(topic), device=topic.device)
    _, same = torch.unique(torch.stack([topic, source_id]), dim=1, return_inverse=True)
    copies = torch.bincount(same)[same]  # of this source in this topic
    alone = (torch.bincount(topic)[topic] == copies).nonzero().flatten()
    if len(alone):
        raise ValueError(
            f"topic: every topic needs at least two sources to steer by; topic {int(topic[alone[0]])} has one. "
            "Drop it (min_pairs of the loader)"
        )
    return F.normalize(_sums(source, topic)[topic] - copies[:, None] * source, dim=1)


def _sums(source: Tensor, topic: Tensor, k: int = 0) -> Tensor:
    k = max(k, int(topic.max()) + 1)
    return source.new_zeros(k, source.shape[1]).index_add_(0, topic, source)


def check_pairs(question: Tensor, source: Tensor, topic: Tensor) -> None:
    """Raises: ValueError unless question and source are finite [n, D] and topic is [n]."""
    if question.ndim != 2 or question.shape != source.shape:
        raise ValueError(
            f"question and source must both be [n, D], got {tuple(question.shape)} and {tuple(source.shape)}"
        )
    if topic.shape != (len(question),):
        raise ValueError(f"topic must be [n] with n = {len(question)}, got {tuple(topic.shape)}")
    for name, value in {"question": question, "source": source}.items():
        bad = (~value.isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise ValueError(f"{name}: {len(bad)} embeddings are not finite, the first in row {int(bad[0])}")


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) * 3 + stream)
