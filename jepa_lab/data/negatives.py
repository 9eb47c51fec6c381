"""Sources that are easily mistaken for the right one.

Four tiers, from confusable to obvious: `in_topic`, another source of the pair's topic; `adjacent`, a source of one of
the nearest other topics; `similar`, one of the most similar sources of other topics; `random`, any other source.

Book: chapters 12, 14.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

TIERS = ("in_topic", "adjacent", "similar", "random")
ADJACENT = 3  # how many of the nearest other topics count as adjacent
SIMILAR = 32  # how many of the most similar sources of other topics the third tier draws from


@dataclass(frozen=True)
class NegativesConfig:
    """`n_neg` negatives a pair (0 = none), divided over the four tiers in the proportions of `tiers`; drawn anew every
    `refresh_every` epochs (0 = never)."""

    n_neg: int = 4
    tiers: tuple[float, float, float, float] = (0.5, 0.25, 0.125, 0.125)
    refresh_every: int = 1

    def __post_init__(self):
        check_tiers("negatives", self.n_neg, self.tiers, self.refresh_every)

    def slots(self) -> list[int]:
        """The tier of each of the n_neg negatives."""
        return tier_slots(self.n_neg, self.tiers)


def check_tiers(section: str, n_neg: int, tiers: tuple[float, ...], refresh_every: int) -> None:
    """Raises: ValueError naming the setting of a configuration's `section` that is out of range."""
    if len(tiers) != len(TIERS) or not are_shares(tiers):
        raise ValueError(f"{section}.tiers must be four shares ({', '.join(TIERS)}), one > 0, got {tiers}")
    for name, value in {"n_neg": n_neg, "refresh_every": refresh_every}.items():
        if value < 0:
            raise ValueError(f"{section}.{name} must not be negative, got {value}")


def tier_slots(n_neg: int, tiers: tuple[float, ...]) -> list[int]:
    """The tier of each of n_neg negatives: the proportions, rounded so that they add up."""
    exact = [n_neg * share / sum(tiers) for share in tiers]
    counts = [int(value) for value in exact]
    by_rest = sorted(range(len(tiers)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: n_neg - sum(counts)]:
        counts[i] += 1
    return [tier for tier, count in enumerate(counts) for _ in range(count)]


def are_shares(values: tuple[float, ...]) -> bool:
    """Whether these can be proportions: none negative or infinite, and one positive."""
    return all(0 <= value < math.inf for value in values) and sum(values) > 0


class Tiers:
    """Draws negatives for each pair, never its own row.

        tiers = Tiers(source, topic, centroids)
        rows = tiers.draw(tiers.possible([0, 0, 1, 3]), generator)  # [n, 4]

    Shapes: source [n, D] and centroids [K, D] of unit length, topic [n] with at least two rows each.
    """

    def __init__(self, source: Float[Tensor, "n D"], topic: Int[Tensor, " n"], centroids: Float[Tensor, "K D"]):
        self.n, self.topic = len(topic), topic
        self.order = topic.argsort(stable=True)  # rows by topic; a topic is a stretch of it
        self.count = torch.bincount(topic, minlength=len(centroids))
        self.start = self.count.cumsum(0) - self.count
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(self.n)
        near = (centroids @ centroids.T).masked_fill(self.count == 0, -torch.inf).fill_diagonal_(-torch.inf)
        adjacent = min(ADJACENT, int((self.count > 0).sum()) - 1)
        self.adjacent = near.topk(adjacent, dim=1).indices if adjacent else None
        self.similar = self._similar(source, topic) if adjacent else None

    def _similar(self, source: Tensor, topic: Tensor) -> Tensor:
        most = self.n - int(self.count.max())  # every row has at least so many rows of other topics
        parts = []
        for rows in torch.arange(self.n).split(1024):
            cosine = source[rows] @ source.T
            parts.append(cosine.masked_fill(topic[rows, None] == topic, -torch.inf).topk(min(SIMILAR, most), 1).indices)
        return torch.cat(parts)

    def possible(self, slots: list[int]) -> list[int]:
        """The tiers that can be drawn: where there is one topic alone, `random` stands in for those of other topics."""
        if self.adjacent is not None:
            return slots
        return [tier if TIERS[tier] == "in_topic" else TIERS.index("random") for tier in slots]

    def draw(self, slots: list[int], generator: torch.Generator) -> Int[Tensor, "n n_neg"]:
        """One row index for each pair and slot; the slot's value is its tier."""
        columns = []
        for tier in slots:
            u = torch.rand(self.n, generator=generator, dtype=torch.float64)
            if TIERS[tier] == "in_topic":
                columns.append(self._in_topic(u))
            elif TIERS[tier] == "adjacent":
                which = torch.randint(self.adjacent.shape[1], (self.n,), generator=generator)
                other = self.adjacent[self.topic, which]
                columns.append(self.order[self.start[other] + (u * self.count[other]).long()])
            elif TIERS[tier] == "similar":
                columns.append(self.similar.gather(1, (u * self.similar.shape[1]).long()[:, None])[:, 0])
            else:
                other = (u * (self.n - 1)).long()
                columns.append(other + (other >= torch.arange(self.n)))  # over all rows but one's own
        return torch.stack(columns, 1) if columns else torch.empty(self.n, 0, dtype=torch.long)

    def _in_topic(self, u: Tensor) -> Tensor:
        others = self.count[self.topic] - 1
        offset = (u * others).long()
        own = self.place - self.start[self.topic]
        return self.order[self.start[self.topic] + offset + (offset >= own)]
