"""From records to batches: values on one scale, long records cut by a rule, and batches of records of like length.

Book: chapter 08.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jepa_lab.batches import Batch
from jepa_lab.data.clinical import Records
from jepa_lab.data.images import stratified_order

# Their percentiles lie on a line over a logarithmic axis rather than over a plain one.
SKEWED = (
    "Urine", "Creatinine", "BUN", "Glucose", "WBC", "Lactate", "Bilirubin", "AST", "ALT", "ALP", "TroponinT",
    "TroponinI", "Platelets", "PaO2",
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """One scale for all channels: log(1 + x) of the skewed ones, clipped to two percentiles, then mean 0 and s.d. 1.

    Everything is fitted on the training stays, and whatever is compared with an encoder gets the same values.

    Shapes: skewed Bool[F], low, high, mean, std Float[F], of every channel; those never seen have mean 0 and s.d. 1.
    Book: chapter 08.
    """

    skewed: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, records: Records, clip: float = 0.005) -> "Scale":
        """Fit to these records, clipping the share `clip` at either end.

        Raises: ValueError when `clip` is not in [0, 0.5).
        """
        if not 0 <= clip < 0.5:
            raise ValueError(f"clip, the share at either end, must lie in [0, 0.5), got {clip}")
        n = len(records.features)
        skewed = torch.tensor([name in SKEWED for name in records.features])
        low, high, mean, std = torch.zeros(n), torch.zeros(n), torch.zeros(n), torch.ones(n)
        value = _log(records.value, skewed[records.feature])
        for f in range(n):
            # In float64: percentiles and means of 200,000 values.
            x = value[records.feature == f].double().sort().values
            if len(x):
                low[f], high[f] = x[int(clip * (len(x) - 1))], x[math.ceil((1 - clip) * (len(x) - 1))]
                x = x.clamp(low[f].double(), high[f].double())
                mean[f], spread = x.mean(), x.std(correction=0)
                std[f] = spread if spread > 1e-6 else 1.0  # a channel with one value, such as "ventilated: 1"
        return cls(skewed, low, high, mean, std)

    def __call__(self, records: Records) -> Records:
        """The same records, their values on this scale."""
        f = records.feature
        value = _log(records.value, self.skewed[f]).clamp(self.low[f], self.high[f])
        return replace(records, value=(value - self.mean[f]) / self.std[f])


def _log(value: Tensor, skewed: Tensor) -> Tensor:
    return torch.where(skewed, value.clamp(min=0).log1p(), value)


def split(records: Records, seed: int = 0, share: float = 0.2) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """The places of the training and of the held-out stays, with equal shares of deaths; `share` is held out.

    Raises: ValueError when `share` is not in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share, what is held out, must lie in (0, 1), got {share}")
    order = stratified_order(records.label, seed)
    n = round(share * len(order))
    return order[n:].sort().values, order[:n].sort().values


def pad(records: Records, index: Int[Tensor, " B"]) -> Batch:
    """These stays as one batch, padded to the longest of them.

    Shapes: value, time [B, N], feature Int[B, N], valid Bool[B, N], label Int[B]; N is at least 1.
    Book: chapter 08.
    """
    count, start = records.count[index], records.start[:-1][index]
    place = torch.arange(max(int(count.max()), 1) if len(count) else 1)
    valid = place < count[:, None]
    where = (start[:, None] + place).clamp(max=max(len(records.value) - 1, 0)).masked_fill(~valid, 0)
    if not len(records.value):
        zeros = torch.zeros(valid.shape)
        return {"value": zeros, "time": zeros, "feature": zeros.long(), "valid": valid, "label": records.label[index]}
    columns = {"value": records.value, "time": records.time, "feature": records.feature}
    batch = {name: column[where].masked_fill(~valid, 0) for name, column in columns.items()}
    return batch | {"valid": valid, "label": records.label[index]}


def cut(batch: Batch, longest: int, generator: torch.Generator | None = None) -> Batch:
    """At most `longest` observations of each record, drawn without replacement, a rare channel first; 0 keeps all.

    An observation is drawn with a weight of 1 / (how often the record has its channel), so that the two lactates of a
    stay are kept and the fifty heart rates thinned. What is kept stays in its order. A record that is short enough is
    kept whole, whatever is drawn for others.

    Shapes: [B, N] -> [B, min(N, longest)].
    Raises: ValueError when `longest` is negative.
    Book: chapter 08.
    """
    if longest < 0:
        raise ValueError(f"longest must not be negative (0 = keep all observations), got {longest}")
    valid = batch["valid"]
    if not 0 < longest < valid.shape[1]:
        return batch
    keep = _rare_first(batch["feature"], valid, longest, generator)
    index = keep.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
    cut = {name: batch[name].gather(1, index) for name in ("value", "time", "feature")}
    valid = (keep & valid).gather(1, index)
    return batch | {name: column.masked_fill(~valid, 0) for name, column in cut.items()} | {"valid": valid}


def _rare_first(feature, valid: Bool[Tensor, "B N"], longest: int, generator) -> Bool[Tensor, "B N"]:
    """Gumbel's trick: the largest of log weight + Gumbel noise are a draw without replacement."""
    count = torch.zeros(len(valid), int(feature.max()) + 1).scatter_add_(1, feature, valid.float())
    exponential = -torch.rand(valid.shape, generator=generator).clamp(min=1e-12).log()
    noise = -exponential.clamp(min=1e-12).log()
    score = (noise - count.gather(1, feature).clamp(min=1).log()).masked_fill(~valid, -torch.inf)
    return torch.zeros_like(valid).scatter(1, score.topk(longest, dim=1).indices, True)


@dataclass(frozen=True)
class BatchConfig:
    """`observations` is how many of a stay are shown at a step, drawn anew each time (0 = all of them). `pool` batches
    are filled from one pool of shuffled records in the order of their lengths; 1 = no buckets."""

    observations: int = 128
    pool: int = 16

    def __post_init__(self):
        if self.observations < 0 or self.observations == 1:
            raise ValueError(f"batches.observations must be 0 (all) or at least 2, got {self.observations}")
        if self.pool < 1:
            raise ValueError(f"batches.pool must be at least 1 (1 = no buckets), got {self.pool}")


class RecordBatches:
    """`batches(epoch)` for the trainer: shuffled, in buckets of like length, cut, padded to the longest of the batch.

    Records are shuffled, and each pool of `config.pool` batches is sorted by length before it is cut into batches,
    whose order is then shuffled again: little padding, another grouping in every epoch, and no course from short to
    long. The last incomplete batch is left out. All of it depends on the seed and the epoch alone.

    Raises: ValueError when there are fewer records than one batch holds.
    Book: chapter 08.
    """

    def __init__(self, records: Records, batch_size: int, config: BatchConfig | None = None, seed: int = 0):
        if len(records) < batch_size:
            raise ValueError(f"trainer.batch_size={batch_size} is larger than the data set of {len(records)} records")
        self.records, self.batch_size, self.seed = records, batch_size, seed
        self.config = config or BatchConfig()
        limit = self.config.observations or int(records.count.max())
        self.length = records.count.clamp(max=limit)  # a cut record is as long as the limit

    def __call__(self, epoch: int) -> "RecordEpoch":
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order, size = torch.randperm(len(self.records), generator=generator), self.batch_size
        order = order[: len(order) // size * size]
        pools = [pool[self.length[pool].argsort(stable=True)] for pool in order.split(size * self.config.pool)]
        batches = [batch for pool in pools for batch in pool.split(size)]
        if self.config.pool > 1:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return RecordEpoch(self.records, batches, self.config.observations, generator)


class RecordEpoch:
    """The batches of one epoch; knows its length."""

    def __init__(self, records: Records, batches: list[Tensor], observations: int, generator: torch.Generator):
        self.records, self.batches, self.observations, self.generator = records, batches, observations, generator

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for index in self.batches:
            yield cut(pad(self.records, index), self.observations, self.generator)


def in_order(records: Records, observations: int = 0, batch_size: int = 128, seed: int = 0) -> Iterator[Batch]:
    """All stays in their order, cut to as many observations by one fixed draw: what a probe sees.

    Book: chapter 09.
    """
    generator = torch.Generator().manual_seed(seed)
    for index in torch.arange(len(records)).split(batch_size):
        yield cut(pad(records, index), observations, generator)


def share_cut(records: Records, observations: int) -> tuple[float, float]:
    """The share of stays that a cut to so many observations shortens, and the share of observations it leaves out."""
    if not observations:
        return 0.0, 0.0
    over = (records.count - observations).clamp(min=0)
    return (over > 0).float().mean().item(), (over.sum() / records.count.sum().clamp(min=1)).item()
