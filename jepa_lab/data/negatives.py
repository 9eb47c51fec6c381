"""Sources that are easily mistaken for the right one.

Four tiers, from confusable to obvious: `in_topic`, another source of the pair's topic; `adjacent`, a source of one of
the nearest other topics; `similar`, one of the most similar sources of other topics; `random`, any other source.

Book: chapter 12.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

TIERS = ("in_topic", "adjacent", "similar", "random")
ADJACENT = 3  # how many of the nearest other topics count as adjacent
SIMILAR = 32  # how many of the most similar sources of other topics the third tier draws from


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
