"""The one training loop.

Book: chapter 01.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from jepa_lab.objectives.base import Objective

Batch = dict[str, Tensor]
History = dict[str, list[int | float]]


@dataclass(frozen=True)
class TrainConfig:
    """The recipe: AdamW with linear warm-up, cosine decay and gradient clipping.

    `threads` is the number of CPU threads (0 leaves torch's choice): models this small gain little from a second
    one and lose much when the cores are busy. `log_every` is how many steps of metrics are fetched at once.
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 50
    clip_norm: float = 1.0
    evaluate_every: int = 0
    log_every: int = 10
    seed: int = 0
    threads: int = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"trainer.{name} must be a positive number, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "evaluate_every", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name} must not be negative, got {getattr(self, name)}")


class Trainer:
    """Train an objective: `Trainer(objective, batches, config).fit()`.

    Args:
        batches: a dict of tensors with a common first axis, served as shuffled index batches from memory; or a function
            `batches(epoch)` that returns an iterable of batches with a length, for anything else.
        evaluate: called as `evaluate(objective)` every `config.evaluate_every` epochs and at the end; returns floats.

    After (and during) `fit`: `history`, a dict of equally long lists with one entry a step (`step`, `loss`, `lr`,
    `grad_norm` and the objective's metrics); `evaluations`, likewise with one entry an evaluation; `core_seconds`,
    the CPU time of the training itself without the evaluations.
    Book: chapter 01.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Batch | Callable[[int], Iterable[Batch]],
        config: TrainConfig | None = None,
        evaluate: Callable[[Objective], dict[str, float]] | None = None,
    ):
        self.config = config or TrainConfig()
        self.device = pick_device(self.config.device)
        self.objective = objective.to(self.device)
        if isinstance(batches, dict):
            data = {key: value.to(self.device) for key, value in batches.items()}
            batches = shuffled_batches(data, self.config.batch_size, self.config.seed)
        self.batches, self.evaluate = batches, evaluate
        self.history: History = {}
        self.evaluations: History = {}
        self.core_seconds = 0.0

    def fit(self) -> History:
        """Run all epochs and return `history`.

        Raises: FloatingPointError at a loss or metric that is not finite, naming the metric and the step.
        """
        threads = torch.get_num_threads()
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        try:
            self._fit()
        finally:
            torch.set_num_threads(threads)
        return self.history

    def _fit(self) -> None:
        config, objective = self.config, self.objective.train()
        groups = objective.param_groups(config.lr)
        optimizer = torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        peak_lr = [group["lr"] for group in optimizer.param_groups]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        step, pending, started = 0, [], time.process_time()

        for epoch in tqdm(range(config.epochs), desc="epoch", disable=_quiet(), leave=False):
            batches = self.batches(epoch)
            for i, batch in enumerate(batches):
                progress = (epoch + i / len(batches)) / config.epochs
                factor = lr_factor(step, progress, config.warmup_steps)
                for group, lr in zip(optimizer.param_groups, peak_lr, strict=True):
                    group["lr"] = lr * factor

                batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
                objective.before_step(progress)
                loss, metrics = objective(batch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                optimizer.step()
                objective.after_step(progress)  # the EMA follows the weights that the step has just made

                step += 1
                logged = {"loss": loss.detach(), "grad_norm": grad_norm.detach(), **metrics}
                pending.append((step, config.lr * factor, logged))
                if len(pending) == config.log_every:
                    self._log(pending)

            self._log(pending)
            last = epoch + 1 == config.epochs
            if self.evaluate and (last or (config.evaluate_every and (epoch + 1) % config.evaluate_every == 0)):
                self.core_seconds += time.process_time() - started
                row = {"epoch": epoch + 1, "step": step, **self.evaluate(objective)}
                for key, value in row.items():
                    self.evaluations.setdefault(key, []).append(value)
                objective.train()
                started = time.process_time()
        self.core_seconds += time.process_time() - started

    def _log(self, pending: list) -> None:
        """Move the pending metrics to the host in one transfer, check them, and append them to the history."""
        if not pending:
            return
        names = list(pending[0][2])
        values = torch.stack([torch.stack([logged[name].float() for name in names]) for _, _, logged in pending])
        for (step, lr, _), row in zip(pending, values.tolist(), strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{name} is {value} at step {step}: stopped. Try a lower trainer.lr, a higher temperature or a "
                        "stronger clip_norm, and look for NaN in the data"
                    )
            for name, value in {"step": step, "lr": lr, **dict(zip(names, row, strict=True))}.items():
                self.history.setdefault(name, []).append(value)
        pending.clear()


def lr_factor(step: int, progress: float, warmup_steps: int) -> float:
    """Share of the peak learning rate: linear over the first `warmup_steps`, times half a cosine over the whole run."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _quiet() -> bool | None:
    """Whether to hide progress bars: with TQDM_DISABLE=1 always, else (None) where there is no terminal or notebook."""
    return True if os.environ.get("TQDM_DISABLE", "0") not in ("", "0") else None


class _Epoch:
    """One epoch of shuffled index batches; knows its length."""

    def __init__(self, data: Batch, order: Tensor, batch_size: int):
        self.data, self.order, self.batch_size = data, order, batch_size

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        for i in range(len(self)):
            index = self.order[i * self.batch_size : (i + 1) * self.batch_size]
            yield {key: value[index] for key, value in self.data.items()}


def shuffled_batches(data: Batch, batch_size: int, seed: int = 0) -> Callable[[int], _Epoch]:
    """Batches by shuffled indices over tensors in memory, several times faster than a DataLoader at this size.

    The order depends on the seed and the epoch alone. The last incomplete batch is left out, since losses over the
    batch change with its size.

    Raises: ValueError when the tensors differ in length or hold less than one batch.
    """
    lengths = {key: len(value) for key, value in data.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"batches: all tensors must have the same length, got {lengths}")
    n = next(iter(lengths.values()))
    if n < batch_size:
        raise ValueError(f"trainer.batch_size={batch_size} is larger than the data set of {n} rows")
    device = next(iter(data.values())).device

    def epoch_batches(epoch: int) -> _Epoch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return _Epoch(data, torch.randperm(n, generator=generator).to(device), batch_size)

    return epoch_batches


def pick_device(name: str = "auto") -> torch.device:
    """The device to train on: a CUDA GPU if there is one, else Apple's, else the CPU; or the one named."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def seed_all(seed: int) -> None:
    """Seed torch: the weights' initialisation and everything else that has no generator of its own."""
    torch.manual_seed(seed)
