"""Fine-tuning on labels: a pretrained encoder and a fresh head, or, with an untrained encoder, learning from scratch.

Both are this one recipe, so that what pretraining brings is the only difference.

Book: chapter 09.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa_lab.batches import Batch
from jepa_lab.data.clinical import Records
from jepa_lab.data.clinical_batches import cut, in_order, pad
from jepa_lab.nets import TokenEncoder, masked_mean
from jepa_lab.objectives.base import Objective
from jepa_lab.training import TrainConfig, Trainer, seed_all


@dataclass(frozen=True)
class FineTuneConfig:
    """`lr` is that of a pretrained encoder, `scratch_lr` that of an untrained one, `head_lr` that of the head.
    `steps` with all labels, `few_steps` with fewer. The weights are averaged from `average_from` of the run on.
    `observations` of a stay are shown at a step. steps = 0 fine-tunes nothing."""

    steps: int = 600
    few_steps: int = 150
    lr: float = 5e-4
    scratch_lr: float = 2e-3
    head_lr: float = 2e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    batch_size: int = 64
    observations: int = 96
    average_from: float = 0.5

    def __post_init__(self):
        if self.steps < 0 or self.few_steps < 1 or self.batch_size < 1:
            raise ValueError(
                "finetune.steps must not be negative, few_steps and batch_size at least 1, "
                f"got {self.steps}, {self.few_steps} and {self.batch_size}"
            )
        if not 0 <= self.average_from < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"finetune.average_from and dropout must lie in [0, 1), got {self.average_from} and {self.dropout}"
            )
        if self.observations < 0:
            raise ValueError(f"finetune.observations must not be negative (0 = all), got {self.observations}")


class FineTuned(Objective):
    """Mean and maximum of the tokens and what else is known, dropout, a linear layer, logistic loss.

    The weights that are used in the end are the *plain* mean over the last part of the run, from
    `config.average_from` on: with few labels no part of them can be spared to choose the best step. An exponential
    average would not do: at tau = 0.999 it still holds 90 % of its start after 100 steps.

    Shapes: batch as `ObservationTokenizer` takes it, and `extra` [B, E], `label` Int[B] in 0, 1.
    Metrics: none. Book: chapter 09.
    """

    Config = FineTuneConfig

    def __init__(self, encoder: TokenEncoder, extra: int = 0, config: FineTuneConfig | None = None, seed: int = 0):
        super().__init__(copy.deepcopy(encoder).requires_grad_(True), seed)
        self.config = config or FineTuneConfig()
        self.head = nn.Linear(2 * encoder.dim + extra, 1)
        self.dropout = nn.Dropout(self.config.dropout)
        self.averaged = copy.deepcopy(nn.ModuleList([self.encoder, self.head])).requires_grad_(False)
        self.count = 0  # of the weights that are averaged

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.dropout(self._pool(self.encoder, batch))
        return F.binary_cross_entropy_with_logits(self.head(h).squeeze(1), batch["label"].to(h.dtype)), {}

    @staticmethod
    def _pool(encoder: TokenEncoder, batch: Batch) -> Float[Tensor, "B F"]:
        tokens = encoder.tokenize(batch)
        h = encoder.encode(tokens.x, tokens.valid)
        highest = h.masked_fill(~tokens.valid[..., None], -torch.inf).amax(1)
        some = tokens.valid.any(1, keepdim=True)  # a stay without observations is told by what else is known of it
        pooled = torch.cat([masked_mean(h, tokens.valid), highest], 1)
        return torch.cat([torch.where(some, pooled, 0.0), batch["extra"].to(h.dtype)], 1)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.count += progress >= self.config.average_from
        share = 1 / max(self.count, 1)  # before the average begins, the weights as they are
        for mean, part in zip(self.averaged, (self.encoder, self.head), strict=True):
            for a, b in zip(mean.parameters(), part.parameters(), strict=True):
                a.lerp_(b, share)

    def param_groups(self, lr: float) -> list[dict]:
        """Weight decay for the matrices alone, and the rate `config.head_lr` for the head."""
        head = set(self.head.parameters())
        found = []
        for group in super().param_groups(lr):
            parts = [p for p in group["params"] if p not in head], [p for p in group["params"] if p in head]
            found += [group | {"params": parts[0]}, group | {"params": parts[1], "lr": self.config.head_lr}]
        return found

    @property
    def representing_encoder(self) -> TokenEncoder:
        return self.averaged[0]

    @torch.no_grad()
    def score(self, batch: Batch) -> Float[Tensor, " B"]:
        """The log odds of the label, from the averaged weights."""
        encoder, head = self.averaged.eval()
        return head(self._pool(encoder, batch)).squeeze(1)


class LabelledBatches:
    """So many batches of labelled stays, for the trainer: each stay is shown equally often, however few there are."""

    def __init__(self, records: Records, extra: Tensor, config: FineTuneConfig, steps: int, seed: int):
        self.records, self.extra, self.config, self.steps, self.seed = records, extra, config, steps, seed

    def __call__(self, epoch: int) -> "LabelledBatches":
        return self

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        size, n, waiting = self.config.batch_size, len(self.records), torch.zeros(0, dtype=torch.long)
        for _ in range(self.steps):
            while len(waiting) < size:
                waiting = torch.cat([waiting, torch.randperm(n, generator=generator)])
            index, waiting = waiting[:size], waiting[size:]
            batch = cut(pad(self.records, index), self.config.observations, generator)
            yield batch | {"extra": self.extra[index]}


def fine_tune(
    encoder: TokenEncoder | Callable[[], TokenEncoder],
    records: Records,
    extra: Float[Tensor, "n E"],
    rows: Int[Tensor, " m"],
    config: FineTuneConfig,
    seed: int = 0,
    device: str = "auto",
) -> FineTuned:
    """A model of the label, trained on these rows of the records.

    Args:
        encoder: a pretrained one, which is copied; or a function that makes an untrained one: from scratch.
    Book: chapter 09.
    """
    scratch = not isinstance(encoder, nn.Module)
    seed_all(seed)
    model = FineTuned(encoder() if scratch else encoder, extra.shape[1], config, seed)
    steps = config.steps if len(rows) == len(records) else min(config.few_steps, config.steps)
    lr = config.scratch_lr if scratch else config.lr
    recipe = TrainConfig(
        1, config.batch_size, lr, config.weight_decay, warmup_steps=min(20, steps), seed=seed, device=device
    )
    Trainer(model, LabelledBatches(records.take(rows), extra[rows], config, steps, seed), recipe).fit()
    return model


def scores(model: FineTuned, records: Records, extra: Float[Tensor, "n E"], observations: int) -> Float[Tensor, " n"]:
    """The log odds of every stay, each seen once with so many observations (0 = all)."""
    device, found = next(model.parameters()).device, []
    for batch, more in zip(in_order(records, observations), extra.split(128), strict=True):
        found.append(model.score({k: v.to(device) for k, v in (batch | {"extra": more}).items()}).cpu())
    return torch.cat(found)
