"""Pairs of question and source for a model that embeds both: texts as vectors or as words, and hard negatives.

Book: chapter 14.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from jepa_lab.batches import Epoch
from jepa_lab.data.negatives import NegativesConfig, Tiers
from jepa_lab.data.steering import topic_centroids
from jepa_lab.data.text_encoders import TfidfEncoder


class Texts(NamedTuple):
    """Texts for `jepa_lab.text_nets`: vectors [n, D] and no weights, or padded word numbers [n, L] and weights [n, L],
    0 where a row is padded."""

    text: Tensor
    weight: Tensor | None = None

    def take(self, name: str, index: Int[Tensor, "*rows"]) -> dict[str, Tensor]:
        """The texts of these rows as entries `name` and, for words, `name_weight` of a batch, without columns that are
        padding in all of them."""
        if self.weight is None:
            return {name: self.text[index]}
        weight = self.weight[index]
        used = (weight != 0).flatten(0, -2).any(0).nonzero()
        longest = int(used[-1]) + 1 if len(used) else 1
        return {name: self.text[index][..., :longest], f"{name}_weight": weight[..., :longest]}


def weighted_words(rows: csr_matrix) -> Texts:
    """The rows of a TF-IDF matrix as words with weights. Shapes: sparse [n, words] -> text and weight [n, L].

    Book: chapter 14.
    """
    lengths = np.diff(rows.indptr)
    place = np.arange(rows.nnz) - np.repeat(rows.indptr[:-1], lengths)
    line = np.repeat(np.arange(rows.shape[0]), lengths)
    shape = rows.shape[0], max(int(lengths.max(initial=0)), 1)
    text, weight = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    text[line, place] = torch.from_numpy(rows.indices.astype(np.int64))
    weight[line, place] = torch.from_numpy(rows.data).float()
    return Texts(text, weight)


def ordered_words(encoder: TfidfEncoder, texts: Sequence[str], max_words: int = 64) -> Texts:
    """The known words of each text in their order, the first `max_words` of them, all with weight 1.

    Shapes: n texts -> text and weight [n, L], L <= max_words.
    Raises: ValueError if max_words < 1.
    Book: chapter 14.
    """
    if max_words < 1:
        raise ValueError(f"max_words must be at least 1, got {max_words}")
    split, number = encoder.vectorizer.build_analyzer(), encoder.vectorizer.vocabulary_
    rows = [[number[word] for word in split(text) if word in number][:max_words] for text in texts]
    shape = len(rows), max([len(row) for row in rows] + [1])
    text, weight = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    for i, row in enumerate(rows):
        text[i, : len(row)], weight[i, : len(row)] = torch.tensor(row, dtype=torch.long), 1.0
    return Texts(text, weight)


class RetrievalDataset:
    """Pairs with hard negatives, as `batches(epoch)` for the trainer.

    A batch holds `question`, `source`, `source_id` [B], `negatives` [B, n_neg, ...] and `negative_id` [B, n_neg]; for
    words also `question_weight`, `source_weight`, `negatives_weight`. What is drawn depends on seed and epoch alone.

    Args:
        question, source: the texts of the training pairs, and of no others: negatives are drawn from them.
        vectors: frozen unit vectors of the sources [n, D], which say what is similar to what.
        topic: [n], 0..K-1, at least two rows each.
        source_id: pairs that share a source have one id, so that none is another's negative; None = all differ.

    Raises: ValueError for columns of different lengths, or n_neg or batch_size larger than there are pairs.
    Book: chapter 14.
    """

    def __init__(
        self,
        question: Texts,
        source: Texts,
        vectors: Float[Tensor, "n D"],
        topic: Int[Tensor, " n"],
        source_id: Int[Tensor, " n"] | None = None,
        config: NegativesConfig | None = None,
        batch_size: int = 128,
        seed: int = 0,
    ):
        self.config = config = config or NegativesConfig()
        n = len(topic)
        self.source_id = torch.arange(n) if source_id is None else source_id
        sizes = {
            "question": len(question.text),
            "source": len(source.text),
            "vectors": len(vectors),
            "topic": n,
            "source_id": len(self.source_id),
        }
        if len(set(sizes.values())) != 1:
            raise ValueError(f"question, source, vectors, topic and source_id must be equally long, got {sizes}")
        if not 1 <= batch_size <= n:
            raise ValueError(f"batch_size must lie in 1..{n}, the number of pairs, got {batch_size}")
        if config.n_neg >= (pool := len(self.source_id.unique())):
            raise ValueError(f"negatives.n_neg={config.n_neg} is larger than the pool of {pool - 1} other sources")
        self.question, self.source, self.topic = question, source, topic
        self.batch_size, self.seed = batch_size, seed
        self._tiers = Tiers(vectors, topic, topic_centroids(vectors, topic)) if config.n_neg else None
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.topic)

    def set_epoch(self, epoch: int) -> None:
        """Draw the negatives of this epoch, when they are due."""
        every = self.config.refresh_every
        drawn_in = epoch // every * every if every else 0
        if self._tiers is not None and getattr(self, "_drawn_in", None) != drawn_in:
            self._drawn_in = drawn_in
            slots = self._tiers.possible(self.config.slots())
            self.negative = self._tiers.draw(slots, self._generator(drawn_in, 0))

    def __getitem__(self, index: Int[Tensor, " B"]) -> dict[str, Tensor]:
        batch = self.question.take("question", index) | self.source.take("source", index)
        batch["source_id"] = self.source_id[index]
        if self._tiers is not None:
            negative = self.negative[index]
            batch |= self.source.take("negatives", negative) | {"negative_id": self.source_id[negative]}
        return batch

    def __call__(self, epoch: int) -> Epoch:
        """The shuffled batches of an epoch; the last incomplete one is left out."""
        self.set_epoch(epoch)
        order = torch.randperm(len(self), generator=self._generator(epoch, 1))
        # A copy holds what was drawn: an epoch stays what it is when another one is asked for before it is over.
        return Epoch(copy.copy(self).__getitem__, order, self.batch_size)

    def _generator(self, epoch: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) * 2 + stream)
